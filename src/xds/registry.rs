//! The live streams: what each is served, who is woken by a change, and what became of it.
//!
//! ```text
//!  source's snapshot ─▶ publish ─▶ rollout (what is served) ─▶ interest (whom it concerns) ─▶ ledger ─▶ wake
//!  stream: served() ◀──────────────────┘                                                        ▲
//!          answered(revision), refused(resource) ──────────────────────────────────────────────┘
//! ```
//!
//! One entry per live stream and one record per resource that ever changed; of streams that ended only the sums are
//! kept. What a proxy has is asked of its session when somebody looks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use prometheus_client::metrics::histogram::Histogram;
use roaring::RoaringBitmap;
use tokio::sync::{Notify, watch};

use super::deliveries::{self, Refusals, Rows};
use super::interest::{Interest, Key, Slot};
use super::ledger::{Ledger, Publication, Subject};
use super::pace::Pace;
use super::rollout::{Canary, RefusedResource, Rollout};
use super::session::Session;
use super::status::{Answers, HeldBackStatus, ObjectDelivery, Proxies, ProxyStatus, ResourceRefusal, Totals};
use super::subscription::Changed;
use crate::mesh::{ObjectRef, ProxyId};
use crate::snapshot::{Change, Resource, ResourceName, ResourceType, Snapshot, View};

/// All connected proxies have answered everything of this snapshot and those before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Acknowledged {
    /// The snapshot's number.
    pub number: u64,
    /// When the last answer came.
    pub at: SystemTime,
}

/// From the change to the last answer, in seconds: the upper bounds of the histogram's buckets.
const BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// Snapshots of which it is known when all proxies have answered them. While a proxy that does not answer keeps more
/// waiting, the newest stands for those before it.
const MAX_PUBLISHED: usize = 1_024;

/// The live streams.
#[derive(Debug)]
pub struct Registry {
    state: Mutex<State>,
    acknowledged: watch::Sender<Option<Acknowledged>>,
    delivery_seconds: Histogram,
    /// The time of the rollout's next deadline, or of the next publication, may have changed.
    rescheduled: Notify,
}

#[derive(Debug)]
struct State {
    rollout: Rollout,
    interest: Interest,
    ledger: Ledger,
    pace: Pace,
    slots: Vec<Option<Entry>>,
    free: Vec<Slot>,
    /// The source's snapshots by the revision that brought all of them to everybody, oldest first, as far as they are
    /// not acknowledged.
    published: VecDeque<(u64, u64)>,
    /// The sums over the streams that ended.
    ended: BTreeMap<ResourceType, Totals>,
}

#[derive(Debug)]
struct Entry {
    /// Without its types, which the session tells.
    about: ProxyStatus,
    session: Arc<Mutex<Session>>,
    wake: Arc<Notify>,
}

impl Registry {
    /// A registry of proxies to which shared resources are rolled out as `canary` says.
    pub fn new(canary: Canary) -> Self {
        Self {
            state: Mutex::new(State {
                rollout: Rollout::new(canary),
                interest: Interest::default(),
                ledger: Ledger::default(),
                pace: Pace::default(),
                slots: Vec::new(),
                free: Vec::new(),
                published: VecDeque::new(),
                ended: BTreeMap::new(),
            }),
            acknowledged: watch::Sender::new(None),
            delivery_seconds: Histogram::new(BUCKETS),
            rescheduled: Notify::new(),
        }
    }

    /// Rolls out what comes from now on in another way.
    pub(crate) fn set_canary(&self, canary: Canary) {
        self.lock().rollout.set_canary(canary);
    }

    /// The source published `snapshot`; the oldest change in it was read at `since`.
    pub fn publish(&self, snapshot: Arc<Snapshot>, since: Instant) {
        let now = Instant::now();
        self.change(now, Some(since), |state, busy| {
            let changes = state.rollout.publish(snapshot, &state.interest, busy, since, now);
            for change in changes {
                match change {
                    Change::PutView(proxy, view) => state.interest.viewed(&proxy, Some(&view)),
                    Change::RemoveView(proxy) => state.interest.viewed(&proxy, None),
                    _ => {}
                }
            }
        });
    }

