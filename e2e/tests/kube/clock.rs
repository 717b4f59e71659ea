//! Clocks that are wrong: of the control plane, whose certificates others judge by theirs, and of sidecars.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::fmt::rfc2822;
use serde_json::{Value, json};
use weft_e2e::kube::{Clock, Kubernetes, PATIENCE, Replica, namespace};
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::faults::{said, under_load, wait_until_unsaid};
use crate::ha::{SIDECARS, holder, settled};
use crate::installed::{CONTROL_PLANE, FRONTEND, Installed, SYSTEM, WEBHOOK};
use crate::root::{handshake, root_of};
use crate::{finish, install, tail};

const MINUTE: i64 = 60;

/// One replica of two goes by a clock that is 5 minutes off, and for a while it is the only one.
pub(crate) fn of_replicas(installed: &Installed, rows: &mut Scenarios) {
    for (ahead, way) in [(5 * MINUTE, "ahead"), (-5 * MINUTE, "behind")] {
        rows.holds(
            &format!("kube-clock: a replica whose clock is 5 minutes {way} serves all, under load"),
            "no failed request; said; its certificates are believed by sidecars and the API server; the Lease is its",
            || {
                under_load(installed, || {
                    let [wrong, right] = <[String; 2]>::try_from(installed.node.ready(SYSTEM, CONTROL_PLANE))
                        .map_err(|pods| anyhow::anyhow!("two replicas, not {pods:?}"))?;
                    let (wrong_pod, right_pod) = (format!("{SYSTEM}/{wrong}"), format!("{SYSTEM}/{right}"));
                    installed.node.set_clock(&wrong_pod, ahead)?;
                    installed.node.stop(&wrong_pod, "weft")?;
                    all_at(installed, &right)?;
                    installed.node.release(&wrong_pod)?;
                    installed.node.wait_for(SYSTEM, CONTROL_PLANE, 2)?;
                    installed.node.stop(&right_pod, "weft")?;
                    all_at(installed, &wrong)?;
                    let since = certificate_since(installed)?;
                    let dated = ahead / MINUTE - 15;
                    ensure!((since - dated).abs() <= 1, "the certificate is valid since {since} min, not {dated}");
                    until("it holds the Lease", PATIENCE, || {
                        let holder = holder(installed)?;
                        Ok(if holder == wrong { Ok(()) } else { Err(holder) })
                    })?;
                    new_certificate_of_webhooks(installed)?;
                    let line = until("it is said", PATIENCE, || {
                        let lines = said(installed, &wrong)?;
                        let line = lines.iter().find(|line| line.starts_with("the clock of this replica is "));
                        Ok(line.cloned().ok_or_else(|| lines.join("\n")))
                    })?;
                    // A new pod: its token, its injection and its certificate go by this replica alone.
                    scale(installed, 2)?;
                    installed.node.wait_for("shop", ("app", "catalog"), 3)?;
                    scale(installed, 1)?;
                    installed.node.wait_for("shop", ("app", "catalog"), 2)?;
                    installed.node.release(&right_pod)?;
                    let both = installed.node.wait_for(SYSTEM, CONTROL_PLANE, 2)?;
                    until("all sidecars are connected", PATIENCE, || settled(installed, &both))?;
                    installed.node.set_clock(&wrong_pod, 0)?;
                    wait_until_unsaid(installed, "the clock of this replica is ")?;
                    Ok(format!("certificates are valid since {} min before; {line}", -since))
                })
            },
        );
    }
}

/// Both ends of a call go by clocks that are 5 minutes off, in opposite directions.
pub(crate) fn of_sidecars(installed: &Installed, rows: &mut Scenarios) {
    let expected = "no failed request; both know each other";
    rows.holds(
        "kube-clock: a sidecar 5 minutes ahead calls one 5 minutes behind, and the other way round",
        expected,
        || {
            let mut seen = Vec::new();
            for (caller, callee) in [(5, -5), (-5, 5), (0, 0)] {
                for (app, minutes) in [("frontend", caller), ("catalog", callee)] {
                    let pods = installed.node.ready("shop", ("app", app));
                    for pod in pods.iter().map(|pod| format!("shop/{pod}")) {
                        installed.node.set_clock(&pod, minutes * MINUTE)?;
                        installed.node.kill(&pod, "weft-proxy", true)?;
                    }
                    until("they are down", PATIENCE, || {
                        let up = installed.node.ready("shop", ("app", app));
                        Ok(if up.is_empty() { Ok(()) } else { Err(format!("{up:?}")) })
                    })?;
                    pods.iter().try_for_each(|pod| installed.node.release(&format!("shop/{pod}")))?;
                }
                let replicas = installed.node.ready(SYSTEM, CONTROL_PLANE);
                for (app, count) in [("frontend", 1), ("catalog", 2)] {
                    installed.node.wait_for("shop", ("app", app), count)?;
                }
                until("all sidecars are connected", PATIENCE, || settled(installed, &replicas))?;
                // What is ready here is an endpoint there when the controllers and the control plane have come to it.
                until("a call is answered", PATIENCE, || {
                    let code = installed.node.code(FRONTEND, &["http://catalog/"])?;
                    Ok(if code == "200" { Ok(()) } else { Err(code) })
                })?;
                let off = clock_of(installed, "frontend")?;
                ensure!((off - caller).abs() <= 1, "its clock is {off} min ahead, not {caller}");
                let summary = installed.node.calls(FRONTEND, &["-n", "300", "-c", "6", "http://catalog/"])?;
                ensure!(summary.failed == 0, "{caller}, {callee} min: {}", summary.said());
                let answer = installed.answer(FRONTEND, &["http://catalog/"])?;
                let header = answer["headers"]["x-forwarded-client-cert"].as_str().unwrap_or("nobody").to_owned();
                ensure!(header.contains("By=spiffe://") && header.contains("URI=spiffe://"), "{header}");
                seen.push(format!("{caller} and {callee} min: {}", summary.said()));
            }
            Ok((true, seen.join("; ")))
        },
    );
}

