use std::time::Duration;

use crate::mesh::fixture::*;
use crate::mesh::object::{Attachment, Object, Protocol, RateLimit, TrafficPolicy};
use crate::mesh::{Event, World};
use crate::policy::{Traffic, inbound, outbound};

fn world(objects: impl IntoIterator<Item = Object>) -> World {
    let mut world = World::default();
    let cart = service("shop/cart").ip("10.96.0.5").http(80).port(90, 9000, Protocol::Tcp).selects("app", "cart");
    let cart = [Object::Service(cart), Object::Pod(pod("shop/cart-1", "10.244.0.2"))];
    for object in cart.into_iter().chain(objects) {
        world.apply(Event::Apply(object));
    }
    world
}

/// A policy with a time-out by which it can be told.
fn policy(key: &str, port: Option<u16>, seconds: u64) -> TrafficPolicy {
    let mut policy = traffic_policy(key, &["cart"]);
    policy.targets = vec![Attachment { port, ..policy.targets[0].clone() }];
    policy.requests.timeout = Some(Duration::from_secs(seconds));
    policy
}

/// The time-outs of ports 80 and 90, and what is said.
fn timeouts(objects: Vec<TrafficPolicy>) -> (Vec<Option<u64>>, Vec<String>) {
    let world = world(objects.into_iter().map(Box::new).map(Object::TrafficPolicy));
    let plan = outbound::service(&world, &service_key("shop/cart")).expect("a plan");
    let timeouts = plan.ports.iter().map(|port| port.requests.timeout.map(|timeout| timeout.as_secs()));
    (timeouts.collect(), plan.diagnostics.iter().map(ToString::to_string).collect())
}

#[test]
fn one_that_names_the_port_counts_then_the_oldest_then_the_name() {
    let every = || policy("shop/every", None, 1);
    assert_eq!(timeouts(vec![every()]), (vec![Some(1), Some(1)], Vec::new()));
    assert_eq!(timeouts(vec![every(), policy("shop/z", Some(80), 2)]), (vec![Some(2), Some(1)], Vec::new()));
    let young = TrafficPolicy { created: 9, ..policy("shop/a", None, 3) };
    let (found, told) = timeouts(vec![young, every()]);
    assert_eq!(found, [Some(1), Some(1)]);
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(told[0].starts_with("TrafficPolicy shop/a: spec.targetRefs: the policy `every` already counts"));
    assert_eq!(timeouts(vec![policy("shop/b", None, 2), policy("shop/a", None, 1)]).0, [Some(1), Some(1)]);
}

#[test]
fn what_means_nothing_is_said() {
    let (_, told) = timeouts(vec![policy("shop/p", Some(81), 1)]);
    assert!(told[0].starts_with("TrafficPolicy shop/p: spec.targetRefs[0].port: Service shop/cart has no port 81"));
    let (_, told) = timeouts(vec![policy("shop/p", Some(90), 1)]);
    assert!(told[0].starts_with("TrafficPolicy shop/p: spec.timeouts: port 90 of Service shop/cart is TCP"));
    let mut world = World::default();
    world.apply(Event::Apply(Object::TrafficPolicy(Box::new(policy("shop/p", None, 1)))));
    let plan = outbound::service(&world, &service_key("shop/cart")).expect("a plan");
    assert!(plan.diagnostics[0].reason.contains("Service shop/cart does not exist"), "{:?}", plan.diagnostics);
}

#[test]
fn a_rate_limit_is_the_callees_by_its_own_port() {
    let rate = |tokens| RateLimit { tokens, per: Duration::from_secs(1), burst: tokens };
    let limited = |key, port, tokens| TrafficPolicy { rate: Some(rate(tokens)), ..policy(key, port, 1) };
    let mut world = world([
        Object::TrafficPolicy(Box::new(limited("shop/http", Some(80), 10))),
        Object::TrafficPolicy(Box::new(limited("shop/tcp", Some(90), 5))),
    ]);
    let rates = |world: &World| inbound::pod(world, &pod_key("shop/cart-1")).expect("a plan").0.rates;
    let expected = [(8080, (Traffic::Http, rate(10))), (9000, (Traffic::Tcp, rate(5)))];
    assert_eq!(rates(&world), expected.into());
    let dirty = world.apply(Event::Apply(Object::TrafficPolicy(Box::new(limited("shop/http", Some(80), 20)))));
    assert!(dirty.pods.contains(&pod_key("shop/cart-1")) && dirty.services.contains(&service_key("shop/cart")));
    assert_eq!(rates(&world)[&8080], (Traffic::Http, rate(20)));
}
