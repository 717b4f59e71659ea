//! Which pods get a sidecar: what the webhook's selectors say, for those who ask without an API server. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::INJECT;

/// Whether the pods of the namespace with this metadata get a sidecar: its label says `enabled`.
pub fn is_meshed(namespace: &ObjectMeta) -> bool {
    label(namespace) == Some("enabled")
}

/// Whether the pod with this metadata, in a namespace that is meshed or not, gets a sidecar: its own label wins. Any
/// other word on a pod says nothing (injection warns of it).
pub fn wants_sidecar(is_meshed: bool, pod: &ObjectMeta) -> bool {
    match label(pod) {
        Some("true") => true,
        Some("false") => false,
        _ => is_meshed,
    }
}

fn label(metadata: &ObjectMeta) -> Option<&str> {
    metadata.labels.as_ref()?.get(INJECT).map(String::as_str)
}
