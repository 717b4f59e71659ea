//! From an object's Kubernetes form to what the mesh uses of it. Pure.
//!
//! ```text
//!  Manifest ──convert()──▶ Converted { object, warnings }    the object is used (or concerns nobody)
//!                     └──▶ [Diagnostic]                      the object is kept out; its last good version stays
//! ```
//!
//! A Kubernetes API server would refuse much of what is an error here; a watched directory has none before it.

mod config;
mod egress;
mod pod;
mod protocol;
mod re2;
mod service;
mod smi;
#[cfg(test)]
mod tests;

use crate::mesh::Diagnostic;
use crate::mesh::object::Object;

use super::manifest::{HTTPRouteGroup, Manifest, TCPRoute, TrafficSplit, TrafficTarget};

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
        Manifest::TrafficSplit(split) => match split {
            TrafficSplit::V1alpha2(split) => {
                smi::split(&split.metadata, &split.spec.service, &split.spec.backends, &[], &mut findings)
            }
            TrafficSplit::V1alpha4(split) => {
                let matches = split.spec.matches.as_deref().unwrap_or_default();
                smi::split(&split.metadata, &split.spec.service, &split.spec.backends, matches, &mut findings)
            }
        }
        .map(Object::TrafficSplit),
        Manifest::HTTPRouteGroup(group) => Some(Object::HttpRouteGroup(match group {
            HTTPRouteGroup::V1alpha3(group) => smi::http_group(&group.metadata, &group.spec.matches, &mut findings),
            HTTPRouteGroup::V1alpha4(group) => smi::http_group(&group.metadata, &group.spec.matches, &mut findings),
        })),
        Manifest::TCPRoute(route) => Some(Object::TcpRoute(match route {
            TCPRoute::V1alpha3(route) => smi::tcp_route(&route.metadata, route.spec.matches.as_ref(), &mut findings),
            TCPRoute::V1alpha4(route) => smi::tcp_route(&route.metadata, route.spec.matches.as_ref(), &mut findings),
        })),
        Manifest::TrafficTarget(target) => match target {
            TrafficTarget::V1alpha2(target) => smi::Target {
                destination: smi::Identity::from(&target.spec.destination),
                port: target.spec.destination.port.as_ref(),
                sources: &target.spec.sources,
                rules: &target.spec.rules,
            }
            .convert(&target.metadata, &mut findings),
            TrafficTarget::V1alpha3(target) => smi::Target {
                destination: smi::Identity::from(&target.spec.destination),
                port: None,
                sources: &target.spec.sources,
                rules: &target.spec.rules,
            }
            .convert(&target.metadata, &mut findings),
        }
        .map(Object::TrafficTarget),
        Manifest::Egress(egress) => egress::egress(egress, &mut findings).map(Object::Egress),
        Manifest::MeshConfig(config) => config::mesh_config(config, &mut findings).map(Object::MeshConfig),
    };
    let name = |found: Vec<Diagnostic>| found.into_iter().map(|d| d.about(manifest.object_ref())).collect::<Vec<_>>();
    match findings.errors.is_empty() {
        true => Ok(Converted { object, warnings: name(findings.warnings) }),
        false => Err(name(findings.errors)),
    }
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
