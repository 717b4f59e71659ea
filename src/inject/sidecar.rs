//! The containers and volumes that a pod gets.
//!
//! ```text
//!  weft-init ──writes──▶ volume weft-proxy (memory) ◀──reads── weft-proxy (Envoy, user 1337)
//!                        volume weft-token (projected ServiceAccount token, audience weft-xds)
//!                        volume weft-root  (the mesh's root, a ConfigMap of the namespace)
//! ```
//!
//! All of it fits the restricted Pod Security Standard but the init container's right to load the rules of
//! interception, which it needs unless a CNI plugin does it.

use serde_json::{Value, json};

use super::annotations::Wishes;
use super::options::{Interception, Options, SidecarForm};
use super::view::PodView;
use super::{INIT, SIDECAR, SIDECAR_UID, prepare};
use crate::ca::token::AUDIENCE;
use crate::envoy::names::SERVICE_ACCOUNT_VARIABLE;
use crate::local::bootstrap;
use crate::local::probes::{AskedProbe, HEALTH_PORT};
use crate::mesh::id::{PodKey, ProxyId, WorkloadKey};
use crate::mesh::object;

/// The names of the volumes.
pub(super) const VOLUMES: [&str; 3] = ["weft-proxy", "weft-token", ROOT];
/// The volume of the mesh's root, and the ConfigMap that the control plane keeps in each meshed namespace.
const ROOT: &str = "weft-root";
/// How long a token lives; the kubelet replaces it when a fifth of that is left.
const TOKEN_SECONDS: u32 = 3600;
/// What `kubectl` prints of a container that failed.
const TERMINATION: &str = "FallbackToLogsOnError";

/// What is put into a pod.
pub(super) struct Parts {
    pub(super) init: Value,
    pub(super) sidecar: Value,
    pub(super) volumes: Vec<Value>,
}

impl Parts {
    pub(super) fn new(
        view: &PodView,
        workload: &str,
        wishes: &Wishes,
        probes: &[AskedProbe],
        options: &Options,
    ) -> Self {
        let volumes = [
            json!({"name": "weft-proxy", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}),
            json!({"name": "weft-token", "projected": {"sources": [{"serviceAccountToken":
                {"audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"}}]}}),
            json!({"name": ROOT, "configMap": {"name": ROOT}}),
        ];
        Self {
            init: with_policy(init(workload, wishes, probes, options), options),
            sidecar: with_policy(sidecar(view, workload, wishes, options), options),
            volumes: volumes.into_iter().chain(wishes.volumes.iter().cloned()).collect(),
        }
    }
}

fn with_policy(mut container: Value, options: &Options) -> Value {
    if let Some(policy) = &options.image_pull_policy {
        container["imagePullPolicy"] = policy.as_str().into();
    }
    container
}

fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

fn init(workload: &str, wishes: &Wishes, probes: &[AskedProbe], options: &Options) -> Value {
    let mut args = vec![
        "internal".to_owned(),
        "prepare".to_owned(),
        format!("--workload={workload}"),
        format!("--control-plane={}", options.control_plane),
    ];
    args.extend(wishes.handed_on.iter().map(|(key, value)| format!("--annotation={key}={value}")));
    args.extend(probes.iter().map(|probe| format!("--probe={probe}")));
    let security = match options.interception {
        // Loading rules needs the capability, which only root can have in a container.
        Interception::InitContainer => {
            args.push("--intercept".to_owned());
            json!({
                "runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": false,
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            })
        }
        Interception::Cni => restricted(),
    };
    json!({
        "name": INIT,
        "image": options.image,
        "args": args.iter().map(|arg| unexpanded(arg)).collect::<Vec<_>>(),
        "env": [
            field("WEFT_POD", "metadata.name"),
            field("WEFT_NAMESPACE", "metadata.namespace"),
            field("WEFT_POD_IPS", "status.podIPs"),
            field("WEFT_ZONE", &format!("metadata.labels['{}']", object::ZONE_LABEL)),
        ],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": security,
        "terminationMessagePolicy": TERMINATION,
        "volumeMounts": [{"name": "weft-proxy", "mountPath": prepare::FILES}],
    })
}

