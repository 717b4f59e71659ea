//! The shop of the playground (examples/shop) on an API server with a node: the same files, written there.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::node::lock;
use super::{Kubernetes, Node, PATIENCE};
use crate::checks::Site;
use crate::inspection::Inspection;
use crate::load::{Load, Summary};
use crate::mesh::repository;
use crate::until;

/// The label of the control plane's pods, and their namespace.
const CONTROL_PLANE: (&str, (&str, &str)) = ("weft-system", ("app.kubernetes.io/component", "control-plane"));
/// Kinds that others need to be there.
const FIRST: [&str; 2] = ["Namespace", "ServiceAccount"];

/// The shop, where Weft is installed already.
pub struct Shop<'a> {
    kubernetes: &'a Kubernetes,
    node: &'a Node,
    files: Mutex<BTreeMap<String, String>>,
}

impl<'a> Shop<'a> {
    /// Writes all files of a directory of the repository, and waits until all pods are ready and all sidecars up to date.
    ///
    /// # Errors
    /// When it does not come to that.
    pub fn open(kubernetes: &'a Kubernetes, node: &'a Node, directory: &str) -> anyhow::Result<Self> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(repository().join(directory))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                files.insert(name, fs::read_to_string(&path)?);
            }
        }
        let mut all = files.values().map(|text| documents(text)).collect::<anyhow::Result<Vec<_>>>()?.concat();
        all.sort_by_key(|object| FIRST.iter().position(|kind| object["kind"] == *kind).unwrap_or(FIRST.len()));
        all.iter().try_for_each(|object| kubernetes.put(object))?;
        let deployments = all.iter().filter(|object| object["kind"] == "Deployment");
        let replicas = deployments.map(|object| object["spec"]["replicas"].as_u64().unwrap_or(1)).sum::<u64>();
        let pods = replicas as usize + all.iter().filter(|object| object["kind"] == "Pod").count();
        let shop = Self { kubernetes, node, files: Mutex::new(files) };
        until("all pods of the shop are ready", PATIENCE, || {
            let ready = shop.ready_pods()?;
            Ok(if ready == (pods, pods) { Ok(()) } else { Err(format!("{ready:?} of {pods}\n{}", node.log("shop"))) })
        })?;
        for mut inspection in shop.inspections()? {
            inspection.converged_after(0, Instant::now())?;
        }
        Ok(shop)
    }

    /// Of every replica of the control plane.
    fn inspections(&self) -> anyhow::Result<Vec<Inspection>> {
        let (namespace, label) = CONTROL_PLANE;
        let replicas = self.node.ready(namespace, label);
        let at =
            |pod: &String| anyhow::Ok(SocketAddr::from((self.node.address(&format!("{namespace}/{pod}"))?, 15014)));
        replicas.iter().map(|pod| Inspection::at(at(pod)?)).collect()
    }

    /// Makes a change, and waits until every sidecar has what comes of it, from whichever replica.
    fn change(&self, change: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
        let mut inspections = self.inspections()?;
        let before: Vec<u64> =
            inspections.iter_mut().map(|one| Ok(one.convergence()?.snapshot)).collect::<anyhow::Result<_>>()?;
        let start = Instant::now();
        change()?;
        let mut took = Duration::ZERO;
        for (inspection, before) in inspections.iter_mut().zip(before) {
            took = took.max(inspection.converged_after(before, start)?);
        }
        Ok(took)
    }
}

impl Site for Shop<'_> {
    fn call(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<String> {
        self.node.call(pod, arguments)
    }

    fn calls(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<Summary> {
        self.node.calls(pod, arguments)
    }

    fn code(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<String> {
        self.node.code(pod, arguments)
    }

    fn load(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<Load> {
        self.node.load(pod, arguments)
    }

    fn admin(&self, pod: &str, path: &str) -> anyhow::Result<String> {
        self.node.admin(pod, path)
    }

    fn resolve(&self, pod: &str, name: &str) -> anyhow::Result<IpAddr> {
        self.node.resolve(pod, name)
    }

    fn dial(&self, pod: &str, to: SocketAddr) -> anyhow::Result<TcpStream> {
        self.node.dial(pod, to)
    }

    fn read(&self, file: &str) -> anyhow::Result<String> {
        lock(&self.files).get(file).cloned().with_context(|| file.to_owned())
    }

    fn put(&self, file: &str, text: &str) -> anyhow::Result<()> {
        let new = documents(text)?;
        let before = lock(&self.files).insert(file.to_owned(), text.to_owned()).unwrap_or_default();
        new.iter().try_for_each(|object| self.kubernetes.put(object))?;
        let same =
            |a: &Value, b: &Value| ["kind", "metadata"].iter().all(|field| name_in(a, field) == name_in(b, field));
        let gone = documents(&before)?.into_iter().filter(|old| !new.iter().any(|object| same(old, object)));
        gone.into_iter().try_for_each(|object| self.kubernetes.remove(&object))
    }

    fn write(&self, file: &str, text: &str) -> anyhow::Result<Duration> {
        self.change(|| self.put(file, text))
    }

    fn remove(&self, file: &str) -> anyhow::Result<Duration> {
        ensure!(!self.read(file)?.is_empty(), "{file} is gone already");
        self.change(|| self.put(file, ""))
    }

    fn wait_for_pods(&self, namespace: &str, workload: &str, count: usize) -> anyhow::Result<()> {
        self.node.wait_for_workload(namespace, workload, count)
    }

    fn ready_pods(&self) -> anyhow::Result<(usize, usize)> {
        Ok(self.node.ready_outside(CONTROL_PLANE.0))
    }
}

/// What tells an object from others of its kind, or its kind.
fn name_in(object: &Value, field: &str) -> [Value; 2] {
    match field {
        "metadata" => [object["metadata"]["namespace"].clone(), object["metadata"]["name"].clone()],
        _ => [object[field].clone(), Value::Null],
    }
}

/// The objects of a YAML text.
fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    let whole = text.split("\n---\n").filter(|document| document.lines().any(|line| !line.starts_with('#')));
    whole.map(|document| serde_saphyr::from_str(document).with_context(|| document.to_owned())).collect()
}
