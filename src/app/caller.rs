//! One call to a [`Target`], and what became of it in words that are the same for HTTP, gRPC and TCP.

use std::error::Error;
use std::fmt;
use std::time::{Duration, Instant};

use axum::http::header::{CONNECTION, CONTENT_LENGTH};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::metadata::MetadataMap;

use super::proto::EchoRequest;
use super::proto::echo_client::EchoClient;
use super::target::Target;
use super::{MAX_BODY, RESPONDER_HEADER};

/// What is to be called, and how.
#[derive(Clone, Debug)]
pub struct Call {
    /// The destination.
    pub target: Target,
    /// The HTTP method.
    pub method: Method,
    /// HTTP headers, or gRPC metadata. A `host` replaces that of the URL with HTTP/1.1.
    pub headers: HeaderMap,
    /// The HTTP body, the message of an Echo, or the line that a TCP server gets.
    pub body: Bytes,
    /// HTTP/2 with prior knowledge instead of HTTP/1.1.
    pub http2: bool,
}

impl Call {
    /// A GET, an Echo, or a line `hello`.
    pub fn new(target: Target) -> Self {
        Self { target, method: Method::GET, headers: HeaderMap::new(), body: Bytes::new(), http2: false }
    }
}

/// What became of a call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Code {
    /// An HTTP answer with this status.
    Http(u16),
    /// A gRPC answer with this status.
    Grpc(GrpcCode),
    /// A TCP server gave the line back.
    Tcp,
    /// No connection came about.
    Connect,
    /// The connection ended before the answer did.
    Closed,
    /// No answer within the timeout.
    Timeout,
    /// Something else went wrong below the protocol; the error says what.
    Transport,
}

/// A gRPC status code; orders and prints as gRPC does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GrpcCode(i32);

impl Code {
    /// It was answered, and not with an error.
    pub fn succeeded(self) -> bool {
        match self {
            Self::Http(status) => status < 400,
            Self::Grpc(GrpcCode(code)) => code == 0,
            Self::Tcp => true,
            Self::Connect | Self::Closed | Self::Timeout | Self::Transport => false,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(status) => write!(f, "{status}"),
            Self::Grpc(code) => write!(f, "{code}"),
            Self::Tcp => f.write_str("ok"),
            Self::Connect => f.write_str("connect error"),
            Self::Closed => f.write_str("closed"),
            Self::Timeout => f.write_str("timeout"),
            Self::Transport => f.write_str("transport error"),
        }
    }
}

impl fmt::Display for GrpcCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // PermissionDenied, as tonic says it, is PERMISSION_DENIED everywhere else.
        for (at, letter) in format!("{:?}", tonic::Code::from_i32(self.0)).char_indices() {
            if at > 0 && letter.is_ascii_uppercase() {
                f.write_str("_")?;
            }
            write!(f, "{}", letter.to_ascii_uppercase())?;
        }
        Ok(())
    }
}

/// The end of a call.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What became of it.
    pub code: Code,
    /// From the start of the call to the end of its answer, connecting included.
    pub latency: Duration,
    /// Which workload answered (`NAME VERSION`); none if something else did.
    pub responder: Option<String>,
    /// The protocol of an HTTP answer.
    pub version: Option<Version>,
    /// The headers of an HTTP answer, the metadata of a gRPC answer.
    pub headers: HeaderMap,
    /// The answer; that of an Echo as JSON.
    pub body: Bytes,
    /// Why there is none.
    pub error: Option<String>,
}

type HttpClient = Client<HttpConnector, Body>;

/// Makes calls; keeps connections for the next ones unless told not to. Names are resolved by the system.
#[derive(Clone, Debug)]
pub struct Caller {
    http1: HttpClient,
    http2: HttpClient,
    keepalive: bool,
    timeout: Duration,
}

impl Caller {
    /// A caller that gives up after this time, and keeps connections.
    pub fn new(timeout: Duration) -> Self {
        Self::with(timeout, true)
    }

    /// A caller that makes a connection for every call.
    pub fn without_keepalive(timeout: Duration) -> Self {
        Self::with(timeout, false)
    }

