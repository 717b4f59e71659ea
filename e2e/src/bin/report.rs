//! The end of `make e2e`: puts the rows that every mesh has left into target/e2e/report.json, and prints what fails. With
//! the argument `kube` that of `make e2e-kube`, and target/e2e/kube-report.json.

use std::fs;
use std::process::ExitCode;

use weft_e2e::mesh::repository;
use weft_e2e::scenario::{KUBE_ROWS, ROWS, collect};

/// Scenarios that there are at least; fewer means that some were not run.
const LEAST: usize = 90;
/// The same on a Kubernetes API server.
const KUBE_LEAST: usize = 110;

fn main() -> anyhow::Result<ExitCode> {
    let (rows, report, least) = match std::env::args().nth(1).as_deref() {
        Some("kube") => (KUBE_ROWS, "target/e2e/kube-report.json", KUBE_LEAST),
        _ => (ROWS, "target/e2e/report.json", LEAST),
    };
    let rows = collect(&repository().join(rows))?;
    fs::write(repository().join(report), serde_json::to_string_pretty(&rows)? + "\n")?;
    let failed: Vec<_> = rows.iter().filter(|row| !row.ok).collect();
    for row in &failed {
        println!("{} on Envoy {}: {}", row.scenario, row.envoy, row.observed);
    }
    let requests: u64 = rows.iter().map(|row| row.requests).sum();
    println!("{} scenarios, {} failed, {requests} requests; {report} has each", rows.len(), failed.len());
    Ok(if failed.is_empty() && rows.len() >= least { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
