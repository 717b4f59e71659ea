//! The delivery ledger: for every change, who is to have it, who has answered, who refused, and how long it took.
//!
//! ```text
//!  published(revision, resources, streams) ──▶ open ──answered(stream, revision)…──▶ closed: a record a resource
//! ```
//!
//! Told by exception: an open publication names the streams that have yet to answer; what has been delivered is a
//! record of fixed size per resource that ever changed. Pure: streams are slots, time is passed in.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use roaring::RoaringBitmap;

use super::interest::{Key, Slot};
use crate::mesh::ObjectRef;
use crate::snapshot::{Resource, Version};

/// A stream that has not answered this many publications is waited for no longer: it is behind, which its status says,
/// and what the others took is known without it.
const PATIENCE: usize = 64;

/// What became of the newest content of a resource.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    /// Its version; `None` if it was removed.
    pub(crate) version: Option<Version>,
    /// The object that it was made for.
    pub(crate) origin: Option<ObjectRef>,
    /// When the change was read.
    pub(crate) since: Instant,
    /// How many streams it went to.
    pub(crate) to: u64,
    /// From the change to the last answer; `None` while answers are missing.
    pub(crate) took: Option<Duration>,
    revision: u64,
}

#[derive(Debug)]
struct Open {
    since: Instant,
    keys: Vec<Key>,
    /// Whether the time it takes is that of the whole change, and not of a trial.
    whole: bool,
    waiting: RoaringBitmap,
}

/// The publications that are under way, and what became of the others.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    open: BTreeMap<u64, Open>,
    /// The publications that a stream has not answered, oldest first.
    owed: HashMap<Slot, VecDeque<u64>>,
    /// The streams in `owed`.
    owing: RoaringBitmap,
    /// How many streams owe each revision first.
    first: BTreeMap<u64, usize>,
    records: HashMap<Key, Record>,
}

/// What is published together.
#[derive(Debug)]
pub(crate) struct Publication {
    /// The number that the streams are served it under.
    pub(crate) revision: u64,
    /// When the oldest change in it was read.
    pub(crate) since: Instant,
    /// The resources that are different, `None` for those that are gone.
    pub(crate) resources: Vec<(Key, Option<Arc<Resource>>)>,
    /// The streams that it concerns.
    pub(crate) streams: RoaringBitmap,
    /// Whether it goes to all whom it concerns, and not to the first few.
    pub(crate) whole: bool,
}

impl Ledger {
    /// A stream begins: it owes an answer to all there is.
    pub(crate) fn entered(&mut self, slot: Slot, revision: u64) {
        self.owing.insert(slot);
        let owed = self.owed.entry(slot).or_default();
        owed.push_back(revision);
        if owed.len() == 1 {
            *self.first.entry(revision).or_default() += 1;
        }
    }

    /// Enters a publication.
    pub(crate) fn published(&mut self, publication: Publication, now: Instant) {
        let Publication { revision, since, resources, mut streams, whole } = publication;
        let to = streams.len();
        let keys: Vec<_> = resources.iter().map(|(key, _)| key.clone()).collect();
        for (key, resource) in resources {
            let version = resource.as_ref().map(|resource| resource.version);
            let origin = resource.and_then(|resource| resource.origin.clone());
            // What is gone and concerned nobody needs no record.
            if version.is_none() && to == 0 {
                self.records.remove(&key);
                continue;
            }
            let origin = origin.or_else(|| self.records.get(&key)?.origin.clone());
            let took = (to == 0).then_some(Duration::ZERO);
            self.records.insert(key, Record { version, origin, since, to, took, revision });
        }
        streams = streams.into_iter().filter(|slot| self.owe(*slot, revision, now)).collect();
        if !streams.is_empty() {
            self.open.insert(revision, Open { since, keys, whole, waiting: streams });
        }
    }

    /// The stream has answered everything up to `revision`. Returns the time that each change took of which this was
    /// the last answer.
    pub(crate) fn answered(&mut self, slot: Slot, revision: u64, now: Instant) -> Vec<Duration> {
        let mut times = Vec::new();
        let Some(owed) = self.owed.get_mut(&slot) else { return times };
        let (mut answered, before) = (Vec::new(), owed.front().copied());
        while let Some(first) = owed.front().copied().filter(|first| *first <= revision) {
            owed.pop_front();
            answered.push(first);
        }
        let after = owed.front().copied();
        if after.is_none() {
            self.owed.remove(&slot);
            self.owing.remove(slot);
        }
        if before != after {
            before.into_iter().for_each(|before| forget(&mut self.first, before));
            after.into_iter().for_each(|after| *self.first.entry(after).or_default() += 1);
        }
        for number in answered {
            times.extend(self.settle(slot, number, now));
        }
        times
    }

    /// The stream ended: nobody waits for it.
    pub(crate) fn left(&mut self, slot: Slot, now: Instant) -> Vec<Duration> {
        self.answered(slot, u64::MAX, now)
    }

    /// The streams that have not answered everything.
    pub(crate) fn owing(&self) -> &RoaringBitmap {
        &self.owing
    }

    /// Whether another stream than this has answered the newest content of a resource, which `subscribed` have.
    pub(crate) fn accepted(&self, key: &Key, slot: Slot, subscribed: &RoaringBitmap) -> bool {
        let open = self.records.get(key).filter(|record| record.took.is_none()).map(|record| {
            let waiting = self.open.get(&record.revision).map(|open| &open.waiting & subscribed).unwrap_or_default();
            record.to > waiting.len() + u64::from(!waiting.contains(slot))
        });
        open.unwrap_or(subscribed.len() > u64::from(subscribed.contains(slot)))
    }

    /// The oldest revision that some stream has not answered.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.first.keys().next().copied()
    }

    /// The records, with the streams that have yet to answer.
    pub(crate) fn records(&self) -> impl Iterator<Item = (&Key, &Record, Option<&RoaringBitmap>)> {
        self.records.iter().map(|(key, record)| {
            let open = self.open.get(&record.revision).map(|open| &open.waiting);
            (key, record, open.filter(|_| record.took.is_none()))
        })
    }

    /// Notes that the stream owes an answer; `false` if it owes too many to be waited for.
    fn owe(&mut self, slot: Slot, revision: u64, now: Instant) -> bool {
        self.owing.insert(slot);
        let owed = self.owed.entry(slot).or_default();
        if owed.len() < PATIENCE {
            owed.push_back(revision);
            if owed.len() == 1 {
                *self.first.entry(revision).or_default() += 1;
            }
            return true;
        }
        // It has caught up when it has answered the newest.
        if let Some(given_up) = owed.back_mut().map(|last| std::mem::replace(last, revision)) {
            self.settle(slot, given_up, now);
        }
        false
    }

    fn settle(&mut self, slot: Slot, number: u64, now: Instant) -> Option<Duration> {
        let open = self.open.get_mut(&number)?;
        open.waiting.remove(slot);
        if !open.waiting.is_empty() {
            return None;
        }
        let open = self.open.remove(&number)?;
        let took = now.saturating_duration_since(open.since);
        for key in open.keys {
            let Some(record) = self.records.get_mut(&key).filter(|record| record.revision == number) else { continue };
            record.took = Some(took);
            if record.version.is_none() {
                self.records.remove(&key);
            }
        }
        open.whole.then_some(took)
    }
}

fn forget(first: &mut BTreeMap<u64, usize>, revision: u64) {
    if let Some(count) = first.get_mut(&revision) {
        *count -= 1;
        if *count == 0 {
            first.remove(&revision);
        }
    }
}

#[cfg(test)]
mod tests;
