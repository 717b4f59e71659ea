//! Weft on a real Kubernetes API server (e2e/scripts/kubernetes): what it reads from it, who sidecars are to it, and what
//! it keeps there. `make e2e-kube` runs it.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test may, and here its helpers do")]

mod cli;
mod clock;
mod control_plane;
mod etcd;
mod faults;
mod ha;
mod installed;
mod replicas;
mod rights;
mod root;
mod shop;
mod sidecar;
mod source;
mod status;
mod tokens;
mod traffic;
mod warm;
mod watched;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use weft_e2e::kube::Kubernetes;
use weft_e2e::mesh::repository;
use weft_e2e::scenario::{KUBE_ROWS, Scenarios};

/// A file of e2e/kube.
fn file(name: &str) -> String {
    fs::read_to_string(repository().join("e2e/kube").join(name)).expect(name)
}

/// The CustomResourceDefinitions, the control plane's rights, and a kubeconfig with these.
fn install(kubernetes: &Kubernetes) -> anyhow::Result<PathBuf> {
    kubernetes.apply(&file("crds.yaml"))?;
    kubernetes.apply(&file("rbac.yaml"))?;
    kubernetes.kubeconfig_of("weft-system", "weft")
}

/// The control plane's ClusterRole without what `leave_out` says of a rule's resources and verbs.
fn role_without(resource: &str) -> Value {
    let documents = file("rbac.yaml");
    let role = documents.split("\n---\n").find(|document| document.contains("kind: ClusterRole\n")).expect("a role");
    let mut role: Value = serde_saphyr::from_str(role).expect("YAML");
    for rule in role["rules"].as_array_mut().expect("rules") {
        let resources = rule["resources"].as_array_mut().expect("resources");
        resources.retain(|name| name != resource);
        if resources.is_empty() {
            resources.push(json!("nothing"));
        }
    }
    role
}

/// Pods need their ServiceAccounts.
fn account(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": namespace, "name": name}})
}

fn finish(scenarios: Scenarios, log: impl FnOnce() -> String) {
    scenarios.finish(Path::new(KUBE_ROWS), log).unwrap_or_else(|error| panic!("{error:#}"));
}

/// The end of a text.
fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}
