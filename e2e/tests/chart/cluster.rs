//! The chart on a real API server: what Helm installs works, and leaves what it should.
//!
//! There are no nodes: the processes of the chart's Deployments run here, with their arguments and their ServiceAccounts.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use weft::source::versions;
use weft_e2e::kube::{Kubernetes, Replica, free_port};
use weft_e2e::mesh::{repository, weft_beside_tests};
use weft_e2e::scenario::{KUBE_ROWS, Scenarios};
use weft_e2e::until;

pub(super) const SYSTEM: &str = "weft-system";
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Pods whose injection is compared: what the webhook makes of them, and what `weft inject` does.
const PODS: [&str; 14] = [
    "a-native-sidecar-of-its-own",
    "exclusions",
    "extra-volumes",
    "grpc-probes",
    "http-hooks",
    "https-probes",
    "init-containers",
    "label-misspelt",
    "nulls",
    "proxy-settings",
    "resources",
    "restricted",
    "several-containers",
    "tcp-probes-of-one-port",
];

/// A process that ends with its owner.
pub(super) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a command has printed.
pub(super) struct Said {
    pub(super) out: String,
    pub(super) err: String,
}

pub(super) struct Cluster {
    pub(super) kubernetes: Kubernetes,
}

impl Cluster {
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.kubernetes.directory().join(name)
    }

    fn run(&self, mut command: Command, input: &str) -> anyhow::Result<Said> {
        command.env("KUBECONFIG", self.kubernetes.kubeconfig()).env("HOME", self.kubernetes.directory());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
        child.stdin.take().context("an input")?.write_all(input.as_bytes())?;
        let done = child.wait_with_output()?;
        let [out, err] = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        ensure!(done.status.success(), "{out}{err}");
        Ok(Said { out, err })
    }

    fn helm(&self, arguments: &[&str]) -> anyhow::Result<Said> {
        let mut command = Command::new(repository().join("target/helm/helm"));
        command.args(arguments).args(["--namespace", SYSTEM]);
        self.run(command, "")
    }

    pub(super) fn kubectl(&self, arguments: &[&str], input: &str) -> anyhow::Result<Said> {
        let mut command = Command::new(repository().join("target/kubernetes/kubernetes"));
        command.arg("kubectl").args(arguments);
        self.run(command, input)
    }

    fn weft(&self, arguments: &[&str], input: &str) -> anyhow::Result<Said> {
        let mut command = Command::new(weft_beside_tests()?);
        command.args(arguments);
        self.run(command, input)
    }

    /// What the server would store of a pod, without what differs from one time to the next.
    pub(super) fn stored(&self, namespace: &str, pod: &str) -> anyhow::Result<Value> {
        let create = ["create", "--namespace", namespace, "--dry-run=server", "-o", "json", "-f", "-"];
        let mut pod: Value = serde_json::from_str(&self.kubectl(&create, pod)?.out)?;
        for field in ["uid", "creationTimestamp", "resourceVersion", "managedFields"] {
            pod["metadata"].as_object_mut().context("metadata")?.remove(field);
        }
        Ok(pod)
    }

    /// Whether every webhook is believed by the root that is in the Secret.
    fn believed(&self) -> anyhow::Result<Result<String, String>> {
        let Some(secret) = self.kubernetes.get("v1", "secrets", SYSTEM, "weft-webhook-tls")? else {
            return Ok(Err("there is no Secret".to_owned()));
        };
        let root = &secret["data"]["ca.crt"];
        let group = "admissionregistration.k8s.io/v1";
        let mut bundles = Vec::new();
        for (plural, name) in
            [("mutatingwebhookconfigurations", "weft-injector"), ("validatingwebhookconfigurations", "weft-validator")]
        {
            let found = self.kubernetes.get(group, plural, "", name)?.with_context(|| name.to_owned())?;
            let webhooks = found["webhooks"].as_array().cloned().unwrap_or_default();
            bundles.extend(webhooks.into_iter().map(|webhook| webhook["clientConfig"]["caBundle"].clone()));
        }
        for name in ["trafficsplits.split.smi-spec.io", "traffictargets.access.smi-spec.io"] {
            let found = self.kubernetes.get("apiextensions.k8s.io/v1", "customresourcedefinitions", "", name)?;
            bundles.push(
                found.context("a definition")?["spec"]["conversion"]["webhook"]["clientConfig"]["caBundle"].clone(),
            );
        }
        let believed = bundles.iter().filter(|bundle| *bundle == root).count();
        let said = format!("{believed} of {} by the mesh's root", bundles.len());
        Ok(if believed == bundles.len() && bundles.len() == 5 { Ok(said) } else { Err(said) })
    }

    /// The webhooks' process, with what the kubelet would mount; the Service has it as its endpoint.
    pub(super) fn webhook(&self) -> anyhow::Result<Process> {
        let secret = self.kubernetes.get("v1", "secrets", SYSTEM, "weft-webhook-tls")?.context("the Secret")?;
        let tls = self.file("tls");
        fs::create_dir_all(&tls)?;
        for key in ["tls.crt", "tls.key"] {
            let bytes: ByteString = serde_json::from_value(secret["data"][key].clone())?;
            fs::write(tls.join(key), bytes.0)?;
        }
        fs::write(self.options(), self.config_map_options()?)?;
        let (address, admin) = (SocketAddr::from((own_address()?, free_port()?)), free_port()?);
        let log = fs::File::create(self.file("webhook.log"))?;
        let mut command = Command::new(weft_beside_tests()?);
        command.args(["webhook", "--tls"]).arg(&tls).arg("--options").arg(self.options());
        command.args(["--listen", &address.to_string(), "--admin", &format!("127.0.0.1:{admin}")]);
        let process = Process(command.stdout(Stdio::null()).stderr(log).spawn()?);
        self.kubernetes.put(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": SYSTEM, "name": "weft-webhook-1",
                "labels": {"kubernetes.io/service-name": "weft-webhook"}},
            "ports": [{"name": "https-webhooks", "port": address.port(), "protocol": "TCP"}],
            "endpoints": [{"addresses": [address.ip().to_string()], "conditions": {"ready": true}}],
        }))?;
        Ok(process)
    }

    /// The exit code of `weft check`, and each line that is not as it should be, or all of them when every one is.
    fn check(&self, arguments: &[&str]) -> anyhow::Result<(Option<i32>, Vec<Value>)> {
        let mut command = Command::new(weft_beside_tests()?);
        command.args(["check", "-o", "json"]).args(arguments).env("KUBECONFIG", self.kubernetes.kubeconfig());
        let done = command.output()?;
        let said = String::from_utf8_lossy(&done.stderr);
        let findings: Vec<Value> = serde_json::from_slice(&done.stdout).with_context(|| said.into_owned())?;
        let wrong: Vec<_> = findings.iter().filter(|finding| finding["outcome"] != "ok").cloned().collect();
        Ok((done.status.code(), if wrong.is_empty() { findings } else { wrong }))
    }

    fn options(&self) -> PathBuf {
        self.file("inject.yaml")
    }

    fn config_map_options(&self) -> anyhow::Result<String> {
        let map = self.kubernetes.get("v1", "configmaps", SYSTEM, "weft-inject")?.context("weft-inject")?;
        Ok(map["data"]["inject.yaml"].as_str().context("options")?.to_owned())
    }

    pub(super) fn namespace(&self, name: &str, labels: Value) -> anyhow::Result<()> {
        self.kubernetes
            .put(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}))?;
        // The controller that makes it does not run here.
        self.kubernetes.put(&json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": name}, "automountServiceAccountToken": false}))
    }

    fn replicas(&self) -> anyhow::Result<String> {
        let found = self.kubernetes.get("apps/v1", "deployments", SYSTEM, "weft")?.context("the Deployment")?;
        Ok(found["spec"]["replicas"].to_string())
    }
}

