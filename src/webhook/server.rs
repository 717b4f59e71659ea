//! The server: TLS, HTTP, and what one question may cost.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rustls::crypto::ring;
use rustls::server::ResolvesServerCert;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{CONVERT_PATH, CertificateFiles, INJECT_PATH, Malformed, VALIDATE_PATH};
use crate::inject::Options;

/// An object in etcd is at most 1.5 MiB, and a review may hold two of it.
const ADMISSION_BYTES: usize = 8 << 20;
/// An API server has a whole list converted at once.
const CONVERSION_BYTES: usize = 64 << 20;
/// From the first byte of a question to its answer. API servers wait 10 s by default, and 30 s at most.
const PATIENCE: Duration = Duration::from_secs(10);
/// For reading it: who holds a turn must not dawdle.
const READING: Duration = Duration::from_secs(2);
/// Connections at once: an API server keeps a few.
const CONNECTIONS: usize = 256;
/// Questions at once, each of which may take its bytes in memory several times over.
const QUESTIONS: usize = 16;

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// TLS cannot be set up.
    #[error("cannot set up TLS for the webhooks: {0}")]
    Tls(#[from] rustls::Error),
    /// The socket.
    #[error("the webhooks' port ended: {0}")]
    Listen(#[from] io::Error),
}

/// What the webhooks need to answer.
#[derive(Debug, Clone)]
pub struct Server {
    options: Arc<Options>,
    asked: Family<Asked, Counter>,
    turns: Arc<Semaphore>,
}

/// How a question ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    webhook: &'static str,
    result: &'static str,
}

impl Server {
    /// A server that injects with `options`.
    pub fn new(options: Options) -> Self {
        Self { options: Arc::new(options), asked: Family::default(), turns: Arc::new(Semaphore::new(QUESTIONS)) }
    }

    /// Adds its metrics to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Questions of the API server, by webhook and result: allowed, denied, failed, malformed";
        registry.register("weft_webhook_requests", help, self.asked.clone());
    }

    /// The paths of the webhooks.
    pub fn router(&self) -> Router {
        Router::new()
            .route(INJECT_PATH, post(inject))
            .route(VALIDATE_PATH, post(validate))
            .route(CONVERT_PATH, post(convert))
            .with_state(self.clone())
    }

    /// Serves over TLS with what `certificate` gives each handshake, until `shutdown`; open questions are answered.
    ///
    /// # Errors
    /// When TLS cannot be set up, or the listener fails.
    pub async fn serve(
        self,
        listener: TcpListener,
        certificate: Arc<dyn ResolvesServerCert>,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(certificate);
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let (acceptor, router) = (TlsAcceptor::from(Arc::new(tls)), self.router());
        let (connections, graceful) = (Arc::new(Semaphore::new(CONNECTIONS)), GracefulShutdown::new());
        loop {
            let Ok(permit) = connections.clone().acquire_owned().await else { break };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            let Ok((stream, _)) = accepted else {
                // No file descriptor is left, or the peer is gone already: neither is a reason to end.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (acceptor, router, watcher) = (acceptor.clone(), router.clone(), graceful.watcher());
            tokio::spawn(async move {
                let _permit = permit;
                let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await else { return };
                let mut builder = auto::Builder::new(TokioExecutor::new());
                builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
                builder.http2().timer(TokioTimer::new()).keep_alive_interval(PATIENCE).max_concurrent_streams(64);
                let connection =
                    builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).into_owned();
                // A client that breaks off has its own reasons.
                let _ = watcher.watch(connection).await;
            });
        }
        // Those that were accepted may end what they began.
        let _ = tokio::time::timeout(PATIENCE, graceful.shutdown()).await;
        Ok(())
    }
}

/// Health, readiness and metrics, in clear: the webhooks' own port has no TLS before there is a certificate.
pub fn admin(certificate: Arc<CertificateFiles>, registry: Arc<Registry>) -> Router {
    let ready = async move || match certificate.is_ready() {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready: there is no certificate yet\n").into_response(),
    };
    let metrics = async move || {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &registry) {
            Ok(()) => text.into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("metrics: {error}\n")).into_response(),
        }
    };
    Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(ready)).route("/metrics", get(metrics))
}

async fn inject(State(server): State<Server>, body: Body) -> Response {
    let options = server.options.clone();
    server.answer("inject", ADMISSION_BYTES, body, move |bytes| super::inject(bytes, &options)).await
}

async fn validate(State(server): State<Server>, body: Body) -> Response {
    server.answer("validate", ADMISSION_BYTES, body, super::validate).await
}

async fn convert(State(server): State<Server>, body: Body) -> Response {
    server.answer("convert", CONVERSION_BYTES, body, super::convert).await
}

impl Server {
    /// Reads a question and answers it, both within [`PATIENCE`].
    async fn answer(
        &self,
        webhook: &'static str,
        limit: usize,
        body: Body,
        answer: impl FnOnce(&[u8]) -> Result<Value, Malformed> + Send + 'static,
    ) -> Response {
        let answered = async {
            let Ok(_turn) = self.turns.acquire().await else { return Err(StatusCode::SERVICE_UNAVAILABLE) };
            let read = tokio::time::timeout(READING, axum::body::to_bytes(body, limit));
            let read = read.await.map_err(|_| StatusCode::REQUEST_TIMEOUT)?;
            let bytes = read.map_err(|_| StatusCode::PAYLOAD_TOO_LARGE)?;
            // A list of thousands takes a while; other questions go on beside it.
            let answered = tokio::task::spawn_blocking(move || answer(&bytes)).await;
            answered.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
        };
        let answered = tokio::time::timeout(PATIENCE, answered).await.unwrap_or(Err(StatusCode::REQUEST_TIMEOUT));
        let count = |result| self.asked.get_or_create(&Asked { webhook, result }).inc();
        match answered {
            Ok(Ok(review)) => {
                let denied = review.pointer("/response/allowed") == Some(&Value::Bool(false));
                let failed = review.pointer("/response/result/status").is_some_and(|status| status == "Failed");
                count(if denied {
                    "denied"
                } else if failed {
                    "failed"
                } else {
                    "allowed"
                });
                Json(review).into_response()
            }
            Ok(Err(malformed)) => {
                count("malformed");
                (StatusCode::BAD_REQUEST, format!("{malformed}\n")).into_response()
            }
            Err(status) => {
                count("failed");
                status.into_response()
            }
        }
    }
}
