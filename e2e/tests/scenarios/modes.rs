//! Discovery, splits and authorisation, in every mode that they have.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use weft_e2e::mesh::Mesh;
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::{scenarios, start};

const CLIENT: &str = "app/client";
const MESH: &str = "mesh.yaml";
const SPLIT: &str = "split.yaml";
const TARGET: &str = "target.yaml";

#[test]
fn each_mode_does_what_it_says() {
    run("default");
}

#[test]
fn each_mode_does_what_it_says_on_the_oldest_envoy() {
    run("oldest");
}

fn run(line: &str) {
    let mesh = start("modes", line);
    let mut checks = scenarios(&mesh, line);
    discovery(&mesh, &mut checks);
    splits(&mesh, &mut checks);
    targets(&mesh, &mut checks);
    revoked(&mesh, &mut checks);
    audit(&mesh, &mut checks);
    checks.end(mesh).expect("every scenario holds");
}

/// Every cluster of a Service that a sidecar has, by its readable name.
fn known(mesh: &Mesh) -> anyhow::Result<BTreeSet<String>> {
    let dump: Value = serde_json::from_str(&mesh.admin(CLIENT, "/config_dump?resource=dynamic_active_clusters")?)?;
    let clusters = dump["configs"].as_array().into_iter().flatten();
    let names = clusters.filter_map(|entry| entry["cluster"]["alt_stat_name"].as_str());
    Ok(names.filter(|name| name.contains('/')).map(str::to_owned).collect())
}

fn discovery(mesh: &Mesh, checks: &mut Scenarios) {
    let said = |known: BTreeSet<String>| Vec::from_iter(known).join(" ");
    checks.equal("discovery-on-demand: before any call", "", known(mesh).map(said));
    checks.equal("discovery-on-demand: a first call", "200", mesh.code(CLIENT, &["http://root/"]));
    checks.equal("discovery-on-demand: after it", "app/root/80", known(mesh).map(said));
    let everything = "app/root-v1/7000 app/root-v1/80 app/root-v2/7000 app/root-v2/80 app/root/7000 app/root/80 \
                      audited/watched/7000 audited/watched/80 guarded/vault/7000 guarded/vault/7001 \
                      guarded/vault/80 guarded/vault/81";
    let load = mesh.load(CLIENT, &["-c", "4", "--rate", "200", "http://root/"]).expect("a load");
    mesh.edit(MESH, |text| text.replace("OnDemand", "Eager")).expect("eager");
    checks.equal("discovery-eager: without a call", everything, known(mesh).map(said));
    checks.equal("discovery-eager: a first call", "200", mesh.code(CLIENT, &["http://root-v1/"]));
    mesh.edit(MESH, |text| text.replace("Eager", "OnDemand")).expect("on demand");
    checks.equal("discovery-on-demand: again", "app/root/80", known(mesh).map(said));
    checks.equal("discovery-on-demand: again, a first call", "200", mesh.code(CLIENT, &["http://root-v2/"]));
    checks.holds("discovery-moved: under load", "no failed request", || {
        let summary = load.stop()?;
        Ok((summary.failed == 0, summary.said()))
    });
}

/// The versions that answered, with how often.
fn versions(mesh: &Mesh, arguments: &[&str]) -> anyhow::Result<String> {
    let summary = mesh.calls(CLIENT, arguments)?;
    let responders = summary.responders.keys().map(|name| name.trim_start_matches("root ").to_owned());
    let codes = summary.codes.keys().cloned();
    Ok(codes.chain(responders).collect::<Vec<_>>().join(" "))
}

fn split(version: &str, matches: &str, backends: &[(&str, u32)]) -> String {
    let backends: String =
        backends.iter().map(|(service, weight)| format!("    - {{service: {service}, weight: {weight}}}\n")).collect();
    format!(
        "apiVersion: split.smi-spec.io/{version}\nkind: TrafficSplit\nmetadata: {{name: root, namespace: app}}\n\
         spec:\n  service: root\n{matches}  backends:\n{backends}"
    )
}

/// What the control plane says of an object, by words of its reason.
fn diagnostic(mesh: &Mesh, words: &str) -> anyhow::Result<(bool, String)> {
    let all = mesh.inspection()?.diagnostics()?;
    let text = all.iter().map(|diagnostic| format!("{diagnostic:?}")).collect::<Vec<_>>().join("; ");
    Ok((text.contains(words), text))
}

