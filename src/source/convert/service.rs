//! Services and EndpointSlices.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::mesh::object::{Endpoint, EndpointSlice, Service, ServicePort, TargetPort, ZonePreference};
use crate::mesh::{PodKey, ServiceKey};

use super::{Findings, name_of, namespace_of, protocol};

/// A Service; `None` for one of type ExternalName, which is a DNS alias to somewhere outside the mesh.
pub(super) fn service(service: &core::Service, findings: &mut Findings) -> Option<Service> {
    let (key, empty) =
        (ServiceKey::new(namespace_of(&service.metadata), name_of(&service.metadata)), Default::default());
    let spec = service.spec.as_ref().unwrap_or(&empty);
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let cluster_ips = match spec.cluster_ips.as_deref().filter(|ips| !ips.is_empty()) {
        Some(ips) => ips.iter().enumerate().map(|(i, ip)| (format!("spec.clusterIPs[{i}]"), ip)).collect(),
        None => Vec::from_iter(spec.cluster_ip.iter().map(|ip| ("spec.clusterIP".to_owned(), ip))),
    };
    let cluster_ips = cluster_ips
        .into_iter()
        .filter(|(_, ip)| !ip.is_empty() && *ip != "None")
        .filter_map(|(field, ip)| findings.ip(&field, ip))
        .collect();
    Some(Service {
        key,
        cluster_ips,
        headless,
        ports: ports(spec.ports.as_deref().unwrap_or_default(), findings),
        selector: spec.selector.clone().unwrap_or_default(),
        zone: zone(service, headless, findings),
    })
}

/// The annotation by which Kubernetes is asked to keep calls in their zone, and its older name. It has meant so before
/// there was `spec.trafficDistribution`.
const TOPOLOGY_MODES: [&str; 2] = ["service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints"];

fn zone(service: &core::Service, headless: bool, findings: &mut Findings) -> ZonePreference {
    let annotations = service.metadata.annotations.as_ref();
    let annotated = TOPOLOGY_MODES.into_iter().find(|name| {
        let mode = annotations.and_then(|annotations| annotations.get(*name));
        mode.is_some_and(|mode| mode.eq_ignore_ascii_case("auto"))
    });
    let field = "spec.trafficDistribution";
    let asked = match service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref()) {
        Some("PreferClose" | "PreferSameZone") => Some(field.to_owned()),
        Some("PreferSameNode") => {
            let reason = "sidecars know zones and no nodes, so `PreferSameNode` counts as `PreferSameZone`";
            findings.warning(field, reason, "use PreferSameZone");
            Some(field.to_owned())
        }
        Some(other) if !other.is_empty() => {
            let reason = format!("`{other}` is not known and changes nothing");
            findings.warning(field, reason, "use PreferSameZone, or remove it");
            None
        }
        _ => None,
    };
    match asked.or_else(|| annotated.map(|name| format!("metadata.annotations.{name}"))) {
        Some(field) if headless => {
            let reason = "callers of a headless Service choose a pod themselves, in whichever zone it is";
            findings.warning(field, reason, "give the Service a cluster IP, or remove it");
            ZonePreference::Any
        }
        Some(_) => ZonePreference::Prefer,
        None => ZonePreference::Any,
    }
}

/// The TCP ports; UDP and SCTP ports are no business of the mesh.
fn ports(ports: &[core::ServicePort], findings: &mut Findings) -> Vec<ServicePort> {
    let (mut names, mut numbers, mut converted) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for (index, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let name = port.name.clone().unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            findings.error(
                field("name"),
                "a port of a Service with several ports has no name",
                "give each port a name",
            );
        } else if !names.insert(name.clone()) {
            findings.error(field("name"), format!("two ports are named `{name}`"), "give each port a name of its own");
        }
        let transport = port.protocol.as_deref().unwrap_or("TCP");
        if !matches!(transport, "TCP" | "UDP" | "SCTP") {
            findings.error(
                field("protocol"),
                format!("`{transport}` is not a transport protocol"),
                "use TCP, UDP or SCTP; what is spoken above it goes into appProtocol",
            );
        }
        let number = findings.port(&field("port"), port.port);
        if !numbers.insert((transport, port.port)) {
            findings.error(field("port"), format!("port {} is there twice", port.port), "remove one of the two");
        }
        let target = target(&field("targetPort"), port, findings);
        let (Some(number), Some(target)) = (number, target) else { continue };
        if transport == "TCP" {
            let numbers = match target {
                TargetPort::Number(target) => vec![number, target],
                TargetPort::Name(_) => vec![number],
            };
            let protocol = protocol::of(port.app_protocol.as_deref(), &name, &numbers);
            converted.push(ServicePort { name, port: number, target, protocol });
        }
    }
    converted
}

