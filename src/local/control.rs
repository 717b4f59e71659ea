//! The control socket's protocol: one request a connection, answered once.
//!
//! The socket is the abstract `@weft-playground-UID-NAME`. Its peer must be the user that runs the playground: abstract
//! sockets have no file permissions.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::mesh::id::PodKey;

/// The abstract name of a playground's socket, for this process's user.
pub(crate) fn socket_name(name: &str) -> Vec<u8> {
    format!("weft-playground-{}-{name}", rustix::process::getuid().as_raw()).into_bytes()
}

/// What a client asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Run a command in a pod. Standard input, output and error come along. When the connection ends, so does the
    /// command.
    Exec { pod: PodSelector, argv: Vec<String> },
    /// On the connection of such a command: send it SIGINT.
    Interrupt,
    /// A TCP connection to `to`, from a pod or from the node.
    Dial { from: Option<PodSelector>, to: SocketAddr },
    /// What is there.
    Status,
    /// Answered when all is ready for the first time.
    WaitReady,
    /// Kill a container of a pod with SIGKILL.
    KillContainer { pod: PodSelector, container: String },
    /// Kill the control plane with SIGKILL and leave it down.
    KillControlPlane,
    /// Start the control plane, if it is down; answered when it is ready.
    StartControlPlane,
    /// Stop the playground.
    Stop,
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Response {
    /// It was done. After a dial, the socket comes along.
    Done,
    /// The command ended with this code (128 + the signal's number).
    Exited(i32),
    /// See [`Status`].
    Status(Status),
    /// It was not done.
    Refused(String),
}

/// Which pod: `NAME`, a prefix that only one pod has, or `deploy/NAME` (any ready pod of it, else any).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSelector {
    /// The namespace.
    pub namespace: String,
    /// The name, prefix or `deploy/NAME`.
    pub pod: String,
}

impl PodSelector {
    /// Selects `pod` in `namespace`.
    pub fn new(namespace: impl Into<String>, pod: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), pod: pod.into() }
    }

    /// What a user means by `pod` on a command line: `NAMESPACE/POD`, or `POD` in `namespace` (`default` if not given).
    pub fn parse(pod: &str, namespace: Option<&str>) -> Self {
        match pod.split_once('/') {
            Some((of, name)) if !matches!(of, "deploy" | "deployment") => Self::new(namespace.unwrap_or(of), name),
            _ => Self::new(namespace.unwrap_or("default"), pod),
        }
    }
}

/// A playground's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether the control plane and every pod are ready.
    pub ready: bool,
    /// The control plane.
    pub control_plane: ControlPlaneStatus,
    /// The pods, by namespace and name.
    pub pods: Vec<PodStatus>,
}

/// The control plane's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ControlPlaneStatus {
    /// This playground runs none.
    None,
    /// Killed on request, or not yet started.
    Down,
    /// Running, not yet ready.
    Starting,
    /// Serving.
    Ready,
}

/// A pod's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The workload it belongs to.
    pub workload: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Whether it has a sidecar.
    pub meshed: bool,
    /// Whether its processes run and its sidecar serves.
    pub ready: bool,
    /// How often its containers were started again.
    pub restarts: u32,
    /// Why it is not ready, if that is known.
    pub message: Option<String>,
}

/// Finds the pod that a selector means among (key, workload, ready).
pub(crate) fn select(selector: &PodSelector, pods: &[(PodKey, String, bool)]) -> Result<PodKey, String> {
    let namespace = &selector.namespace;
    let mut there: Vec<_> = pods.iter().filter(|(key, ..)| key.namespace.as_str() == namespace).collect();
    if let Some(workload) = selector.pod.strip_prefix("deploy/").or(selector.pod.strip_prefix("deployment/")) {
        there.retain(|(_, of, _)| of == workload);
        let found = there.iter().find(|(.., ready)| *ready).or(there.first());
        return found.map(|(key, ..)| key.clone()).ok_or(format!("Deployment {namespace}/{workload} has no pod here"));
    }
    let name = &selector.pod;
    if let Some((key, ..)) = there.iter().find(|(key, ..)| *key.name == **name) {
        return Ok(key.clone());
    }
    there.retain(|(key, ..)| key.name.starts_with(name.as_str()));
    let names = || there.iter().map(|(key, ..)| &*key.name).collect::<Vec<_>>().join(", ");
    match &there[..] {
        [(key, ..)] => Ok(key.clone()),
        [] => Err(format!("there is no pod {namespace}/{name}: `weft up` shows the pods; -n chooses the namespace")),
        _ => Err(format!("several pods of namespace {namespace} begin with `{name}`: {}", names())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods() -> Vec<(PodKey, String, bool)> {
        [("web-a1", "web", false), ("web-a2", "web", true), ("cart", "cart", true), ("cart-2", "cart-2", true)]
            .map(|(name, workload, ready)| (PodKey::new("shop", name), workload.to_owned(), ready))
            .to_vec()
    }

    #[test]
    fn a_pod_is_found_by_name_prefix_and_deployment() {
        for (asked, found) in [
            ("cart", "cart"),
            ("cart-", "cart-2"),
            ("web-a1", "web-a1"),
            ("deploy/web", "web-a2"),
            ("deploy/cart", "cart"),
        ] {
            let pod = select(&PodSelector::new("shop", asked), &pods());
            assert_eq!(pod.as_ref().map(|key| &*key.name), Ok(found), "{asked}");
        }
    }

    #[test]
    fn a_namespace_is_given_before_the_pod_or_beside_it() {
        for (pod, namespace, means) in [
            ("shop/web", None, ("shop", "web")),
            ("web", Some("shop"), ("shop", "web")),
            ("web", None, ("default", "web")),
            ("deploy/web", Some("shop"), ("shop", "deploy/web")),
            ("shop/deploy/web", None, ("shop", "deploy/web")),
        ] {
            assert_eq!(PodSelector::parse(pod, namespace), PodSelector::new(means.0, means.1), "{pod} {namespace:?}");
        }
    }

    #[test]
    fn a_selector_that_fits_no_pod_or_several_is_refused_with_what_to_do() {
        for (namespace, asked, message) in [
            ("shop", "web", "web-a1, web-a2"),
            ("shop", "db", "there is no pod shop/db"),
            ("default", "cart", "-n chooses the namespace"),
            ("shop", "deploy/db", "Deployment shop/db has no pod here"),
        ] {
            let refusal = select(&PodSelector::new(namespace, asked), &pods()).expect_err(asked);
            assert!(refusal.contains(message), "{refusal}");
        }
    }
}
