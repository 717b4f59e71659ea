//! Which proxies are connected, and up to which snapshot all of them have answered.
//!
//! One entry per live stream, so it is as large as the mesh is connected and no larger: nothing is kept of past
//! snapshots, and of streams that ended only the sums. What a proxy has is asked of its session when somebody looks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::watch;

use super::session::Session;
use super::status::{Proxies, ProxyStatus, Totals};
use crate::mesh::ProxyId;
use crate::snapshot::{ResourceName, ResourceType, Snapshot};

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
    /// The sums over the streams that ended.
    ended: BTreeMap<ResourceType, Totals>,
}

#[derive(Debug)]
struct Entry {
    /// Without its types, which the session tells.
    about: ProxyStatus,
    session: Arc<Mutex<Session>>,
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
        lock(&self.state).behind.range(..newest).map(|(_, count)| count).sum()
    }

    /// Whether snapshot `number` is published and every connected proxy has answered all of it.
    pub fn converged(&self, number: u64) -> bool {
        self.newest() >= number && lock(&self.state).behind.range(..number).next().is_none()
    }

    /// Tells of each advance of what all connected proxies have answered; the newest value stands for those before.
    pub fn acknowledged(&self) -> watch::Receiver<Option<Acknowledged>> {
        self.acknowledged.subscribe()
    }

    /// Enters a stream until the guard is dropped. `about` says whose it is; its types are asked of `session`.
    pub(crate) fn enter(self: &Arc<Self>, about: ProxyStatus, session: Arc<Mutex<Session>>) -> Registration {
        let mut state = lock(&self.state);
        let key = state.next;
        state.next += 1;
        state.streams.insert(key, Entry { about, session });
        *state.behind.entry(0).or_default() += 1;
        Registration { registry: self.clone(), key, settled: 0 }
    }

    /// The connected proxies, each with the clusters that it asked for.
    pub fn asked_clusters(&self) -> Vec<(ProxyId, BTreeSet<ResourceName>)> {
        let entry = |entry: &Entry| (entry.about.proxy.clone(), entry.session.clone());
        let streams: Vec<_> = lock(&self.state).streams.values().map(entry).collect();
        streams.into_iter().map(|(proxy, session)| (proxy, lock(&session).asked_clusters())).collect()
    }

    fn newest(&self) -> u64 {
        self.snapshots.borrow().as_ref().map_or(0, |snapshot| snapshot.number())
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
        let (now, wall) = (Instant::now(), SystemTime::now());
        let when = |at: Instant| wall.checked_sub(now.saturating_duration_since(at)).unwrap_or(wall);
        let entry = |entry: &Entry| (entry.about.clone(), entry.session.clone());
        let streams: Vec<_> = lock(&self.state).streams.values().map(entry).collect();
        let mut proxies: Vec<_> = streams
            .into_iter()
            .map(|(about, session)| ProxyStatus { types: lock(&session).status(when), ..about })
            .collect();
        proxies.sort_by(|a, b| a.proxy.cmp(&b.proxy));
        proxies
    }

    fn totals(&self) -> BTreeMap<ResourceType, Totals> {
        let state = lock(&self.state);
        let mut totals = state.ended.clone();
        let sessions: Vec<_> = state.streams.values().map(|entry| entry.session.clone()).collect();
        drop(state);
        sessions.iter().for_each(|session| add(&mut totals, &lock(session)));
        totals
    }
}

/// A stream's place in the registry, given up when dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    registry: Arc<Registry>,
    key: u64,
    settled: u64,
}

impl Registration {
    /// The stream has answered everything up to snapshot `number`.
    pub(crate) fn settle(&mut self, number: u64) {
        if number <= self.settled {
            return;
        }
        let mut state = lock(&self.registry.state);
        leave(&mut state.behind, self.settled);
        *state.behind.entry(number).or_default() += 1;
        self.settled = number;
        self.registry.advance(&state);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = lock(&self.registry.state);
        if let Some(entry) = state.streams.remove(&self.key) {
            add(&mut state.ended, &lock(&entry.session));
            leave(&mut state.behind, self.settled);
            self.registry.advance(&state);
        }
    }
}

fn add(totals: &mut BTreeMap<ResourceType, Totals>, session: &Session) {
    session.totals().for_each(|(kind, more)| *totals.entry(kind).or_default() += more);
}

/// Locks what a panic of one stream must not close to the others. A registry's lock may be held while a session's is
/// taken, never the other way round.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn leave(behind: &mut BTreeMap<u64, usize>, settled: u64) {
    if let Some(count) = behind.get_mut(&settled) {
        *count -= 1;
        if *count == 0 {
            behind.remove(&settled);
        }
    }
}
