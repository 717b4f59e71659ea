//! `weft serve`: the control plane.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio_util::sync::CancellationToken;

use super::logging::{self, LogFormat};
use crate::ca::LeafPolicy;
use crate::control_plane::{self, Config, DirectoryOrigin, KubernetesOrigin, Origin};
use crate::duration::HumanDuration;
use crate::xds::requests::Rate;
use crate::xds::{Canary, Limits};

/// Run the control plane: serve sidecars over xDS.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  weft serve --source kube
  weft serve --source kube --kubeconfig ~/.kube/config --ca-secret mesh-ca
  weft serve --source dir:./mesh --ca-dir ./ca --token-key ./token-key.pem
  weft serve --source dir:./mesh --token-key ./token-key.pem --xds 127.0.0.1:15010 --admin 127.0.0.1:15014

Logs go to standard error; WEFT_LOG sets what is logged (info, debug, weft::xds=trace, …).
Exit code: 0 after SIGINT or SIGTERM, 1 when it cannot run.")]
pub struct Args {
    /// Where the mesh's objects are: kube, a Kubernetes API server; dir:PATH, a watched directory of Kubernetes YAML
    #[arg(long, value_name = "kube|dir:PATH")]
    source: Source,
    #[command(flatten)]
    kubernetes: KubernetesArgs,
    /// With dir:PATH: where the root certificate and its key are kept (made on the first start); without it they live in
    /// memory
    #[arg(long, value_name = "DIR")]
    ca_dir: Option<PathBuf>,
    /// The file that keeps what each workload calls, so that its new pods are warm from the start; without it the
    /// ConfigMap weft-warm-sets does with kube, warm-sets.json in the --ca-dir when that is given, else the memory
    #[arg(long, value_name = "FILE")]
    warm_sets: Option<PathBuf>,
    /// With dir:PATH: the public key (PEM) that the sidecars' tokens are verified with
    #[arg(long, value_name = "FILE")]
    token_key: Option<PathBuf>,
    /// Where xDS is served, over TLS
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15010")]
    xds: SocketAddr,
    /// Where health, readiness, metrics and the inspection API are served, in clear
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15014")]
    admin: SocketAddr,
    /// How long a workload's certificate lives; it is renewed at about half of that
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    certificate_lifetime: HumanDuration,
    /// How long the control plane's own certificate lives; it is renewed at about half of that
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = positive)]
    own_certificate_lifetime: HumanDuration,
    /// Connections of sidecars at once; more are closed at once
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().connections)]
    max_connections: usize,
    /// How old a sidecar's connection becomes, give or take a half, so that sidecars spread over the replicas; 0: any
    #[arg(long, value_name = "DURATION", default_value = "30m")]
    max_stream_age: HumanDuration,
    /// How often an idle connection is checked, and how soon the sidecar must answer
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = positive)]
    keepalive: HumanDuration,
    /// Requests a second that a stream may send in the long run; beyond it the stream is read more slowly
    #[arg(long, value_name = "NUMBER", default_value_t = Rate::default().per_second, value_parser = clap::value_parser!(u32).range(1..))]
    max_request_rate: u32,
    /// Sidecars that get a new version of a listener, route or cluster first if more share it: the others get it when
    /// these have acknowledged it, and never if one refuses it; 0: all at once
    #[arg(long, value_name = "NUMBER", default_value_t = Canary::default().proxies)]
    canary: u64,
    /// The form of the log
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

/// What is for Kubernetes only.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "With --source kube")]
struct KubernetesArgs {
    /// How to reach the API server; without it KUBECONFIG, ~/.kube/config, or the pod that this runs in
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The control plane's own namespace: its Service is weft.NAMESPACE.svc, and its Secret and its Lease are there
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE", default_value = "weft-system")]
    namespace: String,
    /// The name of this replica, for the Lease
    #[arg(long, value_name = "NAME", env = "POD_NAME", default_value = "weft")]
    replica: String,
    /// A Secret of that namespace with a certificate authority of your own (tls.crt, tls.key, ca.crt), as cert-manager
    /// writes it; without it a root is made once, in the Secret weft-ca
    #[arg(long, value_name = "NAME")]
    ca_secret: Option<String>,
}

/// A source by its scheme.
#[derive(Clone, Debug)]
enum Source {
    Directory(PathBuf),
    Kubernetes,
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Directory(path.into())),
            None if text == "kube" => Ok(Self::Kubernetes),
            _ => Err("write kube, or dir:PATH, a directory of Kubernetes YAML".to_owned()),
        }
    }
}

fn positive(text: &str) -> Result<HumanDuration, String> {
    match text.parse::<HumanDuration>() {
        Ok(duration) if duration.0.is_zero() => Err("it must be longer than 0".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}

/// Where everything comes from, as the flags say.
fn origin(
    source: Source,
    ca_dir: Option<PathBuf>,
    token_key: Option<PathBuf>,
    kubernetes: KubernetesArgs,
) -> anyhow::Result<Origin> {
    match (source, token_key) {
        (Source::Directory(path), Some(token_key)) => {
            Ok(Origin::Directory(DirectoryOrigin { path, ca_dir, token_key }))
        }
        (Source::Directory(_), None) => anyhow::bail!("--source dir:PATH needs --token-key FILE"),
        (Source::Kubernetes, token_key) => {
            anyhow::ensure!(
                ca_dir.is_none() && token_key.is_none(),
                "--ca-dir and --token-key are for --source dir:PATH: on Kubernetes the root is in a Secret, and the API server checks tokens"
            );
            let KubernetesArgs { kubeconfig, namespace, replica, ca_secret } = kubernetes;
            Ok(Origin::Kubernetes(KubernetesOrigin { kubeconfig, namespace, replica, ca_secret }))
        }
    }
}

/// Each sidecar takes a file descriptor, and the usual soft limit is 1,024: up to the hard limit they are ours.
fn allow_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Runs the command.
///
/// # Errors
/// When the control plane cannot run.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    logging::init(args.log_format);
    let config = Config {
        warm_sets: args.warm_sets.or_else(|| Some(args.ca_dir.as_ref()?.join("warm-sets.json"))),
        origin: origin(args.source, args.ca_dir, args.token_key, args.kubernetes)?,
        xds: args.xds,
        admin: args.admin,
        leaf: LeafPolicy { lifetime: args.certificate_lifetime.0, ..LeafPolicy::default() },
        own_leaf: LeafPolicy { lifetime: args.own_certificate_lifetime.0, ..LeafPolicy::default() },
        limits: Limits {
            connections: args.max_connections,
            age: (!args.max_stream_age.0.is_zero()).then_some(args.max_stream_age.0),
            keepalive: args.keepalive.0,
            requests: Rate { per_second: args.max_request_rate, ..Rate::default() },
            ..Limits::default()
        },
        canary: Canary { proxies: args.canary, ..Canary::default() },
    };
    allow_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let on_signal = shutdown.clone();
        tokio::spawn(async move {
            logging::stop_requested().await;
            on_signal.cancel();
        });
        control_plane::run(config, shutdown).await?;
        Ok(ExitCode::SUCCESS)
    })
}
