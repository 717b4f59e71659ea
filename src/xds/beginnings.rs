//! What a client that has nothing is sent: found once for all that ask for the same.
//!
//! ```text
//!  (snapshot, type, names, what is pushed) ──▶ Beginning: resources, and names that do not exist
//! ```
//!
//! In a mesh that pushes everything, thousands of proxies begin with the same thousand resources. The first of them
//! has the table searched; the others share the list, and by it their response, its bytes, and what they owe an answer
//! to. A client that comes back is compared with the same list.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::name_pool::WORTH_SHARING;
use super::registry::lock;
use super::subscription::{Names, Subscription};
use crate::mesh::ProxyId;
use crate::snapshot::{Pushed, Resource, ResourceName, ResourceType, Seen, Snapshot, Version};

/// Lists that are kept: those of a few types, for a few snapshots and kinds of proxies.
const KEPT: usize = 16;

/// What a client that has nothing is to have.
#[derive(Debug, Default)]
pub(crate) struct Beginning {
    /// All of it: what it names, then the rest of its wildcard.
    pub(crate) resources: Arc<[Arc<Resource>]>,
    /// Names that it asks for and that do not exist.
    pub(crate) missing: Vec<ResourceName>,
    versions: OnceLock<HashMap<ResourceName, Version>>,
}

impl Beginning {
    /// Whether a client that claims these versions has exactly this.
    pub(crate) fn is_had(&self, claims: &HashMap<String, String>) -> bool {
        let versions = || self.resources.iter().map(|resource| (resource.name.clone(), resource.version)).collect();
        let same = |(name, version): (&String, &String)| {
            let known = self.versions.get_or_init(versions).get(name.as_str());
            known.is_some_and(|known| Version::parse(version) == Some(*known))
        };
        self.missing.is_empty() && claims.len() == self.resources.len() && claims.iter().all(same)
    }

    fn find(seen: Seen<'_>, kind: ResourceType, subscription: &Subscription) -> Self {
        let (mut resources, mut missing) = (Vec::new(), Vec::new());
        let names = subscription.names();
        for name in names {
            match seen.get(kind, name) {
                Some(resource) => resources.push(resource),
                None => missing.push(name.clone()),
            }
        }
        if subscription.wildcard() {
            resources.extend(seen.wildcard(kind).into_iter().filter(|resource| !names.contains(&resource.name)));
        }
        Self { resources: resources.into(), missing, versions: OnceLock::new() }
    }
}

/// The lists that were found last.
#[derive(Debug, Default)]
pub(crate) struct Beginnings(Mutex<VecDeque<(Question, Arc<Beginning>)>>);

/// All that a [`Beginning`] depends on, for proxies that have nothing of the type for themselves.
#[derive(Debug)]
struct Question {
    snapshot: Weak<Snapshot>,
    kind: ResourceType,
    /// The set, which streams share; `None` if it is empty.
    names: Option<Weak<Names>>,
    /// What the wildcard contains, if it is subscribed to.
    wildcard: Option<Pushed>,
}

impl Question {
    fn is(&self, snapshot: &Arc<Snapshot>, kind: ResourceType, names: &Arc<Names>, wildcard: Option<&Pushed>) -> bool {
        // The weak handles keep the places from being taken by others.
        let same_names = match &self.names {
            Some(own) => std::ptr::eq(own.as_ptr(), Arc::as_ptr(names)),
            None => names.is_empty(),
        };
        let same_snapshot = std::ptr::eq(self.snapshot.as_ptr(), Arc::as_ptr(snapshot));
        self.kind == kind && same_snapshot && same_names && self.wildcard.as_ref() == wildcard
    }

    fn may_be_asked(&self) -> bool {
        self.snapshot.strong_count() > 0 && self.names.as_ref().is_none_or(|names| names.strong_count() > 0)
    }
}

