//! What is served to whom: a new version of what many proxies share goes to a few first, and what Envoy refused goes to
//! nobody.
//!
//! ```text
//!  source ──without what is held back──▶ target ──┬─ endpoints, what few have ──────────────▶ stable (all streams)
//!                                                 └─ the rest ─▶ trial (a few) ─acknowledged──▶ stable
//!                                                                             └─refused──▶ held back, tried again when
//!                                                                                          its object changes
//! ```
//!
//! While a trial runs, clusters, listeners, routes and removals wait together, so that no proxy gets a route before its
//! cluster or loses a cluster before its route; endpoints and secrets never wait. Pure: streams are slots, time is
//! passed in.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use roaring::RoaringBitmap;

use super::interest::{Interest, Key, Slot};
use crate::mesh::ProxyId;
use crate::snapshot::{Change, Resource, ResourceType, Snapshot, Version, View};

/// How carefully shared resources are rolled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Canary {
    /// A new version of a listener, route or cluster that more proxies than this share goes to this many first.
    /// 0: to all at once.
    pub proxies: u64,
    /// So long their answers are waited for. Then one acceptance is enough; without any, others are asked once.
    pub patience: Duration,
}

impl Default for Canary {
    /// Envoy withholds its answer while clusters warm, at most 5 s by Weft's own `initial_fetch_timeout`.
    fn default() -> Self {
        Self { proxies: 3, patience: Duration::from_secs(8) }
    }
}

/// Content that a proxy refused and that is given to no other.
#[derive(Clone, Debug)]
pub(crate) struct HeldBack {
    /// Who refused it.
    pub(crate) by: ProxyId,
    /// When.
    pub(crate) at: Instant,
    /// In Envoy's words.
    pub(crate) message: String,
    /// The refused content.
    pub(crate) resource: Arc<Resource>,
}

/// A proxy refused a resource that was alone in its response, so that it is known to be the bad one.
#[derive(Clone, Debug)]
pub(crate) struct RefusedResource {
    /// Who refused it.
    pub(crate) by: ProxyId,
    /// What was refused.
    pub(crate) resource: Arc<Resource>,
    /// What the proxy keeps instead, if that is known.
    pub(crate) good: Option<Arc<Resource>>,
    /// Whether it keeps anything.
    pub(crate) had: bool,
    /// In Envoy's words.
    pub(crate) message: String,
}

/// The new content that a few streams try.
#[derive(Debug)]
struct Trial {
    snapshot: Arc<Snapshot>,
    /// Who tries it.
    canaries: RoaringBitmap,
    until: Instant,
    /// When the change that it brings was read.
    since: Instant,
    /// The number of the source's snapshot that it brings.
    source: u64,
    /// The first few did not answer in time.
    again: bool,
}

/// What is served.
#[derive(Debug)]
pub(crate) struct Rollout {
    canary: Canary,
    revision: u64,
    source: Arc<Snapshot>,
    target: Snapshot,
    /// When the oldest change of the target that is neither stable nor tried was read.
    since: Option<Instant>,
    stable: Arc<Snapshot>,
    /// The number of the source's snapshot that is stable.
    reached: u64,
    trial: Option<Trial>,
    held_back: BTreeMap<(Key, String), HeldBack>,
}

/// Contents that are held back at once. An older one is forgotten and then tried once more.
const MAX_HELD_BACK: usize = 1_000;

impl Rollout {
    pub(crate) fn new(canary: Canary) -> Self {
        let empty = Arc::new(Snapshot::empty());
        Self {
            canary,
            revision: 0,
            source: empty.clone(),
            target: Snapshot::empty(),
            since: None,
            stable: empty,
            reached: 0,
            trial: None,
            held_back: BTreeMap::new(),
        }
    }

    /// From now on with other numbers.
    pub(crate) fn set_canary(&mut self, canary: Canary) {
        self.canary = canary;
    }

    /// What this stream is served.
    pub(crate) fn served(&self, slot: Slot) -> &Arc<Snapshot> {
        match &self.trial {
            Some(trial) if trial.canaries.contains(slot) => &trial.snapshot,
            _ => &self.stable,
        }
    }

    /// What all streams are served but those that try something.
    pub(crate) fn stable(&self) -> &Arc<Snapshot> {
        &self.stable
    }

    /// The trial that runs: what is served in it, to whom, and since when its change is known.
    pub(crate) fn trial(&self) -> Option<(&Arc<Snapshot>, &RoaringBitmap, Instant)> {
        self.trial.as_ref().map(|trial| (&trial.snapshot, &trial.canaries, trial.since))
    }

