//! TrafficFault as a custom resource.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::smi::{Headers, Subject};
use crate::duration::HumanDuration;

/// What goes wrong on purpose with calls to Services, at their callers.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
#[kube(group = "weft.dev", version = "v1alpha1", kind = "TrafficFault", namespaced, derive = "PartialEq")]
#[serde(rename_all = "camelCase")]
pub struct TrafficFaultSpec {
    /// The Services of the same namespace whose calls are hit.
    pub target_refs: Vec<TargetRef>,
    /// The callers that are hit; absent means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callers: Option<Vec<Subject>>,
    /// The requests that are hit, any of these; absent means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Vec<Requests>>,
    /// How many of these requests are hit, 0 to 100; absent means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentage: Option<f64>,
    /// They wait at the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// They are answered at the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// Their responses come slowly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// How long after its creation the fault ends by itself: `10m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub expires_after: Option<HumanDuration>,
}

/// The Service that an object is attached to.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct TargetRef {
    /// Empty: the core group.
    #[serde(default)]
    pub group: String,
    /// `Service`.
    pub kind: String,
    /// The Service's name.
    pub name: String,
    /// One port of the Service; absent means every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
}

/// Some requests: those of an HTTPRouteGroup, or those that have all of what is named here.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Requests {
    /// An HTTPRouteGroup of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route_group: Option<String>,
    /// Names of matches of it; absent means all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<Vec<String>>,
    /// A regex that the path begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_regex: Option<String>,
    /// HTTP methods, or `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
    /// Header names and the regexes that their values fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
}

/// A delay.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct Delay {
    /// How long: `2s`.
    #[schemars(with = "String")]
    pub fixed: HumanDuration,
}

/// An answer in place of the callee's: one of the two.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Abort {
    /// An HTTP status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<i32>,
    /// A gRPC status, by its name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<super::IntOrText>")]
    pub grpc_status: Option<IntOrString>,
}

/// Rates.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct Bandwidth {
    /// Of the body of each response, a second: `64KiB`.
    pub response: String,
}
