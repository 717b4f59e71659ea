//! Scenarios: objects and events in, documents and actions out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use k8s_openapi::jiff::SignedDuration;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::local::cluster::PodSpecToRun;

/// A cluster with a machine that does at once what it is told, unless `lazy`.
struct World {
    cluster: Cluster,
    now: Timestamp,
    files: BTreeMap<PathBuf, Value>,
    /// What the machine runs.
    running: BTreeMap<PodKey, PodSpecToRun>,
    starts: usize,
    diagnostics: Vec<String>,
    ruleset: String,
    lazy: bool,
    /// A Service, and the fewest ready endpoints that it had after any write.
    watched: Option<(String, usize)>,
}

impl World {
    fn new() -> Self {
        Self {
            cluster: Cluster::new(Config { executable: "/bin/weft".into(), dual_stack: false }),
            now: Timestamp::UNIX_EPOCH,
            files: BTreeMap::new(),
            running: BTreeMap::new(),
            starts: 0,
            diagnostics: Vec::new(),
            ruleset: String::new(),
            lazy: false,
            watched: None,
        }
    }

    fn lazy() -> Self {
        Self { lazy: true, ..Self::new() }
    }

    /// Applies inputs, and the events that follow from the actions, until nothing follows.
    fn inputs(&mut self, inputs: impl IntoIterator<Item = Input>) -> Vec<PodAction> {
        let mut all = Vec::new();
        let mut inputs: Vec<_> = inputs.into_iter().collect();
        for _ in 0..1000 {
            let mut events = Vec::new();
            for output in self.cluster.apply_all(inputs.drain(..)) {
                match output {
                    Output::Write { path, yaml } => {
                        self.files.insert(path.to_path_buf(), serde_saphyr::from_str(&yaml).expect("YAML"));
                        self.watch();
                    }
                    Output::Remove(path) => {
                        self.files.remove(&*path).expect("was written");
                        self.watch();
                    }
                    Output::Diagnostic(diagnostic) => self.diagnostics.push(diagnostic.to_string()),
                    Output::Ruleset(text) => self.ruleset = text,
                    Output::Zone(_) => {}
                    Output::Pod(action) => {
                        all.push(action.clone());
                        self.act(action, &mut events);
                    }
                }
            }
            if events.is_empty() || self.lazy {
                return all;
            }
            inputs = events.into_iter().map(Input::Pod).collect();
        }
        panic!("the cluster does not come to rest");
    }

    /// Whoever reads the documents may do so between any two.
    fn watch(&mut self) {
        if let Some((service, fewest)) = self.watched.take() {
            let ready = self.endpoints(&service).iter().filter(|(_, ready, ..)| *ready).count();
            self.watched = Some((service, fewest.min(ready)));
        }
    }

    fn act(&mut self, action: PodAction, events: &mut Vec<PodEvent>) {
        match action {
            PodAction::Start(spec) => {
                self.starts += 1;
                let sharing = self.running.values().find(|other| other.ip == spec.ip && other.key != spec.key);
                assert!(sharing.is_none(), "{} shares {} with {:?}", spec.key, spec.ip, sharing.map(|s| &s.key));
                events.push(PodEvent::Running { pod: spec.key.clone() });
                self.running.insert(spec.key.clone(), spec);
            }
            PodAction::Stop { pod, .. } => {
                events.push(PodEvent::Gone { pod: pod.clone() });
                if !self.lazy {
                    self.running.remove(&pod).expect("was started");
                }
            }
        }
    }

    fn apply(&mut self, objects: impl IntoIterator<Item = Value>) -> Vec<PodAction> {
        self.inputs(objects.into_iter().map(|value| Input::Applied(object(value))))
    }

    fn delete(&mut self, value: Value) -> Vec<PodAction> {
        self.inputs([Input::Deleted(object(value).object_ref())])
    }

    fn event(&mut self, event: PodEvent) -> Vec<PodAction> {
        self.inputs([Input::Pod(event)])
    }

    fn pass(&mut self, seconds: i64) -> Vec<PodAction> {
        self.now += SignedDuration::from_secs(seconds);
        self.inputs([Input::Tick(self.now)])
    }

