//! Taking connections, and letting go of them without losing a request.
//!
//! ```text
//! closing ─▶ the connections that the kernel holds are still taken, then the listener closes
//! ending  ─▶ each connection ends once it owes no answer (HTTP/2 says GOAWAY)
//! ```
//!
//! Between the two, a client that has just connected gets the time to say what it wants.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

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
    let builder = Arc::new(auto::Builder::new(TokioExecutor::new()));
    let ending = stop.ending.clone();
    connections(listener, stop, |stream| {
        let (builder, router, ending) = (builder.clone(), router.clone(), ending.clone());
        async move {
            let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
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
    })
    .await;
}
