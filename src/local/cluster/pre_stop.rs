//! What a container does before it gets SIGTERM: `lifecycle.preStop`.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use super::probe;
use crate::mesh::Diagnostic;

/// A hook of a container.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PreStop {
    /// Runs a command in the container; never empty.
    Exec(Vec<String>),
    /// GET over HTTP/1.1 of a port of the pod, from inside it: no sidecar stands in the way.
    Http {
        /// The port on the pod.
        port: u16,
        /// The path with its query, `/…`.
        path: String,
    },
    /// Waits.
    Sleep(Duration),
}

/// The hook that a container declares; what cannot be done here is said. `field` is the container's path.
pub(super) fn of_container(container: &Container, field: &str, diagnostics: &mut Vec<Diagnostic>) -> Option<PreStop> {
    let lifecycle = container.lifecycle.as_ref()?;
    if lifecycle.post_start.is_some() {
        diagnostics.push(Diagnostic::warning(
            format!("{field}.lifecycle.postStart"),
            "the playground does not run it",
            "do its work in the container's own command",
        ));
    }
    let parsed = parse(container, lifecycle.pre_stop.as_ref()?);
    parsed
        .map_err(|(reason, help)| {
            diagnostics.push(Diagnostic::warning(format!("{field}.lifecycle.preStop"), reason, help));
        })
        .ok()
}

fn parse(container: &Container, hook: &LifecycleHandler) -> Result<PreStop, (String, &'static str)> {
    if let Some(sleep) = &hook.sleep {
        return Ok(PreStop::Sleep(Duration::from_secs(sleep.seconds.try_into().unwrap_or(0))));
    }
    if let Some(http) = &hook.http_get {
        if http.scheme.as_deref() == Some("HTTPS") || http.host.as_ref().is_some_and(|host| !host.is_empty()) {
            let reason = "the playground asks nobody but the pod itself, over HTTP".to_owned();
            return Err((reason, "leave `host` and `scheme` out, or use exec"));
        }
        let path = http.path.as_deref().unwrap_or("/");
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        return Ok(PreStop::Http { port: probe::port(container, &http.port)?, path });
    }
    match hook.exec.as_ref().and_then(|exec| exec.command.clone()) {
        Some(argv) if !argv.is_empty() => Ok(PreStop::Exec(argv)),
        _ => Err(("it does nothing that the playground can do".to_owned(), "give one of exec, httpGet, sleep")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(lifecycle: Value) -> (Option<PreStop>, Vec<String>) {
        let ports = json!([{"name": "http", "containerPort": 8080}]);
        let container = json!({"name": "app", "ports": ports, "lifecycle": lifecycle});
        let mut diagnostics = Vec::new();
        let hook = of_container(&serde_json::from_value(container).unwrap(), "spec.containers[0]", &mut diagnostics);
        (hook, diagnostics.into_iter().map(|diagnostic| diagnostic.field).collect())
    }

    #[test]
    fn hooks_are_read_as_kubernetes_writes_them() {
        let sleep = read(json!({"preStop": {"sleep": {"seconds": 3}}}));
        assert_eq!(sleep, (Some(PreStop::Sleep(Duration::from_secs(3))), vec![]));
        let exec = read(json!({"preStop": {"exec": {"command": ["sleep", "1"]}}}));
        assert_eq!(exec, (Some(PreStop::Exec(vec!["sleep".to_owned(), "1".to_owned()])), vec![]));
        let http = read(json!({"preStop": {"httpGet": {"port": "http", "path": "drain?now"}}}));
        assert_eq!(http, (Some(PreStop::Http { port: 8080, path: "/drain?now".to_owned() }), vec![]));
        assert_eq!(read(json!({})), (None, vec![]));
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        let field = "spec.containers[0].lifecycle.preStop".to_owned();
        for hook in [json!({}), json!({"exec": {"command": []}}), json!({"httpGet": {"port": "none"}})] {
            assert_eq!(read(json!({"preStop": hook})), (None, vec![field.clone()]));
        }
        let started = read(json!({"postStart": {"sleep": {"seconds": 1}}}));
        assert_eq!(started, (None, vec!["spec.containers[0].lifecycle.postStart".to_owned()]));
    }
}
