//! A cluster of both families of addresses.

use std::net::IpAddr;

use anyhow::Context;
use weft::local::control::PodSelector;
use weft_e2e::mesh::Mesh;

use crate::protocols::tcp;
use crate::{answer, scenarios, start_with};

const CLIENT: &str = "app/client";

#[test]
fn ipv6_is_called_as_ipv4_is() {
    run("default");
}

#[cfg(feature = "slow")]
#[test]
fn ipv6_is_called_as_ipv4_is_on_the_oldest_envoy() {
    run("oldest");
}

/// The IPv6 address that a name stands for in the client.
fn ipv6(mesh: &Mesh, name: &str) -> anyhow::Result<IpAddr> {
    let argv = ["getent", "ahostsv6", name].map(str::to_owned).to_vec();
    let (_, text) = mesh.client().output(PodSelector::new("app", "client"), argv)?;
    let address = text.split_whitespace().next().with_context(|| format!("{name} has no IPv6 address"))?;
    let address: IpAddr = address.parse()?;
    anyhow::ensure!(!address.to_string().starts_with("::ffff:"), "{name} has no IPv6 address: {text}");
    Ok(address)
}

fn run(line: &str) {
    let mesh = start_with("dual-stack", line, &["--dual-stack"]);
    let mut checks = scenarios(&mesh, line);
    let http = |url: &str| answer(&mesh, CLIENT, &[url]);
    let by_ipv6 = |name: &str, port: u16| ipv6(&mesh, name).and_then(|ip| http(&format!("http://[{ip}]:{port}/")));

    checks.equal("protocol-dual-stack: a Service by its IPv6 address", "server HTTP/1.1 mtls", by_ipv6("both", 80));
    checks.equal(
        "protocol-dual-stack: a Service by its IPv6 address, TCP",
        "ok server v1",
        ipv6(&mesh, "both").and_then(|ip| tcp(&mesh, CLIENT, &format!("tcp://[{ip}]:7000"))),
    );
    checks.equal(
        "protocol-dual-stack: the same Service by its IPv4 address",
        "server HTTP/1.1 mtls",
        mesh.resolve(CLIENT, "both").and_then(|ip| http(&format!("http://{ip}/"))),
    );
    checks.equal("protocol-dual-stack: a Service of IPv6 alone, by name", "server HTTP/1.1 mtls", http("http://six/"));
    checks.holds("protocol-dual-stack: a pod by its IPv6 address", "server HTTP/1.1 mtls", || {
        let pods = mesh.pods_of("app", "server")?;
        let [.., low, last] = pods.first().context("a pod")?.ip.octets();
        let url = format!("http://[fd00:10:244::{:x}]:8080/", u16::from_be_bytes([low, last]));
        let seen = http(&url)?;
        Ok((seen == "server HTTP/1.1 mtls", format!("{url} {seen}")))
    });
    checks.equal(
        "protocol-dual-stack: a pod's own Service by its IPv6 address",
        "client HTTP/1.1 mtls",
        by_ipv6("client.app.svc.cluster.local", 80),
    );
    checks.equal("protocol-dual-stack: a host outside", "outside HTTP/1.1 plaintext", by_ipv6("api.example.com", 80));
    checks.end(mesh).expect("every scenario holds");
}
