//! Puts the playground together: the user's directory, the tiny Kubernetes, the control plane and the machine.
//!
//! ```text
//!  DIR ─▶ source ─▶ cluster driver ─▶ state directory ─▶ weft serve ─▶ sidecars
//!                      │  ▲     └───▶ DNS, nftables
//!               Effect ▼  │ Input
//!                    machine
//! ```

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cluster::driver::{Driver, ServiceProxy};
use super::cluster::probe::Reach;
use super::cluster::state::StateDir;
use super::cluster::{Cluster, Config, Input, Object, dns};
use super::node::CONTROL_PLANE_ADMIN;
use super::playground::{ControlPlaneCommand, Pods, Wiring};
use super::{CA_DIR, PlaygroundError, STATE_DIR, Setup, WEFT_EXE, node};
use crate::ca::Clock;
use crate::ca::token::TokenSigner;
use crate::inspect::proto::GetConvergenceRequest;
use crate::inspect::proto::inspection_client::InspectionClient;
use crate::mesh::PodKey;
use crate::source::manifest::Manifest;
use crate::source::{DirectorySource, Event};

const TOKEN_KEY: &str = "/run/weft/token-key.pem";
/// As the kubelet's default for projected tokens.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
/// Within this time, the control plane has read a change of the state directory.
const READ: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(50);

/// Wires the playground of `setup`, whose pods will be in `pods`.
pub async fn wire(setup: &Setup, pods: Arc<Pods>) -> Result<Wiring, PlaygroundError> {
    let failed = |what: &dyn std::fmt::Display| PlaygroundError::Wiring(what.to_string());
    let signer = TokenSigner::generate(Clock::system()).map_err(|e| failed(&e))?;
    let state = StateDir::open(STATE_DIR).map_err(|e| failed(&e))?;
    fs::write(TOKEN_KEY, signer.public_key_pem()).map_err(PlaygroundError::io("write the token key"))?;

    let zone = Arc::new(ArcSwap::from_pointee(dns::Zone::default()));
    let address = SocketAddr::from((node::DNS_IP, 53));
    let server = dns::Server::bind(address, address, Arc::clone(&zone), None)
        .await
        .map_err(PlaygroundError::io("serve the cluster DNS"))?;
    tokio::spawn(server.run());

    let (inputs, queue) = mpsc::unbounded_channel();
    let (effects, effects_seen) = mpsc::unbounded_channel();
    let driver = Driver {
        cluster: Cluster::new(Config { executable: WEFT_EXE.into(), dual_stack: setup.dual_stack }),
        state,
        zone,
        service_proxy: ServiceProxy::Nft,
        reach: reach(pods),
        effects,
    };
    tokio::spawn(async move {
        if let Err(error) = driver.run(queue, CancellationToken::new()).await {
            tracing::error!(%error, "the playground no longer follows what happens: stop it");
        }
    });
    let source = DirectorySource::open(setup.dir.clone()).map_err(|e| failed(&e))?;
    let (events, batches) = mpsc::channel(16);
    tokio::spawn(async move {
        if let Err(error) = source.run(events).await {
            tracing::error!(%error, "the directory is no longer watched: stop the playground");
        }
    });
    tokio::spawn(feed(batches, inputs.clone()));

    let arguments = ["serve", "--source", &format!("dir:{STATE_DIR}"), "--ca-dir", CA_DIR, "--token-key", TOKEN_KEY];
    let mut arguments: Vec<String> = arguments.map(str::to_owned).to_vec();
    arguments.extend(["--admin".to_owned(), CONTROL_PLANE_ADMIN.to_string()]);
    arguments.extend(setup.serve.iter().cloned());
    Ok(Wiring {
        effects: effects_seen,
        inputs,
        is_ready: Box::new(|pod| is_ready(Path::new(STATE_DIR), pod)),
        token: Box::new(move |pod| {
            signer.sign(&pod.account, &pod.key.name, TOKEN_LIFETIME).unwrap_or_else(|error| {
                tracing::error!(pod = %pod.key, %error, "cannot sign the sidecar's token");
                String::new()
            })
        }),
        token_lifetime: TOKEN_LIFETIME,
        root_bundle: PathBuf::from(CA_DIR).join("root.pem"),
        callers_left: Box::new(|_| callers_left()),
        control_plane: Some(ControlPlaneCommand {
            program: WEFT_EXE.into(),
            arguments,
            readiness: CONTROL_PLANE_ADMIN,
        }),
    })
}

