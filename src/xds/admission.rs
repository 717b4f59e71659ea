//! Who is let in, and how fast: newcomers do not delay established streams.
//!
//! ```text
//!  TCP ─▶ a place among the connections, or closed at once
//!     TLS handshake, token check, first sync: each step in its turn
//!  ─▶ established: no turns any more
//! ```
//!
//! What newcomers cost is the CPU of a handshake's signature, of a token's check and of a first response. So these
//! steps take turns, in the order in which they ask, as many at once as there are CPUs. A newcomer holds its turn only
//! while it computes, never while it waits for its peer: those who stall hold up nobody, and the runtime's queue never
//! has more than a turn's worth of work before an established stream.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::registry::lock;
use super::requests::Rate;

/// What clients may take of the server.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once; one more is closed at once.
    pub connections: usize,
    /// Streams at once on a connection. An Envoy has one; a few more let it reconnect.
    pub streams: u32,
    /// Requests on a stream.
    pub requests: Rate,
    /// After this time, give or take a half, a connection is closed, so that proxies spread over the replicas again;
    /// `None`: never.
    pub age: Option<Duration>,
    /// How long a stream that is to end may finish what is on its way.
    pub grace: Duration,
    /// HTTP/2 PINGs are sent this often, and answered within this time.
    pub keepalive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            streams: 8,
            requests: Rate::default(),
            age: Some(Duration::from_secs(30 * 60)),
            grace: Duration::from_secs(10),
            keepalive: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// How old one connection may become.
    pub(crate) fn random_age(&self) -> Option<Duration> {
        self.age.map(|age| age.mul_f64(rand::random_range(0.5..1.5)))
    }
}

/// Connections that have not shown a token yet. Beyond that no more are accepted for a while, and wait in the kernel.
const UNKNOWN: usize = 4_096;

/// Lets newcomers in.
#[derive(Debug)]
pub(crate) struct Admission {
    turns: Semaphore,
    connections: Arc<Semaphore>,
    unknown: Arc<Semaphore>,
    limit: usize,
    waiting: AtomicUsize,
    admitted: AtomicU64,
    refused: AtomicU64,
    aged: AtomicU64,
}

