//! [`Cluster`]: what exists, what should exist, and the steps between.
//!
//! Every input only records what has changed and marks what depends on it; then one pass brings Deployments and pods
//! nearer to what they should be, makes the EndpointSlices of the Services concerned anew, and one comparison with
//! what was said before gives the outputs. So the result of a batch does not depend on its order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::addresses::{PodAddresses, ServiceAddresses};
use super::dns::Zone;
use super::endpoints::Family;
use super::pod::LivePod;
use super::{Object, PodAction, PodEvent, endpoints, hash, object, outside, service_proxy};
use crate::mesh::{Diagnostic, Kind, ObjectRef, PodKey, ServiceKey, WorkloadKey};

mod pods;
mod stateful;
#[cfg(test)]
mod tests;

/// What the cluster must be told about the machine.
#[derive(Clone, Debug)]
pub struct Config {
    /// The `weft` executable, which containers of Weft's own image run.
    pub executable: PathBuf,
    /// Pods have IPv6 addresses as well.
    pub dual_stack: bool,
}

/// What happens to the cluster.
#[derive(Clone, PartialEq, Debug)]
pub enum Input {
    /// An object of the user's directory is new or has changed.
    Applied(Object),
    /// An object has gone from the user's directory.
    Deleted(ObjectRef),
    /// The machine side says something.
    Pod(PodEvent),
    /// It is now this time. Comes before the inputs that it concerns, and at [`Cluster::wakes_at`].
    Tick(Timestamp),
    /// The user's directory has been read once, whole. Concerns the driver only.
    Synced,
}

/// What is to be done, in this order.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// To be shown to the user.
    Diagnostic(Diagnostic),
    /// A document of the state directory is new or has changed.
    Write {
        /// Its path below the state directory.
        path: Arc<PathBuf>,
        /// The document.
        yaml: String,
    },
    /// A document of the state directory has gone.
    Remove(Arc<PathBuf>),
    /// The service proxy's rules have changed: the whole of them, for `nft -f -`.
    Ruleset(String),
    /// The cluster DNS's data has changed.
    Zone(Arc<Zone>),
    /// For the machine side.
    Pod(PodAction),
}

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    config: Config,
    now: Timestamp,
    // What the user's directory says.
    namespaces: BTreeMap<String, Namespace>,
    deployments: BTreeMap<WorkloadKey, Deployment>,
    stateful_sets: BTreeMap<WorkloadKey, StatefulSet>,
    declared_pods: BTreeMap<PodKey, Pod>,
    services: BTreeMap<ServiceKey, Service>,
    manual_slices: BTreeMap<ObjectRef, EndpointSlice>,
    // What exists because of it.
    pods: BTreeMap<PodKey, LivePod>,
    created: u64,
    /// How many pods were ever made of a Deployment's template, so that no name is used twice.
    named: BTreeMap<(WorkloadKey, String), u64>,
    controlled_slices: BTreeMap<ServiceKey, Vec<EndpointSlice>>,
    pod_addresses: PodAddresses,
    outside_addresses: PodAddresses,
    service_addresses: ServiceAddresses,
    // What must be looked at again.
    dirty_deployments: BTreeSet<WorkloadKey>,
    dirty_stateful_sets: BTreeSet<WorkloadKey>,
    dirty_pods: BTreeSet<PodKey>,
    dirty_services: BTreeSet<ServiceKey>,
    network_dirty: bool,
    // What was said, and what is about to be.
    written: BTreeMap<ObjectRef, String>,
    staged: BTreeMap<ObjectRef, Option<String>>,
    reported: BTreeMap<ObjectRef, Vec<Diagnostic>>,
    diagnostics: Vec<Diagnostic>,
    actions: Vec<PodAction>,
    ruleset: String,
    zone: Arc<Zone>,
}

