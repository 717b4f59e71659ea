//! Sidecar injection: a pod in, the pod with its sidecar out. Pure.
//!
//! ```text
//!  Pod, or a pod template ──inject(options)──▶ the same with weft-init, weft-proxy, their volumes ──patch──▶ RFC 6902
//!                              ▲
//!       annotations ───────────┘  (weft.dev/…: docs/install.md)
//!
//!  in the pod: weft-init (prepare) writes the bootstrap and loads the rules of interception ─▶ weft-proxy (Envoy)
//! ```
//!
//! The pod is changed as JSON: what this version of Weft does not know of a pod stays as it was. `weft inject` does
//! offline what the webhook does at admission ([`documents`]).

mod annotations;
pub mod documents;
pub mod options;
pub mod patch;
pub mod prepare;
mod probes;
mod sidecar;
#[cfg(test)]
mod tests;
mod view;
pub mod wanted;

use serde_json::{Value, json};

pub use options::Options;

use annotations::Wishes;
use options::SidecarForm;
use view::PodView;

/// The name of the sidecar's container.
pub const SIDECAR: &str = "weft-proxy";
/// The name of the init container that prepares the sidecar.
pub const INIT: &str = "weft-init";
/// The label that asks for a sidecar, or for none.
pub const INJECT: &str = "weft.dev/inject";
/// The annotation of an injected pod: which version of Weft did it.
pub const INJECTED: &str = "weft.dev/injected";
/// The annotation of a pod that asks for a sidecar and cannot have one: why not.
pub const NOT_INJECTED: &str = "weft.dev/not-injected";

/// The user id that the sidecar has for itself.
const SIDECAR_UID: i64 = crate::local::intercept::SIDECAR_UID as i64;
/// The sidecar's ports, which an application cannot have.
const SIDECAR_PORTS: [i64; 4] = [15000, 15001, 15006, 15020];

/// Why a pod gets no sidecar although it should: it must not start without one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// It cannot be read as a pod.
    #[error("the pod cannot be read: {0}; correct it")]
    NotAPod(String),
    /// An annotation cannot be used.
    #[error("the annotation {annotation}: {reason}; {help}")]
    Annotation {
        /// Its key.
        annotation: &'static str,
        /// What is wrong with it.
        reason: String,
        /// What to write.
        help: &'static str,
    },
    /// A container runs as the sidecar's user.
    #[error(
        "{0} runs as user {SIDECAR_UID}, which is the sidecar's: its traffic would bypass the mesh; use another user"
    )]
    SidecarUser(String),
    /// The pod has something of a name that the sidecar needs.
    #[error("the pod has {what} named `{name}`, which is the sidecar's; rename it")]
    Taken {
        /// What: `a volume`.
        what: &'static str,
        /// Its name.
        name: &'static str,
    },
}

/// What became of a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The pod; unchanged if it has a sidecar already, or wants none.
    pub pod: Value,
    /// What its author should know.
    pub warnings: Vec<String>,
}

/// Adds the sidecar to `pod`, a Pod or a pod template: `metadata` and `spec`. `workload` is what its proxy says that it
/// belongs to.
///
/// Whether it is wanted is for the caller to know (a namespace's label, a user who asks), but for the pod's own label
/// `weft.dev/inject: "false"`.
///
/// # Errors
/// When the pod must not start as it is.
pub fn inject(pod: &Value, workload: &str, options: &Options) -> Result<Outcome, InjectError> {
    let view = PodView::read(pod)?;
    let mut warnings = Vec::new();
    match view.label(INJECT) {
        Some("false") => return Ok(Outcome { pod: pod.clone(), warnings }),
        None | Some("true") => {}
        Some(other) => warnings.push(format!(
            "the label {INJECT} is `{other}`, which means nothing on a pod: write \"true\" or \"false\""
        )),
    }
    if view.containers().any(|(_, container)| container.name == SIDECAR) {
        return Ok(Outcome { pod: pod.clone(), warnings });
    }
    if let Some(why) = impossible(&view, options) {
        warnings.push(format!("no sidecar: {why}"));
        let mut pod = pod.clone();
        set(&mut pod, &["metadata", "annotations", NOT_INJECTED], why.into());
        return Ok(Outcome { pod, warnings });
    }
    check(&view, &mut warnings)?;
    let wishes = Wishes::read(&view.metadata.annotations)?;
    let mut changed = pod.clone();
    let probes = probes::ask_through_sidecar(&mut changed, &view, &wishes.exclusions);
    let parts = sidecar::Parts::new(&view, workload, &wishes, &probes, options);
    add(&mut changed, &view, parts, options);
    Ok(Outcome { pod: changed, warnings })
}

