//! Makes the next response of a type: compares what the client has with what it is to have.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::held::{Exception, Held, Holding, Item, Items, Leaving, Sent};
use super::{MAX_OUTSTANDING, Protocol, Response, Session};
use crate::snapshot::{Resource, ResourceName, ResourceType, Snapshot};
use crate::xds::steps::Step;

/// A name with what the client has of it.
type Had = (ResourceName, Option<Holding>);

/// What a comparison finds.
#[derive(Default)]
struct Plan {
    /// To be sent.
    puts: Vec<(Arc<Resource>, Option<Holding>)>,
    /// To be sent, in a response of its own.
    alone: Vec<(Arc<Resource>, Option<Holding>)>,
    /// Asked for while the newest content is refused: the last good one.
    good: Vec<Arc<Resource>>,
    /// To be told as not existing.
    removed: Vec<Had>,
    /// Asked for, but all there is was refused.
    nothing_good: Vec<ResourceName>,
    /// Gone from the snapshot, but routes may still use it.
    leaving: Vec<Had>,
    /// As it should be.
    kept: Vec<Had>,
}

impl Session {
    /// Brings the client to `snapshot` in one type, except for removals that must wait (rule 28).
    pub(super) fn render(&mut self, kind: ResourceType, snapshot: &Arc<Snapshot>, now: Instant) -> Option<Response> {
        let held = self.types.get(&kind)?;
        if !held.dirty(snapshot) || held.outstanding.len() >= MAX_OUTSTANDING {
            return None;
        }
        if held.begins(kind) {
            return self.begin(kind, snapshot, now);
        }
        if let Some(base) =
            held.base.as_ref().filter(|base| held.is_by_the_base() && base.number() != snapshot.number())
            && let Some(step) = self.steps.between(base, snapshot, &self.proxy, kind, &held.subscription)
        {
            return self.follow(kind, snapshot, step, now);
        }
        let mut plan = self.compare(kind, held, snapshot);
        let complete = held.complete;
        let delta = self.protocol == Protocol::Delta;
        let held = self.types.get_mut(&kind)?;
        held.base = Some(snapshot.clone());
        held.due.clear();
        held.all_due = false;
        // Of resources that were refused together, one is tried at a time where each response states everything.
        if plan.puts.is_empty() && (!complete || held.outstanding.is_empty()) {
            plan.puts.extend(plan.alone.pop());
        }
        held.touched = !plan.alone.is_empty() && !complete; // where one is tried at a time, its answer wakes the next
        let mut items = Vec::with_capacity(plan.puts.len());
        for (resource, had) in &plan.puts {
            held.settle(&self.proxy, &resource.name, Some(Holding::of(resource)), had.is_some());
            items.push(Item { resource: resource.clone(), had: had.clone() });
        }
        for (name, had) in &plan.kept {
            held.settle(&self.proxy, name, had.clone(), had.is_some());
        }
        for (name, had) in &plan.removed {
            held.settle(&self.proxy, name, None, had.is_some());
        }
        for (name, has) in plan.leaving {
            let since = held.exceptions.get(&name).and_then(|exception| exception.leaving);
            let leaving = Leaving::Used { number: snapshot.number(), until: now + self.patience.removal };
            let leaving = since.or(Some(leaving));
            held.exceptions.insert(name, Exception { has, leaving, ..Exception::default() });
        }
        let removed: Vec<_> = plan.removed.into_iter().map(|(name, _)| name).chain(plan.nothing_good).collect();
        let says = !items.is_empty() || !plan.good.is_empty() || (delta || complete) && !removed.is_empty();
        if !std::mem::take(&mut held.answer) && !says {
            return None;
        }
        let mut resources: Vec<_> = plan.puts.into_iter().map(|(resource, _)| resource).chain(plan.good).collect();
        if complete {
            resources = self.everything(kind, snapshot);
        }
        if kind == ResourceType::Cluster {
            let unsure = self.unsure(kind, &resources);
            self.endpoints_due(items.iter().map(|item| item.resource.clone()).chain(unsure).collect());
        }
        self.respond(kind, snapshot, resources.into(), removed, Items::Changed(items), now)
    }