/// Hands the directory's objects to the cluster. It ends when one of both has ended.
async fn feed(mut batches: mpsc::Receiver<Vec<Event>>, inputs: mpsc::UnboundedSender<Input>) {
    while let Some(batch) = batches.recv().await {
        for event in batch {
            let input = match event {
                Event::Apply { manifest, warnings, .. } => {
                    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                    match object(&manifest) {
                        Some(object) => Input::Applied(object),
                        None => continue,
                    }
                }
                Event::Delete(object) => Input::Deleted(object),
                Event::Rejected(diagnostic) => {
                    tracing::error!("{diagnostic}");
                    continue;
                }
                // A directory that cannot be read ends its source.
                Event::Trouble { .. } => continue,
                Event::Synced => Input::Synced,
            };
            if inputs.send(input).is_err() {
                return;
            }
        }
    }
}

fn object(manifest: &Manifest) -> Option<Object> {
    Some(match manifest {
        Manifest::Namespace(o) => Object::Namespace(o.clone()),
        Manifest::Deployment(o) => Object::Deployment(o.clone()),
        Manifest::StatefulSet(o) => Object::StatefulSet(o.clone()),
        Manifest::Pod(o) => Object::Pod(o.clone()),
        Manifest::Service(o) => Object::Service(o.clone()),
        Manifest::EndpointSlice(o) => Object::EndpointSlice(o.clone()),
        other => {
            let yaml = other
                .to_yaml()
                .inspect_err(|error| tracing::error!(object = %other.object_ref(), %error, "cannot write it as YAML"));
            Object::Other { object: other.object_ref(), yaml: yaml.ok()? }
        }
    })
}

fn reach(pods: Arc<Pods>) -> Reach {
    let of_exec = Arc::clone(&pods);
    Reach {
        dial: Arc::new(move |pod, port| {
            let pods = Arc::clone(&pods);
            Box::pin(async move { pods.dial(&pod, port).await })
        }),
        exec: Arc::new(move |exec| {
            let pods = Arc::clone(&of_exec);
            Box::pin(async move { pods.exec(&exec.pod, &exec.container, exec.argv).await })
        }),
    }
}

/// What an API server would say of the pod's `Ready` condition.
fn is_ready(state: &Path, pod: &PodKey) -> bool {
    let file = state.join("Pod").join(pod.namespace.as_str()).join(format!("{}.yaml", pod.name));
    let read = fs::read_to_string(file).ok().and_then(|text| serde_saphyr::from_str::<Value>(&text).ok());
    let conditions = read.as_ref().and_then(|pod| pod.pointer("/status/conditions")?.as_array());
    let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    conditions.is_some_and(|conditions| conditions.iter().any(ready))
}

/// Waits until every connected proxy has what the control plane says now, the pod's endpoint having gone from the
/// state directory already. Without a control plane that answers, callers keep what they have: there is nothing to
/// wait for.
fn callers_left() -> BoxFuture<'static, ()> {
    Box::pin(async {
        let Ok(mut client) = InspectionClient::connect(format!("http://{CONTROL_PLANE_ADMIN}")).await else {
            return;
        };
        let started = Instant::now();
        loop {
            let Ok(convergence) = client.get_convergence(GetConvergenceRequest::default()).await else { return };
            if started.elapsed() >= READ && convergence.into_inner().behind == 0 {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    })
}