/// An address of this machine that is not on loopback, where no endpoint may be.
fn own_address() -> anyhow::Result<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("192.0.2.1:9")?; // nothing is sent
    Ok(socket.local_addr()?.ip())
}

fn input(name: &str) -> anyhow::Result<String> {
    let path = repository().join(format!("tests/inject/{name}.yaml"));
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The shortest pod, with these metadata and spec besides.
pub(super) fn pod(name: &str, metadata: Value, spec: Value) -> String {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "app", "image": "app:1"}]}});
    for (part, more) in [("metadata", metadata), ("spec", spec)] {
        for (key, value) in more.as_object().cloned().unwrap_or_default() {
            pod[part][key] = value;
        }
    }
    pod.to_string()
}

pub(super) fn init_containers(pod: &Value) -> String {
    let names = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    names.map(|container| container["name"].as_str().unwrap_or("?")).collect::<Vec<_>>().join(", ")
}

/// What an error says, shortened to what is looked for.
fn says<T>(result: anyhow::Result<T>, words: &[&str]) -> anyhow::Result<(bool, String)> {
    match result {
        Ok(_) => Ok((false, "it was accepted".to_owned())),
        Err(error) => {
            let text = format!("{error:#}");
            Ok((words.iter().all(|word| text.contains(word)), text.trim().to_owned()))
        }
    }
}

