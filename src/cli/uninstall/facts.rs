//! What depends on Weft in a cluster, and what there is of it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};

use super::plan::{Kind, Object};
use crate::cli::api_server::{list, text};
use crate::cli::check::facts::{Read, get};
use crate::cli::check::judge::is_ours;
use crate::cli::install::release::Release;
use crate::inject::wanted;
use crate::kubernetes::{lease, root_bundle, root_secret, warm_sets, webhooks};
use crate::source::convert::has_sidecar;
use crate::source::crds;

/// So many objects are asked for at once.
const PAGE: u32 = 500;

/// What is known before anything is removed.
pub(super) struct Facts {
    /// The control plane's.
    pub(super) namespace: String,
    pub(super) release: Option<Release>,
    /// What there is beside the release's own: the webhooks, and what the control plane has written.
    pub(super) there: BTreeSet<Object>,
    /// Namespaces whose pods get a sidecar.
    pub(super) meshed: BTreeSet<String>,
    /// Those who own pods with a sidecar, by namespace: `deployment/web`; and the names of their pods.
    pub(super) sidecars: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// The definitions of Weft's, and how many objects of each there are, or why that is not known.
    pub(super) definitions: BTreeMap<String, Read<usize>>,
}

impl Facts {
    /// Whether nothing of Weft is there, not even what an earlier uninstallation left.
    pub(super) fn is_clean(&self) -> bool {
        self.release.is_none() && self.there.is_empty() && self.definitions.is_empty()
    }

    /// Whether a namespace has pods with a sidecar.
    pub(super) fn in_use(&self, namespace: &str) -> bool {
        self.sidecars.contains_key(namespace)
    }
}

/// Reads them.
///
/// # Errors
/// With what cannot be read.
pub(super) async fn read(client: &Client, namespace: &str, release: Option<Release>) -> anyhow::Result<Facts> {
    let unread = |what: &'static str| move |error: String| anyhow::anyhow!("{what} cannot be read: {error}");
    Ok(Facts {
        namespace: namespace.to_owned(),
        release,
        there: there(client, namespace).await.map_err(unread("what is installed"))?,
        meshed: meshed(client).await.map_err(unread("the namespaces"))?,
        sidecars: sidecars(client).await.map_err(unread("the pods"))?,
        definitions: definitions(client).await.map_err(unread("the definitions"))?,
    })
}

/// What there is of Weft's own beside the release's.
async fn there(client: &Client, namespace: &str) -> Read<BTreeSet<Object>> {
    let mut there = BTreeSet::new();
    let mut note = |object: Object, found: bool| there.extend(found.then_some(object));
    let all = || client.clone();
    let injector = get::<MutatingWebhookConfiguration>(&Api::all(all()), webhooks::INJECTOR).await?.is_some();
    note(Object::cluster(Kind::Injector, webhooks::INJECTOR), injector);
    let validator = get::<ValidatingWebhookConfiguration>(&Api::all(all()), webhooks::VALIDATOR).await?.is_some();
    note(Object::cluster(Kind::Validator, webhooks::VALIDATOR), validator);
    for name in [webhooks::SECRET, root_secret::NAME] {
        let secret = get::<Secret>(&Api::namespaced(all(), namespace), name).await?;
        note(Object::new(Kind::Secret, namespace, name), secret.is_some_and(|secret| by_weft(&secret.metadata)));
    }
    let found = get::<Lease>(&Api::namespaced(all(), namespace), lease::NAME).await?.is_some();
    note(Object::new(Kind::Lease, namespace, lease::NAME), found);
    let warm = get::<ConfigMap>(&Api::namespaced(all(), namespace), warm_sets::NAME).await?;
    note(Object::new(Kind::ConfigMap, namespace, warm_sets::NAME), warm.is_some_and(|map| by_weft(&map.metadata)));
    let only = ListParams::default().fields(&format!("metadata.name={}", root_bundle::NAME));
    for map in Api::<ConfigMap>::all(all()).list(&only).await.map_err(text)?.items {
        let namespace = map.metadata.namespace.clone().unwrap_or_default();
        note(Object::new(Kind::ConfigMap, &namespace, root_bundle::NAME), by_weft(&map.metadata));
    }
    Ok(there)
}

