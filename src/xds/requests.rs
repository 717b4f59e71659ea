//! Reads a stream's requests, no faster than a client may send them.
//!
//! ```text
//!  HTTP/2 body ─▶ buffer (empty between requests) ─▶ one message ─▶ stream
//!                    ▲
//!                  Pace: beyond its share nothing is read, and HTTP/2's window stops the client
//! ```
//!
//! Unlike tonic's reader it keeps no buffer of the largest request for as long as the stream lives.

use std::marker::PhantomData;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use prost::Message;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;

/// A gRPC message's prefix: whether it is compressed, and its length (gRPC over HTTP/2, "Length-Prefixed-Message").
pub(crate) const PREFIX: usize = 5;
/// A request with the names and versions of some ten thousand resources is smaller than this.
const MAX_REQUEST: usize = 4 << 20;
/// A request costs its share of a stream's rate once, and once more for each of these: names are what takes time. An
/// Envoy that is set up to say who it is with every request adds 60 KB to each.
const BYTES_PER_SHARE: usize = 16 << 10;

/// The requests of one stream.
pub(crate) struct Requests<R> {
    body: Body,
    buffer: BytesMut,
    pace: Pace,
    request: PhantomData<fn() -> R>,
}

impl<R: Message + Default> Requests<R> {
    /// The requests in `body`, read at `rate`.
    pub(crate) fn new(body: Body, rate: Rate) -> Self {
        Self { body, buffer: BytesMut::new(), pace: Pace::new(rate), request: PhantomData }
    }

    /// The next request; `None` when the client sends no more. Dropping the future loses nothing.
    pub(crate) async fn message(&mut self) -> Result<Option<R>, Status> {
        self.pace.wait().await;
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Status::internal("the stream ended within a request")),
            }
        }
    }

    /// Decodes the first message of the buffer if all of it is there.
    fn take(&mut self) -> Result<Option<R>, Status> {
        let Some((&[compressed, ref length @ ..], rest)) = self.buffer.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if compressed != 0 {
            return Err(Status::unimplemented("the request is compressed: send it as it is"));
        }
        if length > MAX_REQUEST {
            // tonic's code for it.
            return Err(Status::out_of_range(format!(
                "a request of {length} bytes is too large: the limit is {MAX_REQUEST} bytes"
            )));
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        let message = self.buffer.split_to(length);
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        self.pace.spend(1 + length / BYTES_PER_SHARE);
        let invalid = |error| Status::invalid_argument(format!("the request is no discovery request: {error}"));
        R::decode(message.freeze()).map(Some).map_err(invalid)
    }
}

/// How fast a client may send requests.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rate {
    /// Requests a second, in the long run. A request counts once more for each 16 KiB of it.
    pub per_second: u32,
    /// Requests at once.
    pub burst: u32,
}

impl Default for Rate {
    /// Envoy acknowledges each response: 100 changes a second of two types are 200 requests. A first request for the
    /// endpoints of 10,000 clusters counts about 60.
    fn default() -> Self {
        Self { per_second: 500, burst: 2_000 }
    }
}

/// A token bucket that may go into debt, as a request's size is known when it has been read.
#[derive(Debug)]
struct Pace {
    /// How long one share takes.
    share: Duration,
    /// How far `paid_until` may lie behind: the burst.
    credit: Duration,
    /// The time at which everything that was read is paid for.
    paid_until: Instant,
}

impl Pace {
    fn new(rate: Rate) -> Self {
        let share = Duration::from_secs(1) / rate.per_second.max(1);
        let credit = share.saturating_mul(rate.burst);
        Self { share, credit, paid_until: Instant::now() }
    }

    /// Waits until the stream has some share left.
    async fn wait(&self) {
        if let Some(due) = self.paid_until.checked_sub(self.credit)
            && due > Instant::now()
        {
            tokio::time::sleep_until(due).await;
        }
    }

    fn spend(&mut self, shares: usize) {
        let cost = self.share.saturating_mul(u32::try_from(shares).unwrap_or(u32::MAX));
        self.paid_until = self.paid_until.max(Instant::now()) + cost;
    }
}

#[cfg(test)]
mod tests;