#[test]
fn the_chart_on_a_real_api_server() -> anyhow::Result<()> {
    let cluster = Cluster { kubernetes: Kubernetes::start()? };
    let mut scenarios = Scenarios::of("chart", "none");
    let chart = repository().join("helm/weft").display().to_string();

    scenarios.holds("check-before: on a cluster without Weft, as its administrator", "0, all ok", || {
        let (code, findings) = cluster.check(&["--before"])?;
        Ok((code == Some(0) && findings.len() >= 4, told(&findings)))
    });
    let installed = cluster.helm(&["install", "weft", &chart, "--create-namespace"]);
    scenarios.holds("chart-install: helm install", "deployed", || {
        let text = installed?.out;
        Ok((text.contains("STATUS: deployed"), text.lines().take(6).collect::<Vec<_>>().join("; ")))
    });
    scenarios.equal("chart-install: the MeshConfig of the values comes with its definition", "default", {
        cluster
            .kubernetes
            .get("weft.dev/v1alpha1", "meshconfigs", "", "default")
            .and_then(|found| Ok(found.context("there is none")?["metadata"]["name"].as_str().unwrap_or("").to_owned()))
    });

    // The control plane, with no more rights than the chart gives it.
    let kubeconfig = cluster.kubernetes.kubeconfig_of(SYSTEM, "weft")?;
    let mut replica = Replica::start(cluster.kubernetes.directory(), "control-plane", &kubeconfig, &[])?;
    let ready = replica.wait_until_ready();
    scenarios.holds("chart-roles: with its own rights the control plane becomes ready", "ready", || {
        Ok((ready.is_ok(), ready.map_or_else(|error| format!("{error:#}"), |()| "ready".to_owned())))
    });
    scenarios.equal("chart-certificate: the API server believes the webhooks", "5 of 5 by the mesh's root", {
        until("every webhook is believed", PATIENCE, || cluster.believed())
    });
    let webhook = cluster.webhook()?;
    cluster.namespace("shop", json!({"weft.dev/inject": "enabled"}))?;
    cluster.namespace("plain", json!({}))?;
    until("the webhooks answer", PATIENCE, || {
        Ok(cluster.stored("shop", &pod("first", json!({}), json!({}))).map_err(|error| format!("{error:#}")))
    })?;
    checks(&cluster, &mut scenarios)?;
    injection(&cluster, &mut scenarios)?;
    validation(&cluster, &mut scenarios);
    conversion(&cluster, &mut scenarios)?;
    scenarios.equal("chart-roles: nothing was forbidden to the control plane", "0 lines", {
        let log = replica.log();
        Ok(format!(
            "{} lines",
            log.lines().filter(|line| line.contains("forbidden") || line.contains("may not")).count()
        ))
    });

    let upgraded =
        cluster.helm(&["upgrade", "weft", &chart, "--set", "controlPlane.replicas=3,webhook.timeoutSeconds=5"]);
    scenarios.equal(
        "chart-upgrade: new values count, and the webhooks are still believed",
        "3, 5 of 5 by the mesh's root",
        {
            upgraded.and_then(|_| {
                Ok(format!("{}, {}", cluster.replicas()?, cluster.believed()?.unwrap_or_else(|said| said)))
            })
        },
    );
    let back = cluster.helm(&["rollback", "weft", "1"]);
    scenarios.equal(
        "chart-rollback: old values count, and the webhooks are still believed",
        "2, 5 of 5 by the mesh's root",
        {
            back.and_then(|_| {
                Ok(format!("{}, {}", cluster.replicas()?, cluster.believed()?.unwrap_or_else(|said| said)))
            })
        },
    );
    scenarios.equal("chart-rollback: pods are injected as before", "weft-init, weft-proxy", {
        cluster.stored("shop", &pod("after", json!({}), json!({}))).map(|pod| init_containers(&pod))
    });

    drop(webhook);
    let unchecked = json!({"apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "TCPRoute",
        "metadata": {"name": "unchecked"}, "spec": {"matches": {"ports": [70000]}}});
    let unchecked = unchecked.to_string();
    scenarios.holds(
        "chart-fault: without a webhook no pod starts that should have a sidecar",
        "the webhook is named",
        || says(cluster.stored("shop", &pod("late", json!({}), json!({}))), &["inject.weft.dev"]),
    );
    scenarios.equal("chart-fault: other pods start", "", {
        cluster.stored("plain", &pod("late", json!({}), json!({}))).map(|pod| init_containers(&pod))
    });
    scenarios.equal("chart-fault: and resources are stored, for the control plane to judge", "stored", {
        cluster.kubectl(&["apply", "-n", "shop", "-f", "-"], &unchecked).map(|_| "stored")
    });

    let uninstalled = cluster.helm(&["uninstall", "weft"]);
    scenarios.holds(
        "chart-uninstall: what people wrote is left, and the mesh's root; nothing else",
        "as expected",
        || {
            uninstalled?;
            let left = |api: &str, plural: &str, namespace: &str, name: &str| {
                Ok::<_, anyhow::Error>(cluster.kubernetes.get(api, plural, namespace, name)?.is_some())
            };
            let specs = "specs.smi-spec.io/v1alpha4";
            let kept = left(specs, "tcproutes", "shop", "unchecked")? && left("v1", "secrets", SYSTEM, "weft-ca")?;
            let registration = "admissionregistration.k8s.io/v1";
            let gone = [
                left("apps/v1", "deployments", SYSTEM, "weft")?,
                left(registration, "mutatingwebhookconfigurations", "", "weft-injector")?,
                left(registration, "validatingwebhookconfigurations", "", "weft-validator")?,
                left("rbac.authorization.k8s.io/v1", "clusterroles", "", "weft-xds")?,
                left("v1", "serviceaccounts", SYSTEM, "weft")?,
            ];
            Ok((kept && !gone.contains(&true), format!("kept: {kept}; still there: {gone:?}")))
        },
    );
    scenarios.finish(Path::new(KUBE_ROWS), || {
        let log = replica.log();
        log[log.len().saturating_sub(3_000)..].to_owned()
    })
}

