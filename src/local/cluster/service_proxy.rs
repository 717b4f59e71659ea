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
use std::net::IpAddr;
use std::process::Stdio;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
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

type Frontends = BTreeMap<(IpAddr, Protocol, u16), BTreeSet<(IpAddr, u16)>>;

/// What differs between the tables of the two families.
struct Family {
    name: &'static str,
    address: &'static str,
    /// The Service range.
    range: &'static str,
    /// An address of the node in that range.
    exempt: String,
    fits: fn(&IpAddr) -> bool,
}

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
    let ipv4 = Family {
        name: "ip",
        address: "ipv4_addr",
        range: "10.96.0.0/12",
        exempt: format!("    ip daddr {DNS_ADDRESS} return\n"),
        fits: IpAddr::is_ipv4,
    };
    let ipv6 = Family {
        name: "ip6",
        address: "ipv6_addr",
        range: "fd00:10:96::/64",
        exempt: String::new(),
        fits: IpAddr::is_ipv6,
    };
    text(&frontends, &ipv4)
        + &if frontends.keys().any(|(ip, ..)| ip.is_ipv6()) { text(&frontends, &ipv6) } else { gone("ip6") }
}

/// Removes the table of a family, whether or not it is there.
fn gone(family: &str) -> String {
    format!("table {family} {TABLE}\ndelete table {family} {TABLE}\n")
}

fn add_frontends(frontends: &mut Frontends, service: &Service, slices: &[&EndpointSlice]) {
    let Some(spec) = &service.spec else { return };
    let more = spec.cluster_ips.iter().flatten().filter(|ip| Some(*ip) != spec.cluster_ip.as_ref());
    for ip in spec.cluster_ip.iter().chain(more).filter_map(|ip| ip.parse::<IpAddr>().ok()) {
        if ip != DNS_ADDRESS {
            add_frontend(frontends, spec, ip, slices);
        }
    }
}

fn add_frontend(frontends: &mut Frontends, spec: &ServiceSpec, cluster_ip: IpAddr, slices: &[&EndpointSlice]) {
    for port in spec.ports.iter().flatten() {
        let (Some(protocol), Ok(number)) = (Protocol::parse(endpoints::protocol(port)), u16::try_from(port.port))
        else {
            continue;
        };
        let mut backends = backends(slices, port.name.as_deref().unwrap_or_default(), protocol);
        backends.retain(|(ip, _)| ip.is_ipv4() == cluster_ip.is_ipv4());
        if !backends.is_empty() {
            frontends.entry((cluster_ip, protocol, number)).or_default().extend(backends);
        }
    }
}

/// The ready endpoints of a port; when there are none, those which still serve while they terminate (KEP-1669).
fn backends(slices: &[&EndpointSlice], port: &str, protocol: Protocol) -> BTreeSet<(IpAddr, u16)> {
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

fn chain((ip, protocol, port): &(IpAddr, Protocol, u16)) -> String {
    // A name has no colons.
    format!("service-{}-{}-{port}", ip.to_string().replace(':', "_"), protocol.name())
}

fn elements(elements: &[String]) -> String {
    if elements.is_empty() { String::new() } else { format!("\n    elements = {{ {} }}", elements.join(", ")) }
}

fn text(frontends: &Frontends, family: &Family) -> String {
    let Family { name, address, range, exempt, fits } = family;
    let frontends = || frontends.iter().filter(|((ip, ..), _)| fits(ip));
    let keys: Vec<_> = frontends()
        .map(|(key, _)| key)
        .map(|key @ (ip, protocol, port)| format!("{ip} . {} . {port} : goto {}", protocol.name(), chain(key)))
        .collect();
    let addresses: BTreeSet<_> = frontends().flat_map(|(_, backends)| backends).map(|(address, _)| address).collect();
    let hairpins: Vec<_> = addresses.into_iter().map(|address| format!("{address} . {address}")).collect();
    let mut chains = String::new();
    for (key, backends) in frontends() {
        let targets: Vec<_> =
            backends.iter().enumerate().map(|(i, (address, port))| format!("{i} : {address} . {port}")).collect();
        // Writing into a String does not fail.
        let _ = write!(
            chains,
            "  chain {} {{\n    meta l4proto {} dnat {name} to numgen random mod {} map {{ {} }}\n  }}\n",
            chain(key),
            key.1.name(),
            backends.len(),
            targets.join(", ")
        );
    }
    // The first two lines make the deletion succeed whether or not the table exists.
    format!(
        "{gone}table {name} {TABLE} {{
  map services {{
    type {address} . inet_proto . inet_service : verdict{services}
  }}
  set hairpins {{
    type {address} . {address}{hairpins}
  }}
{chains}  chain translate {{
    {name} daddr . meta l4proto . th dport vmap @services
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
    {name} daddr != {range} return
{exempt}    meta l4proto tcp reject with tcp reset
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
    ct status dnat {name} saddr . {name} daddr @hairpins masquerade
  }}
}}
",
        gone = gone(name),
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