    /// Brings a client that has nothing to `snapshot`: with the base it has exactly that, so there is nothing to note.
    fn begin(&mut self, kind: ResourceType, snapshot: &Arc<Snapshot>, now: Instant) -> Option<Response> {
        let held = self.types.get_mut(&kind)?;
        let beginning = self.beginnings.of(&self.proxy, snapshot, kind, &held.subscription)?;
        held.base = Some(snapshot.clone());
        held.touched = false;
        held.count += beginning.resources.len();
        let missing = if std::mem::take(&mut held.all_due) { beginning.missing.clone() } else { Vec::new() };
        let says_missing = (self.protocol == Protocol::Delta || held.complete) && !missing.is_empty();
        if !std::mem::take(&mut held.answer) && beginning.resources.is_empty() && !says_missing {
            return None;
        }
        if kind == ResourceType::Cluster {
            self.first_endpoints_due(&beginning.resources);
        }
        let resources = beginning.resources.clone();
        self.respond(kind, snapshot, resources.clone(), missing, Items::First(resources), now)
    }

    /// Brings a client to `snapshot` that has what it is to have by an earlier one, and so have others.
    fn follow(
        &mut self,
        kind: ResourceType,
        snapshot: &Arc<Snapshot>,
        step: Arc<Step>,
        now: Instant,
    ) -> Option<Response> {
        let held = self.types.get_mut(&kind)?;
        held.base = Some(snapshot.clone());
        held.touched = false;
        held.count += step.new;
        if step.resources.is_empty() {
            return None;
        }
        if kind == ResourceType::Cluster {
            self.endpoints_due(step.resources.to_vec());
        }
        self.respond(kind, snapshot, step.resources.clone(), Vec::new(), Items::Step(step), now)
    }

    /// Removes what has left the snapshot, some time after the routes that used it are acknowledged, or when that takes
    /// too long (rule 28).
    pub(super) fn remove(&mut self, snapshot: &Arc<Snapshot>, now: Instant) -> Option<Response> {
        let unused =
            [ResourceType::Listener, ResourceType::Route].into_iter().all(|kind| match self.types.get(&kind) {
                Some(held) => held.acknowledged(snapshot),
                None => kind == ResourceType::Route, // a listener may have its routes inside
            });
        // Until a changed cluster is warm, the one in use goes on with endpoints that may have left with the change.
        let warming = self.warming_until().is_some_and(|until| now < until);
        for kind in [ResourceType::Cluster, ResourceType::Endpoints] {
            let unused = unused && !(warming && kind == ResourceType::Endpoints);
            let Some(held) = self.types.get_mut(&kind) else { continue };
            let complete = held.complete;
            let mut removed = Vec::new();
            for (name, leaving) in held.exceptions.iter_mut().filter_map(|(name, e)| Some((name, e.leaving.as_mut()?)))
            {
                if let Leaving::Used { until, .. } = *leaving
                    && unused
                {
                    *leaving = Leaving::Unused { until: until.min(now + self.patience.lingering) };
                }
                if leaving.until() <= now {
                    removed.push(name.clone());
                }
            }
            if removed.is_empty() || held.outstanding.len() >= MAX_OUTSTANDING {
                continue;
            }
            for name in &removed {
                held.settle(&self.proxy, name, None, true);
            }
            let resources = if complete { self.everything(kind, snapshot) } else { Vec::new() };
            if kind == ResourceType::Cluster {
                self.endpoints_due(self.unsure(kind, &resources));
            }
            return self.respond(kind, snapshot, resources.into(), removed, Items::default(), now);
        }
        None
    }

    fn compare(&self, kind: ResourceType, held: &Held, snapshot: &Snapshot) -> Plan {
        let mut plan = Plan::default();
        for name in self.candidates(kind, held, snapshot) {
            let has = held.has(&self.proxy, &name);
            let due = held.due.contains(&name) || held.all_due && held.subscription.names().contains(&name);
            let exception = held.exceptions.get(&name);
            let wanted = match kind {
                ResourceType::Secret if held.subscription.names().contains(&name) => {
                    self.secrets.secret(&self.identity, &self.proxy, &name) // rule 39
                }
                _ => held.wanted(&self.proxy, snapshot, &name),
            };
            let version = wanted.as_ref().map(|resource| resource.version);
            let is_refused = version.is_some() && exception.is_some_and(|exception| exception.refused == version);
            match wanted {
                Some(_) if is_refused && !due => {} // rule 9
                Some(_) if is_refused => match has.and_then(|has| has.content) {
                    Some(good) => plan.good.push(good),
                    None => plan.nothing_good.push(name),
                },
                Some(_) if !due && has.as_ref().is_some_and(|has| has.version == version) => {
                    plan.kept.push((name, has))
                }
                Some(resource) if exception.is_some_and(|exception| exception.alone) => {
                    plan.alone.push((resource, has))
                }
                Some(resource) => plan.puts.push((resource, has)),
                None if has.is_some() && self.defers(kind) => plan.leaving.push((name, has)),
                None if has.is_some() || due => plan.removed.push((name, has)), // rules 18 and 19
                None => plan.kept.push((name, None)),
            }
        }
        plan
    }

