//! What each pod accepts, what its sidecar is pushed, and whose its addresses are.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::Translated;
use super::egress::{Egress, OfMesh, Wanted};
use super::findings::Findings;
use super::outbound::Outbound;
use crate::envoy::fallback::PodAddress;
use crate::envoy::warm::{self, Warm};
use crate::envoy::{in_clear, inbound, names};
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
    egress: Egress,
    addresses: imbl::OrdMap<IpAddr, PodAddress>,
    warm: Warm,
    /// The clusters of collectors, which each proxy has for itself.
    collectors: Arc<[Arc<Resource>]>,
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
    /// What it may call outside the mesh, if not everything.
    egress: Option<Arc<Wanted>>,
    /// What it was given when it was new.
    warm: warm::Names,
    /// The outbound listener that it has for itself.
    outbound: Option<Arc<Resource>>,
    collectors: Arc<[Arc<Resource>]>,
    view: Arc<View>,
}

/// The listener and both sorts of routes of a plan, and how many pods have them.
#[derive(Debug)]
struct Inbound {
    resources: [Resource; 3],
    pods: usize,
}

impl Pods {
    /// What the workloads are known to call.
    pub(super) fn learned(&mut self, sets: WarmSets) {
        self.warm.learned = sets;
    }

    /// The clusters of the collectors that there are; the pods hear of them when they are updated.
    pub(super) fn collectors(&mut self, clusters: Vec<Arc<Resource>>) {
        if *self.collectors != clusters[..] {
            self.collectors = clusters.into();
        }
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
        outbound: &mut Outbound,
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
        let (egress, more) = match &plan {
            Some((pod, (plan, _))) => {
                let (egress, more) = policy::egress::pod(world, pod);
                (egress.map(|egress| Wanted { plan: egress, telemetry: plan.telemetry.clone() }), more)
            }
            None => (None, Vec::new()),
        };
        // A listener for what may be called outside has its telemetry in it.
        let before = proxy_before.as_ref().filter(|proxy| proxy.egress.is_none()).map(|proxy| &proxy.plan.telemetry);
        let telemetry = plan.as_ref().filter(|_| egress.is_none()).map(|(_, (plan, _))| &plan.telemetry);
        let outbound = outbound.of_pod(key, before, telemetry, out);
        let (proxy, diagnostics) = match plan {
            Some((pod, (plan, mut diagnostics))) => {
                diagnostics.extend(more);
                let plans = (plan, egress);
                (Some(self.proxy(world, pod, plans, outbound, proxy_before.as_ref(), out)), diagnostics)
            }
            None => (None, Vec::new()),
        };
        if proxy_before.is_some() && proxy.is_none() {
            out.changes.push(Change::RemoveView(ProxyId(key.clone())));
        }
        if let Some(before) = proxy_before {
            self.release(&before.plan);
            let kept = proxy.as_ref().and_then(|proxy| proxy.egress.as_ref());
            if let Some(egress) = before.egress.filter(|egress| kept != Some(egress)) {
                self.egress.release(&egress, key);
            }
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
            direct_ports: pod.direct_ports.clone(),
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
        (plan, egress): (InboundPlan, Option<Wanted>),
        outbound: Option<Arc<Resource>>,
        before: Option<&Proxy>,
        out: &mut Translated,
    ) -> Proxy {
        let (plan, resources) = self.acquire(plan, out);
        let egress = egress.map(|egress| self.egress.acquire(egress, &pod.key, out));
        // Chosen once: a pod that runs knows what it calls, and is not given what only others call.
        let warm = before.map_or_else(|| self.warm.names(world, pod), |before| before.warm.clone());
        let pushed = self.warm.pushed(world, pod, &warm);
        if let Some(before) = before
            && Arc::ptr_eq(&before.plan, &plan)
            && before.egress == egress
            && before.view.pushed == pushed
            && before.outbound == outbound
            && Arc::ptr_eq(&before.collectors, &self.collectors)
        {
            let collectors = before.collectors.clone();
            return Proxy { plan, egress, warm, outbound, collectors, view: before.view.clone() };
        }
        let of_egress = egress.iter().flat_map(|plan| self.egress.resources(plan)).cloned();
        let own = resources.into_iter().chain(of_egress).map(|resource| own(&pod.key, resource));
        let own = own.chain(outbound.clone()).chain(self.collectors.iter().cloned()).collect();
        let view = Arc::new(View { own, pushed });
        out.changes.push(Change::PutView(ProxyId(pod.key.clone()), view.clone()));
        Proxy { plan, egress, warm, outbound, collectors: self.collectors.clone(), view }
    }

    /// The outbound listeners of pods that may not call everything outside depend on the mesh as well.
    pub(super) fn mesh_changed(&mut self, mesh: OfMesh, out: &mut Translated) {
        for key in self.egress.mesh_changed(mesh, out) {
            let Some(proxy) = self.pods.get_mut(&key).and_then(|pod| pod.proxy.as_mut()) else { continue };
            let made = proxy.egress.iter().flat_map(|plan| self.egress.resources(plan));
            let made = Vec::from_iter(made.map(|resource| own(&key, resource.clone())));
            let is_made =
                |other: &Arc<Resource>| made.iter().any(|made| (made.kind, &made.name) == (other.kind, &other.name));
            let others = proxy.view.own.iter().filter(|other| !is_made(other)).cloned();
            let own = others.chain(made.iter().cloned()).collect();
            proxy.view = Arc::new(View { own, pushed: proxy.view.pushed.clone() });
            out.changes.push(Change::PutView(ProxyId(key), proxy.view.clone()));
        }
    }

    /// The one copy of an equal plan, and what has been made of it.
    fn acquire(&mut self, plan: InboundPlan, out: &mut Translated) -> (Arc<InboundPlan>, [Resource; 3]) {
        let plan = self.inbound.get_key_value(&plan).map_or_else(|| Arc::new(plan), |(known, _)| known.clone());
        let inbound = self.inbound.entry(plan.clone()).or_insert_with(|| Inbound {
            resources: [
                out.listener(
                    names::INBOUND.into(),
                    &inbound::listener(&plan),
                    Some(inbound::listener_for_older(&plan)),
                ),
                out.encode(ResourceType::Route, names::INBOUND.into(), &inbound::routes(&plan), None),
                out.encode(ResourceType::Route, names::INBOUND_IN_CLEAR.into(), &in_clear::routes(&plan), None),
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

/// A resource that many pods have alike, as the one of this pod.
fn own(pod: &PodKey, resource: Resource) -> Arc<Resource> {
    let origin = ObjectRef { kind: Kind::Pod, namespace: Some(pod.namespace.clone()), name: pod.name.clone() };
    Arc::new(Resource { origin: Some(origin), ..resource })
}
