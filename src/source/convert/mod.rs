//! From an object's Kubernetes form to what the mesh uses of it. Pure.
//!
//! ```text
//!  Manifest ──convert()──▶ Converted { object, warnings }    the object is used (or concerns nobody)
//!                     └──▶ [Diagnostic]                      the object is kept out; its last good version stays
//! ```
//!
//! A Kubernetes API server would refuse much of what is an error here; a watched directory has none before it.

mod attachment;
mod config;
mod egress;
mod fault;
mod mtls;
mod pod;
mod protocol;
mod re2;
mod service;
mod smi;
mod telemetry;
#[cfg(test)]
mod tests;
mod traffic_policy;

use crate::mesh::Diagnostic;
use crate::mesh::object::Object;

use super::manifest::Manifest;
use super::versions;

pub(crate) use pod::workload;

/// What an object comes to.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Converted {
    /// The mesh's view of it; `None` when the mesh has no use for it: a Deployment, a Pod without an address.
    pub object: Option<Object>,
    /// What of it is not used, and why. They name the object, but no place.
    pub warnings: Vec<Diagnostic>,
}

/// Converts `manifest`.
///
/// # Errors
/// Everything that keeps the object out. The diagnostics name the object, but no place.
pub fn convert(manifest: &Manifest) -> Result<Converted, Vec<Diagnostic>> {
    let mut findings = Findings::default();
    let object = match manifest {
        Manifest::Namespace(namespace) => config::namespace(namespace, &mut findings).map(Object::Namespace),
        Manifest::ServiceAccount(_) | Manifest::Deployment(_) | Manifest::StatefulSet(_) => None,
        Manifest::Pod(pod) => pod::pod(pod, &mut findings).map(Object::Pod),
        Manifest::Service(service) => service::service(service, &mut findings).map(Object::Service),
        Manifest::EndpointSlice(slice) => service::endpoint_slice(slice, &mut findings).map(Object::EndpointSlice),
        // Whatever version an SMI object was written in, it means what it means in the newest.
        Manifest::TrafficSplit(split) => findings
            .of(versions::split::hub(split))
            .and_then(|split| smi::split(&split, &mut findings))
            .map(Object::TrafficSplit),
        Manifest::HTTPRouteGroup(group) => findings
            .of(versions::routes::http_hub(group))
            .map(|group| Object::HttpRouteGroup(smi::http_group(&group, &mut findings))),
        Manifest::TCPRoute(route) => findings
            .of(versions::routes::tcp_hub(route))
            .map(|route| Object::TcpRoute(smi::tcp_route(&route, &mut findings))),
        Manifest::UDPRoute(_) => {
            smi::udp_route(&mut findings);
            None
        }
        Manifest::TrafficTarget(target) => findings
            .of(versions::target::hub(target))
            .and_then(|target| smi::target(&target, &mut findings))
            .map(Object::TrafficTarget),
        Manifest::TrafficFault(fault) => fault::fault(fault, &mut findings).map(Object::TrafficFault),
        Manifest::TrafficPolicy(policy) => {
            traffic_policy::policy(policy, &mut findings).map(Box::new).map(Object::TrafficPolicy)
        }
        Manifest::Egress(egress) => egress::egress(egress, &mut findings).map(Object::Egress),
        Manifest::MeshConfig(config) => config::mesh_config(config, &mut findings).map(Object::MeshConfig),
    };
    let name = |found: Vec<Diagnostic>| {
        let as_written = |found: Diagnostic| Diagnostic {
            field: versions::field_as_written(manifest, found.field.clone()),
            ..found.about(manifest.object_ref())
        };
        found.into_iter().map(as_written).collect::<Vec<_>>()
    };
    match findings.errors.is_empty() {
        true => Ok(Converted { object, warnings: name(findings.warnings) }),
        false => Err(name(findings.errors)),
    }
}

/// Whether a pod has a sidecar, alive or not.
pub(crate) fn has_sidecar(pod: &k8s_openapi::api::core::v1::Pod) -> bool {
    pod.spec.as_ref().is_some_and(pod::has_sidecar)
}

/// Whether pods of a namespace are given a sidecar.
pub(super) fn is_meshed(namespace: &k8s_openapi::api::core::v1::Namespace) -> bool {
    config::namespace(namespace, &mut Findings::default()).is_some_and(|namespace| namespace.inject)
}

/// What a conversion has found so far. A conversion goes on after an error, so that its author hears of all at once.
#[derive(Default)]
struct Findings {
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

impl Findings {
    fn error(&mut self, field: impl Into<String>, reason: impl Into<String>, help: impl Into<String>) {
        self.errors.push(Diagnostic::error(field, reason, help));
    }

    fn warning(&mut self, field: impl Into<String>, reason: impl Into<String>, help: impl Into<String>) {
        self.warnings.push(Diagnostic::warning(field, reason, help));
    }

    /// What came out well; else its errors are kept.
    fn of<T>(&mut self, result: Result<T, Vec<Diagnostic>>) -> Option<T> {
        result.map_err(|errors| self.errors.extend(errors)).ok()
    }

    /// `value` as a port, or an error.
    fn port(&mut self, field: &str, value: i32) -> Option<u16> {
        let port = u16::try_from(value).ok().filter(|port| *port != 0);
        if port.is_none() {
            self.error(field, format!("{value} is not a port"), "use a number from 1 to 65535");
        }
        port
    }

    /// `text` as an IP address, or an error.
    fn ip(&mut self, field: &str, text: &str) -> Option<std::net::IpAddr> {
        let ip = text.parse().ok();
        if ip.is_none() {
            self.error(field, format!("`{text}` is not an IP address"), "use an IPv4 or IPv6 address");
        }
        ip
    }
}

/// The namespace of an object's metadata; `default` where it has none, as for kubectl.
fn namespace_of(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> crate::mesh::Namespace {
    metadata.namespace.as_deref().unwrap_or("default").into()
}

/// The name of an object's metadata.
fn name_of(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> std::sync::Arc<str> {
    metadata.name.as_deref().unwrap_or_default().into()
}
