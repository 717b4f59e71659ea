//! TrafficTarget.

use std::net::IpAddr;

use anyhow::Context;
use weft_e2e::mesh::Mesh;
use weft_e2e::scenario::Scenarios;

use super::{CLIENT, STRANGER, TARGET, said, taken};

/// A caller of the mesh under another account than the client's.
const ANOTHER: &str = "app/v1";
const METRICS: &str = "http://vault.guarded/metrics";
const OTHER: &str = "other.yaml";

/// What [`calls`] comes to when nothing is allowed.
pub(super) const NOTHING: &str = "403 403 403 closed closed";

pub(super) fn run(mesh: &Mesh, checks: &mut Scenarios) {
    denied(mesh, checks);
    requests(mesh, checks);
    shadows(mesh, checks);
    ports(mesh, checks);
    elsewhere(mesh, checks);
    strangers(mesh, checks);
}

/// A target of the vault in its namespace, or with its object in another one.
fn target_in(namespace: &str, name: &str, account: &str, rules: &str) -> String {
    let sources = match account {
        "" => "[]".to_owned(),
        account => format!("[{{kind: ServiceAccount, name: {account}, namespace: app}}]"),
    };
    format!(
        "apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  destination: {{kind: ServiceAccount, name: vault, namespace: guarded}}\n  sources: {sources}\n  \
         rules: [{rules}]\n"
    )
}

fn target(account: &str, rules: &str) -> String {
    target_in("guarded", "vault", account, rules)
}

fn of_group(matches: &str) -> String {
    format!("{{kind: HTTPRouteGroup, name: http{matches}}}")
}

/// How calls end: to two paths of the pod's port 8080, to its port 9090, and by TCP to 7000 and 7001.
pub(super) fn calls(mesh: &Mesh, pod: &str) -> anyhow::Result<String> {
    codes(
        mesh,
        pod,
        &[
            &[METRICS],
            &["http://vault.guarded/orders/7"],
            &["http://vault.guarded:81/metrics"],
            &["tcp://vault.guarded:7000"],
            &["tcp://vault.guarded:7001"],
        ],
    )
}

fn codes(mesh: &Mesh, pod: &str, calls: &[&[&str]]) -> anyhow::Result<String> {
    let codes = calls.iter().map(|arguments| mesh.code(pod, arguments));
    Ok(codes.collect::<anyhow::Result<Vec<_>>>()?.join(" "))
}

fn ip(mesh: &Mesh) -> anyhow::Result<IpAddr> {
    let pods = mesh.pods_of("guarded", "vault")?;
    Ok(pods.first().context("the vault")?.ip.into())
}

fn denied(mesh: &Mesh, checks: &mut Scenarios) {
    checks.equal("smi-14: no target, HTTP", "403", mesh.code(CLIENT, &[METRICS]));
    checks.equal("smi-14: no target, HTTP/2", "403", mesh.code(CLIENT, &["--http2", METRICS]));
    checks.equal("smi-14: no target, TCP", "closed", mesh.code(CLIENT, &["tcp://vault.guarded:7000"]));
    checks.holds("smi-14: no target, the kubelet's probe", "200, and the pod is ready", || {
        let code = mesh.code(STRANGER, &[&format!("http://{}:8080/readyz", ip(mesh)?)])?;
        let ready = mesh.pods_of("guarded", "vault")?.iter().all(|pod| pod.ready);
        Ok((code == "200" && ready, format!("{code}, ready: {ready}")))
    });
    checks.equal(
        "smi-14: no target, a scrape of metrics",
        "200",
        ip(mesh).and_then(|ip| mesh.code(STRANGER, &[&format!("http://{ip}:15020/stats/prometheus")])),
    );
}

fn requests(mesh: &Mesh, checks: &mut Scenarios) {
    taken(checks, "a target", mesh.write(TARGET, &target("client", &of_group(", matches: [metrics]"))));
    for (what, expected, pod, arguments) in [
        ("GET", "200", CLIENT, vec![METRICS]),
        ("GET, HTTP/2", "200", CLIENT, vec!["--http2", METRICS]),
        ("GET below the path, with a query", "200", CLIENT, vec!["http://vault.guarded/metrics/all?x=1"]),
        ("POST", "403", CLIENT, vec!["-X", "POST", METRICS]),
        ("another path", "403", CLIENT, vec!["http://vault.guarded/orders/7"]),
        ("the path elsewhere", "403", CLIENT, vec!["http://vault.guarded/x/metrics"]),
        ("the path in a query", "403", CLIENT, vec!["http://vault.guarded/?x=/metrics"]),
        ("another account", "403", ANOTHER, vec![METRICS]),
        ("another account, HTTP/2", "403", ANOTHER, vec!["--http2", METRICS]),
    ] {
        checks.equal(&format!("smi-15: {what}"), expected, mesh.code(pod, &arguments));
    }
    taken(checks, "a target", mesh.write(TARGET, &target("client", &of_group(", matches: [by-host]"))));
    checks.equal(
        "smi-15: the header host is the authority",
        "200",
        mesh.code(CLIENT, &["-H", "host: vault.example", METRICS]),
    );
    checks.equal("smi-15: another authority", "403", mesh.code(CLIENT, &[METRICS]));
    taken(checks, "a target", mesh.write(TARGET, &target("", &of_group(""))));
    checks.equal("smi-15: no source", NOTHING, calls(mesh, CLIENT));
    taken(checks, "a target", mesh.write(TARGET, &target("client", &of_group(""))));
    for (what, expected, arguments) in [
        ("the first route", "200", vec![METRICS]),
        ("a route with a large regex", "200", vec!["http://vault.guarded/orders/123456"]),
        ("the same, by another method of it", "200", vec!["-X", "PUT", "http://vault.guarded/orders/7"]),
        ("a route by its header", "200", vec!["-X", "POST", "-H", "host: vault.example", "http://vault.guarded/x"]),
        ("none of its routes", "403", vec!["http://vault.guarded/x"]),
    ] {
        checks.equal(&format!("smi-16: no matches named, {what}"), expected, mesh.code(CLIENT, &arguments));
    }
    let [metrics, numbers] = ["pathRegex: /metrics", "pathRegex: /numbers"];
    taken(checks, "another path", mesh.edit("routes.yaml", |text| text.replace(metrics, numbers)));
    checks.equal("smi-16: a route changes, its new path", "200", mesh.code(CLIENT, &["http://vault.guarded/numbers"]));
    checks.equal("smi-16: a route changes, its old path", "403", mesh.code(CLIENT, &[METRICS]));
    taken(checks, "the path as it was", mesh.edit("routes.yaml", |text| text.replace(numbers, metrics)));
}

