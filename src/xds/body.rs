//! The body of a response stream: frames as they are in the cache, then the status in the trailers.
//!
//! What the client has not read yet is a handle to shared bytes here, in hyper and in h2: none of them copies a frame.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::sync::mpsc;
use tonic::Status;

/// A gRPC response stream; by default an empty one, for a status that is in the headers.
#[derive(Debug, Default)]
pub(crate) struct ResponseBody {
    frames: Option<mpsc::Receiver<Result<Bytes, Status>>>,
}

impl ResponseBody {
    /// Frames with their gRPC prefix, until the sender is dropped (status OK) or sends a status.
    pub(crate) fn new(frames: mpsc::Receiver<Result<Bytes, Status>>) -> Self {
        Self { frames: Some(frames) }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(frames) = &mut self.frames else { return Poll::Ready(None) };
        let status = match ready!(frames.poll_recv(context)) {
            Some(Ok(frame)) => return Poll::Ready(Some(Ok(Frame::data(frame)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.frames = None;
        Poll::Ready(Some(Ok(Frame::trailers(trailers(&status)))))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_none()
    }
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // Its message is none that a header can carry: the code says enough.
        trailers.insert(Status::GRPC_STATUS, http::HeaderValue::from(status.code() as i32));
    }
    trailers
}
