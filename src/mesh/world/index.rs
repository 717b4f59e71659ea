//! Reverse references: from an object to what depends on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::mesh::object::{
    Pod, Requests, Service, TargetRule, TrafficFault, TrafficPolicy, TrafficSplit, TrafficTarget,
};
use crate::mesh::{Namespace, PodKey, ServiceAccountKey, ServiceKey};

/// A name within a namespace; namespaced objects without a key type of their own are kept by it.
pub(super) type Named = (Namespace, Arc<str>);

/// Kept in step with the objects by [`super::World::apply`].
#[derive(Debug, Default)]
pub(super) struct Index {
    /// The Service that an EndpointSlice belongs to, by the slice's name.
    pub(super) slice_service: BTreeMap<Named, ServiceKey>,
    /// The EndpointSlices that name a pod, each as its Service and its own name.
    pub(super) slices_of_pod: Multimap<PodKey, (ServiceKey, Arc<str>)>,
    /// What selects what by labels.
    pub(super) selection: Selection,
    /// Splits by their root.
    pub(super) splits_of_root: Multimap<ServiceKey, Named>,
    /// Splits by each backend.
    pub(super) splits_of_backend: Multimap<ServiceKey, Named>,
    /// Splits by each HTTPRouteGroup of their matches.
    pub(super) splits_of_group: Multimap<Named, Named>,
    /// Pods by each of their declared upstreams.
    pub(super) pods_upstream_of: Multimap<ServiceKey, PodKey>,
    /// Pods by their account.
    pub(super) pods_of_account: Multimap<ServiceAccountKey, PodKey>,
    /// Targets by their destination.
    pub(super) targets_of_account: Multimap<ServiceAccountKey, Named>,
    /// Targets by each of their sources.
    pub(super) targets_of_source: Multimap<ServiceAccountKey, Named>,
    /// Targets by each HTTPRouteGroup of their rules.
    pub(super) targets_of_group: Multimap<Named, Named>,
    /// Targets by each TCPRoute of their rules.
    pub(super) targets_of_tcp_route: Multimap<Named, Named>,
    /// Faults by each Service of their targets.
    pub(super) faults_of_service: Multimap<ServiceKey, Named>,
    /// Policies by each Service of their targets.
    pub(super) policies_of_service: Multimap<ServiceKey, Named>,
    /// Faults by each HTTPRouteGroup of their requests.
    pub(super) faults_of_group: Multimap<Named, Named>,
}

impl Index {
    pub(super) fn insert_pod(&mut self, pod: &Pod) {
        self.selection.insert_pod(pod);
        self.pods_of_account.insert(pod.account.clone(), pod.key.clone());
        for upstream in &pod.upstreams {
            self.pods_upstream_of.insert(upstream.service.clone(), pod.key.clone());
        }
    }

    pub(super) fn remove_pod(&mut self, pod: &Pod) {
        self.selection.remove_pod(pod);
        self.pods_of_account.remove(&pod.account, &pod.key);
        for upstream in &pod.upstreams {
            self.pods_upstream_of.remove(&upstream.service, &pod.key);
        }
    }

    pub(super) fn insert_split(&mut self, name: &Named, split: &TrafficSplit) {
        self.splits_of_root.insert(split.root.clone(), name.clone());
        for backend in &split.backends {
            self.splits_of_backend.insert(backend.service.clone(), name.clone());
        }
        for group in &split.matches {
            self.splits_of_group.insert((split.namespace.clone(), group.clone()), name.clone());
        }
    }

    pub(super) fn remove_split(&mut self, name: &Named, split: &TrafficSplit) {
        self.splits_of_root.remove(&split.root, name);
        for backend in &split.backends {
            self.splits_of_backend.remove(&backend.service, name);
        }
        for group in &split.matches {
            self.splits_of_group.remove(&(split.namespace.clone(), group.clone()), name);
        }
    }

    pub(super) fn insert_target(&mut self, name: &Named, target: &TrafficTarget) {
        self.targets_of_account.insert(target.destination.clone(), name.clone());
        for source in &target.sources {
            self.targets_of_source.insert(source.clone(), name.clone());
        }
        for rule in &target.rules {
            let (targets, route) = self.targets_by(rule);
            targets.insert((target.namespace.clone(), route.clone()), name.clone());
        }
    }

    pub(super) fn remove_target(&mut self, name: &Named, target: &TrafficTarget) {
        self.targets_of_account.remove(&target.destination, name);
        for source in &target.sources {
            self.targets_of_source.remove(source, name);
        }
        for rule in &target.rules {
            let (targets, route) = self.targets_by(rule);
            targets.remove(&(target.namespace.clone(), route.clone()), name);
        }
    }

