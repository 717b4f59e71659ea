//! The way to the control plane and to the proxies' admin interfaces, which listen inside their pods only.

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::sync::Mutex;

use anyhow::Context;
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

pub use super::pod::KnownPod;
use crate::inspect::proto::inspection_client::InspectionClient;
use crate::mesh::PodKey;

/// More than any proxy's configuration: what is longer is not Envoy's.
const MAX_BODY: usize = 1 << 30;
/// The same of what a control plane tells.
const MAX_MESSAGE: usize = 256 << 20;

/// What to connect to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// The admin interface of the sidecar in this pod.
    Admin(PodKey),
    /// An admin interface at an address that is reachable from here.
    Address(String),
    /// The control plane's admin port, where there is one.
    ControlPlane,
    /// That of one of several replicas, by its pod's name.
    Replica(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin(pod) => write!(f, "the proxy of pod {pod}"),
            Self::Address(address) => write!(f, "the proxy at {address}"),
            Self::ControlPlane => f.write_str("the control plane"),
            Self::Replica(name) => write!(f, "replica {name} of the control plane"),
        }
    }
}

/// Opens connections, from wherever that can be done.
pub trait Reach {
    /// A connected socket. It may block.
    fn connect(&self, target: &Target) -> io::Result<TcpStream>;

    /// The pods whose proxies it can reach; `None` if only the control plane knows.
    fn pods(&self) -> io::Result<Option<Vec<KnownPod>>>;

    /// The control plane: each replica of it that serves.
    fn replicas(&self) -> io::Result<Vec<Target>> {
        Ok(vec![Target::ControlPlane])
    }
}

/// Addresses that the user gave, reachable from here.
pub(in crate::cli) struct Direct {
    pub(in crate::cli) server: Option<String>,
    pub(in crate::cli) admin: Option<String>,
}

impl Reach for Direct {
    fn connect(&self, target: &Target) -> io::Result<TcpStream> {
        let missing = |flag: &str| io::Error::other(format!("no way is known; give {flag} HOST:PORT"));
        match target {
            Target::Address(address) => TcpStream::connect(address),
            Target::Admin(_) => TcpStream::connect(self.admin.as_deref().ok_or_else(|| missing("--admin"))?),
            Target::ControlPlane | Target::Replica(_) => {
                TcpStream::connect(self.server.as_deref().ok_or_else(|| missing("--server"))?)
            }
        }
    }

    fn pods(&self) -> io::Result<Option<Vec<KnownPod>>> {
        Ok(None)
    }
}

fn connect(reach: &dyn Reach, target: &Target) -> anyhow::Result<tokio::net::TcpStream> {
    let convert = |stream: TcpStream| {
        stream.set_nonblocking(true)?;
        tokio::net::TcpStream::from_std(stream)
    };
    reach.connect(target).and_then(convert).with_context(|| format!("cannot connect to {target}"))
}

/// The body of `GET path`.
pub(super) async fn get(reach: &dyn Reach, target: &Target, path: &str) -> anyhow::Result<Bytes> {
    let failed = || format!("{target} did not answer GET {path}");
    let stream = TokioIo::new(connect(reach, target)?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.with_context(failed)?;
    let driver = tokio::spawn(connection);
    let request = Request::get(path).header(header::HOST, "localhost").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.with_context(failed)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error)).with_context(failed)?.to_bytes();
    driver.abort();
    if status != StatusCode::OK {
        let text = String::from_utf8_lossy(&body);
        anyhow::bail!("{target} answered GET {path} with {status}: {}", text.trim());
    }
    Ok(body)
}

/// What each replica of the control plane answers. Half of the truth looks like the whole of it: when one does not answer,
/// none has.
pub(in crate::cli) async fn ask_each<T>(
    reach: &dyn Reach,
    ask: impl AsyncFn(InspectionClient<Channel>) -> anyhow::Result<T>,
) -> anyhow::Result<Vec<T>> {
    let mut answers = Vec::new();
    for replica in reach.replicas().context("cannot find the control plane")? {
        let client = InspectionClient::new(channel(reach, &replica).await?).max_decoding_message_size(MAX_MESSAGE);
        let answer = ask(client).await;
        answers.push(match &replica {
            Target::ControlPlane => answer?,
            _ => answer.with_context(|| replica.to_string())?,
        });
    }
    Ok(answers)
}

/// As [`ask_each`], with what `together` makes of the answers of several.
pub(in crate::cli) async fn ask_all<T: Default>(
    reach: &dyn Reach,
    ask: impl AsyncFn(InspectionClient<Channel>) -> anyhow::Result<T>,
    together: impl FnOnce(Vec<T>) -> T,
) -> anyhow::Result<T> {
    let mut answers = ask_each(reach, ask).await?;
    Ok(match answers.len() {
        1 => answers.pop().unwrap_or_default(),
        _ => together(answers),
    })
}

/// A gRPC channel over one connection.
async fn channel(reach: &dyn Reach, replica: &Target) -> anyhow::Result<Channel> {
    let stream = Mutex::new(Some(connect(reach, replica)?));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.lock().ok().and_then(|mut stream| stream.take());
        let again = || io::Error::other("the connection to the control plane was lost");
        std::future::ready(stream.map(TokioIo::new).ok_or_else(again))
    });
    let endpoint = Endpoint::from_static("http://weft.weft-system.svc:15014");
    endpoint.connect_with_connector(connector).await.context("the control plane does not speak gRPC on this port")
}