/// How the server does under pressure.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Connections that are open.
    pub connections: usize,
    /// Handshakes, token checks and first syncs that wait for their turn.
    pub waiting: usize,
    /// Streams that were let in, since the start.
    pub admitted: u64,
    /// Connections that were closed because there are too many, and streams without a good token, since the start.
    pub refused: u64,
    /// Connections that were closed for their age, since the start.
    pub aged: u64,
    /// Responses that were encoded, since the start.
    pub frames_encoded: u64,
    /// Responses whose bytes another stream had been sent before, since the start.
    pub frames_shared: u64,
}

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let limit = limits.connections.min(Semaphore::MAX_PERMITS);
        Self {
            turns: Semaphore::new(cpus),
            connections: Arc::new(Semaphore::new(limit)),
            unknown: Arc::new(Semaphore::new(UNKNOWN)),
            limit,
            waiting: AtomicUsize::new(0),
            admitted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            aged: AtomicU64::new(0),
        }
    }

    /// The counts as they are now.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            connections: self.limit - self.connections.available_permits(),
            waiting: self.waiting.load(Ordering::Relaxed),
            admitted: self.admitted.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            aged: self.aged.load(Ordering::Relaxed),
            ..Counts::default()
        }
    }

    /// Waits until there is room for one more connection that nobody knows yet.
    pub(crate) async fn room(&self) -> Option<OwnedSemaphorePermit> {
        self.unknown.clone().acquire_owned().await.ok()
    }

    /// A place for a new connection, or `None` if there are too many. `room` is given back when it shows a token.
    pub(crate) fn connection(&self, room: OwnedSemaphorePermit) -> Option<Arc<Place>> {
        let Ok(place) = self.connections.clone().try_acquire_owned() else {
            self.refuse();
            return None;
        };
        let (drain, unknown) = (CancellationToken::new(), Mutex::new(Some(room)));
        Some(Arc::new(Place { drain, unknown, _place: place }))
    }

    /// A turn to compute for one who is new; fair. It is given back before anything is waited for.
    pub(crate) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        if let Ok(turn) = self.turns.try_acquire() {
            return Some(turn);
        }
        let _waiting = Waiting::new(&self.waiting);
        self.turns.acquire().await.ok() // never closed
    }

    /// Runs `future` with a turn for each of its steps; `None` if others than this server let it wait for longer than
    /// `patience` in all. Waiting for turns does not count, or a server that is slow would send all away to come again.
    pub(crate) async fn in_turns<F: Future>(&self, future: F, patience: Duration) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut waited = Duration::ZERO;
        loop {
            let turn = self.turn().await;
            if let Poll::Ready(output) = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await {
                return Some(output);
            }
            drop(turn);
            // The future has taken this task's waker: once it is woken, there is another step to do.
            let mut woken = false;
            let wake = poll_fn(|_| if std::mem::replace(&mut woken, true) { Poll::Ready(()) } else { Poll::Pending });
            let since = Instant::now();
            tokio::time::timeout(patience.saturating_sub(waited), wake).await.ok()?;
            waited += since.elapsed();
        }
    }

    pub(crate) fn admit(&self) {
        self.admitted.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn age(&self) {
        self.aged.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection's place, held by it and by its streams.
#[derive(Debug)]
pub(crate) struct Place {
    /// Cancelled when the connection is to be closed: its streams finish what they say and end.
    pub(crate) drain: CancellationToken,
    unknown: Mutex<Option<OwnedSemaphorePermit>>,
    _place: OwnedSemaphorePermit,
}

impl Place {
    /// It has shown a good token.
    pub(crate) fn known(&self) {
        lock(&self.unknown).take();
    }

    pub(crate) fn is_known(&self) -> bool {
        lock(&self.unknown).is_none()
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    fn admission(connections: usize) -> Admission {
        Admission { turns: Semaphore::new(1), ..Admission::new(&Limits { connections, ..Limits::default() }) }
    }

    #[tokio::test(start_paused = true)]
    async fn newcomers_take_turns_and_hold_none_while_they_wait() {
        let admission = Arc::new(admission(1));
        let (wake, woken) = oneshot::channel::<()>();
        let stalled = admission.clone();
        let stalled = tokio::spawn(async move { stalled.in_turns(woken, Duration::from_secs(1)).await });
        tokio::task::yield_now().await;
        let turn = admission.turn().now_or_never().flatten().expect("one who waits for a peer has no turn");
        wake.send(()).expect("it waits");
        let mut second = Box::pin(admission.turn());
        assert!(second.as_mut().now_or_never().is_none(), "one at a time");
        tokio::task::yield_now().await;
        assert_eq!(admission.counts().waiting, 2);
        tokio::time::sleep(Duration::from_secs(10)).await; // its turn is late, which is not its fault
        drop(turn);
        assert!(second.await.is_some());
        stalled.await.expect("no panic").expect("in time").expect("woken");
        assert_eq!(admission.counts().waiting, 0);
        let start = Instant::now();
        let never = admission.in_turns(std::future::pending::<()>(), Duration::from_secs(1)).await;
        assert_eq!((never, start.elapsed()), (None, Duration::from_secs(1)));
    }

    #[tokio::test]
    async fn a_connection_too_many_is_refused_and_a_place_given_back() {
        let admission = admission(1);
        let place = admission.connection(admission.room().await.expect("room")).expect("a place");
        assert!(admission.connection(admission.room().await.expect("room")).is_none());
        assert_eq!(admission.unknown.available_permits(), UNKNOWN - 1);
        assert!(!place.is_known());
        place.known();
        assert!(place.is_known());
        assert_eq!(admission.unknown.available_permits(), UNKNOWN);
        assert_eq!((admission.counts().connections, admission.counts().refused), (1, 1));
        drop(place);
        assert_eq!(admission.counts().connections, 0);
    }

    #[test]
    fn ages_are_spread() {
        let limits = Limits { age: Some(Duration::from_secs(100)), ..Limits::default() };
        let ages: Vec<_> = (0..100).filter_map(|_| limits.random_age()).map(|age| age.as_secs()).collect();
        assert_eq!(ages.len(), 100);
        assert!(ages.iter().all(|age| (50..150).contains(age)));
        assert!(ages.iter().any(|age| *age < 90) && ages.iter().any(|age| *age > 110));
        assert_eq!(Limits { age: None, ..limits }.random_age(), None);
    }
}
