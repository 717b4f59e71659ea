//! What the control plane would say of objects that nobody has applied yet.
//!
//! ```text
//!  [Event] ─▶ pods of Deployments and StatefulSets, addresses ─▶ World ─▶ Translator ─▶ what `weft serve` would say
//!                                                                    └──▶ references ─▶ what is named and not there
//! ```
//!
//! The world and the plans are made by the code that serves. Only what a cluster would add is made up: the pods, one of
//! each workload, and addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::envoy::Translator;
use crate::inject::{SIDECAR, wanted};
use crate::mesh::object::Object;
use crate::mesh::{self, Diagnostic, Dirty, Kind, ObjectRef, ServiceAccountKey, World};
use crate::policy::references;
use crate::source::Event;
use crate::source::convert::convert;
use crate::source::manifest::Manifest;

/// What a pod's template is a part of, and where it stands there.
struct Owner {
    object: ObjectRef,
    prefix: &'static str,
}

/// All that a control plane would say if these were its objects, beyond what the events say themselves. No finding has a
/// place.
pub fn diagnostics(events: &[Event]) -> Vec<Diagnostic> {
    let applied = || {
        events.iter().filter_map(|event| match event {
            Event::Apply { manifest, object, .. } => Some((manifest.as_ref(), object.as_ref())),
            _ => None,
        })
    };
    let meshed: BTreeSet<&str> = applied().filter_map(|(manifest, _)| meshed_namespace(manifest)).collect();
    let mut world = World::default();
    let mut dirty = Dirty::default();
    let mut owners = BTreeMap::new();
    let mut found = Vec::new();
    let mut accounts = BTreeSet::new();
    let (mut pod_ips, mut service_ips) = (addresses([10, 244, 0, 1]), addresses([10, 96, 0, 1]));
    for (manifest, object) in applied() {
        if let Manifest::ServiceAccount(account) = manifest {
            let namespace = account.metadata.namespace.as_deref().unwrap_or("default");
            let name = account.metadata.name.as_deref().unwrap_or_default();
            accounts.insert(ServiceAccountKey::new(namespace, name));
        }
        let mut object = object.cloned();
        if let Some(Object::Service(service)) = &mut object
            && service.cluster_ips.is_empty()
            && !service.headless
        {
            service.cluster_ips.extend(service_ips.next());
        }
        if let (None, Some((owner, pod))) = (&object, pod_of(manifest, &meshed, pod_ips.next())) {
            let reference = pod.object_ref();
            match convert(&pod) {
                Ok(converted) => {
                    object = converted.object;
                    // A Pod that stands for itself has been converted already.
                    if manifest.kind() != Kind::Pod {
                        found.extend(converted.warnings);
                    }
                }
                Err(errors) => found.extend(errors),
            }
            owners.insert(reference, owner);
        }
        dirty.merge(object.map(|object| world.apply(mesh::Event::Apply(object))).unwrap_or_default());
    }
    dirty.config = true;
    let mut translator = Translator::default();
    translator.translate(&world, &dirty);
    found.extend(translator.diagnostics());
    found.extend(references::dangling(&world, &accounts));
    let mut said = BTreeSet::new();
    let found = found.into_iter().map(|found| about_owner(found, &owners));
    found.filter(|found| said.insert((found.object.clone(), found.field.clone(), found.reason.clone()))).collect()
}

/// The name of a namespace whose pods are given a sidecar.
fn meshed_namespace(manifest: &Manifest) -> Option<&str> {
    let Manifest::Namespace(namespace) = manifest else { return None };
    namespace.metadata.name.as_deref().filter(|_| wanted::is_meshed(&namespace.metadata))
}

fn addresses(first: [u8; 4]) -> impl Iterator<Item = IpAddr> {
    (u32::from_be_bytes(first)..).map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)))
}

/// The pod that a cluster would make of a workload's template, or of a Pod that has no address yet.
fn pod_of(manifest: &Manifest, meshed: &BTreeSet<&str>, ip: Option<IpAddr>) -> Option<(Owner, Manifest)> {
    let (mut pod, prefix) = match manifest {
        Manifest::Deployment(deployment) => (templated(manifest, &deployment.spec.template), "spec.template."),
        Manifest::StatefulSet(set) => (templated(manifest, &set.spec.template), "spec.template."),
        Manifest::Pod(pod) => (Pod::clone(pod), ""),
        _ => return None,
    };
    let by_namespace = pod.metadata.namespace.as_deref().is_some_and(|namespace| meshed.contains(namespace));
    if wanted::wants_sidecar(by_namespace, &pod.metadata) {
        let sidecar = Container { name: SIDECAR.to_owned(), ..Container::default() };
        pod.spec.get_or_insert_default().init_containers.get_or_insert_default().push(sidecar);
    }
    pod.status = Some(PodStatus { pod_ip: ip.map(|ip| ip.to_string()), ..PodStatus::default() });
    let owner = Owner { object: manifest.object_ref(), prefix };
    Some((owner, Manifest::Pod(Box::new(pod))))
}

fn templated(manifest: &Manifest, template: &PodTemplateSpec) -> Pod {
    let workload = manifest.metadata();
    let kind = manifest.kind().to_string();
    let name = workload.name.clone().unwrap_or_default();
    let own = template.metadata.clone().unwrap_or_default();
    let metadata = ObjectMeta {
        // No pod of its own has such a name.
        name: Some(format!("{kind}/{name}")),
        namespace: Some(workload.namespace.clone().unwrap_or_else(|| "default".to_owned())),
        owner_references: Some(vec![OwnerReference { kind, name, ..OwnerReference::default() }]),
        ..own
    };
    Pod { metadata, spec: template.spec.clone(), status: None }
}

/// A finding about a pod that was made up is about what it was made of.
fn about_owner(found: Diagnostic, owners: &BTreeMap<ObjectRef, Owner>) -> Diagnostic {
    let Some(Owner { object, prefix }) = found.object.as_ref().and_then(|object| owners.get(object)) else {
        return found;
    };
    Diagnostic { field: format!("{prefix}{}", found.field), ..found }.about(object.clone())
}

#[cfg(test)]
mod tests;
