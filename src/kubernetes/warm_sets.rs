//! What workloads call, in one ConfigMap of the control plane's namespace that every replica reads and writes.
//!
//! ```text
//!  load: its version ─ another than last time ─▶ read it         (the caller merges)
//!  save: a document ─ another than last time ─▶ write it, unless another replica has written meanwhile
//! ```
//!
//! A first call writes nothing: what was learned is written with what else was, the less often the larger it is.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::{Cluster, Report, RequestError, send};
use crate::mesh::Diagnostic;
use crate::warm::document::{self, DocumentError};
use crate::warm::{Saved, StoreError, WarmSets, WarmStore};

/// The ConfigMap's name.
pub const NAME: &str = "weft-warm-sets";
/// Its key.
pub const KEY: &str = "warm-sets.json";

/// Bytes of a document. A ConfigMap may have 1 MiB in all; this is some 15,000 destinations.
const MAX_DOCUMENT: usize = 1_000_000;
/// Bytes a second that a replica writes in the long run.
const RATE: u32 = 20_000;

/// The ConfigMap.
pub struct ConfigMapStore {
    maps: Box<dyn Maps>,
    of: String,
    report: Arc<dyn Report>,
    last: Mutex<Last>,
}

/// What was read or written last.
#[derive(Default)]
struct Last {
    /// Its `resourceVersion`; `None`: it was not there.
    version: Option<String>,
    /// Of the document.
    digest: Option<u64>,
    /// When the next document may be written.
    next: Option<Instant>,
}

impl ConfigMapStore {
    /// That of the control plane's namespace.
    pub fn new(cluster: &Cluster, report: Arc<dyn Report>) -> Self {
        let api = Api::namespaced(cluster.client(), cluster.namespace());
        Self::with(Box::new(ApiServer(api)), cluster.namespace(), report)
    }

    fn with(maps: Box<dyn Maps>, namespace: &str, report: Arc<dyn Report>) -> Self {
        Self { maps, of: format!("ConfigMap {namespace}/{NAME}"), report, last: Mutex::default() }
    }

    async fn load(&self) -> Result<Option<WarmSets>, StoreError> {
        let version = self.done("read", self.maps.version().await)?;
        let before = self.last().version.clone();
        if version == before {
            return Ok(None);
        }
        let map = match version {
            Some(_) => self.done("read", self.maps.get().await)?,
            None => None,
        };
        let Some(ConfigMap { metadata, data, .. }) = map else {
            self.seen(None, None);
            return Ok(Some(WarmSets::default()));
        };
        let document = data.and_then(|mut data| data.remove(KEY)).unwrap_or_default();
        let sets = match document::decode(document.as_bytes()) {
            Ok(sets) => sets,
            Err(error @ DocumentError::Newer(_)) => {
                let reason = format!("{}: {error}; it is neither read nor written here", self.of);
                self.say(Some(Diagnostic::warning("", reason, "upgrade this replica, or delete the ConfigMap")));
                return Err(StoreError::Newer { place: self.of.clone(), error });
            }
            Err(error) => {
                tracing::warn!(of = self.of, %error, "the warm sets cannot be read, and are begun anew");
                self.seen(metadata.resource_version, None);
                return Ok(Some(WarmSets::default()));
            }
        };
        self.seen(metadata.resource_version, Some(xxh3_64(document.as_bytes())));
        Ok(Some(sets))
    }

    async fn save(&self, sets: WarmSets) -> Result<Saved, StoreError> {
        let (document, kept) = fitting(&sets).map_err(|error| self.failed(error.into()))?;
        let digest = Some(xxh3_64(document.as_bytes()));
        let (version, soon) = {
            let last = self.last();
            if last.digest == digest {
                return Ok(Saved::Kept);
            }
            (last.version.clone(), last.next.is_some_and(|next| Instant::now() < next))
        };
        if soon {
            return Ok(Saved::NotYet);
        }
        let bytes = u32::try_from(document.len()).unwrap_or(u32::MAX);
        let written = match self.maps.put(map(document, version)).await {
            // It was written, made or deleted in the meantime: it is read again.
            Err(RequestError::Conflict | RequestError::Missing) => return Ok(Saved::NotYet),
            other => self.done("written", other)?,
        };
        self.seen(written, digest);
        self.last().next = Some(Instant::now() + Duration::from_secs(1) * bytes / RATE);
        let full = (kept < sets.len()).then(|| {
            let all = sets.len();
            let reason =
                format!("{}: {kept} of {all} destinations fit: new pods that call others wait for them", self.of);
            Diagnostic::warning("", reason, "declare what they call: TrafficTargets, or weft.dev/upstreams")
        });
        self.report.report(&format!("size of {}", self.of), full);
        Ok(Saved::Kept)
    }

