//! What Weft tells of itself: the inspection API (gRPC, from proto/), health, readiness and metrics, all on one port.
//!
//! ```text
//!  xds::status::Proxies ─┐                      ┌─ /weft.inspect.v1.Inspection/…  (gRPC: `weft proxy status`)
//!                        │                      ├─ /deliveries  /held-back  /graph  /sd/prometheus  (JSON)
//!  Mesh, Delivery, Graph ┼─▶ Admin::router() ───┼─ /healthz  /readyz
//!  Readiness, Registry ──┘                      └─ /metrics
//! ```

pub mod answers;
mod audit;
mod deliveries;
pub mod graph;
mod http;
mod json;
pub mod metrics;
pub mod proto;
pub mod readiness;
mod scrape;
mod service;

use std::collections::BTreeSet;
use std::time::SystemTime;

use crate::mesh::{Diagnostic, PodKey, ServiceAccountKey, SpiffeId, Upstream, WorkloadKey};
use crate::snapshot::ResourceName;

#[cfg(test)]
pub(crate) use http::tests::serve_answers;
pub use http::{Admin, health, serve};
pub use readiness::Readiness;
pub use scrape::Sidecar;

/// Whoever knows the mesh's objects.
pub trait Mesh: Send + Sync {
    /// What is wrong with them.
    fn diagnostics(&self) -> Vec<Diagnostic>;

    /// The workload that a pod belongs to; `None` if there is no such pod.
    fn workload(&self, pod: &PodKey) -> Option<WorkloadKey>;

    /// The pods with a sidecar, ordered by key.
    fn sidecars(&self) -> Vec<Sidecar>;
}

/// Whoever publishes snapshots and knows how far the streams have come.
pub trait Delivery: Send + Sync {
    /// The number of the newest snapshot; 0 before the first.
    fn snapshot(&self) -> u64;

    /// Connected proxies that have not yet acknowledged (or refused) what the newest snapshot changed for them.
    fn behind(&self) -> usize;
}

/// Whoever knows who calls whom.
pub trait Graph: Send + Sync {
    /// Every call that is learned or declared, ordered by caller and destination.
    fn edges(&self) -> Vec<Edge>;

    /// The clusters that a pod's proxy uses; `None` if it is not connected.
    fn used(&self, pod: &PodKey) -> Option<Vec<Used>>;
}

/// Whoever knows what enforcement would deny.
pub trait Audit: Send + Sync {
    /// Every edge that is known, ordered by callee.
    fn denied(&self) -> Vec<(DeniedEdge, DeniedCalls)>;

    /// Calls of further edges, of which there are too many.
    fn uncounted(&self) -> u64;
}

/// Calls that enforcement would deny, by who calls whom and where.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DeniedEdge {
    /// The workload that is called.
    pub callee: WorkloadKey,
    /// Its ServiceAccount, which a TrafficTarget would name as destination.
    pub account: ServiceAccountKey,
    /// The pod's port.
    pub port: u16,
    /// HTTP requests; else raw connections.
    pub http: bool,
    /// Who calls; `None` outside the mesh's mTLS.
    pub caller: Option<SpiffeId>,
}

/// What is known of an edge's calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeniedCalls {
    /// Requests, or connections that have ended.
    pub ended: u64,
    /// The requests' methods; `OTHER` stands for those that RFC 9110 does not name.
    pub methods: BTreeSet<&'static str>,
    /// When the first was reported.
    pub first: SystemTime,
    /// When the last was.
    pub last: SystemTime,
}

impl DeniedCalls {
    /// How many there were: an edge that is known has one at least, which may be a connection that is open.
    pub fn calls(&self) -> u64 {
        self.ended.max(1)
    }
}

/// A workload calls a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Edge {
    /// Who.
    pub caller: WorkloadKey,
    /// Whom, at which port.
    pub destination: Upstream,
    /// How that is known.
    pub origin: Origin,
    /// When it was learned; `None` for what is declared only.
    pub since: Option<SystemTime>,
    /// Connected pods of the caller that have the destination.
    pub pods: usize,
}

/// How a call is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A proxy asked for it.
    Learned,
    /// TrafficTarget or `weft.dev/upstreams` says so.
    Declared,
}

/// A cluster that a proxy uses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Used {
    /// Its name.
    pub cluster: ResourceName,
    /// The port of a Service that it stands for; `None` for a pod's address, one that nobody has, and what every proxy
    /// has.
    pub destination: Option<Upstream>,
    /// Why it has it.
    pub how: How,
}

/// Why a proxy has a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// Its workload called it.
    Asked,
    /// It was pushed before any call.
    Warm,
}
