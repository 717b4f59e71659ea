//! `weft exec`: a command in a pod of the playground.

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use crate::local::Client;
use crate::local::control::PodSelector;

/// Run a command in a pod of a running playground
///
/// The command is one of this machine, run in the pod's network, host name and DNS, with this terminal's input and
/// output. Its exit code is passed on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  weft exec shop/shell -- weft app call http://frontend/\n  \
    weft exec -n shop deploy/cart -- curl -s http://catalog/\n  weft exec -n shop cart-7d9 -- cat /etc/resolv.conf")]
pub struct Args {
    /// The pod's namespace; `default`, unless POD names it
    #[arg(short, long)]
    namespace: Option<String>,
    /// The playground's name
    #[arg(long, env = "WEFT_PLAYGROUND", default_value = "default")]
    name: String,
    /// A pod's name, a prefix that only one pod has, or deploy/NAME; each also as NAMESPACE/…
    pod: String,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs the command and passes on its exit code. Ctrl-C is the command's: it may have something to say at its end.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = Client::connect(&args.name)?;
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let stdio = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut interrupts = runtime.block_on(async { signal(SignalKind::interrupt()) })?;
    let pod = PodSelector::parse(&args.pod, args.namespace.as_deref());
    let command = Arc::new(client.start(pod, args.command, stdio)?);
    let interrupted = command.clone();
    runtime.spawn(async move { while interrupts.recv().await.is_some() && interrupted.interrupt().is_ok() {} });
    let code = command.wait()?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