    /// Says how it stands after a request.
    fn done<T>(&self, what: &str, answer: Result<T, RequestError>) -> Result<T, StoreError> {
        let answer = answer.map_err(|error| {
            let reason = format!("{} cannot be {what}: {error}; new pods wait at first calls", self.of);
            self.say(Some(Diagnostic::warning("", reason, error.help("configmaps"))));
            self.failed(error.into())
        })?;
        self.say(None);
        Ok(answer)
    }

    fn say(&self, found: Option<Diagnostic>) {
        self.report.report(&self.of, found);
    }

    fn failed(&self, error: Box<dyn std::error::Error + Send + Sync>) -> StoreError {
        StoreError::Unusable { place: self.of.clone(), error }
    }

    fn seen(&self, version: Option<String>, digest: Option<u64>) {
        let mut last = self.last();
        (last.version, last.digest) = (version, digest);
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WarmStore for ConfigMapStore {
    fn load(&self) -> BoxFuture<'_, Result<Option<WarmSets>, StoreError>> {
        self.load().boxed()
    }

    fn save(&self, sets: WarmSets) -> BoxFuture<'_, Result<Saved, StoreError>> {
        self.save(sets).boxed()
    }
}

impl fmt::Debug for ConfigMapStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ConfigMapStore").field(&self.of).finish()
    }
}

/// The document of as many of the sets as fit, in their order, and how many these are.
fn fitting(sets: &WarmSets) -> Result<(String, usize), DocumentError> {
    let (mut document, mut kept) = (document::encode(sets)?, sets.len());
    while document.len() > MAX_DOCUMENT {
        kept = kept * MAX_DOCUMENT / document.len();
        let first = sets.iter().take(kept).map(|(workload, upstream, seen)| (workload.clone(), upstream.clone(), seen));
        document = document::encode(&first.collect())?;
    }
    Ok((document, kept))
}

/// The ConfigMap, in place of that of this version.
fn map(document: String, version: Option<String>) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            labels: Some([("app.kubernetes.io/managed-by".to_owned(), "weft".to_owned())].into()),
            resource_version: version,
            ..ObjectMeta::default()
        },
        data: Some([(KEY.to_owned(), document)].into()),
        ..ConfigMap::default()
    }
}

/// What is asked of the API server.
trait Maps: Send + Sync {
    /// The ConfigMap's `resourceVersion`; `None`: there is none.
    fn version(&self) -> BoxFuture<'_, Result<Option<String>, RequestError>>;

    /// The ConfigMap.
    fn get(&self) -> BoxFuture<'_, Result<Option<ConfigMap>, RequestError>>;

    /// Writes it: makes it if it has no version, else in place of that version. The version after that.
    fn put(&self, map: ConfigMap) -> BoxFuture<'_, Result<Option<String>, RequestError>>;
}

struct ApiServer(Api<ConfigMap>);

