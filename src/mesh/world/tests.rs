use proptest::prelude::*;

use super::*;
use crate::mesh::fixture::*;
use crate::mesh::object::{RateLimit, Requests};

fn apply(world: &mut World, object: Object) -> Dirty {
    world.apply(Event::Apply(object))
}

#[test]
fn an_event_that_changes_nothing_touches_nothing() {
    let mut world = World::default();
    let cart = Object::Service(service("shop/cart").ip("10.96.0.5").http(80));
    assert!(!apply(&mut world, cart.clone()).is_empty());
    assert!(apply(&mut world, cart.clone()).is_empty());
    assert!(!world.apply(Event::Delete(cart.object_ref())).is_empty());
    assert!(world.apply(Event::Delete(cart.object_ref())).is_empty());
}

#[test]
fn a_pod_touches_the_services_it_is_behind_and_the_roots_that_split_to_them() {
    let mut world = World::default();
    let cart = pod("shop/cart-1", "10.244.0.2");
    apply(&mut world, Object::Service(service("shop/cart-v1").http(80)));
    apply(&mut world, Object::Service(service("shop/other").http(80)));
    apply(&mut world, Object::EndpointSlice(slice("shop/s", "cart-v1", &[(80, 8080)], &[&cart])));
    apply(&mut world, Object::TrafficSplit(split("shop/split", "cart", &[("cart-v1", 1)])));
    let dirty = apply(&mut world, Object::Pod(cart));
    assert_eq!(dirty.services, BTreeSet::from([service_key("shop/cart"), service_key("shop/cart-v1")]));
    assert_eq!(dirty.pods, BTreeSet::from([pod_key("shop/cart-1")]));
}

#[test]
fn a_pod_whose_labels_change_touches_the_services_that_select_it_before_and_after() {
    let mut world = World::default();
    apply(&mut world, Object::Service(service("shop/a").http(80).selects("app", "a")));
    apply(&mut world, Object::Service(service("shop/b").http(80).selects("app", "b")));
    let mut changing = pod("shop/a-1", "10.244.0.2");
    assert_eq!(apply(&mut world, Object::Pod(changing.clone())).services, BTreeSet::from([service_key("shop/a")]));
    changing.labels.insert("app".into(), "b".into());
    let dirty = apply(&mut world, Object::Pod(changing));
    assert_eq!(dirty.services, BTreeSet::from([service_key("shop/a"), service_key("shop/b")]));
}

#[test]
fn a_route_group_touches_whoever_splits_or_allows_by_it() {
    let mut world = World::default();
    let mut by_match = split("shop/split", "cart", &[("cart-v1", 1)]);
    by_match.matches = vec!["g".into()];
    apply(&mut world, Object::TrafficSplit(by_match));
    apply(&mut world, Object::Pod(pod("shop/cart-1", "10.244.0.2")));
    apply(&mut world, Object::TrafficTarget(target("shop/t", "cart", &["shop/web"], vec![http_rule("g")])));
    let dirty = apply(&mut world, Object::HttpRouteGroup(route_group("shop/g", &["/"])));
    assert_eq!(dirty.services, BTreeSet::from([service_key("shop/cart")]));
    assert_eq!(dirty.pods, BTreeSet::from([pod_key("shop/cart-1")]));
    assert!(apply(&mut world, Object::HttpRouteGroup(route_group("shop/unused", &["/"]))).is_empty());
}

#[test]
fn a_target_that_moves_touches_the_pods_of_both_accounts() {
    let mut world = World::default();
    apply(&mut world, Object::Pod(pod("shop/a-1", "10.244.0.2")));
    apply(&mut world, Object::Pod(pod("shop/b-1", "10.244.0.3")));
    apply(&mut world, Object::TrafficTarget(target("shop/t", "a", &[], vec![])));
    let dirty = apply(&mut world, Object::TrafficTarget(target("shop/t", "b", &[], vec![])));
    assert_eq!(dirty.pods, BTreeSet::from([pod_key("shop/a-1"), pod_key("shop/b-1")]));
}

#[test]
fn a_slice_that_changes_its_service_leaves_nothing_behind() {
    let mut world = World::default();
    let cart = pod("shop/cart-1", "10.244.0.2");
    apply(&mut world, Object::Service(service("shop/a").http(80)));
    apply(&mut world, Object::Service(service("shop/b").http(80)));
    apply(&mut world, Object::Pod(cart.clone()));
    apply(&mut world, Object::EndpointSlice(slice("shop/s", "a", &[(80, 8080)], &[&cart])));
    let dirty = apply(&mut world, Object::EndpointSlice(slice("shop/s", "b", &[(80, 8080)], &[&cart])));
    assert_eq!(dirty.services, BTreeSet::from([service_key("shop/a"), service_key("shop/b")]));
    assert_eq!(world.slices_of(&service_key("shop/a")).count(), 0);
    let behind: Vec<_> = world.services_of_pod(&cart).map(|service| service.key.clone()).collect();
    assert_eq!(behind, [service_key("shop/b")]);
}

