//! `weft internal`: the processes of which a playground consists. Not for hands.

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Context as _;

use super::logging::{self, LogFormat};
use crate::inject::prepare::Preparation;
use crate::local::intercept::{self, Exclusions, SidecarSockets};
use crate::local::probes::AskedProbe;
use crate::local::{self, Setup, playground};
use crate::mesh::id::PodKey;

/// The processes of which a playground consists
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct Args {
    #[command(subcommand)]
    process: Process,
}

#[derive(Debug, clap::Subcommand)]
enum Process {
    /// Pid 1 of a playground
    Init {
        /// What `weft up` was asked for, in JSON
        setup: String,
    },
    /// The playground proper
    Playground {
        /// What `weft up` was asked for, in JSON
        setup: String,
    },
    /// A pod
    Pod {
        /// Run as the first process of the pod's namespaces
        #[arg(long)]
        first: bool,
    },
    /// A container's process, before it executes its program
    Container,
    /// Load the rules of interception into this network namespace (in Kubernetes: an init container)
    Intercept {
        /// The user id that the sidecar runs as
        #[arg(long, default_value_t = intercept::SIDECAR_UID, conflicts_with = "mark")]
        uid: u32,
        /// The mark of the sidecar's sockets, where it has no user id of its own
        #[arg(long)]
        mark: Option<u32>,
        /// Pod annotations weft.dev/exclude-…, as KEY=VALUE
        #[arg(long = "annotation", value_parser = annotation)]
        annotations: Vec<(String, String)>,
    },
    /// Write a sidecar's files and load the rules of interception: the init container of an injected pod
    Prepare(Prepare),
}

#[derive(Debug, clap::Args)]
struct Prepare {
    /// The pod's name
    #[arg(long, env = "WEFT_POD")]
    pod: String,
    /// Its namespace
    #[arg(long, env = "WEFT_NAMESPACE")]
    namespace: String,
    /// Its addresses, separated by commas, the primary one first
    #[arg(long, env = "WEFT_POD_IPS", value_delimiter = ',')]
    ips: Vec<IpAddr>,
    /// Its workload
    #[arg(long)]
    workload: String,
    /// The zone of its node; empty where nobody knows it
    #[arg(long, env = "WEFT_ZONE")]
    zone: Option<String>,
    /// The DNS name of the control plane
    #[arg(long, default_value = crate::control_plane::DNS_NAME)]
    control_plane: String,
    /// Pod annotations weft.dev/…, as KEY=VALUE
    #[arg(long = "annotation", value_parser = annotation)]
    annotations: Vec<(String, String)>,
    /// What the sidecar asks in the kubelet's place: tcp:PORT:SECONDS or https:PORT/PATH
    #[arg(long = "probe")]
    probes: Vec<AskedProbe>,
    /// Load the rules of interception
    #[arg(long)]
    intercept: bool,
}

/// Runs as one of them.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    logging::init(LogFormat::Text);
    match args.process {
        Process::Init { setup } => Ok(local::run_init(&parse(&setup)?)?),
        Process::Playground { setup } => Ok(playground::run(parse(&setup)?, local::wire)?),
        Process::Pod { first: false } => Ok(local::start_pod().map(|()| ExitCode::SUCCESS)?),
        Process::Pod { first: true } => Ok(local::run_pod().map(|()| ExitCode::SUCCESS)?),
        Process::Container => Ok(local::run_container()?),
        Process::Intercept { uid, mark, annotations } => {
            let sockets = mark.map_or(SidecarSockets::Uid(uid), SidecarSockets::Mark);
            let exclusions = Exclusions::from_annotations(&annotations.into_iter().collect())?;
            intercept::apply(sockets, &exclusions)?;
            Ok(ExitCode::SUCCESS)
        }
        Process::Prepare(prepare) => {
            let preparation = Preparation {
                pod: PodKey::new(prepare.namespace.as_str(), prepare.pod.as_str()),
                workload: prepare.workload,
                zone: prepare.zone.filter(|zone| !zone.is_empty()),
                ips: prepare.ips,
                control_plane: prepare.control_plane,
                annotations: prepare.annotations.into_iter().collect(),
                probes: prepare.probes,
                intercept: prepare.intercept,
            };
            preparation.run()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn parse(setup: &str) -> anyhow::Result<Setup> {
    serde_json::from_str(setup).context("`weft internal` is called by `weft up`, not by hand")
}

fn annotation(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("use KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::Weft;
    use crate::inject::documents::inject_all;
    use crate::inject::{INIT, Options};

    #[test]
    fn the_init_container_of_every_injected_pod_is_understood() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/inject");
        let mut understood = 0;
        for entry in std::fs::read_dir(folder).expect("the folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("an input");
            let injected = inject_all(&text, &Options::default()).expect("injected").text;
            // Arguments of the init container stand in a block of their own.
            let (mut lines, mut args) = (injected.lines(), Vec::new());
            if !lines.any(|line| line.trim().trim_start_matches("- ") == format!("name: {INIT}")) {
                continue;
            }
            let mut inside = false;
            for line in lines.map(str::trim) {
                match (inside, line) {
                    (false, "args:") => inside = true,
                    (true, line) if line.starts_with("- ") => {
                        let word: String = serde_saphyr::from_str(&line[2..]).expect("a word");
                        args.push(word.replace("$$(", "$("));
                    }
                    (true, _) => break,
                    (false, _) => {}
                }
            }
            let environment = ["--pod=cart-1", "--namespace=shop", "--ips=10.244.0.7,fd00::7"];
            let all = ["weft"].into_iter().chain(args.iter().map(String::as_str)).chain(environment);
            Weft::try_parse_from(all).unwrap_or_else(|error| panic!("{}: {args:?}: {error}", path.display()));
            understood += 1;
        }
        assert!(understood > 25, "{understood} pods");
    }
}