impl Maps for ApiServer {
    fn version(&self) -> BoxFuture<'_, Result<Option<String>, RequestError>> {
        async move {
            match send("get", self.0.get_metadata(NAME)).await {
                Ok(found) => Ok(found.metadata.resource_version),
                Err(RequestError::Missing) => Ok(None),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    fn get(&self) -> BoxFuture<'_, Result<Option<ConfigMap>, RequestError>> {
        async move {
            match send("get", self.0.get(NAME)).await {
                Ok(found) => Ok(Some(found)),
                Err(RequestError::Missing) => Ok(None),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    fn put(&self, map: ConfigMap) -> BoxFuture<'_, Result<Option<String>, RequestError>> {
        async move {
            let how = PostParams::default();
            let written = match map.metadata.resource_version {
                Some(_) => send("update", self.0.replace(NAME, &how, &map)).await?,
                None => send("create", self.0.create(&how, &map)).await?,
            };
            Ok(written.metadata.resource_version)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::mesh::WorkloadKey;
    use crate::warm::Moment;

    /// An API server with at most one ConfigMap.
    #[derive(Default)]
    struct Server {
        map: Mutex<Option<ConfigMap>>,
        writes: Mutex<u32>,
        reads: Mutex<u32>,
        fails: Mutex<Option<RequestError>>,
    }

    impl Server {
        fn answer<'a, T: Send + 'a>(&'a self, answer: T) -> BoxFuture<'a, Result<T, RequestError>> {
            std::future::ready(self.fails.lock().unwrap().clone().map_or(Ok(answer), Err)).boxed()
        }

        fn document(&self) -> String {
            self.map.lock().unwrap().clone().expect("a ConfigMap").data.expect("data")[KEY].clone()
        }
    }

    impl Maps for Arc<Server> {
        fn version(&self) -> BoxFuture<'_, Result<Option<String>, RequestError>> {
            self.answer(self.map.lock().unwrap().as_ref().and_then(|map| map.metadata.resource_version.clone()))
        }

        fn get(&self) -> BoxFuture<'_, Result<Option<ConfigMap>, RequestError>> {
            *self.reads.lock().unwrap() += 1;
            self.answer(self.map.lock().unwrap().clone())
        }

        fn put(&self, mut map: ConfigMap) -> BoxFuture<'_, Result<Option<String>, RequestError>> {
            let mut held = self.map.lock().unwrap();
            if held.as_ref().and_then(|held| held.metadata.resource_version.clone()) != map.metadata.resource_version {
                return std::future::ready(Err(RequestError::Conflict)).boxed();
            }
            let mut writes = self.writes.lock().unwrap();
            *writes += 1;
            map.metadata.resource_version = Some(format!("v{writes}"));
            *held = Some(map.clone());
            self.answer(map.metadata.resource_version)
        }
    }

    #[derive(Default)]
    struct Said(Mutex<BTreeMap<String, String>>);

    impl Report for Said {
        fn report(&self, of: &str, found: Option<Diagnostic>) {
            let mut said = self.0.lock().unwrap();
            match found {
                Some(found) => said.insert(of.to_owned(), found.reason),
                None => said.remove(of),
            };
        }
    }

    #[derive(Default)]
    struct Rig {
        server: Arc<Server>,
        said: Arc<Said>,
    }

    impl Rig {
        fn store(&self) -> ConfigMapStore {
            ConfigMapStore::with(Box::new(self.server.clone()), "weft-system", self.said.clone())
        }

        fn said(&self) -> Vec<String> {
            self.said.0.lock().unwrap().values().cloned().collect()
        }
    }

    fn sets<const N: usize>(services: [&str; N]) -> WarmSets {
        let mut sets = WarmSets::default();
        for service in services {
            let upstream = format!("{service}.shop:80").parse().expect("an upstream");
            sets.learn(&WorkloadKey::new("shop", "web"), upstream, Moment(1));
        }
        sets
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_replica_saved_another_loads_once() {
        let rig = Rig::default();
        let (a, b) = (rig.store(), rig.store());
        assert_eq!(a.load().await.expect("nothing yet"), None);
        assert_eq!(a.save(sets(["cart"])).await.expect("saved"), Saved::Kept);
        assert_eq!(a.load().await.expect("ours"), None);
        assert_eq!(b.load().await.expect("loaded"), Some(sets(["cart"])));
        assert_eq!(b.load().await.expect("known"), None);
        assert_eq!(b.save(sets(["cart"])).await.expect("nothing to write"), Saved::Kept);
        assert_eq!((*rig.server.writes.lock().unwrap(), *rig.server.reads.lock().unwrap()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_slower_reads_before_it_writes() {
        let rig = Rig::default();
        let (a, b) = (rig.store(), rig.store());
        a.save(sets(["cart"])).await.expect("saved");
        assert_eq!(b.save(sets(["mail"])).await.expect("no error"), Saved::NotYet, "it has not read the other's");
        assert_eq!(b.load().await.expect("loaded"), Some(sets(["cart"])));
        assert_eq!(b.save(sets(["cart", "mail"])).await.expect("saved"), Saved::Kept);
        assert_eq!(a.load().await.expect("loaded"), Some(sets(["cart", "mail"])));
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_document_is_written_the_less_often() {
        let rig = Rig::default();
        let store = rig.store();
        let (mut all, web) = (WarmSets::default(), WorkloadKey::new("shop", "web"));
        for service in 0..400 {
            all.learn(&web, format!("s{service}.shop:80").parse().expect("an upstream"), Moment(1));
        }
        assert_eq!(store.save(all.clone()).await.expect("saved"), Saved::Kept);
        let seconds = rig.server.document().len() as f64 / f64::from(RATE);
        all.learn(&web, "one-more.shop:80".parse().expect("an upstream"), Moment(1));
        assert_eq!(store.save(all.clone()).await.expect("later"), Saved::NotYet);
        tokio::time::advance(Duration::from_secs_f64(seconds * 0.9)).await;
        assert_eq!(store.save(all.clone()).await.expect("later"), Saved::NotYet);
        tokio::time::advance(Duration::from_secs_f64(seconds * 0.2)).await;
        assert_eq!(store.save(all.clone()).await.expect("saved"), Saved::Kept);
        assert_eq!(rig.store().load().await.expect("loaded"), Some(all));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_is_told_and_the_rest_is_kept() {
        let rig = Rig::default();
        let mut all = WarmSets::default();
        for workload in 0..200 {
            for service in 0..100 {
                let upstream = format!("service-{service}.shop:80").parse().expect("an upstream");
                all.learn(&WorkloadKey::new("shop", format!("w{workload}")), upstream, Moment(1_764_000_000));
            }
        }
        rig.store().save(all.clone()).await.expect("saved");
        let kept = rig.store().load().await.expect("loaded").expect("something");
        let length = rig.server.document().len();
        assert!((MAX_DOCUMENT * 9 / 10..=MAX_DOCUMENT).contains(&length), "{length}");
        let said = rig.said().join("\n");
        assert!(said.contains(&format!("{} of 20000 destinations fit", kept.len())), "{said}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_deleted_or_spoilt_is_written_anew() {
        for spoil in [None, Some("{\"version\":1,\"work"), Some("")] {
            let rig = Rig::default();
            let store = rig.store();
            store.save(sets(["cart"])).await.expect("saved");
            tokio::time::advance(Duration::from_secs(1)).await;
            let spoilt = spoil.map(|text| map(text.to_owned(), Some("edited".to_owned())));
            *rig.server.map.lock().unwrap() = spoilt;
            assert_eq!(store.load().await.expect("no error"), Some(WarmSets::default()), "so all is to be saved");
            assert_eq!(store.save(sets(["cart"])).await.expect("saved"), Saved::Kept);
            assert_eq!(rig.store().load().await.expect("loaded"), Some(sets(["cart"])));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn that_of_a_later_weft_is_left_alone_and_told() {
        let rig = Rig::default();
        *rig.server.map.lock().unwrap() = Some(map("{\"version\":9}".to_owned(), Some("theirs".to_owned())));
        let error = rig.store().load().await.expect_err("not read");
        assert!(matches!(error, StoreError::Newer { .. }), "{error}");
        let said = rig.said().join("\n");
        assert!(said.contains("version 9 is of a later Weft"), "{said}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_allowed_is_named_until_it_is() {
        let rig = Rig::default();
        let store = rig.store();
        *rig.server.fails.lock().unwrap() = Some(RequestError::Forbidden { verb: "get", message: "no".to_owned() });
        store.load().await.expect_err("not read");
        let said = rig.said().join("\n");
        assert!(said.starts_with("ConfigMap weft-system/weft-warm-sets") && said.contains("may not get"), "{said}");
        *rig.server.fails.lock().unwrap() = None;
        store.load().await.expect("read");
        assert_eq!(rig.said(), Vec::<String>::new());
    }
}
