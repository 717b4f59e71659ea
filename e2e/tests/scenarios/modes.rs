//! Discovery and authorisation, in every mode that they have.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use weft_e2e::mesh::Mesh;
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::{scenarios, start};

const CLIENT: &str = "app/client";
const MESH: &str = "mesh.yaml";
const TARGET: &str = "target.yaml";

#[test]
fn each_mode_does_what_it_says() {
    run("default");
}

#[cfg(feature = "slow")]
#[test]
fn each_mode_does_what_it_says_on_the_oldest_envoy() {
    run("oldest");
}

fn run(line: &str) {
    let mesh = start("modes", line);
    let mut checks = scenarios(&mesh, line);
    discovery(&mesh, &mut checks);
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
    // They are kept for a while for requests on their way.
    let again = until("the others go", Duration::from_secs(20), || {
        let known = said(known(mesh)?);
        Ok(if known == "app/root/80" { Ok(known) } else { Err(known) })
    });
    checks.equal("discovery-on-demand: again", "app/root/80", again);
    checks.equal("discovery-on-demand: again, a first call", "200", mesh.code(CLIENT, &["http://root-v2/"]));
    checks.holds("discovery-moved: under load", "no failed request", || {
        let summary = load.stop()?;
        Ok((summary.failed == 0, summary.said()))
    });
}

fn target(rules: &str) -> String {
    format!(
        "apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata: {{name: vault, namespace: guarded}}\n\
         spec:\n  destination: {{kind: ServiceAccount, name: vault, namespace: guarded}}\n  \
         sources: [{{kind: ServiceAccount, name: client, namespace: app}}]\n  rules: [{rules}]\n"
    )
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