    /// Serves what `snapshots` holds until its sender is gone, as fast as streams follow (`pace`). Each value says when its
    /// oldest change was read.
    pub async fn follow(&self, mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>) {
        /// How often streams that no change concerned are told of the newest snapshot, so that they hold no old one.
        const SWEEP: Duration = Duration::from_secs(1);
        /// So many take less than a millisecond, which is what a change may have to wait for them.
        const SWEPT_AT_ONCE: usize = 256;
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut swept, mut sweeping) = (0, None);
        let mut next: Option<(Arc<Snapshot>, Instant)> = None;
        snapshots.mark_changed();
        loop {
            let (deadline, until) = {
                let state = self.lock();
                (state.rollout.deadline(), state.pace.until())
            };
            if until.is_none_or(|until| until <= Instant::now())
                && let Some((snapshot, since)) = next.take()
            {
                self.publish(snapshot, since);
                continue;
            }
            tokio::select! {
                biased; // changes before everything else, and the sweep in between
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let newest = snapshots.borrow_and_update().clone();
                    if let Some(snapshot) = newest {
                        let since = snapshot.read_at().unwrap_or_else(Instant::now);
                        let since = next.map_or(since, |(_, earlier)| earlier.min(since));
                        next = Some((snapshot, since));
                    }
                }
                () = sleep_until(until), if next.is_some() => {}
                () = sleep_until(deadline) => self.tick(Instant::now()),
                () = self.rescheduled.notified() => {}
                _ = sweep.tick(), if sweeping.is_none() => sweeping = self.idle(swept),
                () = tokio::task::yield_now(), if sweeping.is_some() => {
                    sweeping = sweeping.and_then(|sweep: Sweep| {
                        swept = sweep.newest.number();
                        sweep.tell(SWEPT_AT_ONCE)
                    });
                }
            }
        }
    }

    /// The rollout's deadline may have passed.
    fn tick(&self, now: Instant) {
        self.change(now, None, |state, busy| state.rollout.tick(&state.interest, busy, now));
    }

    /// How many connected proxies have not answered everything of the newest published snapshot. A refusal is an
    /// answer: it is seen in the proxy's status.
    pub fn pending(&self) -> usize {
        let state = self.lock();
        let held_off = state
            .rollout
            .trial()
            .map_or(0, |(_, canaries, _)| (state.interest.all() - canaries - state.ledger.owing()).len() as usize);
        state.ledger.owing().len() as usize + held_off
    }

    /// How many proxies are connected.
    pub fn connected(&self) -> usize {
        self.lock().interest.all().len() as usize
    }

    /// The number of the newest snapshot of the source that is on its way to proxies; 0 before the first.
    pub fn newest(&self) -> u64 {
        self.lock().rollout.source().number()
    }

    /// Whether snapshot `number` is published and every connected proxy has answered all of it.
    pub fn converged(&self, number: u64) -> bool {
        self.acknowledged.borrow().is_some_and(|acknowledged| acknowledged.number >= number)
    }

    /// Tells of each advance of what all connected proxies have answered; the newest value stands for those before.
    pub fn acknowledged(&self) -> watch::Receiver<Option<Acknowledged>> {
        self.acknowledged.subscribe()
    }

    /// From the change to the last answer, in seconds.
    pub fn delivery_seconds(&self) -> Histogram {
        self.delivery_seconds.clone()
    }

    /// Enters a stream until the guard is dropped. `about` says whose it is; its types are asked of `session`.
    pub(crate) fn enter(self: &Arc<Self>, about: ProxyStatus, session: Arc<Mutex<Session>>) -> Registration {
        let (proxy, wake) = (about.proxy.clone(), Arc::new(Notify::new()));
        let mut state = self.lock();
        let slot = state.free.pop().unwrap_or_else(|| {
            state.slots.push(None);
            state.slots.len() as Slot - 1
        });
        let State { rollout, interest, ledger, .. } = &mut *state;
        // The source's view, as `publish` notes it: that which is stable may be followed by it without another note.
        interest.enter(slot, &proxy, rollout.source().view(&proxy).map(|view| &**view));
        ledger.entered(slot, rollout.stable().number());
        state.slots[slot as usize] = Some(Entry { about, session, wake: wake.clone() });
        Registration { registry: self.clone(), slot, proxy, wake }
    }

    /// The connected proxies, each with the clusters that it asked for.
    pub fn asked_clusters(&self) -> Vec<(ProxyId, BTreeSet<ResourceName>)> {
        let entry = |entry: &Entry| (entry.about.proxy.clone(), entry.session.clone());
        let streams: Vec<_> = self.lock().slots.iter().flatten().map(entry).collect();
        streams.into_iter().map(|(proxy, session)| (proxy, lock(&session).asked_clusters())).collect()
    }

    /// Does something that may change what is served, and tells those whom it concerns. `since` is when the change was
    /// read that comes from the source now.
    fn change(&self, now: Instant, since: Option<Instant>, act: impl FnOnce(&mut State, &dyn Fn(Slot) -> bool)) {
        let mut state = self.lock();
        let stable = state.rollout.stable().clone();
        let trial =
            state.rollout.trial().map(|(snapshot, canaries, since)| (snapshot.clone(), canaries.clone(), since));
        let owing = state.ledger.owing().clone();
        act(&mut state, &|slot| owing.contains(slot));
        let mut publications = Vec::new();
        let canaries = state.rollout.trial().map(|(_, canaries, _)| canaries.clone()).unwrap_or_default();
        let newest = state.rollout.stable().clone();
        if newest.number() != stable.number() {
            // A trial that ended brings its change to all, which was read before the trial began.
            let runs = state.rollout.trial().map(|(_, _, since)| since);
            let ended = trial.as_ref().map(|(_, _, since)| *since).filter(|since| runs != Some(*since));
            let tried = trial.iter().map(|(tried, canaries, _)| (&**tried, canaries));
            let others = match &trial {
                Some((_, tried, _)) => state.interest.all() - tried,
                None => state.interest.all().clone(),
            };
            let lanes = tried.chain([(&*stable, &others)]);
            let since = ended.or(since).unwrap_or(now);
            let mut publication = state.publication(&newest, lanes, &canaries, false, since);
            if stable.number() == 0 {
                // Those who came before there was anything owe an answer to it, even if it is nothing to them.
                publication.streams = state.interest.all() - &canaries;
            }
            publications.push(publication);
        }
        if let Some((next, canaries, since)) = state.rollout.trial()
            && trial.as_ref().is_none_or(|(old, _, _)| old.number() != next.number())
        {
            let (before, already) = match &trial {
                Some((old, already, _)) => (&**old, already & canaries),
                None => (&*stable, RoaringBitmap::new()),
            };
            let fresh = canaries - &already;
            let lanes = [(before, &already), (&*stable, &fresh)];
            publications.push(state.publication(next, lanes, &RoaringBitmap::new(), true, since));
        }
        let mut woken = RoaringBitmap::new();
        for publication in publications {
            woken |= &publication.streams;
            if !publication.resources.is_empty() || !publication.streams.is_empty() {
                state.ledger.published(publication, now);
            }
        }
        if since.is_some() {
            state.pace.published(newest.number(), &woken, &owing, now);
        }
        let reached = (newest.number(), state.rollout.reached());
        if state.published.back().is_none_or(|last| last.1 < reached.1) {
            if state.published.len() >= MAX_PUBLISHED {
                state.published.pop_back();
            }
            state.published.push_back(reached);
        }
        let wakes: Vec<_> = woken.iter().filter_map(|slot| Some(state.entry(slot)?.wake.clone())).collect();
        self.acknowledge(&mut state);
        let answered = |(_, canaries, _): (_, &RoaringBitmap, _)| canaries.is_disjoint(state.ledger.owing());
        let settled = state.rollout.trial().is_some_and(answered);
        drop(state);
        wakes.iter().for_each(|wake| wake.notify_one());
        self.rescheduled.notify_one();
        // To those who try it it is what they have: what was tried by others before was taken back in the meantime.
        if settled {
            self.settle(now);
        }
    }

    /// Those who try something may have answered.
    fn settle(&self, now: Instant) {
        self.change(now, None, |state, busy| state.rollout.settle(&state.interest, busy, now));
    }

    /// Publishes how far all streams are, if that is further than before.
    fn acknowledge(&self, state: &mut State) {
        let oldest = state.ledger.oldest();
        let mut number = None;
        while let Some((revision, source)) = state.published.front().copied() {
            if oldest.is_some_and(|oldest| oldest <= revision) {
                break;
            }
            state.published.pop_front();
            number = Some(source);
        }
        if let Some(number) = number {
            self.acknowledged.send_replace(Some(Acknowledged { number, at: SystemTime::now() }));
        }
    }

    /// Those to be told of the newest snapshot that nothing in it concerns them, since they owe nothing of it; `None` if
    /// that was done for the snapshot numbered `swept`.
    fn idle(&self, swept: u64) -> Option<Sweep> {
        let state = self.lock();
        let newest = state.rollout.stable().clone();
        if newest.number() == swept || state.rollout.trial().is_some() {
            return None;
        }
        let idle = state.interest.all() - state.ledger.owing();
        let idle = idle.iter().filter_map(|slot| Some(state.entry(slot)?.session.clone())).collect();
        Some(Sweep { newest, idle })
    }

    fn sessions(&self) -> Vec<(Slot, ProxyId, Arc<Mutex<Session>>)> {
        let entry = |(slot, entry): (usize, &Option<Entry>)| {
            let Entry { about, session, .. } = entry.as_ref()?;
            Some((slot as Slot, about.proxy.clone(), session.clone()))
        };
        self.lock().slots.iter().enumerate().filter_map(entry).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Streams that a snapshot does not concern.
struct Sweep {
    newest: Arc<Snapshot>,
    idle: Vec<Arc<Mutex<Session>>>,
}

impl Sweep {
    /// Tells a few of them; returns the others, if there are any. What has become of a stream meanwhile does not matter:
    /// up to this snapshot nothing concerns it.
    fn tell(mut self, count: usize) -> Option<Self> {
        let rest = self.idle.len().saturating_sub(count);
        for session in self.idle.drain(rest..) {
            lock(&session).skip_to(&self.newest);
        }
        (!self.idle.is_empty()).then_some(self)
    }
}

impl State {
    fn entry(&self, slot: Slot) -> Option<&Entry> {
        self.slots.get(slot as usize)?.as_ref()
    }

    /// What `next` brings to streams that were served each of `lanes`, except to some.
    fn publication<'a>(
        &self,
        next: &Snapshot,
        lanes: impl IntoIterator<Item = (&'a Snapshot, &'a RoaringBitmap)>,
        except: &RoaringBitmap,
        trial: bool,
        since: Instant,
    ) -> Publication {
        let mut streams = RoaringBitmap::new();
        let mut resources = BTreeMap::new();
        for (before, served) in lanes {
            for step in next.since(before) {
                streams |= self.interest.concerned(&step, before, next) & served;
                match step {
                    Change::Put(resource) => {
                        let key = Key { kind: resource.kind, name: resource.name.clone() };
                        resources.insert(Subject::from(key), Some(resource));
                    }
                    Change::Remove(kind, name) => drop(resources.insert(Key { kind, name }.into(), None)),
                    Change::PutView(proxy, view) => {
                        resources.extend(own_changes(&proxy, before.view(&proxy), Some(&view)));
                    }
                    Change::RemoveView(proxy) => resources.extend(own_changes(&proxy, before.view(&proxy), None)),
                    Change::Fallback(_) => {}
                }
            }
        }
        streams -= except;
        let resources = resources.into_iter().collect();
        Publication { revision: next.number(), since, resources, streams, whole: !trial }
    }
}

