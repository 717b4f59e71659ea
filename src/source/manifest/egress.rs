//! Egress as a custom resource.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What workloads of the namespace may call outside the mesh, where that is denied otherwise.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[kube(group = "weft.dev", version = "v1alpha1", kind = "Egress", namespaced, derive = "PartialEq")]
#[serde(rename_all = "camelCase")]
pub struct EgressSpec {
    /// DNS names, as `api.example.com` or `*.example.com`: HTTP is known by its Host, TLS by its SNI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
    /// Addresses or CIDRs, to which anything may be spoken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<String>>,
    /// The ports; absent means 80 for HTTP and 443 for TLS by host, and any port by address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<EgressPort>>,
    /// Who may call them; absent means every workload of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<EgressSource>>,
}

/// A port outside the mesh.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct EgressPort {
    /// Its number.
    pub number: i32,
    /// `HTTP`, `TLS` or `TCP`; absent means any of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// A ServiceAccount of the Egress's own namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct EgressSource {
    /// `ServiceAccount`, which is also meant when it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
    /// Its namespace, if it is given that of the Egress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}
