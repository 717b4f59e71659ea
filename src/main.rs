//! The `weft` binary: see `weft --help`.

use std::process::ExitCode;

use clap::Parser;
use weft::cli::{exec, internal, up};

#[derive(Parser)]
#[command(version, about)]
enum Command {
    Up(up::Args),
    Exec(exec::Args),
    Internal(internal::Args),
}

fn main() -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("WEFT_LOG").unwrap_or_else(|_| "info".into()))
        .init();
    match Command::parse() {
        Command::Up(args) => up::run(args),
        Command::Exec(args) => exec::run(args),
        Command::Internal(args) => internal::run(args),
    }
}
