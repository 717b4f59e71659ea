//! TrafficTarget.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Without `spec`, and with `specs` for rules.
pub mod v1alpha1 {
    use super::*;

    /// A TrafficTarget whose fields stand at the top.
    #[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
    #[serde(rename_all = "camelCase")]
    pub struct TrafficTarget {
        /// `access.smi-spec.io/v1alpha1`.
        #[schemars(skip)]
        pub api_version: String,
        /// `TrafficTarget`.
        #[schemars(skip)]
        pub kind: String,
        /// Standard metadata.
        #[serde(default)]
        #[schemars(skip)]
        pub metadata: ObjectMeta,
        /// Who is called, and on which port.
        pub destination: Destination,
        /// Who may call; empty allows nobody.
        #[serde(default)]
        pub sources: Vec<Subject>,
        /// What may be called.
        #[serde(default)]
        pub specs: Vec<Rule>,
    }
}

/// A version with `spec`.
macro_rules! with_spec {
    ($module:ident, $version:tt) => {
        /// With `spec`. The port of a destination was left out after v1alpha2; it is read in v1alpha3 so that one which
        /// somebody writes is not passed over.
        pub mod $module {
            use super::*;

            /// What a TrafficTarget asks for.
            #[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
            #[kube(group = "access.smi-spec.io", version = $version, kind = "TrafficTarget", namespaced)]
            #[kube(shortname = "tt", derive = "PartialEq")]
            pub struct TrafficTargetSpec {
                /// Who is called.
                pub destination: Destination,
                /// Who may call; empty allows nobody.
                #[serde(default)]
                pub sources: Vec<Subject>,
                /// What may be called.
                #[serde(default)]
                pub rules: Vec<Rule>,
            }
        }
    };
}
with_spec!(v1alpha2, "v1alpha2");
with_spec!(v1alpha3, "v1alpha3");

/// An identity and the only port of it that is opened.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct Destination {
    /// `ServiceAccount`.
    pub kind: String,
    /// The ServiceAccount's name.
    pub name: String,
    /// Its namespace; absent means the TrafficTarget's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The pod port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<crate::source::manifest::IntOrText>")]
    pub port: Option<IntOrString>,
}

/// An identity.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct Subject {
    /// `ServiceAccount`.
    pub kind: String,
    /// The ServiceAccount's name.
    pub name: String,
    /// Its namespace; absent means the TrafficTarget's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// A reference to an HTTPRouteGroup, a TCPRoute or a UDPRoute.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct Rule {
    /// `HTTPRouteGroup`, `TCPRoute` or `UDPRoute`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Names of matches of the HTTPRouteGroup; absent means all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<Vec<String>>,
}
