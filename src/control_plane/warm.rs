//! Learns what workloads call, and keeps it.
//!
//! ```text
//!  xds ─▶ Ears (a bounded queue; a stream never waits) ─▶ Memory ─▶ State.warm ─▶ pipeline, at the next new pod
//!                                                          │  ▲
//!                                             every 5 s, and at the end: WarmStore
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::pipeline::State;
use crate::envoy::names;
use crate::mesh::object::DiscoveryMode;
use crate::mesh::{Kind, ProxyId, ServiceKey, Upstream, WorkloadKey, World};
use crate::snapshot::{ResourceName, ResourceType, Snapshot};
use crate::warm::{Learned, Moment, Saved, StoreError, WarmSets, WarmStore};
use crate::xds::learn::Learn;

/// Requests that wait to be learned from. What does not fit is learned when its proxy connects again.
const QUEUE: usize = 4_096;
/// Requests that are learned from while the mesh is locked once.
const BATCH: usize = 256;
/// How often the store is asked for what other replicas learned, and how late it hears of what this one did.
const EXCHANGE: Duration = Duration::from_secs(5);
const TIDY: Duration = Duration::from_secs(3_600);

type Heard = (ProxyId, Vec<ResourceName>);

/// Hears what proxies use.
#[derive(Debug)]
pub(super) struct Ears(mpsc::Sender<Heard>);

impl Learn for Ears {
    fn uses(&self, proxy: &ProxyId, clusters: Vec<ResourceName>) {
        if self.0.try_send((proxy.clone(), clusters)).is_err() {
            tracing::debug!(%proxy, "too much to learn at once; what it uses is learned when it connects again");
        }
    }
}

/// Remembers it.
pub(super) struct Memory {
    heard: mpsc::Receiver<Heard>,
    state: Arc<State>,
    published: watch::Receiver<Option<Arc<Snapshot>>>,
    store: Option<Arc<dyn WarmStore>>,
    unsaved: bool,
    tidied: Option<Instant>,
    /// What failed last, so that it is logged once.
    failing: Option<String>,
    /// Workloads that call more than is kept; each is logged once.
    full: BTreeSet<WorkloadKey>,
}

impl Memory {
    /// A memory of what the returned ears hear. Without a store it lasts as long as the process.
    pub(super) fn new(
        state: Arc<State>,
        published: watch::Receiver<Option<Arc<Snapshot>>>,
        store: Option<Arc<dyn WarmStore>>,
    ) -> (Self, Ears) {
        let (ears, heard) = mpsc::channel(QUEUE);
        let (unsaved, tidied, failing, full) = (false, None, None, BTreeSet::new());
        (Self { heard, state, published, store, unsaved, tidied, failing, full }, Ears(ears))
    }

    /// Remembers what the store has kept.
    pub(super) async fn load(&mut self) {
        let Some(store) = self.store.clone() else { return };
        match store.load().await {
            Ok(Some(kept)) => {
                let ours = self.state.merge_warm(&kept);
                self.unsaved = ours != kept;
                self.failing = None;
            }
            Ok(None) => self.failing = None,
            Err(error) => self.failed(&error),
        }
    }

    /// Learns until there is nobody left to learn from.
    pub(super) async fn run(&mut self) {
        let mut tick = tokio::time::interval(EXCHANGE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                heard = self.heard.recv() => match heard {
                    Some(heard) => self.learn(heard),
                    None => return,
                },
                _ = tick.tick() => self.exchange().await,
            }
        }
    }

    /// Merges what other replicas have kept with what this one knows, and keeps the whole if it is more.
    pub(super) async fn exchange(&mut self) {
        self.load().await;
        if self.tidied.is_none_or(|at| at.elapsed() >= TIDY) {
            self.unsaved |= self.state.tidy_warm(Moment::now());
            self.tidied = Some(Instant::now());
        }
        if !self.unsaved || self.failing.is_some() {
            return;
        }
        let Some(store) = self.store.clone() else { return };
        match store.save(self.state.warm()).await {
            Ok(saved) => self.unsaved = saved == Saved::NotYet,
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &StoreError) {
        if matches!(error, StoreError::Newer { .. }) {
            self.store = None;
        }
        let text = error.to_string();
        if self.failing.as_ref() != Some(&text) {
            tracing::warn!("{text}");
            self.failing = Some(text);
        }
    }

    fn learn(&mut self, first: Heard) {
        let Some(snapshot) = self.published.borrow().clone() else { return };
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(more) = self.heard.try_recv()
        {
            batch.push(more);
        }
        let snapshot = &*snapshot;
        let calls = batch.iter().flat_map(|(proxy, clusters)| {
            clusters.iter().filter_map(move |cluster| Some((proxy, called(snapshot, proxy, cluster)?)))
        });
        let (new, full) = self.state.learn(calls.collect(), Moment::now());
        self.unsaved |= new;
        for workload in full {
            if self.full.insert(workload.clone()) {
                tracing::warn!(%workload, "it calls more destinations than are kept warm: its new pods wait at some first calls");
            }
        }
    }
}