#[test]
fn an_upstream_that_appears_touches_the_pods_that_declare_it() {
    let mut world = World::default();
    let mut web = pod("shop/web-1", "10.244.0.2");
    web.upstreams.insert(upstream("cart.shop"));
    apply(&mut world, Object::Pod(web));
    let dirty = apply(&mut world, Object::Service(service("shop/cart").ip("10.96.0.5").http(80)));
    assert_eq!(dirty.pods, BTreeSet::from([pod_key("shop/web-1")]));
}

/// How many index entries are looked at to find the Services of a pod, and the pods of a Service.
fn looked_at(size: usize, labels: [(&str, bool); 2]) -> (usize, usize) {
    let mut world = World::default();
    let of = |number: usize| {
        let value = |own: bool| if own { format!("app-{number}") } else { "mesh".to_owned() };
        labels.map(|(name, own)| (name.to_owned(), value(own)))
    };
    for number in 0..size {
        let mut selecting = service(&format!("shop/app-{number}")).http(80);
        selecting.selector = of(number).into();
        let mut selected = pod(&format!("shop/app{number}-1"), "10.244.0.2");
        selected.labels = of(number).into();
        apply(&mut world, Object::Pod(selected));
        apply(&mut world, Object::Service(selecting));
    }
    let (service, pod) = (&world.services[&service_key("shop/app-7")], &world.pods[&pod_key("shop/app7-1")]);
    assert_eq!(world.services_of_pod(pod).map(|found| &found.key).collect::<Vec<_>>(), [&service.key]);
    assert_eq!(world.selected_by(service).map(|found| &found.key).collect::<Vec<_>>(), [&pod.key]);
    (world.index.selection.services_for(pod).count(), world.index.selection.pods_for(service).count())
}

#[test]
fn what_a_selector_fits_is_found_among_few_even_if_all_have_a_label_in_common() {
    for labels in [[("app", true), ("part-of", false)], [("instance", false), ("name", true)]] {
        assert_eq!(looked_at(2_000, labels), looked_at(20, labels), "{labels:?}");
    }
}

#[test]
fn an_endpoint_that_goes_touches_its_own_pod_only() {
    let mut world = World::default();
    let pods: Vec<_> = (0..100).map(|n| pod(&format!("shop/cart-{n}"), &format!("10.244.0.{n}"))).collect();
    let pods: Vec<_> = pods.iter().collect();
    apply(&mut world, Object::Service(service("shop/cart").http(80)));
    let dirty = apply(&mut world, Object::EndpointSlice(slice("shop/s", "cart", &[(80, 8080)], &pods)));
    assert_eq!(dirty.pods.len(), 100);
    let dirty = apply(&mut world, Object::EndpointSlice(slice("shop/s", "cart", &[(80, 8080)], &pods[1..])));
    assert_eq!(dirty.pods, BTreeSet::from([pod_key("shop/cart-0")]));
    assert_eq!(world.services_of_pod(pods[0]).count(), 0);
    assert_eq!(world.services_of_pod(pods[1]).count(), 1);
}

#[test]
fn what_is_a_pods_own_affair_touches_no_service() {
    let mut world = World::default();
    apply(&mut world, Object::Service(service("shop/cart").http(80).selects("app", "cart")));
    let mut cart = pod("shop/cart-1", "10.244.0.2");
    apply(&mut world, Object::Pod(cart.clone()));
    cart.upstreams.insert(upstream("db.shop"));
    let dirty = apply(&mut world, Object::Pod(cart));
    assert_eq!((dirty.services.len(), dirty.pods.len()), (0, 1));
}

fn limiting(key: &str, services: &[&str]) -> TrafficPolicy {
    let rate = RateLimit { tokens: 1, per: std::time::Duration::from_secs(1), burst: 1 };
    TrafficPolicy { rate: Some(rate), ..traffic_policy(key, services) }
}

fn by_group(key: &str, group: &str, services: &[&str]) -> TrafficFault {
    TrafficFault { requests: Some(vec![Requests::Group(group.into(), None)]), ..fault(key, services) }
}

