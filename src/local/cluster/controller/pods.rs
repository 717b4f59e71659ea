//! The part of [`Cluster`] that makes, restarts and ends pods.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};

use super::super::pod::{LivePod, Origin, Phase};
use super::super::rollout::{self, Member, Strategy};
use super::super::template::{self, Resolved};
use super::super::{CLUSTER_DOMAIN, DNS_ADDRESS, DnsConfig, PodAction, PodEvent, PodSpecToRun, endpoints, hash};
use super::Cluster;
use crate::mesh::diagnostic::Severity;
use crate::mesh::{self, Diagnostic, Kind, ObjectRef, PodKey, ServiceAccountKey, ServiceKey, WorkloadKey};

/// Annotations of Weft that the mesh follows while the pod runs.
const FOLLOWED: [&str; 2] = ["weft.dev/mtls", "weft.dev/mtls-ports"];

/// A pod's text with all that is decided before it exists: what a Deployment's template or a declared Pod comes to.
pub(super) struct Blueprint {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: PodSpec,
    /// Changes exactly when pods must be made anew.
    pub(super) hash: String,
}

impl Cluster {
    pub(super) fn pod_event(&mut self, event: PodEvent) {
        let now = self.now;
        let key = match &event {
            PodEvent::Running { pod } | PodEvent::Gone { pod } => pod,
            PodEvent::Exited { pod, .. } | PodEvent::Ready { pod, .. } | PodEvent::Sidecar { pod, .. } => pod,
        };
        // What comes late about a pod that has gone concerns nobody.
        let Some(pod) = self.pods.get_mut(key) else { return };
        match event {
            PodEvent::Running { .. } => pod.started(now),
            PodEvent::Exited { code, .. } => pod.exited(code, now),
            PodEvent::Ready { ready, .. } => pod.set_ready(ready && matches!(pod.phase, Phase::Running(_)), now),
            PodEvent::Sidecar { serves, .. } => pod.set_served(serves, now),
            PodEvent::Gone { pod: key } => return self.remove_pod(&key),
        }
        let key = key.clone();
        self.pod_changed(&key);
    }

    /// Starts again what has waited long enough.
    pub(super) fn restart_due(&mut self) {
        let mut due = Vec::new();
        for pod in self.pods.values_mut() {
            if pod.restart_if_due(self.now) {
                due.push(pod.key().clone());
                self.actions.push(PodAction::Start(pod.run.clone()));
            }
        }
        for key in due {
            self.pod_changed(&key);
        }
    }

    /// Brings Deployments, StatefulSets and declared Pods nearer to what they should be, until nothing is left to do at once.
    pub(super) fn reconcile_pods(&mut self) {
        while !(self.dirty_deployments.is_empty() && self.dirty_stateful_sets.is_empty() && self.dirty_pods.is_empty())
        {
            for key in std::mem::take(&mut self.dirty_deployments) {
                self.reconcile_deployment(&key);
            }
            for key in std::mem::take(&mut self.dirty_stateful_sets) {
                self.reconcile_stateful_set(&key);
            }
            for key in std::mem::take(&mut self.dirty_pods) {
                self.reconcile_declared(&key);
            }
        }
    }

