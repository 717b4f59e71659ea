//! What objects name and a mesh does not have, where only a look at the whole can tell.
//!
//! A running control plane does not say so: what is named may come a moment later, and a workload may be scaled to
//! nothing. Who checks a whole mesh before it is applied wants to know.

use std::collections::BTreeSet;

use super::egress::egress_ref;
use super::fault::fault_ref;
use super::inbound::{dangling_rules, target_ref};
use crate::mesh::object::{Pod, Service};
use crate::mesh::{Diagnostic, Kind, ObjectRef, ServiceAccountKey, World};

/// What is named and not there. `declared` are the ServiceAccounts, which the world does not know.
pub fn dangling(world: &World, declared: &BTreeSet<ServiceAccountKey>) -> Vec<Diagnostic> {
    let is_account = |account: &ServiceAccountKey| {
        &*account.name == "default" || declared.contains(account) || world.pods_of(account).next().is_some()
    };
    let mut found = Vec::new();
    for target in world.targets() {
        found.extend(dangling_rules(world, target));
        let account = &target.destination;
        let mut pods = world.pods_of(account).peekable();
        let help =
            format!("set `serviceAccountName: {}` in the pods that are meant, or correct the name", account.name);
        if pods.peek().is_none() {
            let reason = format!("no pod runs under ServiceAccount {account}, so nothing is allowed by it");
            found.push(Diagnostic::warning("spec.destination", reason, help).about(target_ref(target)));
        } else if pods.all(|pod| !pod.meshed) {
            let reason = format!("no pod of ServiceAccount {account} has a sidecar, which would enforce it");
            let help = "label their namespace with weft.dev/inject: enabled";
            found.push(Diagnostic::warning("spec.destination", reason, help).about(target_ref(target)));
        }
        let unknown = target.sources.iter().filter(|account| !is_account(account));
        found.extend(unknown.map(|account| without_account("spec.sources", account).about(target_ref(target))));
    }
    for fault in world.faults() {
        let unknown = fault.callers.iter().flatten().filter(|account| !is_account(account));
        found.extend(unknown.map(|account| without_account("spec.callers", account).about(fault_ref(fault))));
    }
    for egress in world.egresses() {
        let unknown = egress.sources.iter().flatten().filter(|account| !is_account(account));
        found.extend(unknown.map(|account| without_account("spec.sources", account).about(egress_ref(egress))));
    }
    found.extend(world.services().filter_map(|service| without_pods(world, service)));
    found.extend(world.pods().flat_map(|pod| unknown_upstreams(world, pod)));
    found
}

fn without_account(field: &str, account: &ServiceAccountKey) -> Diagnostic {
    let reason = format!("there is no ServiceAccount {account}, and no pod runs under one");
    Diagnostic::warning(field, reason, "create it, or correct its name or namespace")
}

/// A Service whose selector no pod has.
fn without_pods(world: &World, service: &Service) -> Option<Diagnostic> {
    let is_sliced = world.slices_of(&service.key).next().is_some();
    if service.selector.is_empty() || is_sliced || world.selected_by(service).next().is_some() {
        return None;
    }
    let labels = service.selector.iter().map(|(name, value)| format!("{name}: {value}"));
    let labels = labels.collect::<Vec<_>>().join(", ");
    let reason =
        format!("no pod of {} has the labels `{labels}`, so the Service has no endpoint", service.key.namespace);
    let about = ObjectRef {
        kind: Kind::Service,
        namespace: Some(service.key.namespace.clone()),
        name: service.key.name.clone(),
    };
    Some(Diagnostic::warning("spec.selector", reason, "correct the selector, or the labels of the pods").about(about))
}

fn unknown_upstreams(world: &World, pod: &Pod) -> Vec<Diagnostic> {
    let about = ObjectRef { kind: Kind::Pod, namespace: Some(pod.key.namespace.clone()), name: pod.key.name.clone() };
    let unknown = pod.upstreams.iter().filter(|upstream| {
        let service = world.service(&upstream.service);
        service.is_none_or(|service| upstream.port.is_some_and(|port| service.ports.iter().all(|p| p.port != port)))
    });
    let say = |upstream| {
        let reason = format!("there is no Service `{upstream}`, so it is not warmed");
        let help = "correct its name, namespace or port, or remove it";
        Diagnostic::warning("metadata.annotations.weft.dev/upstreams", reason, help).about(about.clone())
    };
    unknown.map(say).collect()
}