    pub(super) fn insert_fault(&mut self, name: &Named, fault: &TrafficFault) {
        for target in &fault.targets {
            self.faults_of_service.insert(target.service.clone(), name.clone());
        }
        for group in groups(fault) {
            self.faults_of_group.insert(group, name.clone());
        }
    }

    pub(super) fn remove_fault(&mut self, name: &Named, fault: &TrafficFault) {
        for target in &fault.targets {
            self.faults_of_service.remove(&target.service, name);
        }
        for group in groups(fault) {
            self.faults_of_group.remove(&group, name);
        }
    }

    pub(super) fn insert_policy(&mut self, name: &Named, policy: &TrafficPolicy) {
        for target in &policy.targets {
            self.policies_of_service.insert(target.service.clone(), name.clone());
        }
    }

    pub(super) fn remove_policy(&mut self, name: &Named, policy: &TrafficPolicy) {
        for target in &policy.targets {
            self.policies_of_service.remove(&target.service, name);
        }
    }

    fn targets_by<'a>(&mut self, rule: &'a TargetRule) -> (&mut Multimap<Named, Named>, &'a Arc<str>) {
        match rule {
            TargetRule::Http(group, _) => (&mut self.targets_of_group, group),
            TargetRule::Tcp(route) => (&mut self.targets_of_tcp_route, route),
        }
    }
}

/// The HTTPRouteGroups whose requests a fault hits.
fn groups(fault: &TrafficFault) -> impl Iterator<Item = Named> {
    let requests = fault.requests.iter().flatten();
    requests.filter_map(|requests| match requests {
        Requests::Group(group, _) => Some((fault.namespace.clone(), group.clone())),
        Requests::Inline(_) => None,
    })
}

/// A label's name and value in a namespace.
type Label = (Namespace, String, String);

/// Pods and the Services that select them, found by single labels. What is found may fit in that one label only.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// Pods by each of their labels.
    pods: Multimap<Label, PodKey>,
    /// Services by one label of their selector: the one by which fewest others were found when the Service came, so
    /// that a label which every selector has in common is not the one.
    services: Multimap<Label, ServiceKey>,
}

impl Selection {
    fn insert_pod(&mut self, pod: &Pod) {
        for label in labels(&pod.key.namespace, &pod.labels) {
            self.pods.insert(label, pod.key.clone());
        }
    }

    fn remove_pod(&mut self, pod: &Pod) {
        for label in labels(&pod.key.namespace, &pod.labels) {
            self.pods.remove(&label, &pod.key);
        }
    }

    pub(super) fn insert_service(&mut self, service: &Service) {
        let selector = labels(&service.key.namespace, &service.selector);
        if let Some(rarest) = selector.min_by_key(|label| self.services.count(label)) {
            self.services.insert(rarest, service.key.clone());
        }
    }

    pub(super) fn remove_service(&mut self, service: &Service) {
        for label in labels(&service.key.namespace, &service.selector) {
            self.services.remove(&label, &service.key);
        }
    }

    /// Every Service that may select the pod.
    pub(super) fn services_for(&self, pod: &Pod) -> impl Iterator<Item = &ServiceKey> {
        labels(&pod.key.namespace, &pod.labels).flat_map(|label| self.services.get(&label))
    }

    /// Every pod that the Service may select; none if its selector is empty.
    pub(super) fn pods_for(&self, service: &Service) -> impl Iterator<Item = &PodKey> {
        let selector = labels(&service.key.namespace, &service.selector);
        let rarest = selector.min_by_key(|label| self.pods.count(label));
        rarest.into_iter().flat_map(|label| self.pods.get(&label))
    }
}

fn labels(namespace: &Namespace, labels: &BTreeMap<String, String>) -> impl Iterator<Item = Label> {
    labels.iter().map(|(name, value)| (namespace.clone(), name.clone(), value.clone()))
}

/// Several values for a key.
#[derive(Debug)]
pub(super) struct Multimap<K, V>(BTreeMap<K, BTreeSet<V>>);

impl<K, V> Default for Multimap<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord, V: Ord> Multimap<K, V> {
    pub(super) fn get(&self, key: &K) -> impl Iterator<Item = &V> + use<'_, K, V> {
        self.0.get(key).into_iter().flatten()
    }

    fn count(&self, key: &K) -> usize {
        self.0.get(key).map_or(0, BTreeSet::len)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.0.entry(key).or_default().insert(value);
    }

    pub(super) fn remove(&mut self, key: &K, value: &V) {
        if let Some(values) = self.0.get_mut(key) {
            values.remove(value);
            if values.is_empty() {
                self.0.remove(key);
            }
        }
    }
}
