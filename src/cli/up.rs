//! `weft up`: a mesh on this machine.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use super::logging::{self, LogFormat};
use crate::duration::HumanDuration;
use crate::local::{Privilege, Setup, envoy_binary, outer};

/// Run a mesh on this machine, from a directory of Kubernetes YAML
///
/// Starts each Pod and Deployment of the directory in network namespaces of its own, with cluster DNS, ClusterIPs and a
/// stock Envoy as sidecar. Editing a file changes the running mesh. Ctrl-C ends it and leaves nothing behind.
/// Works as root, and without where the kernel lets users make namespaces.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  weft up examples/shop\n  weft up examples/shop --name second\n  \
    weft exec -n shop deploy/web -- curl -s http://cart\n  WEFT_ENVOY=/usr/bin/envoy weft up examples/shop")]
pub struct Args {
    /// The directory of Kubernetes YAML
    dir: PathBuf,
    /// The playground's name; playgrounds of different names run beside each other
    #[arg(long, env = "WEFT_PLAYGROUND", default_value = "default")]
    name: String,
    /// The Envoy to run as sidecar; by default the one of `make setup`, or one on the PATH
    #[arg(long, env = "WEFT_ENVOY")]
    envoy: Option<PathBuf>,
    /// How long the sidecars' certificates live; they are renewed at about half of that
    #[arg(long, value_name = "DURATION")]
    certificate_lifetime: Option<HumanDuration>,
    /// Give pods an IPv6 address as well, and Services that ask for both families (`ipFamilyPolicy`)
    #[arg(long)]
    dual_stack: bool,
}

/// Runs until the playground ends. Must be called before this process starts a thread.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    logging::init(LogFormat::Text);
    let Args { dir, name, envoy, certificate_lifetime, dual_stack } = args;
    let dir = dir.canonicalize().with_context(|| format!("cannot use the directory {}", dir.display()))?;
    anyhow::ensure!(dir.is_dir(), "{} is not a directory", dir.display());
    let found = envoy_binary::find(envoy.as_deref());
    if let (Some(_), Err(why)) = (&envoy, &found) {
        anyhow::bail!("{why}");
    }
    let setup = Setup {
        dir,
        name,
        privilege: Privilege::of_this_process(),
        weft: std::env::current_exe().context("cannot find the weft executable")?,
        envoy: found,
        serve: certificate_lifetime
            .map(|lifetime| format!("--certificate-lifetime={}s", lifetime.0.as_secs()))
            .into_iter()
            .collect(),
        dual_stack,
    };
    Ok(outer::run(&setup)?)
}
