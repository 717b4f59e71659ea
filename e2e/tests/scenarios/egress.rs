//! Calls to hosts outside the mesh: allowed, denied, and allowed by name, wildcard and address.

use std::net::SocketAddr;

use anyhow::Context;
use weft_e2e::mesh::{Mesh, PATIENCE};
use weft_e2e::until;

use crate::protocols::{greeting, https, tcp};
use crate::{answer, scenarios, start};

const WEB: &str = "shop/web";
const JOB: &str = "shop/job";
const TILL: &str = "bank/till";

#[test]
fn what_leaves_is_what_is_allowed() {
    run("default");
}

#[cfg(feature = "slow")]
#[test]
fn what_leaves_is_what_is_allowed_on_the_oldest_envoy() {
    run("oldest");
}

/// An Egress of the namespace shop.
fn egress(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: Egress\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

/// How a call by HTTPS ended: who answered and which name it was asked for, or `closed`.
fn by_tls(mesh: &Mesh, pod: &str, url: &str) -> anyhow::Result<String> {
    Ok(https(mesh, pod, url).unwrap_or_else(|_| "closed".to_owned()))
}

/// Which status and how many calls by TLS and TCP the sidecar has refused.
fn refused(mesh: &Mesh, pod: &str, stat: &str) -> anyhow::Result<u64> {
    Ok(mesh.stats(pod, &format!("^{stat}$"))?.iter().map(|(_, count)| count).sum())
}

fn run(line: &str) {
    let mesh = start("egress", line);
    let mut checks = scenarios(&mesh, line);
    let http = |pod: &str, url: &str| answer(&mesh, pod, &[url]);
    let code = |pod: &str, arguments: &[&str]| mesh.code(pod, arguments);
    let address = |name: &str, port| Ok::<_, anyhow::Error>(SocketAddr::new(mesh.resolve(WEB, name)?, port));
    let api = address("api.example.com", 80).expect("the address of a host outside");
    let other = address("other.example.net", 80).expect("the address of a host outside");

    checks.equal("egress-allow: by default, HTTP", "other HTTP/1.1 plaintext", http(WEB, "http://other.example.net/"));
    checks.equal(
        "egress-allow: by default, TLS",
        "other \"other.example.net\"",
        by_tls(&mesh, WEB, "https://other.example.net/"),
    );
    checks.equal("egress-allow: by default, TCP", "ok other v1", tcp(&mesh, WEB, "tcp://other.example.net:7000"));

    mesh.edit("mesh.yaml", |text| text.replace("mode: Allow", "mode: Deny")).expect("egress is denied");
    // A listener that is replaced is drained while the new one is made.
    let denied = until("web has its own listener", PATIENCE, || {
        let code = mesh.code(WEB, &["http://other.example.net/"])?;
        Ok(if code == "403" { Ok(()) } else { Err(code) })
    });
    denied.expect("HTTP is denied");
    checks.equal("egress-deny: HTTP", "403", code(WEB, &["http://other.example.net/"]));
    checks.equal("egress-deny: HTTP/2", "403", code(WEB, &["--http2", "http://other.example.net/"]));
    checks.holds("egress-deny: the reason", "no Egress allows, host and address", || {
        let text = mesh.call(WEB, &["http://other.example.net/"])?;
        let expected = format!("Weft: no Egress allows this workload to call other.example.net at {other}\n");
        Ok((text == expected, text))
    });
    checks.equal("egress-deny: TLS", "closed", by_tls(&mesh, WEB, "https://other.example.net/"));
    checks.equal("egress-deny: TCP", "closed nobody", tcp(&mesh, WEB, "tcp://other.example.net:7000"));
    checks.holds("egress-deny: statistics tell", "requests and connections", || {
        let requests = refused(&mesh, WEB, "http.egress.rq_direct_response")?;
        let connections = refused(&mesh, WEB, "tcp.egress_denied.downstream_cx_no_route")?;
        Ok((requests >= 3 && connections >= 2, format!("{requests} requests, {connections} connections")))
    });
    checks.equal("egress-deny: a Service of the mesh, HTTP", "web HTTP/1.1 mtls", http(TILL, "http://web.shop/"));
    checks.equal(
        "egress-deny: a Service of the mesh, TLS of the application",
        "web \"web.shop\"",
        by_tls(&mesh, TILL, "https://web.shop/"),
    );
    let web = mesh.pods_of("shop", "web").and_then(|pods| Ok(pods.first().context("a pod")?.ip)).expect("an address");
    checks.equal(
        "egress-deny: a workload of the mesh by its address",
        "web HTTP/1.1 mtls",
        http(TILL, &format!("http://{web}:8080/")),
    );
    checks.equal(
        "egress-deny: a workload of the mesh by its address, TLS of the application",
        // There is no server name in a call to an address.
        "web null",
        by_tls(&mesh, TILL, &format!("https://{web}:8443/")),
    );

    mesh.write("api.yaml", &egress("api", "hosts: [api.example.com]")).expect("written");
    checks.equal("egress-host: HTTP by its Host", "api HTTP/1.1 plaintext", http(WEB, "http://api.example.com/"));
    checks.equal(
        "egress-host: HTTP/2 by its authority",
        "api HTTP/2.0 plaintext",
        answer(&mesh, WEB, &["--http2", "http://api.example.com/"]),
    );
    checks.equal(
        "egress-host: TLS by its SNI",
        "api \"api.example.com\"",
        by_tls(&mesh, WEB, "https://api.example.com/"),
    );
    checks.equal("egress-host: another host", "403", code(WEB, &["http://other.example.net/"]));
    checks.equal("egress-host: another host, TLS", "closed", by_tls(&mesh, WEB, "https://other.example.net/"));
    checks.equal("egress-host: another port", "403", code(WEB, &["http://api.example.com:8080/"]));
    checks.equal("egress-host: TCP", "closed nobody", tcp(&mesh, WEB, "tcp://api.example.com:7000"));
    checks.equal(
        "egress-host: another workload of the namespace",
        "api HTTP/1.1 plaintext",
        http(JOB, "http://api.example.com/"),
    );
    checks.equal("egress-host: another namespace", "403", code(TILL, &["http://api.example.com/"]));
    checks.equal(
        "egress-forged: an allowed Host at another address leads to the allowed host",
        "api HTTP/1.1 plaintext",
        answer(&mesh, WEB, &["-H", "host: api.example.com", &format!("http://{other}/")]),
    );
    checks.equal(
        "egress-forged: another Host at an allowed address",
        "403",
        code(WEB, &["-H", "host: other.example.net", &format!("http://{api}/")]),
    );
    checks.equal(
        "egress-forged: a client's own x-weft-dst names an allowed port",
        "403",
        code(WEB, &["-H", &format!("x-weft-dst: {api}"), "http://api.example.com:8080/"]),
    );
    checks.holds("egress-host: statistics by name", "egress/api_example_com/80", || {
        let count = refused(&mesh, WEB, "cluster.egress/api_example_com/80.upstream_rq_completed")?;
        Ok((count >= 3, format!("{count} requests")))
    });

    mesh.write("wild.yaml", &egress("wild", "hosts: [\"*.example.org\"]")).expect("written");
    checks.equal("egress-wildcard: HTTP", "other HTTP/1.1 plaintext", http(WEB, "http://www.example.org/"));
    checks.equal("egress-wildcard: deeper, HTTP", "other HTTP/1.1 plaintext", http(WEB, "http://a.b.example.org/"));
    checks.equal("egress-wildcard: TLS", "other \"www.example.org\"", by_tls(&mesh, WEB, "https://www.example.org/"));
    checks.equal(
        "egress-wildcard: a port that the Host claims",
        "403",
        code(WEB, &["-H", "host: www.example.org:7000", &format!("http://{other}/")]),
    );

    let only_web = "addresses: [203.0.113.0/24], ports: [{number: 7000, protocol: TCP}, {number: 2222, protocol: TCP}], \
        sources: [{kind: ServiceAccount, name: web}]";
    mesh.write("tcp.yaml", &egress("tcp", only_web)).expect("written");
    checks.equal("egress-address: TCP", "ok api v1", tcp(&mesh, WEB, &format!("tcp://{}:7000", api.ip())));
    checks.equal(
        "egress-address: the server speaks first",
        "greeter v1",
        greeting(&mesh, WEB, SocketAddr::new(api.ip(), 2222)),
    );
    checks.equal("egress-address: another port", "403", code(WEB, &[&format!("http://{}:8080/", api.ip())]));
    checks.equal(
        "egress-source: another account",
        "closed nobody",
        tcp(&mesh, JOB, &format!("tcp://{}:7000", api.ip())),
    );

    checks.holds("egress-change: rules come and go under load of an allowed host", "nothing fails", || {
        let load = mesh.load(WEB, &["-c", "2", "--rate", "200", "http://api.example.com/"])?;
        mesh.write("more.yaml", &egress("more", "hosts: [other.example.net]"))?;
        until("the new host is allowed", PATIENCE, || {
            let code = mesh.code(WEB, &["http://other.example.net/"])?;
            Ok(if code == "200" { Ok(()) } else { Err(code) })
        })?;
        mesh.remove("more.yaml")?;
        until("it is allowed no longer", PATIENCE, || {
            let code = mesh.code(WEB, &["http://other.example.net/"])?;
            Ok(if code == "403" { Ok(()) } else { Err(code) })
        })?;
        mesh.remove("tcp.yaml")?;
        mesh.remove("wild.yaml")?;
        mesh.calls(WEB, &["-n", "100", "http://api.example.com/"])?;
        let summary = load.stop()?;
        Ok((summary.failed == 0, summary.said()))
    });
    checks.holds("egress-change: the namespace is allowed everything under load", "nothing fails", || {
        let load = mesh.load(WEB, &["-c", "2", "--rate", "200", "http://api.example.com/"])?;
        mesh.edit("mesh.yaml", |text| {
            text.replacen("name: shop\n", "name: shop\n  annotations: {weft.dev/egress: Allow}\n", 1)
        })?;
        until("every host is allowed", PATIENCE, || {
            let code = mesh.code(WEB, &["http://other.example.net/"])?;
            Ok(if code == "200" { Ok(()) } else { Err(code) })
        })?;
        mesh.calls(WEB, &["-n", "200", "http://api.example.com/"])?;
        let summary = load.stop()?;
        Ok((summary.failed == 0, summary.said()))
    });
    checks.equal("egress-namespace: another keeps what the mesh says", "403", code(TILL, &["http://api.example.com/"]));
    checks.end(mesh).expect("every scenario holds");
}