    fn reconcile_deployment(&mut self, key: &WorkloadKey) {
        let mut owned: Vec<&LivePod> = self
            .pods
            .values()
            .filter(|pod| matches!(&pod.origin, Origin::Deployment(owner, _) if owner == key))
            .collect();
        owned.sort_by_key(|pod| pod.number);
        let Some(deployment) = self.deployments.get(key) else {
            let all: Vec<_> = owned.iter().map(|pod| pod.key().clone()).collect();
            all.iter().for_each(|pod| self.stop_pod(pod));
            return;
        };
        let reference = reference(Kind::Deployment, &key.namespace, &key.name);
        let blueprint = self.deployment_blueprint(key, deployment);
        let replicas = deployment.spec.replicas.map_or(1, |replicas| usize::try_from(replicas).unwrap_or(0));
        let strategy = Strategy::of(&deployment.spec, replicas);
        let current = |pod: &LivePod| matches!(&pod.origin, Origin::Deployment(_, hash) if *hash == blueprint.hash);
        let members: Vec<_> = owned
            .iter()
            .filter(|pod| pod.deleted.is_none())
            .map(|pod| Member { key: pod.key().clone(), current: current(pod), ready: pod.ready })
            .collect();
        let terminating = owned.iter().any(|pod| pod.deleted.is_some() && !current(pod));

        let found = self.check(&key.namespace, &blueprint, "spec.template.");
        let refused = is_error(&found);
        self.report(&reference, found);
        if refused {
            return;
        }
        let step = rollout::step(strategy, replicas, &members, terminating);
        for pod in &step.stop {
            self.stop_pod(pod);
        }
        for _ in 0..step.create {
            let name = self.new_name(key, &blueprint.hash);
            let pod = PodKey::new(key.namespace.clone(), name);
            let origin = Origin::Deployment(key.clone(), blueprint.hash.clone());
            self.create_pod(&reference, pod, origin, &blueprint, key.clone());
        }
    }

    fn reconcile_declared(&mut self, key: &PodKey) {
        let live = self.pods.get(key);
        if live.is_some_and(|pod| !matches!(pod.origin, Origin::Declared(_))) {
            return;
        }
        let Some(declared) = self.declared_pods.get(key) else {
            self.stop_pod(key);
            return;
        };
        let reference = reference(Kind::Pod, &key.namespace, &key.name);
        let blueprint = self.declared_blueprint(declared);
        let found = self.check(&key.namespace, &blueprint, "");
        let refused = is_error(&found);
        let same = live.map(|pod| pod.origin == Origin::Declared(blueprint.hash.clone()));
        self.report(&reference, found);
        match same {
            _ if refused => {}
            None => {
                let workload = WorkloadKey::new(key.namespace.clone(), key.name.clone());
                let origin = Origin::Declared(blueprint.hash.clone());
                self.create_pod(&reference, key.clone(), origin, &blueprint, workload);
            }
            // Kubernetes refuses to change a running pod's spec; here it ends, and begins anew once it has gone.
            Some(false) => self.stop_pod(key),
            Some(true) => self.relabel_pod(key, blueprint.metadata),
        }
    }

