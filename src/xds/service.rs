//! The gRPC face: `envoy.service.discovery.v3.AggregatedDiscoveryService`, for authenticated proxies only.
//!
//! It is written by hand instead of generated so that responses are frames of bytes (see `wire`).

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use futures::future::BoxFuture;
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use super::auth::{AuthError, Authenticator, Secrets, bearer};
use super::learn::{Learn, Nobody};
use super::registry::Registry;
use super::session::Patience;
use super::stream::{self, Shared};
use super::wire::FrameCodec;
use crate::snapshot::Snapshot;

const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const STATE_OF_THE_WORLD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

/// A request with the names and versions of some ten thousand resources is smaller than this.
const MAX_REQUEST: usize = 4 << 20;
/// An Envoy has one ADS stream; a few more let it reconnect.
const MAX_STREAMS: u32 = 8;
const KEEPALIVE: Duration = Duration::from_secs(30);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// TLS handshakes at once: they cost CPU that established streams need.
const HANDSHAKES: usize = 64;

/// The xDS server.
#[derive(Clone)]
pub struct Server {
    shared: Shared,
    authenticator: Arc<dyn Authenticator>,
}

impl Server {
    /// Serves what `snapshots` holds, from the first one on, to those whom `authenticator` knows. Cancelling `shutdown`
    /// ends every stream with UNAVAILABLE.
    pub fn new(
        snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
        authenticator: Arc<dyn Authenticator>,
        secrets: Arc<dyn Secrets>,
        shutdown: CancellationToken,
    ) -> Self {
        let registry = Arc::new(Registry::new(snapshots.clone()));
        let learn = Arc::new(Nobody);
        let shared = Shared { snapshots, secrets, registry, learn, patience: Patience::default(), shutdown };
        Self { shared, authenticator }
    }

    /// With other timeouts.
    pub fn patience(mut self, patience: Patience) -> Self {
        self.shared.patience = patience;
        self
    }

    /// With somebody who is told what the proxies use.
    pub fn learn(mut self, learn: Arc<dyn Learn>) -> Self {
        self.shared.learn = learn;
        self
    }

    /// The connected proxies and what they have acknowledged.
    pub fn registry(&self) -> Arc<Registry> {
        self.shared.registry.clone()
    }

    /// Serves on a listener with TLS until shutdown. `tls` offers HTTP/2 by ALPN if it offers nothing.
    pub async fn serve_tls(self, listener: TcpListener, mut tls: rustls::ServerConfig) -> Result<(), ServeError> {
        if tls.alpn_protocols.is_empty() {
            tls.alpn_protocols = vec![b"h2".to_vec()];
        }
        let shutdown = self.shared.shutdown.clone();
        let incoming = accept(listener, TlsAcceptor::from(Arc::new(tls)), shutdown.clone());
        Ok(self.router().serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned()).await?)
    }

    /// The service with its HTTP/2 settings, for a transport of the caller's own.
    pub fn router(self) -> tonic::transport::server::Router {
        tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(MAX_STREAMS)
            .add_service(self)
    }

    /// Authenticates a call and starts its stream.
    async fn start<R: stream::Request>(&self, call: Request<Streaming<R>>) -> Result<Response<Frames>, Status> {
        let peer = call.remote_addr().map_or_else(|| "unknown".to_owned(), |peer: SocketAddr| peer.to_string());
        let header = call.metadata().as_ref().get(http::header::AUTHORIZATION);
        let checked = async { self.authenticator.authenticate(bearer(header)?).await };
        let identity = checked.await.map_err(|error| {
            tracing::warn!(peer, reason = %error, "refused an xDS stream: not authenticated");
            match error {
                AuthError::Unavailable(_) => Status::unavailable(error.to_string()),
                _ => Status::unauthenticated(error.to_string()),
            }
        })?;
        // One frame: what comes after it is made when there is room, from the snapshot that is newest then (rule 36).
        let (sender, receiver) = mpsc::channel(1);
        let (shared, requests) = (self.shared.clone(), call.into_inner());
        tokio::spawn(async move {
            let responses = sender.clone();
            if let Err(status) = stream::serve(shared, identity, peer.clone(), requests, responses).await {
                tracing::info!(peer, status = ?status.code(), reason = status.message(), "an xDS stream ended");
                // Fails if the client is gone, which then has no use for the status.
                let _ = tokio::time::timeout(KEEPALIVE, sender.send(Err(status))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Why serving ended other than by shutdown.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The HTTP/2 server failed.
    #[error("the xDS server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

type Frames = ReceiverStream<Result<Bytes, Status>>;

impl<R: stream::Request + Message + Default> StreamingService<R> for Server {
    type Response = Bytes;
    type ResponseStream = Frames;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Frames>, Status>> + Send>>;

    fn call(&mut self, call: Request<Streaming<R>>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move { server.start(call).await })
    }
}

impl tower::Service<http::Request<Body>> for Server {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                DELTA => grpc::<DeltaDiscoveryRequest>().streaming(server, request).await,
                STATE_OF_THE_WORLD => grpc::<DiscoveryRequest>().streaming(server, request).await,
                path => Status::unimplemented(format!("{path}: only the aggregated discovery service is served"))
                    .into_http(),
            })
        })
    }
}

impl NamedService for Server {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

fn grpc<R: Message + Default + Send + 'static>() -> Grpc<FrameCodec<R>> {
    Grpc::new(FrameCodec::default()).max_decoding_message_size(MAX_REQUEST)
}

/// Connections whose TLS handshake is done. A peer that does not finish it delays nobody.
fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    shutdown: CancellationToken,
) -> ReceiverStream<std::io::Result<TlsStream<TcpStream>>> {
    let (sender, receiver) = mpsc::channel(HANDSHAKES);
    let slots = Arc::new(Semaphore::new(HANDSHAKES));
    tokio::spawn(async move {
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            let (connection, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: others close, then it goes on.
                    tracing::warn!(%error, "cannot accept an xDS connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (acceptor, sender) = (acceptor.clone(), sender.clone());
            tokio::spawn(async move {
                let _ = connection.set_nodelay(true);
                match tokio::time::timeout(HANDSHAKE, acceptor.accept(connection)).await {
                    Ok(Ok(stream)) => drop(sender.send(Ok(stream)).await),
                    Ok(Err(error)) => tracing::info!(%peer, %error, "TLS handshake failed on the xDS port"),
                    Err(_) => tracing::info!(%peer, "TLS handshake timed out on the xDS port"),
                }
                drop(slot);
            });
        }
    });
    ReceiverStream::new(receiver)
}
