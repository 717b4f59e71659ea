//! From what a Pod says to what runs: sidecar injection, images, commands, environment.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{ContainerProbes, ContainerToRun, NODE_ADDRESS, SIDECAR, pre_stop, probe};
use crate::inject::wanted;
use crate::mesh::Diagnostic;

/// The annotation that says what to run instead of an image; `.CONTAINER` may follow.
const LOCAL_COMMAND: &str = "weft.dev/local-command";

/// Whether a pod of this namespace gets a sidecar.
pub(super) fn wants_sidecar(namespace: Option<&ObjectMeta>, pod: &ObjectMeta) -> bool {
    wanted::wants_sidecar(namespace.is_some_and(wanted::is_meshed), pod)
}

/// Whether `spec` has a sidecar, by injection or by its author's hand.
pub(super) fn is_meshed(spec: &PodSpec) -> bool {
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|container| container.name == SIDECAR)
}

/// Adds the sidecar as Kubernetes' native form: an init container that is always restarted.
pub(super) fn inject(spec: &mut PodSpec) {
    if !is_meshed(spec) {
        let sidecar = Container {
            name: SIDECAR.to_owned(),
            image: Some("envoyproxy/envoy".to_owned()),
            restart_policy: Some("Always".to_owned()),
            ..Container::default()
        };
        spec.init_containers.get_or_insert_default().push(sidecar);
    }
}

/// What a pod's containers are on this machine, and what of them is not possible here.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    pub(super) containers: Vec<ContainerToRun>,
    pub(super) probes: Vec<ContainerProbes>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// Resolves the containers of `pod`, whose name, namespace and `status.podIP` are known. `prefix` is where its spec
/// stands in the object that people wrote: empty, or `spec.template.`.
pub(super) fn resolve(pod: &Pod, prefix: &str, executable: &Path) -> Resolved {
    let mut resolved = Resolved::default();
    let Some(spec) = &pod.spec else {
        let diagnostic = Diagnostic::error(format!("{prefix}spec"), "is missing", "add spec.containers");
        return Resolved { diagnostics: vec![diagnostic], ..resolved };
    };
    if spec.host_network == Some(true) {
        resolved.diagnostics.push(Diagnostic::warning(
            format!("{prefix}spec.hostNetwork"),
            "has no effect in the playground, where the pod gets a network of its own",
            "remove it",
        ));
    }
    if spec.init_containers.iter().flatten().any(|container| container.name != SIDECAR) {
        resolved.diagnostics.push(Diagnostic::warning(
            format!("{prefix}spec.initContainers"),
            "init containers do not run in the playground",
            "do their work in the container's own command",
        ));
    }
    let applications: Vec<_> = spec.containers.iter().enumerate().filter(|(_, c)| c.name != SIDECAR).collect();
    if applications.is_empty() {
        resolved.diagnostics.push(Diagnostic::error(
            format!("{prefix}spec.containers"),
            "names no container to run",
            "add one",
        ));
    }
    let single = applications.len() == 1;
    for (index, container) in applications {
        let field = format!("{prefix}spec.containers[{index}]");
        let env = environment(pod, container, &field, &mut resolved.diagnostics);
        let pre_stop = pre_stop::of_container(container, &field, &mut resolved.diagnostics);
        match argv(pod, container, &env, single, &field, executable) {
            Ok(argv) => resolved.containers.push(ContainerToRun {
                name: container.name.clone(),
                argv,
                env: env.into_iter().collect(),
                workdir: container.working_dir.as_ref().map(Into::into),
                pre_stop,
            }),
            Err(diagnostic) => resolved.diagnostics.push(*diagnostic),
        }
        resolved.probes.extend(probe::of_container(container, &field, &mut resolved.diagnostics));
    }
    resolved
}

/// Whether an image is Weft's own: `weft`, `REGISTRY/weft`, each with or without a tag.
fn is_weft(image: &str) -> bool {
    let name = image.rsplit('/').next().unwrap_or_default();
    name == "weft" || name.starts_with("weft:") || name.starts_with("weft@")
}

