//! What the control plane needs fails, one after the other, while pods call each other without a break: no request fails, it is
//! said what is wrong, and nobody has to mend more than the cause.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use weft::source::crds;
use weft_e2e::kube::{PATIENCE, meshed_pod};
use weft_e2e::mesh::pinned_version;
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::ha::{SIDECARS, inspection, settled, sidecars};
use crate::installed::{CONTROL_PLANE, FRONTEND, Installed, SYSTEM, WEBHOOK};
use crate::rights::{READ, unreadable};
use crate::status::condition;
use crate::tokens::{AUDIENCE, now, signed};
use crate::{clock, etcd, finish};

const RBAC: &str = "rbac.authorization.k8s.io/v1";
/// How long the API server is away.
const AWAY: Duration = Duration::from_mins(1);

/// What fails is beside Envoy, so one version shows it.
#[test]
fn traffic_goes_on_whatever_fails_beside_it() {
    let version = pinned_version("default").expect("a version");
    let mut installed = Installed::start(&version).unwrap_or_else(|error| panic!("{error:#}"));
    let mut rows = Scenarios::with("faults", &version, installed.node.traffic());
    secret(&installed, &mut rows);
    definition(&installed, &mut rows);
    webhooks(&installed, &mut rows);
    token(&installed, &mut rows);
    etcd::slow(&installed, &mut rows);
    clock::of_replicas(&installed, &mut rows);
    clock::of_sidecars(&installed, &mut rows);
    rights(&mut installed, &mut rows);
    api_server(&mut installed, &mut rows);
    let log = installed.node.log("shop") + &installed.node.log(SYSTEM);
    finish(rows, || log);
}

/// Holds when `fault`, under constant load, comes to what it says, and no request fails.
pub(crate) fn under_load(
    installed: &Installed,
    fault: impl FnOnce() -> anyhow::Result<String>,
) -> anyhow::Result<(bool, String)> {
    let load = installed.load()?;
    let said = fault();
    let summary = load.stop();
    // Why the fault did not come to what it should says more than how few calls there were then.
    let (said, summary) = (said?, summary?);
    Ok((summary.failed == 0, format!("{said}; {}", summary.said())))
}

/// What the replicas say is wrong, one a line.
pub(crate) fn said(installed: &Installed, replica: &str) -> anyhow::Result<Vec<String>> {
    let found = inspection(installed, replica)?.diagnostics()?;
    Ok(found.into_iter().map(|found| format!("{}; {}", found.reason, found.help)).collect())
}

/// Waits until one of the replicas, or each of them, says this.
pub(crate) fn wait_until_said(installed: &Installed, words: &str) -> anyhow::Result<String> {
    until(&format!("`{words}` is said"), PATIENCE, || {
        let mut all = Vec::new();
        for replica in installed.node.ready(SYSTEM, CONTROL_PLANE) {
            all.extend(said(installed, &replica)?);
        }
        Ok(all.iter().find(|line| line.contains(words)).cloned().ok_or_else(|| all.join("\n")))
    })
}

/// Waits until none of the replicas says this any more.
pub(crate) fn wait_until_unsaid(installed: &Installed, words: &str) -> anyhow::Result<()> {
    until(&format!("`{words}` is over"), PATIENCE, || {
        for replica in installed.node.ready(SYSTEM, CONTROL_PLANE) {
            if let Some(line) = said(installed, &replica)?.iter().find(|line| line.contains(words)) {
                return Ok(Err(line.clone()));
            }
        }
        Ok(Ok(()))
    })
}

/// Waits until a replica has logged a line with all of this.
fn wait_for_log(installed: &Installed, words: &[&str]) -> anyhow::Result<String> {
    until(&format!("{words:?} is logged"), PATIENCE, || {
        for replica in installed.node.pods(SYSTEM, CONTROL_PLANE) {
            let log = installed.node.log_of(&format!("{SYSTEM}/{replica}"), "weft")?;
            if let Some(line) = log.lines().find(|line| words.iter().all(|word| line.contains(word))) {
                return Ok(Ok(line.to_owned()));
            }
        }
        Ok(Err(String::new()))
    })
}

