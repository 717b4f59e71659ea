//! The control plane's inspection API, reached through the playground.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};
use weft::inspect::proto::inspection_client::InspectionClient;
use weft::inspect::proto::{
    Convergence, Diagnostic, Edge, GetConvergenceRequest, GetGraphRequest, ListDiagnosticsRequest, ListProxiesRequest,
    Proxy,
};
use weft::local::Client;
use weft::local::node::CONTROL_PLANE_ADMIN;

use crate::until;

/// A connection to one control plane; after its restart, make another.
#[derive(Debug)]
pub struct Inspection {
    runtime: tokio::runtime::Runtime,
    client: InspectionClient<Channel>,
}

impl Inspection {
    /// Connects.
    ///
    /// # Errors
    /// When the control plane does not answer.
    pub fn connect(playground: &Client) -> anyhow::Result<Self> {
        Self::over(playground.dial(None, CONTROL_PLANE_ADMIN)?)
    }

    /// Connects to a control plane whose admin port can be reached from here.
    ///
    /// # Errors
    /// When the control plane does not answer.
    pub fn at(admin: SocketAddr) -> anyhow::Result<Self> {
        Self::over(TcpStream::connect(admin)?)
    }

    fn over(socket: TcpStream) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let channel = runtime.block_on(async {
            let mut socket = Some(TokioIo::new(tokio::net::TcpStream::from_std(socket)?));
            let connector = tower::service_fn(move |_| {
                let socket = socket.take().ok_or_else(|| std::io::Error::other("the connection was lost"));
                std::future::ready(socket)
            });
            anyhow::Ok(Endpoint::from_static("http://weft").connect_with_connector(connector).await?)
        })?;
        Ok(Self { runtime, client: InspectionClient::new(channel) })
    }

    /// How far the newest snapshot has come.
    ///
    /// # Errors
    /// When the control plane does not answer.
    pub fn convergence(&mut self) -> anyhow::Result<Convergence> {
        let answer = self.runtime.block_on(self.client.get_convergence(GetConvergenceRequest {}));
        Ok(answer.context("GetConvergence")?.into_inner())
    }

    /// The connected proxies.
    ///
    /// # Errors
    /// When the control plane does not answer.
    pub fn proxies(&mut self) -> anyhow::Result<Vec<Proxy>> {
        let answer = self.runtime.block_on(self.client.list_proxies(ListProxiesRequest::default()));
        Ok(answer.context("ListProxies")?.into_inner().proxies)
    }

    /// Who calls whom.
    ///
    /// # Errors
    /// When the control plane does not answer.
    pub fn graph(&mut self) -> anyhow::Result<Vec<Edge>> {
        let answer = self.runtime.block_on(self.client.get_graph(GetGraphRequest::default()));
        Ok(answer.context("GetGraph")?.into_inner().edges)
    }

    /// What is wrong with the mesh's objects.
    ///
    /// # Errors
    /// When the control plane does not answer.
    pub fn diagnostics(&mut self) -> anyhow::Result<Vec<Diagnostic>> {
        let answer = self.runtime.block_on(self.client.list_diagnostics(ListDiagnosticsRequest::default()));
        Ok(answer.context("ListDiagnostics")?.into_inner().diagnostics)
    }

    /// Waits until a snapshot newer than `before` is published and all proxies have answered all of it, and nothing
    /// more has come for [`QUIET`]; returns how long it took to the last answer.
    ///
    /// # Errors
    /// When it does not happen in time.
    pub fn converged_after(&mut self, before: u64, start: Instant) -> anyhow::Result<Duration> {
        let mut reached: Option<(u64, Instant)> = None;
        until("the last proxy's acknowledgement", Duration::from_secs(20), || {
            let Convergence { snapshot, behind, connected, .. } = self.convergence()?;
            if snapshot <= before || behind > 0 {
                reached = None;
                return Ok(Err(format!("snapshot {snapshot}, {behind} of {connected} behind")));
            }
            let (_, at) = *reached.get_or_insert((snapshot, Instant::now()));
            reached = reached.filter(|(last, _)| *last == snapshot);
            Ok(if at.elapsed() >= QUIET { Ok(at - start) } else { Err(format!("snapshot {snapshot} is young")) })
        })
    }
}

/// One change of a file may be several objects, and these several snapshots: they come within a few of the control
/// plane's gathering times (20 ms).
const QUIET: Duration = Duration::from_millis(150);
