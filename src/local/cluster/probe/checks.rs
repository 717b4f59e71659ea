//! One question, one answer.

use std::io;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Check;
use crate::mesh::PodKey;

type Future<T> = Pin<Box<dyn std::future::Future<Output = io::Result<T>> + Send>>;

/// A command for a container.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exec {
    /// Which pod.
    pub pod: PodKey,
    /// Which container.
    pub container: String,
    /// The command.
    pub argv: Vec<String>,
}

/// The ways into a pod that only the machine side has.
#[derive(Clone)]
pub struct Reach {
    /// Connects to 127.0.0.1:port in the pod.
    pub dial: Arc<dyn Fn(PodKey, u16) -> Future<TcpStream> + Send + Sync>,
    /// Runs a command in a container; the exit code.
    pub exec: Arc<dyn Fn(Exec) -> Future<i32> + Send + Sync>,
}

/// Why a check did not pass; the text is for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("no answer in time")]
    Timeout,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("it makes no valid request: {0}")]
    Request(#[from] http::Error),
    #[error("answered {0}")]
    Status(http::StatusCode),
    #[error("{0}")]
    Grpc(#[from] tonic::Status),
    #[error("{0}")]
    Transport(#[from] tonic::transport::Error),
    #[error("the health service answered {0}, not SERVING")]
    NotServing(i32),
    #[error("exit code {0}")]
    ExitCode(i32),
}

/// Asks once. `ip` is the pod's address.
pub(super) async fn ask(
    check: &Check,
    (pod, container): (&PodKey, &str),
    ip: Ipv4Addr,
    timeout: Duration,
    reach: &Reach,
) -> Result<(), Failure> {
    let answer = async {
        match check {
            Check::Http { port, path, headers } => http_get(ip, *port, path, headers).await,
            Check::Tcp { port } => (reach.dial)(pod.clone(), *port).await.map(drop).map_err(Failure::from),
            Check::Grpc { port, service } => grpc(ip, *port, service).await,
            Check::Exec { argv } => {
                let command = Exec { pod: pod.clone(), container: container.to_owned(), argv: argv.clone() };
                match (reach.exec)(command).await? {
                    0 => Ok(()),
                    code => Err(Failure::ExitCode(code)),
                }
            }
        }
    };
    tokio::time::timeout(timeout, answer).await.unwrap_or(Err(Failure::Timeout))
}

async fn http_get(ip: Ipv4Addr, port: u16, path: &str, headers: &[(String, String)]) -> Result<(), Failure> {
    let mut request = http::Request::get(path);
    let own = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
    if !own("host") {
        request = request.header("host", format!("{ip}:{port}"));
    }
    if !own("user-agent") {
        request = request.header("user-agent", "kube-probe/1.37");
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.header("connection", "close").body(Empty::<Bytes>::new())?;
    let stream = TcpStream::connect((ip, port)).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut exchange = std::pin::pin!(sender.send_request(request));
    // The connection does its work while it is polled. It may end with, or before, the response is taken.
    let response = tokio::select! {
        response = &mut exchange => response?,
        _ = connection => exchange.await?,
    };
    match response.status().as_u16() {
        200..400 => Ok(()),
        _ => Err(Failure::Status(response.status())),
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    pub(super) service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthCheckResponse {
    /// 1 is SERVING.
    #[prost(int32, tag = "1")]
    pub(super) status: i32,
}

/// `grpc.health.v1`, whose two messages are too small to compile a schema for.
async fn grpc(ip: Ipv4Addr, port: u16, service: &str) -> Result<(), Failure> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{ip}:{port}"))?;
    let mut client = tonic::client::Grpc::new(endpoint.connect().await?);
    client.ready().await?;
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let request = tonic::Request::new(HealthCheckRequest { service: service.to_owned() });
    match client.unary(request, path, codec).await?.into_inner().status {
        1 => Ok(()),
        status => Err(Failure::NotServing(status)),
    }
}
