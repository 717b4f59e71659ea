//! Real traffic between pods of an API server: created there, injected at admission, run by a node (`weft_e2e::kube::Node`)
//! with exactly the containers that the injector wrote, and found by the endpoints that Kubernetes' controllers write.

use std::process::Command;

use serde_json::json;
use weft_e2e::kube::PATIENCE;
use weft_e2e::mesh::{pinned_version, weft_beside_tests};
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::installed::{CONTROL_PLANE, FRONTEND, Installed, SYSTEM};
use crate::{cli, finish, ha, warm};

const STRANGER: &str = "plain/stranger";

#[test]
fn injected_pods_of_an_api_server_call_each_other() {
    run("default");
}

#[test]
fn injected_pods_with_the_oldest_envoy_call_each_other() {
    run("oldest");
}

fn run(line: &str) {
    let version = pinned_version(line).expect("a version");
    let mut installed = Installed::start(&version).unwrap_or_else(|error| panic!("{error:#}"));
    let mut rows = Scenarios::with(&format!("traffic-{line}"), &version, installed.node.traffic());
    pods(&installed, &mut rows);
    checked(&installed, &mut rows);
    identities(&installed, &mut rows);
    split(&installed, &mut rows);
    scaled(&installed, &mut rows);
    rolled(&installed, &mut rows);
    ha::counted(&installed, &mut rows);
    cli::asked(&installed, &mut rows);
    warm::learned(&installed, &mut rows);
    ha::killed(&installed, &mut rows);
    ha::vanished(&installed, &mut rows);
    ha::forbidden(&installed, &mut rows);
    ha::replaced(&installed, &mut rows);
    ha::without_an_api_server(&mut installed, &mut rows);
    allowed(&installed, &mut rows);
    let log = installed.node.log("shop") + &installed.node.log(SYSTEM);
    finish(rows, || log);
}

fn pods(installed: &Installed, rows: &mut Scenarios) {
    rows.equal("kube-traffic: what the chart's Deployments describe becomes ready", "2 replicas", {
        Ok(format!("{} replicas", installed.node.ready(SYSTEM, CONTROL_PLANE).len()))
    });
    rows.equal("kube-traffic: a pod that is created has its sidecar from the webhook", "weft-init, weft-proxy", {
        let pod = installed.node.ready("shop", ("app", "frontend")).pop().unwrap_or_default();
        installed.kubernetes.get("v1", "pods", "shop", &pod).map(|pod| {
            let containers = pod.unwrap_or_default()["spec"]["initContainers"].as_array().cloned().unwrap_or_default();
            containers.iter().filter_map(|one| one["name"].as_str()).collect::<Vec<_>>().join(", ")
        })
    });
}

/// Beside the pods themselves, what their installation is found to be.
fn checked(installed: &Installed, rows: &mut Scenarios) {
    rows.holds("kube-traffic: `weft check` finds nothing wrong with what runs", "0, all ok", || {
        let mut command = Command::new(weft_beside_tests()?);
        let done = command.arg("check").env("KUBECONFIG", installed.kubernetes.kubeconfig()).output()?;
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let ok = said.lines().skip(1).all(|line| line.split_whitespace().nth(1) == Some("ok"));
        Ok((ok && done.status.success(), said))
    });
}

fn identities(installed: &Installed, rows: &mut Scenarios) {
    rows.holds(
        "kube-traffic: a call goes over mTLS, and both know each other",
        "spiffe://…/ns/shop/sa/frontend to spiffe://…/ns/shop/sa/catalog",
        || {
            let answer = installed.answer(FRONTEND, &["http://catalog/"])?;
            let header = answer["headers"]["x-forwarded-client-cert"].as_str().unwrap_or("nobody").to_owned();
            let both = header.contains("By=spiffe://cluster.local/ns/shop/sa/catalog")
                && header.contains("URI=spiffe://cluster.local/ns/shop/sa/frontend");
            Ok((both && answer["name"] == "catalog", header))
        },
    );
    for (protocol, url) in [("gRPC", "grpc://catalog:9090"), ("TCP", "tcp://catalog:7000")] {
        rows.holds(&format!("kube-traffic: {protocol} is called too"), "no failed call, by the catalog", || {
            let summary = installed.node.calls(FRONTEND, &["-n", "20", url])?;
            let catalog = summary.responders.keys().all(|name| name.starts_with("catalog"));
            Ok((summary.failed == 0 && catalog, format!("{}, {:?}", summary.said(), summary.responders)))
        });
    }
    rows.equal(
        "kube-traffic: a stranger without a sidecar is refused in strict mode",
        "403",
        installed.node.code(STRANGER, &["http://catalog.shop/"]),
    );
}

