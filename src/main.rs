//! The `weft` binary: see `weft --help`.

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "weft", version)]
enum Weft {
    App(weft::cli::app::Args),
}

fn main() -> anyhow::Result<ExitCode> {
    let Weft::App(args) = Weft::parse();
    weft::cli::app::run(args)
}
