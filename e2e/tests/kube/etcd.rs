//! An etcd that is slow: the API server answers late, or not at all.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;
use weft_e2e::kube::PATIENCE;
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::faults::{said, turn_to, under_load, wait_until_unsaid};
use crate::ha::holder;
use crate::installed::{CONTROL_PLANE, Installed, SYSTEM};
use crate::status::condition;

/// What a message takes, there and back each: an answer is there in time.
const SLOW: Duration = Duration::from_millis(1_000);
/// The same, so that what is read or written takes longer than the control plane waits.
const TOO_SLOW: Duration = Duration::from_secs(6);

pub(crate) fn slow(installed: &Installed, rows: &mut Scenarios) {
    rows.holds(
        "kube-etcd: each answer of etcd takes 2 s, under load",
        "no failed request; the Lease is kept; a change is served",
        || {
            let result = under_load(installed, || {
                let before = steady_holder(installed)?;
                installed.kubernetes.slow_down_etcd(SLOW)?;
                let after = turn_to(installed, "v2")?;
                let mut renewed = BTreeSet::new();
                until("the Lease is renewed", PATIENCE, || {
                    let (holder, at) = lease(installed)?;
                    ensure!(holder == before, "{before}, then {holder}");
                    renewed.insert(at);
                    Ok(if renewed.len() > 2 { Ok(()) } else { Err(format!("{renewed:?}")) })
                })?;
                Ok(format!("{after}; held by {before}"))
            });
            installed.kubernetes.slow_down_etcd(Duration::ZERO)?;
            result
        },
    );
    rows.holds(
        "kube-etcd: each answer of etcd takes 12 s, under load",
        "no failed request; said, with etcd; the Lease is given up, and taken again",
        || {
            let result = under_load(installed, || {
                let holder = holder(installed)?;
                let log = || installed.node.log_of(&format!("{SYSTEM}/{holder}"), "weft");
                let given_up = |log: &str| log.matches("this replica no longer holds the lease").count();
                let before = given_up(&log()?);
                installed.kubernetes.slow_down_etcd(TOO_SLOW)?;
                let line = until("it is said", PATIENCE, || {
                    let lines = said(installed, &holder)?;
                    let line = lines.iter().find(|line| line.starts_with("Lease weft-system/weft cannot be used"));
                    Ok(line.cloned().ok_or_else(|| lines.join("\n")))
                })?;
                ensure!(line.contains("too slow") && line.contains("etcd"), "{line}");
                until("the Lease is given up", PATIENCE, || {
                    let log = log()?;
                    Ok(if given_up(&log) > before { Ok(()) } else { Err(String::new()) })
                })?;
                let ready = installed.node.ready(SYSTEM, CONTROL_PLANE).len();
                ensure!(ready == 2, "{ready} replicas are ready");
                installed.kubernetes.slow_down_etcd(Duration::ZERO)?;
                wait_until_unsaid(installed, "cannot be used")?;
                let after = turn_to(installed, "v1")?;
                // Written by the holder of the Lease, whichever it is.
                installed.kubernetes.put(&json!({
                    "apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy",
                    "metadata": {"namespace": "shop", "name": "after"},
                    "spec": {"targetRefs": [{"kind": "Service", "name": "catalog-v1"}], "timeouts": {"request": "9s"}},
                }))?;
                let written = condition(&installed.kubernetes, "after", "Accepted", "True Accepted")?;
                Ok(format!("{line}; {after}; {written}"))
            });
            installed.kubernetes.slow_down_etcd(Duration::ZERO)?;
            result
        },
    );
}

/// Who holds the Lease, when it has done so for two renewals: what was killed before is not waited for any more.
fn steady_holder(installed: &Installed) -> anyhow::Result<String> {
    let mut seen: Vec<(String, String)> = Vec::new();
    until("the Lease is held", PATIENCE, || {
        let now = lease(installed)?;
        seen.retain(|(holder, _)| *holder == now.0);
        if !seen.contains(&now) {
            seen.push(now.clone());
        }
        Ok(if seen.len() > 2 { Ok(now.0) } else { Err(format!("{seen:?}")) })
    })
}

/// Who holds the Lease, and when it was renewed last.
fn lease(installed: &Installed) -> anyhow::Result<(String, String)> {
    let lease = installed.kubernetes.get("coordination.k8s.io/v1", "leases", SYSTEM, "weft")?.context("the Lease")?;
    let [holder, at] = ["holderIdentity", "renewTime"].map(|field| lease["spec"][field].to_string());
    Ok((holder, at))
}
