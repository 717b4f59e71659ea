//! A workload's new pods have what it calls before they call it, whatever became of the control plane meanwhile.

use std::collections::BTreeSet;

use serde_json::Value;
use weft_e2e::mesh::{Mesh, PATIENCE};
use weft_e2e::until;

use crate::{scenarios, start};

const WEB: &str = "web.yaml";
const ALLOWED: &str = "
apiVersion: v1
kind: Service
metadata: {name: allowed, namespace: app}
spec:
  selector: {app: allowed}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

#[test]
fn new_pods_start_warm() {
    let mesh = start("warm", "default");
    let mut checks = scenarios(&mesh, "default");
    let first = pods(&mesh).expect("the pods").remove(0);
    checks.equal("warm: the first pod, before any call", "app/noted/80", known(&mesh, &first));
    checks.equal("warm: its first call", "200", mesh.code(&first, &["http://cart/"]));
    checks.equal("warm: an address that nobody has", "503", mesh.code(&first, &["http://10.96.77.77/"]));
    checks.holds("warm: that address", "a cluster of its own that is passed through", || {
        let dump = mesh.admin(&first, "/config_dump?resource=dynamic_active_clusters")?;
        Ok((dump.contains("unknown/10_96_77_77/80"), "its clusters".into()))
    });
    checks.holds("warm: the call is known", "app/web calls cart.app:80", || {
        until("the graph", PATIENCE, || {
            let edges = mesh.inspection()?.graph()?;
            let learned = edges.iter().any(|edge| edge.caller == "web" && edge.destination == "cart" && edge.pods == 1);
            Ok(if learned { Ok((true, String::new())) } else { Err(format!("{edges:?}")) })
        })
    });

    mesh.write("allowed.yaml", ALLOWED).expect("a Service that a target declares to web");
    let everything = "app/allowed/80 app/cart/80 app/noted/80";
    let second = add(&mesh, 2);
    checks.equal("warm: a second pod, before any call", everything, known(&mesh, &second));
    checks.equal("warm: the first pod is left alone", "app/cart/80 app/noted/80", known(&mesh, &first));
    let load = mesh.load(&second, &["-c", "2", "--rate", "100", "http://cart/"]).expect("a load");

    mesh.client().kill_control_plane().expect("killed");
    checks.equal("warm: the control plane away: a destination in use", "200", mesh.code(&first, &["http://cart/"]));
    checks.equal("warm: the control plane away: one that is warm", "200", mesh.code(&second, &["http://allowed/"]));
    checks.equal(
        "warm: the control plane away: one that was never called",
        "503",
        mesh.code(&first, &["--timeout", "20s", "http://never/"]),
    );
    mesh.client().start_control_plane(PATIENCE).expect("started");
    checks.holds("warm: the control plane restarted", "all sidecars are back", || {
        let mut inspection = mesh.inspection()?;
        until("the sidecars", PATIENCE, || {
            let (back, behind) = (inspection.proxies()?.len(), inspection.convergence()?.behind);
            Ok(if (back, behind) == (4, 0) { Ok((true, String::new())) } else { Err(format!("{back}, {behind}")) })
        })
    });
    let third = add(&mesh, 3);
    checks.holds("warm: a third pod, before any call", everything, || {
        let known = known(&mesh, &third)?;
        // The call that failed meanwhile was asked for again.
        Ok((known.replace(" app/never/80", "") == everything, known))
    });
    checks.holds("warm: the second pod under load meanwhile", "no failed request", || {
        let summary = load.stop()?;
        Ok((summary.failed == 0, summary.said()))
    });
    checks.equal("warm: the destination that could not be learned", "200", mesh.code(&third, &["http://never/"]));
    checks.end(mesh).expect("every scenario holds");
}

/// The pods of web, as `NAMESPACE/NAME`.
fn pods(mesh: &Mesh) -> anyhow::Result<Vec<String>> {
    let mut names: Vec<_> = mesh.pods_of("app", "web")?.into_iter().map(|pod| format!("app/{}", pod.name)).collect();
    names.sort();
    Ok(names)
}

/// One more pod; its name.
fn add(mesh: &Mesh, count: usize) -> String {
    let before = BTreeSet::from_iter(pods(mesh).expect("the pods"));
    let (old, new) = (format!("replicas: {}", count - 1), format!("replicas: {count}"));
    mesh.edit(WEB, |text| text.replace(&old, &new)).expect("one more pod");
    mesh.wait_for_pods("app", "web", count).expect("it is ready");
    let mut added = pods(mesh).expect("the pods");
    added.retain(|pod| !before.contains(pod));
    added.pop().expect("a new pod")
}

/// Every cluster of a Service that a sidecar has, by its readable name.
fn known(mesh: &Mesh, pod: &str) -> anyhow::Result<String> {
    let dump: Value = serde_json::from_str(&mesh.admin(pod, "/config_dump?resource=dynamic_active_clusters")?)?;
    let clusters = dump["configs"].as_array().into_iter().flatten();
    let names = clusters.filter_map(|entry| entry["cluster"]["alt_stat_name"].as_str());
    let names = names.filter(|name| name.starts_with("app/")).collect::<BTreeSet<_>>();
    Ok(Vec::from_iter(names).join(" "))
}
