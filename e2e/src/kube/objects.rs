//! Objects as tests write them, and how they come to an API server.

use anyhow::{Context, bail};
use kube::Client;
use serde_json::{Value, json};

use super::http_request;

/// The path of an object; a cluster-scoped one has no namespace, and all objects of a kind no name.
pub(super) fn path(api_version: &str, plural: &str, namespace: &str, name: &str) -> String {
    let root = if api_version.contains('/') { "apis" } else { "api" };
    let namespace = if namespace.is_empty() { String::new() } else { format!("/namespaces/{namespace}") };
    let name = if name.is_empty() { String::new() } else { format!("/{name}") };
    format!("/{root}/{api_version}{namespace}/{plural}{name}")
}

/// The plural of a kind, and whether it is in a namespace.
pub(super) fn resource(kind: &str) -> (String, bool) {
    let cluster = matches!(
        kind,
        "Namespace" | "Node" | "MeshConfig" | "ClusterRole" | "ClusterRoleBinding" | "CustomResourceDefinition"
    );
    let lower = kind.to_lowercase();
    let plural = match lower.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None if lower.ends_with('s') => format!("{lower}es"),
        None => format!("{lower}s"),
    };
    (plural, !cluster)
}

/// Creates or changes an object, and the `status` of a pod or a node.
///
/// # Errors
/// When the server refuses it.
pub async fn put(client: &Client, object: &Value) -> anyhow::Result<()> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let (Some(api_version), Some(kind), Some(name)) = (text("/apiVersion"), text("/kind"), text("/metadata/name"))
    else {
        bail!("no object: {object}");
    };
    let (plural, namespaced) = resource(kind);
    let namespace = if namespaced { text("/metadata/namespace").unwrap_or("default") } else { "" };
    let path = path(api_version, &plural, namespace, name);
    let apply = |path: String| {
        let body = Some(("application/apply-patch+yaml", object.to_string()));
        http_request("PATCH", &format!("{path}?fieldManager=test&force=true"), body)
    };
    client.request_text(apply(path.clone())).await.with_context(|| path.clone())?;
    if object.get("status").is_some() && matches!(kind, "Node" | "Pod") {
        client.request_text(apply(format!("{path}/status"))).await.with_context(|| path)?;
    }
    Ok(())
}

/// A meshed namespace.
pub fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"weft.dev/inject": "enabled"}},
    })
}

/// A Service of the pods with its name as label `app`.
pub fn service(namespace: &str, name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": port, "targetPort": 8080}]},
    })
}

/// A pod that runs, with a sidecar, of the workload and ServiceAccount `app`.
pub fn meshed_pod(namespace: &str, name: &str, app: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": app}},
        "spec": {
            "serviceAccountName": app,
            "automountServiceAccountToken": false,
            "nodeName": "node",
            "containers": [
                {"name": "app", "image": "app", "ports": [{"containerPort": 8080}]},
                {"name": "weft-proxy", "image": "envoy"},
            ],
        },
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

/// The EndpointSlice of a Service, with these pods and their addresses.
pub fn endpoint_slice(namespace: &str, service: &str, pods: &[(&str, &str)]) -> Value {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|(pod, ip)| {
            json!({
                "addresses": [ip], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": namespace, "name": format!("{service}-1"),
            "labels": {"kubernetes.io/service-name": service},
        },
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}
