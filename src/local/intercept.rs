//! Transparent interception in a meshed pod: the nftables rules that send its TCP connections through the sidecar.
//!
//! ```text
//!  application ──output──▶ 15001 (sidecar) ──output, own socket──▶ network
//!  network ──prerouting──▶ 15006 (sidecar) ──output over lo, from 127.0.0.6──▶ application
//!  sidecar ──output over lo, to the pod's own address──▶ 15006   (a pod that calls its own Service)
//! ```
//!
//! In Kubernetes an init container loads the same text; here the pod's first process does.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr;

use ipnet::IpNet;

use super::namespaces::Privilege;
use super::tools::{Tool, ToolError};

/// The sidecar's user id, where it has one of its own.
pub const SIDECAR_UID: u32 = 1337;
/// The mark on the sidecar's sockets, where it has no user id of its own.
pub const SIDECAR_MARK: u32 = 0x539;
/// The port to which inbound connections are redirected.
pub use crate::envoy::names::INBOUND_PORT;
/// The port to which outbound connections are redirected.
pub use crate::envoy::names::OUTBOUND_PORT;
/// Ports of the sidecar itself, never redirected on their way in: admin, health and metrics, readiness.
pub const SIDECAR_PORTS: [u16; 3] = [15000, 15020, 15021];

/// How the rules recognise the sidecar's own sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SidecarSockets {
    /// By the user that owns them ([`SIDECAR_UID`]).
    Uid(u32),
    /// By their mark ([`SIDECAR_MARK`]).
    Mark(u32),
}

impl From<Privilege> for SidecarSockets {
    fn from(privilege: Privilege) -> Self {
        match privilege {
            Privilege::Root => Self::Uid(SIDECAR_UID),
            Privilege::Rootless => Self::Mark(SIDECAR_MARK),
        }
    }
}

/// What a pod excludes from interception by its annotations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// `weft.dev/exclude-outbound-ports`: destination ports that are called directly.
    pub outbound_ports: Vec<u16>,
    /// `weft.dev/exclude-outbound-ranges`: destination ranges that are called directly.
    pub outbound_ranges: Vec<IpNet>,
    /// `weft.dev/exclude-inbound-ports`: ports that callers reach directly.
    pub inbound_ports: Vec<u16>,
}

/// An annotation that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {annotation}: `{value}` is not {expected}")]
pub struct ExclusionError {
    /// The annotation's key.
    pub annotation: &'static str,
    /// The part that is wrong.
    pub value: String,
    /// What it should have been.
    pub expected: &'static str,
}

impl Exclusions {
    /// Reads them from a pod's annotations: lists separated by commas.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Self, ExclusionError> {
        const PORT: &str = "a port from 1 to 65535";
        let ports = |annotation| {
            let list: Vec<u16> = list(annotations, annotation, PORT)?;
            match list.contains(&0) {
                true => Err(ExclusionError { annotation, value: "0".to_owned(), expected: PORT }),
                false => Ok(list),
            }
        };
        Ok(Self {
            outbound_ports: ports("weft.dev/exclude-outbound-ports")?,
            outbound_ranges: list(annotations, "weft.dev/exclude-outbound-ranges", "a range such as 10.0.0.0/8")?,
            inbound_ports: ports("weft.dev/exclude-inbound-ports")?,
        })
    }
}

fn list<T: FromStr>(
    annotations: &BTreeMap<String, String>,
    annotation: &'static str,
    expected: &'static str,
) -> Result<Vec<T>, ExclusionError> {
    let text = annotations.get(annotation).map_or("", String::as_str);
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items
        .map(|item| item.parse().map_err(|_| ExclusionError { annotation, value: item.to_owned(), expected }))
        .collect()
}

