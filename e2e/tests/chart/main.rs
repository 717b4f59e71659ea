//! The Helm chart, rendered by a real Helm (`e2e/scripts/helm`): what it says for which values stands in `golden/`.
//!
//! `INSTA_UPDATE=always` writes the golden files anew.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test may, and here its helpers do")]

mod cluster;
mod install;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use weft::inject::Options;
use weft_e2e::mesh::{repository, weft_beside_tests};

fn helm(arguments: &[&str]) -> Output {
    let helm = repository().join("target/helm/helm");
    assert!(helm.exists(), "there is no Helm at {}: run e2e/scripts/helm", helm.display());
    let home = repository().join("target/helm/home");
    let mut command = Command::new(helm);
    // Nothing of the user's own Helm, and no cluster.
    for (variable, below) in [
        ("HELM_CACHE_HOME", "cache"),
        ("HELM_CONFIG_HOME", "config"),
        ("HELM_DATA_HOME", "data"),
        ("KUBECONFIG", "none"),
    ] {
        command.env(variable, home.join(below));
    }
    command.args(arguments).output().expect("Helm runs")
}

fn chart() -> String {
    repository().join("helm/weft").display().to_string()
}

fn template(arguments: &[&str]) -> Result<String, String> {
    let chart = chart();
    let all =
        [&["template", "mesh", &chart, "--namespace", "weft-system", "--kube-version", "1.35.0"], arguments].concat();
    let done = helm(&all);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    if done.status.success() { Ok(text(done.stdout)) } else { Err(text(done.stderr)) }
}

