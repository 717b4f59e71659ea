//! The mesh's settings: MeshConfig, and what a Namespace overrides of it.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Namespace;

use crate::mesh::TrustDomain;
use crate::mesh::object::{self, NamespaceObject};
use crate::source::manifest::config::{AuthorizationMode, EgressMode, MeshConfig, MtlsMode};

use super::{Findings, telemetry};

/// A Namespace's label and annotations. One that cannot be read is left out: the mesh's own setting holds.
pub(super) fn namespace(namespace: &Namespace, findings: &mut Findings) -> Option<NamespaceObject> {
    let metadata = &namespace.metadata;
    let label = metadata.labels.as_ref().and_then(|labels| labels.get("weft.dev/inject"));
    if let Some(value) = label.filter(|value| !matches!(value.as_str(), "enabled" | "disabled")) {
        findings.warning(
            "metadata.labels.weft.dev/inject",
            format!("`{value}` is neither `enabled` nor `disabled`, so pods get no sidecar"),
            "set it to `enabled`, or remove it",
        );
    }
    let annotation = |key: &str| {
        let value = metadata.annotations.as_ref()?.get(key)?;
        Some((value.clone(), format!("metadata.annotations.{key}")))
    };
    let mtls = annotation("weft.dev/mtls").and_then(|(value, field)| mode::<MtlsMode>(value, field, findings));
    let authorization = annotation("weft.dev/authorization")
        .and_then(|(value, field)| mode::<AuthorizationMode>(value, field, findings));
    let egress = annotation("weft.dev/egress").and_then(|(value, field)| mode::<EgressMode>(value, field, findings));
    Some(NamespaceObject {
        name: super::name_of(metadata).as_ref().into(),
        inject: label.is_some_and(|value| value == "enabled"),
        mtls: mtls.map(Into::into),
        authorization: authorization.map(Into::into),
        egress: egress.map(Into::into),
        sampling: telemetry::sampling(metadata, findings),
        access_log: telemetry::access_log_mode(metadata, findings),
    })
}

/// An override that is mistyped must not silently weaken the namespace, so it keeps the object out.
fn mode<M: TryFrom<String, Error = String>>(value: String, field: String, findings: &mut Findings) -> Option<M> {
    match M::try_from(value) {
        Ok(mode) => Some(mode),
        Err(message) => {
            let (reason, help) = message.split_once("; ").unwrap_or((&message, "correct it"));
            findings.error(field, reason, help);
            None
        }
    }
}

/// The MeshConfig; what it leaves out has its default.
pub(super) fn mesh_config(config: &MeshConfig, findings: &mut Findings) -> Option<object::MeshConfig> {
    let (name, spec) = (super::name_of(&config.metadata), &config.spec);
    if &*name != "default" {
        findings.error(
            "metadata.name",
            format!("there is one MeshConfig, named `default`, and this one is named `{name}`"),
            "name it `default`",
        );
    }
    let defaults = object::MeshConfig::default();
    let trust_domain = match &spec.trust_domain {
        None => defaults.trust_domain,
        Some(text) => text.parse().unwrap_or_else(|_| {
            findings.error(
                "spec.trustDomain",
                format!("`{text}` is not a trust domain"),
                "use lower-case letters, digits, `.`, `-` and `_`, at most 255 characters",
            );
            TrustDomain::default()
        }),
    };
    let ranges = match spec.network.as_ref().and_then(|network| network.ranges.as_ref()) {
        None => defaults.ranges,
        Some(ranges) => ranges.iter().enumerate().filter_map(|(i, text)| range(i, text, findings)).collect(),
    };
    Some(object::MeshConfig {
        trust_domain,
        mtls: spec.mtls.as_ref().and_then(|mtls| mtls.mode).map(Into::into).unwrap_or_default(),
        authorization: spec.authorization.as_ref().and_then(|a| a.mode).map(Into::into).unwrap_or_default(),
        discovery: spec.discovery.as_ref().and_then(|d| d.mode).map(Into::into).unwrap_or_default(),
        metrics: spec.metrics.as_ref().and_then(|m| m.mode).map(Into::into).unwrap_or_default(),
        egress: spec.egress.as_ref().and_then(|e| e.mode).map(Into::into).unwrap_or_default(),
        ranges,
        tracing: spec.tracing.as_ref().and_then(|tracing| telemetry::tracing(tracing, findings)),
        access_log: spec.access_log.as_ref().map(|log| telemetry::access_log(log, findings)).unwrap_or_default(),
    })
}

fn range(index: usize, text: &str, findings: &mut Findings) -> Option<IpNet> {
    let field = format!("spec.network.ranges[{index}]");
    let Ok(range) = text.parse::<IpNet>() else {
        findings.error(
            field,
            format!("`{text}` is not an address range"),
            "write it as ADDRESS/LENGTH, as 10.244.0.0/16",
        );
        return None;
    };
    if range.trunc() != range {
        findings.warning(
            field,
            format!("`{text}` has address bits beyond its length and is read as {}", range.trunc()),
            format!("write {}", range.trunc()),
        );
    }
    Some(range.trunc())
}
