//! What a pod may call outside the mesh.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::mesh::object::{Egress, EgressHost, EgressMode, EgressPort, EgressProtocol, Pod};
use crate::mesh::{Diagnostic, Kind, ObjectRef, World};

/// What some pods may call outside the mesh; they share it whoever they are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct EgressPlan {
    /// By name, HTTP on these ports.
    pub http: BTreeSet<(EgressHost, u16)>,
    /// By name, TLS on these ports.
    pub tls: BTreeSet<(EgressHost, u16)>,
    /// By address, whatever is spoken, on this port (`None`: on any). None is within the mesh's own ranges.
    pub addresses: BTreeSet<(Option<u16>, IpNet)>,
    /// Ports that are called by address, and as TCP only: a server may speak first there.
    pub tcp: BTreeSet<u16>,
}

/// What a pod may call, and what the authors of the Egresses should know; `None` if it may call every host.
pub fn pod(world: &World, pod: &Pod) -> (Option<EgressPlan>, Vec<Diagnostic>) {
    let mut diagnostics = Vec::new();
    let namespace = &pod.key.namespace;
    let own = world.namespace(namespace).and_then(|object| object.egress);
    let concerns = |egress: &&Egress| egress.sources.as_ref().is_none_or(|sources| sources.contains(&pod.account));
    let egresses = world.egresses_of(namespace).filter(concerns);
    if own.unwrap_or(world.config().egress) == EgressMode::Allow {
        diagnostics.extend(egresses.map(|egress| {
            let reason = format!("every host may be called from {namespace}, so it changes nothing");
            let help = "annotate the namespace with weft.dev/egress: Deny, or set MeshConfig.spec.egress.mode";
            Diagnostic::warning("spec", reason, help).about(egress_ref(egress))
        }));
        return (None, diagnostics);
    }
    let mut plan = EgressPlan::default();
    for egress in egresses {
        plan.add(egress, &world.config().ranges, &mut diagnostics);
    }
    let by_name: BTreeSet<u16> = plan.http.iter().chain(&plan.tls).map(|(_, port)| *port).collect();
    plan.tcp.retain(|port| !by_name.contains(port));
    (Some(plan), diagnostics)
}

impl EgressPlan {
    fn add(&mut self, egress: &Egress, ranges: &[IpNet], diagnostics: &mut Vec<Diagnostic>) {
        use EgressProtocol::{Http, Tcp, Tls};
        let by_default =
            [(80, Http), (443, Tls)].map(|(number, protocol)| EgressPort { number, protocol: Some(protocol) });
        let ports: Vec<EgressPort> = egress.ports.iter().copied().collect();
        let of_hosts = if ports.is_empty() { &by_default[..] } else { &ports };
        for EgressPort { number, protocol } in of_hosts {
            let named = egress.hosts.iter().map(|host| (host.clone(), *number));
            if protocol.is_none_or(|protocol| protocol == Http) {
                self.http.extend(named.clone());
            }
            if protocol.is_none_or(|protocol| protocol == Tls) {
                self.tls.extend(named);
            }
        }
        for address in &egress.addresses {
            if let Some(range) = ranges.iter().find(|range| range.contains(address)) {
                let reason =
                    format!("{address} is within {range}, a range of the mesh, and what is inside is never denied");
                let help = "remove it; who may call a workload is said by TrafficTarget";
                diagnostics.push(Diagnostic::warning("spec.addresses", reason, help).about(egress_ref(egress)));
                continue;
            }
            match ports.is_empty() {
                true => drop(self.addresses.insert((None, *address))),
                false => self.addresses.extend(ports.iter().map(|port| (Some(port.number), *address))),
            }
        }
        if !egress.addresses.is_empty() {
            self.tcp.extend(ports.iter().filter(|port| port.protocol == Some(Tcp)).map(|port| port.number));
        }
    }
}

