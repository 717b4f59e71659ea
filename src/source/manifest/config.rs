//! MeshConfig, the mesh's settings as a custom resource.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::mesh::object;

/// What a MeshConfig may set; everything has a default.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[kube(group = "weft.dev", version = "v1alpha1", kind = "MeshConfig", derive = "PartialEq")]
#[serde(rename_all = "camelCase")]
pub struct MeshConfigSpec {
    /// The authority of the mesh's SPIFFE IDs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
    /// Mutual TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Mtls>,
    /// Authorisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<Authorization>,
    /// How sidecars learn of destinations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery: Option<Discovery>,
    /// Golden metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// The mesh's addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Calls to hosts outside the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressSettings>,
    /// Traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracing: Option<super::telemetry::Tracing>,
    /// Access logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<super::telemetry::AccessLog>,
}

/// Calls to hosts outside the mesh.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
pub struct EgressSettings {
    /// What becomes of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<EgressMode>,
}

/// Mutual TLS.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
pub struct Mtls {
    /// What is accepted inbound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<MtlsMode>,
}

/// Authorisation.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
pub struct Authorization {
    /// How far TrafficTargets are enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<AuthorizationMode>,
}

/// Discovery.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
pub struct Discovery {
    /// When a sidecar learns of a destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<DiscoveryMode>,
}

/// Golden metrics.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
pub struct Metrics {
    /// What sidecars count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<MetricsMode>,
}

/// The mesh's addresses.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
pub struct Network {
    /// CIDRs of pods and Services; other destinations pass through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<Vec<String>>,
}

/// Defines a mode that is written in one case and read in that and in lower case, and its counterpart in the model.
macro_rules! mode {
    ($(#[$doc:meta])* $name:ident { $($variant:ident | $alias:literal: $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
        #[serde(try_from = "String")]
        pub enum $name {
            $(#[doc = $text] $variant,)*
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "enum": [$(stringify!($variant), $alias),*]})
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                match text.as_str() {
                    $(stringify!($variant) | $alias => Ok(Self::$variant),)*
                    _ => Err(format!(
                        "`{text}` is not a mode; use one of {}",
                        [$(concat!("`", stringify!($variant), "`")),*].join(", ")
                    )),
                }
            }
        }

        impl From<$name> for object::$name {
            fn from(mode: $name) -> Self {
                match mode {
                    $($name::$variant => Self::$variant,)*
                }
            }
        }
    };
}
pub(super) use mode;

mode!(
    /// What an inbound listener does with a connection that is not the mesh's mTLS.
    MtlsMode { Strict | "strict": "Closes it.", Permissive | "permissive": "Serves it." }
);
mode!(
    /// How far TrafficTargets are enforced.
    AuthorizationMode {
        Permissive | "permissive": "Every caller is allowed.",
        Audit | "audit": "Every caller is allowed, and what enforcement would deny is counted.",
        Enforce | "enforce": "Only what a TrafficTarget allows.",
    }
);
mode!(
    /// What becomes of a call to a host outside the mesh.
    EgressMode { Allow | "allow": "It goes through.", Deny | "deny": "It goes through if an Egress allows it." }
);
mode!(
    /// When a sidecar learns of a destination.
    DiscoveryMode { OnDemand | "ondemand": "On the first call.", Eager | "eager": "From the start." }
);
mode!(
    /// What sidecars count of the calls that they carry.
    MetricsMode {
        Full | "full": "Requests and connections with both ends of each call.",
        Basic | "basic": "What Envoy counts by itself.",
    }
);