    fn pods(&self) -> Vec<PodKey> {
        self.running.keys().cloned().collect()
    }

    fn only_pod(&self) -> PodKey {
        let [pod] = &self.pods()[..] else { panic!("not one pod: {:?}", self.pods()) };
        pod.clone()
    }

    fn file(&self, path: &str) -> &Value {
        self.files.get(std::path::Path::new(path)).unwrap_or_else(|| panic!("no {path} in {:?}", self.files.keys()))
    }

    fn pod_file(&self, pod: &PodKey) -> &Value {
        self.file(&format!("Pod/{}/{}.yaml", pod.namespace, pod.name))
    }

    /// `address ready serving terminating` of the Service's endpoints.
    fn endpoints(&self, service: &str) -> Vec<(String, bool, bool, bool)> {
        let mut endpoints = Vec::new();
        for slice in self.files.values().filter(|file| file["kind"] == "EndpointSlice") {
            if slice["metadata"]["labels"]["kubernetes.io/service-name"] != service {
                continue;
            }
            for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
                let condition = |name: &str| endpoint["conditions"][name].as_bool().expect("a condition");
                let address = endpoint["addresses"][0].as_str().expect("an address").to_owned();
                endpoints.push((address, condition("ready"), condition("serving"), condition("terminating")));
            }
        }
        endpoints
    }
}

fn object(value: Value) -> Object {
    fn typed<T: serde::de::DeserializeOwned>(value: Value) -> Box<T> {
        Box::new(serde_json::from_value(value).expect("an object"))
    }
    match value["kind"].as_str().expect("a kind") {
        "Namespace" => Object::Namespace(typed(value)),
        "Deployment" => Object::Deployment(typed(value)),
        "StatefulSet" => Object::StatefulSet(typed(value)),
        "Pod" => Object::Pod(typed(value)),
        "Service" => Object::Service(typed(value)),
        "EndpointSlice" => Object::EndpointSlice(typed(value)),
        other => panic!("{other}"),
    }
}

fn namespace(name: &str, inject: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"weft.dev/inject": inject}}})
}

fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{
                    "name": "app", "image": "weft", "args": ["app"],
                    "ports": [{"name": "http", "containerPort": 8080}],
                }]},
            },
        },
    })
}

fn with(mut value: Value, pointer: &str, new: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    value.pointer_mut(parent).expect("a parent")[key] = new;
    value
}

fn pod(name: &str, label: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": label}},
        "spec": {"containers": [{"name": "app", "image": "weft", "ports": [{"name": "http", "containerPort": 9090}]}]},
    })
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    })
}

const READINESS: &str = "/spec/template/spec/containers/0/readinessProbe";

fn probed(name: &str, replicas: u32) -> Value {
    with(deployment(name, replicas), READINESS, json!({"httpGet": {"port": "http", "path": "/ready"}}))
}