fn argv(
    pod: &Pod,
    container: &Container,
    env: &BTreeMap<String, String>,
    single: bool,
    field: &str,
    executable: &Path,
) -> Result<Vec<String>, Box<Diagnostic>> {
    let annotations = pod.metadata.annotations.as_ref();
    let own = format!("{LOCAL_COMMAND}.{}", container.name);
    let local = annotations.and_then(|a| a.get(&own).or_else(|| a.get(LOCAL_COMMAND).filter(|_| single)));
    if let Some(command) = local {
        return Ok(vec!["/bin/sh".to_owned(), "-c".to_owned(), command.clone()]);
    }
    let image = container.image.as_deref().unwrap_or_default();
    if !is_weft(image) {
        let annotation = if single { LOCAL_COMMAND } else { own.as_str() };
        return Err(Box::new(Diagnostic::error(
            format!("{field}.image"),
            format!("the playground has no images, so `{image}` cannot run here"),
            format!("give the pod the annotation `{annotation}: COMMAND` with a command of this machine"),
        )));
    }
    let mut words = container.command.iter().flatten();
    match words.next() {
        Some(program) if program.rsplit('/').next() != Some("weft") => {
            return Err(Box::new(Diagnostic::error(
                format!("{field}.command[0]"),
                format!("the image `{image}` holds nothing but `weft`, and this is `{program}`"),
                "use `weft`, or leave `command` out and give `args`",
            )));
        }
        _ => {}
    }
    let rest = words.chain(container.args.iter().flatten()).map(|word| expand(word, env));
    Ok(std::iter::once(executable.to_string_lossy().into_owned()).chain(rest).collect())
}

fn environment(
    pod: &Pod,
    container: &Container,
    field: &str,
    diagnostics: &mut Vec<Diagnostic>,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    if container.env_from.as_ref().is_some_and(|sources| !sources.is_empty()) {
        diagnostics.push(Diagnostic::warning(
            format!("{field}.envFrom"),
            "the playground has no ConfigMaps and Secrets, so nothing is set from it",
            "write the values into `env`",
        ));
    }
    for (index, variable) in container.env.iter().flatten().enumerate() {
        match value(pod, variable, &env) {
            Some(value) => {
                env.insert(variable.name.clone(), value);
            }
            None => diagnostics.push(Diagnostic::warning(
                format!("{field}.env[{index}].valueFrom"),
                format!("`{}` is not set: the playground cannot read this source", variable.name),
                "use a value, or a fieldRef to metadata.name, metadata.namespace, metadata.uid, metadata.labels['…'], \
                 metadata.annotations['…'], spec.serviceAccountName, spec.nodeName, status.podIP or status.hostIP",
            )),
        }
    }
    env
}

fn value(pod: &Pod, variable: &EnvVar, env: &BTreeMap<String, String>) -> Option<String> {
    match &variable.value_from {
        None => Some(expand(variable.value.as_deref().unwrap_or_default(), env)),
        Some(source) => field_value(pod, &source.field_ref.as_ref()?.field_path),
    }
}