/// Two targets, each with a caller and a path of its own: both count, whichever comes first by name.
fn shadows(mesh: &Mesh, checks: &mut Scenarios) {
    taken(checks, "removed", mesh.remove(TARGET));
    for (first, second) in [("a", "b"), ("b", "a")] {
        let clients = target_in("guarded", first, "client", &of_group(", matches: [metrics]"));
        let others = target_in("guarded", second, "root", &of_group(", matches: [orders]"));
        taken(checks, "two targets", mesh.write(TARGET, &format!("{clients}---\n{others}")));
        checks.equal(
            &format!("smi-15: two targets, {first} for the caller"),
            "200 403 200 closed closed",
            calls(mesh, CLIENT),
        );
        checks.equal(
            &format!("smi-15: two targets, {second} for another account"),
            "403 200 403 closed closed",
            calls(mesh, ANOTHER),
        );
    }
}

fn ports(mesh: &Mesh, checks: &mut Scenarios) {
    taken(checks, "removed", mesh.remove(TARGET));
    const SOME: &str = "{kind: TCPRoute, name: some}";
    const EVERY: &str = "{kind: TCPRoute, name: every}";
    const UDP: &str = "{kind: UDPRoute, name: dns}";
    let metrics = of_group(", matches: [metrics]");
    for (what, rules, expected) in [
        ("an HTTPRouteGroup alone is HTTP only", metrics.clone(), "200 403 200 closed closed"),
        ("a TCPRoute beside it: port and path", format!("{metrics}, {SOME}"), "200 403 403 closed closed"),
        ("one for every port beside it: the path", format!("{metrics}, {EVERY}"), "200 403 200 closed closed"),
        ("a TCPRoute alone is raw TCP on its ports", SOME.to_owned(), "403 403 403 ok closed"),
        ("one for every port alone is raw TCP", EVERY.to_owned(), "403 403 403 ok ok"),
        ("a UDPRoute beside an HTTPRouteGroup", format!("{metrics}, {UDP}"), "200 403 200 closed closed"),
        ("a UDPRoute alone", UDP.to_owned(), NOTHING),
    ] {
        taken(checks, "a target", mesh.write(TARGET, &target("client", &rules)));
        checks.equal(&format!("smi-17: {what}"), expected, calls(mesh, CLIENT));
    }
    said(mesh, checks, "smi-17: a UDPRoute in a target, reported", "so this rule allows nothing");
    said(mesh, checks, "smi-17: a UDPRoute, reported", "so this route neither allows nor denies anything");
    mesh.delete(TARGET).expect("removed");
}

fn elsewhere(mesh: &Mesh, checks: &mut Scenarios) {
    mesh.put(OTHER, &target_in("app", "vault", "client", &of_group(""))).expect("a target");
    said(mesh, checks, "smi-18: a target for another namespace, reported", "is not in the target's namespace, app");
    checks.equal("smi-18: a target for another namespace", NOTHING, calls(mesh, CLIENT));
    mesh.delete(OTHER).expect("removed");
}

fn strangers(mesh: &Mesh, checks: &mut Scenarios) {
    const FORGED: &str = "x-forwarded-client-cert: By=spiffe://cluster.local/ns/guarded/sa/vault;\
                          URI=spiffe://cluster.local/ns/app/sa/client";
    let all = format!("{}, {{kind: TCPRoute, name: every}}", "{kind: HTTPRouteGroup, name: http, matches: [metrics]}");
    taken(checks, "a target", mesh.write(TARGET, &target("client", &all)));
    checks.equal("smi-19: the caller that may", "200", mesh.code(CLIENT, &[METRICS]));
    checks.equal("smi-19: no certificate, HTTP", "403", mesh.code(STRANGER, &[METRICS]));
    checks.equal("smi-19: no certificate, HTTP/2", "403", mesh.code(STRANGER, &["--http2", METRICS]));
    checks.equal("smi-19: no certificate, TCP", "closed", mesh.code(STRANGER, &["tcp://vault.guarded:7000"]));
    checks.equal("smi-19: no certificate, a forged header", "403", mesh.code(STRANGER, &["-H", FORGED, METRICS]));
    checks.equal("smi-19: another's certificate, a forged header", "403", mesh.code(ANOTHER, &["-H", FORGED, METRICS]));
    checks.holds("smi-19: what the application sees of a forged header", "the caller's own identity alone", || {
        let answer = mesh.call(CLIENT, &["-H", &FORGED.replace("sa/client", "sa/admin"), METRICS])?;
        Ok((answer.contains("ns/app/sa/client") && !answer.contains("sa/admin"), answer))
    });
    taken(checks, "removed", mesh.remove(TARGET));
}