    fn with(timeout: Duration, keepalive: bool) -> Self {
        let client = |http2| {
            let mut connector = HttpConnector::new();
            connector.set_nodelay(true);
            let mut builder = Client::builder(TokioExecutor::new());
            builder.pool_timer(TokioTimer::new()).http2_only(http2);
            if !keepalive {
                builder.pool_max_idle_per_host(0);
            }
            builder.build(connector)
        };
        Self { http1: client(false), http2: client(true), keepalive, timeout }
    }

    /// Calls, and waits for the whole answer.
    pub async fn call(&self, call: &Call) -> Outcome {
        let started = Instant::now();
        let made = tokio::time::timeout(self.timeout, async {
            loop {
                let answer = match &call.target {
                    Target::Http(uri) => self.http(uri, call).await,
                    Target::Grpc(origin) => self.grpc(origin, call).await,
                    Target::Tcp(authority) => tcp(authority, call).await,
                };
                match answer {
                    Err(Failed { unprocessed: true, .. }) => {} // as every HTTP/2 client does: on another connection
                    answer => return answer,
                }
            }
        });
        let failed = Failed::new(Code::Timeout, format!("no answer within {:?}", self.timeout));
        let answer = made.await.unwrap_or(Err(failed));
        let latency = started.elapsed();
        match answer {
            Ok(Answered { code, responder, version, headers, body, error }) => {
                Outcome { code, latency, responder, version, headers, body, error }
            }
            Err(Failed { code, error, .. }) => Outcome {
                code,
                latency,
                responder: None,
                version: None,
                headers: HeaderMap::new(),
                body: Bytes::new(),
                error: Some(format!("{}: {error}", call.target)),
            },
        }
    }