/// Has all calls of the catalog go to one of its versions, and waits until they do; how long that took.
pub(crate) fn turn_to(installed: &Installed, version: &str) -> anyhow::Result<String> {
    let began = Instant::now();
    let v2 = if version == "v2" { 100 } else { 0 };
    installed.split(100 - v2, v2)?;
    until(&format!("all calls go to {version}"), PATIENCE, || {
        let summary = installed.node.calls(FRONTEND, &["-n", "50", "-c", "5", "http://catalog/"])?;
        ensure!(summary.failed == 0, "{}", summary.said());
        let share = summary.share(&format!("catalog {version}"));
        Ok(if share > 99.9 { Ok(()) } else { Err(format!("{share:.0} %")) })
    })?;
    Ok(format!("a change was served after {:.1} s", began.elapsed().as_secs_f64()))
}

fn policy(timeout: &str) -> Value {
    json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"namespace": "shop", "name": "catalog"},
        "spec": {"targetRefs": [{"kind": "Service", "name": "catalog"}], "timeouts": {"request": timeout}},
    })
}

fn secret(installed: &Installed, rows: &mut Scenarios) {
    let expected = "no failed request; said; the same root";
    rows.holds("kube-fault: the Secret with the root is deleted under load", expected, || {
        under_load(installed, || {
            let root = || installed.kubernetes.get("v1", "secrets", SYSTEM, "weft-ca");
            let before = root()?.context("the Secret")?["data"].clone();
            installed.kubernetes.delete("v1", "secrets", SYSTEM, "weft-ca")?;
            let after = until("the Secret is back", PATIENCE, || Ok(root()?.ok_or_else(|| "none".to_owned())))?;
            ensure!(after["data"] == before, "another root");
            wait_for_log(installed, &["weft-ca", "it was gone, and was put back with the root that is in use"])
        })
    });
}

fn definition(installed: &Installed, rows: &mut Scenarios) {
    rows.holds(
        "kube-fault: a CustomResourceDefinition is deleted under load",
        "no failed request; no kind TrafficPolicy; taken up again",
        || {
            let name = "trafficpolicies.weft.dev";
            installed.kubernetes.put(&policy("10s"))?;
            condition(&installed.kubernetes, "catalog", "Accepted", "True Accepted")?;
            under_load(installed, || {
                installed.kubernetes.delete("apiextensions.k8s.io/v1", "customresourcedefinitions", "", name)?;
                let line = wait_until_said(installed, "has no kind TrafficPolicy")?;
                let mut all = crds::all().into_iter();
                let definition = all.find(|one| one.metadata.name.as_deref() == Some(name)).context(name)?;
                installed.kubernetes.put(&json!(definition))?;
                wait_until_unsaid(installed, "has no kind TrafficPolicy")?;
                until("the API server takes one", PATIENCE, || {
                    Ok(installed.kubernetes.put(&policy("10s")).map_err(|error| format!("{error:#}")))
                })?;
                let taken = condition(&installed.kubernetes, "catalog", "Accepted", "True Accepted")?;
                Ok(format!("{line}; {taken}"))
            })
        },
    );
}

