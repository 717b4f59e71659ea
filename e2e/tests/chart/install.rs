//! `weft install` and `weft uninstall` on a real API server, with its controllers and a real Helm.
//!
//! There are no nodes: [`Kubelet`] does what one would, and runs the processes of the chart's Deployments here.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use weft::source::crds;
use weft_e2e::kube::{Kubernetes, Replica};
use weft_e2e::mesh::{repository, weft_beside_tests};
use weft_e2e::scenario::{KUBE_ROWS, Scenarios};
use weft_e2e::until;

use super::cluster::{Cluster, PATIENCE, Process, SYSTEM, init_containers, pod, split};

const REGISTRATION: &str = "admissionregistration.k8s.io/v1";
const DEFINITIONS: (&str, &str) = ("apiextensions.k8s.io/v1", "customresourcedefinitions");
/// Between two looks of a kubelet: the machine has other things to do.
const LOOK: Duration = Duration::from_millis(100);
/// What keeps a pod here until its process has ended.
const HELD: &str = "test.weft.dev/kubelet";

/// What a command came to.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ended {
    /// Whether it ended so and said all of this, and what it said.
    fn says(&self, code: i32, words: &[&str]) -> (bool, String) {
        let text = format!("{}\n{}", self.out.trim(), self.err.trim());
        let missing: Vec<_> = words.iter().filter(|words| !text.contains(**words)).collect();
        let held = self.code == Some(code) && missing.is_empty();
        (held, if held { words.join("; ") } else { format!("{:?}, without {missing:?}: {text}", self.code) })
    }

    fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("{}{}", self.out, self.err))
    }
}