fn splits(mesh: &Mesh, checks: &mut Scenarios) {
    let see = |arguments: &[&str]| versions(mesh, arguments);
    let many = |url: &'static str| versions(mesh, &["-n", "40", "-c", "4", "--no-keepalive", url]);
    let matched =
        split("v1alpha4", "  matches:\n    - {kind: HTTPRouteGroup, name: beta}\n", &[("root-v1", 0), ("root-v2", 1)]);
    mesh.write(SPLIT, &matched).expect("a split with matches");
    checks.equal("matches: no match", "200 v1", see(&["http://root/"]));
    checks.equal("matches: the path", "200 v2", see(&["http://root/beta/7?x=1"]));
    checks.equal("matches: the path elsewhere", "200 v1", see(&["http://root/alpha/beta"]));
    checks.equal("matches: the path, another method", "200 v1", see(&["-X", "POST", "http://root/beta"]));
    checks.equal("matches: a header", "200 v2", see(&["-H", "x-user: beta-7", "http://root/"]));
    checks.equal("matches: a header, HTTP/2", "200 v2", see(&["--http2", "-H", "x-user: beta-7", "http://root/"]));
    checks.equal("matches: another value", "200 v1", see(&["-H", "x-user: alpha beta-7", "http://root/"]));
    checks.equal(
        "matches: a client's own x-weft-dst",
        "200 v1",
        see(&["-H", "x-weft-dst: 10.96.0.1:80", "http://root/"]),
    );
    checks.equal("matches: TCP has none", "ok v1", many("tcp://root:7000"));
    checks.equal("a weight of 0, within matches", "200 v2", many("http://root/beta"));
    checks.equal("a backend called directly", "200 v1", see(&["-H", "x-user: beta-7", "http://root-v1/"]));

    let halves = split("v1alpha2", "", &[("root-v1", 1), ("root-v2", 1), ("root-v3", 8)]);
    mesh.write(SPLIT, &halves).expect("a split in halves");
    checks.equal("different target ports, HTTP", "200 v1 v2", many("http://root/"));
    checks.equal("different target ports, TCP", "ok v1 v2", many("tcp://root:7000"));
    checks.holds("a backend without a Service", "is reported", || diagnostic(mesh, "app/root-v3 does not exist"));

    mesh.write(SPLIT, &split("v1alpha2", "", &[("root-v1", 0), ("root-v2", 0)])).expect("a split of zeros");
    checks.equal("all weights 0, HTTP", "503", see(&["http://root/"]));
    checks.equal("all weights 0, TCP", "closed", see(&["tcp://root:7000"]));
    checks.equal("all weights 0, another Service", "200 v2", see(&["http://root-v2/"]));
    checks.holds("all weights 0", "is reported", || diagnostic(mesh, "every weight is 0"));
    mesh.edit("services.yaml", |text| text.replace("name: http-other, port: 81", "name: http-other, port: 82"))
        .expect("an unrelated change");
    checks.equal("all weights 0, an unrelated change", "403", mesh.code(CLIENT, &["http://vault.guarded:82/"]));
    mesh.edit("services.yaml", |text| text.replace("name: http-other, port: 82", "name: http-other, port: 81"))
        .expect("an unrelated change");

    for (kind, text) in [("without matches", split("v1alpha2", "", &[("root-v2", 1)])), ("with matches", matched)] {
        mesh.write(SPLIT, &text).expect("a split");
        let path = if kind == "with matches" { "http://root/beta" } else { "http://root/" };
        let load = mesh.load(CLIENT, &["-c", "5", "--rate", "300", path]).expect("a load");
        let before = versions(mesh, &["-n", "20", path]);
        mesh.remove(SPLIT).expect("removed");
        let after = versions(mesh, &["-n", "20", path]);
        checks.equal(&format!("a split {kind}, before it is deleted"), "200 v2", before);
        checks.equal(&format!("a split {kind}, after it is deleted"), "200 v1", after);
        checks.holds(&format!("a split {kind} deleted under load"), "no failed request", || {
            let summary = load.stop()?;
            Ok((summary.failed == 0 && summary.responders.len() == 2, summary.said()))
        });
    }
}

fn target(rules: &str) -> String {
    format!(
        "apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata: {{name: vault, namespace: guarded}}\n\
         spec:\n  destination: {{kind: ServiceAccount, name: vault, namespace: guarded}}\n  \
         sources: [{{kind: ServiceAccount, name: client, namespace: app}}]\n  rules: [{rules}]\n"
    )
}

