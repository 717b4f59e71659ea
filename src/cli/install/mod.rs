//! `weft install`: Weft on a Kubernetes cluster, or its upgrade, by Helm and the chart that this program holds.
//!
//! ```text
//!  before ─▶ values ─▶ helm template ─▶ definitions ─▶ helm upgrade --install --wait ─▶ weft check
//!  (nothing is changed until here)   │
//!                                    └─▶ --dry-run prints it
//! ```

mod chart;
mod definitions;
pub(super) mod helm;
pub(super) mod progress;
pub(super) mod release;
mod steps;
mod told;
mod values;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use super::api_server::ApiServer;
use super::check::{Finding, Outcome, facts, judge};
use super::logging;
use super::output::{self, Format};
use crate::duration::HumanDuration;
use crate::kubernetes::Cluster;
use helm::Helm;
use release::{Owner, Release};
pub(super) use told::Told;
use values::Values;

/// Install Weft on a Kubernetes cluster, or upgrade it to this version
///
/// It looks at the cluster first and changes nothing where Weft would not work; then it applies the
/// CustomResourceDefinitions, has Helm install the chart that this program holds, waits until everything is ready, and
/// ends with what `weft check` says. Where Weft is installed already, it is upgraded, and keeps the values that were set.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  weft install                                             on the cluster of the current context
  weft install --dry-run                                   print what would be applied, and change nothing
  weft install --set meshConfig.spec.mtls.mode=Permissive  with a value of the chart (helm/weft/values.yaml)
  weft install -f values.yaml --timeout 10m
  weft install --write-chart weft-chart                    the chart itself, for Helm, Argo CD or Flux

Helm does the work, and its release can be changed with Helm as well: helm history weft -n weft-system.
Exit code: 0 when Weft works (there may be warnings), 1 when it does not, or cannot be installed.")]
pub struct Args {
    /// The namespace of the control plane, which is made when there is none
    #[arg(short, long, default_value = "weft-system", value_name = "NAME")]
    namespace: String,
    #[command(flatten)]
    values: values::Given,
    /// How long to wait until everything is ready
    #[arg(long, default_value = "5m", value_name = "DURATION")]
    timeout: HumanDuration,
    /// Change nothing; print all objects as YAML
    #[arg(long, conflicts_with = "output")]
    dry_run: bool,
    /// Write the chart into a new directory and do nothing else
    #[arg(long, value_name = "DIR")]
    write_chart: Option<PathBuf>,
    #[command(flatten)]
    server: ApiServer,
    #[command(flatten)]
    helm: helm::Which,
    /// Output format; what is done goes to standard error unless it is the table
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Runs the command.
///
/// # Errors
/// When there is no API server or no Helm that can be asked, or one of them refuses.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(directory) = &args.write_chart {
        std::fs::create_dir(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        chart::write(directory).with_context(|| format!("cannot write into {}", directory.display()))?;
        let directory = directory.display().to_string();
        output::print(&format!("The chart is in {directory}. To install it:\n\n    {}\n", by_hand(&args, &directory)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(install(&args))
}

/// The same with Helm alone.
fn by_hand(args: &Args, chart: &str) -> String {
    let context = args.server.typed("--kube-context");
    format!("helm upgrade --install weft {chart} --namespace {} --create-namespace --wait{context}", args.namespace)
}

async fn install(args: &Args) -> anyhow::Result<ExitCode> {
    let by_hand = format!("weft install --write-chart weft-chart; {}", by_hand(args, "weft-chart"));
    let helm = Helm::find(&args.helm, &args.server, &by_hand).await?;
    let cluster = args.server.connect(&args.namespace).await?;
    let mut told = Told::new(args.output, args.dry_run);

    let (findings, version, release) = unless_stopped(before(args, &helm, &cluster)).await?;
    told.say("before", judge_before(&findings))?;
    if findings.iter().any(|finding| finding.outcome == Outcome::Failed) {
        told.say("stopped", "nothing was changed")?;
        return told.end(None, &findings);
    }
    told.warn(&findings)?;

    let directory = tempfile::Builder::new().prefix("weft-install-").tempdir();
    let directory = directory.context("cannot make a directory for the chart")?;
    let chart = directory.path().join("weft");
    chart::write(&chart).context("cannot write the chart")?;
    let values = Values::gather(&args.values, &helm, release.found.as_ref(), directory.path());
    let values = unless_stopped(values).await?;
    if !values.kept.is_empty() {
        let kept = Vec::from_iter(values.kept.iter().map(String::as_str));
        told.say("values", format!("kept as they were set before: {}", judge::named(&kept)))?;
    }
    let steps = steps::Steps { helm: &helm, cluster: &cluster, chart: &chart, values: &values, release: &release.name };
    let rendered = unless_stopped(steps.rendered(version)).await?;
    if args.dry_run {
        output::print(&(definitions::to_yaml(&args.namespace)? + &rendered))?;
        return Ok(ExitCode::SUCCESS);
    }
    told.say("definitions", unless_stopped(definitions::apply(&cluster.client(), &args.namespace)).await?)?;
    steps.installed(args.timeout.0, &mut told).await?;
    let after = Release::find(&helm, &release.name, &args.namespace).await?;
    if let Some(Release { name, revision, version, status, .. }) = &after {
        told.say("release", format!("{name}, revision {revision}, Weft {version}, {status}"))?;
    }
    told.say("check", "waiting until the control plane has made itself known")?;
    let findings = unless_stopped(steps.settled()).await?;
    told.end(after, &findings)
}

/// Does what can be given up at any time. An end by a signal itself would leave the directory with the values behind.
async fn unless_stopped<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        () = logging::stop_requested() => anyhow::bail!("stopped"),
    }
}

/// The release that is or will be.
struct Meant {
    name: String,
    found: Option<Release>,
}

/// What can be known before anything is changed.
async fn before(args: &Args, helm: &Helm, cluster: &Cluster) -> anyhow::Result<(Vec<Finding>, (u32, u32), Meant)> {
    let version = facts::server_version(cluster).await;
    let version = version.context("the API server does not answer; see that it can be reached from here")?;
    let mut findings = judge::before(&facts::before(cluster, version).await);
    let owner = Owner::find(&cluster.client()).await;
    let name = owner.as_ref().map_or(release::NAME, |owner| owner.release(&args.namespace)).to_owned();
    // Who may not read the releases is told so by the rights.
    let may = findings.iter().all(|finding| finding.check != "permissions" || finding.outcome == Outcome::Ok);
    let found = if may { Release::find(helm, &name, &args.namespace).await? } else { None };
    findings.extend(release::judge(&owner, found.as_ref(), &args.namespace));
    Ok((findings, version, Meant { name, found }))
}

/// In one line: what was seen where all is well, or how much is wrong.
fn judge_before(findings: &[Finding]) -> String {
    let count = |outcome| findings.iter().filter(|finding| finding.outcome == outcome).count();
    match (count(Outcome::Failed), count(Outcome::Warning)) {
        (0, 0) => {
            let found = findings.iter().map(|finding| format!("{} {}", finding.check, finding.found));
            found.collect::<Vec<_>>().join("; ")
        }
        (0, warnings) => format!("it can be installed here; {warnings} to know of"),
        (failed, _) => format!("it cannot be installed here: {failed} failed"),
    }
}
