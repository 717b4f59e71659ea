use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Change, Dirty, ResourceName, Translator, World, names};
use crate::mesh::fixture::*;
use crate::mesh::object::{MeshConfig, MetricsMode, Object, Pod as MeshPod, Protocol, Service};
use crate::mesh::{Event, WorkloadKey};
use crate::snapshot::{Fallback as _, Pushed, ResourceType};
use crate::warm::{Moment, WarmSets};

struct Mesh {
    world: World,
    translator: Translator,
}

impl Mesh {
    fn new() -> Self {
        let mut mesh = Self { world: World::default(), translator: Translator::default() };
        mesh.translator.translate(&mesh.world, &Dirty::default());
        mesh
    }

    /// The changes that an event leads to, each as a word and a name.
    fn change(&mut self, event: Event) -> Vec<String> {
        let dirty = self.world.apply(event);
        // Without what names of endpoints say of identities.
        let short =
            |name: &crate::snapshot::ResourceName| name.as_str().split('@').next().unwrap_or_default().to_owned();
        let word = |change: Change| match change {
            Change::Put(resource) => format!("put {:?} {}", resource.kind, short(&resource.name)),
            Change::Remove(kind, name) => format!("remove {kind:?} {}", short(&name)),
            Change::PutView(proxy, _) => format!("view {proxy}"),
            Change::RemoveView(proxy) => format!("no view {proxy}"),
            Change::Fallback(_) => "addresses".to_owned(),
        };
        self.translator.translate(&self.world, &dirty).changes.into_iter().map(word).collect()
    }

    fn apply(&mut self, object: Object) -> Vec<String> {
        self.change(Event::Apply(object))
    }
}

fn cart() -> Service {
    service("shop/cart").ip("10.96.0.5").http(80).selects("app", "cart")
}

fn cart_pod() -> MeshPod {
    pod("shop/cart-1", "10.244.0.2")
}

#[test]
fn a_service_is_a_cluster_and_its_endpoints_and_a_pod_is_a_view() {
    let mut mesh = Mesh::new();
    assert_eq!(mesh.apply(Object::Service(cart())), ["put Cluster 10.96.0.5:80", "put Endpoints 10.96.0.5:80"]);
    assert_eq!(
        mesh.apply(Object::Pod(cart_pod())),
        [
            "put Cluster 10.96.0.5:80",
            "put Endpoints 10.96.0.5:80",
            "remove Endpoints 10.96.0.5:80", // those of the cluster that believed nobody
            "view cart-1.shop",
            "addresses"
        ]
    );
    assert_eq!(mesh.apply(Object::Pod(cart_pod())), Vec::<String>::new());
    assert_eq!(
        mesh.change(Event::Delete(Object::Service(cart()).object_ref())),
        ["remove Cluster 10.96.0.5:80", "remove Endpoints 10.96.0.5:80"]
    );
    assert_eq!(mesh.change(Event::Delete(Object::Pod(cart_pod()).object_ref())), ["no view cart-1.shop", "addresses"]);
}

#[test]
fn a_change_of_weights_is_a_change_of_endpoints_only() {
    let mut mesh = Mesh::new();
    for name in ["root", "v1", "v2"] {
        let ip = format!("10.96.0.{}", name.len() + usize::from(name.ends_with('2')));
        mesh.apply(Object::Service(service(&format!("shop/{name}")).ip(&ip).http(80).selects("app", name)));
        mesh.apply(Object::Pod(pod(&format!("shop/{name}-1"), &ip.replace("10.96", "10.244"))));
    }
    mesh.apply(Object::TrafficSplit(split("shop/s", "root", &[("v1", 90), ("v2", 10)])));
    let changes = mesh.apply(Object::TrafficSplit(split("shop/s", "root", &[("v1", 50), ("v2", 50)])));
    assert_eq!(changes, ["put Endpoints 10.96.0.4:80"]);
}

