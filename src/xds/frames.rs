//! Frames that streams share: a response that many streams are sent is encoded once.
//!
//! ```text
//!  Response ──hash──▶ the same response in the cache? ──▶ its bytes
//!                        └─ no ─▶ wire::encode ─▶ kept, the oldest given up beyond the limits
//! ```
//!
//! A hash only finds the place: bytes are shared after comparing the whole response, so that nobody is given another's
//! frame, whatever names a client makes up. Secrets are never kept, nor what says little: removals, and answers for
//! types that are not served.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

use super::registry::lock;
use super::session::{Protocol, Response};
use super::wire;
use crate::snapshot::ResourceType;

/// What the cache keeps at most, in bytes of frames: a few of those that bring a proxy everything there is.
const MAX_BYTES: usize = 16 << 20;
/// Streams that are woken by one snapshot, or that reconnect together, ask for the same frames within this time.
const MAX_AGE: Duration = Duration::from_secs(10);

/// The frames of one server.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    kept: Mutex<Kept>,
    encoded: AtomicU64,
    shared: AtomicU64,
}

#[derive(Debug, Default)]
struct Kept {
    frames: HashMap<u64, Entry>,
    /// Oldest first. The number tells an entry from a later one in its place.
    order: VecDeque<(Instant, u64, u64)>,
    next: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    protocol: Protocol,
    response: Response,
    frame: Bytes,
}

impl Frames {
    /// The frame of a response, shared with all streams that are sent the same.
    pub(crate) fn frame(&self, protocol: Protocol, response: Response) -> Bytes {
        if !may_share(&response) {
            self.encoded.fetch_add(1, Ordering::Relaxed);
            return wire::encode(protocol, &response);
        }
        let place = place(protocol, &response);
        if let Some(frame) = lock(&self.kept).get(place, protocol, &response) {
            self.shared.fetch_add(1, Ordering::Relaxed);
            return frame;
        }
        // Without the lock, so that streams with frames of their own do not wait for each other.
        let frame = wire::encode(protocol, &response);
        self.encoded.fetch_add(1, Ordering::Relaxed);
        let mut kept = lock(&self.kept);
        if let Some(first) = kept.get(place, protocol, &response) {
            return first;
        }
        kept.insert(place, Entry { number: 0, protocol, response, frame: frame.clone() });
        frame
    }

    /// Responses that were encoded, and that were given from the cache.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.encoded.load(Ordering::Relaxed), self.shared.load(Ordering::Relaxed))
    }

    /// Gives up what is too old, until the future is dropped.
    pub(crate) async fn expire_forever(self: Arc<Self>) {
        let mut tick = tokio::time::interval(MAX_AGE);
        loop {
            tick.tick().await;
            lock(&self.kept).expire(Instant::now());
        }
    }
}

impl Kept {
    fn get(&self, place: u64, protocol: Protocol, response: &Response) -> Option<Bytes> {
        let entry = self.frames.get(&place)?;
        (entry.protocol == protocol && is_same(&entry.response, response)).then(|| entry.frame.clone())
    }

    fn insert(&mut self, place: u64, entry: Entry) {
        let now = Instant::now();
        self.expire(now);
        if entry.frame.len() > MAX_BYTES {
            return;
        }
        self.bytes += entry.frame.len();
        self.order.push_back((now, place, self.next));
        let entry = Entry { number: self.next, ..entry };
        self.next += 1;
        if let Some(replaced) = self.frames.insert(place, entry) {
            self.bytes -= replaced.frame.len();
        }
        while self.bytes > MAX_BYTES {
            self.give_up_oldest();
        }
    }

    fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(made, ..)| now.duration_since(*made) >= MAX_AGE) {
            self.give_up_oldest();
        }
        if self.order.is_empty() {
            (self.frames, self.order) = Default::default();
        }
    }

    fn give_up_oldest(&mut self) {
        let Some((_, place, number)) = self.order.pop_front() else { return };
        if self.frames.get(&place).is_some_and(|entry| entry.number == number)
            && let Some(entry) = self.frames.remove(&place)
        {
            self.bytes -= entry.frame.len();
        }
    }
}

/// Streams that begin alike share the list of what they are sent; others' resources are compared by their pointers
/// first, which costs a few nanoseconds each.
fn is_same(one: &Response, other: &Response) -> bool {
    let Response { type_url, nonce, number, generation, resources, removed } = one;
    let resources = || Arc::ptr_eq(resources, &other.resources) || *resources == other.resources;
    (*number, *generation) == (other.number, other.generation)
        && *type_url == other.type_url
        && *nonce == other.nonce
        && *removed == other.removed
        && resources()
}

fn may_share(response: &Response) -> bool {
    let secret = |kind| kind == ResourceType::Secret;
    !response.resources.is_empty()
        && ResourceType::from_type_url(&response.type_url).is_some_and(|kind| !secret(kind))
        && !response.resources.iter().any(|resource| secret(resource.kind))
}