    fn deployment_blueprint(&self, key: &WorkloadKey, deployment: &Deployment) -> Blueprint {
        let template = deployment.spec.template.clone();
        let metadata = template.metadata.unwrap_or_default();
        let mut blueprint =
            self.blueprint(key.namespace.as_str(), metadata, template.spec.unwrap_or_default(), |metadata| {
                metadata.clone()
            });
        let replica_set = format!("{}-{}", key.name, blueprint.hash);
        let labels = blueprint.metadata.labels.get_or_insert_default();
        labels.insert("pod-template-hash".to_owned(), blueprint.hash.clone());
        blueprint.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "apps/v1".to_owned(),
            kind: "ReplicaSet".to_owned(),
            uid: hash::uuid(&format!("ReplicaSet {}/{replica_set}", key.namespace)),
            name: replica_set,
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]);
        blueprint
    }

    /// Labels and annotations of a declared Pod can change while it runs, except those that say how it runs.
    fn declared_blueprint(&self, pod: &Pod) -> Blueprint {
        let metadata = ObjectMeta {
            labels: pod.metadata.labels.clone(),
            annotations: pod.metadata.annotations.clone(),
            ..ObjectMeta::default()
        };
        let namespace = super::object::namespace(&pod.metadata);
        self.blueprint(namespace, metadata, pod.spec.clone().unwrap_or_default(), |metadata| {
            let mut decisive = metadata.annotations.clone();
            if let Some(annotations) = &mut decisive {
                annotations.retain(|key, _| key.starts_with("weft.dev/") && !FOLLOWED.contains(&key.as_str()));
            }
            ObjectMeta { annotations: decisive.filter(|map| !map.is_empty()), ..ObjectMeta::default() }
        })
    }

    pub(super) fn blueprint(
        &self,
        namespace: &str,
        metadata: ObjectMeta,
        mut spec: PodSpec,
        decisive: impl Fn(&ObjectMeta) -> ObjectMeta,
    ) -> Blueprint {
        let declared = self.namespaces.get(namespace).map(|namespace| &namespace.metadata);
        if template::wants_sidecar(declared, &metadata) {
            template::inject(&mut spec);
        }
        spec.service_account_name.get_or_insert_with(|| "default".to_owned());
        spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
        spec.node_name = Some("playground".to_owned());
        // Of plain data, so this cannot fail; were it to, the pods would only not roll.
        let text = serde_json::to_string(&(decisive(&metadata), &spec)).unwrap_or_default();
        Blueprint { metadata, spec, hash: hash::suffix(&text, 10) }
    }

    /// What is wrong with a blueprint, found by resolving a pod that is never made.
    pub(super) fn check(
        &self,
        namespace: &crate::mesh::Namespace,
        blueprint: &Blueprint,
        prefix: &str,
    ) -> Vec<Diagnostic> {
        let mut pod = self.pod_object(&PodKey::new(namespace.clone(), ""), blueprint, String::new());
        pod.status = Some(PodStatus { pod_ip: Some(String::new()), ..PodStatus::default() });
        template::resolve(&pod, prefix, &self.config.executable).diagnostics
    }

    fn pod_object(&self, key: &PodKey, blueprint: &Blueprint, uid: String) -> Pod {
        let metadata = ObjectMeta {
            name: Some(key.name.to_string()),
            namespace: Some(key.namespace.to_string()),
            uid: Some(uid),
            creation_timestamp: Some(Time(self.now)),
            ..blueprint.metadata.clone()
        };
        Pod { metadata, spec: Some(blueprint.spec.clone()), status: None }
    }

    pub(super) fn create_pod(
        &mut self,
        owner: &ObjectRef,
        key: PodKey,
        origin: Origin,
        blueprint: &Blueprint,
        workload: WorkloadKey,
    ) {
        let outside = super::outside::hosts(blueprint.metadata.annotations.as_ref()).next().is_some();
        let (addresses, range) = match outside {
            true => (&mut self.outside_addresses, "203.0.113.0/24"),
            false => (&mut self.pod_addresses, "10.244.0.0/16"),
        };
        let Some(ip) = addresses.allocate(self.now) else {
            let full =
                Diagnostic::error("", format!("no address of {range} is free for another pod"), "run fewer pods");
            self.report(owner, vec![full]);
            return;
        };
        self.created += 1;
        let uid = hash::uuid(&format!("Pod {key} {} {}", self.created, self.now));
        let mut object = self.pod_object(&key, blueprint, uid.clone());
        object.status = Some(PodStatus { pod_ip: Some(ip.to_string()), ..PodStatus::default() });
        let Resolved { containers, probes, .. } = template::resolve(&object, "", &self.config.executable);
        object.status = None;
        let account = blueprint.spec.service_account_name.as_deref().unwrap_or("default");
        let run = PodSpecToRun {
            uid,
            ip,
            ipv6: self.config.dual_stack.then(|| super::super::addresses::ipv6(ip)),
            account: ServiceAccountKey::new(key.namespace.clone(), account),
            workload,
            version: blueprint.metadata.labels.as_ref().and_then(mesh::object::version).map(str::to_owned),
            zone: blueprint.metadata.labels.as_ref().and_then(mesh::object::zone).map(str::to_owned),
            meshed: template::is_meshed(&blueprint.spec),
            containers,
            probes,
            annotations: blueprint.metadata.annotations.clone().unwrap_or_default(),
            dns: DnsConfig {
                nameserver: DNS_ADDRESS,
                search: vec![
                    format!("{}.svc.{CLUSTER_DOMAIN}", key.namespace),
                    format!("svc.{CLUSTER_DOMAIN}"),
                    CLUSTER_DOMAIN.to_owned(),
                ],
            },
            hostname: blueprint.spec.hostname.clone().unwrap_or_else(|| key.name.to_string()),
            key: key.clone(),
        };
        self.actions.push(PodAction::Start(run.clone()));
        let pod = LivePod {
            number: self.created,
            origin,
            object,
            run,
            phase: Phase::Pending,
            ready: false,
            checked: false,
            served: true,
            ready_changed: self.now,
            deleted: None,
            restarts: 0,
            failures: 0,
        };
        self.pods.insert(key.clone(), pod);
        self.pod_changed(&key);
    }

    /// Marks a pod as terminating and has it stopped.
    pub(super) fn stop_pod(&mut self, key: &PodKey) {
        let Some(pod) = self.pods.get_mut(key).filter(|pod| pod.deleted.is_none()) else { return };
        pod.deleted = Some(self.now);
        let grace = Duration::from_secs(pod.grace_seconds().unsigned_abs());
        self.actions.push(PodAction::Stop { pod: key.clone(), grace });
        self.pod_changed(key);
    }

    fn remove_pod(&mut self, key: &PodKey) {
        self.pod_changed(key);
        if let Some(pod) = self.pods.remove(key) {
            self.pod_addresses.release(pod.run.ip, self.now);
            self.outside_addresses.release(pod.run.ip, self.now);
            self.staged.insert(reference(Kind::Pod, &key.namespace, &key.name), None);
        }
    }

    fn relabel_pod(&mut self, key: &PodKey, metadata: ObjectMeta) {
        let Some(pod) = self.pods.get(key) else { return };
        let own = &pod.object.metadata;
        if own.labels == metadata.labels && own.annotations == metadata.annotations {
            return;
        }
        self.pod_changed(key);
        if let Some(pod) = self.pods.get_mut(key) {
            pod.object.metadata.labels = metadata.labels;
            pod.object.metadata.annotations = metadata.annotations;
        }
        self.pod_changed(key);
    }

    /// Marks all that depends on a pod: its document, its owner, the Services that choose it.
    fn pod_changed(&mut self, key: &PodKey) {
        let Some(pod) = self.pods.get(key) else { return };
        match &pod.origin {
            Origin::Deployment(owner, _) => self.dirty_deployments.insert(owner.clone()),
            Origin::StatefulSet(owner, _) => self.dirty_stateful_sets.insert(owner.clone()),
            Origin::Declared(_) => self.dirty_pods.insert(key.clone()),
        };
        let labels = pod.object.metadata.labels.as_ref();
        let first = ServiceKey::new(key.namespace.clone(), "");
        let services = self.services.range(first..).take_while(|(service, _)| service.namespace == key.namespace);
        let choosing = services.filter(|(_, service)| endpoints::selects(service, labels));
        self.dirty_services.extend(choosing.map(|(service, _)| service.clone()));
        self.network_dirty = true;
        let written = pod.written();
        self.stage(&reference(Kind::Pod, &key.namespace, &key.name), &written);
    }

    /// A name that no pod had, the same in every run of the same directory.
    fn new_name(&mut self, key: &WorkloadKey, hash: &str) -> String {
        let base: String = format!("{}-{hash}-", key.name).chars().take(58).collect();
        let count = self.named.entry((key.clone(), hash.to_owned())).or_default();
        loop {
            let name = format!("{base}{}", hash::suffix(&format!("{key}-{hash}-{count}"), 5));
            *count += 1;
            if !self.pods.contains_key(&PodKey::new(key.namespace.clone(), name.as_str())) {
                return name;
            }
        }
    }
}

pub(super) fn is_error(found: &[Diagnostic]) -> bool {
    found.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
}

pub(super) fn reference(kind: Kind, namespace: &crate::mesh::Namespace, name: &std::sync::Arc<str>) -> ObjectRef {
    ObjectRef { kind, namespace: Some(namespace.clone()), name: name.clone() }
}
