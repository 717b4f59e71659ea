//! How callers reach a Service: its endpoints by port, and the TrafficSplits that are in force.
//!
//! The rules of TrafficSplit are those of the SMI specification (v1alpha4); where it is silent:
//! - Of several splits with one root, those with `matches` come first, each for its own requests, the oldest before the
//!   younger, then by name. What none of them takes goes to one of those without `matches`: again the oldest, then by
//!   name; the others take over when it goes.
//! - A split is not recursive: a backend's endpoints are those of its own Service.
//! - A backend that lacks the root's port number is left out for that port.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::fault::{self, FaultPlan};
use super::{traffic_policy, zone};
use crate::mesh::object::{
    ConnectionSettings, Endpoint, HttpMatch, Pod, Protocol, RequestSettings, Service, ServicePort, TargetPort,
    TrafficSplit, ZonePreference,
};
use crate::mesh::{Diagnostic, Kind, ObjectRef, ServiceKey, SpiffeId, World};

/// How callers reach one Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePlan {
    /// The Service.
    pub key: ServiceKey,
    /// The addresses that callers use; empty for a headless Service, whose pods are called by their own.
    pub ips: Vec<IpAddr>,
    /// Its ports, in the Service's order.
    pub ports: Vec<PortPlan>,
    /// What the author of the Service or of its splits should know.
    pub diagnostics: Vec<Diagnostic>,
}

/// How callers reach one port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortPlan {
    /// The Service's port number.
    pub port: u16,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// Where calls go, shares relative to one another. Without a split: the Service itself with weight 1.
    pub backends: Vec<Backend>,
    /// Splits for some requests only, of which the first that fits takes a request; the others go to `backends`.
    pub routed: Vec<RoutedSplit>,
    /// What goes wrong with requests on purpose; of those that fit one, the first counts.
    pub faults: Vec<FaultPlan>,
    /// How each request is treated.
    pub requests: RequestSettings,
    /// How connections and endpoints are.
    pub connections: ConnectionSettings,
}

/// A Service that takes a share of the calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backend {
    /// The Service.
    pub service: ServiceKey,
    /// Its share, never 0.
    pub weight: u32,
    /// Its ready endpoints, ordered by address.
    pub endpoints: Vec<EndpointPlan>,
}

/// One endpoint.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct EndpointPlan {
    /// Where it listens.
    pub address: SocketAddr,
    /// The identity that it proves over mTLS; `None` when it has no sidecar and is called in clear.
    pub identity: Option<SpiffeId>,
    /// What it is an instance of; `None` when it is no pod.
    pub workload: Option<Workload>,
    /// The zone whose callers prefer it; `None` when it is not known, or no caller has a preference.
    pub zone: Option<Arc<str>>,
}

/// What a pod is an instance of, as metrics name it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Workload {
    /// The workload's name, in the pod's namespace.
    pub name: Arc<str>,
    /// Its version, if its labels state one.
    pub version: Option<Arc<str>>,
}

impl Workload {
    /// That of a pod.
    pub fn of(pod: &Pod) -> Self {
        Self { name: pod.workload.name.clone(), version: pod.version().map(Arc::from) }
    }
}

/// A TrafficSplit with `matches`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RoutedSplit {
    /// The split's name, by which those of one root are told apart.
    pub name: Arc<str>,
    /// A request that any of these fits is split.
    pub matches: Vec<HttpMatch>,
    /// Where it goes.
    pub backends: Vec<Backend>,
}

/// The plan of a Service, or `None` if it does not exist. Where something is attached to one that does not exist, there
/// is a plan that only says so.
pub fn service(world: &World, key: &ServiceKey) -> Option<ServicePlan> {
    let mut diagnostics = Vec::new();
    let Some(service) = world.service(key) else {
        diagnostics.extend(fault::without_target(world, key));
        diagnostics.extend(traffic_policy::without_target(world, key));
        diagnostics.extend(without_root(world, key));
        let nothing = ServicePlan { key: key.clone(), ips: Vec::new(), ports: Vec::new(), diagnostics };
        return (!nothing.diagnostics.is_empty()).then_some(nothing);
    };
    let splits = splits_in_force(world, key, &mut diagnostics);
    let faults = fault::faults(world, service, &mut diagnostics);
    diagnostics.extend(traffic_policy::diagnostics(world, service));
    diagnostics.extend(zone::diagnostics(world, service));
    diagnostics.extend(without_target_port(world, service));
    let plan = |(port, faults)| PortPlan { faults, ..port_plan(world, service, port, &splits, &mut diagnostics) };
    let ports = service.ports.iter().zip(faults).map(plan).collect();
    let ips = if service.headless { Vec::new() } else { service.cluster_ips.clone() };
    Some(ServicePlan { key: key.clone(), ips, ports, diagnostics })
}

