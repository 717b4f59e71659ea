//! Puts the playground together: the cluster, the control plane and the machine.
//!
//! Until the tiny Kubernetes is here, bare Pods and Deployments of the directory are started once, and nothing watches.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::cluster::{ContainerToRun, PodAction, PodDns, PodSpecToRun};
use super::playground::Wiring;
use super::{CA_DIR, PlaygroundError, Setup, WEFT_EXE, node};
use crate::mesh::id::{PodKey, ServiceAccountKey, WorkloadKey};

/// Wires the playground of `setup`.
pub fn wire(setup: &Setup) -> Result<Wiring, PlaygroundError> {
    let (actions, actions_seen) = mpsc::channel(64);
    let (events, mut events_seen) = mpsc::unbounded_channel();
    let pods = read(setup)?;
    let (settle, settled) = watch::channel(false);
    tokio::spawn(async move {
        for pod in pods {
            if actions.send(PodAction::Start(pod)).await.is_err() {
                return;
            }
        }
        settle.send_replace(true);
        while let Some(event) = events_seen.recv().await {
            tracing::debug!(?event, "told");
        }
        drop(actions);
    });
    Ok(Wiring {
        actions: actions_seen,
        events,
        settled,
        node_rules: watch::channel(String::new()).1,
        token: Box::new(|_| "no token".to_owned()),
        token_lifetime: Duration::from_secs(3600),
        root_bundle: PathBuf::from(CA_DIR).join("root.pem"),
        callers_left: Box::new(|_| Box::pin(async {})),
        control_plane: None,
    })
}

fn read(setup: &Setup) -> Result<Vec<PodSpecToRun>, PlaygroundError> {
    let refuse = |what: &dyn std::fmt::Display| PlaygroundError::Wiring(what.to_string());
    let mut pods = Vec::new();
    for entry in fs::read_dir(&setup.dir).map_err(|e| refuse(&e))? {
        let text = fs::read_to_string(entry.map_err(|e| refuse(&e))?.path()).map_err(|e| refuse(&e))?;
        for document in text.split("\n---\n") {
            let object: Value = serde_saphyr::from_str(document).map_err(|e| refuse(&e))?;
            pods.extend(pod(&object, u8::try_from(pods.len()).unwrap_or(u8::MAX)));
        }
    }
    Ok(pods)
}

fn pod(object: &Value, index: u8) -> Option<PodSpecToRun> {
    let name = object["metadata"]["name"].as_str()?;
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
    let (template, pod_name) = match object["kind"].as_str()? {
        "Pod" => (object, name.to_owned()),
        "Deployment" => (&object["spec"]["template"], format!("{name}-{index}")),
        _ => return None,
    };
    let annotations: BTreeMap<String, String> =
        serde_json::from_value(template["metadata"]["annotations"].clone()).unwrap_or_default();
    let strings = |value: &Value| serde_json::from_value::<Vec<String>>(value.clone()).unwrap_or_default();
    let containers = template["spec"]["containers"].as_array()?.iter().map(|container| {
        let command = annotations.get("weft.dev/local-command");
        let mut argv: Vec<String> =
            command.map_or(vec![WEFT_EXE.to_owned()], |command| command.split(' ').map(str::to_owned).collect());
        argv.extend(strings(&container["args"]));
        let env = container["env"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        ContainerToRun {
            name: text(&container["name"]),
            argv,
            env: env.map(|e| (text(&e["name"]), text(&e["value"]))).collect(),
            workdir: container["workingDir"].as_str().map(PathBuf::from),
        }
    });
    Some(PodSpecToRun {
        key: PodKey::new(namespace, pod_name.as_str()),
        uid: format!("uid-{index}"),
        ip: Ipv4Addr::new(10, 244, 0, index + 2),
        account: ServiceAccountKey::new(namespace, "default"),
        workload: WorkloadKey::new(namespace, name),
        meshed: template["metadata"]["labels"]["weft.dev/inject"] == "true",
        containers: containers.collect(),
        annotations,
        dns: PodDns {
            nameserver: node::DNS_IP,
            search: vec![format!("{namespace}.svc.cluster.local"), "svc.cluster.local".into(), "cluster.local".into()],
        },
        hostname: pod_name,
    })
}
