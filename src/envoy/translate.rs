//! Keeps the table of resources in step with the world, at the cost of what changed.
//!
//! ```text
//!  (World, Dirty) ─▶ plan again what is dirty ─▶ stop where the plan is equal ─▶ Change
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use prost::Message;

use super::fallback::{Addresses, PodAddress};
use super::outbound::TcpPorts;
use super::{cluster, inbound, names, outbound, route, warm};
use crate::mesh::object::Protocol;
use crate::mesh::{Diagnostic, Dirty, Kind, ObjectRef, PodKey, ProxyId, ServiceKey, SpiffeId, TrustDomain, World};
use crate::policy::{self, InboundPlan, PortPlan, ServicePlan};
use crate::snapshot::{Change, Resource, ResourceName, ResourceType, View};
use crate::warm::WarmSets;

/// Translates plans, and remembers the last ones.
#[derive(Debug)]
pub struct Translator {
    services: BTreeMap<ServiceKey, Service>,
    pods: BTreeMap<PodKey, Pod>,
    trust_domain: TrustDomain,
    ranges: Arc<[IpNet]>,
    tcp_ports: TcpPorts,
    routes: BTreeMap<SocketAddr, route::Destination>,
    addresses: imbl::OrdMap<IpAddr, PodAddress>,
    warm: warm::Warm,
    started: bool,
}

#[derive(Debug)]
struct Service {
    plan: ServicePlan,
    resources: BTreeSet<(ResourceType, ResourceName)>,
}

#[derive(Debug)]
struct Pod {
    ips: Vec<IpAddr>,
    inbound: Option<Inbound>,
    diagnostics: Vec<Diagnostic>,
}

#[derive(Debug)]
struct Inbound {
    plan: InboundPlan,
    own: Vec<Arc<Resource>>,
    warm: warm::Names,
    view: Arc<View>,
}

impl Default for Translator {
    fn default() -> Self {
        Self {
            services: BTreeMap::new(),
            pods: BTreeMap::new(),
            trust_domain: TrustDomain::default(),
            ranges: Arc::new([]),
            tcp_ports: TcpPorts::default(),
            routes: BTreeMap::new(),
            addresses: imbl::OrdMap::new(),
            warm: warm::Warm::default(),
            started: false,
        }
    }
}

impl Translator {
    /// What the workloads are known to call: pods that are new from now on have it from the start.
    pub fn learned(&mut self, sets: WarmSets) {
        self.warm.learned = sets;
    }

    /// The changes that bring the table in step with the world, of which only `dirty` may differ from the last time.
    pub fn translate(&mut self, world: &World, dirty: &Dirty) -> Vec<Change> {
        let mut changes = Vec::new();
        let first = !std::mem::replace(&mut self.started, true);
        if first {
            changes.extend([cluster::passthrough(), cluster::inbound()].map(|base| {
                let name: ResourceName = base.name.as_str().into();
                put(ResourceType::Cluster, name, &base, None)
            }));
        }
        self.trust_domain = world.config().trust_domain.clone();
        let ranges_changed = *self.ranges != *world.config().ranges;
        if ranges_changed {
            self.ranges = world.config().ranges.clone().into();
        }
        let services_changed =
            dirty.services.iter().fold(false, |any, key| self.service(world, key, &mut changes) | any);
        let mut addresses_changed = ranges_changed || dirty.config || first;
        for key in &dirty.pods {
            addresses_changed |= self.pod(world, key, &mut changes);
        }
        if addresses_changed {
            changes.push(Change::Fallback(Arc::new(Addresses {
                pods: self.addresses.clone(),
                ranges: self.ranges.clone(),
                trust_domain: self.trust_domain.clone(),
            })));
        }
        let tcp_ports = if services_changed { self.find_tcp_ports() } else { self.tcp_ports.clone() };
        if first || ranges_changed || tcp_ports != self.tcp_ports {
            self.tcp_ports = tcp_ports;
            let listener = outbound::listener(&self.ranges, &self.tcp_ports);
            changes.push(put(ResourceType::Listener, names::OUTBOUND.into(), &listener, None));
        }
        let routes = if services_changed { self.find_routes() } else { self.routes.clone() };
        if first || routes != self.routes {
            self.routes = routes;
            let configuration = route::configuration(self.routes.values());
            changes.push(put(ResourceType::Route, names::OUTBOUND.into(), &configuration, None));
        }
        changes
    }