#[test]
fn pods_of_equal_plans_have_equal_listeners_and_equal_plans_equal_bytes() {
    let listener = || {
        let mut mesh = Mesh::new();
        mesh.apply(enforcing());
        mesh.apply(Object::HttpRouteGroup(route_group("shop/g", &["/a"])));
        for name in ["t1", "t2", "t3", "t4", "t5"] {
            let rules = vec![http_rule("g")];
            mesh.apply(Object::TrafficTarget(target(
                &format!("shop/{name}"),
                "cart",
                &["shop/web", "shop/api"],
                rules,
            )));
        }
        mesh.apply(Object::Pod(cart_pod()));
        mesh.apply(Object::Pod(pod("shop/cart-2", "10.244.0.3")));
        let of = |key: &str| mesh.translator.pods.view(&pod_key(key)).expect("meshed").own[1].body.clone();
        assert_eq!(of("shop/cart-1").as_ptr(), of("shop/cart-2").as_ptr(), "kept once");
        of("shop/cart-1")
    };
    assert!((0..20).map(|_| listener()).collect::<BTreeSet<_>>().len() == 1);
}

#[test]
fn an_address_is_a_pod_or_unknown_or_outside() {
    let mut mesh = Mesh::new();
    mesh.apply(Object::Pod(cart_pod()));
    let addresses = mesh.translator.addresses();
    let origin =
        |name: &str| addresses.cluster(&name.into()).map(|cluster| cluster.origin.as_ref().map(ToString::to_string));
    assert_eq!(origin("10.244.0.2:9999"), Some(Some("Pod shop/cart-1".to_owned())));
    assert_eq!(origin("10.244.7.7:80"), Some(None));
    assert_eq!(origin("192.0.2.1:80"), None);
    assert_eq!(origin("cart.shop:80"), None);
}

#[test]
fn an_address_that_moves_to_another_pod_stays_when_the_first_goes() {
    let mut mesh = Mesh::new();
    mesh.apply(Object::Pod(cart_pod()));
    mesh.apply(Object::Pod(pod("shop/web-1", "10.244.0.2")));
    mesh.change(Event::Delete(Object::Pod(cart_pod()).object_ref()));
    let address = mesh.translator.pods.addresses().get(&IpAddr::from([10, 244, 0, 2]));
    assert_eq!(address.map(|address| address.key.clone()), Some(pod_key("shop/web-1")));
}

#[test]
fn a_port_number_that_is_declared_both_ways_is_tcp_only_where_it_says_so() {
    let mut mesh = Mesh::new();
    let tcp = |key: &str, ip: &str, port| Object::Service(service(key).ip(ip).port(port, port, Protocol::Tcp));
    let outbound = "put Listener outbound".to_owned();
    assert!(mesh.apply(tcp("shop/db", "10.96.0.7", 5432)).contains(&outbound));
    assert!(!mesh.apply(tcp("shop/db2", "10.96.0.8", 5432)).contains(&outbound), "nothing new for the listener");
    assert!(mesh.translator.ports.tcp().everywhere.contains(&5432));
    mesh.apply(Object::Service(service("shop/web").ip("10.96.0.9").http(5432)));
    assert!(!mesh.translator.ports.tcp().everywhere.contains(&5432));
    assert_eq!(mesh.translator.ports.tcp().at[&5432].len(), 2);
    let told: Vec<_> = mesh.translator.diagnostics().into_iter().filter_map(|finding| finding.object).collect();
    assert_eq!(told.iter().map(ToString::to_string).collect::<Vec<_>>(), ["Service shop/db", "Service shop/db2"]);
}

#[test]
fn an_address_that_passes_to_another_service_in_one_step_stays_in_the_table() {
    for (old, new) in [("shop/a", "shop/b"), ("shop/b", "shop/a")] {
        let mut mesh = Mesh::new();
        let old = Object::Service(service(old).ip("10.96.0.5").http(80));
        mesh.apply(old.clone());
        let mut dirty = mesh.world.apply(Event::Delete(old.object_ref()));
        dirty.merge(mesh.world.apply(Event::Apply(Object::Service(service(new).ip("10.96.0.5").http(80)))));
        let changes = mesh.translator.translate(&mesh.world, &dirty).changes;
        assert!(!changes.is_empty() && changes.iter().all(|change| matches!(change, Change::Put(_))), "{changes:?}");
    }
}

