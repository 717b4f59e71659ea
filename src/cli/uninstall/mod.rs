//! `weft uninstall`: takes Weft from a Kubernetes cluster.
//!
//! ```text
//!  API server ──facts──▶ Facts ──plan (pure)──▶ what depends on it ──asked──▶ [Step] ──act──▶ what is left
//! ```

mod act;
mod facts;
mod plan;
#[cfg(test)]
mod tests;

use std::io::{self, BufRead as _, IsTerminal as _};
use std::process::ExitCode;

use anyhow::Context as _;

use super::api_server::ApiServer;
use super::check::facts::denied;
use super::check::{judge, rights};
use super::install::helm::{self, Helm};
use super::install::release::{self, Owner, Release};
use super::output;
use crate::duration::HumanDuration;
use crate::kubernetes::{Cluster, root_secret};
use plan::Extent;

/// Remove Weft from a Kubernetes cluster
///
/// It says first what depends on Weft, and asks. People's resources and the mesh's root stay, unless --crds or --purge
/// says otherwise, so that Weft can come back as it was. Labels of namespaces are never changed.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  weft uninstall                what depends on Weft, and asks
  weft uninstall --yes          does not ask, as in a script
  weft uninstall --crds         with the CustomResourceDefinitions: all TrafficSplits, TrafficTargets, … are DELETED
  weft uninstall --purge        and with the mesh's root, so that nothing is left

Exit code: 0 when Weft is gone, or was not there; 1 when it is not, or you said no.")]
pub struct Args {
    /// The namespace of the control plane
    #[arg(short, long, default_value = "weft-system", value_name = "NAME")]
    namespace: String,
    /// Delete the CustomResourceDefinitions, and with them all objects of SMI's and Weft's kinds
    #[arg(long)]
    crds: bool,
    /// Delete everything: as --crds, and the Secret of the mesh's root, if Weft has made it
    #[arg(long)]
    purge: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// How long to wait for what takes its time
    #[arg(long, default_value = "5m", value_name = "DURATION")]
    timeout: HumanDuration,
    #[command(flatten)]
    server: ApiServer,
    #[command(flatten)]
    helm: helm::Which,
}

/// Runs the command.
///
/// # Errors
/// When there is no API server or no Helm that can be asked, or one of them refuses.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(uninstall(&args))
}

async fn uninstall(args: &Args) -> anyhow::Result<ExitCode> {
    let extent = match (args.crds, args.purge) {
        (_, true) => Extent::Everything,
        (true, false) => Extent::Definitions,
        (false, false) => Extent::Program,
    };
    let by_hand = format!(
        "helm uninstall {} --namespace {} --wait{}; then see docs/install.md for what it leaves",
        release::NAME,
        args.namespace,
        args.server.typed("--kube-context")
    );
    let helm = Helm::find(&args.helm, &args.server, &by_hand).await?;
    let cluster = args.server.connect(&args.namespace).await?;
    let client = cluster.client();
    may(&cluster, extent).await?;
    let owner = Owner::find(&client).await;
    let owner = owner.map_err(|error| anyhow::anyhow!("what is installed cannot be read: {error}"))?;
    if let Some((_, found, todo)) = release::elsewhere(&owner, &args.namespace) {
        anyhow::bail!("{found}; {todo}");
    }
    let found = Release::find(&helm, owner.release(&args.namespace), &args.namespace).await?;
    let facts = facts::read(&client, &args.namespace, found).await?;
    let steps = plan::steps(&facts, extent);
    let kubectl = format!("kubectl{}", args.server.typed("--context"));
    if steps.is_empty() {
        output::print(&format!("There is no Weft in {}: nothing to do.\n", args.namespace))?;
        let left = if facts.is_clean() { Vec::new() } else { plan::left(&facts, &kubectl) };
        output::print(&lines("What was left on purpose, and what removes it:", &left))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&lines("What depends on Weft:", &plan::consequences(&facts, &kubectl, extent)))?;
    if !agreed(args)? {
        output::print("Nothing was changed.\n")?;
        return Ok(ExitCode::FAILURE);
    }
    let act = act::Act { client, helm: &helm, namespace: &args.namespace, timeout: args.timeout.0 };
    for step in &steps {
        let done = act.step(step).await;
        done.context("not all is removed; `weft uninstall` again goes on")?;
        let (what, told) = plan::told(step);
        output::print(&format!("{what}: {told}\n"))?;
    }
    let facts = facts::read(&act.client, &args.namespace, None).await?;
    output::print(&lines("\nWhat is left on purpose, and what removes it:", &plan::left(&facts, &kubectl)))?;
    Ok(ExitCode::SUCCESS)
}

/// Whether whoever asks may do all that it takes: half of it would be worse than nothing.
async fn may(cluster: &Cluster, extent: Extent) -> anyhow::Result<()> {
    let mut wanted = rights::UNINSTALLATION.to_vec();
    if extent >= Extent::Definitions {
        wanted.extend_from_slice(rights::DEFINITIONS);
    }
    let denied = denied(cluster, &wanted, root_secret::NAME, None).await;
    let denied = denied.map_err(|error| anyhow::anyhow!("the API server does not say what you may: {error}"))?;
    let denied = Vec::from_iter(denied.iter().map(ToString::to_string));
    anyhow::ensure!(
        denied.is_empty(),
        "nothing was changed: you may not {}; uninstall with an account that may",
        judge::named(&denied.iter().map(String::as_str).collect::<Vec<_>>())
    );
    Ok(())
}

/// Whether it is to be done.
///
/// # Errors
/// When nobody can be asked.
fn agreed(args: &Args) -> anyhow::Result<bool> {
    if args.yes {
        return Ok(true);
    }
    anyhow::ensure!(
        io::stdin().is_terminal(),
        "nothing was changed: there is no terminal to ask on; say --yes to uninstall without a question"
    );
    output::print("Remove Weft? [y/N] ")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// A heading and what is below it; nothing when there is nothing.
fn lines(heading: &str, lines: &[String]) -> String {
    match lines {
        [] => String::new(),
        lines => format!("{heading}\n{}\n", lines.iter().map(|line| format!("  {line}\n")).collect::<String>()),
    }
}
