//! What brings a client from one snapshot to another: found once for all that have the one and ask for the same.
//!
//! ```text
//!  (snapshot before, snapshot after, type, names) ──▶ Step: resources, and what the client had before
//! ```
//!
//! As with what they begin with (`beginnings`): the first stream has the two tables compared, the others share the list,
//! and by it their response, its bytes, and what they owe an answer to.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

use super::name_pool::WORTH_SHARING;
use super::registry::lock;
use super::subscription::{Names, Subscription};
use crate::mesh::ProxyId;
use crate::snapshot::{Pushed, Resource, ResourceType, Snapshot};

/// Steps that are kept: those of a few types, for streams that are not all at the same snapshot.
const KEPT: usize = 64;

/// What a client is to have that has what it is to have by an earlier snapshot. Nothing of that is gone.
#[derive(Debug)]
pub(crate) struct Step {
    /// What is new or different, in the order of names.
    pub(crate) resources: Arc<[Arc<Resource>]>,
    /// What the client has under the name of each.
    pub(crate) had: Box<[Option<Arc<Resource>>]>,
    /// How many of them are new.
    pub(crate) new: usize,
}

impl Step {
    /// `None` where something is gone: when it goes is for each stream to say.
    fn find(
        before: &Snapshot,
        after: &Snapshot,
        proxy: &ProxyId,
        kind: ResourceType,
        of: &Subscription,
    ) -> Option<Self> {
        let (mut resources, mut all_had) = (Vec::new(), Vec::new());
        for name in after.changed(before, proxy, kind, of.names()) {
            let (had, wanted) = (of.wanted(proxy, kind, before, &name), of.wanted(proxy, kind, after, &name));
            match wanted {
                Some(wanted) if had.as_ref().is_some_and(|had| had.version == wanted.version) => {}
                Some(wanted) => {
                    resources.push(wanted);
                    all_had.push(had);
                }
                None if had.is_some() => return None,
                None => {}
            }
        }
        let new = all_had.iter().filter(|had| had.is_none()).count();
        Some(Self { resources: resources.into(), had: all_had.into(), new })
    }
}

/// The steps that were found last.
#[derive(Debug, Default)]
pub(crate) struct Steps(Mutex<VecDeque<(Question, Option<Arc<Step>>)>>);

/// All that a [`Step`] depends on, for proxies that have nothing of the type for themselves and see all that is shared.
#[derive(Debug)]
struct Question {
    before: Weak<Snapshot>,
    after: Weak<Snapshot>,
    kind: ResourceType,
    /// The set, which streams share; `None` if it is empty.
    names: Option<Weak<Names>>,
    wildcard: bool,
}

impl Question {
    fn is(&self, before: &Arc<Snapshot>, after: &Arc<Snapshot>, kind: ResourceType, of: &Subscription) -> bool {
        // The weak handles keep the places from being taken by others.
        let names = of.shared_names();
        let same_names = match &self.names {
            Some(own) => std::ptr::eq(own.as_ptr(), Arc::as_ptr(&names)),
            None => names.is_empty(),
        };
        same_names
            && (self.kind, self.wildcard) == (kind, of.wildcard())
            && std::ptr::eq(self.before.as_ptr(), Arc::as_ptr(before))
            && std::ptr::eq(self.after.as_ptr(), Arc::as_ptr(after))
    }

    fn may_be_asked(&self) -> bool {
        let alive = |snapshot: &Weak<Snapshot>| snapshot.strong_count() > 0;
        alive(&self.before) && alive(&self.after) && self.names.as_ref().is_none_or(|names| names.strong_count() > 0)
    }
}

impl Steps {
    /// What brings `proxy` from `before` to `after`; `None` where something is gone, or nobody shares it.
    pub(crate) fn between(
        &self,
        before: &Arc<Snapshot>,
        after: &Arc<Snapshot>,
        proxy: &ProxyId,
        kind: ResourceType,
        of: &Subscription,
    ) -> Option<Arc<Step>> {
        if !(of.wildcard() || of.names().len() >= WORTH_SHARING)
            || !shared(before, proxy, kind, of)
            || !shared(after, proxy, kind, of)
        {
            return None;
        }
        let is_this = |(question, _): &&(Question, _)| question.is(before, after, kind, of);
        if let Some((_, known)) = lock(&self.0).iter().find(is_this) {
            return known.clone();
        }
        let step = Step::find(before, after, proxy, kind, of).map(Arc::new);
        let names = of.shared_names();
        let question = Question {
            before: Arc::downgrade(before),
            after: Arc::downgrade(after),
            kind,
            names: (!names.is_empty()).then(|| Arc::downgrade(&names)),
            wildcard: of.wildcard(),
        };
        let mut kept = lock(&self.0);
        kept.retain(|(question, _)| question.may_be_asked());
        kept.truncate(KEPT - 1);
        kept.push_front((question, step.clone()));
        step
    }
}

