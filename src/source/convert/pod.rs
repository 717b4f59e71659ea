//! Pods: where they are, who they are, and what the kubelet asks of them.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::mesh::object::{ContainerPort, Pod, Probe};
use crate::mesh::{PodKey, ServiceAccountKey, Upstream, WorkloadKey};

use super::{Findings, mtls, name_of, namespace_of, telemetry};

/// The name of the sidecar's container.
const SIDECAR: &str = "weft-proxy";
/// The label by which a Deployment tells the pods of its ReplicaSets apart; its value ends the ReplicaSet's name.
const TEMPLATE_HASH: &str = "pod-template-hash";
/// Ports of a pod at which it is called past its sidecar.
const DIRECT_PORTS: &str = "weft.dev/exclude-inbound-ports";
/// Services that a pod is known to call.
const UPSTREAMS: &str = "weft.dev/upstreams";

/// A Pod; `None` as long as it has no address, and once it has finished.
pub(super) fn pod(pod: &core::Pod, findings: &mut Findings) -> Option<Pod> {
    let (metadata, empty) = (&pod.metadata, core::PodSpec::default());
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let namespace = namespace_of(metadata);
    let containers = Vec::from_iter(application_containers(spec));
    let (ports, probes) = (ports(&containers, findings), probes(&containers, findings));
    let (upstreams, mtls) = (upstreams(metadata, findings), mtls::of_pod(metadata, findings));
    let (sampling, access_log) =
        (telemetry::sampling(metadata, findings), telemetry::access_log_mode(metadata, findings));
    let direct_ports = direct_ports(metadata, findings);
    let ips = ips(pod.status.as_ref()?, findings);
    if ips.is_empty() {
        return None;
    }
    let account = [&spec.service_account_name, &spec.service_account]
        .into_iter()
        .find_map(|account| account.as_deref().filter(|account| !account.is_empty()))
        .unwrap_or("default");
    Some(Pod {
        key: PodKey::new(namespace.clone(), name_of(metadata)),
        uid: metadata.uid.as_deref().unwrap_or_default().into(),
        ips,
        labels: metadata.labels.clone().unwrap_or_default(),
        account: ServiceAccountKey::new(namespace.clone(), account),
        workload: WorkloadKey::new(namespace, workload(metadata)),
        meshed: has_sidecar(spec),
        ports,
        probes,
        host_network: spec.host_network.unwrap_or(false),
        terminating: metadata.deletion_timestamp.is_some(),
        upstreams,
        mtls,
        sampling,
        access_log,
        direct_ports,
    })
}

/// Whether it has the sidecar's container, native or classic.
pub(super) fn has_sidecar(spec: &core::PodSpec) -> bool {
    let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    all.any(|container| container.name == SIDECAR)
}

/// The addresses of a pod that is alive, each once, the primary one first.
fn ips(status: &core::PodStatus, findings: &mut Findings) -> Vec<std::net::IpAddr> {
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Vec::new();
    }
    let primary = status.pod_ip.iter().map(|ip| ("status.podIP".to_owned(), ip));
    let all = status.pod_ips.iter().flatten().enumerate();
    let mut ips = Vec::new();
    for (field, text) in primary.chain(all.map(|(i, pod_ip)| (format!("status.podIPs[{i}].ip"), &pod_ip.ip))) {
        if let Some(ip) = (!text.is_empty()).then(|| findings.ip(&field, text)).flatten()
            && !ips.contains(&ip)
        {
            ips.push(ip);
        }
    }
    ips
}

/// Containers that run as long as the pod does: init containers count when they are restarted (KEP-753).
fn application_containers(spec: &core::PodSpec) -> impl Iterator<Item = (String, &core::Container)> {
    let named = |list: &'static str| move |(i, c)| (format!("spec.{list}[{i}]"), c);
    let sidecars = spec.init_containers.iter().flatten().enumerate().map(named("initContainers"));
    let restarted =
        sidecars.filter(|(_, container): &(_, &core::Container)| container.restart_policy.as_deref() == Some("Always"));
    restarted
        .chain(spec.containers.iter().enumerate().map(named("containers")))
        .filter(|(_, container): &(_, &core::Container)| container.name != SIDECAR)
}

fn ports(containers: &[(String, &core::Container)], findings: &mut Findings) -> Vec<ContainerPort> {
    let mut ports: Vec<ContainerPort> = Vec::new();
    for (field, container) in containers {
        for (index, port) in container.ports.iter().flatten().enumerate() {
            if port.protocol.as_deref().is_some_and(|protocol| protocol != "TCP") {
                continue;
            }
            let number = findings.port(&format!("{field}.ports[{index}].containerPort"), port.container_port);
            let name = port.name.clone().unwrap_or_default();
            if !name.is_empty() && ports.iter().any(|other| other.name == name) {
                // Kubernetes allows it between containers; a named target port means the first.
                findings.warning(
                    format!("{field}.ports[{index}].name"),
                    format!(
                        "another port of the pod is named `{name}`, and a target port of that name means the first"
                    ),
                    "give each port of the pod a name of its own",
                );
            }
            ports.extend(number.map(|port| ContainerPort { name, port }));
        }
    }
    ports
}

