//! Several replicas of the control plane under load: killed, replaced by a new version, and without an API server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use weft_e2e::inspection::Inspection;
use weft_e2e::kube::{PATIENCE, http};
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::installed::{CONTROL_PLANE, FRONTEND, Installed, SYSTEM};
use crate::status::delivered;

/// The pods of the shop with a sidecar.
pub(crate) const SIDECARS: usize = 3;
/// Between two changes of a split, for as long as something else is under way.
const CHANGES: Duration = Duration::from_millis(100);
/// What a reconnection may bring anew: a certificate, since its key is in the memory of one replica only.
const SECRET: &str = "secret";

/// Objects tell of the sidecars of both replicas, wherever these are.
pub(crate) fn counted(installed: &Installed, rows: &mut Scenarios) {
    rows.holds("kube-status: of two replicas, objects tell of the sidecars of both", "3/3 proxies", || {
        let replicas = installed.node.ready(SYSTEM, CONTROL_PLANE);
        let counts = replicas.iter().map(|replica| sidecars(installed, replica)).collect::<anyhow::Result<Vec<_>>>()?;
        let said = said(installed, 11)?;
        Ok((counts.iter().sum::<usize>() == SIDECARS && said.contains(&all()), format!("{counts:?}: {said}")))
    });
    rows.holds("kube-status: one of them is killed, and its sidecars are told of where they go", "3/3 proxies", || {
        let victim = replica_with_sidecars(installed)?;
        let survivor = the_other(installed, &victim)?;
        let moved = sidecars(installed, &victim)?;
        kill(installed, &victim, &survivor)?;
        let said = said(installed, 12)?;
        Ok((said.contains(&all()), format!("{moved} moved: {said}")))
    });
}

/// As a condition says that all sidecars have it.
fn all() -> String {
    format!(": {SIDECARS}/{SIDECARS} proxies, ")
}

/// Gives the policy of the catalog this time-out, and waits until it is delivered; what it says.
fn said(installed: &Installed, seconds: u32) -> anyhow::Result<String> {
    installed.kubernetes.put(&json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"namespace": "shop", "name": "catalog"},
        "spec": {"targetRefs": [{"kind": "Service", "name": "catalog"}], "timeouts": {"request": format!("{seconds}s")}},
    }))?;
    delivered(&installed.kubernetes, "catalog", "True Delivered")
}