pub(super) fn egress_ref(egress: &Egress) -> ObjectRef {
    ObjectRef { kind: Kind::Egress, namespace: Some(egress.namespace.clone()), name: egress.name.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::Event;
    use crate::mesh::fixture::{egress, namespace, pod, pod_key};
    use crate::mesh::object::{MeshConfig, NamespaceObject, Object};

    fn world(mode: EgressMode, objects: impl IntoIterator<Item = Object>) -> World {
        let mut world = World::default();
        let config = Object::MeshConfig(MeshConfig { egress: mode, ..MeshConfig::default() });
        let pods = [Object::Pod(pod("shop/web-1", "10.244.0.2")), Object::Pod(pod("bank/till-1", "10.244.0.3"))];
        for object in [config].into_iter().chain(pods).chain(objects) {
            world.apply(Event::Apply(object));
        }
        world
    }

    fn plan(world: &World, key: &str) -> (Option<EgressPlan>, Vec<Diagnostic>) {
        super::pod(world, world.pod(&pod_key(key)).expect("a pod"))
    }

    fn named(names: &BTreeSet<(EgressHost, u16)>) -> Vec<String> {
        names.iter().map(|(host, port)| format!("{host}:{port}")).collect()
    }

    #[test]
    fn hosts_are_called_by_http_on_80_and_by_tls_on_443_unless_ports_are_given() {
        let world =
            world(EgressMode::Deny, [Object::Egress(egress("shop/a").host("api.example.com").host("*.example.org"))]);
        let shop = plan(&world, "shop/web-1").0.expect("a plan");
        assert_eq!(named(&shop.http), ["api.example.com:80", "*.example.org:80"]);
        assert_eq!(named(&shop.tls), ["api.example.com:443", "*.example.org:443"]);
        assert_eq!(plan(&world, "bank/till-1").0, Some(EgressPlan::default()), "another namespace");
    }

    #[test]
    fn a_port_without_a_protocol_is_http_and_tls_by_name_and_a_tcp_port_is_by_address_alone() {
        let both = egress("shop/a").host("api.example.com").address("203.0.113.0/24").port(8443, None);
        let tcp = egress("shop/b").host("db.example.com").address("198.51.100.7/32");
        let tcp = tcp.port(5432, Some(EgressProtocol::Tcp)).port(8443, Some(EgressProtocol::Tcp));
        let shop = plan(&world(EgressMode::Deny, [both, tcp].map(Object::Egress)), "shop/web-1").0.expect("a plan");
        assert_eq!(
            (named(&shop.http), named(&shop.tls)),
            (vec!["api.example.com:8443".to_owned()], vec!["api.example.com:8443".to_owned()])
        );
        let addresses: Vec<_> =
            shop.addresses.iter().map(|(port, net)| format!("{net}:{}", port.unwrap_or(0))).collect();
        assert_eq!(addresses, ["198.51.100.7/32:5432", "198.51.100.7/32:8443", "203.0.113.0/24:8443"]);
        assert_eq!(shop.tcp, BTreeSet::from([5432]), "on 8443 a name has to be looked for");
    }

    #[test]
    fn other_accounts_are_not_allowed_what_an_egress_allows_some() {
        let only = egress("shop/a").host("api.example.com").source("other");
        assert_eq!(plan(&world(EgressMode::Deny, [Object::Egress(only)]), "shop/web-1").0, Some(EgressPlan::default()));
    }

    #[test]
    fn a_namespace_overrides_the_mesh_and_mistakes_are_told() {
        let of = |mode| Object::Namespace(NamespaceObject { egress: Some(mode), ..namespace("shop") });
        let inside = || Object::Egress(egress("shop/a").address("10.244.9.0/24"));
        let (none, warnings) = plan(&world(EgressMode::Deny, [of(EgressMode::Allow), inside()]), "shop/web-1");
        assert_eq!((none, warnings.len()), (None, 1));
        assert!(warnings[0].reason.contains("changes nothing"), "{}", warnings[0]);
        let (denied, warnings) = plan(&world(EgressMode::Allow, [of(EgressMode::Deny), inside()]), "shop/web-1");
        assert_eq!((denied, warnings.len()), (Some(EgressPlan::default()), 1));
        assert!(warnings[0].reason.contains("within 10.244.0.0/16"), "{}", warnings[0]);
    }
}
