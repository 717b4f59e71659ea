//! The gRPC face: `envoy.service.discovery.v3.AggregatedDiscoveryService` and the reports of `access_logs`, for
//! authenticated proxies only.
//!
//! ```text
//!  connection ──HTTP/2 request──▶ answer ─▶ authenticate ─▶ stream (a task)
//!                                                             │ frames
//!             ◀──HTTP/2 response── body ◀─────────────────────┘
//! ```
//!
//! It is written by hand on hyper, since generated code would copy every response for every client.

use std::convert::Infallible;
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;

use super::access_logs::{self, Denials};
use super::admission::{Admission, Counts, Limits, Place};
use super::auth::{AuthError, Authenticator, ProxyIdentity, Secrets, bearer};
use super::body::ResponseBody;
use super::connection;
use super::frames::Frames;
use super::learn::{Learn, Nobody};
use super::registry::Registry;
use super::requests::Requests;
use super::rollout::Canary;
use super::session::Patience;
use super::stream::{self, Shared};
use crate::snapshot::Snapshot;

const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const STATE_OF_THE_WORLD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

const ACCESS_LOGS: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// The xDS server.
#[derive(Clone)]
pub struct Server {
    shared: Shared,
    authenticator: Arc<dyn Authenticator>,
    denials: Arc<dyn Denials>,
}

impl Server {
    /// Serves what `snapshots` holds, from the first one on, to those whom `authenticator` knows. Cancelling `shutdown`
    /// ends every stream with UNAVAILABLE. Must be called in a runtime: a task follows the snapshots.
    pub fn new(
        snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
        authenticator: Arc<dyn Authenticator>,
        secrets: Arc<dyn Secrets>,
        shutdown: CancellationToken,
    ) -> Self {
        let registry = Arc::new(Registry::new(Canary::default()));
        let following = registry.clone();
        tokio::spawn(async move { following.follow(snapshots).await });
        let limits = Arc::new(Limits::default());
        let shared = Shared {
            secrets,
            registry,
            learn: Arc::new(Nobody),
            patience: Patience::default(),
            names: Arc::default(),
            beginnings: Arc::default(),
            steps: Arc::default(),
            shutdown,
            frames: Arc::default(),
            admission: Arc::new(Admission::new(&limits)),
            limits,
        };
        Self { shared, authenticator, denials: Arc::new(Nobody) }
    }

