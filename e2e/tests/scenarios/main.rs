//! Scenarios on stock Envoys that the shop has no part in: each is a small mesh of its own (`e2e/scenarios/NAME`), and
//! many checks on it. Most run on the default Envoy; on the oldest one too with the feature `slow`, as `make e2e` does.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may, and here its helpers do")]

mod access_log;
mod audit;
#[cfg(feature = "slow")]
mod chaos;
mod churn;
mod dual_stack;
mod egress;
mod fault;
mod life;
mod metrics;
mod modes;
mod mtls;
mod policy;
mod protocols;
mod refusals;
mod rootless;
mod smi;
mod warm;
mod xds;
mod zone;

use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use weft_e2e::mesh::{Mesh, envoy, pinned_version, weft_beside_tests};
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

/// The `weft` that was built with these tests.
fn weft() -> PathBuf {
    weft_beside_tests().expect("cargo build")
}

/// The stock Envoy of a line of envoy-bootstrap/VERSIONS: `default` or `oldest`.
fn stock_envoy(line: &str) -> PathBuf {
    pinned_version(line).and_then(|version| envoy(&version)).expect("make setup-all")
}

/// Starts a scenario on the stock Envoy of this line.
fn start(scenario: &str, line: &str) -> Mesh {
    start_with(scenario, line, &[])
}

/// As [`start`], with more arguments of `weft up`.
fn start_with(scenario: &str, line: &str, arguments: &[&str]) -> Mesh {
    let directory = format!("e2e/scenarios/{scenario}");
    let name = format!("{scenario}-{line}");
    Mesh::start(&directory, &name, &weft(), Some(stock_envoy(line)), arguments).expect("the mesh starts")
}

/// The scenarios of this mesh, on the stock Envoy of this line.
fn scenarios(mesh: &Mesh, line: &str) -> Scenarios {
    Scenarios::on(mesh, &pinned_version(line).expect("a pinned version"))
}

/// What a workload answered: `NAME PROTOCOL`, and `mtls` if it was told who its caller is, `plaintext` if it
/// was told nothing; else what it was told.
fn answer(mesh: &Mesh, pod: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let text = mesh.call(pod, arguments)?;
    let Ok(answer) = serde_json::from_str::<Value>(&text) else { return Ok(text) };
    let field = |name: &str| answer[name].as_str().unwrap_or("?").to_owned();
    let security = match answer["headers"]["x-forwarded-client-cert"].as_str() {
        Some(caller) if caller.contains(";URI=spiffe://cluster.local/ns/") => "mtls",
        Some(caller) => caller,
        None => "plaintext",
    };
    Ok(format!("{} {} {security}", field("name"), field("protocol")))
}

/// Waits until the control plane says something with these words.
fn told(mesh: &Mesh, words: &str) -> anyhow::Result<(bool, String)> {
    let mut inspection = mesh.inspection()?;
    let told = until(words, Duration::from_secs(10), || {
        let all = inspection.diagnostics()?;
        let text = all
            .iter()
            .map(|one| format!("{} {}/{} {} {}", one.kind, one.namespace, one.name, one.field, one.reason))
            .collect::<Vec<_>>();
        Ok(text.iter().find(|text| text.contains(words)).cloned().ok_or_else(|| text.join("; ")))
    });
    Ok(told.map_or_else(|error| (false, format!("{error:#}")), |text| (true, text)))
}

/// What a server that speaks first says to a caller that says nothing; `silence` when the connection is closed.
fn greeting(mesh: &Mesh, caller: &str, host: &str, port: u16) -> anyhow::Result<String> {
    let mut socket = mesh.dial(caller, SocketAddr::new(mesh.resolve(caller, host)?, port))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buffer = [0; 64];
    match socket.read(&mut buffer) {
        Ok(0) => Ok("silence".to_owned()),
        Ok(read) => Ok(String::from_utf8_lossy(&buffer[..read]).trim_end().to_owned()),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok("silence".to_owned()),
        Err(error) => Err(error.into()),
    }
}