fn place(protocol: Protocol, response: &Response) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&[protocol as u8, response.generation as u8]);
    hash.update(&response.number.to_le_bytes());
    hash.update(response.type_url.as_bytes());
    hash.update(response.nonce.as_bytes());
    for resource in response.resources.iter() {
        hash.update(&resource.version.to_le_bytes());
    }
    for name in &response.removed {
        hash.update(name.as_str().as_bytes());
    }
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Generation, Resource, ResourceType::*};
    use crate::xds::testing::resource;

    fn response(kind: ResourceType, nonce: &str, resources: &[Arc<Resource>]) -> Response {
        Response {
            type_url: kind.type_url().into(),
            nonce: nonce.into(),
            number: 7,
            generation: Generation::Current,
            resources: resources.into(),
            removed: vec![],
        }
    }

    fn same(a: &Bytes, b: &Bytes) -> bool {
        a.as_ptr() == b.as_ptr() && a.len() == b.len()
    }

    #[test]
    fn streams_that_are_sent_the_same_share_its_bytes() {
        let frames = Frames::default();
        let (a, b) = (resource(Cluster, "a", 1), resource(Cluster, "b", 1));
        let first = frames.frame(Protocol::Delta, response(Cluster, "7", &[a.clone(), b.clone()]));
        let again = frames.frame(Protocol::Delta, response(Cluster, "7", &[a.clone(), b.clone()]));
        assert!(same(&first, &again));
        assert_eq!(frames.counts(), (1, 1));
        let others = [
            frames.frame(Protocol::StateOfTheWorld, response(Cluster, "7", &[a.clone(), b.clone()])),
            frames.frame(Protocol::Delta, response(Cluster, "7.1", &[a.clone(), b.clone()])),
            frames.frame(Protocol::Delta, response(Cluster, "7", &[b.clone(), a.clone()])),
            frames.frame(Protocol::Delta, response(Cluster, "7", std::slice::from_ref(&a))),
            frames.frame(Protocol::Delta, response(Endpoints, "7", &[resource(Endpoints, "a", 1)])),
            frames.frame(
                Protocol::Delta,
                Response { generation: Generation::Older, ..response(Cluster, "7", &[a.clone(), b.clone()]) },
            ),
            frames.frame(
                Protocol::Delta,
                Response { removed: vec!["c".into()], ..response(Cluster, "7", &[a.clone(), b.clone()]) },
            ),
        ];
        assert!(others.iter().all(|other| !same(&first, other)));
        assert_eq!(frames.counts(), (8, 1));
    }

    #[test]
    fn a_frame_in_the_same_place_is_not_taken_for_another() {
        // Equal content under other names has equal versions, and so the same place.
        let frames = Frames::default();
        let one = response(Cluster, "7", &[resource(Cluster, "a", 1)]);
        let other = response(Cluster, "7", &[resource(Cluster, "b", 1)]);
        assert_eq!(place(Protocol::Delta, &one), place(Protocol::Delta, &other));
        let first = frames.frame(Protocol::Delta, one.clone());
        let second = frames.frame(Protocol::Delta, other.clone());
        assert_ne!(first, second);
        assert!(same(&second, &frames.frame(Protocol::Delta, other)), "the later one has the place");
        assert_eq!(first, frames.frame(Protocol::Delta, one));
        let kept = lock(&frames.kept);
        assert_eq!(kept.bytes, kept.frames.values().map(|entry| entry.frame.len()).sum::<usize>());
    }

    #[test]
    fn secrets_and_what_a_client_makes_up_are_never_kept() {
        let frames = Frames::default();
        let secret = response(Secret, "7", &[resource(Secret, "workload", 1)]);
        let disguised = Response { type_url: Cluster.type_url().into(), ..secret.clone() };
        let unknown = Response { type_url: "made.up".into(), removed: vec!["x".into()], ..response(Cluster, "1", &[]) };
        let missing = Response { removed: vec!["x".into()], ..response(Cluster, "7", &[]) };
        for response in [secret, disguised, unknown, missing] {
            let first = frames.frame(Protocol::Delta, response.clone());
            assert!(!same(&first, &frames.frame(Protocol::Delta, response)));
        }
        let kept = lock(&frames.kept);
        assert!(kept.frames.is_empty() && kept.order.is_empty());
    }

    #[test]
    fn the_oldest_are_given_up_beyond_the_limit() {
        let frames = Frames::default();
        let large = |content: u8| {
            let body = Bytes::from(vec![content; MAX_BYTES / 4]);
            response(Listener, "7", &[Arc::new(Resource::new(Listener, "large", body, None))])
        };
        let first = frames.frame(Protocol::Delta, large(0));
        let second = frames.frame(Protocol::Delta, large(1));
        for content in 2..4 {
            frames.frame(Protocol::Delta, large(content));
        }
        assert!(lock(&frames.kept).bytes <= MAX_BYTES);
        assert!(same(&second, &frames.frame(Protocol::Delta, large(1))));
        assert!(!same(&first, &frames.frame(Protocol::Delta, large(0))));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_kept_for_long() {
        let frames = Arc::new(Frames::default());
        let expiring = tokio::spawn(frames.clone().expire_forever());
        let one = response(Cluster, "7", &[resource(Cluster, "a", 1)]);
        frames.frame(Protocol::Delta, one);
        assert!(lock(&frames.kept).bytes > 0);
        tokio::time::sleep(2 * MAX_AGE).await;
        assert_eq!(lock(&frames.kept).bytes, 0);
        expiring.abort();
    }
}
