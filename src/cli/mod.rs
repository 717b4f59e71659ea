//! The command line: a file a subcommand.

pub mod api_server;
pub mod app;
pub mod audit;
pub mod check;
mod cluster;
pub mod crds;
pub mod deliveries;
pub mod diagnostics;
pub mod exec;
pub mod graph;
pub mod inject;
pub mod install;
pub mod internal;
mod logging;
pub mod output;
mod playground;
pub mod proxy;
pub mod serve;
mod together;
pub mod uninstall;
pub mod up;
pub mod validate;
pub mod way;
pub mod webhook;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A service mesh for stock Envoy sidecars.
#[derive(Parser, Debug)]
#[command(
    name = "weft",
    version,
    after_help = "\
Examples:
  weft up examples/shop                                    run a mesh on this machine
  weft exec shop/shell -- weft app call http://frontend    call a Service from a pod of it
  weft proxy status                                        what each sidecar was sent and acknowledged
  weft diagnostics                                         what is wrong with the objects of the mesh
  weft deliveries                                          which sidecars have what was changed"
)]
struct Weft {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Up(up::Args),
    Exec(exec::Args),
    Internal(internal::Args),
    Serve(Box<serve::Args>),
    Webhook(webhook::Args),
    Validate(validate::Args),
    Inject(inject::Args),
    Crds(crds::Args),
    Install(install::Args),
    Check(check::Args),
    Uninstall(uninstall::Args),
    Diagnostics(diagnostics::Args),
    Proxy(proxy::Args),
    Deliveries(deliveries::Args),
    Graph(graph::Args),
    Audit(audit::Args),
    App(app::Args),
}

/// Runs `weft` with the arguments of this process. An error goes to standard error, with its causes.
pub fn main() -> ExitCode {
    let Weft { command } = Weft::parse();
    let result = match command {
        Command::Up(args) => up::run(args),
        Command::Exec(args) => exec::run(args),
        Command::Internal(args) => internal::run(args),
        Command::Serve(args) => serve::run(*args),
        Command::Webhook(args) => webhook::run(args),
        Command::Validate(args) => validate::run(args),
        Command::Inject(args) => inject::run(args),
        Command::Crds(args) => crds::run(args),
        Command::Install(args) => install::run(args),
        Command::Check(args) => check::run(args),
        Command::Uninstall(args) => uninstall::run(args),
        Command::Diagnostics(args) => diagnostics::run(args, playground::reach),
        Command::Proxy(args) => proxy::run(args, playground::reach),
        Command::Deliveries(args) => deliveries::run(args, playground::reach),
        Command::Graph(args) => graph::run(args, playground::reach),
        Command::Audit(args) => audit::run(args, playground::reach),
        Command::App(args) => app::run(args),
    };
    result.unwrap_or_else(|error| {
        // Whoever reads our output may have read enough: `weft proxy config POD | head`.
        let pipe_closed = |cause: &(dyn std::error::Error + 'static)| {
            cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
        };
        if !error.chain().any(pipe_closed) {
            // Nothing can be done about a standard error that cannot be written to.
            let _ = writeln!(io::stderr(), "error: {error:#}");
        }
        ExitCode::FAILURE
    })
}
