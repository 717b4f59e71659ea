//! Every rule of the control plane's roles: without it the message names what is missing, nothing is taken from the mesh,
//! and with it everything goes on by itself.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use weft_e2e::kube::{Kubernetes, Replica, endpoint_slice, meshed_pod, namespace, service};
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::{account, file, finish, install, tail};

const PATIENCE: Duration = Duration::from_secs(60);

/// What is read: each holds up nothing but itself.
pub(crate) const READ: [&str; 13] = [
    "namespaces",
    "pods",
    "services",
    "endpointslices.discovery.k8s.io",
    "trafficsplits.split.smi-spec.io",
    "httproutegroups.specs.smi-spec.io",
    "tcproutes.specs.smi-spec.io",
    "udproutes.specs.smi-spec.io",
    "traffictargets.access.smi-spec.io",
    "trafficfaults.weft.dev",
    "trafficpolicies.weft.dev",
    "meshconfigs.weft.dev",
    "egresses.weft.dev",
];

#[test]
fn each_right_is_missed_by_name_and_taken_up_again() {
    let mut kubernetes = Kubernetes::start().expect("an API server");
    let mut rows = Scenarios::of("rights", "none");
    let kubeconfig = install(&kubernetes).expect("installed");
    shop(&kubernetes).expect("a shop");
    let mut replica = Replica::start(kubernetes.directory(), "one", &kubeconfig, &[]).expect("started");
    replica.wait_until_ready().expect("ready");
    replica.wait_for_log("this replica holds the lease").expect("the lease");
    let snapshot = |replica: &Replica| anyhow::Ok(replica.inspection()?.convergence()?.snapshot);
    let before = until("the shop is served", PATIENCE, || {
        let first = snapshot(&replica)?;
        Ok(if first > 0 { Ok(first) } else { Err("nothing".to_owned()) })
    })
    .expect("a snapshot");
    let [cluster, own] = [roles("ClusterRole"), roles("Role")];

    // All are taken away. Watches that have begun go on; with another API server they begin anew.
    kubernetes.put(&with_rules(&cluster, &[])).expect("no rights");
    kubernetes.put(&with_rules(&own, &[])).expect("no rights");
    kubernetes.kill_server().expect("killed");
    kubernetes.start_server().expect("started");
    let all = until("every resource is named", PATIENCE, || {
        let named = named(&replica)?;
        let missing: Vec<_> = READ.iter().filter(|resource| !named.contains(**resource)).collect();
        Ok(if missing.is_empty() { Ok(named) } else { Err(format!("not named: {missing:?}")) })
    });
    rows.holds(
        "kube-rbac: without any rule, all that cannot be read is named, and nothing is taken from the mesh",
        "13 named; ready, the same snapshot",
        || {
            let all = all?;
            let (ready, after) = (replica.readyz(), snapshot(&replica)?);
            ensure!(ready == "ready\n", "{ready}");
            Ok((after == before, format!("{} named; ready, snapshots {before}, {after}", all.len())))
        },
    );
    rows.holds(
        "kube-rbac: leases: without the rule nothing is done that only one may do; with it, it is",
        "may not …; held again",
        || {
            let said = until("it is said", PATIENCE, || said(&replica, "Lease weft-system/weft cannot be used"))?;
            ensure!(said.contains("leases.coordination.k8s.io"), "{said}");
            kubernetes.put(&with_rules(&own, &rules(&own, "leases")))?;
            until("the lease is held", PATIENCE, || {
                Ok(match said_now(&replica, "Lease weft-system/weft cannot be used")? {
                    None => Ok(()),
                    Some(said) => Err(said),
                })
            })?;
            Ok((true, said))
        },
    );
    rows.holds(
        "kube-rbac: secrets: without the rule the root in memory is used; with it, the Secret is looked at again",
        "may not get …",
        || mended(&replica, "Secret weft-system/weft-ca", "secrets", || kubernetes.put(&own)),
    );
    rows.holds(
        "kube-rbac: configmaps: without the rule new namespaces wait for the root; with it, they have it",
        "may not list …",
        || {
            let held = rules(&cluster, "configmaps");
            mended(&replica, "ConfigMaps weft-root", "configmaps", || kubernetes.put(&with_rules(&cluster, &held)))
        },
    );
    // One after the other is given back.
    let mut given = rules(&cluster, "configmaps");
    for resource in READ {
        let name =
            format!("kube-rbac: {resource}: named while the rule is missing; read again with it, and only with it");
        rows.holds(&name, "may not …; over", || {
            let said = until("it is named", PATIENCE, || said(&replica, &format!(" {resource}")))?;
            let plural = resource.split('.').next().unwrap_or_default();
            given.push(only(&cluster, plural));
            kubernetes.put(&with_rules(&cluster, &given))?;
            until("it is over", PATIENCE, || {
                let named = named(&replica)?;
                Ok(if named.contains(resource) { Err(format!("{named:?}")) } else { Ok(()) })
            })?;
            Ok((said.contains("may not"), said))
        });
    }
    rows.holds("kube-rbac: with all rules back nothing is missed, and what changes is read", "a new Service", || {
        kubernetes.apply(&file("rbac.yaml"))?;
        kubernetes.put(&service("shop", "late", 80))?;
        until("it is read", PATIENCE, || {
            let (now, named) = (snapshot(&replica)?, named(&replica)?);
            Ok(if now > before && named.is_empty() { Ok(()) } else { Err(format!("snapshot {now}, {named:?}")) })
        })?;
        Ok((replica.runs(), "a new Service".to_owned()))
    });
    written(&kubernetes, &replica, &mut rows);
    finish(rows, || tail(&replica.log()));
}