fn weft(cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(weft_beside_tests()?);
    command
        .args(arguments)
        .env("KUBECONFIG", cluster.kubernetes.kubeconfig())
        .env("HOME", cluster.kubernetes.directory())
        .env("WEFT_HELM", repository().join("target/helm/helm"))
        // It names no cluster, and does not count.
        .env("HELM_KUBECONTEXT", "another")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

fn ended(mut command: Command) -> anyhow::Result<Ended> {
    let done = command.output()?;
    let [out, err] = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok(Ended { code: done.status.code(), out, err })
}

fn run(cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<Ended> {
    ended(weft(cluster, arguments)?)
}

/// Does what a node's does: makes pods ready whose process runs, and lets pods go whose process has ended.
#[derive(Default)]
struct Kubelet {
    replica: Option<Replica>,
    webhook: Option<Process>,
    /// What was there when a pod of the control plane was to end: the injector, and the webhooks' Secret.
    at_the_end: Option<(bool, bool)>,
}

impl Kubelet {
    /// Runs a command and is the kubelet until it ends.
    fn serve(&mut self, cluster: &Cluster, command: Command) -> anyhow::Result<Ended> {
        let mut command = command;
        let mut child = command.spawn()?;
        until("the command ends", PATIENCE * 4, || {
            if child.try_wait()?.is_some() {
                return Ok(Ok(()));
            }
            self.turn(cluster)?;
            std::thread::sleep(LOOK);
            Ok(Err("it still runs".to_owned()))
        })?;
        let done = child.wait_with_output()?;
        let [out, err] = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(Ended { code: done.status.code(), out, err })
    }

    fn turn(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        let kubernetes = &cluster.kubernetes;
        let pods = kubernetes.get("v1", "pods", SYSTEM, "")?.context("pods")?;
        for pod in pods["items"].as_array().into_iter().flatten() {
            let name = pod["metadata"]["name"].as_str().context("a name")?;
            let component = pod["metadata"]["labels"]["app.kubernetes.io/component"].as_str().unwrap_or_default();
            if pod["metadata"]["deletionTimestamp"].is_string() {
                self.end(cluster, component)?;
                kubernetes.patch(("v1", "pods", SYSTEM, name), &json!({"metadata": {"finalizers": null}}))?;
                continue;
            }
            let image = pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
            let status = if image.ends_with(":nowhere") {
                let waiting = json!({"reason": "ImagePullBackOff", "message": "there is no such image"});
                json!({"phase": "Pending", "containerStatuses": [{"name": "weft", "image": image, "imageID": "",
                    "ready": false, "restartCount": 0, "state": {"waiting": waiting}}]})
            } else if pod["status"]["phase"] == "Running" {
                continue;
            } else {
                self.start(cluster, component)?;
                json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
            };
            if image.ends_with(":nowhere") && pod["status"]["containerStatuses"].is_array() {
                continue;
            }
            kubernetes.patch(("v1", "pods", SYSTEM, name), &json!({"metadata": {"finalizers": [HELD]}}))?;
            kubernetes.patch(("v1", "pods", SYSTEM, &format!("{name}/status")), &json!({"status": status}))?;
        }
        Ok(())
    }

    fn start(&mut self, cluster: &Cluster, component: &str) -> anyhow::Result<()> {
        match component {
            "control-plane" if self.replica.is_none() => {
                let kubeconfig = cluster.kubernetes.kubeconfig_of(SYSTEM, "weft")?;
                let mut replica = Replica::start(cluster.kubernetes.directory(), "control-plane", &kubeconfig, &[])?;
                replica.wait_until_ready()?;
                self.replica = Some(replica);
            }
            "webhook" if self.webhook.is_none() => {
                // The control plane may not have been started yet: then at the next look.
                until("the webhooks have a certificate", PATIENCE, || {
                    self.start(cluster, "control-plane")?;
                    let found = cluster.kubernetes.get("v1", "secrets", SYSTEM, "weft-webhook-tls")?;
                    Ok(found.map(drop).ok_or_else(|| "there is none".to_owned()))
                })?;
                self.webhook = Some(cluster.webhook()?);
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, cluster: &Cluster, component: &str) -> anyhow::Result<()> {
        // A pod of an older version goes while others stay.
        if there(cluster, ("apps/v1", "deployments", SYSTEM, "weft"))? {
            return Ok(());
        }
        if component == "control-plane" && self.replica.is_some() {
            let injector = there(cluster, (REGISTRATION, "mutatingwebhookconfigurations", "", "weft-injector"))?;
            self.at_the_end = Some((injector, there(cluster, ("v1", "secrets", SYSTEM, "weft-webhook-tls"))?));
            self.replica = None;
        }
        if component == "webhook" {
            self.webhook = None;
        }
        Ok(())
    }
}

type Of<'a> = (&'a str, &'a str, &'a str, &'a str);

fn there(cluster: &Cluster, (api, plural, namespace, name): Of<'_>) -> anyhow::Result<bool> {
    Ok(cluster.kubernetes.get(api, plural, namespace, name)?.is_some())
}

/// Those of the objects that are there.
fn found(cluster: &Cluster, objects: &[Of<'_>]) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for (api, plural, namespace, name) in objects {
        if there(cluster, (api, plural, namespace, name))? {
            found.push(format!("{plural} {namespace}/{name}").replace(" /", " "));
        }
    }
    Ok(found)
}

/// What there is of Weft in an API server, whatever its name.
fn traces(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let mut objects = vec![
        ("v1", "namespaces", "", SYSTEM),
        ("apps/v1", "deployments", SYSTEM, "weft"),
        ("v1", "serviceaccounts", SYSTEM, "weft"),
        ("v1", "secrets", SYSTEM, "weft-ca"),
        ("v1", "secrets", SYSTEM, "weft-webhook-tls"),
        ("coordination.k8s.io/v1", "leases", SYSTEM, "weft"),
        ("v1", "configmaps", SYSTEM, "weft-root"),
        ("v1", "configmaps", SYSTEM, "weft-warm-sets"),
        ("v1", "configmaps", "shop", "weft-root"),
        ("v1", "configmaps", "quiet", "weft-root"),
        (REGISTRATION, "mutatingwebhookconfigurations", "", "weft-injector"),
        (REGISTRATION, "validatingwebhookconfigurations", "", "weft-validator"),
        ("rbac.authorization.k8s.io/v1", "clusterroles", "", "weft-xds"),
    ];
    let names: Vec<_> = crds::all().into_iter().filter_map(|definition| definition.metadata.name).collect();
    objects.extend(names.iter().map(|name| (DEFINITIONS.0, DEFINITIONS.1, "", name.as_str())));
    found(cluster, &objects)
}

/// The version of each definition and of each Deployment's spec.
fn versions(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, Value>> {
    let mut versions = BTreeMap::new();
    for name in crds::all().into_iter().filter_map(|definition| definition.metadata.name) {
        let found = cluster.kubernetes.get(DEFINITIONS.0, DEFINITIONS.1, "", &name)?.context(name.clone())?;
        versions.insert(name, found["metadata"]["generation"].clone());
    }
    for name in ["weft", "weft-webhook"] {
        let found = cluster.kubernetes.get("apps/v1", "deployments", SYSTEM, name)?.context(name)?;
        versions.insert(name.to_owned(), found["metadata"]["generation"].clone());
    }
    Ok(versions)
}

fn root(cluster: &Cluster) -> anyhow::Result<String> {
    let secret = cluster.kubernetes.get("v1", "secrets", SYSTEM, "weft-ca")?.context("the root")?;
    Ok(secret["data"]["tls.crt"].to_string())
}

fn step<'a>(report: &'a Value, name: &str) -> &'a str {
    let steps = report["steps"].as_array().into_iter().flatten();
    steps.filter(|step| step["step"] == name).find_map(|step| step["said"].as_str()).unwrap_or_default()
}

#[test]
fn weft_installs_itself_and_goes() -> anyhow::Result<()> {
    let cluster = Cluster { kubernetes: Kubernetes::start()? };
    let _controllers = cluster.kubernetes.controllers()?;
    let mut scenarios = Scenarios::of("install", "none");
    let mut kubelet = Kubelet::default();

    let all = refused(&cluster, &mut scenarios)
        .and_then(|()| installed(&cluster, &mut kubelet, &mut scenarios))
        .and_then(|()| upgraded(&cluster, &mut kubelet, &mut scenarios))
        .and_then(|()| uninstalled(&cluster, &mut kubelet, &mut scenarios))
        .and_then(|()| back_and_gone(&cluster, &mut kubelet, &mut scenarios));
    scenarios.equal("kube-install-all: every step could be tried", "yes", all.map(|()| "yes"));
    scenarios.finish(Path::new(KUBE_ROWS), || {
        let log = kubelet.replica.as_ref().map(Replica::log).unwrap_or_default();
        log[log.len().saturating_sub(3_000)..].to_owned()
    })
}

/// What is refused leaves nothing behind.
fn refused(cluster: &Cluster, scenarios: &mut Scenarios) -> anyhow::Result<()> {
    scenarios.holds("kube-uninstall-nothing: where there is no Weft", "0, said", || {
        Ok(run(cluster, &["uninstall"])?.says(0, &["There is no Weft in weft-system"]))
    });
    scenarios.holds("kube-install-helm: without Helm", "1, what to install, and how else", || {
        let done = run(cluster, &["install", "--helm", "/nowhere/helm"])?;
        Ok(done.says(1, &["install Helm 3.12 or newer", "--helm PROGRAM", "helm upgrade --install weft weft-chart"]))
    });
    cluster.kubernetes.put(&json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "nobody", "namespace": "default"}}))?;
    let nobody = cluster.kubernetes.kubeconfig_of("default", "nobody")?.display().to_string();
    scenarios.holds("kube-install-rights: without rights", "1, each of them", || {
        let done = run(cluster, &["install", "--kubeconfig", &nobody])?;
        let words = [
            "you may not create clusterroles.rbac.authorization.k8s.io",
            "you may not patch customresourcedefinitions.apiextensions.k8s.io",
            "you may not list pods",
            "one with the ClusterRole cluster-admin",
            "nothing was changed",
        ];
        Ok(done.says(1, &words))
    });
    scenarios.holds("kube-install-values: a value that the schema does not know", "1, its name", || {
        let done = run(cluster, &["install", "--set", "controlPlane.replica=3"])?;
        Ok(done.says(1, &["nothing was changed", "replica", "controlPlane"]))
    });
    scenarios.holds("kube-install-values: a file that is not there", "1, its name", || {
        Ok(run(cluster, &["install", "-f", "/nowhere.yaml"])?.says(1, &["cannot read the values of /nowhere.yaml"]))
    });
    scenarios.holds("kube-install-dry-run: prints all objects", "0, those of the chart and the definitions", || {
        let done = run(cluster, &["install", "--dry-run", "--set", "controlPlane.replicas=5"])?;
        let documents = done.out.split("---\n").filter(|text| text.contains("kind:"));
        let objects: Vec<Value> = documents.map(serde_saphyr::from_str).collect::<Result<_, _>>()?;
        let replicas =
            objects.iter().find(|object| object["kind"] == "Deployment" && object["metadata"]["name"] == "weft");
        let replicas = replicas.context("the Deployment")?["spec"]["replicas"].clone();
        let kinds = objects.iter().filter(|object| object["kind"] == "CustomResourceDefinition").count();
        Ok((done.code == Some(0) && replicas == 5 && kinds == 9, format!("{} objects; {}", objects.len(), done.err)))
    });
    scenarios.equal("kube-install-nothing: what was refused or tried has left nothing", "[]", {
        traces(cluster).map(|traces| format!("{traces:?}"))
    });
    Ok(())
}