/// Why a pod cannot have a sidecar, if it cannot.
fn impossible(view: &PodView, options: &Options) -> Option<&'static str> {
    if view.spec.host_network {
        return Some("hostNetwork: the pod has the network of its node, in which nothing can be intercepted");
    }
    if view.spec.os.as_ref().is_some_and(|os| os.name == "windows")
        || view.spec.node_selector.get("kubernetes.io/os").is_some_and(|os| os == "windows")
    {
        return Some("Windows: Envoy's interception is Linux's");
    }
    let ends = matches!(view.spec.restart_policy.as_deref(), Some("Never" | "OnFailure"));
    let asked_for = view.label(INJECT) == Some("true");
    (ends && options.sidecar == SidecarForm::Classic && !asked_for).then_some(
        "the pod is to end, and beside a classic sidecar it never does: use Kubernetes 1.29 or newer with native \
         sidecars, or the pod label weft.dev/inject: \"true\" and POST http://127.0.0.1:15000/quitquitquit at the end",
    )
}

/// What keeps the pod from starting, and what its author should know.
fn check(view: &PodView, warnings: &mut Vec<String>) -> Result<(), InjectError> {
    if view.spec.security_context.run_as_user == Some(SIDECAR_UID) {
        return Err(InjectError::SidecarUser("the pod".to_owned()));
    }
    for (field, container) in view.containers() {
        if container.name == INIT {
            return Err(InjectError::Taken { what: "a container", name: INIT });
        }
        if container.security_context.run_as_user == Some(SIDECAR_UID) {
            return Err(InjectError::SidecarUser(format!("container {}", container.name)));
        }
        for port in container.ports.iter().filter(|port| SIDECAR_PORTS.contains(&port.container_port)) {
            warnings.push(format!("{field}: port {} is the sidecar's; use another", port.container_port));
        }
        for hook in container.http_hooks() {
            warnings.push(format!(
                "{field}.lifecycle.{hook}: the kubelet's request is refused when mTLS is strict; use exec, or exclude \
                 the port by weft.dev/exclude-inbound-ports"
            ));
        }
    }
    for name in sidecar::VOLUMES {
        if view.spec.volumes.iter().any(|volume| volume.name == name) {
            return Err(InjectError::Taken { what: "a volume", name });
        }
    }
    Ok(())
}

/// Puts the parts into the pod.
fn add(pod: &mut Value, view: &PodView, parts: sidecar::Parts, options: &Options) {
    let sidecar::Parts { init, sidecar, volumes } = parts;
    match options.sidecar {
        // First of all: init containers of the application may call out, too.
        SidecarForm::Native => change(pod, &["spec", "initContainers"], |containers| {
            containers.splice(0..0, [init, sidecar]);
        }),
        // Last of the init containers: once connections are intercepted, nobody can call out before the sidecar runs.
        // First of the containers: the kubelet starts them in order, each after the postStart hook of the one before.
        SidecarForm::Classic => {
            change(pod, &["spec", "initContainers"], |containers| containers.push(init));
            change(pod, &["spec", "containers"], |containers| containers.insert(0, sidecar));
            let default = "kubectl.kubernetes.io/default-container";
            if let Some(first) = view.spec.containers.first().filter(|_| view.annotation(default).is_none()) {
                set(pod, &["metadata", "annotations", default], json!(first.name));
            }
        }
    }
    change(pod, &["spec", "volumes"], |all| all.extend(volumes));
    set(pod, &["metadata", "annotations", INJECTED], json!(env!("CARGO_PKG_VERSION")));
}

/// The field at `path`, made with the objects above it where they are missing; `None` if one of these is no object.
fn field<'a>(value: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |value, name| {
        if value.is_null() {
            *value = json!({});
        }
        Some(value.as_object_mut()?.entry(*name).or_insert(Value::Null))
    })
}

fn set(pod: &mut Value, path: &[&str], to: Value) {
    if let Some(field) = field(pod, path) {
        *field = to;
    }
}

/// Changes the list at `path`, which is made if it is missing.
fn change(pod: &mut Value, path: &[&str], change: impl FnOnce(&mut Vec<Value>)) {
    if let Some(field) = field(pod, path) {
        if field.is_null() {
            *field = json!([]);
        }
        if let Some(list) = field.as_array_mut() {
            change(list);
        }
    }
}