/// What only the holder of the Lease writes, and nobody reads: rules that are not there at first, and are given one by one.
fn written(kubernetes: &Kubernetes, replica: &Replica, rows: &mut Scenarios) {
    let group = "admissionregistration.k8s.io";
    let [cluster, own] = [roles("ClusterRole"), roles("Role")];
    let rule = |group: &str, resource: &str, name: &str, verb: &str| json!({"apiGroups": [group], "resources": [resource], "resourceNames": [name], "verbs": ["get", verb]});
    let secret = rule("", "secrets", "weft-webhook-tls", "update");
    let injector = rule(group, "mutatingwebhookconfigurations", "weft-injector", "patch");
    let validator = rule(group, "validatingwebhookconfigurations", "weft-validator", "patch");
    for (role, of, rule) in [
        (&own, "Secret weft-system/weft-webhook-tls", secret),
        (&cluster, "MutatingWebhookConfiguration weft-injector", injector),
        (&cluster, "ValidatingWebhookConfiguration weft-validator", validator),
    ] {
        let resource = rule["resources"][0].as_str().unwrap_or_default().to_owned();
        let name = format!("kube-rbac: {resource} of the webhooks: named while the rule is missing, and over with it");
        rows.holds(&name, "may not get …; over", || {
            let mut rules = role["rules"].as_array().cloned().unwrap_or_default();
            rules.push(rule);
            mended(replica, of, &resource, || kubernetes.put(&with_rules(role, &rules)))
        });
    }
    rows.holds(
        "kube-rbac: events: named while the rule is missing; what still holds is written with it",
        "1 event",
        || {
            let rules = cluster["rules"].as_array().into_iter().flatten().filter(|rule| !has(rule, "events"));
            kubernetes.put(&with_rules(&cluster, &rules.cloned().collect::<Vec<_>>()))?;
            kubernetes.put(&json!({
                "apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy",
                "metadata": {"namespace": "shop", "name": "broken"},
                "spec": {"targetRefs": [{"kind": "Service", "name": "catalog"}], "timeouts": {"request": "5"}},
            }))?;
            let (held, line) = mended(replica, "events of objects", "events", || kubernetes.put(&cluster))?;
            let events = until("it is written", PATIENCE, || {
                let list = kubernetes.get("v1", "events", "shop", "")?.unwrap_or_default();
                let all = list["items"].as_array().into_iter().flatten();
                let count = all.filter(|event| event["involvedObject"]["name"] == "broken").count();
                Ok(if count > 0 { Ok(count) } else { Err("none".to_owned()) })
            })?;
            Ok((held && events == 1, format!("{events} event; {line}")))
        },
    );
}

