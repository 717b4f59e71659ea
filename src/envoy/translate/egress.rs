//! The outbound listeners and routes of pods that may not call everything outside the mesh.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use ipnet::IpNet;

use super::Translated;
use crate::envoy::outbound::TcpPorts;
use crate::envoy::{egress, names};
use crate::mesh::PodKey;
use crate::policy::{EgressPlan, Telemetry};
use crate::snapshot::{Resource, ResourceType};

/// What has been made of each plan, which many pods share.
#[derive(Debug, Default)]
pub(super) struct Egress {
    plans: HashMap<Arc<Wanted>, Made>,
    mesh: OfMesh,
}

/// What a pod's outbound side is to be.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Wanted {
    pub(super) plan: EgressPlan,
    pub(super) telemetry: Telemetry,
}

/// What the listeners depend on beside their plan.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct OfMesh {
    pub(super) ranges: Arc<[IpNet]>,
    pub(super) tcp: TcpPorts,
    pub(super) parsed: BTreeSet<u16>,
}

#[derive(Debug)]
struct Made {
    resources: [Resource; 2],
    pods: BTreeSet<PodKey>,
}

impl Egress {
    /// The one copy of an equal plan, for a pod that has it from now on.
    pub(super) fn acquire(&mut self, plan: Wanted, pod: &PodKey, out: &mut Translated) -> Arc<Wanted> {
        let plan = self.plans.get_key_value(&plan).map_or_else(|| Arc::new(plan), |(known, _)| known.clone());
        if !self.plans.contains_key(&plan) {
            let resources = [
                self.listener(&plan, out),
                out.encode(ResourceType::Route, names::EGRESS.into(), &egress::routes(&plan.plan), None),
            ];
            self.plans.insert(plan.clone(), Made { resources, pods: BTreeSet::new() });
        }
        if let Some(made) = self.plans.get_mut(&plan) {
            made.pods.insert(pod.clone());
        }
        plan
    }

    /// Takes the plan from a pod that has it no longer.
    pub(super) fn release(&mut self, plan: &Wanted, pod: &PodKey) {
        let Some(made) = self.plans.get_mut(plan) else { return };
        made.pods.remove(pod);
        if made.pods.is_empty() {
            self.plans.remove(plan);
        }
    }

    /// What has been made of a plan.
    pub(super) fn resources(&self, plan: &Wanted) -> impl Iterator<Item = &Resource> {
        self.plans.get(plan).into_iter().flat_map(|made| &made.resources)
    }

    /// The mesh is another now; the pods whose listener has been made again.
    pub(super) fn mesh_changed(&mut self, mesh: OfMesh, out: &mut Translated) -> Vec<PodKey> {
        if self.mesh == mesh {
            return Vec::new();
        }
        self.mesh = mesh;
        let plans = Vec::from_iter(self.plans.keys().cloned());
        let listeners = plans.into_iter().map(|plan| (self.listener(&plan, out), plan));
        let listeners = Vec::from_iter(listeners);
        let mut pods = Vec::new();
        for (listener, plan) in listeners {
            if let Some(made) = self.plans.get_mut(&plan) {
                made.resources[0] = listener;
                pods.extend(made.pods.iter().cloned());
            }
        }
        pods
    }

    fn listener(&self, Wanted { plan, telemetry }: &Wanted, out: &mut Translated) -> Resource {
        let OfMesh { ranges, tcp, parsed } = &self.mesh;
        let listener = |telemetry: &Telemetry| egress::listener(ranges, tcp, parsed, plan, telemetry);
        let older = telemetry.for_older().map(|telemetry| listener(&telemetry));
        out.listener(names::OUTBOUND.into(), &listener(telemetry), older)
    }
}
