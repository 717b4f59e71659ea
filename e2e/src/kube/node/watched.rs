//! What an API server has of the kinds that a node needs, kept up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use futures::TryStreamExt;
use kube::core::WatchEvent;
use serde_json::Value;

use super::http_request;
use super::pod::lock;

/// What the API server has, by kind and path.
#[derive(Default)]
pub(super) struct Watched {
    objects: Mutex<BTreeMap<(&'static str, String), Value>>,
    version: AtomicU64,
    problems: Mutex<BTreeSet<String>>,
}

impl Watched {
    /// All objects of a kind.
    pub(super) fn of(&self, kind: &'static str) -> Vec<Value> {
        let objects = lock(&self.objects);
        objects.iter().filter(|((of, _), _)| *of == kind).map(|(_, object)| object.clone()).collect()
    }

    /// Another number after each change.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Notes a problem, which a test shows when it fails.
    pub(super) fn complain(&self, text: &str) {
        lock(&self.problems).insert(text.to_owned());
    }

    /// The problems, a line each.
    pub(super) fn problems(&self) -> String {
        lock(&self.problems).iter().fold(String::new(), |text, problem| text + problem + "\n")
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<(&'static str, String), Value>)) {
        change(&mut lock(&self.objects));
        self.version.fetch_add(1, Ordering::Release);
    }
}

/// Keeps the objects of a kind as the API server has them, as long as the runtime lives.
pub(super) async fn watch(client: kube::Client, watched: Arc<Watched>, kind: &'static str, path: &'static str) {
    loop {
        if let Err(error) = follow(&client, &watched, kind, path).await {
            watched.complain(&format!("{kind}: {error:#}"));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Lists, and watches from there until the watch ends.
async fn follow(client: &kube::Client, watched: &Watched, kind: &'static str, path: &str) -> anyhow::Result<()> {
    let list: Value = client.request(http_request("GET", path, None)).await?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    watched.change(|objects| {
        objects.retain(|(of, _), _| *of != kind);
        objects.extend(items.into_iter().map(|object| ((kind, path_of(&object)), object)));
    });
    let version = list["metadata"]["resourceVersion"].as_str().context("a version")?;
    let request = http_request("GET", &format!("{path}?watch=true&resourceVersion={version}"), None);
    let mut events = std::pin::pin!(client.request_events::<Value>(request).await?);
    while let Some(event) = events.try_next().await? {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => watched.change(|objects| {
                objects.insert((kind, path_of(&object)), object);
            }),
            WatchEvent::Deleted(object) => watched.change(|objects| {
                objects.remove(&(kind, path_of(&object)));
            }),
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(status) => bail!("{status:?}"),
        }
    }
    Ok(())
}

/// `NAMESPACE/NAME`.
pub(super) fn path_of(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}
