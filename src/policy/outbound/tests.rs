use super::{Backend, ServicePlan};
use crate::mesh::fixture::*;
use crate::mesh::object::{Object, Protocol, TargetPort};
use crate::mesh::{Event, World};

/// A world of Services `root`, `v1` and `v2` in namespace shop, with one pod behind each.
fn world(objects: impl IntoIterator<Item = Object>) -> World {
    let mut world = World::default();
    for (name, ip, pod_ip) in
        [("root", "10.96.0.4", "10.244.0.1"), ("v1", "10.96.0.5", "10.244.0.2"), ("v2", "10.96.0.6", "10.244.0.3")]
    {
        let key = format!("shop/{name}");
        world.apply(Event::Apply(Object::Service(service(&key).ip(ip).http(80).selects("app", name))));
        world.apply(Event::Apply(Object::Pod(pod(&format!("{key}-1"), pod_ip))));
    }
    for object in objects {
        world.apply(Event::Apply(object));
    }
    world
}

fn root(world: &World) -> ServicePlan {
    super::service(world, &service_key("shop/root")).expect("a plan")
}

/// The backends of the first port as `name weight endpoints`.
fn backends(backends: &[Backend]) -> Vec<String> {
    let line = |b: &Backend| {
        let endpoints: Vec<_> = b.endpoints.iter().map(|e| e.address.to_string()).collect();
        format!("{} {} {}", b.service.name, b.weight, endpoints.join(","))
    };
    backends.iter().map(line).collect()
}

