//! Taking connections, and letting go of them without losing a request.
//!
//! ```text
//! closing ─▶ the connections that the kernel holds are still taken, then the listener closes
//! ending  ─▶ each connection ends once it owes no answer (HTTP/2 says GOAWAY)
//! ```
//!
//! Between the two, a client that has just connected gets the time to say what it wants.

use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::util::MapRequestLayer;

/// Names who was asked for in TLS.
const SNI_HEADER: &str = "x-weft-app-sni";

/// The longest headers of a request over HTTP/2, in bytes.
const LARGEST_HEADERS: u32 = 1 << 20;

/// The two steps of an end.
#[derive(Clone, Default)]
pub(super) struct Stop {
    pub(super) closing: CancellationToken,
    pub(super) ending: CancellationToken,
}

/// Hands every connection to `serve`; returns after `closing`, when the last connection has ended.
pub(super) async fn connections<F>(listener: TcpListener, stop: Stop, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let open = TaskTracker::new();
    let take = |stream: TcpStream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        open.spawn(serve(stream));
    };
    while let Some(accepted) = stop.closing.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => take(stream),
            Err(error) => {
                // Out of descriptors, most likely: to accept again at once would spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    // What the kernel has accepted would be reset when the listener closes.
    if let Ok(listener) = listener.into_std() {
        while let Ok((stream, _)) = listener.accept() {
            if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                take(stream);
            }
        }
    }
    open.close();
    open.wait().await;
}

/// HTTP/1.1 and HTTP/2 by prior knowledge, told apart by the first bytes of a connection.
pub(super) async fn http(listener: TcpListener, router: Router, stop: Stop) {
    let ending = stop.ending.clone();
    connections(listener, stop, |stream| connection(stream, router.clone(), ending.clone())).await;
}

/// As [`http`], over TLS. A request says in [`SNI_HEADER`] which name its client asked for.
pub(super) async fn https(listener: TcpListener, tls: TlsAcceptor, router: Router, stop: Stop) {
    let ending = stop.ending.clone();
    connections(listener, stop, |stream| {
        let (tls, router, ending) = (tls.clone(), router.clone(), ending.clone());
        async move {
            let stream = match tls.accept(stream).await {
                Ok(stream) => stream,
                Err(error) => return tracing::debug!(%error, "a TLS handshake failed"),
            };
            let sni = stream.get_ref().1.server_name().and_then(|name| HeaderValue::from_str(name).ok());
            let named = move |mut request: Request| {
                request.headers_mut().remove(SNI_HEADER);
                request.headers_mut().extend(sni.clone().map(|sni| (HeaderName::from_static(SNI_HEADER), sni)));
                request
            };
            connection(stream, router.layer(MapRequestLayer::new(named)), ending).await;
        }
    })
    .await;
}

async fn connection<S>(stream: S, router: Router, ending: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // WebSocket over HTTP/2 begins with an extended CONNECT.
    builder.http2().max_header_list_size(LARGEST_HEADERS).enable_connect_protocol();
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}