#[test]
fn a_deployment_becomes_pods_as_kubernetes_writes_them() {
    let mut world = World::new();
    world.apply([namespace("shop", "enabled"), deployment("cart", 2), service("cart")]);
    assert_eq!(world.pods().len(), 2);
    for key in world.pods() {
        let file = world.pod_file(&key);
        let hash = file["metadata"]["labels"]["pod-template-hash"].as_str().expect("a hash").to_owned();
        let owner = &file["metadata"]["ownerReferences"][0];
        assert_eq!((&owner["kind"], &owner["name"]), (&json!("ReplicaSet"), &json!(format!("cart-{hash}"))));
        assert_eq!(owner["controller"], true);
        let suffix = key.name.strip_prefix(&format!("cart-{hash}-")).expect("the ReplicaSet's name first");
        assert_eq!(suffix.len(), 5);
        let spec = &world.running[&key];
        assert!(spec.meshed);
        assert_eq!(spec.workload, WorkloadKey::new("shop", "cart"));
        assert_eq!(spec.containers.len(), 1, "the sidecar is the machine's affair");
        assert_eq!(spec.containers[0].argv, ["/bin/weft", "app"]);
        assert_eq!(spec.dns.search[0], "shop.svc.cluster.local");
        assert_eq!(file["spec"]["initContainers"][0]["name"], "weft-proxy");
        assert_eq!(file["spec"]["initContainers"][0]["restartPolicy"], "Always");
        assert_eq!(file["status"]["podIP"], spec.ip.to_string());
        assert_eq!(file["status"]["podIPs"][0]["ip"], spec.ip.to_string());
        assert_eq!(file["status"]["phase"], "Running");
        assert_eq!(file["metadata"]["uid"], spec.uid);
    }
    assert_eq!(world.endpoints("cart").len(), 2);
    assert!(world.endpoints("cart").iter().all(|(_, ready, ..)| *ready));
    assert!(
        world.file("Service/shop/cart.yaml")["spec"]["clusterIP"].as_str().is_some_and(|ip| world.ruleset.contains(ip))
    );
    assert!(world.file("Namespace/shop.yaml")["metadata"]["labels"].is_object());
    assert_eq!(world.diagnostics, [""; 0]);

    let mut again = World::new();
    again.apply([namespace("shop", "enabled"), deployment("cart", 2), service("cart")]);
    assert_eq!(again.pods(), world.pods(), "the same names in every run");
}

#[test]
fn nothing_is_said_twice() {
    let mut world = World::new();
    let objects = [namespace("shop", "enabled"), deployment("cart", 2), service("cart"), pod("one", "cart")];
    world.apply(objects.clone());
    let inputs = objects.into_iter().map(|value| Input::Applied(object(value)));
    assert_eq!(world.cluster.apply_all(inputs), []);
}

