//! `weft proxy`: what the control plane knows of the proxies, and what a proxy itself has.
//!
//! ```text
//!  status, upstreams ────────────────▶ control plane (inspection API, gRPC)
//!  config, clusters, stats, certs ──▶ pod::resolve ──▶ Envoy's admin interface (HTTP) ──▶ table, JSON or YAML
//! ```

mod certs;
mod clusters;
mod config;
mod config_dump;
mod pod;
pub mod reach;
mod stats;
mod status;
mod upstreams;

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use clap::Subcommand;

use self::pod::KnownPod;
use self::reach::{Reach, Target};
use super::output::{self, Format};
use super::way::Way;
use crate::mesh::PodKey;

/// Show what proxies were sent, and what they have.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
POD is NAME, NAMESPACE/NAME, NAME.NAMESPACE, the beginning of a pod's name if only one begins so,
or deploy/NAME for the first pod of a workload.

Examples:
  weft proxy status                                 all connected proxies
  weft proxy config deploy/cart -n shop --type routes
  weft proxy certs cart-5d8f.shop -o json
  weft proxy --admin 127.0.0.1:15000 clusters       an Envoy that is reachable from here

Exit codes: 0 done, 1 error (for `status` also: a proxy refuses what it was sent), 2 wrong usage.")]
pub struct Args {
    /// Namespace of POD.
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// Output format.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    way: Way,
    /// A proxy's admin interface, when it is reachable from here; POD is then not needed.
    #[arg(long, global = true, value_name = "HOST:PORT")]
    admin: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Connected proxies: what each was sent, acknowledged and refused, and how long ago.
    #[command(after_help = "\
A cell such as `5 acked 12s` says: the proxy has 5 resources of this type, and acknowledged the
last response 12 seconds ago.
  sent       it has not answered yet
  refused    it does not take the response; what Envoy says is below the table
  unchanged  it came back with what it has, and that is still right
  waiting    it was sent nothing yet")]
    Status {
        /// Show this pod's proxy in detail.
        pod: Option<String>,
    },
    /// The destinations that a proxy uses, by what the control plane knows.
    Upstreams {
        /// The pod.
        pod: String,
    },
    /// The configuration that a proxy has.
    Config {
        /// The pod.
        pod: Option<String>,
        /// Only resources of this type.
        #[arg(short, long, value_enum)]
        r#type: Option<config_dump::Type>,
        /// Only resources with this name, or whose name contains it if none has it.
        #[arg(long, value_name = "NAME")]
        resource: Option<String>,
    },
    /// The endpoints of a proxy's clusters: health, requests, failures.
    Clusters {
        /// The pod.
        pod: Option<String>,
    },
    /// A proxy's statistics.
    Stats {
        /// The pod.
        pod: Option<String>,
        /// Only names that this regular expression matches somewhere.
        #[arg(long, value_name = "REGEX")]
        filter: Option<String>,
        /// Also those that were never written.
        #[arg(long)]
        all: bool,
    },
    /// The certificates that a proxy has: identity, issuer, validity.
    Certs {
        /// The pod.
        pod: Option<String>,
    },
}

/// Runs the command. `playground` opens the way to the playground of a name, if the options do not tell another way.
pub fn run(args: Args, playground: impl FnOnce(&str) -> anyhow::Result<Box<dyn Reach>>) -> anyhow::Result<ExitCode> {
    let reach = args.way.open_with(args.admin.clone(), playground)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (text, code) = runtime.block_on(execute(&args, reach.as_ref(), SystemTime::now()))?;
    output::print(&text)?;
    Ok(code)
}

/// What the command prints, and its exit code.
async fn execute(args: &Args, reach: &dyn Reach, now: SystemTime) -> anyhow::Result<(String, ExitCode)> {
    let format = args.output;
    let text = match &args.command {
        Command::Status { pod } => return status(args, reach, pod.as_deref(), now).await,
        Command::Upstreams { pod } => {
            let upstreams = upstreams::fetch(reach, &find(args, reach, pod).await?).await?;
            output::render(format, &upstreams, |upstreams| upstreams::table(upstreams))?
        }
        Command::Config { pod, r#type, resource } => {
            let dump = get_json(args, reach, pod.as_deref(), "/config_dump?include_eds").await?;
            let entries = config_dump::select(config_dump::entries(&dump), *r#type, resource.as_deref())?;
            output::render(format, &entries, |entries| config::tables(entries))?
        }
        Command::Clusters { pod } => {
            let body = get_json(args, reach, pod.as_deref(), "/clusters?format=json").await?;
            output::render(format, &clusters::endpoints(&body), |endpoints| clusters::table(endpoints))?
        }
        Command::Stats { pod, filter, all } => {
            let body = get_json(args, reach, pod.as_deref(), &stats::path(filter.as_deref(), *all)).await?;
            output::render(format, &stats::read(&body), stats::table)?
        }
        Command::Certs { pod } => {
            let dump = get_json(args, reach, pod.as_deref(), "/config_dump").await?;
            let certificates = certs::read(&config_dump::entries(&dump), now);
            output::render(format, &certificates, |certificates| certs::table(certificates))?
        }
    };
    Ok((text, ExitCode::SUCCESS))
}

async fn status(
    args: &Args,
    reach: &dyn Reach,
    pod: Option<&str>,
    now: SystemTime,
) -> anyhow::Result<(String, ExitCode)> {
    let report = status::fetch(reach).await?;
    let report = match pod {
        Some(pod) => {
            let known: Vec<KnownPod> = report.known_pods().collect();
            report.only(&pod::resolve(pod, args.namespace.as_deref(), &known)?)
        }
        None => report.in_namespace(args.namespace.as_deref()),
    };
    let code = if report.is_refusing() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    let render = |report: &status::Report| if pod.is_some() { report.detail(now) } else { report.table(now) };
    Ok((output::render(args.output, &report, render)?, code))
}

/// Asks the admin interface of the pod that was named.
async fn get_json(args: &Args, reach: &dyn Reach, pod: Option<&str>, path: &str) -> anyhow::Result<serde_json::Value> {
    let target = match (pod, &args.admin) {
        (_, Some(address)) => Target::Address(address.clone()),
        (Some(pod), None) => Target::Admin(find(args, reach, pod).await?),
        (None, None) => anyhow::bail!("which proxy? Name a POD, or give --admin HOST:PORT"),
    };
    let body = reach::get(reach, &target, path).await?;
    serde_json::from_slice(&body)
        .with_context(|| format!("{target} answered {path} with what is not JSON; is it Envoy's admin interface?"))
}

/// The pod that is meant: of those whose way we know, else of those that are connected.
async fn find(args: &Args, reach: &dyn Reach, pod: &str) -> anyhow::Result<PodKey> {
    let known = match reach.pods()? {
        Some(known) => known,
        None => status::fetch(reach).await?.known_pods().collect(),
    };
    Ok(pod::resolve(pod, args.namespace.as_deref(), &known)?)
}

#[cfg(test)]
mod tests;