impl Registry {
    /// For each group the answers to all resources that `groups_of` puts into it by their objects, and when the newest of
    /// them changed; `None` for a group without any. The time they took is that of the changes since the group's own.
    pub fn together(
        &self,
        since: &[SystemTime],
        groups_of: &dyn Fn(Option<&ObjectRef>) -> Vec<usize>,
    ) -> Vec<Option<(SystemTime, Answers)>> {
        self.rows(|rows| rows.together(since, groups_of))
    }

    fn rows<T>(&self, read: impl FnOnce(Rows) -> T) -> T {
        let when = clock();
        let mut refusals = Refusals::default();
        for (slot, proxy, session) in self.sessions() {
            for refused in lock(&session).refused() {
                let super::session::RefusedVersion { kind, name, version, at, message } = refused;
                let proxy = proxy.clone();
                refusals.add(slot, ResourceRefusal { proxy, at: when(at), kind, name, version, message });
            }
        }
        let State { rollout, interest, ledger, slots, .. } = &*self.lock();
        let proxy = |slot: Slot| Some(slots.get(slot as usize)?.as_ref()?.about.proxy.clone());
        read(Rows { ledger, interest, rollout, refusals: &refusals, proxy: &proxy, when: &when })
    }
}

impl Proxies for Registry {
    fn proxies(&self) -> Vec<ProxyStatus> {
        let when = clock();
        let entry = |entry: &Entry| (entry.about.clone(), entry.session.clone());
        let streams: Vec<_> = self.lock().slots.iter().flatten().map(entry).collect();
        let mut proxies: Vec<_> = streams
            .into_iter()
            .map(|(about, session)| ProxyStatus { types: lock(&session).status(&when), ..about })
            .collect();
        proxies.sort_by(|a, b| a.proxy.cmp(&b.proxy));
        proxies
    }