fn told(findings: &[Value]) -> String {
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    let line = |finding: &Value| ["check", "outcome", "found", "todo"].map(|field| text(finding, field)).join(" | ");
    findings.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `weft check` on what is installed, and on what is then broken.
fn checks(cluster: &Cluster, scenarios: &mut Scenarios) -> anyhow::Result<()> {
    // There are no nodes: the Deployments' controllers would say this.
    for name in ["weft", "weft-webhook"] {
        let status = json!({"status": {"replicas": 2, "readyReplicas": 2, "availableReplicas": 2}});
        cluster.kubernetes.patch(("apps/v1", "deployments", SYSTEM, &format!("{name}/status")), &status)?;
    }
    scenarios.holds("check-installed: everything is as it should be", "0, all ok", || {
        let findings = until("all is well", PATIENCE, || {
            let (code, findings) = cluster.check(&[])?;
            Ok(if code == Some(0) { Ok(findings) } else { Err(told(&findings)) })
        })?;
        let well = findings.len() == 11 && findings.iter().all(|finding| finding["outcome"] == "ok");
        Ok((well, told(&findings)))
    });
    cluster.namespace("half", json!({}))?;
    cluster.kubectl(&["create", "-n", "half", "-f", "-"], &pod("bare", json!({}), json!({})))?;
    cluster.kubectl(&["label", "namespace", "half", "weft.dev/inject=enabled"], "")?;
    let rights = "rbac.authorization.k8s.io/v1";
    let role = cluster.kubernetes.get(rights, "clusterroles", "", "weft-status")?.context("weft-status")?;
    cluster.kubernetes.delete(rights, "clusterroles", "", "weft-status")?;
    let status = json!({"status": {"replicas": 2, "readyReplicas": 1, "availableReplicas": 1}});
    cluster.kubernetes.patch(("apps/v1", "deployments", SYSTEM, "weft/status"), &status)?;
    scenarios.holds("check-broken: what was broken is named, each with what to do", "1, 3 sorts of lines", || {
        let findings = until("all of it is seen", PATIENCE, || {
            let (code, findings) = cluster.check(&[])?;
            let checks: std::collections::BTreeSet<_> =
                findings.iter().map(|finding| finding["check"].as_str().unwrap_or_default()).collect();
            let wanted = ["control-plane", "namespaces", "rights"].into();
            Ok(if code == Some(1) && checks == wanted { Ok(findings) } else { Err(told(&findings)) })
        })?;
        let text = told(&findings);
        let named = ["half: 1 pod without a sidecar: bare", "patch trafficpolicies/status.weft.dev", "1 of 2 replicas"];
        let all = named.iter().all(|words| text.contains(words));
        Ok((all && findings.iter().all(|finding| finding["todo"] != ""), text))
    });
    cluster.kubernetes.put(&json!({"apiVersion": rights, "kind": "ClusterRole",
        "metadata": {"name": "weft-status", "labels": role["metadata"]["labels"], "annotations": role["metadata"]["annotations"]},
        "rules": role["rules"]}))?;
    cluster.kubernetes.delete("v1", "pods", "half", "bare")
}

fn injection(cluster: &Cluster, scenarios: &mut Scenarios) -> anyhow::Result<()> {
    scenarios.equal("inject-label: a pod of a meshed namespace", "weft-init, weft-proxy", {
        cluster.stored("shop", &pod("a", json!({}), json!({}))).map(|pod| init_containers(&pod))
    });
    scenarios.equal("inject-label: one that wants none", "", {
        cluster
            .stored("shop", &pod("a", json!({"labels": {"weft.dev/inject": "false"}}), json!({})))
            .map(|pod| init_containers(&pod))
    });
    scenarios.equal("inject-label: a pod of another namespace", "", {
        cluster.stored("plain", &pod("a", json!({}), json!({}))).map(|pod| init_containers(&pod))
    });
    scenarios.equal("inject-label: one that asks for it there", "weft-init, weft-proxy", {
        cluster
            .stored("plain", &pod("a", json!({"labels": {"weft.dev/inject": "true"}}), json!({})))
            .map(|pod| init_containers(&pod))
    });
    let options = cluster.options().display().to_string();
    let equal = PODS.iter().map(|name| {
        let text = input(name)?;
        let namespace = text.split("namespace: ").nth(1).and_then(|rest| rest.split(['}', ',', '\n']).next());
        let text = text.replace(&format!("namespace: {}", namespace.context("a namespace")?), "namespace: shop");
        let by_webhook = cluster.stored("shop", &text)?;
        let offline = cluster.weft(&["inject", "--options", &options, "-f", "-"], &text)?;
        let offline = cluster.stored("shop", &offline.out)?;
        ensure!(
            init_containers(&by_webhook).starts_with("weft-init, weft-proxy"),
            "{name}: {}",
            init_containers(&by_webhook)
        );
        ensure!(by_webhook == offline, "{name}: by the webhook {by_webhook}\noffline {offline}");
        Ok(())
    });
    let equal: anyhow::Result<Vec<()>> = equal.collect();
    scenarios.equal(
        "inject-offline: the webhook and `weft inject` make the same of a pod, and it is a valid one",
        "14 of 14",
        equal.map(|equal| format!("{} of {}", equal.len(), PODS.len())),
    );
    scenarios.holds("inject-host-network: no sidecar, and it is said", "a warning and an annotation", || {
        let text = cluster.kubectl(
            &["create", "-n", "shop", "--dry-run=server", "-o", "json", "-f", "-"],
            &pod("a", json!({}), json!({"hostNetwork": true})),
        )?;
        let warned = text.err.contains("Warning: weft: no sidecar: hostNetwork");
        Ok((warned && text.out.contains("weft.dev/not-injected"), text.err.trim().to_owned()))
    });
    scenarios.holds("inject-annotation: what cannot be read is refused with what to do", "refused", || {
        let metadata = json!({"annotations": {"weft.dev/exclude-outbound-ports": "http"}});
        says(cluster.stored("shop", &pod("a", metadata, json!({}))), &["exclude-outbound-ports", "is not a port"])
    });
    // With a CNI plugin a meshed pod fits the strictest standard; without, it is the API server that says why not.
    cluster.namespace("strict", json!({"pod-security.kubernetes.io/enforce": "restricted"}))?;
    let inject = |interception: &str| {
        let options = cluster
            .config_map_options()?
            .replace("interception: InitContainer", &format!("interception: {interception}"));
        fs::write(cluster.file("other.yaml"), options)?;
        let options = cluster.file("other.yaml").display().to_string();
        let text = input("restricted-with-cni")?.replace("namespace: shop", "namespace: strict");
        let pod = cluster.weft(&["inject", "--options", &options, "-f", "-"], &text)?;
        cluster.stored("strict", &pod.out)
    };
    scenarios.equal("inject-pod-security: restricted, with a CNI plugin", "weft-init, weft-proxy", {
        inject("Cni").map(|pod| init_containers(&pod))
    });
    scenarios.holds("inject-pod-security: restricted, with an init container that intercepts", "refused", || {
        says(inject("InitContainer"), &["violates PodSecurity", "weft-init"])
    });
    Ok(())
}

pub(super) fn split(name: &str, weight: Value) -> String {
    json!({
        "apiVersion": "split.smi-spec.io/v1alpha4", "kind": "TrafficSplit", "metadata": {"name": name},
        "spec": {"service": "root", "backends": [{"service": "a", "weight": weight}, {"service": "b", "weight": 1}]},
    })
    .to_string()
}

fn validation(cluster: &Cluster, scenarios: &mut Scenarios) {
    let apply = |text: &str| cluster.kubectl(&["apply", "-n", "shop", "-f", "-"], text);
    scenarios.holds("validate-schema: a weight that is no number is refused by the schema", "refused", || {
        says(apply(&split("bad", json!("lots"))), &["spec.backends[0].weight", "integer"])
    });
    let cases = [
        (
            "a regex that RE2 does not take",
            "specs.smi-spec.io/v1alpha4",
            "HTTPRouteGroup",
            json!({"matches": [{"name": "m", "pathRegex": "(?=x)"}]}),
            &["spec.matches[0].pathRegex"][..],
            false,
        ),
        (
            "a port that is none",
            "specs.smi-spec.io/v1alpha4",
            "TCPRoute",
            json!({"matches": {"ports": [70000]}}),
            &["spec.matches.ports[0]", "70000 is not a port"],
            true,
        ),
        (
            "a port that v1alpha3 does not have",
            "access.smi-spec.io/v1alpha3",
            "TrafficTarget",
            json!({"destination": {"kind": "ServiceAccount", "name": "a", "port": 80}, "sources": [], "rules": []}),
            &["spec.destination.port", "name the port in a TCPRoute"],
            true,
        ),
        (
            "a fault that does nothing",
            "weft.dev/v1alpha1",
            "TrafficFault",
            json!({"targetRefs": [{"kind": "Service", "name": "a"}]}),
            &["spec"],
            true,
        ),
        (
            "a duration without a unit",
            "weft.dev/v1alpha1",
            "TrafficPolicy",
            json!({"targetRefs": [{"kind": "Service", "name": "a"}], "timeouts": {"request": "5"}}),
            &["spec.timeouts.request", "write a number with its unit"],
            true,
        ),
        (
            "a second MeshConfig",
            "weft.dev/v1alpha1",
            "MeshConfig",
            json!({}),
            &["metadata.name", "name it `default`"],
            true,
        ),
    ];
    for (what, api_version, kind, spec, words, refused) in cases {
        let object =
            json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "bad"}, "spec": spec}).to_string();
        let name = format!("validate-{}: {what}", kind.to_lowercase());
        if refused {
            scenarios.holds(&name, "refused, with what to do", || says(apply(&object), words));
        } else {
            scenarios.holds(&name, "stored, with a warning", || {
                let said = apply(&object)?.err;
                Ok((words.iter().all(|word| said.contains(word)) && said.contains("Warning"), said.trim().to_owned()))
            });
        }
    }
    scenarios.equal("validate-order: what it names may come later", "created", {
        apply(&split("early", json!(1))).map(|text| text.out.split_whitespace().last().unwrap_or_default().to_owned())
    });
    scenarios.equal("validate-dry-run: leaves nothing", "none", {
        cluster.kubectl(&["apply", "-n", "shop", "--dry-run=server", "-f", "-"], &split("dry", json!(1))).and_then(
            |_| {
                let found = cluster.kubernetes.get("split.smi-spec.io/v1alpha4", "trafficsplits", "shop", "dry")?;
                Ok(if found.is_some() { "one" } else { "none" })
            },
        )
    });
}