fn split(installed: &Installed, rows: &mut Scenarios) {
    rows.holds("kube-traffic: a TrafficSplit of 90 to 10 holds for 1,000 requests", "10 % on v2, ± 3", || {
        installed.split(90, 10)?;
        let summary = installed.node.calls(FRONTEND, &["-n", "1000", "-c", "10", "http://catalog/"])?;
        let share = summary.share("catalog v2");
        let holds = summary.failed == 0 && (share - 10.0).abs() <= 3.0;
        Ok((holds, format!("{share:.1} % on v2; {}", summary.said())))
    });
}

fn scaled(installed: &Installed, rows: &mut Scenarios) {
    rows.holds("kube-traffic: a Deployment is scaled up and down under load", "no failed request", || {
        let load = installed.load()?;
        for replicas in [3, 1] {
            let patch = json!({"spec": {"replicas": replicas}});
            installed.kubernetes.patch(("apps/v1", "deployments", "shop", "catalog-v1"), &patch)?;
            // v1, and the one pod of v2.
            installed.node.wait_for("shop", ("app", "catalog"), replicas + 1)?;
        }
        let summary = load.stop()?;
        Ok((summary.failed == 0, summary.said()))
    });
}

fn rolled(installed: &Installed, rows: &mut Scenarios) {
    rows.holds("kube-traffic: a Deployment is rolled under load", "no failed request, other pods", || {
        let before = installed.node.ready("shop", ("version", "v1"));
        let load = installed.load()?;
        let patch = json!({"spec": {"template": {"metadata": {"annotations": {"rolled": "once"}}}}});
        installed.kubernetes.patch(("apps/v1", "deployments", "shop", "catalog-v1"), &patch)?;
        let after = until("another pod", PATIENCE, || {
            let after = installed.node.wait_for("shop", ("version", "v1"), 1)?;
            Ok(if after == before { Err(format!("{after:?}")) } else { Ok(after) })
        })?;
        let summary = load.stop()?;
        Ok((summary.failed == 0, format!("{}; {before:?}, then {after:?}", summary.said())))
    });
}

fn allowed(installed: &Installed, rows: &mut Scenarios) {
    let call = |url: &str, expected: &str| {
        until("the answer changes", PATIENCE, || {
            let code = installed.node.code(FRONTEND, &[url])?;
            Ok(if code == expected { Ok(code) } else { Err(code) })
        })
    };
    rows.equal("kube-traffic: without a TrafficTarget nothing is allowed where they count", "403", {
        let enforce = json!({"metadata": {"annotations": {"weft.dev/authorization": "Enforce"}}});
        installed
            .kubernetes
            .patch(("v1", "namespaces", "", "shop"), &enforce)
            .and_then(|()| call("http://catalog/items", "403"))
    });
    rows.equal("kube-traffic: a TrafficTarget allows what it says", "200 GET /items, 403 GET /", {
        let account = |name: &str| json!({"kind": "ServiceAccount", "namespace": "shop", "name": name});
        let group = json!({
            "apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "HTTPRouteGroup",
            "metadata": {"namespace": "shop", "name": "http"},
            "spec": {"matches": [{"name": "items", "pathRegex": "/items", "methods": ["GET"]}]},
        });
        let target = json!({
            "apiVersion": "access.smi-spec.io/v1alpha3", "kind": "TrafficTarget",
            "metadata": {"namespace": "shop", "name": "catalog"},
            "spec": {
                "destination": account("catalog"), "sources": [account("frontend")],
                "rules": [{"kind": "HTTPRouteGroup", "name": "http", "matches": ["items"]}],
            },
        });
        let put = installed.kubernetes.put(&group).and_then(|()| installed.kubernetes.put(&target));
        put.and_then(|()| {
            let items = call("http://catalog/items", "200")?;
            Ok(format!("{items} GET /items, {} GET /", installed.node.code(FRONTEND, &["http://catalog/"])?))
        })
    });
}
