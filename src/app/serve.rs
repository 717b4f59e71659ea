//! The process of a workload: its listeners, and its end.
//!
//! ```text
//! stop ─▶ not ready; HTTP/1.1 answers close their connection; new connections are still taken   (drain)
//!      ─▶ no new connections; a moment for those that have just come to say what they want      (grace)
//!      ─▶ GOAWAY; what is being answered is answered to its end                                    "
//! ```

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::service::Routes;

use super::accept::{self, Stop};
use super::grpc::EchoService;
use super::http;
use super::proto::echo_server::EchoServer;
use super::target::Target;
use super::tcp::{self, Greeting};
use super::workload::{Identity, Settings, SettingsError, Workload};

/// What a client that has just connected gets to send its request.
const MOMENT: Duration = Duration::from_millis(200);

/// What to serve, and where.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// Who the workload is.
    pub identity: Identity,
    /// The address that the listeners bind.
    pub address: IpAddr,
    /// The port of HTTP/1.1 and HTTP/2 (prior knowledge); 0 takes a free one.
    pub http: Option<u16>,
    /// The port of gRPC.
    pub grpc: Option<u16>,
    /// The port of HTTPS, with a certificate that nobody has signed.
    pub https: Option<u16>,
    /// The port of TCP.
    pub tcp: Option<u16>,
    /// The TCP server speaks first.
    pub tcp_greeting: bool,
    /// What a request to `/` calls, in this order.
    pub upstreams: Vec<Target>,
    /// How long an upstream may take.
    pub upstream_timeout: Duration,
    /// How the workload acts at first.
    pub settings: Settings,
    /// How long new connections are still taken once the workload is to stop.
    pub drain: Duration,
    /// How long requests may take to their end after that.
    pub grace: Duration,
}

/// Why a workload cannot serve.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ServeError {
    #[error("nothing to serve: give at least one of --http, --https, --grpc and --tcp")]
    NoPort,
    #[error("cannot listen for {protocol} on {address}: {source}; is the port taken?")]
    Bind { protocol: &'static str, address: SocketAddr, source: io::Error },
    #[error("cannot make a certificate for HTTPS: {0}")]
    Certificate(String),
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

/// The addresses that a workload listens on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "one a protocol")]
pub struct Addresses {
    pub http: Option<SocketAddr>,
    pub https: Option<SocketAddr>,
    pub grpc: Option<SocketAddr>,
    pub tcp: Option<SocketAddr>,
}

/// How a workload ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Every request was answered.
    Drained,
    /// Requests were cut off after the grace period.
    CutOff,
}

/// A workload whose listeners are bound; it answers once it [runs](Server::run).
pub struct Server {
    workload: Arc<Workload>,
    addresses: Addresses,
    listeners: Vec<BoxFuture<'static, ()>>,
    stop: Stop,
    drain: Duration,
    grace: Duration,
}

impl Server {
    /// Binds the listeners.
    ///
    /// # Errors
    /// No port is asked for, one cannot be bound, or the settings cannot be.
    pub async fn bind(options: Options) -> Result<Self, ServeError> {
        if [options.http, options.https, options.grpc, options.tcp].iter().all(Option::is_none) {
            return Err(ServeError::NoPort);
        }
        options.settings.with(&super::workload::Change::default())?;
        let (reporter, health) = tonic_health::server::health_reporter();
        let Options { identity, upstreams, upstream_timeout, settings, .. } = options;
        let workload = Arc::new(Workload::new(identity, upstreams, upstream_timeout, settings, reporter).await);
        let stop = Stop::default();
        let mut addresses = Addresses::default();
        let mut listeners: Vec<BoxFuture<'static, ()>> = Vec::new();

        if let Some(port) = options.http {
            let (listener, address) = listen("HTTP", options.address, port).await?;
            addresses.http = Some(address);
            listeners.push(Box::pin(accept::http(listener, http::router(workload.clone()), stop.clone())));
        }
        if let Some(port) = options.https {
            let tls = tls(&workload.identity.name).map_err(ServeError::Certificate)?;
            let (listener, address) = listen("HTTPS", options.address, port).await?;
            addresses.https = Some(address);
            listeners.push(Box::pin(accept::https(listener, tls, http::router(workload.clone()), stop.clone())));
        }
        if let Some(port) = options.grpc {
            let (listener, address) = listen("gRPC", options.address, port).await?;
            addresses.grpc = Some(address);
            let echo = EchoServer::new(EchoService(workload.clone())).max_decoding_message_size(super::MAX_BODY);
            let router = Routes::new(echo).add_service(health).prepare().into_axum_router();
            listeners.push(Box::pin(accept::http(listener, router, stop.clone())));
        }
        if let Some(port) = options.tcp {
            let (listener, address) = listen("TCP", options.address, port).await?;
            addresses.tcp = Some(address);
            let greeting = if options.tcp_greeting { Greeting::AtOnce } else { Greeting::WhenSpokenTo };
            listeners.push(Box::pin(tcp::serve(listener, workload.clone(), greeting, stop.clone())));
        }
        Ok(Self { workload, addresses, listeners, stop, drain: options.drain, grace: options.grace })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Serves until `stopped` is done, then ends as the module's head says.
    pub async fn run(self, stopped: impl Future<Output = ()> + Send) -> Ended {
        let Self { workload, listeners, stop, drain, grace, .. } = self;
        let serving = futures::future::join_all(listeners);
        let ending = async {
            stopped.await;
            workload.drain().await;
            tokio::time::sleep(drain).await;
            stop.closing.cancel();
            let moment = grace.min(MOMENT);
            tokio::time::sleep(moment).await;
            stop.ending.cancel();
            tokio::time::sleep(grace - moment).await;
        };
        tokio::select! {
            _ = serving => Ended::Drained,
            () = ending => Ended::CutOff,
        }
    }
}

/// TLS with a certificate of its own for this name, and HTTP/2 or HTTP/1.1 inside.
fn tls(name: &str) -> Result<TlsAcceptor, String> {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![made.cert.into()], key))
        .map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn listen(protocol: &'static str, ip: IpAddr, port: u16) -> Result<(TcpListener, SocketAddr), ServeError> {
    let address = SocketAddr::new(ip, port);
    let bind = async {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    bind.await.map_err(|source| ServeError::Bind { protocol, address, source })
}
