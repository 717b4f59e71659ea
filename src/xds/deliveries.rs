//! The ledger as it is told: its records put together with who uses what and who refuses it, by object.
//!
//! ```text
//!  ledger (records) ──┐
//!  interest (users) ──┼──▶ a row a resource ──▶ a row an object: sets of streams, so that a proxy counts once
//!  rollout (held back)┤
//!  sessions (refusals)┘
//! ```

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, SystemTime};

use roaring::RoaringBitmap;

use super::interest::{Interest, Key, Slot};
use super::ledger::{Ledger, Record, Subject};
use super::rollout::{HeldBack, Rollout};
use super::status::{Answers, Delivery, HeldBackStatus, ObjectDelivery, ResourceRefusal};
use crate::mesh::{ObjectRef, ProxyId};
use crate::snapshot::{Snapshot, Version};

/// What the rows are made of.
pub(crate) struct Rows<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) interest: &'a Interest,
    pub(crate) rollout: &'a Rollout,
    pub(crate) refusals: &'a Refusals,
    /// Whose stream a slot is.
    pub(crate) proxy: &'a dyn Fn(Slot) -> Option<ProxyId>,
    /// The wall clock's time of an instant.
    pub(crate) when: &'a dyn Fn(Instant) -> SystemTime,
}

/// What the sessions say was refused and is not sent again, with the streams that refused it.
#[derive(Debug, Default)]
pub(crate) struct Refusals(HashMap<(Key, Version), Vec<(Slot, ResourceRefusal)>>);

impl Refusals {
    pub(crate) fn add(&mut self, slot: Slot, refusal: ResourceRefusal) {
        let key = Key { kind: refusal.kind, name: refusal.name.clone() };
        self.0.entry((key, refusal.version)).or_default().push((slot, refusal));
    }

    fn of(&self, key: &Key, version: Option<Version>, streams: &RoaringBitmap) -> Vec<&(Slot, ResourceRefusal)> {
        let refusals = version.and_then(|version| self.0.get(&(key.clone(), version)));
        refusals.into_iter().flatten().filter(|(slot, _)| streams.contains(*slot)).collect()
    }
}

/// Who has answered what.
#[derive(Default)]
struct Tally {
    using: RoaringBitmap,
    unsent: RoaringBitmap,
    pending: RoaringBitmap,
    refusing: RoaringBitmap,
    /// They do not have the newest content, which is held back.
    without: RoaringBitmap,
    refusals: Vec<ResourceRefusal>,
    took: Option<Duration>,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.using |= &other.using;
        self.unsent |= &other.unsent;
        self.pending |= &other.pending;
        self.refusing |= &other.refusing;
        self.without |= &other.without;
        self.refusals.extend(other.refusals.iter().cloned());
        self.took = self.took.zip(other.took).map(|(one, other)| one.max(other));
    }
}

#[derive(Default)]
struct Object {
    changed_at: Option<SystemTime>,
    tally: Option<Tally>,
    resources: BTreeMap<Subject, Delivery>,
}

impl Object {
    fn add(&mut self, subject: Subject, tally: Tally, delivery: Delivery) {
        self.changed_at = self.changed_at.max(Some(delivery.changed_at));
        self.resources.insert(subject, delivery);
        match &mut self.tally {
            Some(sum) => sum.add(&tally),
            sum => *sum = Some(tally),
        }
    }
}