#[test]
fn a_template_change_rolls_without_a_gap() {
    let mut world = World::lazy();
    world.apply([probed("cart", 1), service("cart")]);
    let old = world.only_pod();
    world.event(PodEvent::Running { pod: old.clone() });
    assert_eq!(world.pod_file(&old)["status"]["conditions"][3]["status"], "False", "its probe has not passed");
    world.event(PodEvent::Ready { pod: old.clone(), ready: true });
    assert_eq!(world.pod_file(&old)["status"]["conditions"][3]["status"], "True");

    let relabelled = with(probed("cart", 1), "/spec/template/metadata/labels/version", json!("v2"));
    let actions = world.apply([relabelled]);
    let [PodAction::Start(new)] = &actions[..] else { panic!("{actions:?}") };
    world.event(PodEvent::Running { pod: new.key.clone() });
    let actions = world.event(PodEvent::Ready { pod: new.key.clone(), ready: true });
    let [PodAction::Stop { pod, grace }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((pod, grace.as_secs()), (&old, 30));
    let endpoints: BTreeSet<_> = world.endpoints("cart").into_iter().collect();
    let old_ip = world.running[&old].ip.to_string();
    assert_eq!(endpoints, BTreeSet::from([(old_ip, false, true, true), (new.ip.to_string(), true, true, false)]));
    assert!(world.pod_file(&old)["metadata"]["deletionTimestamp"].is_string());
    world.event(PodEvent::Gone { pod: old.clone() });
    assert_eq!(world.endpoints("cart").len(), 1);
    assert!(!world.files.keys().any(|path| path.ends_with(format!("{}.yaml", old.name))));
}

#[test]
fn scaling_and_deleting() {
    let mut world = World::new();
    world.apply([deployment("cart", 3), service("cart")]);
    let three: BTreeSet<_> = world.pods().into_iter().collect();
    world.apply([deployment("cart", 1)]);
    assert!(three.contains(&world.only_pod()), "scaling does not roll");
    world.apply([deployment("cart", 0)]);
    assert_eq!(world.endpoints("cart"), []);
    assert!(!world.ruleset.contains("dnat ip to"));
    world.apply([deployment("cart", 2)]);
    assert!(world.pods().iter().all(|pod| !three.contains(pod)), "names are not used twice");
    world.delete(deployment("cart", 2));
    world.delete(service("cart"));
    assert_eq!(world.pods(), []);
    assert_eq!(world.files.keys().collect::<Vec<_>>(), [&PathBuf::from("Namespace/shop.yaml")]);
}

#[test]
fn a_namespace_label_rolls_and_a_pod_label_wins() {
    let mut world = World::new();
    let outside = with(pod("outside", "x"), "/metadata/labels", json!({"app": "x", "weft.dev/inject": "false"}));
    world.apply([deployment("cart", 1), outside]);
    assert!(world.running.values().all(|pod| !pod.meshed));
    world.apply([namespace("shop", "enabled")]);
    let meshed: Vec<_> = world.running.values().filter(|pod| pod.meshed).map(|pod| pod.workload.name.clone()).collect();
    assert_eq!(meshed, ["cart".into()]);
    assert_eq!(world.running.len(), 2);
    world.delete(namespace("shop", "enabled"));
    assert!(world.running.values().all(|pod| !pod.meshed));
    assert!(world.file("Namespace/shop.yaml")["metadata"]["labels"].is_null(), "implicit while it is used");
}

#[test]
fn a_declared_pod_is_relabelled_in_place_and_made_anew_for_another_spec() {
    let mut world = World::new();
    world.apply([pod("one", "a"), service("a"), service("b")]);
    assert_eq!((world.endpoints("a").len(), world.endpoints("b").len()), (1, 0));
    assert_eq!(world.apply([pod("one", "b")]), []);
    assert_eq!((world.endpoints("a").len(), world.endpoints("b").len()), (0, 1));
    let before = world.running[&world.only_pod()].clone();
    world.apply([with(pod("one", "b"), "/spec/containers/0/args", json!(["app"]))]);
    let after = &world.running[&world.only_pod()];
    assert_ne!((&before.uid, before.ip), (&after.uid, after.ip));
    assert_eq!(after.containers[0].argv.len(), 2);
    world.delete(pod("one", "b"));
    assert_eq!(world.pods(), []);
}

#[test]
fn modes_of_mtls_are_followed_while_the_pod_runs() {
    let mut world = World::new();
    let annotated = |value: &str| {
        with(
            pod("one", "a"),
            "/metadata/annotations",
            json!({"weft.dev/mtls": value, "weft.dev/mtls-ports": "1=strict"}),
        )
    };
    world.apply([annotated("strict")]);
    let before = world.running[&world.only_pod()].uid.clone();
    world.apply([annotated("permissive")]);
    let key = world.only_pod();
    assert_eq!(world.running[&key].uid, before);
    assert_eq!(world.pod_file(&key)["metadata"]["annotations"]["weft.dev/mtls"], "permissive");
}

#[test]
fn a_pod_whose_sidecar_does_not_serve_is_not_ready() {
    let mut world = World::lazy();
    world.apply([pod("one", "a"), service("a")]);
    let pod = world.only_pod();
    let mut ready_after = |event| {
        world.event(event);
        world.endpoints("a").iter().filter(|(_, ready, ..)| *ready).count()
    };
    let sidecar = |serves| PodEvent::Sidecar { pod: pod.clone(), serves };
    assert_eq!(ready_after(PodEvent::Running { pod: pod.clone() }), 1);
    assert_eq!(ready_after(sidecar(false)), 0);
    assert_eq!(ready_after(PodEvent::Ready { pod: pod.clone(), ready: true }), 0, "whatever a probe says");
    assert_eq!(ready_after(sidecar(true)), 1);
}

#[test]
fn exited_containers_restart_with_back_off() {
    let mut world = World::lazy();
    world.apply([pod("one", "a"), service("a")]);
    let key = world.only_pod();
    let mut waits: Vec<i64> = Vec::new();
    for _ in 0..8 {
        world.event(PodEvent::Running { pod: key.clone() });
        assert_eq!(world.endpoints("a").iter().filter(|(_, ready, ..)| *ready).count(), 1);
        let mut actions = world.event(PodEvent::Exited { pod: key.clone(), code: 1 });
        let mut waited = 0;
        while actions.is_empty() {
            assert_eq!(world.event(PodEvent::Exited { pod: key.clone(), code: 1 }), [], "a second container's end");
            assert_eq!(world.endpoints("a").iter().filter(|(_, ready, ..)| *ready).count(), 0);
            assert!(world.cluster.wakes_at().is_some_and(|at| at > world.now));
            actions = world.pass(1);
            waited += 1;
        }
        assert!(matches!(&actions[..], [PodAction::Start(spec)] if spec.key == key));
        waits.push(waited);
    }
    assert_eq!(waits, [0, 1, 2, 4, 8, 16, 30, 30]);
    assert_eq!(world.pod_file(&key)["status"]["containerStatuses"][0]["restartCount"], 8);
    world.event(PodEvent::Running { pod: key.clone() });
    world.pass(60);
    assert_eq!(world.event(PodEvent::Exited { pod: key, code: 0 }).len(), 1, "healthy for a while: at once again");
}

#[test]
fn a_pod_that_is_not_to_restart_ends() {
    for (policy, code, phase) in [("Never", 3, "Failed"), ("OnFailure", 0, "Succeeded")] {
        let mut world = World::lazy();
        world.apply([with(pod("job", "a"), "/spec/restartPolicy", json!(policy)), service("a")]);
        let key = world.only_pod();
        world.event(PodEvent::Running { pod: key.clone() });
        assert_eq!(world.event(PodEvent::Exited { pod: key.clone(), code }), []);
        assert_eq!(world.pod_file(&key)["status"]["phase"], phase);
        assert_eq!(world.endpoints("a"), []);
        assert_eq!(world.cluster.wakes_at(), None);
    }
}

#[test]
fn what_cannot_run_is_reported_once_and_the_rest_runs() {
    let mut world = World::new();
    let nginx = with(deployment("web", 1), "/spec/template/spec/containers/0/image", json!("nginx:1.29"));
    world.apply([nginx.clone(), deployment("cart", 1)]);
    world.apply([nginx.clone(), namespace("shop", "enabled")]);
    let [diagnostic] = &world.diagnostics[..] else { panic!("{:?}", world.diagnostics) };
    assert!(diagnostic.starts_with("Deployment shop/web: spec.template.spec.containers[0].image: "), "{diagnostic}");
    assert!(diagnostic.contains("weft.dev/local-command"), "{diagnostic}");
    assert_eq!(world.only_pod().name.split('-').next(), Some("cart"));

    let annotations = json!({"weft.dev/local-command": "nc -lk 8080"});
    world.apply([with(nginx.clone(), "/spec/template/metadata/annotations", annotations.clone())]);
    assert_eq!(world.pods().len(), 2);
    world.apply([nginx]);
    assert_eq!(world.pods().len(), 2, "a broken edit ends nothing");
    assert_eq!(world.diagnostics.len(), 2);
}

#[test]
fn names_that_are_paths_are_refused() {
    let mut world = World::new();
    for name in ["../../etc/passwd", "", ".hidden", "a/b", "A"] {
        world.apply([with(service("x"), "/metadata/name", json!(name))]);
        world.apply([with(service("x"), "/metadata/namespace", json!(format!("{name}/")))]);
    }
    assert_eq!(world.files, BTreeMap::new());
    assert_eq!(world.diagnostics.len(), 10);
}

#[test]
fn named_target_ports_that_differ_stand_in_different_slices() {
    let mut world = World::new();
    world.apply([deployment("cart", 1), pod("one", "cart"), service("cart")]);
    let slices: Vec<_> = world.files.values().filter(|file| file["kind"] == "EndpointSlice").collect();
    let ports: BTreeSet<_> = slices.iter().map(|slice| slice["ports"][0]["port"].as_u64()).collect();
    assert_eq!(ports, BTreeSet::from([Some(8080), Some(9090)]));
    assert_eq!(world.endpoints("cart").len(), 2);
}

#[test]
fn a_pod_on_other_ports_is_an_endpoint_before_the_one_that_it_replaces_is_none() {
    // Names decide in which order the two slices are written.
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let mut world = World::lazy();
        world.apply([probed(name, 1), service(name)]);
        let old = world.only_pod();
        world.inputs(
            [PodEvent::Running { pod: old.clone() }, PodEvent::Ready { pod: old, ready: true }].map(Input::Pod),
        );
        world.watched = Some((name.to_owned(), usize::MAX));
        let moved = with(probed(name, 1), "/spec/template/spec/containers/0/ports/0/containerPort", json!(9090));
        let actions = world.apply([moved]);
        let [PodAction::Start(new)] = &actions[..] else { panic!("{actions:?}") };
        let pod = new.key.clone();
        let events = [PodEvent::Running { pod: pod.clone() }, PodEvent::Ready { pod, ready: true }];
        let actions = world.inputs(events.map(Input::Pod));
        assert!(matches!(actions[..], [PodAction::Stop { .. }]), "{actions:?}");
        assert_eq!(world.watched, Some((name.to_owned(), 1)));
    }
}

