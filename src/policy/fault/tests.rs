use std::collections::BTreeSet;

use super::FaultPlan;
use crate::mesh::fixture::*;
use crate::mesh::object::{Attachment, HttpMatch, Object, Percentage, Protocol, Requests, TrafficFault};
use crate::mesh::{Diagnostic, Event, World};
use crate::policy::outbound;

/// The faults of `shop/cart` by port, 80 (HTTP), 81 (HTTP) and 90 (TCP), and what is said.
fn faults(objects: impl IntoIterator<Item = Object>) -> (Vec<Vec<FaultPlan>>, Vec<Diagnostic>) {
    let mut world = World::default();
    let cart = service("shop/cart").ip("10.96.0.5").http(80).http(81).port(90, 90, Protocol::Tcp);
    for object in std::iter::once(Object::Service(cart)).chain(objects) {
        world.apply(Event::Apply(object));
    }
    let plan = outbound::service(&world, &service_key("shop/cart")).expect("a plan");
    (plan.ports.into_iter().map(|port| port.faults).collect(), plan.diagnostics)
}

fn names(faults: &[FaultPlan]) -> Vec<&str> {
    faults.iter().map(|fault| fault.name.as_str()).collect()
}

fn on_port(port: u16, fault: TrafficFault) -> TrafficFault {
    let targets = fault.targets.into_iter().map(|target| Attachment { port: Some(port), ..target }).collect();
    TrafficFault { targets, ..fault }
}

fn on_path(path: &str, fault: TrafficFault) -> TrafficFault {
    let path = HttpMatch { path_regex: Some(path.to_owned()), ..HttpMatch::any() };
    TrafficFault { requests: Some(vec![Requests::Inline(path)]), ..fault }
}

fn said(diagnostics: &[Diagnostic]) -> Vec<String> {
    diagnostics.iter().map(ToString::to_string).collect()
}

#[test]
fn a_fault_hits_the_ports_that_it_names_and_tcp_is_reported() {
    let (faults, told) = faults([
        Object::TrafficFault(on_port(81, fault("shop/one", &["cart"]))),
        Object::TrafficFault(on_port(90, fault("shop/tcp", &["cart"]))),
        Object::TrafficFault(on_port(82, fault("shop/none", &["cart"]))),
    ]);
    assert_eq!(faults.iter().map(|faults| names(faults)).collect::<Vec<_>>(), [vec![], vec!["shop/one"], vec![]]);
    let told = said(&told);
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told[0].starts_with("TrafficFault shop/none: spec.targetRefs[0].port: Service shop/cart has no port 82"));
    assert!(told[1].starts_with("TrafficFault shop/tcp: spec.targetRefs[0].port: port 90 of Service shop/cart is TCP"));
}

#[test]
fn the_oldest_counts_first_and_then_the_name_and_who_comes_second_is_told_once() {
    let of = |key: &str, created| {
        let fault = fault(key, &["cart"]);
        let http = [80, 81].map(|port| Attachment { port: Some(port), ..fault.targets[0].clone() });
        Object::TrafficFault(TrafficFault { created, targets: http.into(), ..fault })
    };
    let (faults, told) = faults([of("shop/young", 9), of("shop/b", 3), of("shop/a", 3)]);
    assert_eq!(names(&faults[0]), ["shop/a", "shop/b", "shop/young"]);
    let told = said(&told);
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told[0].starts_with("TrafficFault shop/b: spec.requests: the older fault `a` decides"), "{told:#?}");
}

#[test]
fn faults_that_cannot_hit_the_same_request_are_no_conflict() {
    let web = fault("shop/web", &["cart"]);
    let of = |callers: &[&str], fault| {
        let callers = callers.iter().map(|caller| account(caller)).collect();
        Object::TrafficFault(on_port(80, TrafficFault { callers: Some(callers), ..fault }))
    };
    let (_, told) = faults([of(&["shop/web"], web.clone()), of(&["shop/api"], fault("shop/api", &["cart"]))]);
    assert_eq!(said(&told), [""; 0]);
    let path = |key: &str, path| Object::TrafficFault(on_port(80, on_path(path, fault(key, &["cart"]))));
    let (_, told) = faults([path("shop/a", "/a"), path("shop/b", "/b")]);
    assert_eq!(said(&told), [""; 0]);
    let (_, told) = faults([path("shop/a", "/a"), path("shop/b", "/a/b")]);
    assert_eq!(told.len(), 1);
}

#[test]
fn the_matches_of_a_route_group_count_all_or_by_name_and_what_is_missing_is_told() {
    let group = || Object::HttpRouteGroup(route_group("shop/g", &["/x", "/y"]));
    let by = |group: &str, only: Option<&[&str]>| {
        let only = only.map(|names| names.iter().map(|name| (*name).into()).collect::<BTreeSet<_>>());
        let fault = fault("shop/f", &["cart"]);
        Object::TrafficFault(on_port(
            80,
            TrafficFault { requests: Some(vec![Requests::Group(group.into(), only)]), ..fault },
        ))
    };
    let hit = |object| {
        let (faults, told) = faults([group(), object]);
        let matches = faults[0].first().map_or(0, |fault| fault.matches.len());
        (matches, said(&told))
    };
    assert_eq!(hit(by("g", None)), (2, Vec::new()));
    assert_eq!(hit(by("g", Some(&["m1"]))), (1, Vec::new()));
    let (none, told) = hit(by("g", Some(&["m7"])));
    assert!(none == 0 && told[0].contains("spec.requests[0].matches: HTTPRouteGroup shop/g has no match `m7`"));
    let (none, told) = hit(by("h", None));
    assert!(none == 0 && told[0].contains("spec.requests[0].routeGroup: there is no HTTPRouteGroup shop/h"));
}

#[test]
fn a_fault_without_a_target_that_can_be_hit_says_so() {
    let mut world = World::default();
    let key = service_key("shop/cart");
    let percent = TrafficFault { percentage: Percentage(1), ..fault("shop/f", &["other", "cart"]) };
    world.apply(Event::Apply(Object::TrafficFault(percent)));
    let told = |world: &World| said(&outbound::service(world, &key).expect("a plan").diagnostics);
    assert!(told(&world)[0].starts_with("TrafficFault shop/f: spec.targetRefs[1]: Service shop/cart does not exist"));
    let mut headless = service("shop/cart").http(80);
    headless.headless = true;
    world.apply(Event::Apply(Object::Service(headless)));
    assert!(told(&world)[0].contains("is headless"), "{:?}", told(&world));
    world.apply(Event::Apply(Object::Service(service("shop/cart").ip("10.96.0.5").http(80))));
    assert_eq!(told(&world), [""; 0]);
}