pub(crate) fn killed(installed: &Installed, rows: &mut Scenarios) {
    rows.holds(
        "kube-ha: each replica in turn is killed under load, its sidecars go to the other one",
        "no failed request",
        || {
            let load = installed.load()?;
            let mut said = Vec::new();
            // The first one that has sidecars; then the other one, which has all of them by then.
            for _ in 0..2 {
                said.push(kill_one(installed)?);
            }
            let summary = load.stop()?;
            Ok((summary.failed == 0, format!("{}; {}", summary.said(), said.join("; "))))
        },
    );
    rows.holds("kube-ha: a first call just after the caller's replica was killed", "200", || {
        let victim = replica_with_sidecars(installed)?;
        let pod = format!("{SYSTEM}/{victim}");
        let moved = sidecars(installed, &victim)?;
        ensure!(moved == SIDECARS, "only {moved} sidecars are connected to it");
        installed.node.kill(&pod, "weft", true)?;
        let began = Instant::now();
        let code = installed.node.code(FRONTEND, &["http://catalog-v2/"])?;
        let took = began.elapsed().as_secs_f64();
        installed.node.release(&pod)?;
        installed.node.wait_for(SYSTEM, CONTROL_PLANE, 2)?;
        Ok((code == "200", format!("{code} after {took:.1} s")))
    });
    rows.holds("kube-ha: nothing unchanged was sent again", "0 resources but certificates", || {
        let load = installed.load()?;
        let victim = replica_with_sidecars(installed)?;
        let survivor = the_other(installed, &victim)?;
        let (before, seen) = (sent(installed, &survivor)?, updates(installed)?);
        let moved = sidecars(installed, &victim)?;
        kill(installed, &victim, &survivor)?;
        let after = sent(installed, &survivor)?;
        let again: BTreeMap<_, _> = after
            .into_iter()
            .map(|(kind, count)| (kind.clone(), count - before.get(&kind).copied().unwrap_or(0)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let updated = updates(installed)? != seen;
        let summary = load.stop()?;
        let certificates = again.get(SECRET).copied().unwrap_or(0);
        let holds = summary.failed == 0 && again.len() <= 1 && certificates <= moved as u64 && !updated;
        Ok((holds, format!("{moved} moved, sent {again:?}; clusters or listeners updated: {updated}")))
    });
    rows.holds(
        "kube-ha: another replica takes over the lease of one that was killed, and writes status",
        "another holder, True Delivered: 3/3 proxies",
        || {
            let holder = holder(installed)?;
            let pod = format!("{SYSTEM}/{holder}");
            installed.node.kill(&pod, "weft", true)?;
            let began = Instant::now();
            let next = until("another holder", PATIENCE, || {
                let next = self::holder(installed)?;
                Ok(if next == holder { Err(next) } else { Ok(next) })
            })?;
            let took = began.elapsed().as_secs_f64();
            let said = said(installed, 10)?;
            installed.node.release(&pod)?;
            installed.node.wait_for(SYSTEM, CONTROL_PLANE, 2)?;
            Ok((next != holder && said.contains(&all()), format!("{holder}, {next} after {took:.1} s; {said}")))
        },
    );
}

pub(crate) fn vanished(installed: &Installed, rows: &mut Scenarios) {
    rows.holds(
        "kube-ha: a replica that no word comes from any more is left under load",
        "no failed request, all sidecars at the other one within 30 s",
        || {
            let load = installed.load()?;
            let victim = replica_with_sidecars(installed)?;
            let survivor = the_other(installed, &victim)?;
            let moved = sidecars(installed, &victim)?;
            installed.node.cut_off(&format!("{SYSTEM}/{victim}"))?;
            let began = Instant::now();
            let left = until("all sidecars are at the other replica", PATIENCE, || {
                settled(installed, std::slice::from_ref(&survivor))
            });
            let took = began.elapsed().as_secs_f64();
            installed.node.connect_again()?;
            left?;
            installed.node.wait_for(SYSTEM, CONTROL_PLANE, 2)?;
            let summary = load.stop()?;
            Ok((summary.failed == 0 && took < 30.0, format!("{moved} moved within {took:.1} s; {}", summary.said())))
        },
    );
}

pub(crate) fn replaced(installed: &Installed, rows: &mut Scenarios) {
    rows.holds(
        "kube-ha: the Deployment is upgraded under load while a TrafficSplit changes",
        "no failed request, other replicas, all sidecars up to date",
        || {
            let before = installed.node.ready(SYSTEM, CONTROL_PLANE);
            let load = installed.load()?;
            installed.helm(&[
                "upgrade",
                "weft",
                "helm/weft",
                "--reuse-values",
                "--set",
                "controlPlane.logLevel=debug",
            ])?;
            let mut changes = 0;
            let after = until("other replicas", PATIENCE, || {
                changes += 1;
                installed.split(50 + changes % 2 * 40, 50 - changes % 2 * 40)?;
                let after = installed.node.ready(SYSTEM, CONTROL_PLANE);
                let all = installed.node.pods(SYSTEM, CONTROL_PLANE).len();
                let done = after.len() == 2 && all == 2 && after.iter().all(|pod| !before.contains(pod));
                std::thread::sleep(CHANGES); // paces the changes; what is waited for is `done`
                Ok(if done { Ok(after) } else { Err(format!("{after:?} of {all}")) })
            })?;
            until("all sidecars are connected", PATIENCE, || settled(installed, &after))?;
            installed.split(10, 90)?;
            until("all sidecars are up to date", PATIENCE, || settled(installed, &after))?;
            let summary = load.stop()?;
            let shifted = installed.node.calls(FRONTEND, &["-n", "1000", "-c", "10", "http://catalog/"])?;
            let share = shifted.share("catalog v2");
            let holds = summary.failed + shifted.failed == 0 && (share - 90.0).abs() <= 3.0;
            Ok((holds, format!("{}; {changes} changes; then {share:.1} % on v2 of 90", summary.said())))
        },
    );
}

/// The rights of the chart are enough for all that was seen.
pub(crate) fn forbidden(installed: &Installed, rows: &mut Scenarios) {
    rows.equal("kube-ha: nothing was forbidden to the replicas", "0 lines", {
        let replicas = installed.node.pods(SYSTEM, CONTROL_PLANE);
        let logs = replicas.iter().map(|pod| installed.node.log_of(&format!("{SYSTEM}/{pod}"), "weft"));
        logs.collect::<anyhow::Result<String>>().map(|log| {
            let lines: Vec<_> = log.lines().filter(|line| was_forbidden(line)).collect();
            let said: String = lines.iter().map(|line| format!("; {line}")).collect();
            format!("{} lines{said}", lines.len())
        })
    });
}

/// Whether a line tells of an answer 403: in the words of Weft for it, or of the API server.
fn was_forbidden(line: &str) -> bool {
    line.contains("the control plane may not ") || line.contains(" is forbidden: User ")
}

#[test]
fn only_what_was_forbidden_counts_as_that() {
    let server = r#"pods is forbidden: User "system:serviceaccount:weft-system:weft" cannot list resource "pods""#;
    assert!(was_forbidden(&format!("WARN the control plane may not list pods: {server}")) && was_forbidden(server));
    let conflict = "Secret weft-system/weft-webhook-tls: it was changed by another at the same time; the API server may not be able to ask the webhooks";
    assert!(!was_forbidden(conflict), "somebody else was faster");
}

pub(crate) fn without_an_api_server(installed: &mut Installed, rows: &mut Scenarios) {
    rows.holds("kube-ha: the API server is away under load, and a replica is killed", "no failed request", || {
        let load = installed.load()?;
        installed.kubernetes.kill_server()?;
        let victim = replica_with_sidecars(installed)?;
        // It comes back without an API server, and waits for it.
        installed.node.kill(&format!("{SYSTEM}/{victim}"), "weft", false)?;
        let new = installed.node.calls(FRONTEND, &["-n", "200", "-c", "4", "http://catalog/"])?;
        installed.kubernetes.start_server()?;
        let replicas = installed.node.wait_for(SYSTEM, CONTROL_PLANE, 2)?;
        until("all sidecars are connected", PATIENCE, || settled(installed, &replicas))?;
        let summary = load.stop()?;
        Ok((summary.failed + new.failed == 0, summary.said()))
    });
}

/// Kills a replica that has sidecars, and waits until the other one has all; what was seen.
fn kill_one(installed: &Installed) -> anyhow::Result<String> {
    let victim = replica_with_sidecars(installed)?;
    let survivor = the_other(installed, &victim)?;
    let moved = sidecars(installed, &victim)?;
    let took = kill(installed, &victim, &survivor)?;
    Ok(format!("{moved} sidecars moved within {took:.1} s"))
}

/// Kills `victim`, waits until all sidecars are at `survivor`, and has the victim back; how many seconds they took.
fn kill(installed: &Installed, victim: &str, survivor: &str) -> anyhow::Result<f64> {
    let pod = format!("{SYSTEM}/{victim}");
    installed.node.kill(&pod, "weft", true)?;
    let began = Instant::now();
    let moved = until("all sidecars are at the other replica", PATIENCE, || {
        settled(installed, std::slice::from_ref(&survivor.to_owned()))
    });
    let took = began.elapsed().as_secs_f64();
    installed.node.release(&pod)?;
    installed.node.wait_for(SYSTEM, CONTROL_PLANE, 2)?;
    moved.map(|()| took)
}

/// Whether these replicas have all sidecars, and each has answered everything.
pub(crate) fn settled(installed: &Installed, replicas: &[String]) -> anyhow::Result<Result<(), String>> {
    let (mut connected, mut behind) = (0, 0);
    for replica in replicas {
        let Ok(convergence) = inspection(installed, replica).and_then(|mut one| one.convergence()) else {
            return Ok(Err(format!("{replica} does not answer")));
        };
        connected += convergence.connected;
        behind += convergence.behind;
    }
    let all = connected as usize == SIDECARS && behind == 0;
    Ok(if all { Ok(()) } else { Err(format!("{connected} connected, {behind} behind")) })
}

fn admin(installed: &Installed, replica: &str) -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::from((installed.node.address(&format!("{SYSTEM}/{replica}"))?, 15014)))
}

