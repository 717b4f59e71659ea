//! Who calls whom: what is learned and declared, and how many connected pods have it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;

use super::pipeline::State;
use super::warm::called;
use crate::inspect::{self, Edge, How, Origin, Used};
use crate::mesh::object::DiscoveryMode;
use crate::mesh::{PodKey, ProxyId, Upstream, WorkloadKey, World};
use crate::policy;
use crate::snapshot::{ResourceName, ResourceType, Snapshot};
use crate::xds::Registry;

/// Answers from the mesh, its memory, and the streams.
pub(super) struct Graph {
    state: Arc<State>,
    published: watch::Receiver<Option<Arc<Snapshot>>>,
    streams: Arc<Registry>,
}

impl Graph {
    pub(super) fn new(
        state: Arc<State>,
        published: watch::Receiver<Option<Arc<Snapshot>>>,
        streams: Arc<Registry>,
    ) -> Self {
        Self { state, published, streams }
    }

    /// The clusters that a proxy has: those it asked for, and those it was pushed. Where everything is pushed, that says
    /// nothing of use, and only the first count.
    fn clusters(
        &self,
        snapshot: &Snapshot,
        proxy: &ProxyId,
        asked: BTreeSet<ResourceName>,
    ) -> Vec<(ResourceName, How)> {
        let eager = self.state.lock().world.config().discovery == DiscoveryMode::Eager;
        let pushed = if eager { BTreeSet::new() } else { snapshot.wildcard(proxy, ResourceType::Cluster) };
        let warm: Vec<_> = pushed.difference(&asked).cloned().map(|name| (name, How::Warm)).collect();
        asked.into_iter().map(|name| (name, How::Asked)).chain(warm).collect()
    }

    /// How many connected pods of each workload have each destination.
    fn pods(&self, snapshot: &Snapshot) -> BTreeMap<(WorkloadKey, Upstream), usize> {
        let mut pods = BTreeMap::new();
        for (proxy, asked) in self.streams.asked_clusters() {
            let workload = self.state.lock().world.pod(&proxy.0).map(|pod| pod.workload.clone());
            let Some(workload) = workload else { continue };
            let clusters = self.clusters(snapshot, &proxy, asked);
            let upstreams: BTreeSet<Upstream> =
                clusters.iter().filter_map(|(name, _)| called(snapshot, &proxy, name)).collect();
            for upstream in upstreams {
                *pods.entry((workload.clone(), upstream)).or_default() += 1;
            }
        }
        pods
    }
}

impl inspect::Graph for Graph {
    fn edges(&self) -> Vec<Edge> {
        let Some(snapshot) = self.published.borrow().clone() else { return Vec::new() };
        let pods = self.pods(&snapshot);
        let inner = self.state.lock();
        let mut edges: BTreeMap<(WorkloadKey, Upstream), Edge> = BTreeMap::new();
        let edge = |workload: &WorkloadKey, upstream: &Upstream, origin, since| {
            let key = (workload.clone(), upstream.clone());
            let pods = pods.get(&key).copied().unwrap_or_default();
            let edge = Edge { caller: workload.clone(), destination: upstream.clone(), origin, since, pods };
            (key, edge)
        };
        edges.extend(
            declared(&inner.world).iter().map(|(workload, called)| edge(workload, called, Origin::Declared, None)),
        );
        // What is known to happen says more than what is declared.
        edges.extend(
            inner
                .warm
                .iter()
                .map(|(workload, called, seen)| edge(workload, called, Origin::Learned, Some(seen.since.time()))),
        );
        edges.into_values().collect()
    }

    fn used(&self, pod: &PodKey) -> Option<Vec<Used>> {
        let snapshot = self.published.borrow().clone()?;
        let proxy = ProxyId(pod.clone());
        let (_, asked) = self.streams.asked_clusters().into_iter().find(|(connected, _)| *connected == proxy)?;
        let clusters = self.clusters(&snapshot, &proxy, asked).into_iter();
        let used = |(cluster, how)| Used { destination: called(&snapshot, &proxy, &cluster), cluster, how };
        Some(clusters.map(used).collect())
    }
}

/// What annotations and TrafficTargets say that workloads call, a port each.
fn declared(world: &World) -> BTreeSet<(WorkloadKey, Upstream)> {
    let mut declared = BTreeSet::new();
    let mut targets = BTreeSet::new();
    for pod in world.pods().filter(|pod| pod.meshed && !pod.host_network) {
        let mut upstreams = pod.upstreams.clone();
        if targets.insert((&pod.workload, &pod.account)) {
            upstreams.extend(policy::upstream::of_targets(world, pod));
        }
        for upstream in upstreams {
            let Some(service) = world.service(&upstream.service) else { continue };
            let ports = service.ports.iter().map(|port| port.port);
            for port in ports.filter(|port| upstream.port.is_none_or(|only| only == *port)) {
                let called = Upstream { service: upstream.service.clone(), port: Some(port) };
                declared.insert((pod.workload.clone(), called));
            }
        }
    }
    declared
}
