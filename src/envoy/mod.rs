//! Plans to Envoy resources: pure functions, equal plans give equal bytes.
//!
//! ```text
//!  ServicePlan ─▶ cluster.rs (Cluster, ClusterLoadAssignment), route.rs, fault.rs, traffic_policy.rs (routes, when requests matter)
//!  InboundPlan ─▶ inbound.rs (the pod's inbound Listener), rbac.rs
//!  the mesh    ─▶ outbound.rs (the one outbound Listener of all sidecars)
//!  all of them ─▶ translate.rs ─▶ snapshot::Change
//! ```
//!
//! The outbound side of a sidecar names no service. A cluster is named by its destination, `10.96.0.5:80`; the
//! listener derives that name from the original destination of a connection, and Envoy asks for the cluster if it does
//! not have it. So a sidecar's size follows what its workload calls, not the size of the mesh.

pub mod cluster;
pub mod fallback;
mod fault;
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
mod traffic_policy;
pub mod translate;
mod warm;

pub use translate::{Translated, Translator, Work};