    /// The names that may have to be sent.
    fn candidates(&self, kind: ResourceType, held: &Held, snapshot: &Snapshot) -> BTreeSet<ResourceName> {
        let names = held.subscription.names();
        let mut candidates = match &held.base {
            Some(base) if base.number() == snapshot.number() => BTreeSet::new(),
            Some(base) => {
                let mut changed = snapshot.changed(base, &self.proxy, kind, names);
                changed.retain(|name| held.subscription.wildcard() || names.contains(name));
                changed
            }
            None if held.subscription.wildcard() => &snapshot.wildcard(&self.proxy, kind) | names,
            None => names.clone(),
        };
        candidates.extend(held.exceptions.keys().chain(&held.due).cloned());
        if kind == ResourceType::Secret {
            candidates.extend(names.iter().cloned());
        }
        candidates
    }

    /// Everything that the client is to have after this response: what it has by the base, with the exceptions.
    fn everything(&self, kind: ResourceType, snapshot: &Snapshot) -> Vec<Arc<Resource>> {
        let Some(held) = self.types.get(&kind) else { return Vec::new() };
        let mut names = held.subscription.names().clone();
        if held.subscription.wildcard() {
            names.extend(snapshot.wildcard(&self.proxy, kind));
        }
        names.extend(held.exceptions.keys().cloned());
        names.iter().filter_map(|name| held.has(&self.proxy, name)?.content).collect()
    }

    /// Of what a response states, that which the client may have taken otherwise from one that it refused: to it, this
    /// is a change (rules 31 and 34).
    fn unsure(&self, kind: ResourceType, stated: &[Arc<Resource>]) -> Vec<Arc<Resource>> {
        let Some(held) = self.types.get(&kind) else { return Vec::new() };
        let unsure = |resource: &&Arc<Resource>| {
            let has = held.exceptions.get(&resource.name).and_then(|exception| exception.has.as_ref());
            has.is_some_and(|has| has.version.is_none())
        };
        stated.iter().filter(unsure).cloned().collect()
    }

    /// Whether removals wait for routes. State of the world cannot remove endpoints at all (rule 11).
    fn defers(&self, kind: ResourceType) -> bool {
        match kind {
            ResourceType::Cluster => true,
            ResourceType::Endpoints => self.protocol == Protocol::Delta,
            _ => false,
        }
    }

    pub(super) fn respond(
        &mut self,
        kind: ResourceType,
        snapshot: &Snapshot,
        resources: Arc<[Arc<Resource>]>,
        removed: Vec<ResourceName>,
        mut items: Items,
        now: Instant,
    ) -> Option<Response> {
        let held = self.types.get_mut(&kind)?;
        if held.complete && !held.outstanding.is_empty() {
            // It states what is on its way already once more, and may be refused for it.
            let mut all = items.into_vec();
            for earlier in held.outstanding.iter().rev().flat_map(|sent| sent.items.clone().into_vec()) {
                if !all.iter().any(|item| item.resource.name == earlier.resource.name) {
                    all.push(earlier);
                }
            }
            items = Items::Changed(all);
        }
        let nonce = held.next_nonce(snapshot.number());
        held.counters.totals.sent += 1;
        held.counters.totals.resources_sent += resources.len() as u64;
        held.counters.last_sent = Some(now);
        let number = snapshot.number();
        held.outstanding.push_back(Sent { nonce: nonce.clone(), number, at: now, items, removed: removed.clone() });
        let removed = if self.protocol == Protocol::Delta { removed } else { Vec::new() };
        let generation = self.generation;
        Some(Response { type_url: kind.type_url().into(), nonce, number, generation, resources, removed })
    }
}
