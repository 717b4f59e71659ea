//! Pods as people write them, in `tests/inject/*.yaml`, and what `weft inject` makes of each beside it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::documents::inject_all;
use super::options::{Interception, SidecarForm};
use super::*;
use crate::source::yaml;

fn inputs() -> Vec<(String, String, Options)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inject");
    let files = fs::read_dir(&folder).expect("the folder").map(|entry| entry.expect("an entry").path());
    let mut inputs: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
    inputs.sort();
    assert!(inputs.len() >= 35, "{} inputs", inputs.len());
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("an input");
        let options = text.lines().next().and_then(|line| line.strip_prefix("# options: ")).unwrap_or_default();
        let options = Options::from_yaml(options).expect("options");
        (path.file_stem().expect("a name").to_string_lossy().into_owned(), text, options)
    };
    inputs.into_iter().map(read).collect()
}

fn values(text: &str) -> Vec<Value> {
    yaml::documents(text).iter().map(|chunk| chunk.parse().expect("YAML").to_json()).collect()
}

#[test]
fn pods_of_every_shape_become_what_stands_beside_them() {
    for (name, text, options) in inputs() {
        let injected = inject_all(&text, &options).expect(&name);
        let warnings: String = injected.warnings.iter().map(|warning| format!("# warning: {warning}\n")).collect();
        insta::with_settings!({
            snapshot_path => "../../tests/inject", prepend_module_to_snapshot => false, omit_expression => true
        }, {
            insta::assert_snapshot!(name, format!("{warnings}{}", injected.text));
        });
    }
}

#[test]
fn a_second_injection_changes_nothing() {
    for (name, text, options) in inputs() {
        let once = inject_all(&text, &options).expect(&name).text;
        let again = inject_all(&once, &options).expect(&name);
        assert_eq!((again.text, again.changed), (once, 0), "{name}");
    }
}

#[test]
fn the_patch_of_the_webhook_gives_what_is_written_offline() {
    let mut pods = 0;
    for (name, text, options) in inputs() {
        let written = values(&inject_all(&text, &options).expect(&name).text);
        let read = values(&text);
        assert_eq!(written.len(), read.len(), "{name}");
        for (pod, written) in read.into_iter().zip(written).filter(|(pod, _)| pod["kind"] == "Pod") {
            pods += 1;
            let workload = pod["metadata"]["name"].as_str().unwrap_or("debug");
            let after = inject(&pod, workload, &options).expect(&name).pod;
            let mut patched = pod.clone();
            patch::tests::apply(&mut patched, &patch::difference(&pod, &after));
            assert_eq!(patched, after, "{name}");
            assert_eq!(written, after, "{name}: what is written reads back as it was meant");
        }
    }
    assert!(pods > 20, "{pods} pods");
}

fn pod(metadata: Value, spec: Value) -> Value {
    let mut pod = json!({"metadata": metadata, "spec": {"containers": [{"name": "app", "image": "app:1"}]}});
    for (key, value) in spec.as_object().expect("an object") {
        pod["spec"][key] = value.clone();
    }
    pod
}

#[test]
fn a_pod_that_must_not_start_is_refused_with_what_to_do() {
    let annotated = |key: &str, value: &str| pod(json!({"annotations": {key: value}}), json!({}));
    for (pod, words) in [
        (annotated("weft.dev/exclude-outbound-ports", "80,http"), &["exclude-outbound-ports", "`http`", "commas"][..]),
        (annotated("weft.dev/exclude-outbound-ranges", "10/8"), &["exclude-outbound-ranges", "`10/8`"]),
        (annotated("weft.dev/proxy-log-level", "verbose"), &["`verbose`", "write trace"]),
        (annotated("weft.dev/proxy-cpu", "lots"), &["`lots`", "100m"]),
        (annotated("weft.dev/proxy-memory", "-1"), &["`-1`"]),
        (annotated("weft.dev/proxy-concurrency", "two"), &["`two`", "whole number"]),
        (annotated("weft.dev/drain-seconds", "30s"), &["`30s`"]),
        (annotated("weft.dev/xds", "rest"), &["weft.dev/xds", "delta"]),
        (annotated("weft.dev/proxy-volumes", "certs"), &["weft.dev/proxy-volumes", "JSON array"]),
        (annotated("weft.dev/proxy-volume-mounts", "[{}]"), &["has no name"]),
        (pod(json!({}), json!({"securityContext": {"runAsUser": 1337}})), &["the pod runs as user 1337"]),
        (
            pod(json!({}), json!({"containers": [{"name": "x", "securityContext": {"runAsUser": 1337}}]})),
            &["container x runs as user 1337", "use another"],
        ),
        (pod(json!({}), json!({"volumes": [{"name": "weft-root"}]})), &["a volume named `weft-root`"]),
        (pod(json!({}), json!({"initContainers": [{"name": "weft-init"}]})), &["a container named `weft-init`"]),
    ] {
        let error = inject(&pod, "app", &Options::default()).expect_err(words[0]).to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    }
}

#[test]
fn what_is_no_pod_is_refused_and_never_hurts() {
    for pod in [
        json!(null),
        json!([]),
        json!("pod"),
        json!({}),
        json!({"spec": null}),
        json!({"spec": []}),
        json!({"spec": [[], [], [], true]}),
        json!([{}, {}]),
        json!([{}, {"containers": []}]),
        json!({"metadata": [], "spec": {"containers": [[]]}}),
        json!({"metadata": {"annotations": {"a": 1}}, "spec": {}}),
        json!({"metadata": {"labels": "x"}, "spec": {}}),
        json!({"spec": {"containers": {"a": 1}}}),
        json!({"spec": {"containers": [{"ports": [{"containerPort": "x"}]}]}}),
        json!({"spec": {"containers": [{"livenessProbe": {"tcpSocket": {"port": {"a": 1}}, "periodSeconds": -1}}]}}),
    ] {
        for sidecar in [SidecarForm::Native, SidecarForm::Classic] {
            let _ = inject(&pod, "app", &Options { sidecar, ..Options::default() });
        }
    }
}

#[test]
fn with_a_cni_plugin_the_pod_fits_the_restricted_standard() {
    let options = Options { interception: Interception::Cni, ..Options::default() };
    let pod = inject(&pod(json!({}), json!({})), "app", &options).expect("injected").pod;
    for container in pod["spec"]["initContainers"].as_array().expect("two") {
        let security = &container["securityContext"];
        assert_eq!(security["runAsNonRoot"], true);
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
        assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
    }
    // Its volumes are of the kinds that the standard allows.
    let volumes = pod["spec"]["volumes"].as_array().expect("three");
    let allowed = ["emptyDir", "projected", "configMap"];
    assert!(volumes.iter().all(|volume| allowed.iter().any(|kind| volume.get(*kind).is_some())), "{volumes:?}");
}