impl Beginnings {
    /// What `proxy` is to have of a type by `snapshot`; `None` if it is not known.
    pub(crate) fn of(
        &self,
        proxy: &ProxyId,
        snapshot: &Arc<Snapshot>,
        kind: ResourceType,
        subscription: &Subscription,
    ) -> Option<Arc<Beginning>> {
        let (view, seen) = (snapshot.view(proxy)?, snapshot.seen_by(proxy)?);
        let names = subscription.shared_names();
        let wildcard = subscription.wildcard().then_some(&view.pushed);
        let its_own = view.own.iter().any(|own| own.kind == kind);
        if its_own || names.len() < WORTH_SHARING && wildcard.is_none() {
            return Some(Arc::new(Beginning::find(seen, kind, subscription)));
        }
        let is_this = |(question, _): &&(Question, _)| question.is(snapshot, kind, &names, wildcard);
        if let Some((_, known)) = lock(&self.0).iter().find(is_this) {
            return Some(known.clone());
        }
        let beginning = Arc::new(Beginning::find(seen, kind, subscription));
        if beginning.resources.len() >= WORTH_SHARING {
            let question = Question {
                snapshot: Arc::downgrade(snapshot),
                kind,
                names: (!names.is_empty()).then(|| Arc::downgrade(&names)),
                wildcard: wildcard.cloned(),
            };
            let mut kept = lock(&self.0);
            kept.retain(|(question, _)| question.may_be_asked());
            kept.truncate(KEPT - 1);
            kept.push_front((question, beginning.clone()));
        }
        Some(beginning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::PodKey;
    use crate::snapshot::ResourceType::{Cluster, Endpoints};
    use crate::xds::testing::*;

    fn subscribed(names: &[&str]) -> Subscription {
        let (mut subscription, names) = (Subscription::default(), names.iter().map(|name| (*name).to_owned()));
        let names: Vec<_> = names.collect();
        subscription.delta(Endpoints, &names, &[], |name: &str| name.into()).expect("few names");
        subscription
    }

    fn snapshot() -> Arc<Snapshot> {
        let put = ["a", "b", "c"].into_iter().flat_map(|name| [put(Endpoints, name, 1), put(Cluster, name, 1)]);
        Arc::new(Snapshot::empty().with([eager()]).with(put))
    }

    #[test]
    fn streams_that_ask_for_the_same_share_it_and_others_do_not() {
        let (beginnings, snapshot, names) = (Beginnings::default(), snapshot(), subscribed(&["a", "b", "c", "d"]));
        let of = |snapshot, kind, names: &Subscription| beginnings.of(&proxy(), snapshot, kind, names).expect("known");
        let first = of(&snapshot, Endpoints, &names);
        assert_eq!((first.resources.len(), &first.missing[..]), (3, &["d".into()][..]));
        assert!(Arc::ptr_eq(&first, &of(&snapshot, Endpoints, &names.clone())));
        assert!(!Arc::ptr_eq(&first, &of(&snapshot, Endpoints, &subscribed(&["a", "b", "c", "d"]))), "another set");
        assert!(!Arc::ptr_eq(&first, &of(&snapshot, Cluster, &names)));
        let wildcard = || {
            let mut subscription = Subscription::default();
            subscription.delta(Cluster, &[], &[], |name: &str| name.into()).expect("no names");
            subscription
        };
        assert!(Arc::ptr_eq(&of(&snapshot, Cluster, &wildcard()), &of(&snapshot, Cluster, &wildcard())));
        let next = Arc::new(snapshot.with([put(Endpoints, "d", 1)]));
        assert_eq!(of(&next, Endpoints, &names).resources.len(), 4);
        assert!(
            beginnings.of(&ProxyId(PodKey::new("shop", "other")), &snapshot, Endpoints, &names).is_none(),
            "it is not known"
        );
    }

    #[test]
    fn whoever_claims_exactly_this_has_it() {
        let (beginnings, snapshot) = (Beginnings::default(), snapshot());
        let beginning = beginnings.of(&proxy(), &snapshot, Endpoints, &subscribed(&["a", "b", "c"])).expect("known");
        let claims = |names: &[&str], content| -> HashMap<String, String> {
            let version = |name: &&str| resource(Endpoints, name, content).version.to_string();
            names.iter().map(|name| ((*name).to_owned(), version(name))).collect()
        };
        assert!(beginning.is_had(&claims(&["a", "b", "c"], 1)));
        for (names, content) in
            [(&["a", "b"][..], 1), (&["a", "b", "d"], 1), (&["a", "b", "c", "d"], 1), (&["a", "b", "c"], 2)]
        {
            assert!(!beginning.is_had(&claims(names, content)), "{names:?} {content}");
        }
        let more = beginnings.of(&proxy(), &snapshot, Endpoints, &subscribed(&["a", "b", "c", "d"])).expect("known");
        assert!(!more.is_had(&claims(&["a", "b", "c"], 1)), "it is to be told that there is no d");
    }
}