/// Kubernetes would replace `$(NAME)` in what a user wrote.
fn unexpanded(text: &str) -> String {
    text.replace("$(", "$$(")
}

fn sidecar(view: &PodView, workload: &str, wishes: &Wishes, options: &Options) -> Value {
    let mut args = vec!["-c".to_owned(), format!("{}/bootstrap.yaml", prepare::FILES)];
    args.extend(["--concurrency".to_owned(), wishes.concurrency.unwrap_or(options.concurrency).to_string()]);
    args.extend(["--disable-hot-restart".to_owned()]);
    args.extend(bootstrap::LOGS_SOON.map(str::to_owned));
    args.extend(["-l".to_owned(), wishes.log_level.unwrap_or(options.log_level).as_str().to_owned()]);
    if let Some(seconds) = wishes.drain_seconds {
        args.extend(["--drain-time-s".to_owned(), seconds.to_string()]);
    }
    let hook = |script: &str| json!({"exec": {"command": ["bash", format!("{}/{script}", prepare::FILES)]}});
    let mut lifecycle = json!({"preStop": hook(prepare::PRE_STOP)});
    if options.sidecar == SidecarForm::Classic {
        lifecycle["postStart"] = hook(prepare::POST_START);
    }
    let ready = |period: u32, failures: u32| {
        json!({"httpGet": {"path": "/healthz/ready", "port": HEALTH_PORT}, "periodSeconds": period,
            "timeoutSeconds": 3, "failureThreshold": failures})
    };
    let mut mounts = vec![
        json!({"name": "weft-proxy", "mountPath": prepare::FILES, "readOnly": true}),
        json!({"name": "weft-token", "mountPath": prepare::TOKEN, "readOnly": true}),
        json!({"name": ROOT, "mountPath": prepare::ROOT, "readOnly": true}),
    ];
    mounts.extend(wishes.volume_mounts.iter().cloned());
    let mut sidecar = json!({
        "name": SIDECAR,
        "image": options.envoy_image,
        "command": ["envoy"],
        "args": args,
        "env": environment(view, workload),
        "ports": [{"name": "weft-metrics", "containerPort": HEALTH_PORT, "protocol": "TCP"}],
        "resources": resources(wishes, options),
        "securityContext": restricted(),
        "terminationMessagePolicy": TERMINATION,
        // The application starts after it; a control plane that comes late is waited for.
        "startupProbe": ready(1, 600),
        "readinessProbe": ready(5, 3),
        "lifecycle": lifecycle,
        "volumeMounts": mounts,
    });
    if options.sidecar == SidecarForm::Native {
        sidecar["restartPolicy"] = "Always".into();
    }
    sidecar
}

/// What the restricted Pod Security Standard asks for.
fn restricted() -> Value {
    json!({
        "runAsUser": SIDECAR_UID, "runAsGroup": SIDECAR_UID, "runAsNonRoot": true,
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// Who the sidecar is: for the faults that it is to suffer, the labels of its metrics, and its spans.
fn environment(view: &PodView, workload: &str) -> Vec<Value> {
    let mut env = vec![
        field("WEFT_POD", "metadata.name"),
        field("WEFT_NAMESPACE", "metadata.namespace"),
        field("WEFT_ACCOUNT", "spec.serviceAccountName"),
        json!({"name": SERVICE_ACCOUNT_VARIABLE, "value": "$(WEFT_NAMESPACE)/$(WEFT_ACCOUNT)"}),
        json!({"name": "WEFT_WORKLOAD", "value": workload}),
    ];
    if let Some(version) = object::version(&view.metadata.labels) {
        env.push(json!({"name": "WEFT_VERSION", "value": version}));
    }
    let node = ProxyId(PodKey::new("$(WEFT_NAMESPACE)", "$(WEFT_POD)"));
    let (name, value) = bootstrap::environment(&node, &WorkloadKey::new("$(WEFT_NAMESPACE)", workload));
    env.push(json!({"name": name, "value": value}));
    env
}

fn resources(wishes: &Wishes, options: &Options) -> Value {
    let mut resources = options.resources.clone();
    for (list, resource, amount) in &wishes.resources {
        super::set(&mut resources, &[list, resource], amount.as_str().into());
    }
    resources
}
