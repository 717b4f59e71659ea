//! What has yet to happen before Weft may serve.
//!
//! Each part takes a [`Blocker`] when it is made and releases it when it is ready; with none left, `/readyz` opens.
//! A part that ends before it was ready leaves its blocker behind, so that it cannot be taken for ready.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The parts that are not ready yet.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Blockers>>);

#[derive(Debug, Default)]
struct Blockers {
    next: u64,
    reasons: BTreeMap<u64, String>,
}

impl Readiness {
    /// Nobody may be served until the returned blocker is released. `reason` completes "not ready: ".
    pub fn block(&self, reason: impl Into<String>) -> Blocker {
        let mut blockers = self.blockers();
        let id = blockers.next;
        blockers.next += 1;
        blockers.reasons.insert(id, reason.into());
        Blocker { readiness: self.clone(), id, released: false }
    }

    /// Why Weft is not ready, in the order in which the reasons arose; empty when it is.
    pub fn reasons(&self) -> Vec<String> {
        self.blockers().reasons.values().cloned().collect()
    }

    fn blockers(&self) -> MutexGuard<'_, Blockers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held by a part that is not ready yet.
#[must_use = "release it when the part is ready"]
#[derive(Debug)]
pub struct Blocker {
    readiness: Readiness,
    id: u64,
    released: bool,
}

impl Blocker {
    /// Why the part is not ready is known better by now.
    pub fn because(&self, reason: impl Into<String>) {
        self.readiness.blockers().reasons.insert(self.id, reason.into());
    }

    /// The part is ready.
    pub fn release(mut self) {
        self.released = true;
        self.readiness.blockers().reasons.remove(&self.id);
    }
}

impl Drop for Blocker {
    fn drop(&mut self) {
        if !self.released
            && let Some(reason) = self.readiness.blockers().reasons.get_mut(&self.id)
        {
            reason.push_str(" (it ended before it was ready: see the log)");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_when_the_last_blocker_is_released() {
        let readiness = Readiness::default();
        let source = readiness.block("the source has not synced");
        let snapshot = readiness.block("no snapshot is out");
        assert_eq!(readiness.reasons(), ["the source has not synced", "no snapshot is out"]);
        source.release();
        assert_eq!(readiness.reasons(), ["no snapshot is out"]);
        snapshot.release();
        assert!(readiness.reasons().is_empty());
    }

    #[test]
    fn a_reason_can_become_a_better_one() {
        let readiness = Readiness::default();
        let source = readiness.block("the source has not synced");
        source.because("the source has not synced: nobody answers");
        assert_eq!(readiness.reasons(), ["the source has not synced: nobody answers"]);
        source.release();
        assert!(readiness.reasons().is_empty());
    }

    #[test]
    fn a_part_that_ended_early_is_not_ready() {
        let readiness = Readiness::default();
        drop(readiness.block("the source has not synced"));
        assert_eq!(readiness.reasons(), ["the source has not synced (it ended before it was ready: see the log)"]);
    }
}
