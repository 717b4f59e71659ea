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

/// With the header of its HTTP/2 frame, a piece of this length fills a TLS record. A longer one would end in a second
/// record of a few bytes, and that in a packet of its own.
const PIECE: usize = (16 << 10) - 9;

/// A gRPC response stream; by default an empty one, for a status that is in the headers.
#[derive(Debug, Default)]
pub(crate) struct ResponseBody {
    frames: Option<mpsc::Receiver<Result<Bytes, Status>>>,
    /// What is left of a frame.
    rest: Bytes,
}

impl ResponseBody {
    /// Frames with their gRPC prefix, until the sender is dropped (status OK) or sends a status.
    pub(crate) fn new(frames: mpsc::Receiver<Result<Bytes, Status>>) -> Self {
        Self { frames: Some(frames), rest: Bytes::new() }
    }

    fn end(&mut self, status: Option<Status>) -> Frame<Bytes> {
        self.frames = None;
        Frame::trailers(trailers(&status.unwrap_or_else(|| Status::ok(""))))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            let Some(frames) = &mut self.frames else { return Poll::Ready(None) };
            match ready!(frames.poll_recv(context)) {
                Some(Ok(frame)) => self.rest = frame,
                ended => return Poll::Ready(Some(Ok(self.end(ended.and_then(Result::err))))),
            }
        }
        let length = PIECE.min(self.rest.len());
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_none() && self.rest.is_empty()
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

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_long_frame_comes_in_pieces_and_the_status_after_it() {
        let (sender, frames) = mpsc::channel(2);
        let frame = Bytes::from((0..40_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
        sender.send(Ok(frame.clone())).await.expect("open");
        sender.send(Err(Status::unavailable("later"))).await.expect("open");
        let (mut body, mut received) = (ResponseBody::new(frames), Vec::new());
        let trailers = loop {
            let piece = body.frame().await.expect("not the end").expect("infallible");
            match piece.into_data() {
                Ok(data) => {
                    assert!(data.len() <= PIECE);
                    received.extend_from_slice(&data);
                }
                Err(trailers) => break trailers.into_trailers().expect("trailers"),
            }
        };
        assert_eq!(received, frame);
        assert_eq!(trailers["grpc-status"], "14");
        assert!(body.is_end_stream() && body.frame().await.is_none());
    }
}