#[test]
fn of_two_services_with_one_address_the_first_counts_whichever_came_first() {
    let claim = |key: &str| Object::Service(service(key).ip("10.96.0.5").http(80));
    let mut mesh = Mesh::new();
    mesh.apply(claim("shop/b"));
    assert_eq!(mesh.apply(claim("shop/a")), ["put Cluster 10.96.0.5:80", "put Endpoints 10.96.0.5:80"]);
    assert_eq!(mesh.change(Event::Delete(claim("shop/b").object_ref())), Vec::<String>::new());
    mesh.apply(claim("shop/b"));
    assert_eq!(
        mesh.change(Event::Delete(claim("shop/a").object_ref())),
        ["put Cluster 10.96.0.5:80", "put Endpoints 10.96.0.5:80"]
    );
}

#[test]
fn a_finding_is_told_once_however_many_pods_have_it_and_again_when_it_comes_back() {
    let mut mesh = Mesh::new();
    mesh.apply(enforcing());
    let dangling = || Object::TrafficTarget(target("shop/t", "cart", &["shop/web"], vec![http_rule("g")]));
    let mut told = |event| {
        let dirty = mesh.world.apply(event);
        mesh.translator.translate(&mesh.world, &dirty).findings.len()
    };
    assert_eq!(told(Event::Apply(Object::Pod(cart_pod()))), 0);
    assert_eq!(told(Event::Apply(Object::Pod(pod("shop/cart-2", "10.244.0.3")))), 0);
    assert_eq!(told(Event::Apply(dangling())), 1);
    assert_eq!(told(Event::Apply(Object::Pod(pod("shop/cart-3", "10.244.0.4")))), 0);
    assert_eq!(told(Event::Delete(Object::Pod(cart_pod()).object_ref())), 0);
    assert_eq!(told(Event::Apply(Object::HttpRouteGroup(route_group("shop/g", &["/"])))), 0);
    assert_eq!(told(Event::Delete(Object::HttpRouteGroup(route_group("shop/g", &["/"])).object_ref())), 1);
    assert_eq!(mesh.translator.diagnostics().len(), 1);
}

fn warm_set(mesh: &Mesh, pod: &str) -> Arc<BTreeSet<ResourceName>> {
    match &mesh.translator.pods.view(&pod_key(pod)).expect("a sidecar").pushed {
        Pushed::Only(names) => names.clone(),
        Pushed::All => panic!("on demand"),
    }
}

/// The clusters in a pod's wildcard, but those that every pod has.
fn pushed(mesh: &Mesh, pod: &str) -> Vec<String> {
    let everyones = [names::PASSTHROUGH, names::INBOUND];
    warm_set(mesh, pod).iter().map(|name| name.to_string()).filter(|name| !everyones.contains(&name.as_str())).collect()
}

fn learned(calls: &[(&str, &str)]) -> WarmSets {
    let mut sets = WarmSets::default();
    for (workload, called) in calls {
        sets.learn(&WorkloadKey::new("shop", *workload), upstream(called), Moment(1));
    }
    sets
}

#[test]
fn a_new_pod_has_what_others_of_its_workload_called_and_the_others_are_left_alone() {
    let mut mesh = Mesh::new();
    mesh.apply(Object::Service(cart()));
    mesh.apply(Object::Pod(pod("shop/web-1", "10.244.0.3")));
    mesh.translator.learned(learned(&[("web", "cart.shop:80"), ("web", "cart.shop:81"), ("web", "gone.shop:80")]));
    assert_eq!(mesh.apply(Object::Pod(pod("shop/web-2", "10.244.0.4")))[0], "view web-2.shop");
    mesh.apply(Object::Pod(pod("shop/other-1", "10.244.0.5")));
    assert_eq!(pushed(&mesh, "shop/web-1"), [""; 0]);
    assert_eq!(pushed(&mesh, "shop/web-2"), ["10.96.0.5:80"], "only what exists");
    assert_eq!(pushed(&mesh, "shop/other-1"), [""; 0]);
    let mut changed = pod("shop/web-1", "10.244.0.3");
    changed.labels.insert("version".into(), "2".into());
    mesh.apply(Object::Pod(changed));
    assert_eq!(pushed(&mesh, "shop/web-1"), [""; 0], "it runs, and knows what it calls");
    mesh.change(Event::Delete(Object::Service(cart()).object_ref()));
    mesh.translator.learned(WarmSets::default());
    mesh.apply(Object::Pod(pod("shop/web-2", "10.244.0.14")));
    assert_eq!(pushed(&mesh, "shop/web-2"), ["10.96.0.5:80"], "as if it had asked for it itself");
}

