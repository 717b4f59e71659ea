//! TrafficPolicy as a custom resource.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fault::TargetRef;
use crate::duration::HumanDuration;

/// How calls to Services are treated.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
#[kube(group = "weft.dev", version = "v1alpha1", kind = "TrafficPolicy", namespaced, derive = "PartialEq")]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicySpec {
    /// The Services of the same namespace whose calls it is about.
    pub target_refs: Vec<TargetRef>,
    /// How long requests may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// When they are tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// How much each caller may ask at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// When an endpoint gets nothing for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// How endpoints are chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancing: Option<LoadBalancing>,
    /// How connections are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<Connections>,
    /// How much each pod of the Service takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
}

/// How long requests may take.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct Timeouts {
    /// Until the whole answer is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub request: Option<HumanDuration>,
    /// Without a byte either way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub idle: Option<HumanDuration>,
}

/// When and how a request is tried again, beside what was certainly not served, which always is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Retries {
    /// Conditions, by Envoy's names: `5xx`, `gateway-error`, `reset`, `unavailable`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<Vec<String>>,
    /// HTTP statuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codes: Option<Vec<i32>>,
    /// How often, 2 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<i64>,
    /// How long each try may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub per_try_timeout: Option<HumanDuration>,
    /// The time between tries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// How much is retried at once at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
}

/// The time between tries, at random up to a time that doubles.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct Backoff {
    /// Before the first.
    #[schemars(with = "String")]
    pub base: HumanDuration,
    /// Before any; ten times `base` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub max: Option<HumanDuration>,
}

/// How much is retried at once at most.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// Of the requests that are under way, 0 to 100.
    pub percent: i64,
    /// As many in any case; 3 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_concurrent: Option<i64>,
}

/// How much each caller may ask at once.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<i64>,
    /// Requests that wait for a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_requests: Option<i64>,
    /// Requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<i64>,
}

/// When an endpoint gets nothing for a while.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct OutlierDetection {
    /// Errors one after the other; 5 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_errors: Option<i64>,
    /// Between two looks; 10s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub interval: Option<HumanDuration>,
    /// How long it gets nothing, times how often; 30s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub ejection_time: Option<HumanDuration>,
    /// How many of the endpoints at most, 1 to 100; 50 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ejected_percent: Option<i64>,
}

/// How endpoints are chosen.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancing {
    /// `RoundRobin`, `LeastRequest`, `RingHash` or `Maglev`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<String>,
    /// What is hashed, for `RingHash` and `Maglev`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<HashKey>,
    /// `Prefer` keeps calls in their caller's zone, `Any` does not; the Service decides when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// New endpoints begin with little.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStart>,
}

/// What is hashed: one of the two.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct HashKey {
    /// A header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// A cookie, which clients that have none are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<Cookie>,
}

/// A cookie.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct Cookie {
    /// Its name.
    pub name: String,
    /// How long a client keeps it; for its session when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub ttl: Option<HumanDuration>,
}

/// New endpoints begin with little.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct SlowStart {
    /// How long it takes to the whole share.
    #[schemars(with = "String")]
    pub window: HumanDuration,
}

/// How connections are kept.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Connections {
    /// A connection for HTTP is not used for longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub max_age: Option<HumanDuration>,
}

/// How much each pod takes: requests, or connections where the port is TCP.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct RateLimit {
    /// How many.
    pub count: i64,
    /// In which time.
    #[schemars(with = "String")]
    pub per: HumanDuration,
    /// How many at once; `count` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<i64>,
}