impl Rows<'_> {
    /// A row an object that is `wanted`, in order.
    pub(crate) fn of(&self, wanted: &dyn Fn(Option<&ObjectRef>) -> bool) -> Vec<ObjectDelivery> {
        let mut objects: BTreeMap<Option<ObjectRef>, Object> = BTreeMap::new();
        self.each(wanted, |origin, subject, tally, delivery| {
            objects.entry(origin.cloned()).or_default().add(subject, tally, delivery);
        });
        let row = |(object, row): (Option<ObjectRef>, Object)| ObjectDelivery {
            object,
            changed_at: row.changed_at.unwrap_or(SystemTime::UNIX_EPOCH),
            answers: self.answers(&row.tally.unwrap_or_default()),
            resources: row.resources.into_values().collect(),
        };
        objects.into_iter().map(row).collect()
    }

    /// For each group the answers to all of its resources together, and when the newest of them changed; `None` for one
    /// without any. `groups_of` puts the resources of an object into groups, of which the times say since when a change
    /// counts for how long it took.
    pub(crate) fn together(
        &self,
        since: &[SystemTime],
        groups_of: &dyn Fn(Option<&ObjectRef>) -> Vec<usize>,
    ) -> Vec<Option<(SystemTime, Answers)>> {
        let mut groups: Vec<Option<(SystemTime, Tally)>> = since.iter().map(|_| None).collect();
        self.each(&|origin| !groups_of(origin).is_empty(), |origin, _, tally, delivery| {
            for at in groups_of(origin) {
                let Some((group, since)) = groups.get_mut(at).zip(since.get(at)) else { continue };
                let new = delivery.changed_at >= *since;
                let (newest, sum) = group.get_or_insert_with(|| {
                    (delivery.changed_at, Tally { took: Some(Duration::ZERO), ..Tally::default() })
                });
                *newest = delivery.changed_at.max(*newest);
                // What was answered before takes no time now.
                let before = sum.took;
                sum.add(&tally);
                if !new && tally.took.is_some() {
                    sum.took = before;
                }
            }
        });
        groups.into_iter().map(|group| group.map(|(newest, sum)| (newest, self.answers(&sum)))).collect()
    }

    /// Every resource of an object that is `wanted`.
    fn each(
        &self,
        wanted: &dyn Fn(Option<&ObjectRef>) -> bool,
        mut take: impl FnMut(Option<&ObjectRef>, Subject, Tally, Delivery),
    ) {
        let mut held_back: Vec<_> =
            self.rollout.held_back().filter(|(_, held)| wanted(held.resource.origin.as_ref())).collect();
        for (subject, record) in self.ledger.records().filter(|(_, record)| wanted(record.origin.as_ref())) {
            let held = held_back
                .iter()
                .position(|(key, held)| **key == subject.key && held.resource.origin == record.origin)
                .map(|position| held_back.swap_remove(position).1);
            let (tally, delivery) = self.row(subject, record, held);
            take(record.origin.as_ref(), subject.clone(), tally, delivery);
        }
        // What was refused at its first appearance is served to nobody in any version.
        for (key, held) in held_back {
            let (tally, delivery) = self.never_served(key, held);
            take(held.resource.origin.as_ref(), key.clone().into(), tally, delivery);
        }
    }

    fn row(&self, subject: &Subject, record: &Record, held: Option<&HeldBack>) -> (Tally, Delivery) {
        let mut using = self.interest.of(&subject.key);
        if let Some(proxy) = &subject.proxy {
            using &= self.interest.of_proxy(proxy);
        }
        let refusals = self.refusals.of(&subject.key, record.version, &using);
        let refusing: RoaringBitmap = refusals.iter().map(|(slot, _)| *slot).collect();
        let unsent = self.held_off(subject, record, &using);
        let pending = (self.ledger.unanswered(record, &using) | &unsent) - &refusing;
        let mut refusals: Vec<_> = refusals.into_iter().map(|(_, refusal)| refusal.clone()).collect();
        let held_back = held.map(|held| held_back(&subject.key, held, self.when));
        refusals.extend(held_back.clone().map(refusal));
        let took = record.took.filter(|_| unsent.is_empty() && held.is_none());
        let without = held.map(|_| using.clone()).unwrap_or_default();
        let tally = Tally { using, unsent, pending, refusing, without, refusals, took };
        let delivery = Delivery {
            kind: subject.key.kind,
            name: subject.key.name.clone(),
            proxy: subject.proxy.clone(),
            version: record.version,
            changed_at: (self.when)(record.since),
            answers: self.answers(&tally),
            held_back,
        };
        (tally, delivery)
    }

    fn never_served(&self, key: &Key, held: &HeldBack) -> (Tally, Delivery) {
        let status = held_back(key, held, self.when);
        let using = self.interest.of(key);
        let refusals = vec![refusal(status.clone())];
        let tally = Tally { without: using.clone(), using, refusals, ..Tally::default() };
        let delivery = Delivery {
            kind: key.kind,
            name: key.name.clone(),
            proxy: None,
            version: None,
            changed_at: status.at,
            answers: self.answers(&tally),
            held_back: Some(status),
        };
        (tally, delivery)
    }

    /// Those to whom the content does not go before a few have tried it.
    fn held_off(&self, subject: &Subject, record: &Record, using: &RoaringBitmap) -> RoaringBitmap {
        match self.rollout.trial() {
            Some((tried, canaries, _))
                if content(tried, subject) == record.version
                    && content(self.rollout.stable(), subject) != record.version =>
            {
                using - canaries
            }
            _ => RoaringBitmap::new(),
        }
    }

    fn answers(&self, tally: &Tally) -> Answers {
        let missing = &tally.pending | &tally.refusing | &tally.without;
        let names = tally.pending.iter().filter_map(|slot| (self.proxy)(slot));
        let mut pending_proxies: Vec<_> = names.take(Answers::NAMED).collect();
        pending_proxies.sort();
        let mut refusals = tally.refusals.clone();
        refusals.truncate(Answers::NAMED);
        Answers {
            proxies: tally.using.len(),
            sent: (&tally.using - &tally.unsent).len(),
            acknowledged: (&tally.using - missing).len(),
            pending: tally.pending.len(),
            pending_proxies,
            refusing: tally.refusing.len(),
            refusals,
            took: tally.took,
        }
    }
}

/// The version that a snapshot has of it.
fn content(snapshot: &Snapshot, subject: &Subject) -> Option<Version> {
    let Key { kind, name } = &subject.key;
    let resource = match &subject.proxy {
        None => snapshot.shared(*kind, name),
        Some(proxy) => snapshot.view(proxy)?.own.iter().find(|own| own.kind == *kind && own.name == *name),
    };
    resource.map(|resource| resource.version)
}

/// A refusal as it is told.
pub(crate) fn held_back(key: &Key, held: &HeldBack, when: &dyn Fn(Instant) -> SystemTime) -> HeldBackStatus {
    HeldBackStatus {
        kind: key.kind,
        name: key.name.clone(),
        version: held.resource.version,
        origin: held.resource.origin.clone(),
        by: held.by.clone(),
        at: when(held.at),
        message: held.message.clone(),
    }
}

fn refusal(held: HeldBackStatus) -> ResourceRefusal {
    let HeldBackStatus { kind, name, version, by, at, message, origin: _ } = held;
    ResourceRefusal { proxy: by, at, kind, name, version, message }
}
