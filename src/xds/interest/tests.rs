//! The index against a plain comparison: whoever sees a difference is named.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::mesh::PodKey;
use crate::snapshot::ResourceType::{Cluster, Endpoints, Listener};
use crate::xds::name_pool::NamePool;
use crate::xds::subscription::{Intern, Subscription};
use crate::xds::testing::*;

const KINDS: [ResourceType; 3] = [Cluster, Endpoints, Listener];
const NAMES: [&str; 4] = ["a", "b", "c", "*"];
const STREAMS: Slot = 3;

#[derive(Clone, Debug)]
enum Step {
    Subscribe(Slot, ResourceType, Vec<&'static str>, Vec<&'static str>),
    Reconnect(Slot),
    Publish(Vec<Change>),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = || prop::sample::select(&KINDS[..]);
    let names = || prop::collection::vec(prop::sample::select(&NAMES[..]), 0..3);
    let resource_name = || prop::sample::select(&NAMES[..3]);
    let pushed = prop::collection::btree_set(resource_name().prop_map(ResourceName::from), 0..3);
    let pushed = prop_oneof![Just(Pushed::All), pushed.prop_map(|names| Pushed::Only(Arc::new(names)))];
    let change = prop_oneof![
        4 => (kind(), resource_name(), 0u8..4).prop_map(|(k, n, c)| put(k, n, c)),
        2 => (kind(), resource_name()).prop_map(|(k, n)| gone(k, n)),
        2 => (0..STREAMS, pushed).prop_map(|(slot, pushed)| {
            Change::PutView(proxy_of(slot), Arc::new(View { own: vec![], pushed }))
        }),
        1 => (0..STREAMS).prop_map(|slot| Change::RemoveView(proxy_of(slot))),
        1 => (0u8..3).prop_map(|c| Change::Fallback(Arc::new(Pods(c)))),
    ];
    prop_oneof![
        5 => (0..STREAMS, kind(), names(), names()).prop_map(|(s, k, a, b)| Step::Subscribe(s, k, a, b)),
        1 => (0..STREAMS).prop_map(Step::Reconnect),
        5 => prop::collection::vec(change, 1..4).prop_map(Step::Publish),
    ]
}

/// Streams share sets of names.
struct Pooled<'a>(&'a NamePool);

impl Intern for Pooled<'_> {
    fn name(&self, name: &str) -> ResourceName {
        name.into()
    }

    fn known(&self, names: &[String]) -> Option<Arc<Names>> {
        self.0.known(names)
    }

    fn share(&self, names: Arc<Names>) -> Arc<Names> {
        self.0.share(names)
    }
}

fn proxy_of(slot: Slot) -> ProxyId {
    ProxyId(PodKey::new("shop", format!("web-{slot}")))
}

fn names_of(
    subscriptions: &HashMap<(Slot, ResourceType), Subscription>,
    slot: Slot,
) -> Vec<(ResourceType, Arc<Names>)> {
    let of_kind = |kind: ResourceType| Some((kind, subscriptions.get(&(slot, kind))?.shared_names()));
    KINDS.into_iter().filter_map(of_kind).collect()
}

/// What the stream is to have by its subscriptions.
fn seen(
    snapshot: &Snapshot,
    subscriptions: &HashMap<(Slot, ResourceType), Subscription>,
    slot: Slot,
) -> Vec<(Key, String)> {
    let mut seen = Vec::new();
    for kind in KINDS {
        let Some(subscription) = subscriptions.get(&(slot, kind)) else { continue };
        let mut names = subscription.names().clone();
        if subscription.wildcard() {
            names.extend(snapshot.wildcard(&proxy_of(slot), kind));
        }
        for name in names {
            if let Some(resource) = snapshot.get(&proxy_of(slot), kind, &name) {
                seen.push((Key { kind, name }, resource.version.to_string()));
            }
        }
    }
    seen
}

proptest! {
    #[test]
    fn whoever_sees_a_difference_is_concerned(steps in prop::collection::vec(step(), 1..60)) {
        let mut interest = Interest::default();
        let mut snapshot = Snapshot::empty();
        let mut subscriptions: HashMap<(Slot, ResourceType), Subscription> = HashMap::new();
        let pool = NamePool::default();
        for slot in 0..STREAMS {
            interest.enter(slot, &proxy_of(slot), None);
        }
        for step in steps {
            match step {
                Step::Subscribe(slot, kind, add, drop) => {
                    let strings = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect::<Vec<_>>();
                    let subscription = subscriptions.entry((slot, kind)).or_default();
                    let changed = subscription.delta(kind, &strings(add), &strings(drop), Pooled(&pool));
                    if let Some(changed) = changed.expect("few names").of_names() {
                        interest.subscribed(slot, kind, &changed);
                    }
                }
                Step::Reconnect(slot) => {
                    interest.leave(slot, &proxy_of(slot), names_of(&subscriptions, slot));
                    subscriptions.retain(|(other, _), _| *other != slot);
                    for (kind, name) in KINDS.into_iter().flat_map(|kind| NAMES.map(|name| (kind, name))) {
                        let key = Key { kind, name: name.into() };
                        prop_assert!(!interest.of(&key).contains(slot), "it is named after its end");
                    }
                    interest.enter(slot, &proxy_of(slot), snapshot.view(&proxy_of(slot)).map(|view| &**view));
                }
                Step::Publish(changes) => {
                    let next = snapshot.with(changes);
                    let steps = next.since(&snapshot);
                    for step in &steps {
                        match step {
                            Change::PutView(proxy, view) => interest.viewed(proxy, Some(view)),
                            Change::RemoveView(proxy) => interest.viewed(proxy, None),
                            _ => {}
                        }
                    }
                    let mut concerned = RoaringBitmap::new();
                    steps.iter().for_each(|step| concerned |= interest.concerned(step, &snapshot, &next));
                    for slot in 0..STREAMS {
                        let differs = seen(&snapshot, &subscriptions, slot) != seen(&next, &subscriptions, slot);
                        prop_assert!(!differs || concerned.contains(slot), "stream {} is not woken", slot);
                    }
                    snapshot = next;
                }
            }
        }
    }
}

#[test]
fn a_change_concerns_those_who_use_it_and_nobody_else() {
    let mut interest = Interest::default();
    for slot in 0..1_000 {
        interest.enter(slot, &proxy_of(slot), None);
        let changed = Changed {
            added: std::sync::Arc::new([format!("10.96.0.{}:80", slot % 100).into()].into()),
            ..Changed::default()
        };
        interest.subscribed(slot, Endpoints, &changed);
    }
    let empty = Snapshot::empty();
    let concerned = interest.concerned(&put(Endpoints, "10.96.0.7:80", 1), &empty, &empty);
    assert_eq!(concerned.iter().collect::<Vec<_>>(), (7..1_000).step_by(100).collect::<Vec<_>>());
    assert!(interest.concerned(&put(Cluster, "10.96.0.7:80", 1), &empty, &empty).is_empty());
}
