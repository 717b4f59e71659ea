//! What each pod accepts, what its sidecar is pushed, and whose its addresses are.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::Translated;
use super::findings::Findings;
use crate::envoy::fallback::PodAddress;
use crate::envoy::warm::{self, Warm};
use crate::envoy::{inbound, names};
use crate::mesh::object;
use crate::mesh::{Diagnostic, Kind, ObjectRef, PodKey, ProxyId, World};
use crate::policy::{self, InboundPlan};
use crate::snapshot::{Change, Resource, ResourceType, View};
use crate::warm::WarmSets;

/// The plans of all pods, and what has been made of them.
#[derive(Debug, Default)]
pub(super) struct Pods {
    pods: BTreeMap<PodKey, Pod>,
    /// What has been made of each plan, which many pods share.
    inbound: HashMap<Arc<InboundPlan>, Inbound>,
    addresses: imbl::OrdMap<IpAddr, PodAddress>,
    warm: Warm,
}

#[derive(Debug)]
struct Pod {
    ips: Vec<IpAddr>,
    proxy: Option<Proxy>,
    diagnostics: Vec<Diagnostic>,
}

/// A pod's sidecar.
#[derive(Debug)]
struct Proxy {
    plan: Arc<InboundPlan>,
    /// What it was given when it was new.
    warm: warm::Names,
    view: Arc<View>,
}

/// The listener and the routes of a plan, and how many pods have them.
#[derive(Debug)]
struct Inbound {
    resources: [Resource; 2],
    pods: usize,
}

impl Pods {
    /// What the workloads are known to call.
    pub(super) fn learned(&mut self, sets: WarmSets) {
        self.warm.learned = sets;
    }

    /// Whether the pods that come now were there before the control plane.
    pub(super) fn starting(&mut self, starting: bool) {
        self.warm.starting = starting;
    }

    /// The pods by address.
    pub(super) fn addresses(&self) -> &imbl::OrdMap<IpAddr, PodAddress> {
        &self.addresses
    }

    /// Plans a pod again; whether [`Pods::addresses`] are different now.
    pub(super) fn update(
        &mut self,
        world: &World,
        key: &PodKey,
        findings: &mut Findings,
        out: &mut Translated,
    ) -> bool {
        out.work.plans += 1;
        let before = self.pods.remove(key);
        let (ips_before, proxy_before) = match before {
            Some(Pod { ips, proxy, diagnostics }) => {
                findings.drop(diagnostics);
                (ips, proxy)
            }
            None => (Vec::new(), None),
        };
        let pod = world.pod(key);
        let plan = pod.and_then(|pod| Some((pod, policy::inbound::pod(world, key)?)));
        let (proxy, diagnostics) = match plan {
            Some((pod, (plan, diagnostics))) => {
                (Some(self.proxy(world, pod, plan, proxy_before.as_ref(), out)), diagnostics)
            }
            None => (None, Vec::new()),
        };
        if proxy_before.is_some() && proxy.is_none() {
            out.changes.push(Change::RemoveView(ProxyId(key.clone())));
        }
        if let Some(before) = proxy_before {
            self.release(&before.plan);
        }
        findings.add(diagnostics.iter().cloned());
        // A pod of the host's network shares its node's address, which is no way to tell it from others.
        let ips = pod.filter(|pod| !pod.host_network).map(|pod| pod.ips.clone()).unwrap_or_default();
        let mut changed = false;
        for ip in ips_before.iter().filter(|ip| !ips.contains(ip)) {
            // Another pod may have been given the address in the meantime.
            if self.addresses.get(ip).is_some_and(|address| address.key == *key) {
                changed |= self.addresses.remove(ip).is_some();
            }
        }
        let Some(pod) = pod else { return changed };
        let address = PodAddress {
            key: key.clone(),
            identity: policy::outbound::identity(world, pod),
            workload: policy::Workload::of(pod),
        };
        for ip in &ips {
            if self.addresses.get(ip) != Some(&address) {
                self.addresses.insert(*ip, address.clone());
                changed = true;
            }
        }
        self.pods.insert(key.clone(), Pod { ips, proxy, diagnostics });
        changed
    }

    #[cfg(test)]
    pub(super) fn view(&self, key: &PodKey) -> Option<&View> {
        self.pods.get(key)?.proxy.as_ref().map(|proxy| &*proxy.view)
    }

    fn proxy(
        &mut self,
        world: &World,
        pod: &object::Pod,
        plan: InboundPlan,
        before: Option<&Proxy>,
        out: &mut Translated,
    ) -> Proxy {
        let (plan, resources) = self.acquire(plan, out);
        // Chosen once: a pod that runs knows what it calls, and is not given what only others call.
        let warm = before.map_or_else(|| self.warm.names(world, pod), |before| before.warm.clone());
        let pushed = self.warm.pushed(world, pod, &warm);
        if let Some(before) = before
            && Arc::ptr_eq(&before.plan, &plan)
            && before.view.pushed == pushed
        {
            return Proxy { plan, warm, view: before.view.clone() };
        }
        let origin =
            ObjectRef { kind: Kind::Pod, namespace: Some(pod.key.namespace.clone()), name: pod.key.name.clone() };
        let own = resources.map(|resource| Arc::new(Resource { origin: Some(origin.clone()), ..resource }));
        let view = Arc::new(View { own: own.into(), pushed });
        out.changes.push(Change::PutView(ProxyId(pod.key.clone()), view.clone()));
        Proxy { plan, warm, view }
    }

    /// The one copy of an equal plan, and what has been made of it.
    fn acquire(&mut self, plan: InboundPlan, out: &mut Translated) -> (Arc<InboundPlan>, [Resource; 2]) {
        let plan = self.inbound.get_key_value(&plan).map_or_else(|| Arc::new(plan), |(known, _)| known.clone());
        let inbound = self.inbound.entry(plan.clone()).or_insert_with(|| Inbound {
            resources: [
                out.listener(names::INBOUND.into(), plan.metrics, |metrics| inbound::listener(&plan, metrics)),
                out.encode(ResourceType::Route, names::INBOUND.into(), &inbound::routes(&plan), None),
            ],
            pods: 0,
        });
        inbound.pods += 1;
        (plan, inbound.resources.clone())
    }

    fn release(&mut self, plan: &InboundPlan) {
        let Some(inbound) = self.inbound.get_mut(plan) else { return };
        inbound.pods -= 1;
        if inbound.pods == 0 {
            self.inbound.remove(plan);
        }
    }
}