#[test]
fn pods_of_a_workload_share_what_they_are_given() {
    let mut mesh = Mesh::new();
    mesh.apply(Object::Service(cart()));
    mesh.translator.learned(learned(&[("web", "cart.shop:80")]));
    mesh.apply(Object::Pod(pod("shop/web-1", "10.244.0.3")));
    mesh.apply(Object::Pod(pod("shop/web-2", "10.244.0.4")));
    assert!(Arc::ptr_eq(&warm_set(&mesh, "shop/web-1"), &warm_set(&mesh, "shop/web-2")));
}

#[test]
fn a_new_pod_has_what_targets_and_its_annotation_declare() {
    let mut mesh = Mesh::new();
    mesh.apply(Object::Service(cart().http(81)));
    mesh.apply(Object::Service(service("shop/mail").ip("10.96.0.6").http(25).http(80)));
    mesh.apply(Object::Pod(cart_pod()));
    mesh.apply(Object::TrafficTarget(target("shop/t", "cart", &["shop/web"], vec![])));
    let mut web = pod("shop/web-1", "10.244.0.3");
    web.upstreams.extend([upstream("mail.shop:25"), upstream("later.shop")]);
    mesh.apply(Object::Pod(web));
    assert_eq!(pushed(&mesh, "shop/web-1"), ["10.96.0.5:80", "10.96.0.5:81", "10.96.0.6:25"]);
    let later = service("shop/later").ip("10.96.0.7").http(80);
    assert!(mesh.apply(Object::Service(later)).contains(&"view web-1.shop".to_owned()));
    assert_eq!(pushed(&mesh, "shop/web-1").last().map(String::as_str), Some("10.96.0.7:80"));
}

#[test]
fn the_cluster_of_a_split_with_matches_is_warm_with_its_root() {
    let mut mesh = Mesh::new();
    mesh.apply(Object::Service(cart()));
    mesh.apply(Object::HttpRouteGroup(route_group("shop/g", &["/beta"])));
    let mut by_match = split("shop/s", "cart", &[("cart", 1)]);
    by_match.matches = vec!["g".into()];
    mesh.apply(Object::TrafficSplit(by_match));
    mesh.translator.learned(learned(&[("web", "cart.shop:80")]));
    mesh.apply(Object::Pod(pod("shop/web-1", "10.244.0.3")));
    assert_eq!(pushed(&mesh, "shop/web-1"), ["10.96.0.5:80", "10.96.0.5:80/split/s"]);
}

#[test]
fn a_restart_gives_nothing_to_pods_that_run_and_everything_to_those_that_are_about_to() {
    let mut world = World::default();
    world.apply(Event::Apply(Object::Service(cart())));
    let mut dirty = world.apply(Event::Apply(Object::Pod(pod("shop/web-1", "10.244.0.3"))));
    let mut pending = pod("shop/web-2", "10.244.0.4");
    pending.ips.clear();
    dirty.merge(world.apply(Event::Apply(Object::Pod(pending))));
    let mut mesh = Mesh { world, translator: Translator::default() };
    mesh.translator.learned(learned(&[("web", "cart.shop:80")]));
    mesh.translator.translate(&mesh.world, &dirty);
    assert_eq!((pushed(&mesh, "shop/web-1"), pushed(&mesh, "shop/web-2")), (vec![], vec!["10.96.0.5:80".to_owned()]));
}