fn shop(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    kubernetes.put(&namespace("shop"))?;
    kubernetes.put(&account("shop", "catalog"))?;
    kubernetes.put(&service("shop", "catalog", 80))?;
    kubernetes.put(&meshed_pod("shop", "catalog-1", "catalog", "10.244.0.31"))?;
    kubernetes.put(&endpoint_slice("shop", "catalog", &[("catalog-1", "10.244.0.31")]))
}

/// The control plane's role of this kind.
fn roles(kind: &str) -> Value {
    let documents = file("rbac.yaml");
    let role =
        documents.split("\n---\n").find(|document| document.contains(&format!("kind: {kind}\n"))).expect("a role");
    serde_saphyr::from_str(role).expect("YAML")
}

fn with_rules(role: &Value, rules: &[Value]) -> Value {
    let mut role = role.clone();
    role["rules"] = json!(rules);
    if rules.is_empty() {
        role["rules"] = json!([{"apiGroups": ["none"], "resources": ["nothing"], "verbs": ["get"]}]);
    }
    role
}

fn has(rule: &Value, resource: &str) -> bool {
    rule["resources"].as_array().is_some_and(|resources| resources.iter().any(|named| named == resource))
}

fn rules(role: &Value, resource: &str) -> Vec<Value> {
    role["rules"].as_array().into_iter().flatten().filter(|rule| has(rule, resource)).cloned().collect()
}

/// The rule for this resource alone.
fn only(role: &Value, resource: &str) -> Value {
    let mut rule = rules(role, resource).into_iter().next().expect("a rule");
    rule["resources"] = json!([resource]);
    rule
}

/// What the diagnostics say, one a line.
fn lines(replica: &Replica) -> anyhow::Result<Vec<String>> {
    let found = replica.inspection()?.diagnostics()?;
    Ok(found.into_iter().map(|found| format!("{}; {}", found.reason, found.help)).collect())
}

fn said_now(replica: &Replica, text: &str) -> anyhow::Result<Option<String>> {
    Ok(lines(replica)?.into_iter().find(|line| line.contains("may not") && line.contains(text)))
}

fn said(replica: &Replica, text: &str) -> anyhow::Result<Result<String, String>> {
    Ok(said_now(replica, text)?.ok_or(lines(replica)?.join("\n")))
}

/// The resources that are said not to be readable.
fn named(replica: &Replica) -> anyhow::Result<BTreeSet<&'static str>> {
    Ok(unreadable(&lines(replica)?))
}

/// Those that these lines say not to be readable.
pub(crate) fn unreadable(lines: &[String]) -> BTreeSet<&'static str> {
    let named = |resource: &str| {
        ["list", "watch"].iter().any(|verb| {
            let begins = format!("the control plane may not {verb} {resource}:");
            lines.iter().any(|line| line.starts_with(&begins))
        })
    };
    READ.into_iter().filter(|resource| named(resource)).collect()
}

/// It is said with the resource's name while the rule is missing, and is over when `give` has given it back.
fn mended(
    replica: &Replica,
    of: &str,
    resource: &str,
    give: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<(bool, String)> {
    let line = until("it is said", PATIENCE, || said(replica, of))?;
    give()?;
    until("it is over", PATIENCE, || {
        Ok(match said_now(replica, of)? {
            None => Ok(()),
            Some(line) => Err(line),
        })
    })?;
    Ok((line.contains(resource), line))
}
