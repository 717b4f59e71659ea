//! What each address of a Service leads to: a cluster and its endpoints, and one of each for every split of requests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use super::findings::Findings;
use super::{Translated, service_ref};
use crate::envoy::{cluster, metrics, names, route};
use crate::mesh::object::ConnectionSettings;
use crate::mesh::{ServiceKey, SpiffeId, TrustDomain, World};
use crate::policy::{self, Backend, PortPlan, ServicePlan};
use crate::snapshot::{Change, ResourceName, ResourceType};

/// The plans of all Services, and what has been made of them.
#[derive(Debug, Default)]
pub(super) struct Services {
    plans: BTreeMap<ServiceKey, Arc<ServicePlan>>,
    /// The Services that have an address. Should there be several, while one takes over from another, the first by key
    /// counts: whatever the order in which they came, the table is the same.
    claims: BTreeSet<(SocketAddr, ServiceKey)>,
    /// The plan that the table has for an address.
    published: BTreeMap<SocketAddr, Arc<ServicePlan>>,
    routes: BTreeMap<SocketAddr, route::Destination>,
    /// Addresses of plans that have changed since the last [`Services::publish`].
    touched: BTreeSet<SocketAddr>,
}

/// A cluster of an address, with its endpoints.
struct Part<'a> {
    name: ResourceName,
    /// Whom its pods prove to be, and the name of its endpoints, which says so.
    identities: BTreeSet<SpiffeId>,
    endpoints: ResourceName,
    /// What its name in statistics ends with.
    suffix: String,
    backends: &'a [Backend],
    settings: &'a ConnectionSettings,
}

impl Services {
    /// Plans a Service again; the plan that it had and the one that it has, or twice nothing if they are equal.
    pub(super) fn plan(
        &mut self,
        world: &World,
        key: &ServiceKey,
        findings: &mut Findings,
        out: &mut Translated,
    ) -> (Option<Arc<ServicePlan>>, Option<Arc<ServicePlan>>) {
        out.work.plans += 1;
        let after = policy::outbound::service(world, key);
        if self.plans.get(key).map(AsRef::as_ref) == after.as_ref() {
            return (None, None);
        }
        let (before, after) = (self.plans.remove(key), after.map(Arc::new));
        if let Some(before) = &before {
            findings.drop(before.diagnostics.iter().cloned());
            for address in addresses(before) {
                self.touched.insert(address);
                self.claims.remove(&(address, key.clone()));
            }
        }
        if let Some(after) = &after {
            findings.add(after.diagnostics.iter().cloned());
            for address in addresses(after) {
                self.touched.insert(address);
                self.claims.insert((address, key.clone()));
            }
            self.plans.insert(key.clone(), after.clone());
        }
        (before, after)
    }

    /// Makes what the touched addresses lead to; whether [`Services::routes`] are different now.
    pub(super) fn publish(&mut self, trust_domain: &TrustDomain, out: &mut Translated) -> bool {
        let touched = std::mem::take(&mut self.touched);
        touched.into_iter().fold(false, |routes_changed, address| {
            let after = self.holder(address).cloned();
            let before = match &after {
                Some(plan) => self.published.insert(address, plan.clone()),
                None => self.published.remove(&address),
            };
            publish(address, before.as_deref(), after.as_deref(), trust_domain, out);
            let routes = after.as_deref().and_then(|plan| destination(port(plan, address)?, address));
            self.route(address, routes) | routes_changed
        })
    }

    /// The destinations whose requests are treated by what they are.
    pub(super) fn routes(&self) -> impl Iterator<Item = &route::Destination> {
        self.routes.values()
    }

    fn holder(&self, address: SocketAddr) -> Option<&Arc<ServicePlan>> {
        let first = (address, ServiceKey::new("", ""));
        let (claimed, key) = self.claims.range(first..).next()?;
        self.plans.get(key).filter(|_| *claimed == address)
    }