/// How calls end: to a path that is open, to another, to the other port, and by TCP to both ports.
fn vault(mesh: &Mesh) -> anyhow::Result<String> {
    let codes = [
        "http://vault.guarded/open",
        "http://vault.guarded/shut",
        "http://vault.guarded:81/open",
        "tcp://vault.guarded:7000",
        "tcp://vault.guarded:7001",
    ]
    .map(|url| mesh.code(CLIENT, &[url]));
    Ok(codes.into_iter().collect::<anyhow::Result<Vec<_>>>()?.join(" "))
}

fn targets(mesh: &Mesh, checks: &mut Scenarios) {
    const OPEN: &str = "{kind: HTTPRouteGroup, name: http, matches: [open]}";
    const SOME: &str = "{kind: TCPRoute, name: some}";
    const EVERY: &str = "{kind: TCPRoute, name: every}";
    checks.equal("no target", "403 403 403 closed closed", vault(mesh));
    for (check, rules, expected) in [
        ("an HTTPRouteGroup alone: HTTP only", OPEN.to_owned(), "200 403 200 closed closed"),
        ("a TCPRoute alone: raw TCP on its ports", SOME.to_owned(), "403 403 403 ok closed"),
        ("a TCPRoute for every port: raw TCP", EVERY.to_owned(), "403 403 403 ok ok"),
        ("both: port and path", format!("{OPEN}, {SOME}"), "200 403 403 closed closed"),
        ("both, for every port: the path", format!("{OPEN}, {EVERY}"), "200 403 200 closed closed"),
    ] {
        mesh.write(TARGET, &target(&rules)).expect("a target");
        checks.equal(check, expected, vault(mesh));
    }
    mesh.remove(TARGET).expect("removed");
    checks.equal("the target is gone", "403 403 403 closed closed", vault(mesh));
}

fn counted(mesh: &Mesh, pod: &str, filter: &str) -> anyhow::Result<u64> {
    Ok(mesh.stats(pod, filter)?.iter().map(|(_, count)| count).sum())
}

fn revoked(mesh: &Mesh, checks: &mut Scenarios) {
    const VAULT: &str = "guarded/vault";
    const CONNECTIONS: &str = "^http.inbound.downstream_cx_http2_total$";
    const SERVED: &str = "^http.inbound.downstream_rq_2xx$";
    mesh.write(TARGET, &target("{kind: HTTPRouteGroup, name: http}")).expect("a target");
    checks.holds("authorization-revoked: while HTTP/2 is open", "the next requests of the connection are 403", || {
        let before = counted(mesh, VAULT, CONNECTIONS)?;
        let load = mesh.load(CLIENT, &["--http2", "-c", "1", "--rate", "100", "http://vault.guarded/"])?;
        let grows = |filter: &'static str| {
            let from = counted(mesh, VAULT, filter)?;
            until(filter, Duration::from_secs(5), || {
                let now = counted(mesh, VAULT, filter)?;
                Ok(if now >= from + 20 { Ok(()) } else { Err(format!("{now}, from {from}")) })
            })
        };
        grows(SERVED)?;
        mesh.remove(TARGET)?;
        let served = counted(mesh, VAULT, SERVED)?;
        grows("^http.inbound.downstream_rq_4xx$")?;
        let after = counted(mesh, VAULT, SERVED)? - served;
        let connections = counted(mesh, VAULT, CONNECTIONS)? - before;
        let codes = load.stop()?.codes;
        let both = codes.len() == 2 && codes.contains_key("200") && codes.contains_key("403");
        Ok((
            both && after == 0 && connections == 1,
            format!("{codes:?} on {connections} connections, {after} served after the ACK"),
        ))
    });
}

fn audit(mesh: &Mesh, checks: &mut Scenarios) {
    checks.equal("audit-counters: HTTP passes", "200", mesh.code(CLIENT, &["http://watched.audited/"]));
    checks.equal("audit-counters: TCP passes", "ok", mesh.code(CLIENT, &["tcp://watched.audited:7000"]));
    let counts = mesh
        .stats("audited/watched", "rbac.audit.shadow_denied$")
        .map(|counts| counts.into_iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", "));
    let expected = "http.inbound.rbac.audit.shadow_denied 1, tcp.rbac.audit.shadow_denied 1";
    checks.equal("audit-counters: what would be denied is counted", expected, counts);
}
