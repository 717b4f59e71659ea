//! The state of the mesh, and what an event makes dirty in it.
//!
//! [`World::apply`] is the only way to change it. It answers with the services and pods whose plan may be different
//! now, found through explicit dependencies:
//!
//! ```text
//!  Service, EndpointSlice ─▶ the Service, the roots of splits that name it, the pods behind it, the pods that declare it as upstream
//!  Pod                    ─▶ the Pod, the Services it is an endpoint of, and their roots
//!  TrafficSplit           ─▶ its root
//!  HTTPRouteGroup         ─▶ roots of splits that match by it, pods of targets that allow by it
//!  TCPRoute, TrafficTarget ─▶ pods of the destination account
//!  Namespace              ─▶ its pods
//!  MeshConfig             ─▶ everything
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::object::{
    EndpointSlice, HttpRouteGroup, MeshConfig, NamespaceObject, Object, Pod, Service, TargetRule, TcpRoute,
    TrafficSplit, TrafficTarget,
};
use super::{Kind, Namespace, ObjectRef, PodKey, ServiceAccountKey, ServiceKey};

/// One change to the mesh.
#[derive(Clone, PartialEq, Debug)]
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

/// A name within a namespace; namespaced objects without a key type of their own are kept by it.
type Named = (Namespace, Arc<str>);

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
    index: Index,
}