fn installed(cluster: &Cluster, kubelet: &mut Kubelet, scenarios: &mut Scenarios) -> anyhow::Result<()> {
    // Of another maker, as Open Service Mesh leaves it.
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object",
            "x-kubernetes-preserve-unknown-fields": true}}})
    };
    cluster.kubernetes.put(&json!({"apiVersion": DEFINITIONS.0, "kind": "CustomResourceDefinition",
        "metadata": {"name": "trafficsplits.split.smi-spec.io"},
        "spec": {"group": "split.smi-spec.io", "scope": "Namespaced",
            "names": {"kind": "TrafficSplit", "listKind": "TrafficSplitList", "plural": "trafficsplits",
                "singular": "trafficsplit"},
            "versions": [version("v1alpha1", false), version("v1alpha2", true)]}}))?;
    for name in ["shop", "quiet"] {
        cluster.namespace(name, json!({"weft.dev/inject": "enabled"}))?;
    }
    std::fs::write(cluster.file("values.yaml"), "webhook: {logLevel: debug}\n")?;
    let file = cluster.file("values.yaml").display().to_string();
    let command = weft(cluster, &["install", "-o", "json", "-f", &file, "--set", "controlPlane.logLevel=debug"])?;
    let done = kubelet.serve(cluster, command)?;
    scenarios.holds("kube-install: on an empty cluster", "0, deployed, all checks ok", || {
        let report = done.json()?;
        let ok = report["findings"].as_array().context("findings")?.iter().filter(|one| one["outcome"] == "ok").count();
        let release = &report["release"];
        let held = done.code == Some(0) && ok == 11 && release["status"] == "deployed" && release["revision"] == 1;
        Ok((held, format!("{:?}, {ok} ok, {release}: {}", done.code, done.err)))
    });
    scenarios.holds("kube-install-progress: that all is ready is told", "2/2 of both", || {
        Ok(done.says(0, &["ready: weft 2/2, weft-webhook 2/2"]))
    });
    scenarios.equal(
        "kube-install-definitions: those of another maker are taken over, and it is said",
        "8 made, 1 brought up to date; trafficsplits.split.smi-spec.io is there already",
        {
            done.json().map(|report| {
                let warned = step(&report, "warning");
                let named = warned.split(": ").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or(warned);
                format!("{}; {named}", step(&report, "definitions"))
            })
        },
    );
    scenarios.equal("kube-install-values: those of the file and of --set count", "debug, debug", {
        let level = |name: &str| {
            let found = cluster.kubernetes.get("apps/v1", "deployments", SYSTEM, name)?.context("a Deployment")?;
            let level = found["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"].as_str();
            anyhow::Ok(level.unwrap_or_default().to_owned())
        };
        level("weft").and_then(|weft| Ok(format!("{weft}, {}", level("weft-webhook")?)))
    });
    scenarios.equal("kube-install: a pod of a meshed namespace gets a sidecar", "weft-init, weft-proxy", {
        cluster.stored("shop", &pod("a", json!({}), json!({}))).map(|pod| init_containers(&pod))
    });
    Ok(())
}

