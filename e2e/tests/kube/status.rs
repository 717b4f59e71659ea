//! What became of objects, where people look for it: conditions and events, as `kubectl describe` shows them.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use weft_e2e::kube::{Kubernetes, Replica, meshed_pod, namespace, service};
use weft_e2e::mesh::repository;
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::{account, file, finish, install, role_without, tail};

const PATIENCE: Duration = Duration::from_secs(60);
/// Objects that break at once.
const FLOOD: usize = 90;

#[test]
fn objects_say_what_became_of_them() {
    let kubernetes = Kubernetes::start().expect("an API server");
    let mut rows = Scenarios::of("status", "none");
    let kubeconfig = install(&kubernetes).expect("installed");
    shop(&kubernetes).expect("a shop");
    let start = |name: &str| {
        let mut replica = Replica::start(kubernetes.directory(), name, &kubeconfig, &[]).expect("started");
        replica.wait_until_ready().expect("ready");
        replica
    };
    let one = start("one");
    one.wait_for_log("this replica holds the lease").expect("the lease");
    let two = start("two");

    rows.holds(
        "kube-status: an object that is not used says so, with the field and what to do",
        "False Rejected, of its generation",
        || {
            kubernetes.put(&policy("broken", "5"))?;
            let said = condition(&kubernetes, "broken", "Accepted", "False Rejected")?;
            let delivered = condition(&kubernetes, "broken", "Delivered", "False NotAccepted")?;
            let right = said.contains("spec.timeouts.request: ") && said.contains("generation 1");
            Ok((right && delivered.contains("the last good one stays"), said))
        },
    );
    rows.holds("kube-status: and has an event, which kubectl describe shows", "Warning  Rejected … weft", || {
        let event = event(&kubernetes, "broken")?;
        let described = kubectl(&kubernetes, &["describe", "trafficpolicies.weft.dev", "-n", "shop", "broken"])?;
        let line = described.lines().find(|line| line.contains("Warning") && line.contains("Rejected"));
        let line = line.with_context(|| described.clone())?;
        Ok((event["count"] == 1 && line.contains("weft") && line.contains("spec.timeouts.request"), line.to_owned()))
    });
    rows.holds("kube-status: mended, the conditions turn", "True Accepted, True, of generation 2", || {
        let before = get(&kubernetes, "broken")?["status"]["conditions"][0]["lastTransitionTime"].clone();
        kubernetes.put(&policy("broken", "5s"))?;
        let said = condition(&kubernetes, "broken", "Accepted", "True Accepted")?;
        let delivered = condition(&kubernetes, "broken", "Delivered", "True")?;
        let now = get(&kubernetes, "broken")?["status"]["observedGeneration"].clone();
        let all = said.contains("generation 2") && delivered.contains("generation 2") && now == 2 && before.is_string();
        Ok((all, format!("{said}; {delivered}")))
    });
    rows.holds("kube-status: a spec is never touched, and what holds is not written again", "the same version", || {
        let before = get(&kubernetes, "broken")?;
        // Another object goes through the same rounds.
        kubernetes.put(&policy("other", "1s"))?;
        condition(&kubernetes, "other", "Delivered", "True")?;
        let after = get(&kubernetes, "broken")?;
        let managers = after["metadata"]["managedFields"].as_array().context("managers")?;
        let ours = managers.iter().filter(|entry| entry["manager"] == "weft-status");
        let fields: Vec<_> = ours.flat_map(|entry| entry["fieldsV1"].as_object()).flat_map(|f| f.keys()).collect();
        let same = before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"];
        Ok((same && fields == ["f:status"] && after["spec"] == policy("broken", "5s")["spec"], format!("{fields:?}")))
    });
    rows.holds("kube-status: conditions that somebody removed are put back", "True Accepted", || {
        kubernetes.patch(
            ("weft.dev/v1alpha1", "trafficpolicies", "shop", "other/status"),
            &json!({"status": {"conditions": []}}),
        )?;
        let said = condition(&kubernetes, "other", "Accepted", "True Accepted")?;
        Ok((true, said))
    });
    rows.holds("kube-events: a kind without a status has an event alone", "an event, no status", || {
        kubernetes.put(&json!({
            "apiVersion": "split.smi-spec.io/v1alpha4", "kind": "TrafficSplit",
            "metadata": {"namespace": "shop", "name": "negative"},
            "spec": {"service": "catalog", "backends": [{"service": "catalog", "weight": -1}]},
        }))?;
        let event = event(&kubernetes, "negative")?;
        let split = kubernetes.get("split.smi-spec.io/v1alpha4", "trafficsplits", "shop", "negative")?;
        let message = event["message"].as_str().unwrap_or_default().to_owned();
        Ok((
            split.context("the split")?.get("status").is_none() && message.contains("spec.backends[0].weight"),
            message,
        ))
    });
    rows.holds("kube-events: so has a pod", "Pod, PartlyUsed", || {
        let mut pod = meshed_pod("shop", "cart-2", "catalog", "10.244.0.22");
        pod["metadata"]["annotations"] = json!({"weft.dev/upstreams": "no such form"});
        kubernetes.put(&pod)?;
        let event = event(&kubernetes, "cart-2")?;
        let uid = kubernetes.get("v1", "pods", "shop", "cart-2")?.context("the pod")?["metadata"]["uid"].clone();
        let of = &event["involvedObject"];
        Ok((of["kind"] == "Pod" && of["uid"] == uid, format!("{} {}", event["reason"], event["message"])))
    });
    rows.holds("kube-events: what comes again is counted, not written again", "1 event, count 2", || {
        kubernetes.put(&policy("again", "7"))?;
        event(&kubernetes, "again")?;
        kubernetes.put(&policy("again", "7s"))?;
        condition(&kubernetes, "again", "Accepted", "True")?;
        kubernetes.put(&policy("again", "7"))?;
        until("it is counted", PATIENCE, || {
            let events = events(&kubernetes, "again")?;
            let counts: Vec<_> = events.iter().map(|event| event["count"].to_string()).collect();
            Ok(if counts == ["2"] { Ok(()) } else { Err(format!("{counts:?}")) })
        })?;
        Ok((true, "1 event, count 2".to_owned()))
    });
    rows.holds("kube-status: a replica without the lease writes nothing", "all by one", || {
        let by =
            all_events(&kubernetes)?.iter().map(|event| event["reportingInstance"].to_string()).collect::<Vec<_>>();
        let quiet = !two.log().contains("this replica holds the lease");
        Ok((quiet && by.len() >= 4 && by.iter().all(|by| by == "\"one\""), format!("{by:?}")))
    });
    rows.holds(
        "kube-status: the next holder goes on, and repeats nothing",
        "by two; the counts are what they were",
        || {
            let counts = |kubernetes: &Kubernetes| {
                let all = all_events(kubernetes)?;
                let of = |event: &Value| format!("{} {}", event["metadata"]["name"], event["count"]);
                anyhow::Ok(all.iter().map(of).collect::<Vec<_>>())
            };
            let before = counts(&kubernetes)?;
            one.stop()?;
            two.wait_for_log("this replica holds the lease")?;
            kubernetes.put(&policy("next", "9"))?;
            let event = event(&kubernetes, "next")?;
            let after = counts(&kubernetes)?;
            let kept = before.iter().all(|event| after.contains(event)) && after.len() == before.len() + 1;
            Ok((kept && event["reportingInstance"] == "two", format!("{} events, then {}", before.len(), after.len())))
        },
    );
    rows.holds(
        "kube-rbac: without the right to write status the log names it, and it goes on when it is there",
        "may not patch … trafficpolicies/status",
        || {
            kubernetes.put(&role_without("trafficpolicies/status"))?;
            kubernetes.put(&policy("next", "10"))?;
            let said = until("it is said", PATIENCE, || {
                let log = two.log();
                let line = log.lines().find(|line| line.contains("may not patch") && line.contains("/status"));
                Ok(line.map(str::to_owned).ok_or_else(|| tail(&log)))
            })?;
            kubernetes.apply(&file("rbac.yaml"))?;
            kubernetes.put(&policy("next", "9s"))?;
            condition(&kubernetes, "next", "Accepted", "True")?;
            Ok((said.contains("trafficpolicies/status"), said))
        },
    );
    rows.holds(
        "kube-status: a flood is limited: conditions 50 and then 10 a second, events 20 and then 2 a second",
        "every condition, and few events",
        || {
            let before = all_events(&kubernetes)?.len();
            let began = Instant::now();
            (0..FLOOD).try_for_each(|number| kubernetes.put(&policy(&format!("flood-{number}"), "5")))?;
            until("every one says so", PATIENCE, || {
                let all = kubernetes.get("weft.dev/v1alpha1", "trafficpolicies", "shop", "")?.context("a list")?;
                let told = all["items"].as_array().into_iter().flatten().filter(|policy| {
                    policy["status"]["conditions"][0]["reason"] == "Rejected"
                        && policy["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("flood-"))
                });
                let told = told.count();
                Ok(if told == FLOOD { Ok(()) } else { Err(format!("{told} of {FLOOD}")) })
            })?;
            let (events, took) = (all_events(&kubernetes)?.len() - before, began.elapsed().as_secs_f64());
            let most = 20.0 + 2.0 * (took + 2.0);
            let few = (events as f64) < most && (10..FLOOD).contains(&events);
            // 40 beyond the first 50, at 10 a second.
            Ok((few && took > 3.0, format!("{FLOOD} conditions and {events} events in {took:.1} s")))
        },
    );
    finish(rows, || tail(&two.log()));
}

fn shop(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    kubernetes.put(&namespace("shop"))?;
    kubernetes.put(&account("shop", "catalog"))?;
    kubernetes.put(&service("shop", "catalog", 80))?;
    // Each policy is for a Service of its own.
    ["broken", "other", "again", "next"]
        .iter()
        .try_for_each(|name| kubernetes.put(&service("shop", &format!("of-{name}"), 80)))
}

fn policy(name: &str, timeout: &str) -> Value {
    json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"namespace": "shop", "name": name},
        "spec": {"targetRefs": [{"kind": "Service", "name": format!("of-{name}")}], "timeouts": {"request": timeout}},
    })
}

