//! Weft, a service-mesh control plane for stock Envoy sidecars: see ARCHITECTURE.md for how data flows.

pub mod app;
mod backoff;
pub mod ca;
pub mod cli;
pub mod control_plane;
pub mod duration;
pub mod envoy;
pub mod inject;
pub mod inspect;
pub mod kubernetes;
pub mod local;
pub mod mesh;
mod nearest;
pub mod policy;
pub mod snapshot;
pub mod source;
pub mod warm;
pub mod webhook;
pub mod xds;

/// Weft's own image: a container whose image has this name runs this very binary in the playground.
pub const IMAGE: &str = concat!("ghcr.io/weft-mesh/weft:", env!("CARGO_PKG_VERSION"));
