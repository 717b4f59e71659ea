//! `weft crds`: prints the CustomResourceDefinitions.

use std::io::Write;
use std::process::ExitCode;

use crate::source::crds;

/// Print the CustomResourceDefinitions of everything that Weft reads.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  weft crds | kubectl apply --server-side -f -

Helm installs them with the chart, and the control plane keeps them up to date: this is for other ways to install.")]
pub struct Args {}

/// Runs the command.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(_: Args) -> anyhow::Result<ExitCode> {
    std::io::stdout().lock().write_all(crds::to_yaml().as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
