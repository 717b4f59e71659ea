//! What the API server calls of a kubelet: the way to a port of a pod, as `kubectl port-forward` takes it, over WebSocket.
//!
//! A message begins with the number of its channel: 0 is what goes both ways, 1 would say what went wrong. Each begins
//! with the port, in two bytes (kubelet, `portforward/websocket.go`).

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use futures::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{ServerConfig, crypto::ring};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use super::Shared;

const PROTOCOL: &str = "v4.channel.k8s.io";

/// Serves until the runtime ends.
pub(super) async fn serve(listener: TcpListener, pods: Arc<Shared>) {
    // A test's: the log of the API server says why nobody is there.
    let Ok(tls) = tls() else { return };
    while let Ok((socket, _)) = listener.accept().await {
        let (tls, pods) = (tls.clone(), pods.clone());
        tokio::spawn(async move {
            let socket = TokioIo::new(tls.accept(socket).await?);
            let service = hyper::service::service_fn(move |request| answer(request, pods.clone()));
            hyper::server::conn::http1::Builder::new().serve_connection(socket, service).with_upgrades().await?;
            anyhow::Ok(())
        });
    }
}

/// The API server does not ask who the kubelet is.
fn tls() -> anyhow::Result<TlsAcceptor> {
    let own = rcgen::generate_simple_self_signed(["node".to_owned()])?;
    let key = own.signing_key.serialize_der().try_into().map_err(|error| anyhow!("{error}"))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn answer(request: Request<Incoming>, pods: Arc<Shared>) -> Result<Response<String>, Infallible> {
    Ok(begin(request, pods).await.unwrap_or_else(|error| {
        let mut response = Response::new(format!("{error:#}"));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        response
    }))
}

/// `/portForward/NAMESPACE/POD?port=PORT`
async fn begin(mut request: Request<Incoming>, pods: Arc<Shared>) -> anyhow::Result<Response<String>> {
    let path = request.uri().path().strip_prefix("/portForward/").context("only ports are forwarded")?.to_owned();
    let query = request.uri().query().unwrap_or_default();
    let port: u16 = query.split('&').find_map(|pair| pair.strip_prefix("port=")).context("port")?.parse()?;
    let key = request.headers().get(SEC_WEBSOCKET_KEY).context("a WebSocket")?.clone();
    let inside = tokio::task::spawn_blocking(move || pods.dial(&path, (Ipv4Addr::LOCALHOST, port).into())).await??;
    inside.set_nonblocking(true)?;
    let inside = TcpStream::from_std(inside)?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let socket = TokioIo::new(upgrade.await?);
        forward(WebSocketStream::from_raw_socket(socket, Role::Server, None).await, inside, port).await
    });
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes()).parse()?);
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    Ok(response)
}

async fn forward<S>(socket: WebSocketStream<S>, mut inside: TcpStream, port: u16) -> anyhow::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut out, mut messages) = socket.split();
    let [low, high] = port.to_le_bytes();
    for channel in [0, 1] {
        out.send(Message::binary(vec![channel, low, high])).await?;
    }
    let mut bytes = vec![0; 16 << 10];
    loop {
        tokio::select! {
            read = inside.read(&mut bytes[1..]) => {
                let count = read?;
                if count == 0 {
                    return Ok(out.close().await?);
                }
                out.send(Message::binary(bytes[..=count].to_vec())).await?;
            }
            message = messages.next() => match message {
                Some(Ok(Message::Binary(message))) => {
                    if let Some((0, data)) = message.split_first() {
                        inside.write_all(data).await?;
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(()),
                Some(Ok(_)) => {}
            },
        }
    }
}