/// What the authors of splits whose root does not exist should know.
fn without_root(world: &World, key: &ServiceKey) -> Vec<Diagnostic> {
    let split = |split| {
        let reason = format!("Service {key} does not exist, so there are no calls to split");
        Diagnostic::warning("spec.service", reason, "create it, or correct the name").about(split_ref(split))
    };
    let mut said: Vec<_> = world.splits_of(key).map(split).collect();
    said.sort_by(|one, other| one.object.cmp(&other.object));
    said
}

/// The ports of a Service that lead to a named port which none of its pods has.
fn without_target_port(world: &World, service: &Service) -> Vec<Diagnostic> {
    let missing = |(position, port): (usize, &ServicePort)| {
        let TargetPort::Name(name) = &port.target else { return None };
        let mut slices = world.slices_of(&service.key);
        // A controller that writes slices may know pods that are not known here.
        if slices.any(|slice| slice.ports.contains_key(&port.name)) {
            return None;
        }
        let endpoints = world.slices_of(&service.key).flat_map(|slice| &slice.endpoints);
        let sliced = endpoints.filter_map(|endpoint| world.pod(endpoint.pod.as_ref()?));
        let mut pods = sliced.chain(world.selected_by(service)).peekable();
        pods.peek()?;
        if pods.any(|pod| target_on(pod, &port.target).is_some()) {
            return None;
        }
        let reason =
            format!("no pod of the Service has a port named `{name}`, so nothing is behind port {}", port.port);
        let help = "use the name of a port of its pods' containers, or the number";
        let about = ObjectRef {
            kind: Kind::Service,
            namespace: Some(service.key.namespace.clone()),
            name: service.key.name.clone(),
        };
        Some(Diagnostic::warning(format!("spec.ports[{position}].targetPort"), reason, help).about(about))
    };
    service.ports.iter().enumerate().filter_map(missing).collect()
}

/// The splits of a root that decide something.
struct Splits<'a> {
    /// Those with `matches`, in the order in which they are tried.
    routed: Vec<&'a TrafficSplit>,
    /// The one for everything else.
    plain: Option<&'a TrafficSplit>,
}

fn splits_in_force<'a>(world: &'a World, root: &ServiceKey, diagnostics: &mut Vec<Diagnostic>) -> Splits<'a> {
    let mut splits: Vec<_> = world.splits_of(root).collect();
    splits.sort_by_key(|split| (split.created, split.name.clone()));
    let (plain, routed): (Vec<_>, Vec<_>) = splits.into_iter().partition(|split| split.matches.is_empty());
    let Some((winner, losers)) = plain.split_first() else { return Splits { routed, plain: None } };
    for loser in losers {
        diagnostics.push(
            Diagnostic::warning(
                "spec.service",
                format!("the split `{}` already decides for Service {root}", winner.name),
                "delete one of the two; this one takes over when the other is gone",
            )
            .about(split_ref(loser)),
        );
    }
    Splits { routed, plain: Some(winner) }
}

fn port_plan(
    world: &World,
    service: &Service,
    port: &ServicePort,
    splits: &Splits<'_>,
    diagnostics: &mut Vec<Diagnostic>,
) -> PortPlan {
    let policy = traffic_policy::of_port(world, &service.key, port.port);
    let zones = zone::preference(service, policy);
    let connections = policy.map(|policy| policy.connections.clone()).unwrap_or_default();
    let connections = ConnectionSettings { zone: zones, ..connections };
    // A headless Service has no address of its own that calls could be split at.
    let backends = match splits.plain.filter(|_| !service.headless) {
        Some(split) => split_backends(world, port.port, split, zones, diagnostics),
        None => {
            let endpoints = endpoints(world, service, port, zones);
            vec![Backend { service: service.key.clone(), weight: 1, endpoints }]
        }
    };
    let mut routed = Vec::new();
    for split in splits.routed.iter().filter(|_| !service.headless) {
        let matches = split_matches(world, split, diagnostics);
        let backends = split_backends(world, port.port, split, zones, diagnostics);
        // Matches are about requests: connections of a port that is never parsed cannot have any.
        if port.protocol != Protocol::Tcp && !matches.is_empty() {
            routed.push(RoutedSplit { name: split.name.clone(), matches, backends });
        }
    }
    PortPlan {
        port: port.port,
        protocol: port.protocol,
        backends,
        routed,
        faults: Vec::new(),
        requests: policy.map(|policy| policy.requests.clone()).unwrap_or_default(),
        connections,
    }
}

