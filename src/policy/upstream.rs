//! What a pod will call, as far as the mesh's objects say so.

use std::collections::BTreeSet;

use crate::mesh::object::{Pod, TrafficTarget};
use crate::mesh::{Upstream, World};

/// The Services behind the destinations of the TrafficTargets that name the pod's account as a source. Pods of a
/// workload are behind the same Services, so one of each is looked at.
pub fn of_targets(world: &World, pod: &Pod) -> BTreeSet<Upstream> {
    let mut accounts = BTreeSet::new();
    let mut looked_at = BTreeSet::new();
    let mut upstreams = BTreeSet::new();
    for TrafficTarget { destination, .. } in world.targets_from(&pod.account) {
        if !accounts.insert(destination) {
            continue;
        }
        for callee in world.pods_of(destination).filter(|callee| looked_at.insert(&callee.workload)) {
            let services = world.services_of_pod(callee);
            upstreams.extend(services.map(|service| Upstream { service: service.key.clone(), port: None }));
        }
    }
    upstreams
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::Event;
    use crate::mesh::fixture::*;
    use crate::mesh::object::Object;

    #[test]
    fn a_target_declares_the_services_of_its_destination_to_its_sources() {
        let mut world = World::default();
        for object in [
            Object::Service(service("shop/cart").ip("10.96.0.5").http(80).selects("app", "cart")),
            Object::Service(service("shop/all").ip("10.96.0.6").http(80).selects("app", "cart")),
            Object::Service(service("shop/mail").ip("10.96.0.7").http(80).selects("app", "mail")),
            Object::Pod(pod("shop/cart-1", "10.244.0.2")),
            Object::Pod(pod("shop/cart-2", "10.244.0.3")),
            Object::Pod(pod("shop/web-1", "10.244.0.4")),
            Object::TrafficTarget(target("shop/t", "cart", &["shop/web"], vec![http_rule("g")])),
        ] {
            world.apply(Event::Apply(object));
        }
        let of = |world: &World, pod: &str| of_targets(world, world.pod(&pod_key(pod)).expect("a pod"));
        assert_eq!(of(&world, "shop/web-1"), BTreeSet::from([upstream("all.shop"), upstream("cart.shop")]));
        assert_eq!(of(&world, "shop/cart-1"), BTreeSet::new());
        world.apply(Event::Apply(Object::TrafficTarget(target("shop/t", "cart", &["shop/mail"], vec![]))));
        assert_eq!(of(&world, "shop/web-1"), BTreeSet::new(), "the target names it no longer");
    }
}