#[test]
fn a_clock_that_is_an_hour_wrong_is_said_and_made_good() {
    let kubernetes = Kubernetes::start().expect("an API server");
    let mut rows = Scenarios::of("clock", "none");
    let kubeconfig = install(&kubernetes).expect("installed");
    kubernetes.put(&namespace("shop")).expect("a namespace");
    let clock = Clock::create(kubernetes.directory().join("clock")).expect("a clock");
    clock.set(60 * MINUTE).expect("an hour");
    let mut replica = Replica::start_by(&clock, kubernetes.directory(), "one", &kubeconfig).expect("started");
    let lines = |replica: &Replica| {
        let found = replica.inspection()?.diagnostics()?;
        anyhow::Ok(
            found
                .into_iter()
                .map(|found| found.reason)
                .filter(|said| said.starts_with("the clock"))
                .collect::<Vec<_>>(),
        )
    };
    rows.holds(
        "kube-clock: that a replica's clock is an hour wrong is said, by how much and which way",
        "60 min ahead",
        || {
            replica.wait_until_ready()?;
            let said =
                until("it is said", PATIENCE, || Ok(lines(&replica)?.pop().ok_or_else(|| "nothing".to_owned())))?;
            let held = said.contains("is 60 min ahead of") && said.contains("more than the 15 min");
            Ok((held, said))
        },
    );
    rows.holds(
        "kube-clock: who goes by another clock does not believe its certificate then, until it is set: by itself",
        "not believed; believed, by the same root",
        || {
            let root = root_of(&kubernetes, "shop")?;
            let refused = match handshake(&kubernetes, &replica, &root) {
                Err(error) => format!("{error:#}"),
                Ok(_) => String::new(),
            };
            ensure!(refused.contains("not valid yet"), "{refused:?}");
            clock.set(0)?;
            until("its certificate is believed", 2 * PATIENCE, || {
                Ok(handshake(&kubernetes, &replica, &root).map_err(|error| format!("{error:#}")))
            })?;
            until("nothing is said any more", PATIENCE, || Ok(lines(&replica)?.pop().map_or(Ok(()), Err)))?;
            Ok((replica.runs(), refused))
        },
    );
    finish(rows, || tail(&replica.log()));
}

/// Waits until one replica has all sidecars.
fn all_at(installed: &Installed, replica: &String) -> anyhow::Result<()> {
    until(&format!("all {SIDECARS} sidecars are at {replica}"), PATIENCE, || {
        settled(installed, std::slice::from_ref(replica))
    })
}

/// Since how many minutes the frontend's certificate is valid; less than 0: it was before now.
fn certificate_since(installed: &Installed) -> anyhow::Result<i64> {
    let certificates: Value = serde_json::from_str(&installed.node.admin(FRONTEND, "/certs")?)?;
    let all = certificates["certificates"].as_array().into_iter().flatten();
    let own = all.flat_map(|one| one["cert_chain"].as_array().into_iter().flatten()).find(|one| {
        one["subject_alt_names"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|name| name["uri"].as_str().is_some_and(|uri| uri.ends_with("/ns/shop/sa/frontend")))
    });
    let since: Timestamp = own.context("the certificate")?["valid_from"].as_str().context("valid_from")?.parse()?;
    Ok((since.as_second() - seconds(SystemTime::now())) / MINUTE)
}

/// By how many minutes the clock of a workload's sidecar is ahead, as it dates its own answers.
fn clock_of(installed: &Installed, workload: &str) -> anyhow::Result<i64> {
    let pod = installed.node.ready("shop", ("app", workload)).pop().context("a pod")?;
    let mut admin = installed.node.dial(&format!("shop/{pod}"), SocketAddr::from((Ipv4Addr::LOCALHOST, 15000)))?;
    admin.write_all(b"GET /ready HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    admin.read_to_string(&mut answer)?;
    let date = answer.lines().find_map(|line| line.strip_prefix("date: ")).context(answer.clone())?;
    Ok((rfc2822::parse(date)?.timestamp().as_second() - seconds(SystemTime::now())) / MINUTE)
}

fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or_default()
}

/// Has the holder of the Lease make another certificate for the webhooks, and waits until they serve with it.
fn new_certificate_of_webhooks(installed: &Installed) -> anyhow::Result<()> {
    let served = || {
        let pods = installed.node.pods(SYSTEM, WEBHOOK).into_iter();
        pods.map(|pod| {
            let log = installed.node.log_of(&format!("{SYSTEM}/{pod}"), "weft")?;
            Ok((pod, log.matches("serving with a new certificate").count()))
        })
        .collect::<anyhow::Result<Vec<_>>>()
    };
    let before = served()?;
    installed.kubernetes.delete("v1", "secrets", SYSTEM, "weft-webhook-tls")?;
    until("the webhooks serve with another certificate", PATIENCE, || {
        let now = served()?;
        let all = now.iter().zip(&before).all(|((_, now), (_, before))| now > before);
        Ok(if all { Ok(()) } else { Err(format!("{before:?}, {now:?}")) })
    })
}

fn scale(installed: &Installed, replicas: usize) -> anyhow::Result<()> {
    let patch = json!({"spec": {"replicas": replicas}});
    installed.kubernetes.patch(("apps/v1", "deployments", "shop", "catalog-v2"), &patch)
}
