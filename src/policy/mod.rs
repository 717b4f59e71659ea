//! What the objects of the mesh mean: who may call whom, and where a call goes.
//!
//! ```text
//!  World ──outbound::service──▶ ServicePlan   how callers reach a Service
//!        ──inbound::pod───────▶ InboundPlan   what a pod accepts
//!        ──egress::pod────────▶ EgressPlan    what it may call outside the mesh
//!        ──telemetry::of_pod─▶ Telemetry     what its sidecar tells of both
//!        ──references::dangling─▶ diagnostics what a whole mesh names and does not have
//! ```
//!
//! Pure functions of the [`crate::mesh::World`]; equal worlds give equal plans, and a plan knows nothing of Envoy.

pub mod egress;
pub mod fault;
pub mod inbound;
pub mod outbound;
mod overlap;
pub mod references;
pub mod telemetry;
pub mod traffic_policy;
pub mod upstream;
mod zone;

pub use egress::EgressPlan;
pub use fault::FaultPlan;
pub use inbound::{Allow, AllowPolicy, InboundPlan, Traffic};
pub use outbound::{Backend, EndpointPlan, PortPlan, RoutedSplit, ServicePlan, Workload};
pub use telemetry::Telemetry;
