//! What all replicas say of an object, put together. Pure.
//!
//! | a replica | ready | not ready |
//! | --- | --- | --- |
//! | says what its proxies have | counts | counts: sidecars may be connected to it still |
//! | has yet to read the object | is waited for | is waited for |
//! | does not answer, is of an older version | is waited for | is not |
//!
//! No more is claimed than is known: a sidecar may be connected to whom nobody can ask. Kubernetes says how long that is
//! worth waiting for: who hangs is not ready after a few seconds, and who is gone has no endpoint; sidecars leave both.

use super::replicas::{Replica, Reply};
use crate::inspect::answers::ReplicaAnswers;
use crate::xds::status::Answers;

/// What became of an object in the whole mesh, as far as it is known.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Whole {
    /// The answers of all proxies; the time is that of the slowest replica.
    pub(super) answers: Answers,
    /// Something has changed since the object was read; the time is of that.
    pub(super) changed: bool,
    /// Of which replicas it is not known, and why not: `replica weft-b does not answer`.
    pub(super) unknown: Vec<String>,
}

impl Whole {
    /// That of one replica alone.
    pub(super) fn of(own: ReplicaAnswers) -> Self {
        Self { answers: own.answers, changed: own.changed, unknown: Vec::new() }
    }

    /// Adds what another replica says of the object that it was asked for at this place.
    pub(super) fn add(&mut self, replica: &Replica, reply: &Reply, place: usize) {
        let name = &replica.name;
        let unknown = match reply {
            Reply::Answers(all) => match all.get(place) {
                Some(Some(others)) => return self.count(others),
                Some(None) | None => format!("replica {name} has yet to read it"),
            },
            Reply::Older | Reply::Silent(_) if !replica.ready => return,
            Reply::Older => format!("replica {name} is of a version that cannot be asked"),
            Reply::Silent(_) => format!("replica {name} does not answer"),
        };
        self.unknown.push(unknown);
    }

    fn count(&mut self, others: &ReplicaAnswers) {
        // Whom it concerns nowhere takes no time.
        if others.answers.proxies == 0 {
            return;
        }
        if self.answers.proxies == 0 {
            *self = Self { unknown: std::mem::take(&mut self.unknown), ..Self::of(others.clone()) };
            return;
        }
        let (sum, more) = (&mut self.answers, &others.answers);
        sum.proxies += more.proxies;
        sum.sent += more.sent;
        sum.acknowledged += more.acknowledged;
        sum.pending += more.pending;
        sum.pending_proxies.extend(more.pending_proxies.iter().cloned());
        sum.pending_proxies.sort();
        sum.refusing += more.refusing;
        sum.refusals.extend(more.refusals.iter().cloned());
        sum.took = sum.took.zip(more.took).map(|(one, other)| one.max(other));
        self.changed |= others.changed;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::mesh::{PodKey, ProxyId};

    fn replica(ready: bool) -> Replica {
        Replica { name: "two".into(), addresses: vec![], ready }
    }

    fn answers(proxies: u64, pending: &[&str], took: Option<u64>, changed: bool) -> ReplicaAnswers {
        let pending_proxies: Vec<_> = pending.iter().map(|pod| ProxyId(PodKey::new("shop", *pod))).collect();
        let pending = pending_proxies.len() as u64;
        let (acknowledged, took) = (proxies - pending, took.map(Duration::from_millis));
        let answers =
            Answers { proxies, sent: proxies, acknowledged, pending, pending_proxies, took, ..Answers::default() };
        ReplicaAnswers { answers, changed }
    }

    fn sum(own: ReplicaAnswers, other: ReplicaAnswers) -> Whole {
        let mut whole = Whole::of(own);
        whole.add(&replica(true), &Reply::Answers(vec![None, Some(other)]), 1);
        whole
    }

    #[test]
    fn proxies_of_all_replicas_count_and_the_slowest_says_how_long_it_took() {
        let whole = sum(answers(18, &[], Some(30), true), answers(19, &[], Some(400), true));
        assert_eq!(whole, Whole::of(answers(37, &[], Some(400), true)));
        let whole = sum(answers(18, &["b"], None, true), answers(19, &["a"], None, true));
        assert_eq!(whole, Whole::of(answers(37, &["a", "b"], None, true)));
        assert_eq!(sum(answers(2, &[], Some(3), true), answers(1, &["a"], None, true)).answers.took, None);
        let old = answers(2, &[], Some(0), false);
        assert_eq!(sum(old.clone(), answers(1, &[], Some(7), true)), Whole::of(answers(3, &[], Some(7), true)));
        assert_eq!(sum(old.clone(), old), Whole::of(answers(4, &[], Some(0), false)), "no time where nothing changed");
    }

    #[test]
    fn a_replica_without_such_proxies_takes_no_time() {
        let some = answers(3, &[], Some(7), true);
        for none in [ReplicaAnswers::default(), answers(0, &[], Some(0), true)] {
            assert_eq!(sum(some.clone(), none.clone()), Whole::of(some.clone()));
            assert_eq!(sum(none, some.clone()), Whole::of(some.clone()));
        }
        assert_eq!(sum(ReplicaAnswers::default(), ReplicaAnswers::default()), Whole::default());
    }

    #[test]
    fn what_is_not_known_is_waited_for_as_long_as_sidecars_are_sent_to_the_replica() {
        let unknown = |ready, reply| {
            let mut whole = Whole::of(answers(1, &[], Some(1), true));
            whole.add(&replica(ready), &reply, 0);
            whole.unknown.join("")
        };
        let silent = || Reply::Silent("refused".to_owned());
        assert_eq!(unknown(true, silent()), "replica two does not answer");
        assert_eq!(unknown(false, silent()), "");
        assert_eq!(unknown(true, Reply::Older), "replica two is of a version that cannot be asked");
        assert_eq!(unknown(false, Reply::Older), "");
        for ready in [true, false] {
            assert_eq!(unknown(ready, Reply::Answers(vec![None])), "replica two has yet to read it");
        }
    }
}
