//! `weft serve --source kube` with the rights that its chart gives it, and no more.

use serde_json::json;
use weft_e2e::kube::{Kubernetes, Replica, namespace, service};
use weft_e2e::scenario::Scenarios;

use crate::{file, finish, install, role_without, tail};

#[test]
fn a_control_plane_is_fed_by_an_api_server() {
    let mut kubernetes = Kubernetes::start().expect("an API server");
    let mut rows = Scenarios::of("control-plane", "none");
    let kubeconfig = install(&kubernetes).expect("installed");
    kubernetes.put(&role_without("pods")).expect("a role");
    let mut replica = Replica::start(kubernetes.directory(), "one", &kubeconfig, &[]).expect("started");

    rows.holds(
        "kube-ready: what hinders it from beginning is said by /readyz",
        "not ready: … may not list pods",
        || {
            let said = weft_e2e::until("it says why", std::time::Duration::from_secs(60), || {
                let said = replica.readyz();
                Ok(if said.contains("may not list pods") { Ok(said) } else { Err(said) })
            })?;
            Ok((said.starts_with("not ready: the source has not been read yet"), said))
        },
    );
    rows.holds("kube-ready: it is ready as soon as the right is there, by itself", "ready", || {
        kubernetes.apply(&file("rbac.yaml"))?;
        replica.wait_until_ready()?;
        Ok((true, "ready".to_owned()))
    });
    rows.holds(
        "kube-restart: with the API server away it stays ready and changes nothing",
        "ready, the same snapshot",
        || {
            kubernetes.put(&namespace("shop"))?;
            kubernetes.put(&service("shop", "catalog", 80))?;
            let snapshot = |replica: &Replica| anyhow::Ok(replica.inspection()?.convergence()?.snapshot);
            let before = weft_e2e::until("the Service is served", std::time::Duration::from_secs(60), || {
                Ok(match snapshot(&replica)? {
                    1 => Err("the first snapshot".to_owned()),
                    later => Ok(later),
                })
            })?;
            kubernetes.kill_server()?;
            replica.wait_for_log("the API server does not answer")?;
            let (ready, during) = (replica.readyz(), snapshot(&replica)?);
            kubernetes.start_server()?;
            replica.wait_for_log("the source can be read again")?;
            let after = snapshot(&replica)?;
            let same = ready == "ready\n" && during == before && after == before;
            Ok((same, format!("{}, snapshots {before}, {during}, {after}", ready.trim())))
        },
    );
    rows.holds("kube-objects: a diagnostic names the object, the field and what to do, once", "1 line", || {
        let split = json!({
            "apiVersion": "split.smi-spec.io/v1alpha4", "kind": "TrafficSplit",
            "metadata": {"namespace": "shop", "name": "broken"},
            "spec": {"service": "catalog", "backends": [{"service": "catalog", "weight": -1}]},
        });
        kubernetes.put(&split)?;
        let line = replica.wait_for_log("TrafficSplit shop/broken")?;
        kubernetes.patch(
            ("split.smi-spec.io/v1alpha4", "trafficsplits", "shop", "broken"),
            &json!({"metadata": {"labels": {"touched": "once"}}}),
        )?;
        kubernetes.put(&service("shop", "last", 80))?;
        let found = replica.inspection()?.diagnostics()?;
        let listed = found.iter().any(|found| format!("{found:?}").contains("broken"));
        let lines = replica.log().lines().filter(|line| line.contains("TrafficSplit shop/broken")).count();
        Ok((lines == 1 && listed && line.contains("spec.backends[0].weight"), format!("{lines} line: {line}")))
    });
    rows.holds("kube-stop: it ends when it is told to", "ended", || {
        replica.stop()?;
        Ok((true, "ended".to_owned()))
    });
    finish(rows, || tail(&kubernetes.log()));
}
