//! Weft, a service-mesh control plane for stock Envoy sidecars: see ARCHITECTURE.md for how data flows.

pub mod cli;
pub mod local;
pub mod mesh;
pub mod snapshot;
pub mod xds;
