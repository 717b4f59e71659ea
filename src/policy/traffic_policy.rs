//! Which TrafficPolicy counts for a Service's port: one that names the port, then the oldest, then the first by name.
//! It counts whole.

use std::collections::BTreeSet;

use crate::mesh::object::{Attachment, Protocol, Service, TrafficPolicy};
use crate::mesh::{Diagnostic, Kind, ObjectRef, ServiceKey, World};

/// The policy of a Service's port.
pub(super) fn of_port<'a>(world: &'a World, service: &ServiceKey, port: u16) -> Option<&'a TrafficPolicy> {
    candidates(world, service, port).into_iter().next()
}

/// The policies that target a port, the one that counts first.
fn candidates<'a>(world: &'a World, service: &ServiceKey, port: u16) -> Vec<&'a TrafficPolicy> {
    let rank = |policy: &TrafficPolicy| {
        let targets = policy.targets.iter().filter(|target| target.service == *service);
        targets
            .filter(|target| target.port.is_none_or(|target| target == port))
            .map(|target| target.port.is_none())
            .min()
    };
    let ranked = world.policies_of(service).filter_map(|policy| Some((rank(policy)?, policy)));
    let mut ranked: Vec<_> = ranked.collect();
    ranked.sort_by_key(|(any_port, policy)| (*any_port, policy.created, &policy.name));
    ranked.into_iter().map(|(_, policy)| policy).collect()
}

/// What the authors of a Service's policies should know.
pub(super) fn diagnostics(world: &World, service: &Service) -> Vec<Diagnostic> {
    let mut said = Vec::new();
    let mut told = BTreeSet::new();
    for port in &service.ports {
        let candidates = candidates(world, &service.key, port.port);
        let Some((winner, losers)) = candidates.split_first() else { continue };
        for loser in losers.iter().filter(|loser| told.insert((&winner.name, &loser.name))) {
            // Who names a port is meant to come before who names none.
            if names_port(winner, &service.key, port.port) && !names_port(loser, &service.key, port.port) {
                continue;
            }
            let reason = format!(
                "the policy `{}` already counts for port {} of Service {}",
                winner.name, port.port, service.key
            );
            let help = "delete one of the two, or let them name other ports; this one counts when the other is gone";
            said.push(Diagnostic::warning("spec.targetRefs", reason, help).about(policy_ref(loser)));
        }
    }
    for policy in world.policies_of(&service.key) {
        let targets = policy.targets.iter().enumerate().filter(|(_, target)| target.service == service.key);
        for (position, Attachment { port, .. }) in targets {
            if let Some(port) = port.filter(|port| service.ports.iter().all(|known| known.port != *port)) {
                let reason = format!("Service {} has no port {port}", service.key);
                let help = "correct the port, or remove it for every port";
                let field = format!("spec.targetRefs[{position}].port");
                said.push(Diagnostic::warning(field, reason, help).about(policy_ref(policy)));
            }
        }
        if service.headless {
            let reason = format!("Service {} is headless, so only its rate limit counts", service.key);
            let help = "calls to a pod's own address pass without a policy: give the Service a cluster IP";
            said.push(Diagnostic::warning("spec.targetRefs", reason, help).about(policy_ref(policy)));
        }
        said.extend(for_requests_only(service, policy));
    }
    said
}

/// What of a policy means nothing on the TCP ports that it names.
fn for_requests_only(service: &Service, policy: &TrafficPolicy) -> Option<Diagnostic> {
    let is_tcp = |port: u16| service.ports.iter().any(|known| known.port == port && known.protocol == Protocol::Tcp);
    let tcp = policy.targets.iter().filter(|target| target.service == service.key).filter_map(|target| target.port);
    let port = tcp.into_iter().find(|port| is_tcp(*port))?;
    let requests = &policy.requests;
    let unused = [
        ("spec.timeouts", requests.timeout.is_some() || requests.idle.is_some()),
        ("spec.retries", requests.retries.is_some()),
        ("spec.loadBalancing.hash", requests.hash.is_some()),
        ("spec.connections", policy.connections.max_age.is_some()),
    ];
    let (field, _) = unused.into_iter().find(|(_, is_set)| *is_set)?;
    let reason = format!("port {port} of Service {} is TCP, and this is about requests", service.key);
    Some(Diagnostic::warning(field, reason, "name a port for HTTP or gRPC, or remove it").about(policy_ref(policy)))
}

fn names_port(policy: &TrafficPolicy, service: &ServiceKey, port: u16) -> bool {
    policy.targets.iter().any(|target| target.service == *service && target.port == Some(port))
}

/// What the authors of policies whose target does not exist should know.
pub(super) fn without_target(world: &World, key: &ServiceKey) -> Vec<Diagnostic> {
    let policy = |policy: &TrafficPolicy| {
        let position = policy.targets.iter().position(|target| target.service == *key).unwrap_or_default();
        let reason = format!("Service {key} does not exist");
        let field = format!("spec.targetRefs[{position}]");
        Diagnostic::warning(field, reason, "create it, or correct the name").about(policy_ref(policy))
    };
    world.policies_of(key).map(policy).collect()
}

fn policy_ref(policy: &TrafficPolicy) -> ObjectRef {
    ObjectRef { kind: Kind::TrafficPolicy, namespace: Some(policy.namespace.clone()), name: policy.name.clone() }
}

#[cfg(test)]
mod tests;
