//! A pod of the node, as others see it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use weft::local::node::NODE_IP;

use super::container::Surroundings;

/// A pod, from its assignment to its end.
pub(super) struct Pod {
    pub(super) object: Value,
    pub(super) ip: Ipv4Addr,
    pub(super) directory: PathBuf,
    pub(super) surroundings: OnceLock<Surroundings>,
    /// By when it has to have ended, once it is to end.
    pub(super) end: Mutex<Option<Instant>>,
    /// Containers that have ended stay so.
    pub(super) held: AtomicBool,
    /// Whether it was last told to be ready.
    pub(super) ready: AtomicBool,
    pub(super) ended: AtomicBool,
    /// The processes of its containers.
    pub(super) processes: Mutex<BTreeMap<String, Pid>>,
}

impl Pod {
    pub(super) fn new(object: Value, ip: Ipv4Addr, directory: PathBuf) -> Self {
        Self {
            object,
            ip,
            directory,
            surroundings: OnceLock::new(),
            end: Mutex::default(),
            held: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            processes: Mutex::default(),
        }
    }

    pub(super) fn namespace(&self) -> &str {
        self.object["metadata"]["namespace"].as_str().unwrap_or_default()
    }

    pub(super) fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// Has it end within `grace`; the earliest word counts.
    pub(super) fn stop(&self, grace: Duration) {
        let by = Instant::now() + grace;
        let mut end = lock(&self.end);
        *end = Some(end.map_or(by, |before| before.min(by)));
    }

    /// Sends a signal to the process of a container, which it returns.
    pub(super) fn signal(&self, container: &str, signal: Signal) -> anyhow::Result<Pid> {
        let pid = *lock(&self.processes).get(container).with_context(|| format!("{container} does not run"))?;
        kill_process(pid, signal)?;
        Ok(pid)
    }

    pub(super) fn log_of(&self, container: &str) -> PathBuf {
        self.directory.join(format!("{container}.log"))
    }

    /// What the fields that variables and files refer to are.
    pub(super) fn fields(&self) -> BTreeMap<String, String> {
        let text = |pointer: &str| self.object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut fields = BTreeMap::from(
            [
                ("metadata.name", text("/metadata/name")),
                ("metadata.namespace", text("/metadata/namespace")),
                ("metadata.uid", text("/metadata/uid")),
                ("spec.nodeName", super::NAME.to_owned()),
                ("spec.serviceAccountName", text("/spec/serviceAccountName")),
                ("status.hostIP", NODE_IP.to_string()),
                ("status.podIP", self.ip.to_string()),
                ("status.podIPs", self.ip.to_string()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        for kind in ["labels", "annotations"] {
            for (key, value) in self.object["metadata"][kind].as_object().into_iter().flatten() {
                fields.insert(format!("metadata.{kind}['{key}']"), value.as_str().unwrap_or_default().to_owned());
            }
        }
        fields
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