#[test]
fn without_a_split_a_service_is_its_own_backend() {
    let plan = root(&world([]));
    assert_eq!(backends(&plan.ports[0].backends), ["root 1 10.244.0.1:8080"]);
    let identity = plan.ports[0].backends[0].endpoints[0].identity.as_ref().map(ToString::to_string);
    assert_eq!(identity.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/root"));
}

#[test]
fn a_port_that_is_called_past_the_sidecar_proves_nobody() {
    let identities = |direct: u16| {
        let mut past = pod("shop/root-1", "10.244.0.1");
        past.direct_ports = [direct].into();
        let plan = root(&world([Object::Pod(past)]));
        plan.ports[0].backends[0].endpoints.iter().map(|endpoint| endpoint.identity.is_some()).collect::<Vec<_>>()
    };
    assert_eq!((identities(8080), identities(9090)), (vec![false], vec![true]));
}

#[test]
fn a_split_divides_among_the_services_of_its_backends() {
    let plan = root(&world([Object::TrafficSplit(split("shop/s", "root", &[("v1", 90), ("v2", 10)]))]));
    assert_eq!(backends(&plan.ports[0].backends), ["v1 90 10.244.0.2:8080", "v2 10 10.244.0.3:8080"]);
    assert_eq!(plan.diagnostics, []);
}

#[test]
fn a_weight_of_zero_gets_nothing_and_all_zero_is_reported() {
    let plan = root(&world([Object::TrafficSplit(split("shop/s", "root", &[("v1", 100), ("v2", 0)]))]));
    assert_eq!(backends(&plan.ports[0].backends), ["v1 100 10.244.0.2:8080"]);
    let plan = root(&world([Object::TrafficSplit(split("shop/s", "root", &[("v1", 0), ("v2", 0)]))]));
    assert_eq!(plan.ports[0].backends, []);
    assert!(plan.diagnostics[0].reason.contains("every weight is 0"), "{:?}", plan.diagnostics);
}

#[test]
fn a_backend_that_does_not_exist_or_lacks_the_port_is_left_out_and_reported() {
    let elsewhere = Object::Service(service("shop/v3").ip("10.96.0.7").http(81));
    let world = world([elsewhere, Object::TrafficSplit(split("shop/s", "root", &[("v1", 1), ("v3", 1), ("v4", 1)]))]);
    let plan = root(&world);
    assert_eq!(backends(&plan.ports[0].backends), ["v1 1 10.244.0.2:8080"]);
    let fields: Vec<_> = plan.diagnostics.iter().map(|d| (d.field.as_str(), d.reason.as_str())).collect();
    assert_eq!(
        fields,
        [
            ("spec.backends[1].service", "Service shop/v3 has no port 80, so it takes no traffic of that port"),
            ("spec.backends[2].service", "Service shop/v4 does not exist, so it takes no traffic"),
        ]
    );
}

#[test]
fn the_root_among_its_own_backends_means_its_own_endpoints_and_a_split_is_not_recursive() {
    let world = world([
        Object::TrafficSplit(split("shop/s", "root", &[("root", 1), ("v1", 1)])),
        Object::TrafficSplit(split("shop/other", "v1", &[("v2", 1)])),
    ]);
    assert_eq!(backends(&root(&world).ports[0].backends), ["root 1 10.244.0.1:8080", "v1 1 10.244.0.2:8080"]);
}

#[test]
fn each_backend_counts_by_its_own_target_port() {
    let other = Object::Service(service("shop/v2").ip("10.96.0.6").port(80, 9999, Protocol::Http).selects("app", "v2"));
    let world = world([other, Object::TrafficSplit(split("shop/s", "root", &[("v1", 1), ("v2", 1)]))]);
    assert_eq!(backends(&root(&world).ports[0].backends), ["v1 1 10.244.0.2:8080", "v2 1 10.244.0.3:9999"]);
}

#[test]
fn with_matches_only_the_requests_that_fit_are_split() {
    let mut by_match = split("shop/s", "root", &[("v2", 1)]);
    by_match.matches = vec!["canary".into(), "missing".into()];
    let group = Object::HttpRouteGroup(route_group("shop/canary", &["/api"]));
    let plan = root(&world([group, Object::TrafficSplit(by_match)]));
    assert_eq!(backends(&plan.ports[0].backends), ["root 1 10.244.0.1:8080"]);
    let [routed] = &plan.ports[0].routed[..] else { panic!("{plan:?}") };
    assert_eq!(backends(&routed.backends), ["v2 1 10.244.0.3:8080"]);
    assert_eq!(routed.matches.len(), 1);
    assert_eq!(plan.diagnostics[0].field, "spec.matches[1].name");
}

#[test]
fn of_several_splits_those_with_matches_come_first_and_the_oldest_of_the_others_has_the_rest() {
    let mut by_match = split("shop/z", "root", &[("v2", 1)]);
    by_match.matches = vec!["g".into()];
    by_match.created = 99;
    let mut young = split("shop/a", "root", &[("v1", 1)]);
    young.created = 9;
    let mut old = split("shop/b", "root", &[("v2", 1)]);
    old.created = 3;
    let group = Object::HttpRouteGroup(route_group("shop/g", &["/"]));
    let old = Object::TrafficSplit(old);
    let mut world = world([group, Object::TrafficSplit(young), old.clone()]);
    assert_eq!(backends(&root(&world).ports[0].backends), ["v2 1 10.244.0.3:8080"]);
    let loser = &root(&world).diagnostics[0];
    assert_eq!(loser.object.as_ref().map(ToString::to_string).as_deref(), Some("TrafficSplit shop/a"));
    let by_match = Object::TrafficSplit(by_match);
    world.apply(Event::Apply(by_match.clone()));
    let mut older = split("shop/y", "root", &[("v1", 1)]);
    older.matches = vec!["g".into()];
    older.created = 98;
    world.apply(Event::Apply(Object::TrafficSplit(older)));
    let routed = |world: &World| {
        let names = root(world).ports[0].routed.iter().map(|routed| routed.name.to_string()).collect::<Vec<_>>();
        names.join(" ")
    };
    assert_eq!(routed(&world), "y z", "the older is tried first");
    assert_eq!(backends(&root(&world).ports[0].backends), ["v2 1 10.244.0.3:8080"], "what none of them takes");
    assert_eq!(root(&world).diagnostics.len(), 1, "only one does nothing");
    world.apply(Event::Delete(by_match.object_ref()));
    assert_eq!(routed(&world), "y");
    world.apply(Event::Delete(old.object_ref()));
    assert_eq!(backends(&root(&world).ports[0].backends), ["v1 1 10.244.0.2:8080"], "the loser takes over");
    assert_eq!(root(&world).diagnostics, []);
}

#[test]
fn endpoints_that_are_not_ready_or_are_leaving_get_nothing() {
    let pods = [pod("shop/x-1", "10.244.1.1"), pod("shop/x-2", "10.244.1.2"), pod("shop/x-3", "10.244.1.3")];
    let mut slice = slice("shop/x", "x", &[(80, 8080)], &[&pods[0], &pods[1], &pods[2]]);
    slice.endpoints[1].ready = false;
    slice.endpoints[2].terminating = true;
    let x = Object::Service(service("shop/x").ip("10.96.0.9").http(80));
    let world = world([x, Object::EndpointSlice(slice)]);
    let plan = super::service(&world, &service_key("shop/x")).expect("a plan");
    assert_eq!(backends(&plan.ports[0].backends), ["x 1 10.244.1.1:8080"]);
    assert_eq!(plan.ports[0].backends[0].endpoints[0].identity, None, "no such pod is known, so no sidecar is");
}

#[test]
fn a_port_is_served_while_the_slices_do_not_know_its_new_name() {
    let x = pod("shop/x-1", "10.244.1.1");
    let known = Object::EndpointSlice(slice("shop/x", "x", &[(80, 8080)], &[&x]));
    let mut renamed = service("shop/x").ip("10.96.0.9").http(80);
    renamed.ports[0].name = "web".to_owned();
    let mut world = world([Object::Service(renamed.clone()), known, Object::Pod(x)]);
    let served = |world: &World| {
        let plan = super::service(world, &service_key("shop/x")).expect("a plan");
        backends(&plan.ports[0].backends)
    };
    assert_eq!(served(&world), ["x 1 10.244.1.1:8080"]);
    renamed.ports[0].target = TargetPort::Name("nowhere".to_owned());
    world.apply(Event::Apply(Object::Service(renamed)));
    assert_eq!(served(&world), ["x 1 "], "the pod has no such port");
}