    /// The newest snapshot that came from the source.
    pub(crate) fn source(&self) -> &Arc<Snapshot> {
        &self.source
    }

    /// The number of the newest snapshot from the source that all streams are served, but for what is held back.
    pub(crate) fn reached(&self) -> u64 {
        self.reached
    }

    /// What was refused and is held back.
    pub(crate) fn held_back(&self) -> impl Iterator<Item = (&Key, &HeldBack)> {
        self.held_back.iter().map(|((key, _), held)| (key, held))
    }

    /// When `tick` is to be called.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.trial.as_ref().map(|trial| trial.until)
    }

    /// The source published a snapshot, whose oldest change was read at `since`. Returns its steps.
    pub(crate) fn publish(
        &mut self,
        source: Arc<Snapshot>,
        interest: &Interest,
        busy: &dyn Fn(Slot) -> bool,
        since: Instant,
        now: Instant,
    ) -> Vec<Change> {
        let changes = source.since(&self.source);
        self.source = source;
        self.since.get_or_insert(since);
        let mut held_back = std::mem::take(&mut self.held_back);
        held_back.retain(|_, held| has(&self.source, &held.by, &held.resource) || self.is_in_source(&held.resource));
        self.held_back = held_back;
        let admitted: Vec<_> = changes.iter().filter_map(|change| self.admit(change)).collect();
        self.target = self.target.with(admitted);
        self.advance(interest, busy, now);
        changes
    }

    /// A proxy refused content. It is held back if no other proxy has `accepted` it, and replaced by what was there
    /// before wherever it is served. Returns whether it is held back.
    pub(crate) fn refused(
        &mut self,
        slot: Slot,
        refused: RefusedResource,
        accepted: bool,
        interest: &Interest,
        busy: &dyn Fn(Slot) -> bool,
        now: Instant,
    ) -> bool {
        let RefusedResource { by, resource, good, had, message } = refused;
        let tried = self.trial.as_ref().is_some_and(|trial| {
            trial.canaries.contains(slot) && !has(&self.stable, &by, &resource) && has(&trial.snapshot, &by, &resource)
        });
        let unknown_before = had && good.is_none() && !tried;
        if resource.kind == ResourceType::Secret
            || (accepted && !tried)
            || unknown_before
            || !has(self.served(slot), &by, &resource)
        {
            return false;
        }
        let key = Key { kind: resource.kind, name: resource.name.clone() };
        if self.held_back.len() >= MAX_HELD_BACK
            && let Some(oldest) = self.held_back.iter().min_by_key(|(_, held)| held.at).map(|(key, _)| key.clone())
        {
            self.held_back.remove(&oldest);
        }
        let held = HeldBack { by: by.clone(), at: now, message, resource: resource.clone() };
        self.held_back.insert((key, resource.version.to_string()), held);
        self.target = take_back(&self.target, &self.stable, &resource, &by, good.as_ref());
        if let Some(trial) = &mut self.trial {
            let next = take_back(&trial.snapshot, &self.stable, &resource, &by, good.as_ref());
            trial.snapshot = number(&mut self.revision, &next);
        }
        if !tried {
            let next = take_back(&self.stable, &self.stable, &resource, &by, good.as_ref());
            self.stable = number(&mut self.revision, &next);
        }
        self.advance(interest, busy, now);
        true
    }

    /// Streams have answered, or ended. `busy` says who has yet to answer.
    pub(crate) fn settle(&mut self, interest: &Interest, busy: &dyn Fn(Slot) -> bool, now: Instant) {
        if self.trial.as_ref().is_some_and(|trial| !trial.canaries.iter().any(busy)) {
            self.finish(interest, busy, now);
        }
    }

    /// The stream ended.
    pub(crate) fn left(&mut self, slot: Slot, interest: &Interest, busy: &dyn Fn(Slot) -> bool, now: Instant) {
        let Some(trial) = &mut self.trial else { return };
        if trial.canaries.remove(slot) && trial.canaries.is_empty() {
            self.abandon();
            self.advance(interest, busy, now);
        } else {
            self.settle(interest, busy, now);
        }
    }

    /// Time has passed: canaries did not answer.
    pub(crate) fn tick(&mut self, interest: &Interest, busy: &dyn Fn(Slot) -> bool, now: Instant) {
        let Some(trial) = self.trial.as_ref().filter(|trial| trial.until <= now) else { return };
        let silent: RoaringBitmap = trial.canaries.iter().filter(|slot| busy(*slot)).collect();
        if silent.len() < trial.canaries.len() || trial.again {
            tracing::warn!(
                asked = trial.canaries.len(),
                silent = silent.len(),
                "some of the first few proxies did not answer new configuration in time; it goes to all"
            );
            self.finish(interest, busy, now);
            return;
        }
        self.abandon();
        self.advance(interest, &|slot| silent.contains(slot) || busy(slot), now);
        if let Some(trial) = &mut self.trial {
            trial.again = true;
        }
    }

    /// What was tried is good for all.
    fn finish(&mut self, interest: &Interest, busy: &dyn Fn(Slot) -> bool, now: Instant) {
        if let Some(trial) = self.trial.take() {
            self.stable = number(&mut self.revision, &trial.snapshot);
            self.reached = trial.source;
        }
        self.advance(interest, busy, now);
    }

    /// The trial ends without a result. What is stable gets a new number, by which those who tried something else are
    /// brought back to it.
    fn abandon(&mut self) {
        if let Some(trial) = self.trial.take() {
            self.stable = number(&mut self.revision, &self.stable);
            self.since = Some(trial.since);
        }
    }

    /// Brings what is served as near to the target as may be.
    fn advance(&mut self, interest: &Interest, busy: &dyn Fn(Slot) -> bool, now: Instant) {
        let base = self.trial.as_ref().map_or(&self.stable, |trial| &trial.snapshot);
        let steps = self.target.since(base);
        if steps.is_empty() {
            self.since = None;
            if self.stable.number() == 0 {
                self.stable = number(&mut self.revision, &self.target); // there is nothing, which is an answer
            }
            match &mut self.trial {
                Some(trial) => trial.source = self.source.number(),
                None => self.reached = self.source.number(),
            }
            return;
        }
        let canaries = match self.trial {
            Some(_) => None,
            // What there is at first is served whole: a part of it would take the rest from those who have it (rule 5).
            None if self.stable.number() == 0 => Some(RoaringBitmap::new()),
            None => Some(self.canaries(&steps, interest, busy)),
        };
        if canaries.as_ref().is_some_and(RoaringBitmap::is_empty) {
            self.stable = number(&mut self.revision, &self.target);
            self.reached = self.source.number();
            self.since = None;
            return;
        }
        let shared = self.shared(&steps, interest);
        let count = steps.len();
        let free: Vec<_> = steps.into_iter().filter(|step| self.is_free(step, &shared)).collect();
        if !free.is_empty() {
            let next = self.stable.with(free.iter().cloned());
            self.stable = number(&mut self.revision, &next);
        }
        if free.len() == count {
            self.since = None;
        }
        match (&mut self.trial, canaries) {
            (Some(trial), _) if !free.is_empty() => {
                let next = trial.snapshot.with(free);
                trial.snapshot = number(&mut self.revision, &next);
            }
            (Some(_), _) | (None, None) => {}
            (None, Some(canaries)) => {
                self.trial = Some(Trial {
                    snapshot: number(&mut self.revision, &self.target),
                    canaries,
                    until: now + self.canary.patience,
                    since: self.since.take().unwrap_or(now),
                    source: self.source.number(),
                    again: false,
                });
            }
        }
    }

    /// A change from the source as it is after what is held back is taken out of it; `None` if nothing is left.
    fn admit(&self, change: &Change) -> Option<Change> {
        match change {
            Change::Put(resource) if self.is_held_back(resource) => None,
            Change::PutView(proxy, view) if view.own.iter().any(|own| self.is_held_back(own)) => {
                let old = self.target.view(proxy);
                let good = |bad: &Arc<Resource>| {
                    old?.own.iter().find(|own| own.kind == bad.kind && own.name == bad.name).cloned()
                };
                let own = view.own.iter().filter_map(|own| match self.is_held_back(own) {
                    true => good(own),
                    false => Some(own.clone()),
                });
                let view = View { own: own.collect(), pushed: view.pushed.clone() };
                Some(Change::PutView(proxy.clone(), Arc::new(view)))
            }
            _ => Some(change.clone()),
        }
    }

    /// Whether the source has this content, for all or for one proxy.
    fn is_in_source(&self, resource: &Resource) -> bool {
        let is_it = |other: &Arc<Resource>| {
            other.kind == resource.kind && other.name == resource.name && other.version == resource.version
        };
        self.source.shared(resource.kind, &resource.name).is_some_and(is_it)
            || self.source.views().any(|(_, view)| view.own.iter().any(is_it))
    }

    fn is_held_back(&self, resource: &Resource) -> bool {
        let key = Key { kind: resource.kind, name: resource.name.clone() };
        !self.held_back.is_empty() && self.held_back.contains_key(&(key, resource.version.to_string()))
    }

    /// The new contents of proxies' own resources, each with the streams that would get it.
    fn shared(&self, steps: &[Change], interest: &Interest) -> HashMap<(ResourceType, Version), RoaringBitmap> {
        let mut shared: HashMap<_, RoaringBitmap> = HashMap::new();
        for step in steps {
            let Change::PutView(proxy, view) = step else { continue };
            for own in self.new_own(proxy, view) {
                *shared.entry((own.kind, own.version)).or_default() |= interest.of_proxy(proxy);
            }
        }
        shared
    }

    fn new_own<'a>(&'a self, proxy: &'a ProxyId, view: &'a View) -> impl Iterator<Item = &'a Arc<Resource>> {
        let old = self.stable.view(proxy);
        view.own.iter().filter(move |own| old.is_some_and(|old| !old.own.contains(own)))
    }

    /// A few streams that would get each new content that more than a few would get; none if there is no such content.
    fn canaries(&self, steps: &[Change], interest: &Interest, busy: &dyn Fn(Slot) -> bool) -> RoaringBitmap {
        let mut canaries = RoaringBitmap::new();
        if self.canary.proxies == 0 {
            return canaries;
        }
        let tables = steps.iter().filter_map(|step| match step {
            Change::Put(resource) if resource.kind != ResourceType::Endpoints => {
                Some(interest.of(&Key { kind: resource.kind, name: resource.name.clone() }))
            }
            _ => None,
        });
        for streams in tables.chain(self.shared(steps, interest).into_values()) {
            if streams.len() <= self.canary.proxies {
                continue;
            }
            let chosen = (&streams & &canaries).len();
            let others = || streams.iter().filter(|slot| !canaries.contains(*slot));
            let more: Vec<_> = others()
                .filter(|slot| !busy(*slot))
                .chain(others().filter(|slot| busy(*slot)))
                .take(self.canary.proxies.saturating_sub(chosen) as usize)
                .collect();
            canaries.extend(more);
        }
        canaries
    }

    /// Whether a change may go to all while others are tried.
    fn is_free(&self, step: &Change, shared: &HashMap<(ResourceType, Version), RoaringBitmap>) -> bool {
        match step {
            Change::Put(resource) => resource.kind == ResourceType::Endpoints,
            Change::Remove(..) => false,
            Change::PutView(proxy, view) => self.new_own(proxy, view).all(|own| {
                shared.get(&(own.kind, own.version)).is_none_or(|streams| streams.len() <= self.canary.proxies)
            }),
            Change::RemoveView(_) | Change::Fallback(_) => true,
        }
    }
}