fn probes(containers: &[(String, &core::Container)], findings: &mut Findings) -> BTreeSet<Probe> {
    let mut probes = BTreeSet::new();
    for (field, container) in containers {
        let all = [
            ("startupProbe", &container.startup_probe),
            ("livenessProbe", &container.liveness_probe),
            ("readinessProbe", &container.readiness_probe),
        ];
        for (name, probe) in all {
            if let Some(probe) = probe {
                probes.extend(Prober { field: format!("{field}.{name}"), container }.probe(probe, findings));
            }
        }
    }
    probes
}

/// Where a probe stands, to resolve its port.
struct Prober<'a> {
    field: String,
    container: &'a core::Container,
}

impl Prober<'_> {
    /// The probe as the sidecar will see it; `None` for one that does not go to the pod's address.
    fn probe(&self, probe: &core::Probe, findings: &mut Findings) -> Option<Probe> {
        if let Some(http) = &probe.http_get {
            if http.host.as_deref().is_some_and(|host| !host.is_empty()) {
                return None;
            }
            let port = self.port(".httpGet.port", &http.port, findings)?;
            if http.scheme.as_deref().is_some_and(|scheme| scheme != "HTTP") {
                findings.warning(
                    format!("{}.httpGet.scheme", self.field),
                    "the kubelet's HTTPS cannot be told from a foreign caller's, so the probe fails when mTLS is strict",
                    "use scheme HTTP, tcpSocket or exec",
                );
                return None;
            }
            let path = http.path.as_deref().unwrap_or("/").split(['?', '#']).next().unwrap_or_default();
            let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
            return Some(Probe::Http(port, path));
        }
        if let Some(tcp) = &probe.tcp_socket {
            let elsewhere = tcp.host.as_deref().is_some_and(|host| !host.is_empty());
            return (!elsewhere).then(|| self.port(".tcpSocket.port", &tcp.port, findings).map(Probe::Tcp))?;
        }
        let grpc = probe.grpc.as_ref()?;
        findings.port(&format!("{}.grpc.port", self.field), grpc.port).map(Probe::Grpc)
    }

    fn port(&self, field: &str, port: &IntOrString, findings: &mut Findings) -> Option<u16> {
        let field = format!("{}{field}", self.field);
        match port {
            IntOrString::Int(number) => findings.port(&field, *number),
            IntOrString::String(name) => {
                let mut ports = self.container.ports.iter().flatten();
                // As the kubelet does: a port's name, else a number that was written as text.
                let named = ports.find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port);
                let number = named.and_then(|number| u16::try_from(number).ok()).or_else(|| name.parse().ok());
                if number.is_none() {
                    findings.warning(
                        field,
                        format!("the container has no port named `{name}`, so the probe cannot succeed"),
                        "name a port of the same container, or use its number",
                    );
                }
                number
            }
        }
    }
}

/// The workload's name: the controller's, and for a ReplicaSet that of the Deployment above it.
pub(crate) fn workload(metadata: &ObjectMeta) -> &str {
    let name = metadata.name.as_deref().unwrap_or_default();
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    let Some(owner) = owners.iter().find(|owner| owner.controller == Some(true)).or(owners.first()) else {
        return name;
    };
    match owner.kind.as_str() {
        // A static pod is its node's, but it is its own workload.
        "Node" => name,
        "ReplicaSet" => {
            let hash = metadata.labels.as_ref().and_then(|labels| labels.get(TEMPLATE_HASH));
            let stripped = hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
            stripped.unwrap_or(&owner.name)
        }
        _ => &owner.name,
    }
}

/// Services as [`Upstream::parse`] reads them, separated by commas. One that is no Service leaves the others.
/// The ports that interception leaves out (`local::intercept`): callers send no mTLS to them.
fn direct_ports(metadata: &ObjectMeta, findings: &mut Findings) -> BTreeSet<u16> {
    let text = metadata.annotations.as_ref().and_then(|annotations| annotations.get(DIRECT_PORTS));
    let mut ports = BTreeSet::new();
    for entry in text.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|entry| !entry.is_empty()) {
        match entry.parse().ok().filter(|port| *port != 0) {
            Some(port) => {
                ports.insert(port);
            }
            None => findings.warning(
                format!("metadata.annotations.{DIRECT_PORTS}"),
                format!("`{entry}` is left out: it is no port"),
                "write the pod's own port numbers, separated by commas",
            ),
        }
    }
    ports
}

fn upstreams(metadata: &ObjectMeta, findings: &mut Findings) -> BTreeSet<Upstream> {
    let text = metadata.annotations.as_ref().and_then(|annotations| annotations.get(UPSTREAMS));
    let mut upstreams = BTreeSet::new();
    for entry in text.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|entry| !entry.is_empty()) {
        match Upstream::parse(entry, &namespace_of(metadata)) {
            Ok(upstream) => {
                upstreams.insert(upstream);
            }
            Err(error) => findings.warning(
                format!("metadata.annotations.{UPSTREAMS}"),
                format!("`{entry}` is left out: {error}"),
                "write SERVICE.NAMESPACE[:PORT], separated by commas",
            ),
        }
    }
    upstreams
}