/// The port of a Service that a cluster's calls go to. Pods that are called by address are none: their addresses are
/// others' tomorrow; nor are addresses that nobody has, however many of them are asked for.
pub(super) fn called(snapshot: &Snapshot, proxy: &ProxyId, cluster: &ResourceName) -> Option<Upstream> {
    let port = names::called_destination(cluster)?.port();
    let cluster = snapshot.intern(ResourceType::Cluster, cluster.as_str())?;
    let origin = snapshot.get(proxy, ResourceType::Cluster, cluster)?.origin.clone()?;
    let service =
        ServiceKey { namespace: origin.namespace.filter(|_| origin.kind == Kind::Service)?, name: origin.name };
    Some(Upstream { service, port: Some(port) })
}

impl State {
    /// Learns these calls; whether any of them is new, and the workloads that have too many.
    fn learn(&self, calls: Vec<(&ProxyId, Upstream)>, now: Moment) -> (bool, Vec<WorkloadKey>) {
        let inner = &mut *self.lock();
        let (mut new, mut full) = (false, Vec::new());
        // Where everything is pushed, a subscription says nothing of use.
        if inner.world.config().discovery == DiscoveryMode::Eager {
            return (new, full);
        }
        for (proxy, upstream) in calls {
            let Some(pod) = inner.world.pod(&proxy.0) else { continue };
            match inner.warm.learn(&pod.workload, upstream, now) {
                Learned::New => new = true,
                Learned::Known => {}
                Learned::Full => full.push(pod.workload.clone()),
            }
        }
        (new, full)
    }

    /// Adds what was kept; returns what is known then.
    fn merge_warm(&self, kept: &WarmSets) -> WarmSets {
        let mut inner = self.lock();
        inner.warm.merge(kept);
        inner.warm.clone()
    }

    /// Forgets what is long gone; whether anything changed.
    fn tidy_warm(&self, now: Moment) -> bool {
        let inner = &mut *self.lock();
        let workloads: BTreeSet<&WorkloadKey> = inner.world.pods().map(|pod| &pod.workload).collect();
        let exists = |workload: &WorkloadKey, upstream: &Upstream| {
            workloads.contains(workload) && has_port(&inner.world, upstream)
        };
        let before = inner.warm.clone();
        inner.warm.tidy(exists, now);
        inner.warm != before
    }

    fn warm(&self) -> WarmSets {
        self.lock().warm.clone()
    }
}

