//! When TrafficFaults end by themselves. Pure: time is passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use crate::mesh::object::TrafficFault;
use crate::mesh::{Diagnostic, ObjectRef};

/// The faults that there are, and when they end.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    faults: BTreeMap<ObjectRef, Fault>,
    /// The ends that are yet to come.
    ends: BTreeSet<(SystemTime, ObjectRef)>,
}

#[derive(Debug)]
struct Fault {
    /// Counts as its creation, when nobody says when that was: nobody stamps the objects of a directory.
    first_seen: SystemTime,
    ends: Option<SystemTime>,
    after: Duration,
}

impl Expiry {
    /// Notes a fault that is new or different; what its author should know if it is over.
    pub(super) fn note(&mut self, object: &ObjectRef, fault: &TrafficFault, now: SystemTime) -> Option<Diagnostic> {
        let first_seen = self.faults.get(object).map_or(now, |fault| fault.first_seen);
        self.forget(object);
        let created = u64::try_from(fault.created).ok().filter(|seconds| *seconds > 0);
        let created = created.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        let ends = fault.expires_after.and_then(|after| created.unwrap_or(first_seen).checked_add(after));
        let after = fault.expires_after.unwrap_or_default();
        self.faults.insert(object.clone(), Fault { first_seen, ends, after });
        match ends {
            Some(ends) if ends <= now => Some(over(object, after)),
            Some(ends) => {
                self.ends.insert((ends, object.clone()));
                None
            }
            None => None,
        }
    }

    /// The fault is gone.
    pub(super) fn forget(&mut self, object: &ObjectRef) {
        if let Some(Fault { ends: Some(ends), .. }) = self.faults.remove(object) {
            self.ends.remove(&(ends, object.clone()));
        }
    }

    /// When the next fault ends.
    pub(super) fn next(&self) -> Option<SystemTime> {
        self.ends.first().map(|(ends, _)| *ends)
    }

    /// The faults that have ended since the last time, each with what its author should know.
    pub(super) fn due(&mut self, now: SystemTime) -> Vec<(ObjectRef, Diagnostic)> {
        let mut due = Vec::new();
        while self.next().is_some_and(|ends| ends <= now) {
            let Some((_, object)) = self.ends.pop_first() else { break };
            let after = self.faults.get(&object).map(|fault| fault.after).unwrap_or_default();
            let told = over(&object, after);
            due.push((object, told));
        }
        due
    }
}

fn over(object: &ObjectRef, after: Duration) -> Diagnostic {
    let reason = format!("the fault has ended by itself, {after:?} after its creation, and hits nothing any more");
    let help = "delete it; to go on, create it again or give it more time";
    Diagnostic::warning("spec.expiresAfter", reason, help).about(object.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::fixture::fault;
    use crate::mesh::object::Object;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn lasting(created: i64, seconds: u64) -> (ObjectRef, TrafficFault) {
        let fault = TrafficFault {
            created,
            expires_after: Some(Duration::from_secs(seconds)),
            ..fault("shop/slow", &["cart"])
        };
        (Object::TrafficFault(fault.clone()).object_ref(), fault)
    }

    #[test]
    fn a_fault_ends_after_its_time_from_its_creation() {
        let mut expiry = Expiry::default();
        let (object, fault) = lasting(1000, 600);
        assert_eq!(expiry.note(&object, &fault, at(1100)), None);
        assert_eq!(expiry.next(), Some(at(1600)));
        assert_eq!(expiry.due(at(1599)), []);
        let due = expiry.due(at(1600));
        assert_eq!(due.iter().map(|(object, _)| object.to_string()).collect::<Vec<_>>(), ["TrafficFault shop/slow"]);
        assert!(due[0].1.reason.contains("600s after its creation"), "{}", due[0].1);
        assert_eq!((expiry.next(), expiry.due(at(9999)).len()), (None, 0), "once");
        assert!(expiry.note(&object, &fault, at(1700)).is_some(), "an edit does not bring it back");
        assert_eq!(expiry.note(&object, &lasting(1000, 6000).1, at(1700)), None, "more time does");
        assert_eq!(expiry.next(), Some(at(7000)));
    }

    #[test]
    fn without_a_creation_it_counts_from_when_it_was_first_seen_until_it_is_gone() {
        let mut expiry = Expiry::default();
        let (object, fault) = lasting(0, 600);
        expiry.note(&object, &fault, at(1000));
        expiry.note(&object, &fault, at(1500));
        assert_eq!(expiry.next(), Some(at(1600)));
        expiry.forget(&object);
        assert_eq!(expiry.next(), None);
        expiry.note(&object, &fault, at(2000));
        assert_eq!(expiry.next(), Some(at(2600)), "made again");
    }

    #[test]
    fn a_fault_without_an_end_has_none() {
        let mut expiry = Expiry::default();
        let (object, fault) = lasting(1000, 600);
        expiry.note(&object, &fault, at(1000));
        expiry.note(&object, &TrafficFault { expires_after: None, ..fault.clone() }, at(1100));
        assert_eq!(expiry.next(), None);
        let for_ever = TrafficFault { expires_after: Some(Duration::MAX), ..fault };
        assert_eq!((expiry.note(&object, &for_ever, at(1100)), expiry.next()), (None, None));
    }
}