    fn route(&mut self, address: SocketAddr, routes: Option<route::Destination>) -> bool {
        if self.routes.get(&address) == routes.as_ref() {
            return false;
        }
        match routes {
            Some(routes) => drop(self.routes.insert(address, routes)),
            None => drop(self.routes.remove(&address)),
        }
        true
    }
}

/// The steps from what an address led to, to what it leads to. What is equal is not made again.
fn publish(
    address: SocketAddr,
    before: Option<&ServicePlan>,
    after: Option<&ServicePlan>,
    trust_domain: &TrustDomain,
    out: &mut Translated,
) {
    let old = before.map(|plan| parts(plan, address)).unwrap_or_default();
    let new = after.map(|plan| parts(plan, address)).unwrap_or_default();
    let same_service = before.map(|plan| &plan.key) == after.map(|plan| &plan.key);
    for part in &new {
        let Some(service) = after.map(|plan| &plan.key) else { continue };
        let last = old.iter().find(|old| same_service && old.name == part.name);
        if last.is_none_or(|last| (&last.identities, last.settings) != (&part.identities, part.settings)) {
            let mut message = cluster::service(
                part.name.as_str(),
                part.endpoints.as_str(),
                names::stat_name(service, address.port()) + &part.suffix,
                names::sni(service, address.port()),
                &part.identities,
                trust_domain,
                part.settings,
            );
            message.metadata = metrics::of_service(service, address.port());
            let origin = Some(service_ref(service));
            let resource = out.encode(ResourceType::Cluster, part.name.clone(), &message, origin);
            out.changes.push(Change::Put(Arc::new(resource.with_endpoints(part.endpoints.clone()))));
        }
        if last.is_none_or(|last| last.backends != part.backends || last.endpoints != part.endpoints) {
            let message = cluster::endpoints(part.endpoints.as_str(), part.backends, part.settings);
            out.put(ResourceType::Endpoints, part.endpoints.clone(), &message, Some(service_ref(service)));
        }
    }
    for old in old {
        if new.iter().all(|new| new.name != old.name) {
            out.changes.push(Change::Remove(ResourceType::Cluster, old.name));
        }
        if new.iter().all(|new| new.endpoints != old.endpoints) {
            out.changes.push(Change::Remove(ResourceType::Endpoints, old.endpoints));
        }
    }
}

fn parts(plan: &ServicePlan, address: SocketAddr) -> Vec<Part<'_>> {
    let Some(port) = port(plan, address) else { return Vec::new() };
    let part = |name, suffix, backends| part(name, suffix, backends, &port.connections);
    let own = part(names::destination(address), String::new(), &port.backends);
    let routed = port.routed.iter().map(|split| {
        let suffix = names::split_stat_suffix(&split.name);
        part(names::split(address, &split.name), suffix, &split.backends)
    });
    std::iter::once(own).chain(routed).collect()
}

fn part<'a>(name: ResourceName, suffix: String, backends: &'a [Backend], settings: &'a ConnectionSettings) -> Part<'a> {
    let endpoints = backends.iter().flat_map(|backend| &backend.endpoints);
    let identities = endpoints.filter_map(|endpoint| endpoint.identity.clone()).collect();
    let endpoints = names::endpoints(&name, &identities, settings);
    Part { name, identities, endpoints, suffix, backends, settings }
}

/// What its routes are made of, if its requests need any.
fn destination(port: &PortPlan, address: SocketAddr) -> Option<route::Destination> {
    let splits = port.routed.iter().map(|split| (split.name.clone(), split.matches.clone())).collect();
    let destination =
        route::Destination { address, splits, faults: port.faults.clone(), requests: port.requests.clone() };
    destination.needs_routes().then_some(destination)
}

fn port(plan: &ServicePlan, address: SocketAddr) -> Option<&PortPlan> {
    plan.ports.iter().find(|port| port.port == address.port())
}

fn addresses(plan: &ServicePlan) -> impl Iterator<Item = SocketAddr> {
    plan.ips.iter().flat_map(|ip| plan.ports.iter().map(|port| SocketAddr::new(*ip, port.port)))
}
