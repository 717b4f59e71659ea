//! One HTTP/1.1 request over a connected socket: enough for Envoy's admin interface and for readiness.

use std::io;
use std::net::TcpStream as StdTcpStream;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// An admin interface that does not answer within this time is as good as none.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sends a request without a body and returns the status and the whole answer.
pub(crate) async fn request(socket: OwnedFd, method: Method, path: &str) -> io::Result<(StatusCode, Bytes)> {
    let stream = StdTcpStream::from(socket);
    stream.set_nonblocking(true)?;
    let stream = TcpStream::from_std(stream)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let exchange = async {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(io::Error::other)?;
            let status = response.status();
            Ok((status, response.into_body().collect().await.map_err(io::Error::other)?.to_bytes()))
        };
        // The connection is driven until the answer is complete, and dropped with it.
        tokio::select! {
            answer = answer => answer,
            Err(error) = connection => Err(io::Error::other(error)),
        }
    };
    tokio::time::timeout(TIMEOUT, exchange).await?
}
