//! The end of `make e2e`: puts the rows that every mesh has left into target/e2e/report.json, and prints what fails.

use std::fs;
use std::process::ExitCode;

use weft_e2e::mesh::repository;
use weft_e2e::scenario::{ROWS, collect};

/// Scenarios that there are at least; fewer means that some were not run.
const LEAST: usize = 90;

fn main() -> anyhow::Result<ExitCode> {
    let rows = collect(&repository().join(ROWS))?;
    fs::write(repository().join("target/e2e/report.json"), serde_json::to_string_pretty(&rows)? + "\n")?;
    let failed: Vec<_> = rows.iter().filter(|row| !row.ok).collect();
    for row in &failed {
        println!("{} on Envoy {}: {}", row.scenario, row.envoy, row.observed);
    }
    let requests: u64 = rows.iter().map(|row| row.requests).sum();
    println!("{} scenarios, {} failed, {requests} requests; target/e2e/report.json has each", rows.len(), failed.len());
    Ok(if failed.is_empty() && rows.len() >= LEAST { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