    fn totals(&self) -> BTreeMap<ResourceType, Totals> {
        let state = self.lock();
        let mut totals = state.ended.clone();
        let sessions: Vec<_> = state.slots.iter().flatten().map(|entry| entry.session.clone()).collect();
        drop(state);
        sessions.iter().for_each(|session| add(&mut totals, &lock(session)));
        totals
    }

    fn deliveries(&self, wanted: &dyn Fn(Option<&ObjectRef>) -> bool) -> Vec<ObjectDelivery> {
        self.rows(|rows| rows.of(wanted))
    }

    fn held_back(&self) -> Vec<HeldBackStatus> {
        let when = clock();
        self.lock().rollout.held_back().map(|(key, held)| deliveries::held_back(key, held, &when)).collect()
    }
}

/// What a proxy has for itself that is different, `None` for what is gone.
fn own_changes(
    proxy: &ProxyId,
    before: Option<&Arc<View>>,
    after: Option<&Arc<View>>,
) -> Vec<(Subject, Option<Arc<Resource>>)> {
    let own = |view: Option<&Arc<View>>| view.map(|view| view.own.clone()).unwrap_or_default();
    let (before, after) = (own(before), own(after));
    let same = |one: &Resource, other: &Resource| one.kind == other.kind && one.name == other.name;
    let subject = |resource: &Resource| {
        let key = Key { kind: resource.kind, name: resource.name.clone() };
        Subject { key, proxy: Some(proxy.clone()) }
    };
    let gone = before.iter().filter(|old| !after.iter().any(|new| same(old, new))).map(|old| (subject(old), None));
    let is_new = |new: &&Arc<Resource>| !before.iter().any(|old| same(old, new) && old.version == new.version);
    let new = after.iter().filter(is_new).map(|new| (subject(new), Some(new.clone())));
    gone.chain(new).collect()
}