fn webhooks(installed: &Installed, rows: &mut Scenarios) {
    rows.holds(
        "kube-fault: all webhooks are away under load",
        "no failed request; no pod without its sidecar; what is stored unchecked says so itself; made good by itself",
        || {
            let pods = installed.node.ready(SYSTEM, WEBHOOK);
            let (meshed, plain) =
                (meshed_pod("shop", "late", "catalog", ""), meshed_pod("plain", "late", "default", ""));
            under_load(installed, || {
                for pod in &pods {
                    installed.node.kill(&format!("{SYSTEM}/{pod}"), "weft", true)?;
                }
                let refused = until("a pod is refused", PATIENCE, || {
                    Ok(match installed.kubernetes.put(&without_a_node(&meshed)) {
                        // What follows repeats it as the answer's fields.
                        Err(error) => Ok(format!("{error:#}").split(" (Status ").next().unwrap_or_default().to_owned()),
                        Ok(()) => {
                            installed.kubernetes.remove(&meshed)?;
                            Err("it was made".to_owned())
                        }
                    })
                })?;
                ensure!(refused.contains("failed calling webhook \"") && refused.contains("weft.dev"), "{refused}");
                installed.kubernetes.put(&without_a_node(&plain))?;
                installed.kubernetes.remove(&plain)?;
                installed.kubernetes.put(&policy("5"))?;
                let unchecked = condition(&installed.kubernetes, "catalog", "Accepted", "False Rejected")?;
                let scaled = |replicas: usize| {
                    let patch = json!({"spec": {"replicas": replicas}});
                    installed.kubernetes.patch(("apps/v1", "deployments", "shop", "catalog-v2"), &patch)
                };
                scaled(2)?;
                for pod in &pods {
                    installed.node.release(&format!("{SYSTEM}/{pod}"))?;
                }
                installed.node.wait_for("shop", ("app", "catalog"), 3)?;
                installed.kubernetes.put(&policy("10s"))?;
                condition(&installed.kubernetes, "catalog", "Accepted", "True Accepted")?;
                scaled(1)?;
                installed.node.wait_for("shop", ("app", "catalog"), 2)?;
                Ok(format!("{refused}; {unchecked}"))
            })
        },
    );
}

/// As somebody would create it: nothing is said of where it runs.
fn without_a_node(pod: &Value) -> Value {
    let mut pod = pod.clone();
    pod["spec"]["containers"] = json!([{"name": "app", "image": "app"}]);
    for (part, field) in [("spec", "nodeName"), ("spec", "serviceAccountName")] {
        pod[part].as_object_mut().and_then(|part| part.remove(field));
    }
    pod.as_object_mut().and_then(|pod| pod.remove("status"));
    pod
}

fn token(installed: &Installed, rows: &mut Scenarios) {
    rows.holds(
        "kube-fault: the token of a sidecar has expired when it has to come back, under load",
        "no failed request; refused with the reason; back with the next token",
        || {
            let name = installed.node.ready("shop", ("app", "frontend")).pop().context("the frontend")?;
            let pod = format!("shop/{name}");
            let fresh = || installed.kubernetes.token("shop", "frontend", Some(AUDIENCE), Some(&name), 3_600);
            let old = signed(&installed.kubernetes, &fresh()?, |claims| claims["exp"] = json!(now() - 60))?;
            let result = under_load(installed, || {
                installed.node.replace_token(&pod, &old)?;
                let victim = replica_of(installed, &name)?;
                installed.node.kill(&format!("{SYSTEM}/{victim}"), "weft", true)?;
                let line = wait_for_log(installed, &["not authenticated", "token has expired"]);
                installed.node.release(&format!("{SYSTEM}/{victim}"))?;
                let replicas = installed.node.wait_for(SYSTEM, CONTROL_PLANE, 2)?;
                let connected = replicas.iter().map(|replica| sidecars(installed, replica));
                let connected = connected.sum::<anyhow::Result<usize>>()?;
                installed.node.replace_token(&pod, &fresh()?)?;
                until("all sidecars are connected", PATIENCE, || settled(installed, &replicas))?;
                let line = line?;
                ensure!(connected < SIDECARS, "all {connected} were connected");
                Ok(format!("{line}; then all {SIDECARS} were connected"))
            });
            installed.node.replace_token(&pod, &fresh()?)?;
            result
        },
    );
}

