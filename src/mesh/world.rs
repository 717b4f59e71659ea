//! The state of the mesh, and what an event makes dirty in it.
//!
//! [`World::apply`] is the only way to change it. It answers with the services and pods whose plan may be different
//! now, found through explicit dependencies:
//!
//! ```text
//!  Service, EndpointSlice ─▶ the Service, the roots of splits that name it, the pods behind it, the pods that declare it as upstream
//!  Pod                    ─▶ the Pod, the Services it is an endpoint of, and their roots
//!  TrafficSplit           ─▶ its root
//!  TrafficFault           ─▶ its target Services
//!  TrafficPolicy          ─▶ its target Services, the pods behind them
//!  HTTPRouteGroup         ─▶ roots of splits and targets of faults that match by it, pods of targets that allow by it
//!  TCPRoute, TrafficTarget ─▶ pods of the destination account
//!  Namespace              ─▶ its pods
//!  Egress                 ─▶ pods of its sources, or of its namespace
//!  MeshConfig             ─▶ everything
//! ```
//!
//! Nothing is searched for: what depends on an object is found through an index, so an event costs what it touches.

mod index;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::object::{
    Egress, EndpointSlice, HttpRouteGroup, Labels, MeshConfig, NamespaceObject, Object, Pod, Service, TcpRoute,
    TrafficFault, TrafficPolicy, TrafficSplit, TrafficTarget,
};
use super::{Kind, Namespace, ObjectRef, PodKey, ServiceAccountKey, ServiceKey};
use index::{Index, Named};

/// One change to the mesh.
#[derive(Clone, PartialEq, Debug)]
#[allow(clippy::large_enum_variant, reason = "few exist at a time, and each is taken apart at once")]
pub enum Event {
    /// The object is new or different.
    Apply(Object),
    /// The object is gone.
    Delete(ObjectRef),
}

/// What an event touched. A plan that is named here may still come out equal to what it was.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Dirty {
    /// Services, including ones that are gone.
    pub services: BTreeSet<ServiceKey>,
    /// Pods, including ones that are gone.
    pub pods: BTreeSet<PodKey>,
    /// The mesh's own settings.
    pub config: bool,
}

impl Dirty {
    /// Whether nothing was touched.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.pods.is_empty() && !self.config
    }

    /// Adds what another event touched.
    pub fn merge(&mut self, other: Dirty) {
        self.services.extend(other.services);
        self.pods.extend(other.pods);
        self.config |= other.config;
    }
}

/// Every object of the mesh, with the indexes that find what depends on what.
#[derive(Debug, Default)]
pub struct World {
    config: MeshConfig,
    namespaces: BTreeMap<Namespace, NamespaceObject>,
    pods: BTreeMap<PodKey, Pod>,
    services: BTreeMap<ServiceKey, Service>,
    slices: BTreeMap<ServiceKey, BTreeMap<Arc<str>, EndpointSlice>>,
    splits: BTreeMap<Named, TrafficSplit>,
    route_groups: BTreeMap<Named, HttpRouteGroup>,
    tcp_routes: BTreeMap<Named, TcpRoute>,
    targets: BTreeMap<Named, TrafficTarget>,
    egresses: BTreeMap<Named, Egress>,
    faults: BTreeMap<Named, TrafficFault>,
    policies: BTreeMap<Named, TrafficPolicy>,
    index: Index,
}

