//! What can be called, and in which ways.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use weft::local::control::PodSelector;
use weft_e2e::mesh::Mesh;

use crate::{answer, scenarios, start};

const CLIENT: &str = "app/client";

/// How a TCP call ended and who answered.
fn tcp(mesh: &Mesh, pod: &str, url: &str) -> anyhow::Result<String> {
    let summary = mesh.calls(pod, &[url])?;
    let who = summary.responders.into_keys().next().unwrap_or_else(|| "nobody".to_owned());
    let how = summary.codes.into_keys().next().context("a call that ended somehow")?;
    Ok(format!("{how} {who}"))
}

/// The first line that a server says to a client which says nothing.
fn greeting(mesh: &Mesh, to: SocketAddr) -> anyhow::Result<String> {
    let mut socket = mesh.client().dial(Some(PodSelector::new("app", "client")), to)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buffer = [0; 64];
    let read = socket.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..read]).trim_end().to_owned())
}

fn ip(mesh: &Mesh, namespace: &str, pod: &str) -> IpAddr {
    let pods = mesh.pods_of(namespace, pod).expect("the pods");
    pods.first().unwrap_or_else(|| panic!("no pod {namespace}/{pod}")).ip.into()
}

/// The address that a Service's name stands for, as a pod resolves it.
fn address(mesh: &Mesh, name: &str, port: u16) -> anyhow::Result<SocketAddr> {
    let argv = ["getent", "ahostsv4", name].map(str::to_owned).to_vec();
    let (_, text) = mesh.client().output(PodSelector::new("app", "client"), argv)?;
    let ip = text.split_whitespace().next().with_context(|| format!("{name} has no address"))?;
    Ok(SocketAddr::new(ip.parse()?, port))
}

#[test]
fn everything_can_be_called() {
    run("default");
}

#[test]
fn everything_can_be_called_on_the_oldest_envoy() {
    run("oldest");
}

fn run(line: &str) {
    let mesh = start("protocols", line);
    let (server, stranger) = (ip(&mesh, "app", "server"), ip(&mesh, "plain", "stranger"));
    let mut checks = scenarios(&mesh, line);
    let http = |arguments: &[&str]| answer(&mesh, CLIENT, arguments);
    let raw = |url: &str| tcp(&mesh, CLIENT, url);

    checks.equal("a named target port", "server HTTP/1.1 mtls", http(&["http://several/"]));
    checks.equal("HTTP/2 on a port for HTTP", "server HTTP/2.0 mtls", http(&["--http2", "http://several/"]));
    checks.equal("appProtocol: http2", "server HTTP/2.0 mtls", http(&["--http2", "http://several:82/"]));
    checks.equal("appProtocol: kubernetes.io/h2c", "server HTTP/2.0 mtls", http(&["--http2", "http://several:83/"]));
    checks.equal("gRPC on a Service of several ports", "OK", mesh.code(CLIENT, &["grpc://several:9090"]));
    checks.equal("TCP on a Service of several ports", "ok server v1", raw("tcp://several:7000"));
    checks.equal("a port that the Service has not", "503", mesh.code(CLIENT, &["http://several:81/"]));

    checks.equal("headless by name, HTTP", "server HTTP/1.1 mtls", http(&["http://headless:8080/"]));
    checks.equal("headless by name, TCP", "ok server v1", raw("tcp://headless:7000"));
    checks.equal(
        "headless by address, HTTP/2",
        "server HTTP/2.0 mtls",
        http(&["--http2", &format!("http://{server}:8080/")]),
    );
    checks.equal("headless by address, TCP", "ok server v1", raw(&format!("tcp://{server}:7000")));
    checks.equal(
        "a pod's port that no Service names",
        "greeter HTTP/1.1 mtls",
        http(&[&format!("http://{server}:9000/")]),
    );

    checks.equal("undeclared, HTTP/1.1", "server HTTP/1.1 mtls", http(&["http://undeclared:5000/"]));
    checks.equal("undeclared, HTTP/2", "server HTTP/2.0 mtls", http(&["--http2", "http://undeclared:5000/"]));
    checks.equal("undeclared, TCP", "ok server v1", raw("tcp://undeclared:5001"));

    let greeted = |name: &str, port: u16| greeting(&mesh, address(&mesh, name, port)?);
    checks.equal("the server speaks first on a well-known port", "greeter v1", greeted("database", 3306));
    checks.equal("one port number, TCP", "ok server v1", raw("tcp://clash-tcp:4000"));
    checks.equal("one port number, HTTP", "server HTTP/1.1 mtls", http(&["http://clash-http:4000/"]));

    checks.equal("no endpoint yet", "503", mesh.code(CLIENT, &["http://legacy/"]));
    mesh.write("legacy.yaml", &slice(stranger)).expect("a slice");
    checks.equal("an EndpointSlice by hand, HTTP", "stranger HTTP/1.1 plaintext", http(&["http://legacy/"]));
    checks.equal("an EndpointSlice by hand, TCP", "ok stranger v1", raw("tcp://legacy:7000"));

    checks.equal("a pod's own Service", "client HTTP/1.1 mtls", http(&["http://client.app/"]));
    checks.equal(
        "from outside to a permissive Service",
        "server HTTP/1.1 plaintext",
        answer(&mesh, "plain/stranger", &["http://several.app/"]),
    );
    checks.equal(
        "from outside to a permissive Service, TCP",
        "ok server v1",
        tcp(&mesh, "plain/stranger", "tcp://several.app:7000"),
    );
    checks.equal(
        "nobody's address in the mesh's ranges",
        "200",
        mesh.code(CLIENT, &["http://10.244.0.1:15014/healthz"]),
    );

    for (version, arguments) in [("HTTP/1.1", vec!["http://large-1/"]), ("HTTP/2", vec!["--http2", "http://large-2/"])]
    {
        checks.holds(&format!("a first call with a body of 2 MB, {version}"), "received whole", || {
            let text = mesh.call(CLIENT, &[&["--size", "2000000"], &arguments[..]].concat())?;
            let answer: serde_json::Value = serde_json::from_str(&text).context(text)?;
            Ok((answer["received"] == 2_000_000, answer["received"].to_string()))
        });
    }

    checks.holds("a destination outside the mesh's ranges", "served, by the passthrough cluster", || {
        mesh.edit("mesh.yaml", |text| text.replacen("spec:\n", &format!("spec:\n{}", ranges(server)), 1))?;
        let called = [http(&[&format!("http://{stranger}:8080/")])?, raw(&format!("tcp://{stranger}:7000"))?];
        let through = mesh.stats(CLIENT, "^cluster.passthrough.upstream_cx_total$")?;
        let ok =
            called == ["stranger HTTP/1.1 plaintext", "ok stranger v1"] && through.iter().any(|(_, count)| *count == 2);
        Ok((ok, format!("{}; {through:?}", called.join(", "))))
    });
    checks.equal("a Service in the ranges that are left", "server HTTP/1.1 mtls", http(&["http://several/"]));
    checks.end(mesh).expect("every scenario holds");
}

/// Services, and of all pods only this one.
fn ranges(server: IpAddr) -> String {
    format!("  network:\n    ranges: [10.96.0.0/12, {server}/32]\n")
}

fn slice(ip: IpAddr) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: legacy-by-hand
  namespace: app
  labels: {{kubernetes.io/service-name: legacy}}
addressType: IPv4
ports:
  - {{name: http, port: 8080}}
  - {{name: tcp, port: 7000}}
endpoints:
  - addresses: [{ip}]
"
    )
}