/// A stream's place in the registry, given up when dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    registry: Arc<Registry>,
    slot: Slot,
    proxy: ProxyId,
    wake: Arc<Notify>,
}

impl Registration {
    /// Whose stream it is.
    pub(crate) fn proxy(&self) -> &ProxyId {
        &self.proxy
    }

    /// What the stream is to be served now; `None` before there is anything.
    pub(crate) fn served(&self) -> Option<Arc<Snapshot>> {
        let state = self.registry.lock();
        Some(state.rollout.served(self.slot).clone()).filter(|snapshot| snapshot.number() > 0)
    }

    /// Waits until there is something new to be served.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// What the stream subscribes to has changed. It asks for what it is served only after this.
    pub(crate) fn subscribed(&self, changes: Vec<(ResourceType, Changed)>) {
        let mut state = self.registry.lock();
        for (kind, changed) in changes {
            state.interest.subscribed(self.slot, kind, &changed);
        }
    }

    /// The stream's proxy refused content.
    pub(crate) fn refused(&self, refused: RefusedResource) {
        let now = Instant::now();
        self.registry.change(now, None, |state, busy| {
            let key = Key { kind: refused.resource.kind, name: refused.resource.name.clone() };
            let accepted = state.ledger.accepted(&key, self.slot, &state.interest.of(&key));
            let resource = refused.resource.clone();
            let held = state.rollout.refused(self.slot, refused, accepted, &state.interest, busy, now);
            if held {
                tracing::error!(proxy = %self.proxy, ?resource, "refused, and so held back from all proxies");
            }
        });
    }