fn has_port(world: &World, upstream: &Upstream) -> bool {
    let Some(service) = world.service(&upstream.service) else { return false };
    upstream.port.is_none_or(|port| service.ports.iter().any(|has| has.port == port))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::control_plane::pipeline::Pipeline;
    use crate::mesh::Event;
    use crate::mesh::fixture::*;
    use crate::mesh::object::Object;
    use crate::warm::FileStore;

    /// A mesh with the Service cart and two pods of web, and a memory of it.
    struct Rig {
        state: Arc<State>,
        memory: Memory,
        ears: Ears,
    }

    impl Rig {
        fn new(store: Option<Arc<dyn WarmStore>>) -> Self {
            let (_batches, receiver) = mpsc::channel(1);
            let (snapshots, published) = watch::channel(None);
            let (pipeline, state) = Pipeline::new(receiver, snapshots.clone(), crate::ca::Clock::system());
            drop(pipeline);
            let mut locked = state.lock();
            let inner = &mut *locked;
            let mut dirty = crate::mesh::Dirty::default();
            for object in [
                Object::Service(service("shop/cart").ip("10.96.0.5").http(80)),
                Object::Pod(pod("shop/web-1", "10.244.0.3")),
                Object::Pod(pod("shop/web-2", "10.244.0.4")),
            ] {
                dirty.merge(inner.world.apply(Event::Apply(object)));
            }
            let changes = inner.translator.translate(&inner.world, &dirty).changes;
            snapshots.send_replace(Some(Arc::new(Snapshot::empty().with(changes))));
            drop(locked);
            let (memory, ears) = Memory::new(state.clone(), published, store);
            Self { state, memory, ears }
        }

        fn uses(&mut self, pod: &str, clusters: &[&str]) {
            let clusters = clusters.iter().map(|name| ResourceName::from(*name)).collect();
            self.ears.uses(&ProxyId(pod_key(pod)), clusters);
            let heard = self.memory.heard.try_recv().expect("heard");
            self.memory.learn(heard);
        }

        fn known(&self) -> Vec<String> {
            self.state.warm().iter().map(|(workload, upstream, _)| format!("{workload} {upstream}")).collect()
        }
    }

    /// Counts how often it is written to.
    #[derive(Debug)]
    struct Counting(FileStore, AtomicUsize);

    impl WarmStore for Counting {
        fn load(&self) -> futures::future::BoxFuture<'_, Result<Option<WarmSets>, StoreError>> {
            self.0.load()
        }

        fn save(&self, sets: WarmSets) -> futures::future::BoxFuture<'_, Result<Saved, StoreError>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.save(sets)
        }
    }

    #[tokio::test]
    async fn a_workload_is_learned_from_what_its_pods_ask_for() {
        let mut rig = Rig::new(None);
        rig.uses("shop/web-1", &["10.96.0.5:80", "10.96.0.9:80", "10.244.0.4:8080", "passthrough", "x/split"]);
        rig.uses("shop/stranger-1", &["10.96.0.5:80"]);
        assert_eq!(rig.known(), ["shop/web cart.shop:80"], "Services, and known pods, only");
    }

    #[tokio::test]
    async fn a_thousand_first_calls_are_one_write_and_a_repeated_one_is_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = FileStore::new(directory.path().join("warm.json"));
        let store = Arc::new(Counting(file, AtomicUsize::new(0)));
        let mut rig = Rig::new(Some(store.clone()));
        for _ in 0..1_000 {
            rig.uses("shop/web-1", &["10.96.0.5:80"]);
            rig.uses("shop/web-2", &["10.96.0.5:80"]);
        }
        rig.memory.exchange().await;
        rig.uses("shop/web-1", &["10.96.0.5:80"]);
        rig.memory.exchange().await;
        assert_eq!(store.1.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn replicas_that_share_a_store_know_the_same_and_it_outlives_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let store =
            || -> Option<Arc<dyn WarmStore>> { Some(Arc::new(FileStore::new(directory.path().join("w.json")))) };
        let (mut a, mut b) = (Rig::new(store()), Rig::new(store()));
        a.uses("shop/web-1", &["10.96.0.5:80"]);
        a.memory.exchange().await;
        b.memory.exchange().await;
        assert_eq!(b.known(), ["shop/web cart.shop:80"]);
        let mut restarted = Rig::new(store());
        restarted.memory.load().await;
        assert_eq!(restarted.known(), ["shop/web cart.shop:80"]);
    }

    #[tokio::test]
    async fn a_file_that_another_replica_overwrote_is_completed_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("w.json");
        let mut rig = Rig::new(Some(Arc::new(FileStore::new(path.clone()))));
        rig.uses("shop/web-1", &["10.96.0.5:80"]);
        rig.memory.exchange().await;
        FileStore::new(path.clone()).save(WarmSets::default()).await.expect("overwritten");
        rig.memory.exchange().await;
        let kept = FileStore::new(path).load().await.expect("readable").expect("there");
        assert_eq!(kept, rig.state.warm());
    }

    #[tokio::test]
    async fn the_file_of_a_later_weft_is_neither_read_nor_overwritten() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("w.json");
        std::fs::write(&path, r#"{"version":2}"#).expect("written");
        let mut rig = Rig::new(Some(Arc::new(FileStore::new(path.clone()))));
        rig.memory.load().await;
        rig.uses("shop/web-1", &["10.96.0.5:80"]);
        rig.memory.exchange().await;
        assert_eq!(std::fs::read_to_string(&path).expect("there"), r#"{"version":2}"#);
        assert_eq!(rig.known(), ["shop/web cart.shop:80"], "it works in memory");
    }
}
