use super::*;
use crate::mesh::Event;
use crate::mesh::fixture::{pod, *};
use crate::mesh::object::{MeshConfig, Object};

fn plan(objects: impl IntoIterator<Item = Object>) -> (InboundPlan, Vec<Diagnostic>) {
    let mut world = World::default();
    world.apply(Event::Apply(enforcing()));
    world.apply(Event::Apply(Object::Pod(pod("shop/cart-1", "10.244.0.2"))));
    for object in objects {
        world.apply(Event::Apply(object));
    }
    super::pod(&world, &pod_key("shop/cart-1")).expect("a meshed pod")
}

fn routes() -> [Object; 3] {
    [
        Object::HttpRouteGroup(route_group("shop/g", &["/a", "/b"])),
        Object::TcpRoute(tcp_route("shop/r", &[8080, 9090])),
        Object::TcpRoute(tcp_route("shop/every", &[])),
    ]
}

/// What one target with these rules comes to.
fn allowed(rules: Vec<TargetRule>, others: impl IntoIterator<Item = Object>) -> Option<Allow> {
    let target = Object::TrafficTarget(target("shop/t", "cart", &["shop/web"], rules));
    let (plan, _) = plan(routes().into_iter().chain([target]).chain(others));
    assert!(plan.allow.len() <= 1);
    plan.allow.into_iter().next().map(|policy| policy.allow)
}

#[test]
fn enforcement_without_a_target_allows_nobody() {
    let (plan, diagnostics) = plan([]);
    assert_eq!((plan.authorization, plan.allow, diagnostics), (AuthorizationMode::Enforce, vec![], vec![]));
}

#[test]
fn a_rule_without_matches_means_the_whole_group_and_names_narrow_it() {
    let names = |allow: Option<Allow>| match allow {
        Some(Allow::Http { ports: None, matches }) => matches.iter().map(|m| m.name.to_string()).collect(),
        other => vec![format!("{other:?}")],
    };
    assert_eq!(names(allowed(vec![http_rule("g")], [])), ["m0", "m1"]);
    assert_eq!(names(allowed(vec![http_rule_of("g", &["m1"])], [])), ["m1"]);
    assert_eq!(allowed(vec![http_rule_of("g", &["nope"])], []), None);
}

#[test]
fn tcp_routes_open_their_ports_except_those_that_speak_http() {
    let ports = |ports: &[u16]| ports.iter().copied().collect::<BTreeSet<u16>>();
    let tcp = |only: Option<&[u16]>, except: &[u16]| Some(Allow::Tcp { only: only.map(ports), except: ports(except) });
    assert_eq!(allowed(vec![tcp_rule("r")], []), tcp(Some(&[8080, 9090]), &[]));
    assert_eq!(allowed(vec![tcp_rule("every")], []), tcp(None, &[]));
    let http = || [Object::Service(service("shop/cart").ip("10.96.0.5").http(80).selects("app", "cart"))];
    assert_eq!(allowed(vec![tcp_rule("r")], http()), tcp(Some(&[9090]), &[]));
    assert_eq!(allowed(vec![tcp_rule("every")], http()), tcp(None, &[8080]));
}

#[test]
fn http_and_tcp_together_mean_port_and_path() {
    let Some(Allow::Http { ports: Some(ports), matches }) = allowed(vec![http_rule("g"), tcp_rule("r")], []) else {
        panic!("requests on ports");
    };
    assert_eq!((ports, matches.len()), (BTreeSet::from([8080, 9090]), 2));
}

#[test]
fn a_rule_that_leads_nowhere_widens_nothing_and_is_reported() {
    assert_eq!(allowed(vec![http_rule("missing")], []), None);
    assert_eq!(allowed(vec![tcp_rule("missing")], []), None);
    assert_eq!(allowed(vec![http_rule("g"), tcp_rule("missing")], []), None);
    assert_eq!(allowed(vec![http_rule("missing"), tcp_rule("r")], []), None);
    let dangling = Object::TrafficTarget(target("shop/t", "cart", &["shop/web"], vec![http_rule("missing")]));
    let (_, diagnostics) = plan([dangling]);
    assert_eq!(diagnostics[0].field, "spec.rules[0].name");
}

#[test]
fn no_sources_allow_nobody() {
    let nobody = Object::TrafficTarget(target("shop/t", "cart", &[], vec![http_rule("g")]));
    assert_eq!(plan(routes().into_iter().chain([nobody])).0.allow, []);
}

#[test]
fn the_port_of_an_old_target_narrows_it() {
    let mut old = target("shop/t", "cart", &["shop/web"], vec![http_rule("g")]);
    old.port = Some(8080);
    let (narrowed, _) = plan(routes().into_iter().chain([Object::TrafficTarget(old.clone())]));
    assert!(
        matches!(&narrowed.allow[0].allow, Allow::Http { ports: Some(ports), .. } if *ports == BTreeSet::from([8080]))
    );
    old.rules = vec![tcp_rule("every")];
    let (narrowed, _) = plan(routes().into_iter().chain([Object::TrafficTarget(old.clone())]));
    assert!(
        matches!(&narrowed.allow[0].allow, Allow::Tcp { only: Some(ports), .. } if *ports == BTreeSet::from([8080]))
    );
    old.port = Some(1);
    old.rules = vec![tcp_rule("r")];
    assert_eq!(plan(routes().into_iter().chain([Object::TrafficTarget(old)])).0.allow, []);
}

#[test]
fn a_namespace_overrides_the_mesh() {
    let mut shop = namespace("shop");
    shop.mtls = Some(MtlsMode::Permissive);
    shop.authorization = Some(AuthorizationMode::Permissive);
    let (plan, _) = plan([Object::MeshConfig(MeshConfig::default()), enforcing(), Object::Namespace(shop)]);
    assert_eq!((plan.mtls, plan.authorization), (MtlsMode::Permissive, AuthorizationMode::Permissive));
}

#[test]
fn a_pod_overrides_its_namespace_and_a_port_its_pod() {
    use MtlsMode::{Permissive, Strict};
    let modes = |own: Option<MtlsMode>, of_namespace: Option<MtlsMode>, ports: &[(u16, MtlsMode)]| {
        let mut cart = pod("shop/cart-1", "10.244.0.2");
        cart.mtls.mode = own;
        cart.mtls.ports = ports.iter().copied().collect();
        let mut shop = namespace("shop");
        shop.mtls = of_namespace;
        let (plan, _) = plan([Object::Pod(cart), Object::Namespace(shop)]);
        (plan.mtls, plan.mtls_ports.into_iter().collect::<Vec<_>>())
    };
    assert_eq!(modes(None, None, &[]), (Strict, vec![]));
    assert_eq!(modes(Some(Permissive), Some(Strict), &[]), (Permissive, vec![]));
    assert_eq!(modes(Some(Strict), Some(Permissive), &[]), (Strict, vec![]));
    let ports = [(80, Strict), (81, Permissive)];
    assert_eq!(modes(None, None, &ports), (Strict, vec![(81, Permissive)]), "only what differs");
    assert_eq!(modes(None, Some(Permissive), &ports), (Permissive, vec![(80, Strict)]));
}

#[test]
fn a_pod_without_a_sidecar_has_no_plan() {
    let mut world = World::default();
    let mut bare = pod("shop/cart-1", "10.244.0.2");
    bare.meshed = false;
    world.apply(Event::Apply(Object::Pod(bare)));
    assert_eq!(super::pod(&world, &pod_key("shop/cart-1")), None);
}
