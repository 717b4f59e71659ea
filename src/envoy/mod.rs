//! Plans to Envoy resources: pure functions, equal plans give equal bytes.
//!
//! ```text
//!  ServicePlan ─▶ cluster.rs (Cluster, ClusterLoadAssignment), route.rs, fault.rs, traffic_policy.rs (routes, when requests matter)
//!  InboundPlan ─▶ inbound.rs (the pod's inbound Listener), in_clear.rs, rbac.rs, denials.rs
//!  the mesh    ─▶ outbound.rs (the one outbound Listener of all sidecars), collector.rs (where they report to)
//!  EgressPlan  ─▶ egress.rs (the outbound Listener of those that may not call everything outside)
//!  Telemetry   ─▶ tracing.rs, access_log.rs (parts of both listeners)
//!  all of them ─▶ translate.rs ─▶ snapshot::Change
//! ```
//!
//! The outbound side of a sidecar names no service. A cluster is named by its destination, `10.96.0.5:80`; the
//! listener derives that name from the original destination of a connection, and Envoy asks for the cluster if it does
//! not have it. So a sidecar's size follows what its workload calls, not the size of the mesh.

mod access_log;
pub mod cluster;
mod collector;
mod denials;
pub mod egress;
pub mod fallback;
mod fault;
mod http;
mod in_clear;
pub mod inbound;
mod matching;
mod message;
mod metrics;
pub mod names;
pub mod outbound;
mod rbac;
pub mod route;
mod shares;
mod tls;
mod tracing;
mod traffic_policy;
pub mod translate;
mod warm;
mod zones;

pub use translate::{Translated, Translator, Work};
