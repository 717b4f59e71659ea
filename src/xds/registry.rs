//! Which proxies are connected, and up to which snapshot all of them have answered.
//!
//! One entry per live stream, so it is as large as the mesh is connected and no larger: nothing is kept of past
//! snapshots or of streams that ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use super::status::{Proxies, ProxyStatus};
use crate::snapshot::Snapshot;

/// All connected proxies have answered everything of this snapshot and those before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Acknowledged {
    /// The snapshot's number.
    pub number: u64,
    /// When the last answer came.
    pub at: SystemTime,
}

/// The live streams.
#[derive(Debug)]
pub struct Registry {
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    state: Mutex<State>,
    acknowledged: watch::Sender<Option<Acknowledged>>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    streams: BTreeMap<u64, Entry>,
    /// How many streams have settled at each snapshot, so that the slowest is found without asking all.
    behind: BTreeMap<u64, usize>,
}

#[derive(Debug)]
struct Entry {
    status: ProxyStatus,
    settled: u64,
}

impl Registry {
    /// A registry of proxies that are served from `snapshots`.
    pub fn new(snapshots: watch::Receiver<Option<Arc<Snapshot>>>) -> Self {
        Self { snapshots, state: Mutex::default(), acknowledged: watch::Sender::new(None) }
    }

    /// How many connected proxies have not answered everything of the newest published snapshot. A refusal is an
    /// answer: it is seen in the proxy's status.
    pub fn pending(&self) -> usize {
        let newest = self.newest();
        self.lock().behind.range(..newest).map(|(_, count)| count).sum()
    }

    /// Whether snapshot `number` is published and every connected proxy has answered all of it.
    pub fn converged(&self, number: u64) -> bool {
        self.newest() >= number && self.lock().behind.range(..number).next().is_none()
    }

    /// Tells of each advance of what all connected proxies have answered; the newest value stands for those before.
    pub fn acknowledged(&self) -> watch::Receiver<Option<Acknowledged>> {
        self.acknowledged.subscribe()
    }

    /// Enters a stream until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>, status: ProxyStatus) -> Registration {
        let mut state = self.lock();
        let key = state.next;
        state.next += 1;
        state.streams.insert(key, Entry { status, settled: 0 });
        *state.behind.entry(0).or_default() += 1;
        Registration { registry: self.clone(), key }
    }

    fn newest(&self) -> u64 {
        self.snapshots.borrow().as_ref().map_or(0, |snapshot| snapshot.number())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes how far the slowest stream is, if that is further than before.
    fn advance(&self, state: &State) {
        let Some((&number, _)) = state.behind.first_key_value() else { return };
        self.acknowledged.send_if_modified(|last| {
            let further = number > last.map_or(0, |last| last.number);
            if further {
                *last = Some(Acknowledged { number, at: SystemTime::now() });
            }
            further
        });
    }
}

impl Proxies for Registry {
    fn proxies(&self) -> Vec<ProxyStatus> {
        let mut proxies: Vec<_> = self.lock().streams.values().map(|entry| entry.status.clone()).collect();
        proxies.sort_by(|a, b| a.proxy.cmp(&b.proxy));
        proxies
    }
}

/// A stream's place in the registry, given up when dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    registry: Arc<Registry>,
    key: u64,
}

impl Registration {
    /// Shows the stream's `types`, and that it has settled at snapshot `settled` if it has.
    pub(crate) fn update(&self, update: impl FnOnce(&mut ProxyStatus), settled: Option<u64>) {
        let mut state = self.registry.lock();
        let State { streams, behind, .. } = &mut *state;
        let Some(entry) = streams.get_mut(&self.key) else { return };
        update(&mut entry.status);
        let Some(settled) = settled.filter(|settled| *settled > entry.settled) else { return };
        leave(behind, entry.settled);
        *behind.entry(settled).or_default() += 1;
        entry.settled = settled;
        self.registry.advance(&state);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.registry.lock();
        if let Some(entry) = state.streams.remove(&self.key) {
            leave(&mut state.behind, entry.settled);
            self.registry.advance(&state);
        }
    }
}

fn leave(behind: &mut BTreeMap<u64, usize>, settled: u64) {
    if let Some(count) = behind.get_mut(&settled) {
        *count -= 1;
        if *count == 0 {
            behind.remove(&settled);
        }
    }
}