    /// With another way to roll out what many proxies share.
    pub fn canary(self, canary: Canary) -> Self {
        self.shared.registry.set_canary(canary);
        self
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

    /// With somebody who is told what enforcement would deny.
    pub fn denials(mut self, denials: Arc<dyn Denials>) -> Self {
        self.denials = denials;
        self
    }

    /// With other limits.
    pub fn limit(mut self, limits: Limits) -> Self {
        self.shared.admission = Arc::new(Admission::new(&limits));
        self.shared.limits = Arc::new(limits);
        self
    }

    /// The connected proxies and what they have acknowledged.
    pub fn registry(&self) -> Arc<Registry> {
        self.shared.registry.clone()
    }

    /// Tells who was let in and what they share, whenever it is called.
    pub fn counts(&self) -> impl Fn() -> Counts + Send + Sync + use<> {
        let (admission, frames) = (self.shared.admission.clone(), self.shared.frames.clone());
        move || {
            let (frames_encoded, frames_shared) = frames.counts();
            Counts { frames_encoded, frames_shared, ..admission.counts() }
        }
    }

    pub(crate) fn admission(&self) -> &Admission {
        &self.shared.admission
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    pub(crate) fn shutdown(&self) -> &CancellationToken {
        &self.shared.shutdown
    }

    /// Serves on a listener with TLS until shutdown. `tls` offers HTTP/2 by ALPN if it offers nothing.
    pub async fn serve_tls(self, listener: TcpListener, tls: rustls::ServerConfig) -> Result<(), ServeError> {
        let tls = connection::resumable(tls)?;
        let frames = self.shared.frames.clone();
        tokio::select! {
            () = connection::serve(self, listener, tls) => Ok(()),
            () = Frames::expire_forever(frames) => Ok(()),
        }
    }

    /// Answers one call.
    pub(crate) async fn answer<B>(
        self,
        request: http::Request<B>,
        peer: String,
        place: Arc<Place>,
    ) -> Result<http::Response<ResponseBody>, Infallible>
    where
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        if !is_grpc(&head.headers) {
            let mut response = http::Response::new(ResponseBody::default());
            *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Ok(response);
        }
        let body = Body::new(body);
        let started = match head.uri.path() {
            DELTA => self.start::<DeltaDiscoveryRequest>(&head.headers, body, peer, place).await,
            STATE_OF_THE_WORLD => self.start::<DiscoveryRequest>(&head.headers, body, peer, place).await,
            ACCESS_LOGS => self.report(&head.headers, body, peer, place).await,
            path => Err(Status::unimplemented(format!("{path}: only the aggregated discovery service is served"))),
        };
        Ok(started.unwrap_or_else(Status::into_http))
    }

    /// Who calls; a place is known from then on.
    async fn introduce(&self, headers: &HeaderMap, peer: &str, place: &Place) -> Result<ProxyIdentity, Status> {
        not_compressed(headers)?;
        let checked = async { self.authenticator.authenticate(bearer(headers.get(header::AUTHORIZATION))?).await };
        let identity = self.shared.admission.in_turns(checked, connection::HANDSHAKE).await;
        let late = || Err(AuthError::Unavailable("that takes too long".to_owned()));
        let identity = identity.unwrap_or_else(late).map_err(|error| {
            tracing::warn!(peer, reason = %error, "refused an xDS stream: not authenticated");
            self.shared.admission.refuse();
            match error {
                AuthError::Unavailable(_) => Status::unavailable(error.to_string()),
                _ => Status::unauthenticated(error.to_string()),
            }
        })?;
        place.known();
        self.shared.admission.admit();
        Ok(identity)
    }

    /// Authenticates a call and reads what it reports, which is answered when it ends.
    async fn report(
        &self,
        headers: &HeaderMap,
        body: Body,
        peer: String,
        place: Arc<Place>,
    ) -> Result<http::Response<ResponseBody>, Status> {
        let identity = self.introduce(headers, &peer, &place).await?;
        let (sender, receiver) = mpsc::channel(1);
        let (denials, shutdown) = (self.denials.clone(), self.shared.shutdown.clone());
        tokio::spawn(async move {
            let messages = Requests::new(body, access_logs::RATE);
            let ended = tokio::select! {
                ended = access_logs::read(&identity, messages, denials) => ended,
                () = place.drain.cancelled() => Ok(()),
                () = shutdown.cancelled() => Ok(()),
            };
            if let Err(status) = ended {
                tracing::info!(peer, status = ?status.code(), reason = status.message(), "a report ended");
                // There is room for it; it fails if the client is gone.
                let _ = sender.try_send(Err(status));
            }
        });
        let mut response = http::Response::new(ResponseBody::new(receiver));
        response.headers_mut().insert(header::CONTENT_TYPE, GRPC);
        Ok(response)
    }

    /// Authenticates a call and starts its stream.
    async fn start<R: stream::Request + Message + Default>(
        &self,
        headers: &HeaderMap,
        body: Body,
        peer: String,
        place: Arc<Place>,
    ) -> Result<http::Response<ResponseBody>, Status> {
        let identity = self.introduce(headers, &peer, &place).await?;
        // One frame: what comes after it is made when there is room, from the snapshot that is newest then (rule 36).
        let (sender, receiver) = mpsc::channel(1);
        let (shared, requests) = (self.shared.clone(), Requests::<R>::new(body, self.shared.limits.requests));
        tokio::spawn(async move {
            let (responses, grace) = (sender.clone(), shared.limits.grace);
            if let Err(status) = stream::serve(shared, identity, peer.clone(), place, requests, responses).await {
                tracing::info!(peer, status = ?status.code(), reason = status.message(), "an xDS stream ended");
                // Fails if the client is gone, which then has no use for the status.
                let _ = tokio::time::timeout(grace, sender.send(Err(status))).await;
            }
        });
        let mut response = http::Response::new(ResponseBody::new(receiver));
        response.headers_mut().insert(header::CONTENT_TYPE, GRPC);
        Ok(response)
    }
}

/// Why serving ended other than by shutdown.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There are no keys for session tickets.
    #[error("the xDS server cannot make keys for TLS session tickets: {0}")]
    Tickets(#[from] rustls::Error),
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(GRPC.as_bytes()))
}

/// As tonic answers to what it cannot read.
fn not_compressed(headers: &HeaderMap) -> Result<(), Status> {
    match headers.get("grpc-encoding") {
        None => Ok(()),
        Some(encoding) if encoding == "identity" => Ok(()),
        Some(encoding) => {
            let encoding = encoding.to_str().unwrap_or("an unknown encoding");
            let mut status =
                Status::unimplemented(format!("requests that are compressed ({encoding}) are not supported"));
            status
                .metadata_mut()
                .insert("grpc-accept-encoding", tonic::metadata::MetadataValue::from_static("identity"));
            Err(status)
        }
    }
}
