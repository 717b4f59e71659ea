//! The `weft` binary: see `weft --help`.

use clap::Parser;
use weft::cli;

/// A service-mesh control plane for stock Envoy sidecars.
#[derive(Parser)]
enum Command {
    Validate(cli::validate::Args),
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    match Command::parse() {
        Command::Validate(args) => cli::validate::run(args),
    }
}