/// The replica that a pod's sidecar is connected to.
fn replica_of(installed: &Installed, pod: &str) -> anyhow::Result<String> {
    until(&format!("{pod} is connected"), PATIENCE, || {
        let mut all = Vec::new();
        for replica in installed.node.ready(SYSTEM, CONTROL_PLANE) {
            let Ok(proxies) = inspection(installed, &replica).and_then(|mut one| one.proxies()) else { continue };
            if proxies.iter().any(|proxy| (proxy.namespace.as_str(), proxy.pod.as_str()) == ("shop", pod)) {
                return Ok(Ok(replica));
            }
            all.extend(proxies);
        }
        Ok(Err(format!("{all:?}")))
    })
}

fn rights(installed: &mut Installed, rows: &mut Scenarios) {
    rows.holds(
        "kube-fault: every right of the control plane is taken away under load",
        "no failed request; each is named; all is well when they are back",
        || {
            let cluster = ["weft-xds", "weft-root", "weft-webhooks", "weft-status"];
            let roles: Vec<_> = cluster
                .map(|name| ("clusterroles", "", name))
                .into_iter()
                .chain([("roles", SYSTEM, "weft-ca")])
                .collect();
            let mut rules = Vec::new();
            for (plural, namespace, name) in &roles {
                let role = installed.kubernetes.get(RBAC, plural, namespace, name)?.context(*name)?;
                rules.push(role["rules"].clone());
            }
            let put = |installed: &Installed, rules: &[Value]| {
                roles.iter().zip(rules).try_for_each(|((plural, namespace, name), rules)| {
                    installed.kubernetes.patch((RBAC, plural, namespace, name), &json!({"rules": rules}))
                })
            };
            let load = installed.load()?;
            put(installed, &vec![json!([]); roles.len()])?;
            // Watches that have begun go on; with another API server they begin anew.
            installed.kubernetes.kill_server()?;
            installed.kubernetes.start_server()?;
            let named = until("each is named", PATIENCE, || {
                let replicas = installed.node.ready(SYSTEM, CONTROL_PLANE);
                let mut fewest = READ.len();
                for replica in &replicas {
                    let lines = said(installed, replica)?;
                    let lease = lines.iter().any(|line| line.starts_with("Lease weft-system/weft cannot be used"));
                    fewest = fewest.min(if lease { unreadable(&lines).len() } else { 0 });
                }
                let all = fewest == READ.len() && replicas.len() == 2;
                Ok(if all { Ok(fewest) } else { Err(format!("{fewest}, by {replicas:?}")) })
            });
            put(installed, &rules)?;
            let named = named?;
            wait_until_unsaid(installed, "may not")?;
            let after = turn_to(installed, "v1")?;
            let summary = load.stop()?;
            Ok((summary.failed == 0, format!("{named} kinds and the Lease by both; {after}; {}", summary.said())))
        },
    );
}

fn api_server(installed: &mut Installed, rows: &mut Scenarios) {
    rows.holds(
        "kube-fault: the API server is away for a minute under load",
        "no failed request; said; then a change is served",
        || {
            let load = installed.load()?;
            let away = Instant::now();
            installed.kubernetes.kill_server()?;
            let line = wait_until_said(installed, "the API server does not answer")?;
            let new = installed.node.calls(FRONTEND, &["-n", "200", "-c", "4", "http://catalog/"])?;
            std::thread::sleep(AWAY.saturating_sub(away.elapsed())); // this is the fault
            let ready = installed.node.ready(SYSTEM, CONTROL_PLANE).len();
            installed.kubernetes.start_server()?;
            wait_until_unsaid(installed, "the API server does not answer")?;
            let after = turn_to(installed, "v2")?;
            let summary = load.stop()?;
            let holds = summary.failed + new.failed == 0 && ready == 2;
            Ok((holds, format!("{line}; {ready} replicas ready; {after}; {}", summary.said())))
        },
    );
}