/// The objects of a rendered chart.
fn objects(text: &str) -> Vec<Value> {
    let documents = format!("\n{text}");
    let read = documents.split("\n---").map(|document| serde_saphyr::from_str::<Value>(document).expect(document));
    read.filter(Value::is_object).collect()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

const EVERYTHING: &str = "metrics.podMonitor.enabled=true,prometheus.enabled=true,jaeger.enabled=true,\
    controlPlane.caSecret=my-ca,image.pullSecrets={registry},listenAddress=[::],injection.sidecar=Classic,\
    injection.interception=Cni,webhook.failurePolicy=Ignore,controlPlane.priorityClassName=system-cluster-critical,\
    controlPlane.extraArgs={--canary=1},webhook.podLabels.a=b";
const NOTHING: &str = "meshConfig.create=false,podDisruptionBudget.enabled=false,networkPolicy.enabled=false,\
    metrics.scrapeAnnotations=false,dashboards.enabled=false";

#[test]
fn helm_finds_no_fault_with_it() {
    let done = helm(&["lint", "--strict", &chart()]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}

#[test]
fn values_become_what_stands_in_the_golden_files() {
    for (name, values) in [("default", "dashboards.enabled=false"), ("everything", EVERYTHING), ("nothing", NOTHING)] {
        let rendered = template(&["--set", values, "--set", "dashboards.enabled=false"]).expect(name);
        let path = repository().join(format!("e2e/tests/chart/golden/{name}.yaml"));
        if std::env::var_os("INSTA_UPDATE").is_some_and(|update| update == "always") {
            fs::write(&path, &rendered).expect("written");
        }
        let golden = fs::read_to_string(&path).unwrap_or_default();
        let different = rendered.lines().zip(golden.lines()).enumerate().find(|(_, (now, then))| now != then);
        assert!(rendered == golden, "{}: {different:?}; INSTA_UPDATE=always writes it anew", path.display());
    }
}

#[test]
fn values_that_mean_nothing_are_refused_by_name() {
    for (values, named) in [
        ("webhook.replica=3", "replica"),
        ("controlPlane.replicas=0", "replicas"),
        ("injection.sidecar=native", "sidecar"),
        ("injection.logLevel=verbose", "logLevel"),
        ("meshConfig.create=perhaps", "create"),
        ("networkPolicy.apiServerPorts={}", "apiServerPorts"),
    ] {
        let error = template(&["--set", values]).expect_err(values);
        assert!(error.contains(named), "{values}: {error}");
    }
}

#[test]
fn every_value_has_a_comment_or_speaks_for_itself_and_a_schema() {
    let read = |name: &str| fs::read_to_string(PathBuf::from(chart()).join(name)).expect(name);
    let values: Value = serde_saphyr::from_str(&read("values.yaml")).expect("values");
    let schema: Value = serde_json::from_str(&read("values.schema.json")).expect("a schema");
    fn same(values: &Value, schema: &Value, at: &str) {
        let Some(known) = schema["properties"].as_object() else { return };
        for (name, value) in values.as_object().expect(at) {
            let schema = known.get(name).unwrap_or_else(|| panic!("{at}.{name} has no schema"));
            same(value, schema, &format!("{at}.{name}"));
        }
        for name in known.keys().filter(|name| !["global", "claims", "requests", "limits"].contains(&name.as_str())) {
            assert!(values.get(name).is_some(), "{at}.{name} is not in values.yaml");
        }
    }
    same(&values, &schema, "values");
}

#[test]
fn sidecars_are_native_where_the_server_is_new_enough() {
    for (version, form) in [("1.28.4", "Classic"), ("1.29.0-gke.100", "Native"), ("1.35.0", "Native")] {
        let rendered = template(&["--kube-version", version]).expect(version);
        let rendered = objects(&rendered);
        let options = find(&rendered, "ConfigMap", "weft-inject")["data"]["inject.yaml"].as_str().expect("options");
        let options = Options::from_yaml(options).expect("options that Weft reads");
        assert_eq!(format!("{:?}", options.sidecar), form, "{version}");
    }
}

#[test]
fn the_options_of_injection_are_those_of_weft_by_default() {
    let rendered = objects(&template(&[]).expect("rendered"));
    let options = find(&rendered, "ConfigMap", "weft-inject")["data"]["inject.yaml"].as_str().expect("options");
    let options = Options::from_yaml(options).expect("options that Weft reads");
    assert_eq!(Options { image_pull_policy: None, ..options }, Options::default());
}

#[test]
fn nobody_may_more_than_needed() {
    let rendered = objects(&template(&["--set", EVERYTHING]).expect("rendered"));
    for object in &rendered {
        let (kind, name) = (object["kind"].as_str().expect("a kind"), &object["metadata"]["name"]);
        for rule in object["rules"].as_array().into_iter().flatten().filter(|_| kind.ends_with("Role")) {
            let has = |list: &str, word: &str| rule[list].as_array().is_some_and(|all| all.iter().any(|w| w == word));
            assert!(!has("verbs", "*") && !has("resources", "*") && !has("apiGroups", "*"), "{name}: {rule}");
            assert!(!has("verbs", "delete") && !has("verbs", "deletecollection"), "{name}: {rule}");
            let secrets = has("resources", "secrets");
            assert!(!(secrets && kind == "ClusterRole"), "{name} reads Secrets of the whole cluster: {rule}");
            let named = rule["resourceNames"].is_array();
            assert!(!secrets || named || rule["verbs"] == serde_json::json!(["create"]), "{name}: {rule}");
            // Of what it says of objects the control plane cannot know the names.
            let resources = rule["resources"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let tells = resources.into_iter().all(|resource| resource == "events" || resource.ends_with("/status"));
            let changes = !tells && ["update", "patch"].iter().any(|verb| has("verbs", verb));
            assert!(!changes || named, "{name} changes what it does not name: {rule}");
        }
    }
    let bound: Vec<_> = rendered.iter().filter_map(|object| object["subjects"].as_array()).flatten().collect();
    assert!(bound.iter().all(|subject| subject["name"] == "weft"), "the webhooks have no rights: {bound:?}");
    let webhook = &find(&rendered, "Deployment", "weft-webhook")["spec"]["template"]["spec"];
    assert_eq!(webhook["automountServiceAccountToken"], false);
}

#[test]
fn every_pod_fits_the_restricted_standard() {
    let rendered = objects(&template(&["--set", EVERYTHING]).expect("rendered"));
    let pods: Vec<_> = rendered.iter().filter(|object| object["kind"] == "Deployment").collect();
    assert_eq!(pods.len(), 4);
    for deployment in pods {
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        for container in pod["containers"].as_array().expect("containers") {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false, "{container}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{container}");
            assert_eq!(security["capabilities"]["drop"][0], "ALL", "{container}");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{container}");
        }
    }
}

/// clap ends with 2 when it does not understand; with 1 they ended because there is nothing here to work with.
#[test]
fn the_arguments_of_the_deployments_are_understood() {
    let rendered = objects(&template(&["--set", EVERYTHING]).expect("rendered"));
    let nowhere = std::env::temp_dir().join("weft-nowhere").display().to_string();
    for (name, more) in [("weft", Some(format!("--kubeconfig={nowhere}"))), ("weft-webhook", None)] {
        let container = &find(&rendered, "Deployment", name)["spec"]["template"]["spec"]["containers"][0];
        let arguments = container["args"].as_array().expect("arguments").iter().filter_map(Value::as_str);
        let mut command = Command::new(weft_beside_tests().expect("weft"));
        let done = command.args(arguments).args(more).output().expect("weft runs");
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains("cannot"), "{name}: {said}");
    }
}

#[test]
fn every_dashboard_is_a_config_map() {
    let rendered = objects(&template(&["--set", "dashboards.labels.grafana_dashboard=yes"]).expect("rendered"));
    let folder = repository().join("helm/weft/dashboards");
    let mut dashboards = 0;
    for entry in fs::read_dir(folder).expect("dashboards") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let map = find(&rendered, "ConfigMap", &format!("weft-dashboard-{name}"));
        let carried: Value =
            serde_json::from_str(map["data"][format!("weft-{name}.json")].as_str().expect("a file")).expect("JSON");
        let written: Value = serde_json::from_str(&fs::read_to_string(&path).expect("a file")).expect("JSON");
        assert_eq!(carried, written, "{name}");
        dashboards += 1;
    }
    assert!(dashboards >= 5, "{dashboards}");
}