fn upgraded(cluster: &Cluster, kubelet: &mut Kubelet, scenarios: &mut Scenarios) -> anyhow::Result<()> {
    let before = versions(cluster)?;
    let done = kubelet.serve(cluster, weft(cluster, &["install", "-o", "json"])?)?;
    scenarios.holds("kube-install-again: an upgrade that changes nothing", "0, revision 2, the same versions", || {
        let (report, after) = (done.json()?, versions(cluster)?);
        let definitions = step(&report, "definitions");
        let same = before == after && definitions == "9 as they should be";
        Ok((done.code == Some(0) && same && report["release"]["revision"] == 2, format!("{definitions}; {}", done.err)))
    });
    scenarios.equal(
        "kube-install-again: values that were set before are kept, and named",
        "kept as they were set before: controlPlane.logLevel, webhook.logLevel",
        done.json().map(|report| step(&report, "values").to_owned()),
    );
    scenarios.holds("kube-install-elsewhere: a second one in another namespace", "1, where the first is", || {
        let done = run(cluster, &["install", "--namespace", "other"])?;
        let (held, said) = done.says(1, &["installed in the namespace weft-system", "say --namespace weft-system"]);
        Ok((held && !there(cluster, ("v1", "namespaces", "", "other"))?, said))
    });
    let stuck = weft(cluster, &["install", "--timeout", "5s", "--set", "image.tag=nowhere"])?;
    let stuck = kubelet.serve(cluster, stuck)?;
    scenarios.holds("kube-install-stuck: what keeps pods from starting is named", "1, the image", || {
        let words = ["Helm could not install the chart", "ImagePullBackOff: there is no such image", "goes on"];
        Ok(stuck.says(1, &words))
    });
    let mended = weft(cluster, &["install", "-o", "json", "--set", "image.tag="])?;
    let mended = kubelet.serve(cluster, mended)?;
    scenarios.holds("kube-install-stuck: and the next installation goes on", "0, deployed", || {
        let (held, said) = mended.says(0, &["\"status\": \"deployed\"", "failed"]);
        Ok((held, said))
    });
    Ok(())
}

