//! The sets themselves, as a value: persistent maps, so that handing them on costs a reference count.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use imbl::OrdMap;
use imbl::ordmap::Entry;

use crate::mesh::{Upstream, WorkloadKey};

/// Destinations of one workload. A sidecar takes about 100 KB for each.
pub const MAX_IN_SET: usize = 500;
/// Destinations of all workloads, some 100 bytes each.
const MAX_IN_ALL: usize = 500_000;
/// An entry whose workload or destination has been gone for so long is forgotten.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How exactly it is known when an entry was last alive: the fewer changes, the fewer writes.
const GRAIN: Duration = Duration::from_secs(24 * 3600);

/// A time in whole seconds since the epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// This time.
    pub fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }

    /// As the clock of the system has it.
    pub fn time(self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.0)).unwrap_or(UNIX_EPOCH)
    }

    fn is_before(self, age: Duration, now: Self) -> bool {
        self.0.saturating_add(age.as_secs()) < now.0
    }
}

/// When a workload was seen to call a destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// First.
    pub since: Moment,
    /// When both of them were last known to exist, to a day.
    pub alive: Moment,
}

impl Seen {
    /// The earliest and the latest of both: the least upper bound, so that merging has an order no replica can see.
    fn join(self, other: Self) -> Self {
        Self { since: self.since.min(other.since), alive: self.alive.max(other.alive) }
    }
}

/// What became of something that was to be learned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Learned {
    /// It is new.
    New,
    /// It was known.
    Known,
    /// There is no room for it: the workload has [`MAX_IN_SET`], or the mesh too many.
    Full,
}

/// What the workloads call. Equal sets may have been reached in any way.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct WarmSets {
    workloads: OrdMap<WorkloadKey, OrdMap<Upstream, Seen>>,
    entries: usize,
}

impl WarmSets {
    /// The workload called the destination.
    pub fn learn(&mut self, workload: &WorkloadKey, upstream: Upstream, now: Moment) -> Learned {
        let known = self.workloads.get(workload);
        if known.is_some_and(|set| set.contains_key(&upstream)) {
            return Learned::Known;
        }
        if known.is_some_and(|set| set.len() >= MAX_IN_SET) || self.entries >= MAX_IN_ALL {
            return Learned::Full;
        }
        self.join(workload, &upstream, Seen { since: now, alive: now });
        Learned::New
    }

    /// Adds what another replica knows. Commutative, associative and idempotent.
    pub fn merge(&mut self, other: &Self) {
        for (workload, upstream, seen) in other.iter() {
            self.join(workload, upstream, seen);
        }
    }

    fn join(&mut self, workload: &WorkloadKey, upstream: &Upstream, seen: Seen) {
        match self.workloads.entry(workload.clone()).or_default().entry(upstream.clone()) {
            Entry::Occupied(mut known) => {
                let joined = known.get().join(seen);
                *known.get_mut() = joined;
            }
            Entry::Vacant(vacant) => {
                vacant.insert(seen);
                self.entries += 1;
            }
        }
    }

    /// Forgets what `exists` has denied for a week, and notes, once a day, what it affirms.
    pub fn tidy(&mut self, exists: impl Fn(&WorkloadKey, &Upstream) -> bool, now: Moment) {
        let mut tidied = Self::default();
        for (workload, upstream, seen) in self.iter() {
            let stale = seen.alive.is_before(GRAIN, now) && exists(workload, upstream);
            // A clock that was ahead must not make an entry immortal.
            let alive = if stale { now } else { seen.alive.min(Moment(now.0 + GRAIN.as_secs())) };
            if !alive.is_before(KEPT, now) {
                tidied.join(workload, upstream, Seen { alive, ..seen });
            }
        }
        if tidied != *self {
            *self = tidied;
        }
    }

    /// What one workload calls, in order; never more than [`MAX_IN_SET`], though replicas may have learned more
    /// together.
    pub fn of(&self, workload: &WorkloadKey) -> impl Iterator<Item = &Upstream> {
        self.workloads.get(workload).into_iter().flat_map(|set| set.keys()).take(MAX_IN_SET)
    }

    /// Everything, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&WorkloadKey, &Upstream, Seen)> {
        self.workloads.iter().flat_map(|(workload, set)| set.iter().map(move |(up, seen)| (workload, up, *seen)))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }
}

