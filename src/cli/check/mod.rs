//! `weft check`: what is wrong with Weft on a Kubernetes cluster, and how to mend it.
//!
//! ```text
//!  API server ──facts──▶ Facts ──judge (pure)──▶ [Finding] ──▶ a table, or JSON
//! ```

pub(super) mod facts;
pub(super) mod judge;
pub(super) mod rights;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use super::api_server::ApiServer;
use super::output::{self, Format, Table};

/// Check that Weft works on a Kubernetes cluster, or can be installed there.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  weft check --before          can it be installed here?
  weft check                   does what is installed work?
  weft check -o json           for a program

Exit code: 0 when nothing has failed (there may be warnings), 1 when something has.")]
pub struct Args {
    /// Look at what an installation needs, before there is one
    #[arg(long)]
    pub before: bool,
    /// The namespace of the control plane
    #[arg(short, long, default_value = "weft-system", value_name = "NAME")]
    pub namespace: String,
    /// Which API server is meant
    #[command(flatten)]
    pub server: ApiServer,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// What a check came to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Ok,
    Warning,
    Failed,
}

/// One line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Finding {
    /// What was looked at.
    pub(super) check: &'static str,
    pub(super) outcome: Outcome,
    /// What was seen.
    pub(super) found: String,
    /// What to do about it; empty when it is as it should be.
    pub(super) todo: String,
}

/// Runs the command.
///
/// # Errors
/// When there is no API server that can be asked.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let findings = runtime.block_on(async {
        let cluster = args.server.connect(&args.namespace).await?;
        let version = facts::server_version(&cluster).await;
        let version = version.context("the API server does not answer; see that it can be reached from here")?;
        anyhow::Ok(match args.before {
            true => judge::before(&facts::before(&cluster, version).await),
            false => judge::after(&facts::after(&cluster, version).await),
        })
    })?;
    output::print(&output::render(args.output, &findings, |findings| table(findings))?)?;
    Ok(exit_code(&findings))
}

/// 1 when something has failed.
pub(super) fn exit_code(findings: &[Finding]) -> ExitCode {
    match findings.iter().any(|finding| finding.outcome == Outcome::Failed) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

/// The findings for reading.
pub(super) fn table(findings: &[Finding]) -> String {
    let mut table = Table::new(["CHECK", "RESULT", "FOUND", "WHAT TO DO"]);
    for Finding { check, outcome, found, todo } in findings {
        let outcome = match outcome {
            Outcome::Ok => "ok",
            Outcome::Warning => "warning",
            Outcome::Failed => "FAILED",
        };
        table.row([(*check).to_owned(), outcome.to_owned(), found.clone(), todo.clone()]);
    }
    table.to_string()
}
