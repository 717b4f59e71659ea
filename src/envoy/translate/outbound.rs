//! The outbound listener: one for all sidecars, and one for each setting of telemetry that is not the mesh's, which
//! the pods that have this setting see instead.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use ipnet::IpNet;

use super::Translated;
use crate::envoy::names;
use crate::envoy::outbound::{self, TcpPorts};
use crate::mesh::PodKey;
use crate::policy::Telemetry;
use crate::snapshot::Resource;

/// What the listener depends on, and what has been made of it.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    ranges: Arc<[IpNet]>,
    tcp: TcpPorts,
    /// The mesh's own telemetry.
    mesh: Telemetry,
    variants: HashMap<Telemetry, Variant>,
}

#[derive(Debug)]
struct Variant {
    listener: Arc<Resource>,
    pods: BTreeSet<PodKey>,
}

impl Outbound {
    /// Whether the mesh's telemetry is something else now.
    pub(super) fn differs(&self, mesh: &Telemetry) -> bool {
        self.mesh != *mesh
    }

    /// Takes in what the listener depends on; the listener of all sidecars, and the pods whose own is another now.
    pub(super) fn remake(
        &mut self,
        ranges: Arc<[IpNet]>,
        tcp: TcpPorts,
        mesh: Telemetry,
        out: &mut Translated,
    ) -> (Arc<Resource>, BTreeSet<PodKey>) {
        (self.ranges, self.tcp, self.mesh) = (ranges, tcp, mesh);
        let telemetries = Vec::from_iter(self.variants.keys().cloned());
        let mut pods = BTreeSet::new();
        for telemetry in telemetries {
            let listener = self.listener(&telemetry, out);
            if let Some(variant) = self.variants.get_mut(&telemetry) {
                variant.listener = listener;
                pods.extend(variant.pods.iter().cloned());
            }
        }
        (self.listener(&self.mesh, out), pods)
    }

    /// The listener that a pod has for itself, with the telemetry that it had and the one that it has.
    pub(super) fn of_pod(
        &mut self,
        pod: &PodKey,
        before: Option<&Telemetry>,
        now: Option<&Telemetry>,
        out: &mut Translated,
    ) -> Option<Arc<Resource>> {
        let now = now.filter(|telemetry| **telemetry != self.mesh);
        if let Some(before) = before.filter(|before| now != Some(before)) {
            self.release(pod, before);
        }
        let now = now?;
        if !self.variants.contains_key(now) {
            let variant = Variant { listener: self.listener(now, out), pods: BTreeSet::new() };
            self.variants.insert(now.clone(), variant);
        }
        let variant = self.variants.get_mut(now)?;
        variant.pods.insert(pod.clone());
        Some(variant.listener.clone())
    }

    fn release(&mut self, pod: &PodKey, telemetry: &Telemetry) {
        let Some(variant) = self.variants.get_mut(telemetry) else { return };
        variant.pods.remove(pod);
        if variant.pods.is_empty() {
            self.variants.remove(telemetry);
        }
    }

    fn listener(&self, telemetry: &Telemetry, out: &mut Translated) -> Arc<Resource> {
        let listener = |telemetry: &Telemetry| outbound::listener(&self.ranges, &self.tcp, telemetry);
        let older = telemetry.for_older().map(|telemetry| listener(&telemetry));
        Arc::new(out.listener(names::OUTBOUND.into(), &listener(telemetry), older))
    }
}

#[cfg(test)]
mod tests;
