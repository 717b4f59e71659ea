//! The service proxy: what kube-proxy does, as one table of nftables in the node's network namespace.
//!
//! ```text
//!  pod ─▶ prerouting ─┐                          ┌─▶ endpoint, at random ─▶ forward ─▶ hairpin ─▶ pod
//!                     ├─ ClusterIP, port known? ─┤
//!  node ─▶ output ────┘                          └─▶ still a Service address: refused
//! ```
//!
//! What is still addressed to the Service range after translation has no endpoints or does not exist, and is refused
//! at once instead of running into a timeout. The cluster DNS is an address of the node and passes.
//!
//! The node must route the Service range somewhere for its own connections to get as far as translation:
//! `ip route add 10.96.0.0/12 dev lo src 10.244.0.1` does. Pods need no such thing: translation comes before routing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::net::Ipv4Addr;
use std::process::Stdio;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::io::AsyncWriteExt as _;

use super::object::{label, name, namespace};
use super::{DNS_ADDRESS, endpoints};

const TABLE: &str = "weft-service-proxy";

/// A protocol that is translated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

type Frontends = BTreeMap<(Ipv4Addr, Protocol, u16), BTreeSet<(Ipv4Addr, u16)>>;

/// The whole table, for `nft -f -`: it replaces the one before in a single transaction. Only numbers come from the
/// objects into the text.
pub fn ruleset<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> String {
    let mut of_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        if let Some(service) = label(&slice.metadata, endpoints::SERVICE_NAME) {
            of_service.entry((namespace(&slice.metadata), service)).or_default().push(slice);
        }
    }
    let mut frontends = Frontends::new();
    for service in services {
        let key = (namespace(&service.metadata), name(&service.metadata));
        add_frontends(&mut frontends, service, of_service.get(&key).map_or(&[][..], Vec::as_slice));
    }
    text(&frontends)
}

fn add_frontends(frontends: &mut Frontends, service: &Service, slices: &[&EndpointSlice]) {
    let Some(spec) = &service.spec else { return };
    let Some(cluster_ip) = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<Ipv4Addr>().ok()) else { return };
    if cluster_ip == DNS_ADDRESS {
        return;
    }
    for port in spec.ports.iter().flatten() {
        let (Some(protocol), Ok(number)) = (Protocol::parse(endpoints::protocol(port)), u16::try_from(port.port))
        else {
            continue;
        };
        let backends = backends(slices, port.name.as_deref().unwrap_or_default(), protocol);
        if !backends.is_empty() {
            frontends.entry((cluster_ip, protocol, number)).or_default().extend(backends);
        }
    }
}

/// The ready endpoints of a port; when there are none, those which still serve while they terminate (KEP-1669).
fn backends(slices: &[&EndpointSlice], port: &str, protocol: Protocol) -> BTreeSet<(Ipv4Addr, u16)> {
    let (mut ready, mut serving) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices {
        let number = slice.ports.iter().flatten().find_map(|p| {
            let fits = p.name.as_deref().unwrap_or_default() == port
                && Protocol::parse(p.protocol.as_deref().unwrap_or("TCP")) == Some(protocol);
            p.port.filter(|_| fits).and_then(|number| u16::try_from(number).ok())
        });
        let Some(number) = number else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.as_ref();
            let is_ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            let still_serves = conditions.is_some_and(|c| c.serving == Some(true) && c.terminating == Some(true));
            for address in endpoint.addresses.iter().filter_map(|address| address.parse().ok()) {
                if is_ready {
                    ready.insert((address, number));
                } else if still_serves {
                    serving.insert((address, number));
                }
            }
        }
    }
    if ready.is_empty() { serving } else { ready }
}

fn chain((ip, protocol, port): &(Ipv4Addr, Protocol, u16)) -> String {
    format!("service-{ip}-{}-{port}", protocol.name())
}

fn elements(elements: &[String]) -> String {
    if elements.is_empty() { String::new() } else { format!("\n    elements = {{ {} }}", elements.join(", ")) }
}

fn text(frontends: &Frontends) -> String {
    let keys: Vec<_> = frontends
        .keys()
        .map(|key @ (ip, protocol, port)| format!("{ip} . {} . {port} : goto {}", protocol.name(), chain(key)))
        .collect();
    let addresses: BTreeSet<_> = frontends.values().flatten().map(|(address, _)| address).collect();
    let hairpins: Vec<_> = addresses.into_iter().map(|address| format!("{address} . {address}")).collect();
    let mut chains = String::new();
    for (key, backends) in frontends {
        let targets: Vec<_> =
            backends.iter().enumerate().map(|(i, (address, port))| format!("{i} : {address} . {port}")).collect();
        // Writing into a String does not fail.
        let _ = write!(
            chains,
            "  chain {} {{\n    meta l4proto {} dnat ip to numgen random mod {} map {{ {} }}\n  }}\n",
            chain(key),
            key.1.name(),
            backends.len(),
            targets.join(", ")
        );
    }
    // The first two lines make the deletion succeed whether or not the table exists.
    format!(
        "table ip {TABLE}
delete table ip {TABLE}
table ip {TABLE} {{
  map services {{
    type ipv4_addr . inet_proto . inet_service : verdict{services}
  }}
  set hairpins {{
    type ipv4_addr . ipv4_addr{hairpins}
  }}
{chains}  chain translate {{
    ip daddr . meta l4proto . th dport vmap @services
  }}
  chain translate-forwarded {{
    type nat hook prerouting priority -100;
    jump translate
  }}
  chain translate-local {{
    type nat hook output priority -100;
    jump translate
  }}
  chain refuse {{
    ip daddr != 10.96.0.0/12 return
    ip daddr {DNS_ADDRESS} return
    meta l4proto tcp reject with tcp reset
    reject
  }}
  chain refuse-forwarded {{
    type filter hook prerouting priority -90;
    jump refuse
  }}
  chain refuse-local {{
    type filter hook output priority 0;
    jump refuse
  }}
  chain hairpin {{
    type nat hook postrouting priority 100;
    ct status dnat ip saddr . ip daddr @hairpins masquerade
  }}
}}
",
        services = elements(&keys),
        hairpins = elements(&hairpins),
    )
}

/// Loads a ruleset into the network namespace of this process.
///
/// # Errors
/// If `nft` cannot be run, or refuses the rules: then the rules before stay, and the error holds its words.
pub async fn load(ruleset: &str) -> io::Result<()> {
    let mut nft = tokio::process::Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot run nft: {error}; install nftables")))?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(ruleset.as_bytes()).await?;
    }
    let output = nft.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("nft refused the service proxy's rules: {}", String::from_utf8_lossy(&output.stderr))))
}

#[cfg(test)]
mod tests;