impl FromIterator<(WorkloadKey, Upstream, Seen)> for WarmSets {
    fn from_iter<T: IntoIterator<Item = (WorkloadKey, Upstream, Seen)>>(entries: T) -> Self {
        let mut sets = Self::default();
        for (workload, upstream, seen) in entries.into_iter().take(MAX_IN_ALL) {
            sets.join(&workload, &upstream, seen);
        }
        sets
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn upstream(text: &str) -> Upstream {
        text.parse().expect("SERVICE.NAMESPACE:PORT")
    }

    fn web() -> WorkloadKey {
        WorkloadKey::new("shop", "web")
    }

    fn calls(sets: &WarmSets) -> Vec<String> {
        sets.of(&web()).map(Upstream::to_string).collect()
    }

    pub(in crate::warm) fn any_sets() -> impl Strategy<Value = WarmSets> {
        let entry = (0..3u8, 0..4u8, 0..9u64, 0..9u64).prop_map(|(workload, service, since, alive)| {
            let workload = WorkloadKey::new("shop", format!("w{workload}"));
            let upstream = upstream(&format!("s{service}.shop:80"));
            (workload, upstream, Seen { since: Moment(since), alive: Moment(alive) })
        });
        proptest::collection::vec(entry, 0..12).prop_map(WarmSets::from_iter)
    }

    fn merged(a: &WarmSets, b: &WarmSets) -> WarmSets {
        let mut merged = a.clone();
        merged.merge(b);
        merged
    }

    proptest! {
        #[test]
        fn merging_is_commutative_associative_and_idempotent(a in any_sets(), b in any_sets(), c in any_sets()) {
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(merged(&a, &a), a.clone());
            prop_assert_eq!(merged(&a, &b).len(), merged(&a, &b).iter().count());
        }
    }

    #[test]
    fn a_call_is_learned_once() {
        let mut sets = WarmSets::default();
        assert_eq!(sets.learn(&web(), upstream("cart.shop:80"), Moment(1)), Learned::New);
        let before = sets.clone();
        assert_eq!(sets.learn(&web(), upstream("cart.shop:80"), Moment(2)), Learned::Known);
        assert_eq!(sets, before, "so nothing is to be written");
        assert_eq!(calls(&sets), ["cart.shop:80"]);
        assert_eq!(sets.of(&WorkloadKey::new("shop", "other")).count(), 0);
    }

    #[test]
    fn a_set_has_an_end() {
        let mut sets = WarmSets::default();
        for number in 0..MAX_IN_SET {
            let learned = sets.learn(&web(), upstream(&format!("s{number}.shop:80")), Moment(1));
            assert_eq!(learned, Learned::New);
        }
        assert_eq!(sets.learn(&web(), upstream("one-more.shop:80"), Moment(1)), Learned::Full);
        assert_eq!(sets.learn(&web(), upstream("s7.shop:80"), Moment(1)), Learned::Known);
        let other = WorkloadKey::new("shop", "other");
        assert_eq!(sets.learn(&other, upstream("one-more.shop:80"), Moment(1)), Learned::New);
        let mut replica = WarmSets::default();
        replica.learn(&web(), upstream("a.shop:80"), Moment(1));
        sets.merge(&replica);
        assert_eq!(sets.of(&web()).count(), MAX_IN_SET, "whatever the replicas have learned together");
    }

    #[test]
    fn what_has_been_gone_for_long_is_forgotten_on_every_replica() {
        const DAY: u64 = 24 * 3600;
        let mut sets = WarmSets::default();
        sets.learn(&web(), upstream("cart.shop:80"), Moment(0));
        sets.learn(&web(), upstream("gone.shop:80"), Moment(0));
        let exists = |_: &WorkloadKey, upstream: &Upstream| *upstream.service.name == *"cart";
        let replica = sets.clone();
        sets.tidy(exists, Moment(7 * DAY));
        assert_eq!(calls(&sets), ["cart.shop:80", "gone.shop:80"]);
        sets.tidy(exists, Moment(8 * DAY));
        assert_eq!(calls(&sets), ["cart.shop:80"]);
        sets.merge(&replica);
        sets.tidy(exists, Moment(8 * DAY));
        assert_eq!(calls(&sets), ["cart.shop:80"], "a replica that still knows it does not bring it back");
        assert_eq!(sets.iter().map(|(_, _, seen)| seen.since).collect::<Vec<_>>(), [Moment(0)]);
    }

    #[test]
    fn tidying_changes_nothing_more_often_than_once_a_day() {
        let mut sets = WarmSets::default();
        sets.learn(&web(), upstream("cart.shop:80"), Moment(1000));
        let before = sets.clone();
        sets.tidy(|_, _| true, Moment(1000 + 23 * 3600));
        assert_eq!(sets, before);
        sets.tidy(|_, _| true, Moment(1000 + 25 * 3600));
        assert_ne!(sets, before);
    }

    #[test]
    fn a_clock_that_was_ahead_makes_nothing_immortal() {
        let ahead = Seen { since: Moment(0), alive: Moment(u64::MAX) };
        let mut sets = WarmSets::from_iter([(web(), upstream("gone.shop:80"), ahead)]);
        sets.tidy(|_, _| false, Moment(0));
        sets.tidy(|_, _| false, Moment(9 * 24 * 3600));
        assert!(sets.is_empty());
    }
}
