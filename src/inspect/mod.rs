//! What Weft tells of itself: the inspection API (gRPC, from proto/), health, readiness and metrics, all on one port.
//!
//! ```text
//!  xds::status::Proxies ─┐                      ┌─ /weft.inspect.v1.Inspection/…  (gRPC: `weft proxy status`)
//!                        │                      ├─ /deliveries  /held-back  (JSON)
//!  Mesh, Delivery ───────┼─▶ Admin::router() ───┼─ /healthz  /readyz
//!  Readiness, Registry ──┘                      └─ /metrics
//! ```

mod deliveries;
mod http;
mod json;
pub mod metrics;
pub mod proto;
pub mod readiness;
mod service;

use crate::mesh::{Diagnostic, PodKey, WorkloadKey};

pub use http::{Admin, serve};
pub use readiness::Readiness;

/// Whoever knows the mesh's objects.
pub trait Mesh: Send + Sync {
    /// What is wrong with them.
    fn diagnostics(&self) -> Vec<Diagnostic>;

    /// The workload that a pod belongs to; `None` if there is no such pod.
    fn workload(&self, pod: &PodKey) -> Option<WorkloadKey>;
}

/// Whoever publishes snapshots and knows how far the streams have come.
pub trait Delivery: Send + Sync {
    /// The number of the newest snapshot; 0 before the first.
    fn snapshot(&self) -> u64;

    /// Connected proxies that have not yet acknowledged (or refused) what the newest snapshot changed for them.
    fn behind(&self) -> usize;
}