#[test]
fn slices_by_hand_pass_and_controlled_ones_do_not() {
    let mut world = World::new();
    let mut external = service("db");
    external["spec"].as_object_mut().expect("a map").remove("selector");
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "db-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
        "ports": [{"name": "http", "port": 5432}], "endpoints": [{"addresses": ["10.244.0.1"]}],
    });
    world.apply([external, slice.clone()]);
    assert_eq!(world.file("EndpointSlice/shop/db-1.yaml")["endpoints"], slice["endpoints"]);
    assert!(world.ruleset.contains("10.244.0.1 . 5432"));
    let controlled = with(slice, "/metadata/name", json!("db-2"));
    let labels = json!({"kubernetes.io/service-name": "db", endpoints::MANAGED_BY: endpoints::CONTROLLER});
    world.apply([with(controlled, "/metadata/labels", labels)]);
    assert!(!world.files.contains_key(std::path::Path::new("EndpointSlice/shop/db-2.yaml")));
    assert_eq!(world.diagnostics.len(), 1);
}

#[test]
fn an_address_rests_after_its_pod() {
    let mut world = World::new();
    world.apply([pod("one", "a")]);
    let first = world.running[&world.only_pod()].ip;
    assert_eq!(first, Ipv4Addr::new(10, 244, 0, 2));
    world.delete(pod("one", "a"));
    world.apply([pod("one", "a")]);
    assert_ne!(world.running[&world.only_pod()].ip, first);
}

