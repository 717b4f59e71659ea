//! What a pod accepts: from whom, in clear or over mTLS, and which probes.
//!
//! The rules of TrafficTarget are those of the SMI specification (v1alpha3); where it is silent:
//! - A target with HTTP rules only opens no raw TCP; one with TCPRoutes only opens raw TCP on their ports and no HTTP
//!   port; one with both means port *and* path.
//! - No sources allow nobody. Targets add up; none of them takes away.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use crate::mesh::object::{
    AuthorizationMode, HttpMatch, MtlsMode, Pod, Probe, Protocol, RateLimit, TargetRule, TrafficTarget,
};
use crate::mesh::{Diagnostic, Kind, ObjectRef, PodKey, SpiffeId, TrustDomain, World};

use super::outbound::target_on;
use super::telemetry::{self, Telemetry};
use super::traffic_policy;

/// What one pod accepts. Pods of a workload usually share it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct InboundPlan {
    /// Only identities of this trust domain are believed.
    pub trust_domain: TrustDomain,
    /// Whether it is called by IPv6 as well.
    pub ipv6: bool,
    /// Whether connections outside the mesh's mTLS are served, on ports that `mtls_ports` does not name.
    pub mtls: MtlsMode,
    /// The pod ports that have another mode than `mtls`.
    pub mtls_ports: BTreeMap<u16, MtlsMode>,
    /// How far `allow` is enforced.
    pub authorization: AuthorizationMode,
    /// Probes that are answered in clear, whoever asks.
    pub probes: BTreeSet<Probe>,
    /// What is allowed; everything else is not. Empty unless `authorization` asks for it.
    pub allow: Vec<AllowPolicy>,
    /// What the sidecar tells of what it carries, in both directions.
    pub telemetry: Telemetry,
    /// How much is taken by pod port: requests, or connections where it is TCP.
    pub rates: BTreeMap<u16, (Traffic, RateLimit)>,
}

impl InboundPlan {
    /// The same, for Envoys that cannot load what it comes to; `None` where they can.
    pub fn for_older(&self) -> Option<Self> {
        self.telemetry.for_older().map(|telemetry| Self { telemetry, ..self.clone() })
    }
}

/// What a rate limit counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Traffic {
    /// Requests.
    Http,
    /// Connections.
    Tcp,
}

/// One thing that is allowed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AllowPolicy {
    /// The TrafficTarget that says so: `NAMESPACE/NAME`.
    pub target: String,
    /// Who; never empty.
    pub sources: BTreeSet<SpiffeId>,
    /// What.
    pub allow: Allow,
}

/// Leaves out what a policy consists of: there may be thousands of sources, and the name of its target tells policies
/// apart well enough.
impl Hash for AllowPolicy {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.target.hash(state);
        self.sources.len().hash(state);
    }
}

/// What an [`AllowPolicy`] allows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Allow {
    /// Requests that any of the matches fits, on these pod ports (`None`: on any).
    Http {
        /// The pod ports.
        ports: Option<BTreeSet<u16>>,
        /// The matches; never empty.
        matches: Vec<HttpMatch>,
    },
    /// Connections that are not HTTP, on any pod port that `except` does not name (`only` is `None`), or on `only`.
    Tcp {
        /// The pod ports, never empty.
        only: Option<BTreeSet<u16>>,
        /// Pod ports that are declared to speak HTTP.
        except: BTreeSet<u16>,
    },
}