impl World {
    /// Takes the event in and tells what it touched. An event that changes nothing touches nothing.
    pub fn apply(&mut self, event: Event) -> Dirty {
        let mut dirty = Dirty::default();
        match event {
            Event::Apply(Object::Namespace(object)) => {
                self.set_namespace(object.name.clone(), Some(object), &mut dirty)
            }
            Event::Apply(Object::Pod(object)) => self.set_pod(object.key.clone(), Some(object), &mut dirty),
            Event::Apply(Object::Service(object)) => self.set_service(object.key.clone(), Some(object), &mut dirty),
            Event::Apply(Object::EndpointSlice(object)) => {
                let name = (object.service.namespace.clone(), object.name.clone());
                self.set_slice(name, Some(object), &mut dirty);
            }
            Event::Apply(Object::TrafficSplit(object)) => {
                self.set_split((object.namespace.clone(), object.name.clone()), Some(object), &mut dirty);
            }
            Event::Apply(Object::HttpRouteGroup(object)) => {
                self.set_route_group((object.namespace.clone(), object.name.clone()), Some(object), &mut dirty);
            }
            Event::Apply(Object::TcpRoute(object)) => {
                self.set_tcp_route((object.namespace.clone(), object.name.clone()), Some(object), &mut dirty);
            }
            Event::Apply(Object::TrafficTarget(object)) => {
                self.set_target((object.namespace.clone(), object.name.clone()), Some(object), &mut dirty);
            }
            Event::Apply(Object::Egress(object)) => {
                self.set_egress((object.namespace.clone(), object.name.clone()), Some(object), &mut dirty);
            }
            Event::Apply(Object::TrafficFault(object)) => {
                self.set_fault((object.namespace.clone(), object.name.clone()), Some(object), &mut dirty);
            }
            Event::Apply(Object::TrafficPolicy(object)) => {
                self.set_policy((object.namespace.clone(), object.name.clone()), Some(*object), &mut dirty);
            }
            Event::Apply(Object::MeshConfig(object)) => self.set_config(object, &mut dirty),
            Event::Delete(object) => self.delete(object, &mut dirty),
        }
        dirty
    }

    fn delete(&mut self, object: ObjectRef, dirty: &mut Dirty) {
        let ObjectRef { kind, namespace, name } = object;
        let Some(namespace) = namespace else {
            match kind {
                Kind::Namespace => self.set_namespace(Namespace::from(&*name), None, dirty),
                Kind::MeshConfig => self.set_config(MeshConfig::default(), dirty),
                _ => {}
            }
            return;
        };
        match kind {
            Kind::Pod => self.set_pod(PodKey { namespace, name }, None, dirty),
            Kind::Service => self.set_service(ServiceKey { namespace, name }, None, dirty),
            Kind::EndpointSlice => self.set_slice((namespace, name), None, dirty),
            Kind::TrafficSplit => self.set_split((namespace, name), None, dirty),
            Kind::HTTPRouteGroup => self.set_route_group((namespace, name), None, dirty),
            Kind::TCPRoute => self.set_tcp_route((namespace, name), None, dirty),
            Kind::TrafficTarget => self.set_target((namespace, name), None, dirty),
            Kind::Egress => self.set_egress((namespace, name), None, dirty),
            Kind::TrafficFault => self.set_fault((namespace, name), None, dirty),
            Kind::TrafficPolicy => self.set_policy((namespace, name), None, dirty),
            Kind::Namespace
            | Kind::MeshConfig
            | Kind::ServiceAccount
            | Kind::Deployment
            | Kind::StatefulSet
            | Kind::UDPRoute => {}
        }
    }

    fn set_namespace(&mut self, name: Namespace, new: Option<NamespaceObject>, dirty: &mut Dirty) {
        let modes = |object: Option<&NamespaceObject>| {
            object.map(|ns| (ns.mtls, ns.authorization, ns.egress, ns.sampling, ns.access_log)).unwrap_or_default()
        };
        let after = modes(new.as_ref());
        let Some(before) = replace(&mut self.namespaces, name.clone(), new) else { return };
        if modes(before.as_ref()) != after {
            dirty.pods.extend(self.pods_in(&name).map(|pod| pod.key.clone()));
        }
    }

    fn set_config(&mut self, new: MeshConfig, dirty: &mut Dirty) {
        if self.config != new {
            self.config = new;
            dirty.config = true;
            dirty.services.extend(self.services.keys().cloned());
            dirty.pods.extend(self.pods.keys().cloned());
        }
    }