fn field_value(pod: &Pod, path: &str) -> Option<String> {
    let metadata = &pod.metadata;
    let entry = |map: &Option<BTreeMap<String, String>>, key: &str| {
        let key = key.strip_prefix("['")?.strip_suffix("']")?;
        Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    match path {
        "metadata.name" => metadata.name.clone(),
        "metadata.namespace" => metadata.namespace.clone(),
        "metadata.uid" => metadata.uid.clone(),
        "spec.serviceAccountName" => pod.spec.as_ref()?.service_account_name.clone(),
        "spec.nodeName" => pod.spec.as_ref()?.node_name.clone(),
        "status.podIP" | "status.podIPs" => pod.status.as_ref()?.pod_ip.clone(),
        "status.hostIP" | "status.hostIPs" => Some(NODE_ADDRESS.to_string()),
        _ => match path.strip_prefix("metadata.labels") {
            Some(key) => entry(&metadata.labels, key),
            None => entry(&metadata.annotations, path.strip_prefix("metadata.annotations")?),
        },
    }
}

/// Kubernetes' expansion: `$(NAME)` is replaced if known, `$$` is a dollar sign, all else stays as it is.
pub fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
            continue;
        }
        let reference = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        match reference.and_then(|(name, after)| Some((env.get(name)?, after))) {
            Some((value, after)) => {
                expanded.push_str(value);
                rest = after;
            }
            None => expanded.push('$'),
        }
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).expect("a pod")
    }

    fn resolve(value: serde_json::Value) -> Resolved {
        super::resolve(&pod(value), "spec.template.", Path::new("/bin/weft"))
    }

    #[test]
    fn references_expand_as_in_kubernetes() {
        let env = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        for (text, expected) in [
            ("$(A)-$(A)", "1-1"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("ü$(A)ü", "ü1ü"),
        ] {
            assert_eq!(expand(text, &env), expected, "{text}");
        }
    }

    #[test]
    fn wefts_image_runs_the_executable_with_its_environment() {
        let resolved = resolve(json!({
            "metadata": {"name": "cart-1", "namespace": "shop", "labels": {"version": "v2"}},
            "spec": {"containers": [{"name": "app", "image": "registry.local:5000/weft:1", "command": ["weft", "app"],
                "args": ["--name=$(NAME)"], "workingDir": "/tmp", "env": [
                    {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "VERSION", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['version']"}}},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "NAME", "value": "$(POD)/$(VERSION)"},
                    {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}]},
            "status": {"podIP": "10.244.0.2"},
        }));
        let container = &resolved.containers[0];
        assert_eq!(container.argv, ["/bin/weft", "app", "--name=cart-1/v2"]);
        assert!(container.env.contains(&("IP".into(), "10.244.0.2".into())));
        let [warning] = &resolved.diagnostics[..] else { panic!("{:?}", resolved.diagnostics) };
        assert_eq!(warning.field, "spec.template.spec.containers[0].env[4].valueFrom");
    }

    #[test]
    fn what_cannot_run_is_said_with_the_way_out() {
        for (containers, annotations, field, words) in [
            (
                json!([{"name": "a", "image": "nginx"}]),
                json!({}),
                "spec.template.spec.containers[0].image",
                "`weft.dev/local-command: COMMAND`",
            ),
            (
                json!([{"name": "a", "image": "weft"}, {"name": "b", "image": "weftier:1"}]),
                json!({"weft.dev/local-command": "x"}),
                "spec.template.spec.containers[1].image",
                "`weft.dev/local-command.b: COMMAND`",
            ),
            (
                json!([{"name": "a", "image": "weft", "command": ["sh"]}]),
                json!({}),
                "spec.template.spec.containers[0].command[0]",
                "leave `command` out",
            ),
            (json!([]), json!({}), "spec.template.spec.containers", "add one"),
        ] {
            let resolved =
                resolve(json!({"metadata": {"annotations": annotations}, "spec": {"containers": containers}}));
            let [error] = &resolved.diagnostics[..] else { panic!("{:?}", resolved.diagnostics) };
            assert_eq!(error.field, field);
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn a_local_command_goes_through_the_shell() {
        let resolved = resolve(json!({
            "metadata": {"annotations": {"weft.dev/local-command": "nc -l 80", "weft.dev/local-command.b": "true"}},
            "spec": {"containers": [{"name": "b", "image": "nginx"}]},
        }));
        assert_eq!(resolved.containers[0].argv, ["/bin/sh", "-c", "true"]);
    }

    #[test]
    fn the_pods_label_wins_over_the_namespaces() {
        let labelled = |value: Option<&str>| ObjectMeta {
            labels: value.map(|value| BTreeMap::from([(crate::inject::INJECT.to_owned(), value.to_owned())])),
            ..ObjectMeta::default()
        };
        for (namespace, pod, expected) in [
            (None, None, false),
            (Some("enabled"), None, true),
            (Some("enabled"), Some("false"), false),
            (Some("disabled"), Some("true"), true),
            (Some("disabled"), None, false),
        ] {
            assert_eq!(wants_sidecar(Some(&labelled(namespace)), &labelled(pod)), expected, "{namespace:?} {pod:?}");
        }
    }
}
