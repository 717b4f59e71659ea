//! The mesh's root, for sidecars to trust: a ConfigMap in each meshed namespace, written by the holder of the Lease.
//!
//! ```text
//!  meshed namespaces ─┐
//!  the ConfigMaps ────┴─▶ missing, or not what it should be ─▶ create, patch
//! ```
//!
//! That of the control plane's own namespace says in addition that there is a mesh with this root (`root_secret`).

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{Cluster, Report, RequestError, send};
use crate::backoff::Backoff;
use crate::mesh::Diagnostic;

/// The ConfigMap's name.
pub const NAME: &str = "weft-root";
/// Its key, which is the name of the file that a sidecar's bootstrap reads.
pub const KEY: &str = "root.pem";

/// How long the ConfigMaps are watched before all are read again.
const WATCH: Duration = Duration::from_secs(240);
/// A namespace whose ConfigMap could not be written is tried again at the latest after this time.
const RETRY: Duration = Duration::from_secs(5);

/// Writes the root into namespaces.
pub struct RootBundle {
    cluster: Cluster,
    root_pem: String,
    report: Arc<dyn Report>,
}

/// What the ConfigMap of a namespace holds.
type Found = BTreeMap<String, Option<String>>;

impl RootBundle {
    /// That of this root.
    pub fn new(cluster: &Cluster, root_pem: &str, report: Arc<dyn Report>) -> Self {
        Self { cluster: cluster.clone(), root_pem: root_pem.to_owned(), report }
    }

    /// Keeps the ConfigMaps of the `meshed` namespaces as they should be, until the future is dropped.
    pub async fn keep(&self, meshed: watch::Receiver<BTreeSet<String>>) {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
        loop {
            match self.watch(meshed.clone()).await {
                Ok(()) => backoff.succeeded(),
                Err(error) => {
                    self.say(None, Some(&error));
                    sleep(backoff.failed()).await;
                }
            }
        }
    }

    /// Reads all of them, mends them, and watches them for a while.
    async fn watch(&self, mut meshed: watch::Receiver<BTreeSet<String>>) -> Result<(), RequestError> {
        let all: Api<ConfigMap> = Api::all(self.cluster.client());
        let fields = format!("metadata.name={NAME}");
        let list = send("list", all.list(&ListParams::default().fields(&fields))).await?;
        let from = list.metadata.resource_version.unwrap_or_default();
        let mut found: Found = list.items.into_iter().filter_map(content).collect();
        let params = WatchParams { field_selector: Some(fields), timeout: Some(240), ..WatchParams::default() };
        let mut events = pin!(send("watch", all.watch(&params, &from)).await?);
        self.say(None, None);
        let end = tokio::time::Instant::now() + WATCH;
        loop {
            let spaces = meshed.borrow_and_update().clone();
            let whole = self.mend(&spaces, &mut found).await;
            // Those that failed are tried again soon.
            let wait = if whole { end.saturating_duration_since(tokio::time::Instant::now()) } else { RETRY };
            tokio::select! {
                event = timeout(wait, events.next()) => match event {
                    Ok(Some(Ok(WatchEvent::Added(map) | WatchEvent::Modified(map)))) => found.extend(content(map)),
                    Ok(Some(Ok(WatchEvent::Deleted(map)))) => if let Some((namespace, _)) = content(map) {
                        found.remove(&namespace);
                    },
                    Ok(Some(Ok(WatchEvent::Bookmark(_)))) => {}
                    Err(_) if !whole => {}
                    // All are read again.
                    Ok(Some(Ok(WatchEvent::Error(_))) | None) | Err(_) => return Ok(()),
                    Ok(Some(Err(error))) => return Err(RequestError::new("watch", error)),
                },
                changed = meshed.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    }

    /// Writes those that are not what they should be; whether all are then.
    async fn mend(&self, meshed: &BTreeSet<String>, found: &mut Found) -> bool {
        let own = self.cluster.namespace.clone();
        let mut whole = true;
        for namespace in meshed.iter().chain((!meshed.contains(&own)).then_some(&own)) {
            let held = found.get(namespace);
            if held.is_some_and(|held| held.as_ref() == Some(&self.root_pem)) {
                continue;
            }
            match self.write(namespace, held.is_some()).await {
                Ok(()) => {
                    if held.is_some() {
                        tracing::warn!(%namespace, "the ConfigMap {NAME} held another root than the mesh's, and was mended");
                    }
                    found.insert(namespace.clone(), Some(self.root_pem.clone()));
                    self.say(Some(namespace), None);
                }
                // It was made, or deleted, in the meantime: an event tells.
                Err(RequestError::Conflict | RequestError::Missing) => whole = false,
                Err(RequestError::Forbidden { message, .. }) if message.contains("being terminated") => {}
                Err(error) => {
                    self.say(Some(namespace), Some(&error));
                    whole = false;
                }
            }
        }
        whole
    }

    async fn write(&self, namespace: &str, exists: bool) -> Result<(), RequestError> {
        let api: Api<ConfigMap> = Api::namespaced(self.cluster.client(), namespace);
        if exists {
            let patch = serde_json::json!({"data": {KEY: self.root_pem}});
            send("patch", api.patch(NAME, &PatchParams::default(), &Patch::Merge(patch))).await?;
            return Ok(());
        }
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                labels: Some(BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), "weft".to_owned())])),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(KEY.to_owned(), self.root_pem.clone())])),
            ..ConfigMap::default()
        };
        send("create", api.create(&PostParams::default(), &map)).await?;
        Ok(())
    }

    fn say(&self, namespace: Option<&str>, error: Option<&RequestError>) {
        let of = match namespace {
            Some(namespace) => format!("ConfigMap {namespace}/{NAME}"),
            None => format!("ConfigMaps {NAME}"),
        };
        let found = error.map(|error| {
            let reason = format!("{of}: {error}; new sidecars of the namespace wait for it");
            Diagnostic::error("", reason, error.help("configmaps"))
        });
        self.report.report(&of, found);
    }
}

/// The namespace of a ConfigMap, and the root that it holds.
fn content(map: ConfigMap) -> Option<(String, Option<String>)> {
    Some((map.metadata.namespace?, map.data.and_then(|mut data| data.remove(KEY))))
}