pub(crate) fn inspection(installed: &Installed, replica: &str) -> anyhow::Result<Inspection> {
    Inspection::at(admin(installed, replica)?)
}

pub(crate) fn sidecars(installed: &Installed, replica: &str) -> anyhow::Result<usize> {
    Ok(inspection(installed, replica)?.proxies()?.len())
}

/// The replica that most sidecars are connected to.
pub(crate) fn replica_with_sidecars(installed: &Installed) -> anyhow::Result<String> {
    let mut most = (0, String::new());
    for replica in installed.node.ready(SYSTEM, CONTROL_PLANE) {
        let count = sidecars(installed, &replica)?;
        most = most.max((count, replica));
    }
    ensure!(most.0 > 0, "no sidecar is connected");
    Ok(most.1)
}

pub(crate) fn the_other(installed: &Installed, replica: &str) -> anyhow::Result<String> {
    let replicas = installed.node.ready(SYSTEM, CONTROL_PLANE);
    replicas.into_iter().find(|other| other != replica).context("another replica")
}

/// The pod that holds the lease: its identity there is `POD_START`.
pub(crate) fn holder(installed: &Installed) -> anyhow::Result<String> {
    let lease = installed.kubernetes.get("coordination.k8s.io/v1", "leases", SYSTEM, "weft")?.context("the Lease")?;
    let identity = lease["spec"]["holderIdentity"].as_str().context("a holder")?;
    Ok(identity.split_once('_').context("POD_START")?.0.to_owned())
}

