//! The difference of two snapshots is checked against a plain comparison of all that a proxy can see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::mesh::{PodKey, ProxyId};

#[derive(Debug)]
struct Echo(u8);

impl Fallback for Echo {
    fn cluster(&self, name: &ResourceName) -> Option<Arc<Resource>> {
        name.as_str().starts_with('f').then(|| resource(ResourceType::Cluster, name.as_str(), self.0))
    }

    fn since(&self, _: &dyn Fallback) -> Hosts {
        Hosts::All
    }
}

fn proxy() -> ProxyId {
    ProxyId(PodKey::new("shop", "web"))
}

fn resource(kind: ResourceType, name: &str, content: u8) -> Arc<Resource> {
    Arc::new(Resource::new(kind, name, Bytes::from(vec![content]), None))
}

const KINDS: [ResourceType; 4] =
    [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::Listener, ResourceType::Route];
const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f1", "f2", "g"];

fn names() -> impl Strategy<Value = BTreeSet<ResourceName>> {
    prop::collection::btree_set(prop::sample::select(&NAMES[..]).prop_map(ResourceName::from), 0..5)
}

fn change() -> impl Strategy<Value = Change> {
    let kind = || prop::sample::select(&KINDS[..]);
    let name = || prop::sample::select(&NAMES[..]);
    let own = prop::collection::vec((kind(), name(), 0u8..3).prop_map(|(k, n, c)| resource(k, n, c)), 0..3);
    let pushed = prop_oneof![Just(Pushed::All), names().prop_map(|names| Pushed::Only(Arc::new(names)))];
    prop_oneof![
        6 => (kind(), name(), 0u8..3).prop_map(|(k, n, c)| Change::Put(resource(k, n, c))),
        4 => (kind(), name()).prop_map(|(k, n)| Change::Remove(k, n.into())),
        2 => (own, pushed).prop_map(|(own, pushed)| Change::PutView(proxy(), Arc::new(View { own, pushed }))),
        1 => Just(Change::RemoveView(proxy())),
        1 => (0u8..3).prop_map(|c| Change::Fallback(Arc::new(Echo(c)))),
    ]
}

/// What the proxy has if it subscribed to the wildcard and to `asked`.
fn seen(snapshot: &Snapshot, kind: ResourceType, asked: &BTreeSet<ResourceName>) -> BTreeMap<ResourceName, Version> {
    let names = &snapshot.wildcard(&proxy(), kind) | asked;
    names.into_iter().filter_map(|n| snapshot.get(&proxy(), kind, &n).map(|r| (n, r.version))).collect()
}

proptest! {
    #[test]
    fn the_difference_applied_to_the_base_gives_the_next(
        first in prop::collection::vec(change(), 0..20),
        second in prop::collection::vec(change(), 0..8),
        asked in names(),
    ) {
        let a = Snapshot::empty().with(first);
        let b = a.with(second);
        let stepped = a.with(b.since(&a));
        prop_assert!(b.since(&stepped).is_empty() && stepped.since(&b).is_empty());
        for kind in KINDS {
            let mut applied = seen(&a, kind, &asked);
            for name in b.changed(&a, &proxy(), kind, &asked) {
                let visible = asked.contains(&name) || b.in_wildcard(&proxy(), kind, &name);
                match b.get(&proxy(), kind, &name).filter(|_| visible) {
                    Some(resource) => applied.insert(name, resource.version),
                    None => applied.remove(&name),
                };
            }
            prop_assert_eq!(applied, seen(&b, kind, &asked), "{:?}", kind);
        }
    }
}

#[test]
fn equal_stops_here() {
    let first = resource(ResourceType::Cluster, "a", 1);
    let a = Snapshot::empty().with([
        Change::PutView(proxy(), Arc::new(View { own: vec![], pushed: Pushed::All })),
        Change::Put(first.clone()),
    ]);
    let b = a.with([
        Change::Put(resource(ResourceType::Cluster, "a", 1)),
        Change::Remove(ResourceType::Route, "nothing".into()),
        Change::PutView(proxy(), Arc::new(View { own: vec![], pushed: Pushed::All })),
    ]);
    let kept = b.get(&proxy(), ResourceType::Cluster, &"a".into()).expect("the cluster");
    assert!(Arc::ptr_eq(&kept, &first));
    assert_eq!((a.number(), b.number()), (1, 1));
    assert!(b.changed(&a, &proxy(), ResourceType::Cluster, []).is_empty());
}

#[test]
fn its_own_resource_shadows_the_shared_one() {
    let own = resource(ResourceType::Listener, "inbound", 1);
    let view = View { own: vec![own.clone()], pushed: Pushed::All };
    let snapshot = Snapshot::empty()
        .with([Change::PutView(proxy(), Arc::new(view)), Change::Put(resource(ResourceType::Listener, "inbound", 2))]);
    assert_eq!(snapshot.get(&proxy(), ResourceType::Listener, &"inbound".into()), Some(own));
    let stranger = ProxyId(PodKey::new("shop", "other"));
    assert_eq!(snapshot.get(&stranger, ResourceType::Listener, &"inbound".into()), None);
}

#[test]
fn a_type_reads_back_its_url_and_a_version_its_text() {
    for kind in ResourceType::ALL {
        assert_eq!(ResourceType::from_type_url(kind.type_url()), Some(kind));
    }
    let version = resource(ResourceType::Route, "r", 7).version;
    assert_eq!(Version::parse(&version.to_string()), Some(version));
    assert_eq!(Version::parse("1"), None);
}