/// Whether the control plane has made it.
fn by_weft(metadata: &ObjectMeta) -> bool {
    let by = metadata.labels.as_ref().and_then(|labels| labels.get("app.kubernetes.io/managed-by"));
    by.is_some_and(|by| by == "weft")
}

async fn meshed(client: &Client) -> Read<BTreeSet<String>> {
    let all = Api::<Namespace>::all(client.clone()).list(&ListParams::default()).await.map_err(text)?;
    let meshed = all.items.into_iter().filter(|namespace| wanted::is_meshed(&namespace.metadata));
    Ok(meshed.filter_map(|namespace| namespace.metadata.name).collect())
}

async fn sidecars(client: &Client) -> Read<BTreeMap<String, BTreeMap<String, Vec<String>>>> {
    let mut params = ListParams::default().limit(PAGE);
    let mut sidecars = BTreeMap::<String, BTreeMap<String, Vec<String>>>::new();
    loop {
        let (pods, next) = list::<Pod>(client, None, &params).await?;
        for pod in pods.iter().filter(|pod| has_sidecar(pod) && !has_ended(pod)) {
            let (namespace, name) = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
            let owners = sidecars.entry(namespace.unwrap_or_default()).or_default();
            owners.entry(owner(&pod.metadata)).or_default().push(name.unwrap_or_default());
        }
        match next {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(sidecars),
        }
    }
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Who makes a pod anew: `deployment/web`, `statefulset/db`; `pod/a` when nobody does.
fn owner(pod: &ObjectMeta) -> String {
    let mut owners = pod.owner_references.iter().flatten();
    let Some(owner) = owners.find(|owner| owner.controller == Some(true)) else {
        return format!("pod/{}", pod.name.as_deref().unwrap_or_default());
    };
    // A ReplicaSet is named after its Deployment and the hash of the pods' template.
    let hash = pod.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
    let deployment = hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    match (owner.kind.as_str(), deployment) {
        ("ReplicaSet", Some(deployment)) => format!("deployment/{deployment}"),
        (kind, _) => format!("{}/{}", kind.to_lowercase(), owner.name),
    }
}

/// Those that Weft has made or taken over, each with how many objects there are of it.
async fn definitions(client: &Client) -> Read<BTreeMap<String, Read<usize>>> {
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let mut found = BTreeMap::new();
    for wanted in crds::all() {
        let name = wanted.metadata.name.clone().unwrap_or_default();
        let Some(definition) = get(&api, &name).await?.filter(is_ours) else { continue };
        found.insert(name, count(client, &definition).await);
    }
    Ok(found)
}

/// How many objects there are, asked for in the version in which they are stored: that takes no webhook.
async fn count(client: &Client, definition: &CustomResourceDefinition) -> Read<usize> {
    let stored = definition.spec.versions.iter().find(|version| version.storage);
    let version = stored.map(|version| version.name.as_str()).unwrap_or_default();
    let kind = GroupVersionKind::gvk(&definition.spec.group, version, &definition.spec.names.kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, &definition.spec.names.plural);
    let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
    let page = api.list_metadata(&ListParams::default().limit(PAGE)).await.map_err(text)?;
    let more = page.metadata.remaining_item_count.and_then(|more| usize::try_from(more).ok());
    Ok(page.items.len() + more.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_are_made_anew_by_who_controls_them() {
        let of = |kind: &str, name: &str, labels: serde_json::Value| {
            let owners = json!([
                {"apiVersion": "v1", "kind": "Backup", "name": "other", "uid": "1"},
                {"apiVersion": "v1", "kind": kind, "name": name, "uid": "2", "controller": true},
            ]);
            owner(&serde_json::from_value(json!({"name": "a", "labels": labels, "ownerReferences": owners})).unwrap())
        };
        let hash = json!({"pod-template-hash": "5d8f"});
        assert_eq!(of("ReplicaSet", "web-v1-5d8f", hash.clone()), "deployment/web-v1");
        assert_eq!(of("ReplicaSet", "web", hash), "replicaset/web");
        assert_eq!(of("StatefulSet", "db", json!({})), "statefulset/db");
        assert_eq!(owner(&ObjectMeta { name: Some("a".to_owned()), ..ObjectMeta::default() }), "pod/a");
    }
}