/// The rules, as text for `nft -f -`. Loading them again replaces them.
pub fn ruleset(sidecar: SidecarSockets, exclude: &Exclusions) -> String {
    let own = match sidecar {
        SidecarSockets::Uid(uid) => format!("meta skuid {uid}"),
        SidecarSockets::Mark(mark) => format!("meta mark {mark:#x}"),
    };
    let mut direct = String::new();
    // Writing to a String cannot fail.
    if !exclude.outbound_ports.is_empty() {
        let _ = writeln!(direct, "    tcp dport {{ {} }} return", join(&exclude.outbound_ports));
    }
    for range in &exclude.outbound_ranges {
        let family = if matches!(range, IpNet::V4(_)) { "ip" } else { "ip6" };
        let _ = writeln!(direct, "    {family} daddr {range} return");
    }
    let not_inbound = join(SIDECAR_PORTS.iter().chain(&exclude.inbound_ports));
    format!(
        r#"table inet weft {{}}
delete table inet weft
table inet weft {{
  chain output {{
    type nat hook output priority -100; policy accept;
    # Inbound, handed to the application: the sidecar calls from 127.0.0.6, or ::6.
    oifname "lo" ip saddr 127.0.0.6 return
    oifname "lo" ip6 saddr ::6 return
    # The sidecar calls the pod's own address: the pod is a backend of a Service that it calls.
    oifname "lo" {own} ip daddr != 127.0.0.0/8 meta l4proto tcp redirect to :{INBOUND_PORT}
    oifname "lo" {own} ip6 daddr != ::1 meta l4proto tcp redirect to :{INBOUND_PORT}
    oifname "lo" return
    {own} return
{direct}    meta l4proto tcp redirect to :{OUTBOUND_PORT}
  }}
  chain prerouting {{
    type nat hook prerouting priority -100; policy accept;
    iifname "lo" return
    tcp dport {{ {not_inbound} }} return
    meta l4proto tcp redirect to :{INBOUND_PORT}
  }}
}}
"#
    )
}

fn join<'a>(ports: impl IntoIterator<Item = &'a u16>) -> String {
    let mut ports: Vec<u16> = ports.into_iter().copied().collect();
    ports.sort_unstable();
    ports.dedup(); // nft refuses a set that names an element twice
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// Loads the rules into this process's network namespace.
pub fn apply(sidecar: SidecarSockets, exclude: &Exclusions) -> Result<(), ToolError> {
    Tool::Nft.batch(&ruleset(sidecar, exclude), "load the rules of interception")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(key: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(key.to_owned(), value.to_owned())])
    }

    #[test]
    fn exclusions_come_before_the_redirection() {
        let mut all = annotations("weft.dev/exclude-outbound-ports", "3306, 25,25");
        all.extend(annotations("weft.dev/exclude-outbound-ranges", "192.0.2.0/24,2001:db8::/32"));
        all.extend(annotations("weft.dev/exclude-inbound-ports", "9090"));
        let rules = ruleset(SidecarSockets::Uid(1337), &Exclusions::from_annotations(&all).expect("exclusions"));
        let at = |text: &str| rules.find(text).unwrap_or_else(|| panic!("{text} in {rules}"));
        let redirect = at("redirect to :15001");
        assert!(at("tcp dport { 25, 3306 } return") < redirect);
        assert!(at("ip daddr 192.0.2.0/24 return") < redirect);
        assert!(at("ip6 daddr 2001:db8::/32 return") < redirect);
        assert!(at("meta skuid 1337 return") < redirect);
        at("tcp dport { 9090, 15000, 15020, 15021 } return");
    }

    #[test]
    fn an_annotation_that_cannot_be_used_is_named() {
        for (key, value, part) in [
            ("weft.dev/exclude-outbound-ports", "80,http", "`http` is not a port"),
            ("weft.dev/exclude-inbound-ports", "0", "`0` is not a port"),
            ("weft.dev/exclude-inbound-ports", "70000", "`70000` is not a port"),
            ("weft.dev/exclude-outbound-ranges", "10.0.0.0/33", "`10.0.0.0/33` is not a range"),
        ] {
            let error = Exclusions::from_annotations(&annotations(key, value)).expect_err(value).to_string();
            assert!(error.contains(key) && error.contains(part), "{error}");
        }
    }
}
