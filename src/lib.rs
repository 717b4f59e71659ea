//! Weft, a service-mesh control plane for stock Envoy sidecars: see ARCHITECTURE.md for how data flows.

pub mod ca;
pub mod cli;
pub mod inspect;
pub mod mesh;
pub mod snapshot;
pub mod xds;