    fn set_pod(&mut self, key: PodKey, new: Option<Pod>, dirty: &mut Dirty) {
        let Some(old) = replace(&mut self.pods, key.clone(), new) else { return };
        let new = self.pods.get(&key);
        if let Some(old) = &old {
            self.index.remove_pod(old);
        }
        if let Some(new) = new {
            self.index.insert_pod(new);
        }
        if !matches!((&old, new), (Some(old), Some(new)) if is_the_same_endpoint(old, new)) {
            let mut services: BTreeSet<ServiceKey> =
                self.index.slices_of_pod.get(&key).map(|(s, _)| s.clone()).collect();
            for pod in [old.as_ref(), new].into_iter().flatten() {
                services.extend(self.selecting(pod).map(|service| service.key.clone()));
            }
            for service in services {
                self.touch_service(&service, dirty);
            }
        }
        dirty.pods.insert(key);
    }

    fn set_service(&mut self, key: ServiceKey, new: Option<Service>, dirty: &mut Dirty) {
        let old = self.services.get(&key);
        if old == new.as_ref() {
            return;
        }
        // The pods behind the Service depend on its ports; they are found before and after its selector changes.
        let concerns_pods = !matches!((old, &new), (Some(old), Some(new))
            if old.ports == new.ports && old.selector == new.selector);
        if concerns_pods {
            dirty.pods.extend(self.pods_behind(&key));
        }
        if let Some(old) = old {
            self.index.selection.remove_service(old);
        }
        if let Some(new) = &new {
            self.index.selection.insert_service(new);
        }
        replace(&mut self.services, key.clone(), new);
        if concerns_pods {
            dirty.pods.extend(self.pods_behind(&key));
        }
        dirty.pods.extend(self.index.pods_upstream_of.get(&key).cloned());
        self.touch_service(&key, dirty);
    }

    fn set_slice(&mut self, name: Named, new: Option<EndpointSlice>, dirty: &mut Dirty) {
        let old = self.index.slice_service.get(&name).and_then(|service| self.slices.get(service)?.get(&name.1));
        if old == new.as_ref() {
            return;
        }
        let services: BTreeSet<ServiceKey> = old.into_iter().chain(&new).map(|slice| slice.service.clone()).collect();
        // A Service selects its pods itself while it has no slice: its first one and its last one concern all of them.
        dirty.pods.extend(services.iter().flat_map(|service| self.selected(service)));
        let old = self.take_slice(&name);
        let (before, after) = (named_by(old.as_ref()), named_by(new.as_ref()));
        for (pod, service) in before.difference(&after) {
            self.index.slices_of_pod.remove(pod, &(service.clone(), name.1.clone()));
            dirty.pods.insert(pod.clone());
        }
        for (pod, service) in after.difference(&before) {
            self.index.slices_of_pod.insert(pod.clone(), (service.clone(), name.1.clone()));
            dirty.pods.insert(pod.clone());
        }
        if let Some(slice) = new {
            self.index.slice_service.insert(name.clone(), slice.service.clone());
            self.slices.entry(slice.service.clone()).or_default().insert(name.1, slice);
        }
        dirty.pods.extend(services.iter().flat_map(|service| self.selected(service)));
        for service in services {
            self.touch_service(&service, dirty);
        }
    }

    fn take_slice(&mut self, name: &Named) -> Option<EndpointSlice> {
        let service = self.index.slice_service.remove(name)?;
        let slices = self.slices.get_mut(&service)?;
        let slice = slices.remove(&name.1);
        if slices.is_empty() {
            self.slices.remove(&service);
        }
        slice
    }

    fn set_split(&mut self, name: Named, new: Option<TrafficSplit>, dirty: &mut Dirty) {
        let Some(old) = replace(&mut self.splits, name.clone(), new) else { return };
        if let Some(split) = old {
            self.index.remove_split(&name, &split);
            dirty.services.insert(split.root);
        }
        if let Some(split) = self.splits.get(&name) {
            self.index.insert_split(&name, split);
            dirty.services.insert(split.root.clone());
        }
    }

