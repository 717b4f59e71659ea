//! What the SMI specification promises, numbered as its rows are: `smi-01` to `smi-13` are about TrafficSplit,
//! `smi-14` to `smi-19` about TrafficTarget.

mod splits;
mod targets;
mod versions;

use std::time::Duration;

use weft_e2e::mesh::Mesh;
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::{scenarios, start};

const CLIENT: &str = "app/client";
const STRANGER: &str = "outside/stranger";
const SPLIT: &str = "split.yaml";
const TARGET: &str = "target.yaml";

#[test]
fn smi_does_what_its_specification_says() {
    run("default");
}

#[cfg(feature = "slow")]
#[test]
fn smi_does_what_its_specification_says_on_the_oldest_envoy() {
    run("oldest");
}

fn run(line: &str) {
    let mesh = start("smi", line);
    let mut checks = scenarios(&mesh, line);
    splits::run(&mesh, &mut checks);
    versions::run(&mesh, &mut checks);
    targets::run(&mesh, &mut checks);
    checks.end(mesh).expect("every scenario holds");
}

/// A change that not every sidecar takes is a scenario that does not hold.
fn taken(checks: &mut Scenarios, what: &str, change: anyhow::Result<Duration>) {
    if let Err(error) = change {
        checks.equal::<&str>(&format!("smi-taken: {what}"), "taken", Err(error));
    }
}

/// How calls ended and which versions answered, both without how often.
fn see(mesh: &Mesh, pod: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let summary = mesh.calls(pod, arguments)?;
    let responders = summary.responders.keys().map(|name| name.trim_start_matches("root ").to_owned());
    Ok(summary.codes.keys().cloned().chain(responders).collect::<Vec<_>>().join(" "))
}

/// Holds when none of these calls fails and the second version answers this many percent of them.
fn share(mesh: &Mesh, checks: &mut Scenarios, scenario: &str, arguments: &[&str], percent: f64, tolerance: f64) {
    checks.holds(scenario, &format!("{percent} % ± {tolerance} on v2"), || {
        let summary = mesh.calls(CLIENT, arguments)?;
        let share = summary.share("root v2");
        let ok = summary.failed == 0 && (share - percent).abs() <= tolerance;
        Ok((ok, format!("{share:.1} % on v2; {}", summary.said())))
    });
}

/// Holds when the control plane says these words of an object, or `weft up`, which keeps out what cannot be used.
fn said(mesh: &Mesh, checks: &mut Scenarios, scenario: &str, words: &str) {
    checks.holds(scenario, &format!("it is said that {words}"), || {
        let said = until(words, Duration::from_secs(5), || {
            let all = mesh.inspection()?.diagnostics()?;
            let texts = all.iter().map(|diagnostic| format!("{diagnostic:?}"));
            let texts: Vec<String> = texts.chain(mesh.log()).collect();
            let found = texts.iter().find(|text| text.contains(words)).cloned();
            Ok(found.ok_or_else(|| texts.join("; ")))
        })?;
        Ok((true, said))
    });
}
