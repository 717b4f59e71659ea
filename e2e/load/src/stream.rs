//! One sidecar's connection: TCP, TLS, HTTP/2 and one stream, in one task.

use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::catalog::{ChangeId, NameId};
use crate::fleet::Shared;
use crate::sidecar::Sidecar;
use crate::wire::Messages;

/// Envoy's bootstrap says the same (envoy-bootstrap/sidecar.yaml).
const WINDOW: u32 = 1 << 20;
const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// How a sidecar reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reading {
    /// At once.
    Fast,
    /// Each piece only after this long.
    Slow(Duration),
    /// What comes is left in the HTTP/2 window, which fills; pings are answered.
    WindowFills,
    /// The socket is not looked at.
    Never,
}

/// What a sidecar is told.
#[derive(Clone, Debug)]
pub enum Command {
    /// Begin the stream.
    Start,
    /// Read differently.
    Read(Reading),
    /// The workload calls these for the first time.
    Call(Arc<[NameId]>),
}

/// Lives until the fleet is dropped, and connects again when the connection is lost.
pub(crate) async fn run(
    shared: Arc<Shared>,
    sidecar: Arc<Mutex<Sidecar>>,
    token: String,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let mut waits = true;
    let mut backoff = shared.jitter(Duration::from_millis(200));
    loop {
        let lost = match session(&shared, &sidecar, &token, &mut commands, &mut waits).await {
            Ok(()) => return,
            Err(lost) => lost,
        };
        shared.lost(&lost);
        // As Envoy does with the bootstrap's base of 0.2 s and maximum of 3 s.
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(shared.jitter(Duration::from_secs(3)));
        if !shared.refused() {
            backoff = shared.jitter(Duration::from_millis(200));
        }
    }
}

type Http2 = Connection<TlsStream<Counted>, Bytes>;

async fn session(
    shared: &Shared,
    sidecar: &Mutex<Sidecar>,
    token: &str,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    waits: &mut bool,
) -> anyhow::Result<()> {
    let (sender, mut connection) = connect(shared).await?;
    shared.connected.fetch_add(1, Ordering::Relaxed);
    let _leave = Leave(shared);
    let mut reading = Reading::Fast;
    while *waits {
        tokio::select! {
            ended = &mut connection => bail!("the connection ended before its stream began: {ended:?}"),
            command = commands.recv() => match command {
                None => return Ok(()),
                Some(Command::Start) => *waits = false,
                Some(Command::Read(other)) => reading = other,
                Some(Command::Call(_)) => {}
            }
        }
    }
    let mut stream = Stream::start(shared, sidecar, token, sender)?;
    stream.reading = reading;
    stream.run(&mut connection, commands).await
}

async fn connect(shared: &Shared) -> anyhow::Result<(SendRequest<Bytes>, Http2)> {
    let _slot = shared.handshakes.acquire().await?;
    let socket = TcpStream::connect(shared.target.address).await.context("connect")?;
    socket.set_nodelay(true)?;
    let counted = Counted { socket, shared: shared.counter() };
    let connector = TlsConnector::from(shared.target.tls.clone());
    let secure = connector.connect(shared.target.name.clone(), counted).await.context("TLS handshake")?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).enable_push(false);
    builder.handshake(secure).await.context("HTTP/2 handshake")
}

struct Leave<'a>(&'a Shared);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.connected.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Stream<'a> {
    shared: &'a Shared,
    sidecar: &'a Mutex<Sidecar>,
    requests: SendStream<Bytes>,
    response: Option<h2::client::ResponseFuture>,
    body: Option<RecvStream>,
    messages: Messages,
    reading: Reading,
    /// Acknowledgements that were handed to HTTP/2 and not yet written.
    unwritten: Vec<ChangeId>,
    was_synced: bool,
}

enum Piece {
    Headers(RecvStream),
    Data(Bytes),
}