    fn set_route_group(&mut self, name: Named, new: Option<HttpRouteGroup>, dirty: &mut Dirty) {
        if replace(&mut self.route_groups, name.clone(), new).is_none() {
            return;
        }
        let splits = self.index.splits_of_group.get(&name).filter_map(|split| self.splits.get(split));
        dirty.services.extend(splits.map(|split| split.root.clone()));
        let faults = self.index.faults_of_group.get(&name).filter_map(|fault| self.faults.get(fault));
        dirty.services.extend(faults.flat_map(|fault| &fault.targets).map(|target| target.service.clone()));
        self.touch_targets(self.index.targets_of_group.get(&name), dirty);
    }

    fn set_tcp_route(&mut self, name: Named, new: Option<TcpRoute>, dirty: &mut Dirty) {
        if replace(&mut self.tcp_routes, name.clone(), new).is_some() {
            self.touch_targets(self.index.targets_of_tcp_route.get(&name), dirty);
        }
    }

    fn touch_targets<'a>(&self, targets: impl Iterator<Item = &'a Named>, dirty: &mut Dirty) {
        for target in targets.filter_map(|name| self.targets.get(name)) {
            dirty.pods.extend(self.index.pods_of_account.get(&target.destination).cloned());
        }
    }

    fn set_target(&mut self, name: Named, new: Option<TrafficTarget>, dirty: &mut Dirty) {
        let Some(old) = replace(&mut self.targets, name.clone(), new) else { return };
        if let Some(target) = old {
            self.index.remove_target(&name, &target);
            dirty.pods.extend(self.index.pods_of_account.get(&target.destination).cloned());
        }
        if let Some(target) = self.targets.get(&name) {
            self.index.insert_target(&name, target);
            dirty.pods.extend(self.index.pods_of_account.get(&target.destination).cloned());
        }
    }

    fn set_egress(&mut self, name: Named, new: Option<Egress>, dirty: &mut Dirty) {
        let Some(old) = replace(&mut self.egresses, name.clone(), new) else { return };
        for egress in old.iter().chain(self.egresses.get(&name)) {
            match &egress.sources {
                None => dirty.pods.extend(self.pods_in(&name.0).map(|pod| pod.key.clone())),
                Some(accounts) => {
                    dirty
                        .pods
                        .extend(accounts.iter().flat_map(|account| self.index.pods_of_account.get(account)).cloned());
                }
            }
        }
    }

    fn set_fault(&mut self, name: Named, new: Option<TrafficFault>, dirty: &mut Dirty) {
        let Some(old) = replace(&mut self.faults, name.clone(), new) else { return };
        if let Some(fault) = old {
            self.index.remove_fault(&name, &fault);
            dirty.services.extend(fault.targets.into_iter().map(|target| target.service));
        }
        if let Some(fault) = self.faults.get(&name) {
            self.index.insert_fault(&name, fault);
            dirty.services.extend(fault.targets.iter().map(|target| target.service.clone()));
        }
    }

    fn set_policy(&mut self, name: Named, new: Option<TrafficPolicy>, dirty: &mut Dirty) {
        let Some(old) = replace(&mut self.policies, name.clone(), new) else { return };
        let mut services = BTreeSet::new();
        if let Some(policy) = &old {
            self.index.remove_policy(&name, policy);
            services.extend(policy.targets.iter().map(|target| target.service.clone()));
        }
        if let Some(policy) = self.policies.get(&name) {
            self.index.insert_policy(&name, policy);
            services.extend(policy.targets.iter().map(|target| target.service.clone()));
        }
        // Rate limits are the callee's affair. Which of several policies counts is for the plans to say.
        dirty.pods.extend(services.iter().flat_map(|service| self.pods_behind(service)));
        dirty.services.extend(services);
    }

    /// Marks a Service and every root whose split sends traffic to it.
    fn touch_service(&self, key: &ServiceKey, dirty: &mut Dirty) {
        dirty.services.insert(key.clone());
        let splits = self.index.splits_of_backend.get(key).filter_map(|name| self.splits.get(name));
        dirty.services.extend(splits.map(|split| split.root.clone()));
    }

    fn pods_behind(&self, key: &ServiceKey) -> Vec<PodKey> {
        let sliced = self.slices_of(key).flat_map(|slice| &slice.endpoints).filter_map(|endpoint| endpoint.pod.clone());
        sliced.chain(self.selected(key)).collect()
    }

    /// The keys of [`World::selected_by`].
    fn selected(&self, key: &ServiceKey) -> Vec<PodKey> {
        let service = self.services.get(key).into_iter();
        service.flat_map(|service| self.selected_by(service)).map(|pod| pod.key.clone()).collect()
    }

    /// Whether the Service's endpoints are found by its selector: no controller has written EndpointSlices for it.
    fn selects_directly(&self, service: &Service) -> bool {
        !service.selector.is_empty() && !self.slices.contains_key(&service.key)
    }

    fn selecting<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = &'a Service> {
        let candidates = self.index.selection.services_for(pod).filter_map(|key| self.services.get(key));
        candidates.filter(|service| self.selects_directly(service) && selects(&service.selector, &pod.labels))
    }
}