fn split_backends(
    world: &World,
    port: u16,
    split: &TrafficSplit,
    zones: Option<ZonePreference>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<Backend> {
    if split.backends.iter().all(|backend| backend.weight == 0) {
        let reason = "every weight is 0, so every call is answered with 503";
        diagnostics.push(
            Diagnostic::warning("spec.backends", reason, "give a backend a weight above 0, or delete the split")
                .about(split_ref(split)),
        );
    }
    let mut backends = Vec::new();
    for (position, backend) in split.backends.iter().enumerate().filter(|(_, backend)| backend.weight > 0) {
        let key = &backend.service;
        let left_out = |reason: String, help: String| {
            Diagnostic::warning(format!("spec.backends[{position}].service"), reason, help).about(split_ref(split))
        };
        let Some(service) = world.service(key) else {
            diagnostics.push(left_out(
                format!("Service {key} does not exist, so it takes no traffic"),
                "create it, or remove the backend".into(),
            ));
            continue;
        };
        let Some(service_port) = service.ports.iter().find(|candidate| candidate.port == port) else {
            diagnostics.push(left_out(
                format!("Service {key} has no port {port}, so it takes no traffic of that port"),
                format!("add port {port} to it"),
            ));
            continue;
        };
        let endpoints = endpoints(world, service, service_port, zones);
        backends.push(Backend { service: key.clone(), weight: backend.weight, endpoints });
    }
    backends
}

fn split_matches(world: &World, split: &TrafficSplit, diagnostics: &mut Vec<Diagnostic>) -> Vec<HttpMatch> {
    let mut matches = Vec::new();
    for (position, name) in split.matches.iter().enumerate() {
        match world.route_group(&split.namespace, name) {
            Some(group) => matches.extend(group.matches.iter().cloned()),
            None => diagnostics.push(
                Diagnostic::warning(
                    format!("spec.matches[{position}].name"),
                    format!("there is no HTTPRouteGroup {}/{name}, so it matches nothing", split.namespace),
                    "create it, or remove the match",
                )
                .about(split_ref(split)),
            ),
        }
    }
    matches
}

/// The ready endpoints of a Service's port: from its EndpointSlices, else from the pods that it selects.
fn endpoints(world: &World, service: &Service, port: &ServicePort, zones: Option<ZonePreference>) -> Vec<EndpointPlan> {
    let is_ready = |endpoint: &&Endpoint| endpoint.ready && !endpoint.terminating;
    let all = world.slices_of(&service.key).flat_map(|slice| &slice.endpoints).filter(is_ready);
    let addresses: BTreeSet<IpAddr> = all.map(|endpoint| endpoint.ip).collect();
    let addresses = &addresses;
    let sliced = world.slices_of(&service.key).flat_map(|slice| {
        let number = slice.ports.get(&port.name).copied();
        let ready = slice.endpoints.iter().filter(is_ready);
        ready.filter_map(move |endpoint| {
            let pod = endpoint.pod.as_ref().and_then(|pod| world.pod(pod));
            // A pod of both families has a slice for each, and is one endpoint by its primary address.
            let primary = pod.and_then(|pod| pod.ips.first()).filter(|primary| **primary != endpoint.ip);
            if primary.is_some_and(|primary| addresses.contains(primary)) {
                return None;
            }
            // A port that gets another name has it in the Service first, and in the slices a moment later: until then
            // its target on the pod tells what the slices are about to say.
            let number = number.or_else(|| target_on(pod?, &port.target))?;
            let zone = zone::of_endpoint(zones, Some(endpoint), pod);
            Some(endpoint_plan(world, SocketAddr::new(endpoint.ip, number), pod, zone))
        })
    });
    let selected = world.selected_by(service).filter(|pod| !pod.terminating).filter_map(|pod| {
        let address = SocketAddr::new(*pod.ips.first()?, target_on(pod, &port.target)?);
        Some(endpoint_plan(world, address, Some(pod), zone::of_endpoint(zones, None, Some(pod))))
    });
    sliced.chain(selected).collect::<BTreeSet<_>>().into_iter().collect()
}

fn endpoint_plan(world: &World, address: SocketAddr, pod: Option<&Pod>, zone: Option<Arc<str>>) -> EndpointPlan {
    let identity = pod.filter(|pod| !pod.direct_ports.contains(&address.port())).and_then(|pod| identity(world, pod));
    EndpointPlan { address, identity, workload: pod.map(Workload::of), zone }
}

/// The identity that a pod proves, or `None` if no sidecar stands before it. None stands before its `direct_ports`.
pub fn identity(world: &World, pod: &Pod) -> Option<SpiffeId> {
    (pod.meshed && !pod.host_network).then(|| SpiffeId::new(world.config().trust_domain.clone(), pod.account.clone()))
}

/// The number of a target port on a pod.
pub(super) fn target_on(pod: &Pod, target: &TargetPort) -> Option<u16> {
    match target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => pod.ports.iter().find(|port| port.name == *name).map(|port| port.port),
    }
}

fn split_ref(split: &TrafficSplit) -> ObjectRef {
    ObjectRef { kind: Kind::TrafficSplit, namespace: Some(split.namespace.clone()), name: split.name.clone() }
}

#[cfg(test)]
mod tests;