/// What a replica itself says of deliveries.
pub(crate) fn deliveries(installed: &Installed, replica: &str, query: &str) -> anyhow::Result<serde_json::Value> {
    let text = http(admin(installed, replica)?, "GET", &format!("/deliveries?{query}"), "")?;
    serde_json::from_str(&text).context(text)
}

/// How many resources of each type a replica has sent.
fn sent(installed: &Installed, replica: &str) -> anyhow::Result<BTreeMap<String, u64>> {
    let metrics = http(admin(installed, replica)?, "GET", "/metrics", "")?;
    let lines = metrics.lines().filter_map(|line| line.strip_prefix("weft_xds_resources_sent_total{type=\""));
    let counts = lines.filter_map(|line| {
        let (kind, count) = line.split_once("\"} ")?;
        Some((kind.to_owned(), count.parse().ok()?))
    });
    Ok(counts.collect())
}

/// What the sidecars have been given anew, by their own count.
fn updates(installed: &Installed) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for app in ["frontend", "catalog"] {
        for pod in installed.node.ready("shop", ("app", app)) {
            let filter =
                "(cluster_added|cluster_modified|cluster_removed|listener_added|listener_modified|listener_removed)$";
            all.push(installed.node.admin(&format!("shop/{pod}"), &format!("/stats?filter={filter}"))?);
        }
    }
    Ok(all)
}
