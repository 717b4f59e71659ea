//! `make demo`: runs the shop in a mesh, exercises it, and prints what was expected and what was seen.
//!
//! The same rows go to target/demo/report.json. The exit code is 0 only if all of them hold.

use std::process::ExitCode;
use std::time::Instant;

use weft_e2e::checks::{Setting, run};
use weft_e2e::mesh::repository;

fn main() -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    println!("Starting the shop: ten pods, each but one with a stock Envoy beside it …");
    let weft = std::env::current_exe()?.with_file_name("weft");
    let report = run(Setting { name: "demo", weft, envoy: None, timed: true }, |row| {
        println!("{:5.1} s  {}  {}", start.elapsed().as_secs_f32(), if row.ok { "ok" } else { "NO" }, row.check);
    })?;
    let path = repository().join("target/demo/report.json");
    report.write(&path)?;
    println!("\n{report}\n{:.0} s; the same as JSON in target/demo/report.json", start.elapsed().as_secs_f32());
    if !report.holds() {
        println!(
            "A row that says NO does not hold. Rows of times have fixed limits: a machine that is busy may miss them."
        );
    }
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