/// A directory's objects by index; each in two versions.
fn universe(index: usize, second: bool) -> Value {
    match index {
        0 => namespace("shop", if second { "enabled" } else { "disabled" }),
        1 => deployment("cart", if second { 3 } else { 1 }),
        2 if second => with(deployment("web", 2), "/spec/template/metadata/labels/version", json!("v2")),
        2 => deployment("web", 2),
        3 => pod("one", if second { "cart" } else { "web" }),
        4 if second => with(pod("two", "web"), "/spec/containers/0/args", json!(["app"])),
        4 => pod("two", "web"),
        5 => service("cart"),
        6 if second => with(service("web"), "/spec/clusterIP", json!("None")),
        6 => service("web"),
        _ => unreachable!("seven objects"),
    }
}

/// What does not depend on when things happened: pods without their names and addresses, endpoints by their pods'
/// owners, Services.
fn essence(world: &World) -> BTreeSet<String> {
    let mut essence = BTreeSet::new();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let of_ip: BTreeMap<_, _> = world.running.values().map(|pod| (pod.ip.to_string(), pod.workload.clone())).collect();
    for pod in world.running.values() {
        let labels = &world.pod_file(&pod.key)["metadata"]["labels"];
        let argv = &pod.containers[0].argv;
        *counts.entry(format!("{} {} {argv:?} {labels}", pod.workload, pod.meshed)).or_default() += 1;
    }
    for service in ["cart", "web"] {
        for (address, ready, serving, terminating) in world.endpoints(service) {
            let key = format!("{service} -> {} {ready} {serving} {terminating}", of_ip[&address]);
            *counts.entry(key).or_default() += 1;
        }
        if let Some(file) = world.files.get(&PathBuf::from(format!("Service/shop/{service}.yaml"))) {
            essence.insert(file.to_string());
        }
    }
    essence.extend(counts.into_iter().map(|(key, count)| format!("{key} x{count}")));
    essence
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the order and the batches, with edits and deletions on the way, the end is as if the directory had
    /// always been what it is.
    #[test]
    fn the_end_does_not_depend_on_the_way(
        steps in prop::collection::vec((0usize..7, 0u8..3, any::<bool>()), 1..40),
    ) {
        let mut world = World::new();
        let mut directory: BTreeMap<usize, bool> = BTreeMap::new();
        let mut batch = Vec::new();
        for (index, what, flush) in steps {
            if what == 2 {
                if directory.remove(&index).is_some() {
                    batch.push(Input::Deleted(object(universe(index, false)).object_ref()));
                }
            } else {
                directory.insert(index, what == 1);
                batch.push(Input::Applied(object(universe(index, what == 1))));
            }
            if flush {
                world.inputs(batch.drain(..));
            }
        }
        world.inputs(batch);
        let mut straight = World::new();
        straight.apply(directory.iter().map(|(index, second)| universe(*index, *second)));
        prop_assert_eq!(essence(&world), essence(&straight));
        let files = |world: &World, kind: &str| -> Vec<_> {
            world.files.keys().filter(|path| path.starts_with(kind)).cloned().collect()
        };
        prop_assert_eq!(files(&world, "Pod").len(), world.running.len());
        prop_assert_eq!(files(&world, "EndpointSlice"), files(&straight, "EndpointSlice"));
        let addresses: BTreeSet<_> = world.running.values().map(|pod| pod.ip).collect();
        prop_assert_eq!(addresses.len(), world.running.len());
    }
}