    /// The stream has answered everything up to `revision`.
    pub(crate) fn answered(&self, revision: u64) {
        let now = Instant::now();
        let mut state = self.registry.lock();
        let times = state.ledger.answered(self.slot, revision, now);
        times.iter().for_each(|took| self.registry.delivery_seconds.observe(took.as_secs_f64()));
        let tries = state.rollout.trial().is_some_and(|(_, canaries, _)| canaries.contains(self.slot));
        self.registry.acknowledge(&mut state);
        let go_on = state.pace.answered(self.slot, revision);
        drop(state);
        if go_on {
            self.registry.rescheduled.notify_one();
        }
        if tries {
            self.registry.settle(now);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.registry.lock();
        let Some(entry) = state.slots.get_mut(self.slot as usize).and_then(Option::take) else { return };
        let names = {
            let mut session = lock(&entry.session);
            add(&mut state.ended, &session);
            // What it dropped last is told by this only.
            for (kind, changed) in session.take_changes() {
                state.interest.subscribed(self.slot, kind, &changed);
            }
            session.names()
        };
        state.interest.leave(self.slot, &self.proxy, names);
        let times = state.ledger.left(self.slot, now);
        times.iter().for_each(|took| self.registry.delivery_seconds.observe(took.as_secs_f64()));
        self.registry.acknowledge(&mut state);
        let tries = state.rollout.trial().is_some_and(|(_, canaries, _)| canaries.contains(self.slot));
        let go_on = state.pace.answered(self.slot, u64::MAX);
        drop(state);
        if go_on {
            self.registry.rescheduled.notify_one();
        }
        if tries {
            self.registry.change(now, None, |state, busy| state.rollout.left(self.slot, &state.interest, busy, now));
        }
        self.registry.lock().free.push(self.slot);
    }
}

fn add(totals: &mut BTreeMap<ResourceType, Totals>, session: &Session) {
    session.totals().for_each(|(kind, more)| *totals.entry(kind).or_default() += more);
}

/// Tells the wall clock's time of an instant.
fn clock() -> impl Fn(Instant) -> SystemTime {
    let (now, wall) = (Instant::now(), SystemTime::now());
    move |at| wall.checked_sub(now.saturating_duration_since(at)).unwrap_or(wall)
}

/// Locks what a panic of one stream must not close to the others. A registry's lock may be held while a session's is
/// taken, never the other way round.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
