//! Which faults hit the calls to a Service's port, in the order in which they count.
//!
//! Of two faults that could hit the same request the older one counts for it, then the first by name; so a fault also
//! decides for the requests that its percentage spares.

use std::collections::BTreeSet;

use crate::mesh::object::{
    Attachment, Harm, HttpMatch, Percentage, Protocol, Requests, Service, ServicePort, TrafficFault,
};
use crate::mesh::{Diagnostic, Kind, ObjectRef, ServiceAccountKey, ServiceKey, World};

use super::overlap::could_both_fit;

/// A fault of one port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FaultPlan {
    /// The TrafficFault: `NAMESPACE/NAME`.
    pub name: String,
    /// Whom it hits; `None`: every caller.
    pub callers: Option<BTreeSet<ServiceAccountKey>>,
    /// The requests that it hits, any of which; never empty.
    pub matches: Vec<HttpMatch>,
    /// How many of them.
    pub percentage: Percentage,
    /// What happens to them.
    pub harm: Harm,
}

/// The faults of each port of a Service, in the Service's order of ports.
pub(super) fn faults(world: &World, service: &Service, diagnostics: &mut Vec<Diagnostic>) -> Vec<Vec<FaultPlan>> {
    let mut faults: Vec<_> = world.faults_of(&service.key).collect();
    faults.sort_by_key(|fault| (fault.created, &fault.name));
    let mut plans = Vec::new();
    for fault in faults {
        diagnostics.extend(not_hit(service, fault));
        plans.extend(plan(world, fault, diagnostics).map(|plan| (fault, plan)));
    }
    let mut told = BTreeSet::new();
    let mut of_port = |port: u16| {
        let mut hits: Vec<&(&TrafficFault, FaultPlan)> = Vec::new();
        for candidate in plans.iter().filter(|(fault, _)| is_target(fault, &service.key, port)) {
            let (fault, plan) = candidate;
            let older = hits.iter().find(|(_, older)| could_hit_the_same(older, plan));
            if let Some((older, _)) = older.filter(|(older, _)| told.insert((&older.name, &fault.name))) {
                diagnostics.push(shadowed(fault, older, &service.key));
            }
            hits.push(candidate);
        }
        hits.into_iter().map(|(_, plan)| plan.clone()).collect()
    };
    let is_hit = |port: &ServicePort| port.protocol != Protocol::Tcp && !service.headless;
    service.ports.iter().map(|port| if is_hit(port) { of_port(port.port) } else { Vec::new() }).collect()
}

fn shadowed(fault: &TrafficFault, older: &TrafficFault, service: &ServiceKey) -> Diagnostic {
    let reason =
        format!("the older fault `{}` decides for the requests to Service {service} that both could hit", older.name);
    let help = "let the two hit other callers or requests; this one takes over when the other is gone";
    Diagnostic::warning("spec.requests", reason, help).about(fault_ref(fault))
}

/// What the authors of faults whose target does not exist should know.
pub(super) fn without_target(world: &World, key: &ServiceKey) -> Vec<Diagnostic> {
    let fault = |fault| {
        refused(fault, key, None, format!("Service {key} does not exist"), "create it, or correct the name".to_owned())
    };
    world.faults_of(key).map(fault).collect()
}

/// Why a fault does not hit some port that it targets.
fn not_hit(service: &Service, fault: &TrafficFault) -> Vec<Diagnostic> {
    let key = &service.key;
    if service.headless {
        let help = "calls to a pod's own address pass without a fault: give the Service a cluster IP";
        let reason = format!("Service {key} is headless, so its calls are not hit");
        return vec![refused(fault, key, None, reason, help.to_owned())];
    }
    let targets = fault.targets.iter().filter(|target| target.service == *key);
    let ports = |target: Option<u16>| service.ports.iter().filter(move |port| target.is_none_or(|t| t == port.port));
    let unhit = targets.flat_map(|target| {
        let missing = target.port.filter(|_| ports(target.port).next().is_none()).map(|port| {
            let reason = format!("Service {key} has no port {port}");
            refused(fault, key, target.port, reason, "correct the port, or remove it to hit every port".to_owned())
        });
        let tcp = ports(target.port).filter(|port| port.protocol == Protocol::Tcp).map(move |port| {
            let reason = format!("port {} of Service {key} is TCP, and faults hit requests only", port.port);
            refused(fault, key, target.port, reason, "name a port for HTTP or gRPC".to_owned())
        });
        missing.into_iter().chain(tcp).collect::<Vec<_>>()
    });
    unhit.collect()
}

