//! EndpointSlices from Services and pods: Kubernetes' endpointslice controller.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::object::{name, namespace};
use super::pod::LivePod;
use super::{hash, object};
use crate::mesh::object::ZONE_LABEL;

/// The label that names a slice's Service.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that tells who writes a slice.
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Its value for the slices of this file.
pub(super) const CONTROLLER: &str = "endpointslice-controller.k8s.io";

/// A family of addresses, by its name in Kubernetes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Family {
    IPv4,
    IPv6,
}

impl Family {
    /// The families of a Service, its primary one first: what it asks for, as far as the cluster has it.
    pub(super) fn of(spec: &ServiceSpec, dual_stack: bool) -> Vec<Self> {
        let asked = spec.ip_families.as_deref().unwrap_or_default();
        let primary = if asked.first().is_some_and(|family| family == "IPv6") { Self::IPv6 } else { Self::IPv4 };
        let both = matches!(spec.ip_family_policy.as_deref(), Some("PreferDualStack" | "RequireDualStack"));
        match (dual_stack, both || asked.len() > 1, primary) {
            (false, ..) => vec![Self::IPv4],
            (true, false, primary) => vec![primary],
            (true, true, Self::IPv4) => vec![Self::IPv4, Self::IPv6],
            (true, true, Self::IPv6) => vec![Self::IPv6, Self::IPv4],
        }
    }

    fn address(self, pod: &LivePod) -> Option<String> {
        match self {
            Self::IPv4 => Some(pod.run.ip.to_string()),
            Self::IPv6 => pod.run.ipv6.map(|ip| ip.to_string()),
        }
    }
}

/// A Service port on certain pods: its name, its protocol, and its number there.
type Port = (Option<String>, String, i32);

/// Whether the Service's selector chooses a pod with these labels. No selector chooses none.
pub(super) fn selects(service: &Service, labels: Option<&BTreeMap<String, String>>) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let external = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
    !external
        && selector.is_some_and(|selector| {
            !selector.is_empty()
                && selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
        })
}

/// The slices of `service`. `pods` are those of its namespace; without a selector there are no slices.
///
/// Pods on which named target ports lead to different numbers stand in different slices, as in Kubernetes.
pub(super) fn slices<'a>(service: &Service, pods: impl IntoIterator<Item = &'a LivePod>) -> Vec<EndpointSlice> {
    let Some(spec) = &service.spec else { return Vec::new() };
    if spec.type_.as_deref() == Some("ExternalName") || spec.selector.as_ref().is_none_or(BTreeMap::is_empty) {
        return Vec::new();
    }
    let chosen =
        pods.into_iter().filter(|pod| selects(service, pod.object.metadata.labels.as_ref()) && !pod.finished());
    let chosen = Vec::from_iter(chosen);
    // What the controller has noted; a cluster of one family notes nothing.
    let families = Family::of(spec, spec.ip_families.is_some());
    families.into_iter().flat_map(|family| slices_of(service, spec, family, &chosen)).collect()
}

fn slices_of(service: &Service, spec: &ServiceSpec, family: Family, chosen: &[&LivePod]) -> Vec<EndpointSlice> {
    let mut by_ports: BTreeMap<Vec<Port>, Vec<Endpoint>> = BTreeMap::new();
    for pod in chosen {
        let ports = spec.ports.iter().flatten();
        let ports = ports
            .filter_map(|port| Some((port.name.clone(), protocol(port).to_owned(), target(port, &pod.object)?)))
            .collect();
        by_ports.entry(ports).or_default().extend(endpoint(service, pod, family));
    }
    if by_ports.is_empty() {
        by_ports.insert(Vec::new(), Vec::new());
    }
    by_ports.into_iter().map(|(ports, endpoints)| slice(service, family, &ports, endpoints)).collect()
}

/// A Service port's protocol.
pub(super) fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

/// Where a Service port leads on `pod`; `None` when the pod has no port of that name.
fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
            containers
                .flat_map(|container| container.ports.iter().flatten())
                .find(|p| p.name.as_ref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol(port))
                .map(|p| p.container_port)
        }
    }
}

fn endpoint(service: &Service, pod: &LivePod, family: Family) -> Option<Endpoint> {
    let spec = service.spec.as_ref();
    let always = spec.and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    let terminating = pod.deleted.is_some();
    let metadata = &pod.object.metadata;
    let zone = [&metadata.labels, &metadata.annotations].into_iter().flatten().find_map(|map| map.get(ZONE_LABEL));
    let pod_spec = pod.object.spec.as_ref();
    let subdomain = pod_spec.and_then(|spec| spec.subdomain.as_deref());
    let hostname = pod_spec.and_then(|spec| spec.hostname.clone());
    Some(Endpoint {
        addresses: vec![family.address(pod)?],
        conditions: Some(EndpointConditions {
            ready: Some(always || (pod.ready && !terminating)),
            serving: Some(always || pod.ready),
            terminating: Some(terminating),
        }),
        hostname: hostname.filter(|_| subdomain == Some(name(&service.metadata))),
        node_name: pod_spec.and_then(|spec| spec.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.key().namespace.to_string()),
            name: Some(pod.key().name.to_string()),
            uid: Some(pod.run.uid.clone()),
            ..ObjectReference::default()
        }),
        zone: zone.cloned(),
        ..Endpoint::default()
    })
}

fn slice(service: &Service, family: Family, ports: &[Port], endpoints: Vec<Endpoint>) -> EndpointSlice {
    let (namespace, name) = (namespace(&service.metadata), object::name(&service.metadata));
    let app_protocol = |wanted: &Option<String>| {
        let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        ports.clone().find(|port| port.name == *wanted).and_then(|port| port.app_protocol.clone())
    };
    let labels = [(SERVICE_NAME, name), (MANAGED_BY, CONTROLLER)];
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(format!(
                "{name}-{}",
                hash::suffix(
                    &format!("{namespace}/{name} {ports:?}{}", if family == Family::IPv4 { "" } else { " IPv6" }),
                    5
                )
            )),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Service".to_owned(),
                name: name.to_owned(),
                uid: service.metadata.uid.clone().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        address_type: format!("{family:?}"),
        ports: Some(
            ports
                .iter()
                .map(|(name, protocol, port)| EndpointPort {
                    name: Some(name.clone().unwrap_or_default()),
                    port: Some(*port),
                    protocol: Some(protocol.clone()),
                    app_protocol: app_protocol(name),
                })
                .collect(),
        ),
        endpoints: Some(endpoints),
    }
}