/// Every kind of SMI is written in each version and read in every other.
fn conversion(cluster: &Cluster, scenarios: &mut Scenarios) -> anyhow::Result<()> {
    let kinds = [
        (
            "TrafficSplit",
            "trafficsplits",
            "split.smi-spec.io",
            4,
            json!({"service": "root", "backends": [
            {"service": "a", "weight": 2}, {"service": "b", "weight": 1}],
            "matches": [{"kind": "HTTPRouteGroup", "name": "testers"}]}),
        ),
        (
            "HTTPRouteGroup",
            "httproutegroups",
            "specs.smi-spec.io",
            4,
            json!({"matches": [
            {"name": "all"}, {"name": "testers", "pathRegex": "/x", "methods": ["GET"], "headers": [{"x-user": "t.*"}]}]}),
        ),
        ("TCPRoute", "tcproutes", "specs.smi-spec.io", 4, json!({"matches": {"ports": [8080, 9090]}})),
        (
            "TrafficTarget",
            "traffictargets",
            "access.smi-spec.io",
            3,
            json!({
            "destination": {"kind": "ServiceAccount", "name": "a"},
            "sources": [{"kind": "ServiceAccount", "name": "b", "namespace": "shop"}],
            "rules": [{"kind": "HTTPRouteGroup", "name": "all", "matches": ["all"]}]}),
        ),
    ];
    for (kind, plural, group, newest, spec) in kinds {
        let hub = json!({"apiVersion": format!("{group}/v1alpha{newest}"), "kind": kind,
            "metadata": {"name": "x", "namespace": "shop"}, "spec": spec});
        let mut ways = 0;
        let all = (|| -> anyhow::Result<String> {
            for written in 1..=newest {
                let name = format!("written-{written}");
                let mut object = versions::convert(hub.clone(), &format!("{group}/v1alpha{written}"))?;
                object["metadata"]["name"] = name.as_str().into();
                cluster.kubectl(&["create", "-n", "shop", "-f", "-"], &object.to_string())?;
                for read in 1..=newest {
                    let version = format!("{group}/v1alpha{read}");
                    let found = cluster.kubernetes.get(&version, plural, "shop", &name)?.context("it is not there")?;
                    let expected = versions::convert(object.clone(), &version)?;
                    for field in ["spec", "matches", "destination", "sources", "specs"] {
                        ensure!(
                            found.get(field) == expected.get(field),
                            "{written} read as {read}: {found}\nnot {expected}"
                        );
                    }
                    ensure!(
                        found["metadata"]["annotations"] == expected["metadata"]["annotations"],
                        "{written} as {read}: {found}"
                    );
                    ways += 1;
                }
            }
            Ok(format!("{ways} ways"))
        })();
        scenarios.equal(
            &format!("convert-{}: written in each version, read in each", kind.to_lowercase()),
            &format!("{} ways", newest * newest),
            all,
        );
    }
    scenarios.equal("convert-trafficsplit: quantities of v1alpha1 keep their proportions", "1000, 500", {
        let old = json!({"apiVersion": "split.smi-spec.io/v1alpha1", "kind": "TrafficSplit",
            "metadata": {"name": "quantities", "namespace": "shop"}, "spec": {"service": "root", "backends": [
            {"service": "a", "weight": "1"}, {"service": "b", "weight": "500m"}]}});
        cluster.kubernetes.put(&old).and_then(|()| {
            let new = cluster.kubernetes.get("split.smi-spec.io/v1alpha4", "trafficsplits", "shop", "quantities")?;
            let new = new.context("it is not there")?;
            let weight = |at: usize| new["spec"]["backends"][at]["weight"].to_string();
            if new["spec"]["backends"].as_array().map(Vec::len) != Some(2) {
                bail!("{new}");
            }
            Ok(format!("{}, {}", weight(0), weight(1)))
        })
    });
    Ok(())
}
