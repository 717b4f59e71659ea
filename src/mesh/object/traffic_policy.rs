//! TrafficPolicy: how calls to a Service are treated.

use std::sync::Arc;
use std::time::Duration;

use super::Attachment;
use crate::mesh::Namespace;

/// A TrafficPolicy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TrafficPolicy {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: Arc<str>,
    /// `metadata.creationTimestamp` in seconds since the epoch; 0 when absent. The oldest policy of a port counts.
    pub created: i64,
    /// `spec.targetRefs`: the Services whose calls it is about.
    pub targets: Vec<Attachment>,
    /// What a caller does with each request.
    pub requests: RequestSettings,
    /// What a caller does with connections and endpoints.
    pub connections: ConnectionSettings,
    /// `spec.rateLimit`: what each pod of the callee takes.
    pub rate: Option<RateLimit>,
}

/// What a caller does with each request; what is `None` is as without a policy.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RequestSettings {
    /// `timeouts.request`: until the whole answer is there.
    pub timeout: Option<Duration>,
    /// `timeouts.idle`: without a byte either way.
    pub idle: Option<Duration>,
    /// `retries`.
    pub retries: Option<Retries>,
    /// `loadBalancing.hash`: what of a request chooses its endpoint.
    pub hash: Option<HashKey>,
}

/// When and how a request is tried again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Retries {
    /// Envoy's names of conditions, in order and without duplicates.
    pub on: Vec<String>,
    /// HTTP statuses.
    pub statuses: Vec<u16>,
    /// How often it is tried again.
    pub attempts: u32,
    /// How long each try may take.
    pub per_try_timeout: Option<Duration>,
    /// The time before the first retry, and the longest before any.
    pub backoff: Option<(Duration, Duration)>,
}

/// What of a request is hashed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HashKey {
    /// A header, by its lower-case name.
    Header(String),
    /// A cookie, which is given to clients that have none; for so long, or (`None`) for a session.
    Cookie(String, Option<Duration>),
}

/// What a caller does with connections and endpoints; what is `None` is as without a policy.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConnectionSettings {
    /// `limits.connections`, of each caller.
    pub max_connections: Option<u32>,
    /// `limits.pendingRequests`: requests that wait for a connection.
    pub max_pending: Option<u32>,
    /// `limits.requests`: requests at once.
    pub max_requests: Option<u32>,
    /// `retries.budget`.
    pub retry_budget: Option<RetryBudget>,
    /// `outlierDetection`.
    pub outliers: Option<OutlierDetection>,
    /// `loadBalancing.algorithm`.
    pub algorithm: Algorithm,
    /// `loadBalancing.zone`; `None`: as the Service says.
    pub zone: Option<ZonePreference>,
    /// `loadBalancing.slowStart`: how long a new endpoint takes until it gets its whole share.
    pub slow_start: Option<Duration>,
    /// `connections.maxAge`: a connection for HTTP is not used for longer.
    pub max_age: Option<Duration>,
}

/// How much may be retried at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetryBudget {
    /// Of the requests that are under way, in percent.
    pub percent: u32,
    /// As many in any case.
    pub min_concurrent: u32,
}

/// When an endpoint gets nothing for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutlierDetection {
    /// After so many errors (5xx, or no connection) one after the other.
    pub consecutive_errors: u32,
    /// How often is looked whether one may come back.
    pub interval: Duration,
    /// For how long, times how often it was.
    pub ejection_time: Duration,
    /// How many of the endpoints at most, in percent.
    pub max_ejected_percent: u32,
}

/// How a caller chooses an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Algorithm {
    /// One after the other.
    #[default]
    RoundRobin,
    /// Of two at random the one with fewer requests under way.
    LeastRequest,
    /// By a hash of the request, on a ring.
    RingHash,
    /// By a hash of the request, in a table.
    Maglev,
}

/// Whether calls stay in their caller's zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ZonePreference {
    /// Every endpoint is as good as any other.
    #[default]
    Any,
    /// They do while there is a healthy endpoint in it.
    Prefer,
}

impl Algorithm {
    /// Whether the same hash leads to the same endpoint.
    pub fn hashes(self) -> bool {
        matches!(self, Self::RingHash | Self::Maglev)
    }
}

/// How much a pod takes on one port: requests, or connections where it is TCP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RateLimit {
    /// So many …
    pub tokens: u32,
    /// … in this time …
    pub per: Duration,
    /// … and so many at once.
    pub burst: u32,
}