impl Cluster {
    /// An empty cluster.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            now: Timestamp::UNIX_EPOCH,
            namespaces: BTreeMap::new(),
            deployments: BTreeMap::new(),
            stateful_sets: BTreeMap::new(),
            declared_pods: BTreeMap::new(),
            services: BTreeMap::new(),
            manual_slices: BTreeMap::new(),
            pods: BTreeMap::new(),
            created: 0,
            named: BTreeMap::new(),
            controlled_slices: BTreeMap::new(),
            pod_addresses: PodAddresses::default(),
            outside_addresses: PodAddresses::outside(),
            service_addresses: ServiceAddresses::default(),
            dirty_deployments: BTreeSet::new(),
            dirty_stateful_sets: BTreeSet::new(),
            dirty_pods: BTreeSet::new(),
            dirty_services: BTreeSet::new(),
            network_dirty: true,
            written: BTreeMap::new(),
            staged: BTreeMap::new(),
            reported: BTreeMap::new(),
            diagnostics: Vec::new(),
            actions: Vec::new(),
            ruleset: String::new(),
            zone: Arc::default(),
        }
    }

    /// Takes one input.
    pub fn apply(&mut self, input: Input) -> Vec<Output> {
        self.apply_all([input])
    }

    /// Takes inputs that came together, and looks at what depends on them once.
    pub fn apply_all(&mut self, inputs: impl IntoIterator<Item = Input>) -> Vec<Output> {
        for input in inputs {
            match input {
                Input::Applied(object) => self.applied(object),
                Input::Deleted(object) => self.deleted(&object),
                Input::Pod(event) => self.pod_event(event),
                Input::Tick(now) => self.now = now,
                Input::Synced => {}
            }
        }
        self.restart_due();
        // What is known of pods is written before anything is done about it, as where several controllers follow one
        // another: a new pod is an endpoint before the one that it replaces is none.
        self.reconcile_services();
        let mut outputs = self.outputs();
        self.reconcile_pods();
        self.reconcile_services();
        outputs.extend(self.outputs());
        outputs
    }

    /// When the cluster wants a [`Input::Tick`], if no other input comes before.
    pub fn wakes_at(&self) -> Option<Timestamp> {
        self.pods.values().filter_map(LivePod::restart_at).min()
    }

    fn applied(&mut self, object: Object) {
        let reference = object.object_ref();
        if !object::is_writable(&reference) {
            let error = Diagnostic::error(
                "metadata.name",
                "it is not a name that Kubernetes takes",
                "use lower-case letters, digits, `-` and `.` for the names of objects and namespaces",
            );
            self.report(&reference, vec![error]);
            return;
        }
        if let Some(namespace) = &reference.namespace {
            self.use_namespace(namespace.as_str());
        }
        match object {
            Object::Namespace(namespace) => {
                self.stage(&reference, &*namespace);
                self.namespaces.insert(reference.name.to_string(), *namespace);
                self.namespace_changed(&reference.name);
            }
            Object::Deployment(deployment) => {
                self.stage(&reference, &*deployment);
                let key = WorkloadKey::new(object::namespace(&deployment.metadata), &*reference.name);
                self.deployments.insert(key.clone(), *deployment);
                self.dirty_deployments.insert(key);
            }
            Object::StatefulSet(set) => {
                self.stage(&reference, &*set);
                let key = WorkloadKey::new(object::namespace(&set.metadata), &*reference.name);
                self.stateful_sets.insert(key.clone(), *set);
                self.dirty_stateful_sets.insert(key);
            }
            Object::Pod(pod) => {
                let key = PodKey::new(object::namespace(&pod.metadata), &*reference.name);
                self.declared_pods.insert(key.clone(), *pod);
                self.dirty_pods.insert(key);
            }
            Object::Service(service) => self.service_applied(&reference, *service),
            Object::EndpointSlice(slice) => {
                if object::label(&slice.metadata, endpoints::MANAGED_BY) == Some(endpoints::CONTROLLER) {
                    let warning = Diagnostic::warning(
                        "metadata.labels",
                        format!("a slice managed by {} is written by the playground itself", endpoints::CONTROLLER),
                        "remove the object",
                    );
                    self.report(&reference, vec![warning]);
                    return;
                }
                self.stage(&reference, &*slice);
                self.manual_slices.insert(reference, *slice);
                self.network_dirty = true;
            }
            Object::Other { object, yaml } => {
                self.staged.insert(object, Some(yaml));
            }
        }
    }

    fn deleted(&mut self, reference: &ObjectRef) {
        self.reported.remove(reference);
        let namespace = reference.namespace.as_ref().map_or("", |namespace| namespace.as_str());
        match reference.kind {
            Kind::Namespace => {
                self.namespaces.remove(&*reference.name);
                self.staged.insert(reference.clone(), None);
                let used = |o: &ObjectRef| o.namespace.as_ref().is_some_and(|n| n.as_str() == &*reference.name);
                let staged = self.staged.iter().filter(|(_, document)| document.is_some()).map(|(object, _)| object);
                if self.written.keys().chain(staged).any(used) {
                    self.use_namespace(&reference.name);
                }
                self.namespace_changed(&reference.name);
            }
            Kind::Deployment => {
                let key = WorkloadKey::new(namespace, &*reference.name);
                self.deployments.remove(&key);
                self.dirty_deployments.insert(key);
                self.staged.insert(reference.clone(), None);
            }
            Kind::StatefulSet => {
                let key = WorkloadKey::new(namespace, &*reference.name);
                self.stateful_sets.remove(&key);
                self.dirty_stateful_sets.insert(key);
                self.staged.insert(reference.clone(), None);
            }
            Kind::Pod => {
                let key = PodKey::new(namespace, &*reference.name);
                self.declared_pods.remove(&key);
                self.dirty_pods.insert(key);
            }
            Kind::Service => {
                let key = ServiceKey::new(namespace, &*reference.name);
                self.services.remove(&key);
                self.service_addresses.release(&key);
                self.dirty_services.insert(key);
                self.staged.insert(reference.clone(), None);
            }
            Kind::EndpointSlice => {
                self.manual_slices.remove(reference);
                self.network_dirty = true;
                self.staged.insert(reference.clone(), None);
            }
            _ => {
                self.staged.insert(reference.clone(), None);
            }
        }
    }

    /// Kubernetes would refuse an object in a namespace that does not exist; here it comes into being.
    fn use_namespace(&mut self, name: &str) {
        let reference = ObjectRef { kind: Kind::Namespace, namespace: None, name: name.into() };
        let exists = match self.staged.get(&reference) {
            Some(staged) => staged.is_some(),
            None => self.written.contains_key(&reference),
        };
        if !exists {
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            self.stage(&reference, &Namespace { metadata, ..Namespace::default() });
        }
    }

    /// The namespace's label decides about sidecars, also about those of pods that exist: there is nobody here who
    /// would restart a Deployment after labelling its namespace.
    fn namespace_changed(&mut self, name: &str) {
        let deployments = self.deployments.keys().filter(|key| key.namespace.as_str() == name);
        self.dirty_deployments.extend(deployments.cloned());
        let sets = self.stateful_sets.keys().filter(|key| key.namespace.as_str() == name);
        self.dirty_stateful_sets.extend(sets.cloned());
        let pods = self.declared_pods.keys().filter(|key| key.namespace.as_str() == name);
        self.dirty_pods.extend(pods.cloned());
    }

    fn service_applied(&mut self, reference: &ObjectRef, mut service: Service) {
        let key = ServiceKey::new(object::namespace(&service.metadata), &*reference.name);
        let spec = service.spec.get_or_insert_default();
        let mut found = Vec::new();
        let families = Family::of(spec, self.config.dual_stack);
        if self.config.dual_stack {
            spec.ip_families = Some(families.iter().map(|family| format!("{family:?}")).collect());
        }
        if spec.cluster_ip.as_deref() == Some("None") || spec.type_.as_deref() == Some("ExternalName") {
            self.service_addresses.release(&key);
            spec.cluster_ips = spec.cluster_ip.clone().map(|none| vec![none]);
        } else {
            let wish = spec.cluster_ip.as_deref().filter(|wish| !wish.is_empty() && !wish.contains(':'));
            let (address, refused) = self.service_addresses.allocate(&key, wish);
            let ips = |family| match family {
                Family::IPv4 => address.map(|address| address.to_string()),
                Family::IPv6 => address.map(|address| super::addresses::ipv6(address).to_string()),
            };
            spec.cluster_ips = Some(families.iter().copied().filter_map(ips).collect());
            spec.cluster_ip = spec.cluster_ips.as_ref().and_then(|ips| ips.first().cloned());
            if let Some(refused) = refused {
                let instead = address.map_or("none".to_owned(), |address| address.to_string());
                found.push(Diagnostic::warning(
                    "spec.clusterIP",
                    format!("{refused}; the Service has {instead} instead"),
                    "leave clusterIP out, or choose a free address of 10.96.0.0/12",
                ));
            }
        }
        spec.type_.get_or_insert_with(|| "ClusterIP".to_owned());
        service.metadata.uid.get_or_insert_with(|| hash::uuid(&format!("Service {key}")));
        self.report(reference, found);
        self.stage(reference, &service);
        self.services.insert(key.clone(), service);
        self.dirty_services.insert(key);
    }

    /// Makes the EndpointSlices of the Services concerned anew.
    fn reconcile_services(&mut self) {
        for key in std::mem::take(&mut self.dirty_services) {
            self.network_dirty = true;
            let of_namespace = self.pods.values().filter(|pod| pod.key().namespace == key.namespace);
            let slices = self.services.get(&key).map(|service| endpoints::slices(service, of_namespace));
            let slices = slices.unwrap_or_default();
            let reference = |slice: &EndpointSlice| object::object_ref(Kind::EndpointSlice, &slice.metadata);
            for old in self.controlled_slices.remove(&key).unwrap_or_default() {
                self.staged.insert(reference(&old), None);
            }
            for slice in &slices {
                self.stage(&reference(slice), slice);
            }
            if !slices.is_empty() {
                self.controlled_slices.insert(key, slices);
            }
        }
    }

    /// Has `object` written as `document`.
    fn stage(&mut self, object: &ObjectRef, document: &impl Serialize) {
        // By way of JSON, as everywhere: each further format that a type of Kubernetes is written in is code for its
        // whole tree, which stays resident.
        let yaml = serde_json::to_value(document).map_err(|error| error.to_string());
        match yaml.and_then(|json| serde_saphyr::to_string(&json).map_err(|error| error.to_string())) {
            Ok(yaml) => {
                self.staged.insert(object.clone(), Some(yaml));
            }
            Err(error) => {
                let reason = format!("it cannot be written as YAML: {error}");
                self.report(object, vec![Diagnostic::error("", reason, "report this as a defect of Weft")]);
            }
        }
    }

    /// Says what was found about `object`, unless it was said before.
    fn report(&mut self, object: &ObjectRef, found: Vec<Diagnostic>) {
        let found: Vec<_> = found.into_iter().map(|diagnostic| diagnostic.about(object.clone())).collect();
        let before = self.reported.insert(object.clone(), found.clone()).unwrap_or_default();
        self.diagnostics.extend(found.into_iter().filter(|diagnostic| !before.contains(diagnostic)));
    }

    /// What has to be done for what has changed. Documents come before rules and rules before actions, so that a pod
    /// is known before it starts, and gets no new connections before it stops.
    fn outputs(&mut self) -> Vec<Output> {
        let mut outputs: Vec<_> = self.diagnostics.drain(..).map(Output::Diagnostic).collect();
        let mut removed = Vec::new();
        for (object, staged) in std::mem::take(&mut self.staged) {
            match staged {
                Some(yaml) if self.written.get(&object) == Some(&yaml) => {}
                Some(yaml) => {
                    outputs.push(Output::Write { path: object::path(&object), yaml: yaml.clone() });
                    self.written.insert(object, yaml);
                }
                None if self.written.remove(&object).is_some() => removed.push(Output::Remove(object::path(&object))),
                None => {}
            }
        }
        outputs.append(&mut removed);
        if std::mem::take(&mut self.network_dirty) {
            let slices = || self.controlled_slices.values().flatten().chain(self.manual_slices.values());
            let ruleset = service_proxy::ruleset(self.services.values(), slices());
            if ruleset != self.ruleset {
                outputs.push(Output::Ruleset(ruleset.clone()));
                self.ruleset = ruleset;
            }
            let pods = self.pods.values().map(|pod| (pod.key().namespace.as_str(), pod.run.ip));
            let hosts = self.pods.values().flat_map(|pod| {
                let ips = [Some(pod.run.ip.into()), pod.run.ipv6.map(IpAddr::from)].into_iter().flatten();
                let hosts = outside::hosts(pod.object.metadata.annotations.as_ref());
                hosts.flat_map(move |host| ips.clone().map(move |ip| (host.clone(), ip)))
            });
            let zone = Zone::new(self.services.values(), slices(), pods, hosts);
            if zone != *self.zone {
                self.zone = Arc::new(zone);
                outputs.push(Output::Zone(self.zone.clone()));
            }
        }
        outputs.extend(self.actions.drain(..).map(Output::Pod));
        outputs
    }
}
