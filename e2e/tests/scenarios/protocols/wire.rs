//! Conversations on raw connections from inside a pod, byte by byte: what a client library would hide.

use std::future::Future;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use h2::client::SendRequest;
use h2::ext::Protocol;
use http::{HeaderMap, Method, Request};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;
use weft::app::proto::EchoRequest;
use weft::app::proto::echo_client::EchoClient;
use weft_e2e::mesh::Mesh;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Says `say` and hears until `enough` is heard or the other side ends.
pub(super) fn talk(mesh: &Mesh, pod: &str, to: SocketAddr, say: &str, enough: &str) -> anyhow::Result<String> {
    let mut socket = mesh.dial(pod, to)?;
    mesh.traffic().call();
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(say.as_bytes())?;
    hear(&mut socket, enough)
}

/// Hears until `enough` is heard or the other side ends.
pub(super) fn hear(socket: &mut impl Read, enough: &str) -> anyhow::Result<String> {
    let (mut heard, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    loop {
        let read = socket.read(&mut buffer).with_context(|| format!("after {}", String::from_utf8_lossy(&heard)))?;
        heard.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&heard);
        if read == 0 || (!enough.is_empty() && text.contains(enough)) {
            return Ok(text.into_owned());
        }
    }
}

/// The status of an HTTP/1 answer, and a field of the workload's JSON: `200 several`.
pub(super) fn status_and(answer: &str, field: &str) -> String {
    let status = answer.split(' ').nth(1).unwrap_or("none");
    let value = answer.split(&format!("\"{field}\": \"")).nth(1).and_then(|rest| rest.split('"').next());
    value.map_or(status.to_owned(), |value| format!("{status} {value}"))
}

/// Opens a WebSocket by HTTP/1.1's upgrade and has a text given back: `101 hello`.
pub(super) fn websocket(mesh: &Mesh, pod: &str, to: SocketAddr, host: &str) -> anyhow::Result<String> {
    let mut socket = mesh.dial(pod, to)?;
    mesh.traffic().call();
    socket.set_read_timeout(Some(PATIENCE))?;
    let opening = format!(
        "GET /websocket HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(opening.as_bytes())?;
    let answer = hear(&mut socket, "\r\n\r\n")?;
    let accepted = answer.to_ascii_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=");
    ensure!(accepted, "{answer}");
    socket.write_all(&frame("hello"))?;
    let echoed = hear(&mut socket, "hello")?;
    Ok(format!("{} {}", answer.split(' ').nth(1).unwrap_or_default(), echoed.trim_start_matches("\u{fffd}\u{5}")))
}

/// A text frame of a client (RFC 6455, section 5), masked with zeros.
fn frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).expect("a short text"), 0, 0, 0, 0];
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// Runs a conversation on a connection from the pod.
fn on_connection<T, F>(
    mesh: &Mesh,
    pod: &str,
    to: SocketAddr,
    conversation: impl FnOnce(TcpStream) -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let socket = mesh.dial(pod, to)?;
    mesh.traffic().call();
    socket.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, conversation(TcpStream::from_std(socket)?)).await.context("no answer in time")?
    })
}

async fn http2(socket: TcpStream) -> anyhow::Result<SendRequest<bytes::Bytes>> {
    let (client, mut connection) = h2::client::handshake(socket).await?;
    // The peer's settings say whether it takes extended CONNECT; they are there with the first answer to a ping.
    let mut ping = connection.ping_pong().context("a way to ping")?;
    tokio::spawn(connection);
    ping.ping(h2::Ping::opaque()).await?;
    Ok(client.ready().await?)
}

/// Opens a WebSocket by HTTP/2's extended CONNECT (RFC 8441) and has a text given back: `200 hello`.
pub(super) fn websocket_http2(mesh: &Mesh, pod: &str, to: SocketAddr, host: &str) -> anyhow::Result<String> {
    on_connection(mesh, pod, to, async |socket| {
        let mut client = http2(socket).await?;
        ensure!(client.is_extended_connect_protocol_enabled(), "the sidecar does not offer extended CONNECT");
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(format!("http://{host}/websocket"))
            .header("sec-websocket-version", "13")
            .extension(Protocol::from_static("websocket"))
            .body(())?;
        let (answer, mut send) = client.send_request(request, false)?;
        let answer = answer.await?;
        let status = answer.status().as_u16();
        send.send_data(frame("hello").into(), false)?;
        let mut echoed = Vec::new();
        let mut body = answer.into_body();
        while echoed.len() < 7 {
            let data = body.data().await.context("the stream ended")??;
            let _ = body.flow_control().release_capacity(data.len());
            echoed.extend_from_slice(&data);
        }
        Ok(format!("{status} {}", String::from_utf8_lossy(&echoed[2..])))
    })
}

/// Sends a body with a trailer over HTTP/2 and asks for one: what the callee saw and what came back.
pub(super) fn trailers_http2(mesh: &Mesh, pod: &str, to: SocketAddr, host: &str) -> anyhow::Result<String> {
    on_connection(mesh, pod, to, async |socket| {
        let mut client = http2(socket).await?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{host}/?trailer=back"))
            .header("te", "trailers")
            .body(())?;
        let (answer, mut send) = client.send_request(request, false)?;
        send.send_data("body".into(), false)?;
        send.send_trailers(HeaderMap::from_iter([(http::HeaderName::from_static("x-sent"), "there".parse()?)]))?;
        let mut body = answer.await?.into_body();
        let mut text = Vec::new();
        while let Some(data) = body.data().await {
            let data = data?;
            let _ = body.flow_control().release_capacity(data.len());
            text.extend_from_slice(&data);
        }
        let trailers = body.trailers().await?.unwrap_or_default();
        let back = trailers.get("x-weft-app-trailer").map_or("no trailer", |value| value.to_str().unwrap_or("?"));
        let json: serde_json::Value = serde_json::from_slice(&text)?;
        Ok(format!("{} {back}", json["trailers"]["x-sent"].as_str().unwrap_or("no trailer")))
    })
}

/// One gRPC stream on which both sides speak in turn, so many times: how many answers came, in order.
pub(super) fn grpc_chat(mesh: &Mesh, pod: &str, to: SocketAddr, count: u32) -> anyhow::Result<String> {
    on_connection(mesh, pod, to, async |socket| {
        let mut socket = Some(hyper_util::rt::TokioIo::new(socket));
        let connector = tower::service_fn(move |_| {
            let socket = socket.take();
            async move { socket.ok_or_else(|| std::io::Error::other("one connection only")) }
        });
        let channel = Endpoint::from_static("http://echo").connect_with_connector(connector).await?;
        let (say, said) = tokio::sync::mpsc::channel(1);
        let mut client = EchoClient::new(channel);
        let asked = tokio_stream::wrappers::ReceiverStream::new(said);
        say.send(EchoRequest { message: "1".to_owned(), count: 0 }).await?;
        let mut answers = client.echo_chat(asked).await?.into_inner();
        for number in 1..=count {
            let answer = answers.message().await?.with_context(|| format!("the stream ended at {number}"))?;
            ensure!(answer.sequence == number && answer.message == number.to_string(), "{answer:?}");
            if number < count {
                say.send(EchoRequest { message: (number + 1).to_string(), count: 0 }).await?;
            }
        }
        drop(say);
        let end = answers.message().await?;
        Ok(format!("{count} answers in order, {}", if end.is_none() { "ended" } else { "not ended" }))
    })
}
