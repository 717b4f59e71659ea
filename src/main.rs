//! The `weft` binary: see `weft --help`.

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(version, about)]
enum Cli {
    Proxy(weft::cli::proxy::Args),
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse() {
        Cli::Proxy(args) => {
            weft::cli::proxy::run(args, || anyhow::bail!("no playground runs here; give --server or --admin HOST:PORT"))
        }
    }
}
