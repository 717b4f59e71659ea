//! What a workload calls is known to its new pods, whichever replica they come to and whatever was restarted.

use std::collections::BTreeSet;

use anyhow::Context;
use serde_json::{Value, json};
use weft_e2e::kube::PATIENCE;
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::ha::inspection;
use crate::installed::{CONTROL_PLANE, FRONTEND, Installed, SYSTEM};

const CALLED: &str = "catalog.shop:80";

pub(crate) fn learned(installed: &Installed, rows: &mut Scenarios) {
    rows.holds("kube-warm: what a workload calls is kept in a ConfigMap, and both replicas know it", CALLED, || {
        installed.node.calls(FRONTEND, &["-n", "20", "http://catalog/"])?;
        let kept = until("it is kept", PATIENCE, || {
            let kept = kept(installed)?;
            Ok(if kept["workloads"]["shop/frontend"][CALLED].is_object() { Ok(kept) } else { Err(kept.to_string()) })
        })?;
        for replica in installed.node.ready(SYSTEM, CONTROL_PLANE) {
            until(&format!("{replica} knows it"), PATIENCE, || {
                let edges = inspection(installed, &replica)?.graph()?;
                let known = edges.iter().any(|edge| edge.caller == "frontend" && edge.destination == "catalog");
                Ok(if known { Ok(()) } else { Err(format!("{edges:?}")) })
            })?;
        }
        Ok((true, kept.to_string()))
    });
    rows.holds("kube-warm: both replicas restarted, a new pod has it before its first call", "shop/catalog/80", || {
        let replicas = installed.node.ready(SYSTEM, CONTROL_PLANE);
        // All of them before any is back, so that none can learn from another.
        for replica in &replicas {
            installed.node.kill(&format!("{SYSTEM}/{replica}"), "weft", true)?;
        }
        for replica in &replicas {
            installed.node.release(&format!("{SYSTEM}/{replica}"))?;
        }
        installed.node.wait_for(SYSTEM, CONTROL_PLANE, 2)?;
        let first = installed.node.ready("shop", ("app", "frontend"));
        scale(installed, 2)?;
        let pods = installed.node.ready("shop", ("app", "frontend"));
        let new = pods.iter().find(|pod| !first.contains(pod)).context("a new pod")?;
        let has = destinations(installed, new)?;
        scale(installed, 1)?;
        Ok((has.contains("shop/catalog/80"), format!("{new}: {has:?}")))
    });
}

/// What the ConfigMap holds.
fn kept(installed: &Installed) -> anyhow::Result<Value> {
    let map = installed.kubernetes.get("v1", "configmaps", SYSTEM, "weft-warm-sets")?.unwrap_or_default();
    let document = map["data"]["warm-sets.json"].as_str().unwrap_or("null");
    serde_json::from_str(document).with_context(|| document.to_owned())
}

fn scale(installed: &Installed, replicas: usize) -> anyhow::Result<()> {
    let patch = json!({"spec": {"replicas": replicas}});
    installed.kubernetes.patch(("apps/v1", "deployments", "shop", "frontend"), &patch)?;
    installed.node.wait_for("shop", ("app", "frontend"), replicas)?;
    Ok(())
}

/// The Services that a sidecar has clusters for.
fn destinations(installed: &Installed, pod: &str) -> anyhow::Result<BTreeSet<String>> {
    let dump = installed.node.admin(&format!("shop/{pod}"), "/config_dump?resource=dynamic_active_clusters")?;
    let dump: Value = serde_json::from_str(&dump)?;
    let clusters = dump["configs"].as_array().into_iter().flatten();
    let names = clusters.filter_map(|entry| entry["cluster"]["alt_stat_name"].as_str());
    Ok(names.filter(|name| name.starts_with("shop/")).map(str::to_owned).collect())
}