/// Reverse references, kept in step by `apply`.
#[derive(Debug, Default)]
struct Index {
    /// The Service that an EndpointSlice belongs to, by the slice's name.
    slice_service: BTreeMap<Named, ServiceKey>,
    /// The Services whose EndpointSlices name a pod.
    services_of_pod: BTreeMap<PodKey, BTreeSet<ServiceKey>>,
    /// Splits by their root.
    splits_of_root: BTreeMap<ServiceKey, BTreeSet<Named>>,
    /// Splits by each backend.
    splits_of_backend: BTreeMap<ServiceKey, BTreeSet<Named>>,
    /// Pods by each of their declared upstreams.
    pods_upstream_of: BTreeMap<ServiceKey, BTreeSet<PodKey>>,
    /// Pods by their account.
    pods_of_account: BTreeMap<ServiceAccountKey, BTreeSet<PodKey>>,
    /// Targets by their destination.
    targets_of_account: BTreeMap<ServiceAccountKey, BTreeSet<Named>>,
    /// Targets by each of their sources.
    targets_of_source: BTreeMap<ServiceAccountKey, BTreeSet<Named>>,
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
            Kind::Namespace | Kind::MeshConfig | Kind::ServiceAccount | Kind::Deployment => {}
        }
    }

    fn set_namespace(&mut self, name: Namespace, new: Option<NamespaceObject>, dirty: &mut Dirty) {
        if replace(&mut self.namespaces, name.clone(), new).is_some() {
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
        let after = new.as_ref().map(|pod| (pod.account.clone(), pod.upstreams.clone()));
        let labels_after = new.as_ref().map(|pod| pod.labels.clone());
        let Some(old) = replace(&mut self.pods, key.clone(), new) else { return };
        if let Some(old) = &old {
            remove_from(&mut self.index.pods_of_account, &old.account, &key);
            for upstream in &old.upstreams {
                remove_from(&mut self.index.pods_upstream_of, &upstream.service, &key);
            }
        }
        if let Some((account, upstreams)) = after {
            for upstream in upstreams {
                self.index.pods_upstream_of.entry(upstream.service).or_default().insert(key.clone());
            }
            self.index.pods_of_account.entry(account).or_default().insert(key.clone());
        }
        let mut services = self.index.services_of_pod.get(&key).cloned().unwrap_or_default();
        let labels_before = old.map(|pod| pod.labels);
        for labels in [labels_before, labels_after].into_iter().flatten() {
            services.extend(self.selecting(&key.namespace, &labels).map(|service| service.key.clone()));
        }
        for service in services {
            self.touch_service(&service, dirty);
        }
        dirty.pods.insert(key);
    }

    fn set_service(&mut self, key: ServiceKey, new: Option<Service>, dirty: &mut Dirty) {
        // The pods behind the Service depend on its ports; they are found before and after its selector changes.
        let before = self.pods_behind(&key);
        if replace(&mut self.services, key.clone(), new).is_none() {
            return;
        }
        dirty.pods.extend(before);
        dirty.pods.extend(self.pods_behind(&key));
        dirty.pods.extend(self.index.pods_upstream_of.get(&key).into_iter().flatten().cloned());
        self.touch_service(&key, dirty);
    }

    fn set_slice(&mut self, name: Named, new: Option<EndpointSlice>, dirty: &mut Dirty) {
        let old_service = self.index.slice_service.get(&name).cloned();
        let new_service = new.as_ref().map(|slice| slice.service.clone());
        let current = old_service.as_ref().and_then(|service| self.slices.get(service)?.get(&name.1));
        if current == new.as_ref() {
            return;
        }
        let affected: BTreeSet<ServiceKey> = old_service.iter().chain(&new_service).cloned().collect();
        let mut pods: BTreeSet<PodKey> = affected.iter().flat_map(|service| self.pods_behind(service)).collect();
        if let Some(service) = &old_service
            && let Some(slices) = self.slices.get_mut(service)
        {
            slices.remove(&name.1);
            if slices.is_empty() {
                self.slices.remove(service);
            }
        }
        match new {
            Some(slice) => {
                self.index.slice_service.insert(name.clone(), slice.service.clone());
                self.slices.entry(slice.service.clone()).or_default().insert(name.1, slice);
            }
            None => {
                self.index.slice_service.remove(&name);
            }
        }
        pods.extend(affected.iter().flat_map(|service| self.pods_behind(service)));
        for pod in &pods {
            for service in &affected {
                let named = self.slices_of(service).flat_map(|slice| &slice.endpoints);
                if named.into_iter().any(|endpoint| endpoint.pod.as_ref() == Some(pod)) {
                    self.index.services_of_pod.entry(pod.clone()).or_default().insert(service.clone());
                } else {
                    remove_from(&mut self.index.services_of_pod, pod, service);
                }
            }
        }
        dirty.pods.extend(pods);
        for service in affected {
            self.touch_service(&service, dirty);
        }
    }

    fn set_split(&mut self, name: Named, new: Option<TrafficSplit>, dirty: &mut Dirty) {
        let after = new.clone();
        let Some(before) = replace(&mut self.splits, name.clone(), new) else { return };
        if let Some(split) = before {
            remove_from(&mut self.index.splits_of_root, &split.root, &name);
            for backend in &split.backends {
                remove_from(&mut self.index.splits_of_backend, &backend.service, &name);
            }
            dirty.services.insert(split.root);
        }
        if let Some(split) = after {
            for backend in &split.backends {
                self.index.splits_of_backend.entry(backend.service.clone()).or_default().insert(name.clone());
            }
            self.index.splits_of_root.entry(split.root.clone()).or_default().insert(name);
            dirty.services.insert(split.root);
        }
    }

    fn set_route_group(&mut self, name: Named, new: Option<HttpRouteGroup>, dirty: &mut Dirty) {
        if replace(&mut self.route_groups, name.clone(), new).is_none() {
            return;
        }
        let (namespace, group) = &name;
        let splits = in_namespace(&self.splits, namespace).filter(|split| split.matches.contains(group));
        dirty.services.extend(splits.map(|split| split.root.clone()));
        self.touch_targets_naming(
            namespace,
            |rule| matches!(rule, TargetRule::Http(route, _) if route == group),
            dirty,
        );
    }

    fn set_tcp_route(&mut self, name: Named, new: Option<TcpRoute>, dirty: &mut Dirty) {
        if replace(&mut self.tcp_routes, name.clone(), new).is_none() {
            return;
        }
        let (namespace, route) = &name;
        self.touch_targets_naming(namespace, |rule| matches!(rule, TargetRule::Tcp(named) if named == route), dirty);
    }

    fn touch_targets_naming(&self, namespace: &Namespace, names: impl Fn(&TargetRule) -> bool, dirty: &mut Dirty) {
        for target in in_namespace(&self.targets, namespace).filter(|target| target.rules.iter().any(&names)) {
            dirty.pods.extend(self.pods_of(&target.destination).map(|pod| pod.key.clone()));
        }
    }

    fn set_target(&mut self, name: Named, new: Option<TrafficTarget>, dirty: &mut Dirty) {
        let after = new.as_ref().map(|target| (target.destination.clone(), target.sources.clone()));
        let Some(before) = replace(&mut self.targets, name.clone(), new) else { return };
        if let Some(target) = before {
            remove_from(&mut self.index.targets_of_account, &target.destination, &name);
            for source in &target.sources {
                remove_from(&mut self.index.targets_of_source, source, &name);
            }
            dirty.pods.extend(self.pods_of(&target.destination).map(|pod| pod.key.clone()));
        }
        if let Some((account, sources)) = after {
            for source in sources {
                self.index.targets_of_source.entry(source).or_default().insert(name.clone());
            }
            dirty.pods.extend(self.pods_of(&account).map(|pod| pod.key.clone()));
            self.index.targets_of_account.entry(account).or_default().insert(name);
        }
    }

    /// Marks a Service and every root whose split sends traffic to it.
    fn touch_service(&self, key: &ServiceKey, dirty: &mut Dirty) {
        dirty.services.insert(key.clone());
        for name in self.index.splits_of_backend.get(key).into_iter().flatten() {
            if let Some(split) = self.splits.get(name) {
                dirty.services.insert(split.root.clone());
            }
        }
    }

    fn pods_behind(&self, key: &ServiceKey) -> BTreeSet<PodKey> {
        let sliced = self.slices_of(key).flat_map(|slice| &slice.endpoints).filter_map(|endpoint| endpoint.pod.clone());
        let selected = self
            .services
            .get(key)
            .filter(|service| self.selects_directly(service))
            .into_iter()
            .flat_map(|service| self.selected_by(service))
            .map(|pod| pod.key.clone());
        sliced.chain(selected).collect()
    }

    /// Whether the Service's endpoints are found by its selector: no controller has written EndpointSlices for it.
    fn selects_directly(&self, service: &Service) -> bool {
        !service.selector.is_empty() && !self.slices.contains_key(&service.key)
    }

    fn selecting<'a>(
        &'a self,
        namespace: &'a Namespace,
        labels: &'a super::object::Labels,
    ) -> impl Iterator<Item = &'a Service> {
        let first = ServiceKey::new(namespace.clone(), "");
        self.services
            .range(first..)
            .map(|(_, service)| service)
            .take_while(move |service| service.key.namespace == *namespace)
            .filter(move |service| self.selects_directly(service) && selects(&service.selector, labels))
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
        self.index.pods_of_account.get(account).into_iter().flatten().filter_map(|key| self.pods.get(key))
    }

    /// The Services that a pod is an endpoint of.
    pub fn services_of_pod<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = &'a Service> {
        let sliced = self.index.services_of_pod.get(&pod.key).into_iter().flatten();
        sliced.filter_map(|key| self.services.get(key)).chain(self.selecting(&pod.key.namespace, &pod.labels))
    }

    /// The EndpointSlices of a Service, ordered by name.
    pub fn slices_of(&self, service: &ServiceKey) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// The pods that the Service selects, when its endpoints are to be found that way: no EndpointSlice is there.
    pub fn selected_by<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Pod> {
        self.selects_directly(service)
            .then(|| self.pods_in(&service.key.namespace).filter(|pod| selects(&service.selector, &pod.labels)))
            .into_iter()
            .flatten()
    }

    /// The splits of a root, unordered.
    pub fn splits_of(&self, root: &ServiceKey) -> impl Iterator<Item = &TrafficSplit> {
        self.index.splits_of_root.get(root).into_iter().flatten().filter_map(|name| self.splits.get(name))
    }

    /// The targets whose destination is the account, ordered by name.
    pub fn targets_of(&self, account: &ServiceAccountKey) -> impl Iterator<Item = &TrafficTarget> {
        self.index.targets_of_account.get(account).into_iter().flatten().filter_map(|name| self.targets.get(name))
    }

    /// The targets that allow the account something, ordered by name.
    pub fn targets_from(&self, source: &ServiceAccountKey) -> impl Iterator<Item = &TrafficTarget> {
        self.index.targets_of_source.get(source).into_iter().flatten().filter_map(|name| self.targets.get(name))
    }

    /// An HTTPRouteGroup by name.
    pub fn route_group(&self, namespace: &Namespace, name: &Arc<str>) -> Option<&HttpRouteGroup> {
        self.route_groups.get(&(namespace.clone(), name.clone()))
    }

    /// A TCPRoute by name.
    pub fn tcp_route(&self, namespace: &Namespace, name: &Arc<str>) -> Option<&TcpRoute> {
        self.tcp_routes.get(&(namespace.clone(), name.clone()))
    }

    fn pods_in<'a>(&'a self, namespace: &'a Namespace) -> impl Iterator<Item = &'a Pod> {
        let first = PodKey::new(namespace.clone(), "");
        self.pods.range(first..).map(|(_, pod)| pod).take_while(move |pod| pod.key.namespace == *namespace)
    }
}

/// Whether every pair of a selector is among the labels. An empty selector selects nothing.
fn selects(selector: &super::object::Labels, labels: &super::object::Labels) -> bool {
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

fn in_namespace<'a, V>(map: &'a BTreeMap<Named, V>, namespace: &'a Namespace) -> impl Iterator<Item = &'a V> {
    map.range((namespace.clone(), "".into())..)
        .take_while(move |((in_namespace, _), _)| in_namespace == namespace)
        .map(|(_, value)| value)
}

fn remove_from<K: Ord, V: Ord>(index: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = index.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