    /// What the authors of the mesh's objects should know, ordered by object.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let of_services = self.services.values().flat_map(|service| &service.plan.diagnostics);
        let of_pods = self.pods.values().flat_map(|pod| &pod.diagnostics);
        let of_ports = self.services.values().flat_map(|service| self.ports_declared_both_ways(&service.plan));
        let mut all: Vec<Diagnostic> = of_services.chain(of_pods).cloned().chain(of_ports).collect();
        all.sort_by(|a, b| (&a.object, &a.field, &a.reason).cmp(&(&b.object, &b.field, &b.reason)));
        all.dedup();
        all
    }

    /// The listener of all sidecars looks into what is said on a port number, if any Service declares it so.
    fn ports_declared_both_ways<'a>(&'a self, plan: &'a ServicePlan) -> impl Iterator<Item = Diagnostic> + 'a {
        let inspected = |port: &&PortPlan| port.protocol == Protocol::Tcp && self.tcp_ports.at.contains_key(&port.port);
        plan.ports.iter().filter(inspected).map(|port| {
            let number = port.port;
            Diagnostic::warning(
                "spec.ports",
                format!("port {number} is TCP here and not in another Service, so a server that speaks first waits"),
                "if it does, give one of the two Services another port number",
            )
            .about(service_ref(&plan.key))
        })
    }

    /// Whether the plan is another one than it was.
    fn service(&mut self, world: &World, key: &ServiceKey, changes: &mut Vec<Change>) -> bool {
        let Some(plan) = policy::outbound::service(world, key) else {
            let Some(gone) = self.services.remove(key) else { return false };
            changes.extend(gone.resources.into_iter().map(|(kind, name)| Change::Remove(kind, name)));
            return true;
        };
        if self.services.get(key).is_some_and(|service| service.plan == plan) {
            return false;
        }
        let resources = self.service_resources(&plan);
        let names: BTreeSet<_> = resources.iter().map(|resource| (resource.kind, resource.name.clone())).collect();
        changes.extend(resources.into_iter().map(|resource| Change::Put(Arc::new(resource))));
        let before = self.services.insert(key.clone(), Service { plan, resources: names.clone() });
        let gone = before.into_iter().flat_map(|service| service.resources).filter(|name| !names.contains(name));
        changes.extend(gone.map(|(kind, name)| Change::Remove(kind, name)));
        true
    }

    fn service_resources(&self, plan: &ServicePlan) -> Vec<Resource> {
        let origin = service_ref(&plan.key);
        let mut resources = Vec::new();
        for port in &plan.ports {
            for ip in &plan.ips {
                let address = SocketAddr::new(*ip, port.port);
                let routed = port.routed.as_ref().map(|routed| (names::split(address), "/split", &routed.backends));
                let own = (names::destination(address), "", &port.backends);
                for (name, suffix, backends) in std::iter::once(own).chain(routed) {
                    let endpoints = backends.iter().flat_map(|backend| &backend.endpoints);
                    let identities: BTreeSet<SpiffeId> = endpoints.filter_map(|e| e.identity.clone()).collect();
                    let cluster = cluster::service(
                        name.as_str(),
                        names::stat_name(&plan.key, port.port) + suffix,
                        names::sni(&plan.key, port.port),
                        &identities,
                        &self.trust_domain,
                    );
                    let assignment = cluster::endpoints(name.as_str(), backends);
                    resources.push(encode(ResourceType::Cluster, name.clone(), &cluster, Some(origin.clone())));
                    resources.push(encode(ResourceType::Endpoints, name, &assignment, Some(origin.clone())));
                }
            }
        }
        resources
    }

    /// Whether what its address leads to is different now.
    fn pod(&mut self, world: &World, key: &PodKey, changes: &mut Vec<Change>) -> bool {
        let proxy = ProxyId(key.clone());
        let Some(pod) = world.pod(key) else {
            let Some(gone) = self.pods.remove(key) else { return false };
            if gone.inbound.is_some() {
                changes.push(Change::RemoveView(proxy));
            }
            for ip in &gone.ips {
                // Another pod may have been given the address in the meantime.
                if self.addresses.get(ip).is_some_and(|address| address.key == *key) {
                    self.addresses.remove(ip);
                }
            }
            return true;
        };
        let mut before = self.pods.remove(key);
        let (inbound, diagnostics) = match policy::inbound::pod(world, key) {
            Some((plan, diagnostics)) => {
                let last = before.as_mut().and_then(|pod| pod.inbound.take());
                (Some(self.inbound(world, pod, plan, last, changes)), diagnostics)
            }
            None => {
                if before.as_ref().is_some_and(|pod| pod.inbound.is_some()) {
                    changes.push(Change::RemoveView(proxy));
                }
                (None, Vec::new())
            }
        };
        let address = PodAddress { key: key.clone(), identity: policy::outbound::identity(world, pod) };
        // A pod of the host's network shares its node's address, which is no way to tell it from others.
        let ips = if pod.host_network { Vec::new() } else { pod.ips.clone() };
        let mut changed = false;
        for ip in before.iter().flat_map(|pod| &pod.ips).filter(|ip| !ips.contains(ip)) {
            changed |= self.addresses.remove(ip).is_some();
        }
        for ip in &ips {
            if self.addresses.get(ip) != Some(&address) {
                self.addresses.insert(*ip, address.clone());
                changed = true;
            }
        }
        self.pods.insert(key.clone(), Pod { ips, inbound, diagnostics });
        changed
    }

    fn inbound(
        &mut self,
        world: &World,
        pod: &crate::mesh::object::Pod,
        plan: InboundPlan,
        last: Option<Inbound>,
        changes: &mut Vec<Change>,
    ) -> Inbound {
        let own = match &last {
            Some(last) if last.plan == plan => last.own.clone(),
            _ => {
                let name = pod.key.name.clone();
                let origin = ObjectRef { kind: Kind::Pod, namespace: Some(pod.key.namespace.clone()), name };
                let (listener, routes) = (inbound::listener(&plan), inbound::routes(&plan));
                vec![
                    Arc::new(encode(ResourceType::Listener, names::INBOUND.into(), &listener, Some(origin.clone()))),
                    Arc::new(encode(ResourceType::Route, names::INBOUND.into(), &routes, Some(origin))),
                ]
            }
        };
        // Chosen once: a pod that runs knows what it calls, and is not given what only others call.
        let warm = last.as_ref().map_or_else(|| self.warm.names(world, pod), |last| last.warm.clone());
        let view = View { own: own.clone(), pushed: self.warm.pushed(world, pod, &warm) };
        if let Some(last) = last
            && *last.view == view
        {
            return Inbound { plan, ..last };
        }
        let view = Arc::new(view);
        changes.push(Change::PutView(ProxyId(pod.key.clone()), view.clone()));
        Inbound { plan, own, warm, view }
    }

    /// A port number is TCP everywhere unless some Service declares it otherwise.
    fn find_tcp_ports(&self) -> TcpPorts {
        let mut tcp: BTreeMap<u16, BTreeSet<IpAddr>> = BTreeMap::new();
        let mut parsed: BTreeSet<u16> = BTreeSet::new();
        for plan in self.services.values().map(|service| &service.plan) {
            for port in &plan.ports {
                match port.protocol {
                    Protocol::Tcp => tcp.entry(port.port).or_default().extend(&plan.ips),
                    _ => {
                        parsed.insert(port.port);
                    }
                }
            }
        }
        let (at, everywhere): (BTreeMap<_, _>, BTreeMap<_, _>) =
            tcp.into_iter().partition(|(port, _)| parsed.contains(port));
        let at = at.into_iter().filter(|(_, ips)| !ips.is_empty()).collect();
        TcpPorts { everywhere: everywhere.into_keys().collect(), at }
    }

    fn find_routes(&self) -> BTreeMap<SocketAddr, route::Destination> {
        let mut routes = BTreeMap::new();
        for plan in self.services.values().map(|service| &service.plan) {
            for port in &plan.ports {
                let Some(routed) = &port.routed else { continue };
                for ip in &plan.ips {
                    let address = SocketAddr::new(*ip, port.port);
                    routes.insert(address, route::Destination { address, matches: routed.matches.clone() });
                }
            }
        }
        routes
    }
}

fn service_ref(key: &ServiceKey) -> ObjectRef {
    ObjectRef { kind: Kind::Service, namespace: Some(key.namespace.clone()), name: key.name.clone() }
}

fn put(kind: ResourceType, name: ResourceName, message: &impl Message, origin: Option<ObjectRef>) -> Change {
    Change::Put(Arc::new(encode(kind, name, message, origin)))
}

fn encode(kind: ResourceType, name: ResourceName, message: &impl Message, origin: Option<ObjectRef>) -> Resource {
    Resource::new(kind, name, message.encode_to_vec().into(), origin)
}

#[cfg(test)]
mod tests;
