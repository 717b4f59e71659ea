//! The commands that ask a control plane, at one with two replicas in a cluster: through the API server, without a way of
//! one's own.

use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde_json::{Value, json};
use weft_e2e::kube::PATIENCE;
use weft_e2e::mesh::weft_beside_tests;
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::ha;
use crate::installed::{CONTROL_PLANE, Installed, SYSTEM};

pub(crate) fn asked(installed: &Installed, rows: &mut Scenarios) {
    let all = installed.kubernetes.kubeconfig();
    rows.holds(
        "kube-cli: `weft proxy status` shows the sidecars of all replicas, through the API server",
        "3 connected, of 2 replicas",
        || {
            let status = until("all are up to date", PATIENCE, || {
                let status = json_of(installed, all, &["proxy", "status"])?;
                Ok(if status["behind"] == 0 { Ok(status) } else { Err(status.to_string()) })
            })?;
            let replicas = installed.node.ready(SYSTEM, CONTROL_PLANE);
            let pods: Vec<_> =
                status["proxies"].as_array().into_iter().flatten().filter_map(|one| one["pod"].as_str()).collect();
            let right = status["connected"] == ha::SIDECARS && pods.len() == ha::SIDECARS && replicas.len() == 2;
            Ok((right, format!("{} connected, of {} replicas: {pods:?}", status["connected"], replicas.len())))
        },
    );
    rows.holds("kube-cli: `weft deliveries` counts all of them", "as many proxies as both replicas have", || {
        let whole = json_of(installed, all, &["deliveries", "service/catalog", "-n", "shop"])?;
        let [whole] = whole["objects"].as_array().map(Vec::as_slice).unwrap_or_default() else {
            anyhow::bail!("{whole}")
        };
        let mut sum = 0;
        for replica in installed.node.ready(SYSTEM, CONTROL_PLANE) {
            let one = ha::deliveries(installed, &replica, "kind=Service&namespace=shop&name=catalog")?;
            sum += one["objects"][0]["answers"]["proxies"].as_u64().unwrap_or(0);
        }
        let proxies = whole["answers"]["proxies"].as_u64().context("a count")?;
        let done = whole["state"] == "delivered" && whole["answers"]["acknowledged"] == proxies;
        Ok((proxies == sum && sum > 0 && done, format!("{proxies}, of {sum}; {}", whole["state"])))
    });
    rows.holds("kube-cli: `weft diagnostics` says once what all replicas say", "1 of TrafficPolicy wrong", || {
        let wrong = json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy",
            "metadata": {"namespace": "shop", "name": "wrong"},
            "spec": {"targetRefs": [{"kind": "Service", "name": "nobody"}], "timeouts": {"request": "5s"}},
        });
        installed.kubernetes.put(&wrong)?;
        let found = until("it is said", PATIENCE, || {
            let found = json_of(installed, all, &["diagnostics", "-n", "shop"])?;
            let of_it = found["diagnostics"].as_array().into_iter().flatten().filter(|one| one["name"] == "wrong");
            let of_it: Vec<_> = of_it.cloned().collect();
            Ok(if of_it.is_empty() { Err(found.to_string()) } else { Ok(of_it) })
        })?;
        installed.kubernetes.remove(&wrong)?;
        Ok((found.len() == 1, format!("{}: {}", found.len(), found[0]["reason"])))
    });
    rows.holds("kube-cli: `weft proxy certs` goes to the sidecar itself", "spiffe://…/ns/shop/sa/frontend", || {
        let (said, _) = weft(installed, all, &["proxy", "certs", "deploy/frontend", "-n", "shop"])?;
        Ok((said.contains("/ns/shop/sa/frontend"), said))
    });
    rows.holds("kube-cli: who may not look is told the verb and the resource", "cannot list resource pods", || {
        let nobody = installed.kubernetes.kubeconfig_of("shop", "default")?;
        let (_, error) = weft(installed, &nobody, &["proxy", "status"])?;
        Ok((error.contains("cannot list resource \"pods\"") && error.contains(SYSTEM), error))
    });
    rows.holds("kube-cli: where no replica is, it says so and what to do", "--weft-namespace", || {
        let (_, error) = weft(installed, all, &["proxy", "status", "--weft-namespace", "shop"])?;
        Ok((error.contains("no replica of the control plane is ready in namespace shop"), error))
    });
}

/// What `weft ARGUMENTS` prints and what it complains of.
fn weft(installed: &Installed, kubeconfig: &Path, arguments: &[&str]) -> anyhow::Result<(String, String)> {
    let mut command = Command::new(weft_beside_tests()?);
    command.args(arguments).arg("--kubeconfig").arg(kubeconfig);
    let done = command.env("HOME", installed.kubernetes.directory()).output()?;
    let [out, err] = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok((out, err))
}

fn json_of(installed: &Installed, kubeconfig: &Path, arguments: &[&str]) -> anyhow::Result<Value> {
    let (out, err) = weft(installed, kubeconfig, &[arguments, &["-o", "json"]].concat())?;
    serde_json::from_str(&out).with_context(|| out + &err)
}
