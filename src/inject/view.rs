//! What injection reads of a pod. Everything else of it is carried along unread.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::InjectError;
use crate::mesh::object::Labels;

/// A Pod or a pod template.
#[derive(Debug, Deserialize)]
pub(super) struct PodView {
    #[serde(default)]
    pub(super) metadata: Metadata,
    pub(super) spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Metadata {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) labels: Labels,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) init_containers: Vec<Container>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) containers: Vec<Container>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) volumes: Vec<Named>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) host_network: bool,
    #[serde(default)]
    pub(super) os: Option<Named>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) node_selector: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) restart_policy: Option<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) security_context: SecurityContext,
}

#[derive(Debug, Deserialize)]
pub(super) struct Named {
    #[serde(default)]
    pub(super) name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SecurityContext {
    #[serde(default)]
    pub(super) run_as_user: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Container {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) ports: Vec<Port>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) security_context: SecurityContext,
    #[serde(default)]
    pub(super) startup_probe: Option<Probe>,
    #[serde(default)]
    pub(super) liveness_probe: Option<Probe>,
    #[serde(default)]
    pub(super) readiness_probe: Option<Probe>,
    #[serde(default, deserialize_with = "null_is_empty")]
    lifecycle: Lifecycle,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Port {
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) container_port: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Probe {
    #[serde(default)]
    pub(super) http_get: Option<HttpGet>,
    #[serde(default)]
    pub(super) tcp_socket: Option<TcpSocket>,
    #[serde(default)]
    pub(super) period_seconds: Option<u32>,
}

#[derive(Debug, Deserialize)]
pub(super) struct HttpGet {
    #[serde(default)]
    pub(super) scheme: Option<String>,
    #[serde(default)]
    pub(super) host: Option<String>,
    #[serde(default)]
    pub(super) port: Value,
    #[serde(default)]
    pub(super) path: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct TcpSocket {
    #[serde(default)]
    pub(super) host: Option<String>,
    #[serde(default)]
    pub(super) port: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lifecycle {
    #[serde(default)]
    post_start: Option<Hook>,
    #[serde(default)]
    pre_stop: Option<Hook>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hook {
    #[serde(default)]
    http_get: Option<HttpGet>,
}

fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl PodView {
    pub(super) fn read(pod: &Value) -> Result<Self, InjectError> {
        serde_path_to_error::deserialize(pod).map_err(|error| InjectError::NotAPod(error.to_string()))
    }

    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.metadata.labels.get(key).map(String::as_str)
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.get(key).map(String::as_str)
    }

    /// Every container with its field, init containers first.
    pub(super) fn containers(&self) -> impl Iterator<Item = (String, &Container)> {
        let named = |list: &'static str| move |(i, c)| (format!("spec.{list}[{i}]"), c);
        let inits = self.spec.init_containers.iter().enumerate().map(named("initContainers"));
        inits.chain(self.spec.containers.iter().enumerate().map(named("containers")))
    }
}

impl Container {
    /// The lifecycle hooks for which the kubelet calls the pod.
    pub(super) fn http_hooks(&self) -> impl Iterator<Item = &'static str> {
        let hooks = [("postStart", &self.lifecycle.post_start), ("preStop", &self.lifecycle.pre_stop)];
        let calls = hooks.into_iter().filter(|(_, hook)| hook.as_ref().is_some_and(|hook| hook.http_get.is_some()));
        calls.map(|(name, _)| name)
    }

    /// A probe's port: a number, or the name of one of the container's own, else a number written as text.
    pub(super) fn port(&self, port: &Value) -> Option<u16> {
        let number = match port {
            Value::Number(number) => number.as_i64(),
            Value::String(name) => {
                let named = self.ports.iter().find(|port| port.name.as_deref() == Some(name));
                named.map(|port| port.container_port).or_else(|| name.parse().ok())
            }
            _ => None,
        };
        u16::try_from(number?).ok().filter(|port| *port != 0)
    }
}
