//! TCPRoute and UDPRoute.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// v1alpha1 to v1alpha3: a TCPRoute names no ports and means every port.
pub mod v1alpha1 {
    use super::*;

    /// A TCPRoute.
    #[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
    #[serde(rename_all = "camelCase")]
    pub struct TCPRoute {
        /// `specs.smi-spec.io/v1alpha1` to `specs.smi-spec.io/v1alpha3`.
        #[schemars(skip)]
        pub api_version: String,
        /// `TCPRoute`.
        #[schemars(skip)]
        pub kind: String,
        /// Standard metadata.
        #[serde(default)]
        #[schemars(skip)]
        pub metadata: ObjectMeta,
        /// Empty in v1alpha3, absent before. It is read so that ports which somebody writes are not passed over.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub spec: Option<v1alpha4::TCPRouteSpec>,
    }
}

/// Routes with ports.
pub mod v1alpha4 {
    use super::*;

    /// What a TCPRoute asks for.
    #[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
    #[kube(group = "specs.smi-spec.io", version = "v1alpha4", kind = "TCPRoute", namespaced, shortname = "tr")]
    #[kube(derive = "PartialEq")]
    pub struct TCPRouteSpec {
        /// The ports.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub matches: Option<PortMatch>,
    }

    /// What a UDPRoute asks for.
    #[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
    #[kube(group = "specs.smi-spec.io", version = "v1alpha4", kind = "UDPRoute", namespaced, shortname = "ur")]
    #[kube(derive = "PartialEq")]
    pub struct UDPRouteSpec {
        /// The ports.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub matches: Option<PortMatch>,
    }
}

/// The ports that a route means.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct PortMatch {
    /// `name`, which nothing refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Pod ports; empty means every port.
    #[serde(default)]
    pub ports: Vec<i32>,
}
