//! What a real Prometheus makes of a mesh: the shipped configuration, Flagger's questions, the dashboards.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may, and here its helpers do")]

mod dashboards;
mod flagger;

use weft_e2e::mesh::{Mesh, envoy, pinned_version, weft_beside_tests};
use weft_e2e::scenario::Scenarios;

/// Starts a mesh of this directory on the default Envoy.
fn start(directory: &str, name: &str) -> (Mesh, Scenarios) {
    let version = pinned_version("default").expect("a pinned version");
    let envoy = envoy(&version).expect("make setup-all");
    let weft = weft_beside_tests().expect("cargo build");
    let mesh = Mesh::start(directory, name, &weft, Some(envoy), &[]).expect("the mesh starts");
    let scenarios = Scenarios::on(&mesh, &version);
    (mesh, scenarios)
}