impl<'a> Stream<'a> {
    fn start(
        shared: &'a Shared,
        sidecar: &'a Mutex<Sidecar>,
        token: &str,
        mut sender: SendRequest<Bytes>,
    ) -> anyhow::Result<Self> {
        let request = http::Request::post(format!("https://{}{METHOD}", shared.target.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", format!("Bearer {token}"))
            .body(())?;
        let (response, requests) = sender.send_request(request, false)?;
        let mut stream = Self {
            shared,
            sidecar,
            requests,
            response: Some(response),
            body: None,
            messages: Messages::default(),
            reading: Reading::Fast,
            unwritten: Vec::new(),
            was_synced: false,
        };
        let first = stream.sidecar().connect(&shared.catalog);
        stream.send(first)?;
        Ok(stream)
    }

    async fn run(
        mut self,
        connection: &mut Http2,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> anyhow::Result<()> {
        loop {
            let (never, full) = (self.reading == Reading::Never, self.reading == Reading::WindowFills);
            tokio::select! {
                biased; // the connection first: it writes what was handed to it
                ended = &mut *connection, if !never => bail!("the connection ended: {ended:?}"),
                () = std::future::ready(()), if !self.unwritten.is_empty() => {
                    self.shared.acknowledged(self.unwritten.drain(..));
                }
                piece = next(&mut self.response, &mut self.body, self.reading), if !never && !full => match piece? {
                    Piece::Headers(body) => (self.response, self.body) = (None, Some(body)),
                    Piece::Data(data) => self.take(data)?,
                },
                command = commands.recv() => match command {
                    None => return Ok(()),
                    Some(Command::Start) => {}
                    Some(Command::Read(reading)) => self.reading = reading,
                    Some(Command::Call(names)) => {
                        let requests = self.sidecar().call(&names, &self.shared.catalog, Instant::now());
                        self.send(requests)?;
                    }
                }
            }
        }
    }

    fn take(&mut self, data: Bytes) -> anyhow::Result<()> {
        if let Some(body) = &mut self.body {
            body.flow_control().release_capacity(data.len())?;
        }
        self.messages.push(data);
        while let Some(message) = self.messages.pop() {
            self.shared.heard();
            let (outcome, synced) = {
                let mut sidecar = self.sidecar();
                (sidecar.response(&message, &self.shared.catalog)?, sidecar.is_synced())
            };
            self.send(outcome.requests)?;
            self.unwritten.extend(outcome.acknowledged);
            self.shared.called(outcome.calls);
            if synced && !std::mem::replace(&mut self.was_synced, true) {
                self.shared.synced();
            }
        }
        Ok(())
    }

    fn send(&mut self, requests: Vec<Bytes>) -> anyhow::Result<()> {
        requests.into_iter().try_for_each(|frame| Ok(self.requests.send_data(frame, false)?))
    }

    fn sidecar(&self) -> std::sync::MutexGuard<'a, Sidecar> {
        self.sidecar.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn next(
    response: &mut Option<h2::client::ResponseFuture>,
    body: &mut Option<RecvStream>,
    reading: Reading,
) -> anyhow::Result<Piece> {
    if let Some(response) = response {
        let response = response.await?;
        let grpc = response.headers().get("grpc-status").cloned();
        if grpc.is_some() || response.status() != http::StatusCode::OK {
            bail!("the server answers {} {:?}", response.status(), response.headers());
        }
        return Ok(Piece::Headers(response.into_body()));
    }
    if let Reading::Slow(pause) = reading {
        tokio::time::sleep(pause).await;
    }
    let body = body.as_mut().ok_or_else(|| anyhow!("no response"))?;
    match body.data().await {
        Some(data) => Ok(Piece::Data(data?)),
        None => bail!("the server ended the stream: {:?}", body.trailers().await?),
    }
}

/// A socket that counts what is read from it.
pub(crate) struct Counted {
    socket: TcpStream,
    shared: Arc<std::sync::atomic::AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(cx, buffer);
        self.shared.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