fn uninstalled(cluster: &Cluster, kubelet: &mut Kubelet, scenarios: &mut Scenarios) -> anyhow::Result<()> {
    cluster.kubectl(&["create", "-n", "shop", "-f", "-"], &pod("meshed", json!({}), json!({})))?;
    cluster.kubectl(&["create", "-n", "shop", "-f", "-"], &split("canary", json!(1)))?;
    let before = traces(cluster)?;
    scenarios.holds(
        "kube-uninstall-asks: what depends on it is told, and nobody can be asked",
        "1, nothing gone",
        || {
            let done = run(cluster, &["uninstall", "--crds"])?;
            let words = [
                "1 pod with a sidecar",
                "shop: meshed",
                "kubectl label namespace shop weft.dev/inject-",
                "kubectl -n shop delete pod/meshed",
                "1 trafficsplits.split.smi-spec.io will be DELETED",
                "say --yes",
            ];
            let (held, said) = done.says(1, &words);
            Ok((held && traces(cluster)? == before, said))
        },
    );
    let nobody = cluster.kubernetes.kubeconfig_of("default", "nobody")?.display().to_string();
    scenarios.holds("kube-uninstall-rights: without rights", "1, nothing gone", || {
        let done = run(cluster, &["uninstall", "--yes", "--kubeconfig", &nobody])?;
        let (held, said) = done.says(1, &["nothing was changed: you may not list pods"]);
        Ok((held && traces(cluster)? == before, said))
    });
    let done = kubelet.serve(cluster, weft(cluster, &["uninstall", "--yes"])?)?;
    scenarios.holds("kube-uninstall: what runs is gone", "0, said", || {
        let words = [
            "webhooks: removed MutatingWebhookConfiguration weft-injector",
            "release: weft, revision",
            "Secret weft-system/weft-ca, the mesh's root",
            "9 CustomResourceDefinitions with 1 object,",
            "ConfigMap weft-root in shop, whose pods mount it",
        ];
        Ok(done.says(0, &words))
    });
    scenarios.equal(
        "kube-uninstall-order: webhooks go before the pods, and what these write after them",
        "Some((false, true))",
        Ok(format!("{:?}", kubelet.at_the_end)),
    );
    scenarios.equal(
        "kube-uninstall: exactly what is said is left",
        "namespaces weft-system, secrets weft-system/weft-ca, configmaps weft-system/weft-root, configmaps shop/weft-root; \
         9 definitions; the split; enabled",
        {
            traces(cluster).and_then(|traces| {
                let (definitions, rest): (Vec<_>, Vec<_>) =
                    traces.into_iter().partition(|trace| trace.starts_with(DEFINITIONS.1));
                let split = there(cluster, ("split.smi-spec.io/v1alpha4", "trafficsplits", "shop", "canary"))?;
                let shop = cluster.kubernetes.get("v1", "namespaces", "", "shop")?.context("shop")?;
                Ok(format!(
                    "{}; {} definitions; {}; {}",
                    rest.join(", "),
                    definitions.len(),
                    if split { "the split" } else { "no split" },
                    shop["metadata"]["labels"]["weft.dev/inject"].as_str().unwrap_or("no label")
                ))
            })
        },
    );
    scenarios.equal("kube-uninstall: pods of a meshed namespace are created, without a sidecar", "", {
        cluster.stored("shop", &pod("after", json!({}), json!({}))).map(|pod| init_containers(&pod))
    });
    scenarios.holds("kube-uninstall-again: there is nothing more to do, and what is left is said", "0, said", || {
        Ok(run(cluster, &["uninstall"])?.says(0, &["nothing to do", "weft-ca", "weft uninstall --purge"]))
    });
    Ok(())
}

fn back_and_gone(cluster: &Cluster, kubelet: &mut Kubelet, scenarios: &mut Scenarios) -> anyhow::Result<()> {
    let before = root(cluster)?;
    let done = kubelet.serve(cluster, weft(cluster, &["install"])?)?;
    scenarios.holds("kube-install-back: it comes back with the same root and resources", "0, the same", || {
        let split = there(cluster, ("split.smi-spec.io/v1alpha4", "trafficsplits", "shop", "canary"))?;
        let (held, said) = done.says(0, &["9 as they should be", "one, in 3 namespaces"]);
        Ok((held && split && root(cluster)? == before, said))
    });
    cluster.kubernetes.delete("v1", "pods", "shop", "meshed")?;
    let done = kubelet.serve(cluster, weft(cluster, &["uninstall", "--purge", "--yes"])?)?;
    scenarios.holds("kube-uninstall-purge: nothing is left but the namespace", "0, the namespace", || {
        let traces = traces(cluster)?;
        let (held, said) = done.says(0, &["1 trafficsplits.split.smi-spec.io will be DELETED"]);
        ensure!(traces == [format!("namespaces {SYSTEM}")], "{traces:?}: {said}");
        Ok((held, said))
    });
    Ok(())
}