/// What the policy stage reads.
impl World {
    /// The mesh's settings; the defaults while there is no MeshConfig.
    pub fn config(&self) -> &MeshConfig {
        &self.config
    }

    /// The namespace's object, if it was declared.
    pub fn namespace(&self, name: &Namespace) -> Option<&NamespaceObject> {
        self.namespaces.get(name)
    }

    /// Every Service, ordered by key.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// One Service.
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key)
    }

    /// Every pod, ordered by key.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// One pod.
    pub fn pod(&self, key: &PodKey) -> Option<&Pod> {
        self.pods.get(key)
    }

    /// The pods that run under an account.
    pub fn pods_of(&self, account: &ServiceAccountKey) -> impl Iterator<Item = &Pod> {
        self.index.pods_of_account.get(account).filter_map(|key| self.pods.get(key))
    }

    /// The Services that a pod is an endpoint of; one that names it in several EndpointSlices comes several times.
    pub fn services_of_pod<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = &'a Service> {
        let sliced = self.index.slices_of_pod.get(&pod.key).filter_map(|(service, _)| self.services.get(service));
        sliced.chain(self.selecting(pod))
    }

    /// The EndpointSlices of a Service, ordered by name.
    pub fn slices_of(&self, service: &ServiceKey) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// The pods that the Service selects, when its endpoints are to be found that way: no EndpointSlice is there.
    pub fn selected_by<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Pod> {
        self.selects_directly(service)
            .then(|| self.index.selection.pods_for(service))
            .into_iter()
            .flatten()
            .filter_map(|key| self.pods.get(key))
            .filter(|pod| selects(&service.selector, &pod.labels))
    }

    /// The splits of a root, unordered.
    pub fn splits_of(&self, root: &ServiceKey) -> impl Iterator<Item = &TrafficSplit> {
        self.index.splits_of_root.get(root).filter_map(|name| self.splits.get(name))
    }

    /// Every target, ordered by namespace and name.
    pub fn targets(&self) -> impl Iterator<Item = &TrafficTarget> {
        self.targets.values()
    }

    /// Every fault, ordered by namespace and name.
    pub fn faults(&self) -> impl Iterator<Item = &TrafficFault> {
        self.faults.values()
    }

    /// Every Egress, ordered by namespace and name.
    pub fn egresses(&self) -> impl Iterator<Item = &Egress> {
        self.egresses.values()
    }

    /// The targets whose destination is the account, ordered by name.
    pub fn targets_of(&self, account: &ServiceAccountKey) -> impl Iterator<Item = &TrafficTarget> {
        self.index.targets_of_account.get(account).filter_map(|name| self.targets.get(name))
    }

    /// The targets that allow the account something, ordered by name.
    pub fn targets_from(&self, source: &ServiceAccountKey) -> impl Iterator<Item = &TrafficTarget> {
        self.index.targets_of_source.get(source).filter_map(|name| self.targets.get(name))
    }

    /// The faults that have the Service among their targets, unordered.
    pub fn faults_of(&self, service: &ServiceKey) -> impl Iterator<Item = &TrafficFault> {
        self.index.faults_of_service.get(service).filter_map(|name| self.faults.get(name))
    }

    /// The policies that have the Service among their targets, ordered by name.
    pub fn policies_of(&self, service: &ServiceKey) -> impl Iterator<Item = &TrafficPolicy> {
        self.index.policies_of_service.get(service).filter_map(|name| self.policies.get(name))
    }

    /// An HTTPRouteGroup by name.
    pub fn route_group(&self, namespace: &Namespace, name: &Arc<str>) -> Option<&HttpRouteGroup> {
        self.route_groups.get(&(namespace.clone(), name.clone()))
    }

    /// A TCPRoute by name.
    pub fn tcp_route(&self, namespace: &Namespace, name: &Arc<str>) -> Option<&TcpRoute> {
        self.tcp_routes.get(&(namespace.clone(), name.clone()))
    }

    /// The Egresses of a namespace, ordered by name.
    pub fn egresses_of(&self, namespace: &Namespace) -> impl Iterator<Item = &Egress> {
        let first = (namespace.clone(), "".into());
        self.egresses.range(first..).take_while(move |(name, _)| name.0 == *namespace).map(|(_, egress)| egress)
    }

    fn pods_in<'a>(&'a self, namespace: &'a Namespace) -> impl Iterator<Item = &'a Pod> {
        let first = PodKey::new(namespace.clone(), "");
        self.pods.range(first..).map(|(_, pod)| pod).take_while(move |pod| pod.key.namespace == *namespace)
    }
}