fn refused(fault: &TrafficFault, key: &ServiceKey, port: Option<u16>, reason: String, help: String) -> Diagnostic {
    let is = |target: &Attachment| target.service == *key && port.is_none_or(|port| target.port == Some(port));
    let position = fault.targets.iter().position(is).unwrap_or_default();
    let part = if port.is_some() { ".port" } else { "" };
    let field = format!("spec.targetRefs[{position}]{part}");
    Diagnostic::warning(field, reason, help).about(fault_ref(fault))
}

fn is_target(fault: &TrafficFault, service: &ServiceKey, port: u16) -> bool {
    let is = |target: &Attachment| target.port.is_none_or(|target| target == port);
    fault.targets.iter().any(|target| target.service == *service && is(target))
}

/// The plan, unless it hits nothing.
fn plan(world: &World, fault: &TrafficFault, diagnostics: &mut Vec<Diagnostic>) -> Option<FaultPlan> {
    let matches = match &fault.requests {
        None => vec![HttpMatch::any()],
        Some(requests) => {
            let of = |(position, requests)| matches(world, fault, position, requests, diagnostics);
            requests.iter().enumerate().flat_map(of).collect()
        }
    };
    (!matches.is_empty()).then(|| FaultPlan {
        name: format!("{}/{}", fault.namespace, fault.name),
        callers: fault.callers.clone(),
        matches,
        percentage: fault.percentage,
        harm: fault.harm.clone(),
    })
}

fn matches(
    world: &World,
    fault: &TrafficFault,
    position: usize,
    requests: &Requests,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<HttpMatch> {
    let (name, only) = match requests {
        Requests::Inline(one) => return vec![one.clone()],
        Requests::Group(name, only) => (name, only),
    };
    let Some(group) = world.route_group(&fault.namespace, name) else {
        let reason = format!("there is no HTTPRouteGroup {}/{name}, so no request is hit by it", fault.namespace);
        let field = format!("spec.requests[{position}].routeGroup");
        let missing = Diagnostic::warning(field, reason, "create it, or correct the name");
        diagnostics.push(missing.about(fault_ref(fault)));
        return Vec::new();
    };
    for name in only.iter().flatten().filter(|name| group.matches.iter().all(|one| one.name != **name)) {
        let reason = format!("HTTPRouteGroup {}/{} has no match `{name}`", fault.namespace, group.name);
        let field = format!("spec.requests[{position}].matches");
        let missing = Diagnostic::warning(field, reason, "correct the name, or add the match to the group");
        diagnostics.push(missing.about(fault_ref(fault)));
    }
    let counts = |one: &&HttpMatch| only.as_ref().is_none_or(|names| names.contains(&one.name));
    group.matches.iter().filter(counts).cloned().collect()
}

fn could_hit_the_same(one: &FaultPlan, other: &FaultPlan) -> bool {
    let callers = match (&one.callers, &other.callers) {
        (Some(one), Some(other)) => !one.is_disjoint(other),
        _ => true,
    };
    callers && one.matches.iter().any(|one| other.matches.iter().any(|other| could_both_fit(one, other)))
}

pub(super) fn fault_ref(fault: &TrafficFault) -> ObjectRef {
    ObjectRef { kind: Kind::TrafficFault, namespace: Some(fault.namespace.clone()), name: fault.name.clone() }
}

#[cfg(test)]
mod tests;