    async fn http(&self, uri: &Uri, call: &Call) -> Result<Answered, Failed> {
        let mut request = Request::new(Body::new(Full::new(call.body.clone())));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = call.headers.clone();
        if !call.http2 && !self.keepalive {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if call.body.is_empty() && matches!(call.method, Method::POST | Method::PUT | Method::PATCH) {
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let client = if call.http2 { &self.http2 } else { &self.http1 };
        let response = client.request(request).await.map_err(|error| Failed::of(&error))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| Failed::of(error.as_ref()))?;
        let responder = parts.headers.get(RESPONDER_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(Answered {
            code: Code::Http(parts.status.as_u16()),
            responder,
            version: Some(parts.version),
            headers: parts.headers,
            body: body.to_bytes(),
            error: None,
        })
    }

    async fn grpc(&self, origin: &Uri, call: &Call) -> Result<Answered, Failed> {
        let message = String::from_utf8_lossy(&call.body).into_owned();
        let mut request = tonic::Request::new(EchoRequest { message, count: 0 });
        *request.metadata_mut() = MetadataMap::from_headers(call.headers.clone());
        let mut client = EchoClient::with_origin(self.http2.clone(), origin.clone())
            .max_decoding_message_size(MAX_BODY)
            .max_encoding_message_size(MAX_BODY);
        match client.echo(request).await {
            Ok(response) => {
                let (metadata, echo, _) = response.into_parts();
                let body = serde_json::json!({
                    "name": echo.name, "version": echo.version, "pod": echo.pod,
                    "message": echo.message, "headers": echo.headers,
                });
                Ok(Answered {
                    code: Code::Grpc(GrpcCode(0)),
                    responder: Some(format!("{} {}", echo.name, echo.version)),
                    version: Some(Version::HTTP_2),
                    headers: metadata.into_headers(),
                    body: body.to_string().into(),
                    error: None,
                })
            }
            // A status that was received has no source; one that stands for a broken transport has.
            Err(status) if status.source().is_none() => {
                let code = Code::Grpc(GrpcCode(status.code() as i32));
                let responder = status.metadata().get(RESPONDER_HEADER).and_then(|value| value.to_str().ok());
                Ok(Answered {
                    code,
                    responder: responder.map(str::to_owned),
                    version: Some(Version::HTTP_2),
                    headers: status.metadata().clone().into_headers(),
                    body: Bytes::new(),
                    error: Some(format!("{}: {code}: {}", call.target, status.message())),
                })
            }
            Err(status) => Err(Failed::of(&status)),
        }
    }
}

struct Answered {
    code: Code,
    responder: Option<String>,
    version: Option<Version>,
    headers: HeaderMap,
    body: Bytes,
    error: Option<String>,
}

struct Failed {
    code: Code,
    error: String,
    /// The server says that it has not begun with the request (RFC 9113, 6.8 and 8.7).
    unprocessed: bool,
}

impl Failed {
    fn new(code: Code, error: String) -> Self {
        Self { code, error, unprocessed: false }
    }

    /// The code is that of the first cause that has one, the text that of the outermost and the innermost cause.
    fn of(error: &(dyn Error + 'static)) -> Self {
        let causes = || std::iter::successors(Some(error), |&error| error.source());
        let code = causes().find_map(|cause| {
            if cause.downcast_ref::<ClientError>().is_some_and(ClientError::is_connect) {
                return Some(Code::Connect);
            }
            if cause.downcast_ref::<hyper::Error>().is_some_and(|e| e.is_incomplete_message() || e.is_closed()) {
                return Some(Code::Closed);
            }
            if let Some(error) = cause.downcast_ref::<std::io::Error>() {
                return closes(error).then_some(Code::Closed);
            }
            cause.is::<LengthLimitError>().then_some(Code::Transport)
        });
        let mut texts: Vec<String> = causes().map(ToString::to_string).collect();
        texts.dedup();
        let unprocessed = causes().any(|cause| {
            cause.downcast_ref::<h2::Error>().is_some_and(|error| {
                let reason = error.reason();
                error.is_remote()
                    && (error.is_go_away() && reason == Some(h2::Reason::NO_ERROR)
                        || error.is_reset() && reason == Some(h2::Reason::REFUSED_STREAM))
            })
        });
        Self { code: code.unwrap_or(Code::Transport), error: texts.join(": "), unprocessed }
    }
}

fn closes(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// Sends a line and reads until it comes back. What comes before it is who answered.
async fn tcp(authority: &Authority, call: &Call) -> Result<Answered, Failed> {
    let connected = TcpStream::connect(authority.as_str()).await;
    let mut stream = connected.map_err(|error| Failed::new(Code::Connect, error.to_string()))?;
    let mut line = if call.body.is_empty() { b"hello".to_vec() } else { call.body.to_vec() };
    if line.last() != Some(&b'\n') {
        line.push(b'\n');
    }
    let mut responder = None;
    let mut body = Vec::new();
    let talked = async {
        let (read, mut write) = stream.split();
        // Written beside the reading: an echo of more than the sockets hold would else wait for ever.
        let sent = write.write_all(&line);
        let heard = async {
            let mut read = BufReader::new(read).take(MAX_BODY as u64);
            while !body.ends_with(&line) {
                let before = body.len();
                if read.read_until(b'\n', &mut body).await? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                if before == 0 && body != line {
                    responder = std::str::from_utf8(&body).ok().map(|text| text.trim_end().to_owned());
                }
            }
            Ok(())
        };
        tokio::try_join!(sent, heard)
    };
    match talked.await {
        Ok(_) => Ok(Answered {
            code: Code::Tcp,
            responder,
            version: None,
            headers: HeaderMap::new(),
            body: body.into(),
            error: None,
        }),
        Err(error) if closes(&error) => Err(Failed::new(
            Code::Closed,
            match body.len() {
                // The reason does not come this far: TLS tells it to the caller's sidecar at best.
                0 => "the connection was closed before anything came back, as the callee's sidecar does where no \
                  TrafficTarget allows the caller this port"
                    .to_owned(),
                bytes => format!("the connection was closed after {bytes} bytes, before the line came back"),
            },
        )),
        Err(error) => Err(Failed::new(Code::Transport, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_codes_print_as_grpc_writes_them() {
        let printed = [0, 7, 14, 99].map(|code| Code::Grpc(GrpcCode(code)).to_string());
        assert_eq!(printed, ["OK", "PERMISSION_DENIED", "UNAVAILABLE", "UNKNOWN"]);
    }
}
