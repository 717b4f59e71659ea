//! Keeps the table of resources in step with the world, at the cost of what changed.
//!
//! ```text
//!  (World, Dirty) ─▶ plan again what is dirty ─▶ stop where the plan is equal ─▶ Change
//!     services.rs: what each address of a Service leads to      pods.rs: what each pod accepts
//!     ports.rs: the port numbers that are TCP                   outbound.rs: the outbound listener
//!     findings.rs: what the authors should know
//! ```

mod egress;
mod findings;
mod outbound;
mod pods;
mod ports;
mod services;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use ipnet::IpNet;
use prost::Message;

use super::fallback::Addresses;
use super::{cluster, collector, names, route};
use crate::mesh::{Diagnostic, Dirty, Kind, ObjectRef, ServiceKey, TrustDomain, World};
use crate::policy::telemetry;
use crate::snapshot::{Change, Resource, ResourceName, ResourceType};
use crate::warm::WarmSets;
use egress::OfMesh;
use findings::Findings;
use outbound::Outbound;
use pods::Pods;
use ports::Ports;
use services::Services;

/// Translates plans, and remembers the last ones.
#[derive(Debug, Default)]
pub struct Translator {
    services: Services,
    pods: Pods,
    ports: Ports,
    outbound: Outbound,
    findings: Findings,
    trust_domain: TrustDomain,
    ranges: Arc<[IpNet]>,
    started: bool,
}

/// What one round of translation led to.
#[derive(Debug, Default)]
pub struct Translated {
    /// The steps to the next snapshot.
    pub changes: Vec<Change>,
    /// What the authors of the mesh's objects should know, and were not told before.
    pub findings: Vec<Diagnostic>,
    /// What it took.
    pub work: Work,
}

/// What a round of translation took. It follows what changed, and not the size of the mesh.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Work {
    /// Plans that were made again.
    pub plans: usize,
    /// Resources that were encoded.
    pub encoded: usize,
}

impl Translator {
    /// What the workloads are known to call: pods that are new from now on have it from the start.
    pub fn learned(&mut self, sets: WarmSets) {
        self.pods.learned(sets);
    }

    /// Brings the table in step with the world, of which only `dirty` may differ from the last time.
    pub fn translate(&mut self, world: &World, dirty: &Dirty) -> Translated {
        let mut out = Translated::default();
        let first = !std::mem::replace(&mut self.started, true);
        if first {
            for base in [cluster::passthrough(), cluster::inbound()] {
                out.put(ResourceType::Cluster, base.name.as_str().into(), &base, None);
            }
        }
        self.trust_domain = world.config().trust_domain.clone();
        let ranges_changed = *self.ranges != *world.config().ranges;
        if ranges_changed {
            self.ranges = world.config().ranges.clone().into();
        }
        if dirty.config {
            self.pods.collectors(Self::collectors(world, &mut out));
        }
        let (mut tcp_ports_changed, mut addresses_changed) = (false, false);
        for key in &dirty.services {
            let (before, after) = self.services.plan(world, key, &mut self.findings, &mut out);
            tcp_ports_changed |= self.ports.replace(key, before.as_deref(), after.as_deref(), &mut self.findings);
        }
        let routes_changed = self.services.publish(&self.trust_domain, &mut out);
        let telemetry = telemetry::of_mesh(world.config());
        let listener = (first || ranges_changed || tcp_ports_changed || self.outbound.differs(&telemetry))
            .then(|| self.outbound.remake(self.ranges.clone(), self.ports.tcp().clone(), telemetry, &mut out));
        let with_their_own = listener.iter().flat_map(|(_, pods)| pods);
        self.pods.starting(first);
        let mesh =
            OfMesh { ranges: self.ranges.clone(), tcp: self.ports.tcp().clone(), parsed: self.ports.parsed().clone() };
        self.pods.mesh_changed(mesh, &mut out);
        for key in with_their_own.filter(|key| !dirty.pods.contains(key)).chain(&dirty.pods) {
            addresses_changed |= self.pods.update(world, key, &mut self.outbound, &mut self.findings, &mut out);
        }
        if first || ranges_changed || dirty.config || addresses_changed {
            out.changes.push(Change::Fallback(Arc::new(self.addresses())));
        }
        if let Some((listener, _)) = listener {
            out.changes.push(Change::Put(listener));
        }
        if first || routes_changed {
            let configuration = route::configuration(self.services.routes());
            out.put_encoded(ResourceType::Route, names::OUTBOUND.into(), configuration, None);
        }
        out.findings = self.findings.settle();
        out
    }

    /// What the authors of the mesh's objects should know, ordered by object.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        self.findings.all()
    }

    /// The clusters of the collectors that MeshConfig names. Each proxy has them for itself, as it has the inbound listener
    /// that refers to them: a shared cluster may be tried by others first, and the listener would come before it.
    fn collectors(world: &World, out: &mut Translated) -> Vec<Arc<Resource>> {
        let resource = |cluster: Cluster| {
            let name = ResourceName::from(cluster.name.as_str());
            Arc::new(out.encode(ResourceType::Cluster, name, &cluster, Some(mesh_config_ref())))
        };
        collector::clusters(world.config()).into_iter().map(resource).collect()
    }

    fn addresses(&self) -> Addresses {
        Addresses {
            pods: self.pods.addresses().clone(),
            ranges: self.ranges.clone(),
            trust_domain: self.trust_domain.clone(),
        }
    }
}

impl Translated {
    fn encode(
        &mut self,
        kind: ResourceType,
        name: ResourceName,
        message: &impl Message,
        origin: Option<ObjectRef>,
    ) -> Resource {
        self.work.encoded += 1;
        Resource::new(kind, name, message.encode_to_vec().into(), origin)
    }

    /// A listener, and what older Envoys are given instead of one that they cannot load.
    fn listener(&mut self, name: ResourceName, listener: &Listener, older: Option<Listener>) -> Resource {
        let resource = self.encode(ResourceType::Listener, name, listener, None);
        match older {
            None => resource,
            Some(older) => resource.for_older(older.encode_to_vec().into()),
        }
    }

    fn put_encoded(&mut self, kind: ResourceType, name: ResourceName, bytes: Vec<u8>, origin: Option<ObjectRef>) {
        self.work.encoded += 1;
        self.changes.push(Change::Put(Arc::new(Resource::new(kind, name, bytes.into(), origin))));
    }

    fn put(&mut self, kind: ResourceType, name: ResourceName, message: &impl Message, origin: Option<ObjectRef>) {
        let resource = self.encode(kind, name, message, origin);
        self.changes.push(Change::Put(Arc::new(resource)));
    }
}

fn mesh_config_ref() -> ObjectRef {
    ObjectRef { kind: Kind::MeshConfig, namespace: None, name: "default".into() }
}

fn service_ref(key: &ServiceKey) -> ObjectRef {
    ObjectRef { kind: Kind::Service, namespace: Some(key.namespace.clone()), name: key.name.clone() }
}