#[test]
fn a_fault_touches_its_targets_of_before_and_after_and_its_route_group_does() {
    let mut world = World::default();
    let dirty = apply(&mut world, Object::TrafficFault(by_group("shop/f", "g", &["a", "b"])));
    assert_eq!(dirty.services, BTreeSet::from([service_key("shop/a"), service_key("shop/b")]));
    let dirty = apply(&mut world, Object::TrafficFault(by_group("shop/f", "g", &["c"])));
    assert_eq!(dirty.services.len(), 3);
    let dirty = apply(&mut world, Object::HttpRouteGroup(route_group("shop/g", &["/x"])));
    assert_eq!(dirty.services, BTreeSet::from([service_key("shop/c")]));
    assert_eq!(world.faults_of(&service_key("shop/a")).count(), 0);
}

/// A small mesh whose objects refer to one another in every way there is.
fn objects() -> Vec<Object> {
    let pods = [pod("shop/a-1", "10.244.0.2"), pod("shop/a-2", "10.244.0.3"), pod("shop/b-1", "10.244.0.4")];
    let mut by_match = split("shop/s2", "b", &[("a", 1), ("b", 2)]);
    by_match.matches = vec!["g".into()];
    let mut all = vec![
        Object::Service(service("shop/root").ip("10.96.0.4").http(80)),
        Object::Service(service("shop/a").ip("10.96.0.5").http(80)),
        Object::Service(service("shop/b").ip("10.96.0.6").http(80).selects("app", "b")),
        Object::EndpointSlice(slice("shop/a-x", "a", &[(80, 8080)], &[&pods[0], &pods[1]])),
        Object::TrafficSplit(split("shop/s1", "root", &[("a", 90), ("b", 10)])),
        Object::TrafficSplit(by_match),
        Object::HttpRouteGroup(route_group("shop/g", &["/api"])),
        Object::TcpRoute(tcp_route("shop/r", &[9090])),
        Object::TrafficTarget(target("shop/t1", "a", &["shop/b"], vec![http_rule("g")])),
        Object::TrafficTarget(target("shop/t2", "b", &["shop/a"], vec![tcp_rule("r")])),
        Object::TrafficFault(by_group("shop/f1", "g", &["a", "root"])),
        Object::TrafficFault(by_group("shop/f2", "missing", &["b", "missing"])),
        Object::TrafficPolicy(Box::new(limiting("shop/p1", &["a", "missing"]))),
        Object::TrafficPolicy(Box::new(limiting("shop/p2", &["b", "a"]))),
        Object::Namespace(namespace("shop")),
        enforcing(),
    ];
    all.extend(pods.into_iter().map(Object::Pod));
    all
}

proptest! {
    /// Whatever the order in which objects come, and whatever came and went in between, the plans are the same.
    #[test]
    fn the_order_of_events_does_not_matter(
        order in Just(objects()).prop_shuffle(),
        gone in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut straight = World::default();
        for object in objects() {
            straight.apply(Event::Apply(object));
        }
        let mut shuffled = World::default();
        for object in &order {
            shuffled.apply(Event::Apply(object.clone()));
        }
        for index in gone {
            let object = index.get(&order);
            shuffled.apply(Event::Delete(object.object_ref()));
            shuffled.apply(Event::Apply(object.clone()));
        }
        for key in straight.services().map(|service| &service.key) {
            prop_assert_eq!(crate::policy::outbound::service(&straight, key), crate::policy::outbound::service(&shuffled, key));
        }
        for pod in straight.pods() {
            prop_assert_eq!(crate::policy::inbound::pod(&straight, &pod.key), crate::policy::inbound::pod(&shuffled, &pod.key));
        }
    }

    /// Whatever is not named dirty has the plan that it had.
    #[test]
    fn what_is_not_dirty_did_not_change(
        order in Just(objects()).prop_shuffle(),
        deletions in proptest::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let mut world = World::default();
        let deletions = deletions.iter().map(|index| Event::Delete(index.get(&order).object_ref()));
        for event in order.iter().cloned().map(Event::Apply).chain(deletions) {
            let plans = |world: &World| {
                let services = ["shop/root", "shop/a", "shop/b", "shop/missing"].map(service_key);
                let pods = ["shop/a-1", "shop/a-2", "shop/b-1"].map(pod_key);
                (
                    services.map(|key| (crate::policy::outbound::service(world, &key), key)),
                    pods.map(|key| (crate::policy::inbound::pod(world, &key), key)),
                )
            };
            let (services_before, pods_before) = plans(&world);
            let dirty = world.apply(event.clone());
            let (services_after, pods_after) = plans(&world);
            for (before, after) in services_before.iter().zip(&services_after) {
                prop_assert!(before == after || dirty.services.contains(&before.1), "{:?} after {:?}", before.1, event);
            }
            for (before, after) in pods_before.iter().zip(&pods_after) {
                prop_assert!(before == after || dirty.pods.contains(&before.1), "{:?} after {:?}", before.1, event);
            }
        }
    }
}
