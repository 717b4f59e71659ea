//! Whether calls to a Service stay in their caller's zone, and which zone an endpoint is in.
//!
//! A TrafficPolicy that says something of zones counts, else the Service itself. Where endpoints are chosen by a hash
//! there is no choice left for zones.

use std::sync::Arc;

use super::traffic_policy;
use crate::mesh::object::{self, Endpoint, Pod, Service, TrafficPolicy, ZonePreference};
use crate::mesh::{Diagnostic, Kind, ObjectRef, World};

/// What the callers of a Service's port prefer; `None` where nobody says anything that can be.
pub(super) fn preference(service: &Service, policy: Option<&TrafficPolicy>) -> Option<ZonePreference> {
    let connections = policy.map(|policy| &policy.connections);
    if service.headless || connections.is_some_and(|connections| connections.algorithm.hashes()) {
        return None;
    }
    let own = (service.zone == ZonePreference::Prefer).then_some(ZonePreference::Prefer);
    connections.and_then(|connections| connections.zone).or(own)
}

/// The zone whose callers prefer an endpoint, which is in a slice or is a pod that a Service selects.
pub(super) fn of_endpoint(
    preference: Option<ZonePreference>,
    endpoint: Option<&Endpoint>,
    pod: Option<&Pod>,
) -> Option<Arc<str>> {
    if preference != Some(ZonePreference::Prefer) {
        return None;
    }
    let labelled = || pod.and_then(|pod| object::zone(&pod.labels)).map(Arc::from);
    endpoint.and_then(|endpoint| endpoint.zone.clone()).or_else(labelled)
}

/// What the author of a Service that prefers its callers' zone should know.
pub(super) fn diagnostics(world: &World, service: &Service) -> Option<Diagnostic> {
    if service.zone != ZonePreference::Prefer {
        return None;
    }
    let mut policies = service.ports.iter().filter_map(|port| {
        let policy = traffic_policy::of_port(world, &service.key, port.port)?;
        policy.connections.algorithm.hashes().then_some((port.port, policy))
    });
    let (port, policy) = policies.next()?;
    let reason = format!(
        "the TrafficPolicy `{}` chooses the endpoints of port {port} by a hash, whatever their zone",
        policy.name
    );
    let help = "let the policy use RoundRobin or LeastRequest, or remove the preference";
    let service = ObjectRef {
        kind: Kind::Service,
        namespace: Some(service.key.namespace.clone()),
        name: service.key.name.clone(),
    };
    Some(Diagnostic::warning("spec.trafficDistribution", reason, help).about(service))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::fixture::*;
    use crate::mesh::object::{Algorithm, Object};
    use crate::mesh::{Dirty, Event};
    use crate::policy::outbound;
    use ZonePreference::{Any, Prefer};

    fn zoned(key: &str, ip: &str, zone: Option<&str>) -> Pod {
        let mut pod = pod(key, ip);
        pod.labels.extend(zone.map(|zone| ("topology.kubernetes.io/zone".to_owned(), zone.to_owned())));
        pod
    }

    /// Service `cart`, which says this of zones, with a pod in zone a and one of which no zone is known.
    fn world(says: ZonePreference, headless: bool) -> World {
        let cart = service("shop/cart").ip("10.96.0.5").http(80).selects("app", "cart");
        let mut world = World::default();
        world.apply(Event::Apply(Object::Service(Service { zone: says, headless, ..cart })));
        world.apply(Event::Apply(Object::Pod(zoned("shop/cart-1", "10.244.0.1", Some("a")))));
        world.apply(Event::Apply(Object::Pod(zoned("shop/cart-2", "10.244.0.2", None))));
        world
    }

    fn policy(algorithm: Algorithm, zone: Option<ZonePreference>) -> Event {
        let mut policy = traffic_policy("shop/p", &["cart"]);
        policy.connections.algorithm = algorithm;
        policy.connections.zone = zone;
        Event::Apply(Object::TrafficPolicy(Box::new(policy)))
    }

    /// What the port prefers, the zones of its endpoints, and what is said.
    fn plan(world: &World) -> (Option<ZonePreference>, Vec<String>, Vec<String>) {
        let plan = outbound::service(world, &service_key("shop/cart")).expect("a plan");
        let endpoints = plan.ports[0].backends.iter().flat_map(|backend| &backend.endpoints);
        let zones = endpoints.map(|endpoint| endpoint.zone.as_deref().unwrap_or("-").to_owned()).collect();
        (plan.ports[0].connections.zone, zones, plan.diagnostics.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_policy_that_says_something_counts_then_the_service() {
        for (service, policy_says, expected) in [
            (Any, None, None),
            (Any, Some(Prefer), Some(Prefer)),
            (Prefer, None, Some(Prefer)),
            (Prefer, Some(Any), Some(Any)),
            (Any, Some(Any), Some(Any)),
        ] {
            let mut world = world(service, false);
            world.apply(policy(Algorithm::LeastRequest, policy_says));
            let zones = if expected == Some(Prefer) { ["a", "-"] } else { ["-", "-"] };
            assert_eq!(plan(&world), (expected, zones.map(str::to_owned).into(), Vec::new()), "{policy_says:?}");
        }
    }

    #[test]
    fn a_hash_and_a_headless_service_leave_no_choice() {
        let mut hashed = world(Prefer, false);
        hashed.apply(policy(Algorithm::Maglev, None));
        let (zone, zones, told) = plan(&hashed);
        assert_eq!((zone, zones), (None, vec!["-".to_owned(); 2]));
        assert!(told[0].starts_with("Service shop/cart: spec.trafficDistribution: the TrafficPolicy `p` chooses"));
        assert_eq!(plan(&world(Prefer, true)).0, None);
    }

    #[test]
    fn a_slice_knows_the_zone_better_than_the_pod_does() {
        let mut world = world(Prefer, false);
        let pods = [zoned("shop/cart-1", "10.244.0.1", Some("a")), zoned("shop/cart-2", "10.244.0.2", None)];
        let mut slice = slice("shop/cart-x", "cart", &[(80, 8080)], &pods.each_ref());
        world.apply(Event::Apply(Object::EndpointSlice(slice.clone())));
        assert_eq!(plan(&world).1, ["a", "-"], "what the pod's labels say");
        for (endpoint, zone) in slice.endpoints.iter_mut().zip(["b", "c"]) {
            endpoint.zone = Some(zone.into());
        }
        world.apply(Event::Apply(Object::EndpointSlice(slice)));
        assert_eq!(plan(&world).1, ["b", "c"]);
    }

    #[test]
    fn a_pod_that_gets_a_zone_touches_its_service() {
        let mut world = world(Prefer, false);
        let dirty: Dirty = world.apply(Event::Apply(Object::Pod(zoned("shop/cart-2", "10.244.0.2", Some("b")))));
        assert!(dirty.services.contains(&service_key("shop/cart")));
        assert_eq!(plan(&world).1, ["a", "b"]);
    }
}