fn get(kubernetes: &Kubernetes, policy: &str) -> anyhow::Result<Value> {
    kubernetes.get("weft.dev/v1alpha1", "trafficpolicies", "shop", policy)?.context("the policy")
}

/// Waits until a condition of a TrafficPolicy begins like this: `STATUS REASON`.
pub(crate) fn condition(kubernetes: &Kubernetes, policy: &str, kind: &str, begins: &str) -> anyhow::Result<String> {
    until(&format!("{policy}: {kind} {begins}"), PATIENCE, || {
        let found = get(kubernetes, policy)?;
        let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let said = conditions.iter().find(|condition| condition["type"] == kind).map(|condition| {
            let [status, reason, message] = ["status", "reason", "message"].map(|field| text(&condition[field]));
            format!("{status} {reason} of generation {}: {message}", condition["observedGeneration"])
        });
        let said = said.unwrap_or_default();
        Ok(if said.starts_with(begins) { Ok(said) } else { Err(found["status"].to_string()) })
    })
}

/// Waits until `Delivered` of a TrafficPolicy's newest generation begins like this; what it says.
pub(crate) fn delivered(kubernetes: &Kubernetes, policy: &str, begins: &str) -> anyhow::Result<String> {
    let generation = get(kubernetes, policy)?["metadata"]["generation"].clone();
    condition(kubernetes, policy, "Delivered", &format!("{begins} of generation {generation}: "))
}

fn all_events(kubernetes: &Kubernetes) -> anyhow::Result<Vec<Value>> {
    let list = kubernetes.get("v1", "events", "shop", "")?.context("a list")?;
    let all = list["items"].as_array().into_iter().flatten();
    Ok(all.filter(|event| event["source"]["component"] == "weft").cloned().collect())
}

fn events(kubernetes: &Kubernetes, object: &str) -> anyhow::Result<Vec<Value>> {
    Ok(all_events(kubernetes)?.into_iter().filter(|event| event["involvedObject"]["name"] == object).collect())
}

/// Waits for the event of an object.
fn event(kubernetes: &Kubernetes, object: &str) -> anyhow::Result<Value> {
    until(&format!("an event of {object}"), PATIENCE, || {
        Ok(events(kubernetes, object)?.into_iter().next().ok_or_else(|| "none".to_owned()))
    })
}

fn kubectl(kubernetes: &Kubernetes, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(repository().join("target/kubernetes/kubernetes"));
    command
        .arg("kubectl")
        .args(arguments)
        .env("KUBECONFIG", kubernetes.kubeconfig())
        .env("HOME", kubernetes.directory());
    let done = command.output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