#[test]
fn golden_metrics_are_in_the_listeners_except_for_older_envoys_and_where_they_are_not_wanted() {
    let mut mesh = Mesh::new();
    mesh.apply(Object::Service(cart()));
    mesh.apply(Object::Pod(cart_pod()));
    let inbound = |mesh: &Mesh| {
        let view = mesh.translator.pods.view(&pod_key("shop/cart-1")).expect("meshed");
        view.own.iter().find(|own| own.kind == ResourceType::Listener).expect("a listener").clone()
    };
    let full = inbound(&mesh);
    let older = full.older.clone().expect("a form for older Envoys");
    assert!(older.len() < full.body.len());
    let basic = MeshConfig { metrics: MetricsMode::Basic, ..MeshConfig::default() };
    assert_eq!(
        mesh.apply(Object::MeshConfig(basic)),
        ["view cart-1.shop", "addresses", "put Listener outbound"],
        "neither clusters nor endpoints"
    );
    let basic = inbound(&mesh);
    assert!(basic.body.len() < full.body.len());
    assert_eq!(basic.older, Some(older), "they wait for no handshake either");
}

#[test]
fn the_version_of_a_pod_is_told_with_its_address() {
    let mut mesh = Mesh::new();
    mesh.apply(Object::Service(cart()));
    mesh.apply(Object::Pod(cart_pod()));
    let mut labelled = cart_pod();
    labelled.labels.insert("version".into(), "v2".into());
    assert_eq!(mesh.apply(Object::Pod(labelled)), ["put Endpoints 10.96.0.5:80", "addresses"]);
}

/// The types and names of what a pod has for itself.
fn own(mesh: &Mesh, pod: &str) -> Vec<String> {
    let view = mesh.translator.pods.view(&pod_key(pod)).expect("a view");
    view.own.iter().map(|own| format!("{:?} {}", own.kind, own.name)).collect()
}

#[test]
fn only_a_pod_that_may_not_call_everything_outside_has_an_outbound_listener_of_its_own() {
    use crate::mesh::object::{EgressMode, MeshConfig, NamespaceObject};
    let inbound = ["Listener inbound", "Route inbound", "Route inbound-in-clear"];
    let mut mesh = Mesh::new();
    mesh.apply(Object::Pod(cart_pod()));
    mesh.apply(Object::Pod(pod("bank/till-1", "10.244.0.3")));
    mesh.apply(Object::Egress(egress("shop/e").host("api.example.com")));
    assert_eq!(own(&mesh, "shop/cart-1"), inbound);
    let denied = Object::Namespace(NamespaceObject { egress: Some(EgressMode::Deny), ..namespace("shop") });
    assert_eq!(mesh.apply(denied), ["view cart-1.shop"]);
    assert_eq!(own(&mesh, "shop/cart-1"), [&inbound[..], &["Listener outbound", "Route egress"]].concat());
    assert_eq!(own(&mesh, "bank/till-1"), inbound);

    let changed = mesh.apply(Object::Service(service("bank/db").ip("10.96.0.7").port(5432, 5432, Protocol::Tcp)));
    assert!(changed.contains(&"view cart-1.shop".to_owned()), "its listener knows the ports too: {changed:?}");
    let changed = mesh.apply(Object::Service(service("bank/db2").ip("10.96.0.8").port(5432, 5432, Protocol::Tcp)));
    assert!(!changed.contains(&"view cart-1.shop".to_owned()), "{changed:?}");

    let wildcard = egress("shop/e").host("*.example.com").port(80, None);
    assert_eq!(mesh.apply(Object::Egress(wildcard)), ["view cart-1.shop"]);
    let allowed = Object::Namespace(namespace("shop"));
    assert_eq!(mesh.apply(allowed), ["view cart-1.shop"]);
    assert_eq!(own(&mesh, "shop/cart-1"), inbound);
    mesh.apply(Object::MeshConfig(MeshConfig { egress: EgressMode::Deny, ..MeshConfig::default() }));
    assert_eq!(own(&mesh, "bank/till-1").len(), 5);
}