/// Whether every pair of a selector is among the labels. An empty selector selects nothing.
fn selects(selector: &Labels, labels: &Labels) -> bool {
    !selector.is_empty() && selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// Sets or removes an entry; `None` when that changes nothing, else the old value.
fn replace<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, new: Option<V>) -> Option<Option<V>> {
    match new {
        Some(new) if map.get(&key) == Some(&new) => None,
        Some(new) => Some(map.insert(key, new)),
        None => map.remove(&key).map(Some),
    }
}

/// The pods that a slice names, with its Service.
fn named_by(slice: Option<&EndpointSlice>) -> BTreeSet<(PodKey, ServiceKey)> {
    let endpoints = slice.into_iter().flat_map(|slice| slice.endpoints.iter().map(move |endpoint| (slice, endpoint)));
    endpoints.filter_map(|(slice, endpoint)| Some((endpoint.pod.clone()?, slice.service.clone()))).collect()
}

/// Whether the callers of a pod see no difference. Probes, upstreams and telemetry are the pod's own affair.
fn is_the_same_endpoint(old: &Pod, new: &Pod) -> bool {
    let Pod {
        key: _,
        uid: _,
        ips,
        labels,
        account,
        workload,
        meshed,
        ports,
        probes: _,
        host_network,
        terminating,
        upstreams: _,
        sampling: _,
        access_log: _,
        direct_ports,
        mtls: _,
    } = old;
    (ips, labels, account, workload, meshed, ports)
        == (&new.ips, &new.labels, &new.account, &new.workload, &new.meshed, &new.ports)
        && (host_network, terminating, direct_ports) == (&new.host_network, &new.terminating, &new.direct_ports)
}

#[cfg(test)]
mod tests;