/// The plan of a meshed pod, with what the authors of its targets should know. `None` for a pod without a sidecar.
pub fn pod(world: &World, key: &PodKey) -> Option<(InboundPlan, Vec<Diagnostic>)> {
    let pod = world.pod(key).filter(|pod| pod.meshed && !pod.host_network)?;
    let namespace = world.namespace(&pod.key.namespace);
    let config = world.config();
    let authorization = namespace.and_then(|ns| ns.authorization).unwrap_or(config.authorization);
    let mut diagnostics = Vec::new();
    let targets = world.targets_of(&pod.account);
    let allow = match authorization {
        // What a target lacks is to be known before anybody turns enforcement on.
        AuthorizationMode::Permissive => {
            targets.for_each(|target| drop(Rules::of(world, target, &mut diagnostics)));
            Vec::new()
        }
        AuthorizationMode::Audit | AuthorizationMode::Enforce => {
            targets.filter_map(|target| allow_policy(world, pod, target, &mut diagnostics)).collect()
        }
    };
    // What is said most specifically holds: of the port, the pod, the namespace, the mesh.
    let mtls = pod.mtls.mode.or(namespace.and_then(|ns| ns.mtls)).unwrap_or(config.mtls);
    let plan = InboundPlan {
        trust_domain: config.trust_domain.clone(),
        ipv6: pod.ips.iter().any(std::net::IpAddr::is_ipv6),
        mtls,
        mtls_ports: pod
            .mtls
            .ports
            .iter()
            .map(|(port, mode)| (*port, *mode))
            .filter(|(_, mode)| *mode != mtls)
            .collect(),
        authorization,
        probes: pod.probes.clone(),
        allow,
        telemetry: telemetry::of_pod(world, pod),
        rates: rates(world, pod),
    };
    Some((plan, diagnostics))
}

/// What a target that has these rules does not find.
pub(super) fn dangling_rules(world: &World, target: &TrafficTarget) -> Vec<Diagnostic> {
    let mut diagnostics = Vec::new();
    drop(Rules::of(world, target, &mut diagnostics));
    diagnostics
}

/// What the rules of a target come to.
struct Rules {
    matches: Vec<HttpMatch>,
    ports: Ports,
    has_http: bool,
    has_tcp: bool,
}

impl Rules {
    fn of(world: &World, target: &TrafficTarget, diagnostics: &mut Vec<Diagnostic>) -> Self {
        let mut matches = Vec::new();
        let mut ports = Ports::new(target.port);
        let mut has_http = false;
        let mut has_tcp = false;
        for (position, rule) in target.rules.iter().enumerate() {
            let dangling = |what: String| {
                Diagnostic::warning(
                    format!("spec.rules[{position}].name"),
                    format!("there is no {what}, so this rule allows nothing"),
                    "create it, or remove the rule",
                )
                .about(target_ref(target))
            };
            match rule {
                TargetRule::Http(name, only) => {
                    has_http = true;
                    let Some(group) = world.route_group(&target.namespace, name) else {
                        diagnostics.push(dangling(format!("HTTPRouteGroup {}/{name}", target.namespace)));
                        continue;
                    };
                    let counts =
                        |candidate: &&HttpMatch| only.as_ref().is_none_or(|names| names.contains(&candidate.name));
                    matches.extend(group.matches.iter().filter(counts).cloned());
                    for name in only.iter().flatten().filter(|name| group.matches.iter().all(|m| m.name != **name)) {
                        diagnostics.push(
                            Diagnostic::warning(
                                format!("spec.rules[{position}].matches"),
                                format!("HTTPRouteGroup {}/{} has no match `{name}`", target.namespace, group.name),
                                "correct the name, or add the match to the group",
                            )
                            .about(target_ref(target)),
                        );
                    }
                }
                TargetRule::Tcp(name) => {
                    has_tcp = true;
                    match world.tcp_route(&target.namespace, name) {
                        Some(route) => ports.add(&route.ports),
                        None => diagnostics.push(dangling(format!("TCPRoute {}/{name}", target.namespace))),
                    }
                }
            }
        }
        Self { matches, ports, has_http, has_tcp }
    }
}