fn number(revision: &mut u64, snapshot: &Snapshot) -> Arc<Snapshot> {
    *revision += 1;
    Arc::new(snapshot.numbered(*revision))
}

/// Whether the proxy is served this content.
fn has(snapshot: &Snapshot, proxy: &ProxyId, resource: &Resource) -> bool {
    snapshot.get(proxy, resource.kind, &resource.name).is_some_and(|served| served.version == resource.version)
}

/// `snapshot` without this content: with what `stable` has instead, or else what the proxy that refused it keeps. Of
/// resources that proxies have for themselves, that of another proxy is left if nothing is known instead.
fn take_back(
    snapshot: &Snapshot,
    stable: &Snapshot,
    bad: &Arc<Resource>,
    by: &ProxyId,
    good: Option<&Arc<Resource>>,
) -> Snapshot {
    let named = |other: &Resource| other.kind == bad.kind && other.name == bad.name;
    let is_bad = |other: &Arc<Resource>| named(other) && other.version == bad.version;
    let mut steps = Vec::new();
    if snapshot.shared(bad.kind, &bad.name).is_some_and(is_bad) {
        let before = stable.shared(bad.kind, &bad.name).filter(|before| !is_bad(before)).or(good);
        steps.push(match before {
            Some(before) => Change::Put(before.clone()),
            None => Change::Remove(bad.kind, bad.name.clone()),
        });
    }
    for (proxy, view) in snapshot.views().filter(|(_, view)| view.own.iter().any(is_bad)) {
        let before = stable.view(proxy).and_then(|view| view.own.iter().find(|own| named(own) && !is_bad(own)));
        let Some(before) = before.or(good.filter(|_| proxy == by)) else { continue };
        let own = view.own.iter().map(|own| if is_bad(own) { before.clone() } else { own.clone() });
        let view = View { own: own.collect(), pushed: view.pushed.clone() };
        steps.push(Change::PutView(proxy.clone(), Arc::new(view)));
    }
    snapshot.with(steps)
}

#[cfg(test)]
mod tests;
