//! Scenarios: what was expected of a mesh, what was seen, and the traffic that it took.
//!
//! ```text
//!  Scenarios::on(mesh) ─▶ equal, holds (a row each) ─▶ end ─▶ target/e2e/scenarios/MESH.json
//!  bin/report: all of these ─▶ target/e2e/report.json
//! ```

use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use weft::cli::output::Table;

use crate::load::Summary;
use crate::mesh::{Mesh, repository};

/// Where each mesh leaves its rows, from the root of the repository.
pub const ROWS: &str = "target/e2e/scenarios";

/// Where those on a Kubernetes API server do.
pub const KUBE_ROWS: &str = "target/e2e/kube";

/// One scenario on one Envoy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scenario {
    /// Its subject, as `fault-delay`, and what in particular: `fault-delay: a header matches`.
    pub scenario: String,
    /// The Envoy's version.
    pub envoy: String,
    /// Calls that were made for it.
    pub requests: u64,
    /// Those of its loads that came to something that was not expected.
    pub failed: u64,
    /// Whether what was seen is what had to be seen.
    pub ok: bool,
    /// What was seen.
    pub observed: String,
}

/// The calls that were made in a mesh.
#[derive(Debug, Default)]
pub struct Traffic {
    requests: AtomicU64,
    failed: AtomicU64,
}

impl Traffic {
    /// Counts one call, whose outcome is for the scenario to judge.
    pub fn call(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the calls of a load.
    pub(crate) fn load(&self, summary: &Summary) {
        self.requests.fetch_add(summary.requests, Ordering::Relaxed);
        self.failed.fetch_add(summary.failed, Ordering::Relaxed);
    }

    /// What was counted since the last time: calls, and those that failed.
    fn take(&self) -> (u64, u64) {
        (self.requests.swap(0, Ordering::Relaxed), self.failed.swap(0, Ordering::Relaxed))
    }
}

/// The scenarios of one mesh, all of which are told at the end.
#[derive(Debug)]
pub struct Scenarios {
    name: String,
    envoy: String,
    traffic: Arc<Traffic>,
    rows: Vec<(Scenario, String)>,
}

impl Scenarios {
    /// Those of this mesh, which runs on an Envoy of this version.
    pub fn on(mesh: &Mesh, envoy: &str) -> Self {
        mesh.traffic().take();
        Self::with(mesh.name(), envoy, mesh.traffic())
    }

    /// Those of a mesh whose calls are counted in `traffic`.
    pub fn with(name: &str, envoy: &str, traffic: &Arc<Traffic>) -> Self {
        Self { name: name.to_owned(), envoy: envoy.to_owned(), traffic: traffic.clone(), rows: Vec::new() }
    }

    /// Those that need no mesh on this machine, on an Envoy of this version, or on none.
    pub fn of(name: &str, envoy: &str) -> Self {
        Self::with(name, envoy, &Arc::default())
    }

    /// Holds when what was observed reads as expected.
    pub fn equal<T: Display>(&mut self, scenario: &str, expected: &str, observed: anyhow::Result<T>) {
        let observed = observed.map_or_else(|error| format!("{error:#}"), |observed| observed.to_string());
        self.add(scenario, expected, observed == expected, observed);
    }

    /// Holds when `see` says so; the text is what it saw.
    pub fn holds(&mut self, scenario: &str, expected: &str, see: impl FnOnce() -> anyhow::Result<(bool, String)>) {
        let (ok, observed) = see().unwrap_or_else(|error| (false, format!("{error:#}")));
        self.add(scenario, expected, ok, observed);
    }

    fn add(&mut self, scenario: &str, expected: &str, ok: bool, observed: String) {
        let (requests, failed) = self.traffic.take();
        let row = Scenario { scenario: scenario.to_owned(), envoy: self.envoy.clone(), requests, failed, ok, observed };
        self.rows.push((row, expected.to_owned()));
    }

    /// Whether all that was seen so far is as expected; without a scenario nothing is shown.
    pub fn hold(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|(row, _)| row.ok)
    }

    /// Ends the mesh and writes the rows.
    ///
    /// # Errors
    /// When a scenario does not hold, with all of them and the end of the mesh's log; when the mesh does not end well.
    pub fn end(self, mesh: Mesh) -> anyhow::Result<()> {
        let log = mesh.log();
        let stopped = mesh.stop();
        self.finish(Path::new(ROWS), || log[log.len().saturating_sub(15)..].join("\n"))?;
        stopped
    }

    /// Writes the rows into a folder of the repository.
    ///
    /// # Errors
    /// When a scenario does not hold, with all of them and what `log` says of it.
    pub fn finish(self, folder: &Path, log: impl FnOnce() -> String) -> anyhow::Result<()> {
        let rows: Vec<&Scenario> = self.rows.iter().map(|(row, _)| row).collect();
        let folder = repository().join(folder);
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{}.json", self.name));
        fs::write(&path, serde_json::to_string_pretty(&rows)? + "\n").with_context(|| path.display().to_string())?;
        ensure!(self.hold(), "\n{}\nthe end of the log:\n{}", self.table(), log());
        Ok(())
    }

    /// The rows, for people.
    pub fn table(&self) -> Table {
        let mut table = Table::new(["SCENARIO", "EXPECTED", "OBSERVED", "OK"]);
        for (row, expected) in &self.rows {
            let ok = if row.ok { "yes" } else { "NO" };
            table.row([row.scenario.clone(), expected.clone(), row.observed.clone(), ok.to_owned()]);
        }
        table
    }
}

impl Drop for Scenarios {
    /// A test that ends in the middle says what it had seen until then.
    #[allow(clippy::print_stderr, reason = "it stands beside the words of the panic")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("until then:\n{}", self.table());
        }
    }
}

/// The rows that every mesh has left, ordered by scenario.
///
/// # Errors
/// When they cannot be read, or one scenario has two rows for one Envoy.
pub fn collect(folder: &Path) -> anyhow::Result<Vec<Scenario>> {
    let mut rows: Vec<Scenario> = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        rows.extend(serde_json::from_str::<Vec<Scenario>>(&text).with_context(|| path.display().to_string())?);
    }
    rows.sort_by(|a, b| (&a.scenario, &a.envoy).cmp(&(&b.scenario, &b.envoy)));
    for pair in rows.windows(2) {
        ensure!(
            (&pair[0].scenario, &pair[0].envoy) != (&pair[1].scenario, &pair[1].envoy),
            "two scenarios are called `{}`",
            pair[0].scenario
        );
    }
    Ok(rows)
}
