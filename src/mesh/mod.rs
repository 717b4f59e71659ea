//! The typed model of the mesh: what the sources say, with every reference parsed and every name a type.
//!
//! ```text
//!  source ──Event──▶ World::apply ──Dirty──▶ policy
//! ```
//!
//! Everything here is plain data and synchronous functions: no client, no socket, no runtime.

pub mod diagnostic;
mod egress;
#[cfg(test)]
pub(crate) mod fixture;
pub mod id;
pub mod object;
pub mod telemetry;
pub mod upstream;
pub mod world;

pub use diagnostic::{Diagnostic, Location};
pub use id::{
    Kind, Namespace, ObjectRef, PodKey, ProxyId, ServiceAccountKey, ServiceKey, SpiffeId, TrustDomain, WorkloadKey,
};
pub use upstream::{Upstream, UpstreamError};
pub use world::{Dirty, Event, World};