fn allow_policy(
    world: &World,
    pod: &Pod,
    target: &TrafficTarget,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<AllowPolicy> {
    let Rules { matches, ports, has_http, has_tcp } = Rules::of(world, target, diagnostics);
    let trust_domain = &world.config().trust_domain;
    let sources: BTreeSet<SpiffeId> =
        target.sources.iter().map(|account| SpiffeId::new(trust_domain.clone(), account.clone())).collect();
    let allow = match (has_http, has_tcp) {
        (false, false) => return None,
        (true, false) => Allow::Http { ports: target.port.map(|port| BTreeSet::from([port])), matches },
        (true, true) => Allow::Http { ports: ports.only()?, matches },
        (false, true) => {
            let except = http_ports(world, pod);
            match ports.only()? {
                Some(only) => {
                    let only: BTreeSet<u16> = only.difference(&except).copied().collect();
                    (!only.is_empty()).then_some(Allow::Tcp { only: Some(only), except: BTreeSet::new() })?
                }
                None => Allow::Tcp { only: None, except },
            }
        }
    };
    let nothing = sources.is_empty() || matches!(&allow, Allow::Http { matches, .. } if matches.is_empty());
    let name = format!("{}/{}", target.namespace, target.name);
    (!nothing).then_some(AllowPolicy { target: name, sources, allow })
}

/// The ports that the TCPRoutes of one target name together, within the target's own `port`.
struct Ports {
    within: Option<u16>,
    named: BTreeSet<u16>,
    every: bool,
}

impl Ports {
    fn new(within: Option<u16>) -> Self {
        Self { within, named: BTreeSet::new(), every: false }
    }

    /// Adds a TCPRoute's ports; an empty list means every port.
    fn add(&mut self, route: &BTreeSet<u16>) {
        self.every |= route.is_empty();
        self.named.extend(route);
    }

    /// `Some(Some(ports))`: these; `Some(None)`: every port; `None`: not one, so the target allows nothing.
    fn only(&self) -> Option<Option<BTreeSet<u16>>> {
        match (self.every, self.within) {
            (true, within) => Some(within.map(|port| BTreeSet::from([port]))),
            (false, within) => {
                let ports: BTreeSet<u16> =
                    self.named.iter().copied().filter(|port| within.is_none_or(|only| only == *port)).collect();
                (!ports.is_empty()).then_some(Some(ports))
            }
        }
    }
}

/// The rate limits of the policies of the pod's Services. Of several for one port the lowest counts.
fn rates(world: &World, pod: &Pod) -> BTreeMap<u16, (Traffic, RateLimit)> {
    let mut rates: BTreeMap<u16, (Traffic, RateLimit)> = BTreeMap::new();
    for service in world.services_of_pod(pod) {
        for port in &service.ports {
            let policy = traffic_policy::of_port(world, &service.key, port.port);
            let (Some(rate), Some(target)) = (policy.and_then(|p| p.rate), target_on(pod, &port.target)) else {
                continue;
            };
            let traffic = if port.protocol == Protocol::Tcp { Traffic::Tcp } else { Traffic::Http };
            let per_second = |rate: &RateLimit| f64::from(rate.tokens) / rate.per.as_secs_f64();
            match rates.get(&target) {
                Some((_, other)) if per_second(other) <= per_second(&rate) => {}
                _ => drop(rates.insert(target, (traffic, rate))),
            }
        }
    }
    rates
}

/// The pod's ports that some Service declares to speak HTTP.
fn http_ports(world: &World, pod: &Pod) -> BTreeSet<u16> {
    let services = world.services_of_pod(pod);
    let ports = services.flat_map(|service| &service.ports);
    ports
        .filter(|port| matches!(port.protocol, Protocol::Http | Protocol::Http2 | Protocol::Grpc))
        .filter_map(|port| target_on(pod, &port.target))
        .collect()
}

pub(super) fn target_ref(target: &TrafficTarget) -> ObjectRef {
    ObjectRef { kind: Kind::TrafficTarget, namespace: Some(target.namespace.clone()), name: target.name.clone() }
}

#[cfg(test)]
mod tests;