/// Whether the proxy sees what others do that ask for the same.
fn shared(snapshot: &Snapshot, proxy: &ProxyId, kind: ResourceType, of: &Subscription) -> bool {
    let Some(view) = snapshot.view(proxy) else { return false };
    let everything = kind != ResourceType::Cluster || !of.wildcard() || view.pushed == Pushed::All;
    everything && !view.own.iter().any(|own| own.kind == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::PodKey;
    use crate::snapshot::ResourceType::{Endpoints, Listener};
    use crate::snapshot::{Change, View};
    use crate::xds::testing::*;

    fn subscribed(names: &[&str]) -> Subscription {
        let mut subscription = Subscription::default();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        subscription.delta(Endpoints, &names, &[], |name: &str| name.into()).expect("few names");
        subscription
    }

    fn texts(step: &Step) -> Vec<(String, bool)> {
        let named = step.resources.iter().zip(&step.had);
        named.map(|(resource, had)| (resource.name.to_string(), had.is_some())).collect()
    }

    #[test]
    fn streams_share_the_step_between_two_snapshots() {
        let before = Arc::new(Snapshot::empty().with([on_demand(&[]), put(Endpoints, "a", 1), put(Endpoints, "b", 1)]));
        let after = Arc::new(before.with([put(Endpoints, "b", 2), put(Endpoints, "c", 1), put(Endpoints, "d", 1)]));
        let (steps, of) = (Steps::default(), subscribed(&["a", "b", "c"]));
        let step = steps.between(&before, &after, &proxy(), Endpoints, &of).expect("a step");
        assert_eq!((texts(&step), step.new), (vec![("b".to_owned(), true), ("c".to_owned(), false)], 1));
        let again = steps.between(&before, &after, &proxy(), Endpoints, &of).expect("a step");
        assert!(Arc::ptr_eq(&step, &again));
        let other = steps.between(&before, &after, &proxy(), Endpoints, &subscribed(&["a", "d"])).expect("a step");
        assert_eq!(texts(&other), [("d".to_owned(), false)]);
        let back = steps.between(&after, &before, &proxy(), Endpoints, &of);
        assert!(back.is_none(), "c is gone");
    }

    #[test]
    fn what_one_sees_alone_is_shared_with_nobody() {
        let before = Arc::new(Snapshot::empty().with([on_demand(&[]), put(Endpoints, "a", 1), put(Endpoints, "b", 1)]));
        let after = Arc::new(before.with([put(Endpoints, "b", 2)]));
        let of = subscribed(&["a", "b"]);
        let steps = Steps::default();
        assert!(
            steps.between(&before, &after, &ProxyId(PodKey::new("shop", "other")), Endpoints, &of).is_none(),
            "it is not known"
        );
        let owner = |snapshot: &Snapshot| {
            let view = View { own: vec![resource(Listener, "in", 1)], pushed: Pushed::All };
            Arc::new(snapshot.with([Change::PutView(proxy(), Arc::new(view))]))
        };
        let (before, after) = (owner(&before), owner(&after));
        assert!(steps.between(&before, &after, &proxy(), Endpoints, &of).is_some());
        let mut wildcard = Subscription::default();
        wildcard.delta(Listener, &[], &[], |name: &str| name.into()).expect("no names");
        assert!(steps.between(&before, &after, &proxy(), Listener, &wildcard).is_none());
    }

    #[test]
    fn what_nobody_asks_for_any_more_is_not_kept() {
        let snapshot = |content| Arc::new(Snapshot::empty().with([on_demand(&[]), put(Endpoints, "a", content)]));
        let (steps, of) = (Steps::default(), subscribed(&["a", "b"]));
        for content in 2..9 {
            steps.between(&snapshot(1), &snapshot(content), &proxy(), Endpoints, &of);
        }
        assert_eq!(lock(&steps.0).len(), 1);
    }
}
