//! What a proxy has from the start: what every proxy needs, and what its workload is known to call.
//!
//! ```text
//!  learned (WarmSets) ──────┐
//!  TrafficTargets ──────────┼─▶ names(), once, when the pod is new ─┐
//!  weft.dev/upstreams ──────┴─▶ as long as the pod runs ────────────┴─▶ pushed()
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use super::names;
use crate::mesh::object::{DiscoveryMode, Pod};
use crate::mesh::{Upstream, WorkloadKey, World};
use crate::policy::upstream;
use crate::snapshot::{Pushed, ResourceName};
use crate::warm::{MAX_IN_SET, WarmSets};

/// Names of clusters; pods of a workload that started in the same state share them.
pub(super) type Names = Arc<BTreeSet<ResourceName>>;

#[derive(Debug, Default)]
pub(super) struct Warm {
    /// What was learned until now.
    pub(super) learned: WarmSets,
    /// The control plane has just started: a pod that has an address ran before it did. Its sidecar has what it calls
    /// and keeps it (see `xds::session`), and a restart brings it nothing else.
    pub(super) starting: bool,
    /// What the last pod of each workload was given: the next one's is usually equal, and then shared.
    given: BTreeMap<WorkloadKey, Weak<BTreeSet<ResourceName>>>,
    /// When `given` has so many, those of workloads that are gone are let go.
    purge_at: usize,
}

impl Warm {
    /// What a new pod is given once and for all: what every pod needs, what others of its workload called, and what
    /// TrafficTargets declare.
    pub(super) fn names(&mut self, world: &World, pod: &Pod) -> Names {
        let is_new = !self.starting || pod.ips.is_empty();
        let known = self.learned.of(&pod.workload).cloned().chain(upstream::of_targets(world, pod));
        let names = known.filter(|_| is_new).flat_map(|upstream| clusters(world, &upstream)).take(MAX_IN_SET);
        let always = [names::PASSTHROUGH.into(), names::INBOUND.into()];
        let names: BTreeSet<ResourceName> = names.chain(always).collect();
        if let Some(same) = self.given.get(&pod.workload).and_then(Weak::upgrade).filter(|given| **given == names) {
            return same;
        }
        let names = Arc::new(names);
        if self.given.len() >= self.purge_at {
            self.given.retain(|_, given| given.strong_count() > 0);
            self.purge_at = 2 * self.given.len() + 64;
        }
        self.given.insert(pod.workload.clone(), Arc::downgrade(&names));
        names
    }

    /// The wildcard of a pod that was given `names`.
    pub(super) fn pushed(&self, world: &World, pod: &Pod, given: &Names) -> Pushed {
        if world.config().discovery == DiscoveryMode::Eager {
            return Pushed::All;
        }
        if pod.upstreams.is_empty() {
            return Pushed::Only(given.clone());
        }
        let declared = pod.upstreams.iter().flat_map(|upstream| clusters(world, upstream)).take(MAX_IN_SET);
        Pushed::Only(Arc::new(given.iter().cloned().chain(declared).collect()))
    }
}

/// The clusters of an upstream, as far as it exists.
fn clusters(world: &World, upstream: &Upstream) -> Vec<ResourceName> {
    let Some(service) = world.service(&upstream.service).filter(|service| !service.headless) else { return Vec::new() };
    let ports = service.ports.iter().map(|port| port.port);
    let ports = Vec::from_iter(ports.filter(|port| upstream.port.is_none_or(|only| only == *port)));
    let addresses = service.cluster_ips.iter().flat_map(|ip| ports.iter().map(|port| SocketAddr::new(*ip, *port)));
    let routed = world.splits_of(&service.key).filter(|split| !split.matches.is_empty());
    let routed = Vec::from_iter(routed.map(|split| &split.name));
    let all = |at| std::iter::once(names::destination(at)).chain(routed.iter().map(move |name| names::split(at, name)));
    addresses.flat_map(all).collect()
}