#[test]
fn a_stateful_set_becomes_numbered_pods_that_keep_their_names() {
    let mut world = World::new();
    let mut set = with(probed("db", 2), "/kind", json!("StatefulSet"));
    set["spec"]["serviceName"] = json!("db");
    let headless = with(service("db"), "/spec/clusterIP", json!("None"));
    world.apply([headless, set.clone()]);
    let names = |world: &World| world.pods().iter().map(|pod| pod.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&world), ["db-0"], "the second waits for the first");
    for pod in ["db-0", "db-1"] {
        world.event(PodEvent::Ready { pod: PodKey::new("shop", pod), ready: true });
    }
    assert_eq!(names(&world), ["db-0", "db-1"]);
    let file = world.pod_file(&PodKey::new("shop", "db-1"));
    assert_eq!((&file["spec"]["hostname"], &file["spec"]["subdomain"]), (&json!("db-1"), &json!("db")));
    assert_eq!(file["metadata"]["ownerReferences"][0]["kind"], "StatefulSet");
    let hostnames: BTreeSet<_> = world
        .files
        .values()
        .filter(|file| file["kind"] == "EndpointSlice")
        .flat_map(|slice| slice["endpoints"].as_array().expect("endpoints"))
        .map(|endpoint| endpoint["hostname"].as_str().expect("a host name").to_owned())
        .collect();
    assert_eq!(hostnames, BTreeSet::from(["db-0".to_owned(), "db-1".to_owned()]));

    let before = world.running[&PodKey::new("shop", "db-1")].ip;
    let changed = with(set.clone(), "/spec/template/spec/containers/0/args", json!(["app", "serve"]));
    world.apply([changed]);
    assert_ne!(world.running[&PodKey::new("shop", "db-1")].ip, before, "the last one is made anew first");
    world.delete(set);
    assert_eq!(names(&world), [""; 0]);
}

#[test]
fn a_pod_that_stands_for_a_host_outside_has_an_address_outside() {
    let mut world = World::new();
    let hosts = json!({"weft.dev/local-hosts": "api.example.com"});
    world.apply([with(pod("api", "api"), "/metadata/annotations", hosts), pod("web", "web")]);
    let ip = |name: &str| world.running[&PodKey::new("shop", name)].ip.to_string();
    assert_eq!((ip("api"), ip("web")), ("203.0.113.2".to_owned(), "10.244.0.2".to_owned()));
}
