//! What becomes of the Deployments while Helm waits for them, and why it waits in vain.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::Client;
use kube::api::ListParams;

use crate::cli::api_server::list;
use crate::cli::check::facts::Read;

/// What the chart makes has this label.
pub(in crate::cli) const OURS: &str = "app.kubernetes.io/part-of=weft";
/// Of a container that waits for one of these there is nothing to say yet.
const BEGINNING: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// How many replicas of each Deployment are ready and of the newest version: `weft 1/2, weft-webhook 0/2`.
pub(super) async fn readiness(client: &Client, namespace: &str) -> Read<String> {
    Ok(ready(&deployments(client, namespace).await?))
}

/// Why what was installed does not become ready, as far as the cluster says so.
pub(super) async fn reasons(client: &Client, namespace: &str) -> Read<Vec<String>> {
    let (pods, _) = list::<Pod>(client, Some(namespace), &ListParams::default().labels(OURS)).await?;
    Ok(stuck(&deployments(client, namespace).await?, &pods))
}

async fn deployments(client: &Client, namespace: &str) -> Read<Vec<Deployment>> {
    Ok(list(client, Some(namespace), &ListParams::default().labels(OURS)).await?.0)
}

fn ready(deployments: &[Deployment]) -> String {
    let each = deployments.iter().map(|deployment| {
        let name = deployment.metadata.name.as_deref().unwrap_or_default();
        let wanted = deployment.spec.replicas.unwrap_or(1);
        let status = deployment.status.clone().unwrap_or_default();
        let (ready, newest) = (status.ready_replicas.unwrap_or_default(), status.updated_replicas.unwrap_or_default());
        format!("{name} {}/{wanted}", ready.min(newest))
    });
    each.collect::<Vec<_>>().join(", ")
}

fn stuck(deployments: &[Deployment], pods: &[Pod]) -> Vec<String> {
    let mut found = BTreeSet::new();
    for deployment in deployments {
        let name = deployment.metadata.name.as_deref().unwrap_or_default();
        let conditions = deployment.status.as_ref().and_then(|status| status.conditions.as_ref());
        let refused =
            conditions.into_iter().flatten().filter(|one| is(&one.type_, "ReplicaFailure") && is(&one.status, "True"));
        found.extend(refused.map(|one| {
            format!("Deployment {name}: no pod can be created: {}", one.message.as_deref().unwrap_or_default())
        }));
    }
    for pod in pods {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let Some(status) = &pod.status else { continue };
        let conditions = status.conditions.iter().flatten();
        let unscheduled = conditions.filter(|one| one.reason.as_deref() == Some("Unschedulable"));
        found.extend(
            unscheduled
                .map(|one| format!("pod {name}: no node for it: {}", one.message.as_deref().unwrap_or_default())),
        );
        found.extend(status.container_statuses.iter().flatten().filter_map(|container| waits(name, container)));
    }
    found.into_iter().collect()
}

fn is(field: &Option<String>, value: &str) -> bool {
    field.as_deref() == Some(value)
}

/// What a container waits for, when it should not.
fn waits(pod: &str, container: &ContainerStatus) -> Option<String> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().filter(|reason| !BEGINNING.contains(reason))?;
    let message = waiting.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
    Some(format!("pod {pod}: {}, {reason}{message}", container.image))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of<T: serde::de::DeserializeOwned>(json: serde_json::Value) -> T {
        serde_json::from_value(json).expect("an object")
    }

    fn deployment(name: &str, status: serde_json::Value) -> Deployment {
        of(
            json!({"metadata": {"name": name}, "spec": {"replicas": 2, "selector": {}, "template": {}}, "status": status}),
        )
    }

    #[test]
    fn replicas_of_the_old_version_are_not_those_that_are_waited_for() {
        let all = [
            deployment("weft", json!({"readyReplicas": 2, "updatedReplicas": 1})),
            deployment("weft-webhook", json!({})),
        ];
        assert_eq!(ready(&all), "weft 1/2, weft-webhook 0/2");
    }

    #[test]
    fn what_keeps_pods_from_being_ready_is_told_once_and_what_only_takes_its_time_is_not() {
        let refused = json!({"conditions": [
            {"type": "Available", "status": "False", "message": "no"},
            {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]});
        let pod =
            |name: &str, status: serde_json::Value| of::<Pod>(json!({"metadata": {"name": name}, "status": status}));
        let waiting = |reason: &str| {
            json!({"containerStatuses": [{"name": "weft", "image": "weft:1", "imageID": "", "ready": false,
                "restartCount": 0, "state": {"waiting": {"reason": reason, "message": "not found"}}}]})
        };
        let pods = [
            pod("a", waiting("ImagePullBackOff")),
            pod("b", waiting("ContainerCreating")),
            pod(
                "c",
                json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "0/1 nodes are available"}]}),
            ),
            pod("d", json!({"phase": "Running"})),
        ];
        assert_eq!(
            stuck(&[deployment("weft", refused.clone()), deployment("weft", refused)], &pods),
            [
                "Deployment weft: no pod can be created: exceeded quota",
                "pod a: weft:1, ImagePullBackOff: not found",
                "pod c: no node for it: 0/1 nodes are available",
            ]
        );
    }
}
