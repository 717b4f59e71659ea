//! The chart on an API server with a node: all that it installs runs there, as its Deployments describe it.

use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use weft_e2e::kube::{Kubernetes, Node, PATIENCE, Programs};
use weft_e2e::load::Load;
use weft_e2e::mesh::{envoy, repository, weft_beside_tests};
use weft_e2e::until;

use crate::file;

pub(crate) const SYSTEM: &str = "weft-system";
pub(crate) const CONTROL_PLANE: (&str, &str) = ("app.kubernetes.io/component", "control-plane");
pub(crate) const WEBHOOK: (&str, &str) = ("app.kubernetes.io/component", "webhook");
/// The pod that calls.
pub(crate) const FRONTEND: &str = "shop/frontend-";

/// Weft and the shop of e2e/kube/shop.yaml.
pub(crate) struct Installed {
    // Ends before its API server.
    pub(crate) node: Node,
    pub(crate) kubernetes: Kubernetes,
}

impl Installed {
    /// Installs both, with sidecars of this version of Envoy, and waits until all pods are ready.
    pub(crate) fn start(version: &str) -> anyhow::Result<Self> {
        let installed = Self::without_a_shop(version, &[])?;
        installed.kubernetes.apply(&file("shop.yaml"))?;
        for (app, count) in [("frontend", 1), ("catalog", 2)] {
            installed.node.wait_for("shop", ("app", app), count)?;
        }
        installed.node.wait_for("plain", ("app", "stranger"), 1)?;
        Ok(installed)
    }

    /// Installs Weft alone, with these values of the chart.
    pub(crate) fn without_a_shop(version: &str, values: &[&str]) -> anyhow::Result<Self> {
        let kubernetes = Kubernetes::start_for_a_node()?;
        let programs = Programs { weft: weft_beside_tests()?, envoy: envoy(version)? };
        let node = Node::start(&kubernetes, programs)?;
        let installed = Self { node, kubernetes };
        let values = ["controlPlane.logFormat=text"].iter().chain(values).flat_map(|value| ["--set", value]);
        let install = ["install", "weft", "helm/weft", "--create-namespace"].into_iter().chain(values);
        installed.helm(&install.collect::<Vec<_>>())?;
        installed.node.wait_for(SYSTEM, CONTROL_PLANE, 2)?;
        installed.node.wait_for(SYSTEM, WEBHOOK, 2)?;
        until("the API server believes the injector", PATIENCE, || {
            let group = "admissionregistration.k8s.io/v1";
            let found = installed.kubernetes.get(group, "mutatingwebhookconfigurations", "", "weft-injector")?;
            let bundle = found.context("the injector")?["webhooks"][0]["clientConfig"]["caBundle"].clone();
            Ok(if bundle.is_string() { Ok(()) } else { Err(bundle.to_string()) })
        })?;
        Ok(installed)
    }

    /// Runs Helm from the root of the repository.
    pub(crate) fn helm(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(repository().join("target/helm/helm"));
        command.args(arguments).args(["--namespace", SYSTEM]).current_dir(repository());
        command.env("KUBECONFIG", self.kubernetes.kubeconfig()).env("HOME", self.kubernetes.directory());
        let done = command.output().context("helm")?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Has so many calls of the catalog out of a hundred go to its versions.
    pub(crate) fn split(&self, v1: u32, v2: u32) -> anyhow::Result<()> {
        self.kubernetes.put(&json!({
            "apiVersion": "split.smi-spec.io/v1alpha4", "kind": "TrafficSplit",
            "metadata": {"namespace": "shop", "name": "catalog"},
            "spec": {"service": "catalog", "backends": [
                {"service": "catalog-v1", "weight": v1}, {"service": "catalog-v2", "weight": v2},
            ]},
        }))
    }

    /// Constant calls of the catalog, of which some are always under way.
    pub(crate) fn load(&self) -> anyhow::Result<Load> {
        self.node.load(FRONTEND, &["-c", "8", "--rate", "150", "http://catalog/?delay=30ms"])
    }

    /// What a workload answered to one request.
    pub(crate) fn answer(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = self.node.call(pod, arguments)?;
        serde_json::from_str(&text).context(text)
    }
}