fn target(field: &str, port: &core::ServicePort, findings: &mut Findings) -> Option<TargetPort> {
    match &port.target_port {
        // 0 and "" are Go's zero values: not set.
        None | Some(IntOrString::Int(0)) => u16::try_from(port.port).ok().map(TargetPort::Number),
        Some(IntOrString::Int(number)) => findings.port(field, *number).map(TargetPort::Number),
        Some(IntOrString::String(name)) if name.is_empty() => u16::try_from(port.port).ok().map(TargetPort::Number),
        Some(IntOrString::String(name)) if is_port_name(name) => Some(TargetPort::Name(name.clone())),
        Some(IntOrString::String(name)) => {
            let help = match name.parse::<u16>() {
                Ok(number) => format!("write the number without quotes: {number}"),
                Err(_) => "use the name of a container port: at most 15 of a-z, 0-9 and `-`, with a letter".to_owned(),
            };
            findings.error(field, format!("`{name}` is not the name of a port"), help);
            None
        }
    }
}

/// RFC 6335, section 5.1, as Kubernetes checks it (IANA_SVC_NAME).
fn is_port_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    name.len() <= 15
        && name.chars().all(allowed)
        && name.chars().any(|c| c.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}

/// The zone whose callers an endpoint is for. Kubernetes may give it to several; then its own if it is among them.
fn zone_of(endpoint: &discovery::Endpoint) -> Option<&str> {
    let own = endpoint.zone.as_deref().filter(|zone| !zone.is_empty());
    let hints = endpoint.hints.as_ref().and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
    let hinted = || hints.iter().map(|hint| hint.name.as_str()).filter(|zone| !zone.is_empty());
    match own.filter(|own| hinted().any(|zone| zone == *own)) {
        Some(own) => Some(own),
        None => hinted().next().or(own),
    }
}

/// An EndpointSlice; `None` for one that is no Service's, or that has names in place of addresses.
pub(super) fn endpoint_slice(slice: &discovery::EndpointSlice, findings: &mut Findings) -> Option<EndpointSlice> {
    let metadata = &slice.metadata;
    let namespace = namespace_of(metadata);
    let Some(service) = metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name")) else {
        findings.warning(
            "metadata.labels",
            "the slice belongs to no Service and is not used",
            "set the label kubernetes.io/service-name to the Service's name",
        );
        return None;
    };
    if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
        findings.warning(
            "addressType",
            format!("`{}` addresses are not used", slice.address_type),
            "use IPv4 or IPv6 addresses",
        );
        return None;
    }
    let mut ports = std::collections::BTreeMap::new();
    for (index, port) in slice.ports.iter().flatten().enumerate() {
        let field = format!("ports[{index}].port");
        match port.port {
            _ if port.protocol.as_deref().is_some_and(|protocol| protocol != "TCP") => {}
            Some(number) => {
                if let Some(number) = findings.port(&field, number) {
                    ports.insert(port.name.clone().unwrap_or_default(), number);
                }
            }
            None => findings.warning(field, "the port has no number and is not used", "give its number"),
        }
    }
    let endpoint = |(index, endpoint): (usize, &discovery::Endpoint)| {
        let field = format!("endpoints[{index}].addresses");
        // The API gives no meaning to addresses after the first, and kube-proxy does not look at them.
        if endpoint.addresses.len() > 1 {
            findings.warning(
                &field,
                "only the first address of an endpoint is used",
                "give each address its own endpoint",
            );
        }
        let Some(address) = endpoint.addresses.first() else {
            findings.error(&field, "the endpoint has no address", "give it one, or remove it");
            return None;
        };
        let conditions = endpoint.conditions.as_ref();
        let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
        Some(Endpoint {
            ip: findings.ip(&format!("{field}[0]"), address)?,
            ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
            terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
            pod: target.and_then(|target| {
                let namespace = target.namespace.as_deref().map_or_else(|| namespace.clone(), Into::into);
                Some(PodKey::new(namespace, target.name.as_deref()?))
            }),
            zone: zone_of(endpoint).map(Into::into),
        })
    };
    let endpoints = slice.endpoints.iter().flatten().enumerate().filter_map(endpoint).collect();
    Some(EndpointSlice {
        name: name_of(metadata),
        service: ServiceKey::new(namespace.clone(), service.as_str()),
        ports,
        endpoints,
    })
}
