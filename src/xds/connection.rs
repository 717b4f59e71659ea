//! Connections: accepted, encrypted, served as HTTP/2, closed.
//!
//! Everything here is sized for thousands of connections that are silent most of the time.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::server::NoServerSessionStorage;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::admission::Place;
use super::service::Server;

/// A peer may let a handshake wait for this long in all.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);
/// A good token must be shown within this time after the handshake.
const INTRODUCTION: Duration = Duration::from_secs(30);
/// What HTTP/2 takes of a client beyond what its stream reads: the smallest that the standard allows to start with.
const WINDOW: u32 = 65_535;
/// Bytes of responses that HTTP/2 asks for before the client reads: handles to shared frames, and one frame more.
const SEND_BUFFER: usize = 16 << 10;
/// Encrypted bytes that the kernel has not taken yet: one TLS record.
const TLS_BUFFER: usize = 16 << 10;

/// Accepts connections until shutdown, and ends when the last one is closed.
pub(crate) async fn serve(server: Server, listener: TcpListener, tls: rustls::ServerConfig) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let (connections, shutdown) = (TaskTracker::new(), server.shutdown().clone());
    let accepting = async {
        loop {
            let Some(room) = server.admission().room().await else { return };
            let (socket, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: others close, then it goes on.
                    tracing::warn!(%error, "cannot accept an xDS connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(place) = server.admission().connection(room) else {
                tracing::debug!(%peer, "refused an xDS connection: there are too many");
                continue;
            };
            connections.spawn(encrypted(server.clone(), acceptor.clone(), socket, peer, place));
        }
    };
    tokio::select! {
        () = accepting => {}
        () = shutdown.cancelled() => {}
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// What `tls` needs for many clients that come back at once: they resume by a ticket, which costs no signature here
/// and no memory.
pub(crate) fn resumable(mut tls: rustls::ServerConfig) -> Result<rustls::ServerConfig, rustls::Error> {
    if tls.alpn_protocols.is_empty() {
        tls.alpn_protocols = vec![b"h2".to_vec()];
    }
    tls.ticketer = rustls::crypto::ring::Ticketer::new()?;
    tls.send_tls13_tickets = 1;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(tls)
}

async fn encrypted(server: Server, acceptor: TlsAcceptor, socket: TcpStream, peer: SocketAddr, place: Arc<Place>) {
    let _ = socket.set_nodelay(true);
    let shutdown = server.shutdown().clone();
    let handshake = acceptor.accept_with(socket, |tls| tls.set_buffer_limit(Some(TLS_BUFFER)));
    let handshake = server.admission().in_turns(handshake, HANDSHAKE);
    let stream = tokio::select! {
        finished = handshake => match finished {
            Some(Ok(stream)) => stream,
            Some(Err(error)) => return tracing::info!(%peer, %error, "TLS handshake failed on the xDS port"),
            None => return tracing::info!(%peer, "TLS handshake timed out on the xDS port"),
        },
        () = shutdown.cancelled() => return,
    };
    http2(server, stream, peer.to_string(), place).await;
}

/// Serves one connection until it is closed: by the client, for its age, because it shows no token, or by shutdown.
pub(super) async fn http2<I>(server: Server, io: I, peer: String, place: Arc<Place>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = server.limits().clone();
    let mut settings = http2::Builder::new(TokioExecutor::new());
    settings
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .max_concurrent_streams(limits.streams)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(limits.keepalive)
        .keep_alive_timeout(limits.keepalive)
        .auto_date_header(false);
    let (service, call_place, call_peer) = (server.clone(), place.clone(), peer.clone());
    let service = service_fn(move |request| service.clone().answer(request, call_peer.clone(), call_place.clone()));
    let mut connection = pin!(settings.serve_connection(TokioIo::new(io), service));
    tokio::select! {
        biased;
        () = closing(&server, &place) => {}
        ended = connection.as_mut() => return debug(&peer, ended),
    }
    // HTTP/2's GOAWAY goes out before the streams end, so that clients do not open another on this connection.
    if !server.shutdown().is_cancelled() {
        place.drain.cancel();
    }
    connection.as_mut().graceful_shutdown();
    match tokio::time::timeout(2 * limits.grace, connection).await {
        Ok(ended) => debug(&peer, ended),
        Err(_) => tracing::debug!(peer, "an xDS client did not let its connection end"),
    }
}

/// Until the connection is to be closed.
async fn closing(server: &Server, place: &Place) {
    let introduced = async {
        tokio::time::sleep(INTRODUCTION).await;
        match place.is_known() {
            true => std::future::pending().await,
            false => server.admission().refuse(),
        }
    };
    let aged = async {
        match server.limits().random_age() {
            Some(age) => tokio::time::sleep(age).await,
            None => std::future::pending().await,
        }
        server.admission().age();
    };
    tokio::select! {
        () = introduced => {}
        () = aged => {}
        () = server.shutdown().cancelled() => {}
    }
}

fn debug(peer: &str, ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(peer, %error, "an xDS connection ended");
    }
}

#[cfg(test)]
mod tests;
