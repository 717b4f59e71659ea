//! Weft, a service-mesh control plane for stock Envoy sidecars: see ARCHITECTURE.md for how data flows.

pub mod app;
pub mod cli;
pub mod mesh;
pub mod snapshot;
pub mod xds;

/// Weft's own image: a container whose image has this name runs this very binary in the playground.
pub const IMAGE: &str = concat!("ghcr.io/weft-mesh/weft:", env!("CARGO_PKG_VERSION"));