#[test]
fn the_first_try_has_the_prometheus_of_the_examples_and_traces() {
    let copy = fs::read_to_string(repository().join("helm/weft/files/prometheus.conf")).expect("the chart's");
    let example = fs::read_to_string(repository().join("examples/observability/prometheus.conf")).expect("the example");
    assert!(copy == example, "cp examples/observability/prometheus.conf helm/weft/files/");
    let rendered = objects(&template(&["--set", "prometheus.enabled=true,jaeger.enabled=true"]).expect("rendered"));
    let config = find(&rendered, "ConfigMap", "weft-prometheus")["data"]["prometheus.yml"].as_str().expect("a file");
    assert!(!config.contains("10.244.0.1:"), "an address of the playground is left");
    let jobs: Value = serde_saphyr::from_str(config).expect("YAML");
    assert_eq!(
        jobs["scrape_configs"][1]["http_sd_configs"][0]["url"],
        "http://weft.weft-system.svc:15014/sd/prometheus"
    );
    let mesh = find(&rendered, "MeshConfig", "default");
    assert_eq!(mesh["spec"]["tracing"]["provider"]["otlp"]["grpc"], "weft-jaeger.weft-system.svc:4317");
    // What the user says holds.
    let own = template(&["--set", "jaeger.enabled=true,meshConfig.spec.tracing.sampling=1"]).expect("rendered");
    let own = objects(&own);
    assert_eq!(find(&own, "MeshConfig", "default")["spec"], serde_json::json!({"tracing": {"sampling": 1}}));
}

#[test]
fn versions_agree() {
    let chart: Value =
        serde_saphyr::from_str(&fs::read_to_string(PathBuf::from(chart()).join("Chart.yaml")).unwrap()).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
}

/// The root of the image is what its programs load: they run with nothing else of the machine.
#[test]
fn what_the_image_collects_runs_by_itself() {
    let root = tempfile::tempdir().expect("a directory");
    let weft = weft_beside_tests().expect("weft");
    let collected = Command::new(repository().join("image/collect"))
        .arg(root.path())
        .args([weft.as_os_str(), "nft".as_ref(), "ip".as_ref()])
        .output()
        .expect("collect runs");
    assert!(collected.status.success(), "{}", String::from_utf8_lossy(&collected.stderr));
    for (program, arguments) in
        [("nft", ["--version"]), ("ip", ["-V"]), (weft.to_str().expect("a path"), ["--version"])]
    {
        let path = ["", "/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"].map(|folder| format!("{folder}{program}"));
        let path =
            path.iter().find(|path| path.starts_with('/') && root.path().join(&path[1..]).exists()).expect(program);
        // In a user namespace, so that it needs no root.
        let run = Command::new("unshare")
            .args(["--map-root-user", "--root"])
            .arg(root.path())
            .arg(path)
            .args(arguments)
            .output();
        let run = run.expect("unshare runs");
        assert!(run.status.success(), "{program}: {}", String::from_utf8_lossy(&run.stderr));
    }
}
