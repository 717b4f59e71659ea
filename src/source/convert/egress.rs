//! Egress.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::mesh::object::{Egress, EgressHost, EgressPort, EgressProtocol};
use crate::mesh::{Namespace, ServiceAccountKey};
use crate::source::manifest::egress;

use super::{Findings, name_of, namespace_of};

/// An Egress. Anything in it that cannot be read keeps it out: what was meant to be allowed is not guessed.
pub(super) fn egress(egress: &egress::Egress, findings: &mut Findings) -> Option<Egress> {
    let (metadata, spec) = (&egress.metadata, &egress.spec);
    let namespace = namespace_of(metadata);
    let hosts = spec.hosts.iter().flatten().enumerate().filter_map(|(i, text)| host(i, text, findings)).collect();
    let addresses = spec.addresses.iter().flatten().enumerate();
    let addresses = addresses.filter_map(|(i, text)| address(i, text, findings)).collect();
    let ports = spec.ports.iter().flatten().enumerate().filter_map(|(i, one)| port(i, one, findings)).collect();
    let egress = Egress {
        sources: spec.sources.as_ref().map(|sources| accounts(sources, &namespace, findings)),
        namespace,
        name: name_of(metadata),
        hosts,
        addresses,
        ports,
    };
    let written = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    if !written(&spec.hosts) && !written(&spec.addresses) {
        findings.error(
            "spec",
            "there is neither a host nor an address, so it allows nothing",
            "add spec.hosts or spec.addresses",
        );
    }
    let only_tcp = |port: &EgressPort| port.protocol == Some(EgressProtocol::Tcp);
    if !egress.hosts.is_empty()
        && egress.addresses.is_empty()
        && !egress.ports.is_empty()
        && egress.ports.iter().all(only_tcp)
    {
        findings.error(
            "spec.ports",
            "nothing in TCP tells which host is called, so a host cannot be allowed by its name",
            "give spec.addresses, or protocol HTTP or TLS",
        );
    }
    if egress.sources.as_ref().is_some_and(BTreeSet::is_empty) {
        findings.warning(
            "spec.sources",
            "the list is empty, so it allows nobody",
            "name a ServiceAccount, or remove the list",
        );
    }
    Some(egress)
}

fn host(index: usize, text: &str, findings: &mut Findings) -> Option<EgressHost> {
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    let (below, name) = match name.strip_prefix("*.") {
        Some(rest) => (true, rest),
        None => (false, name.as_str()),
    };
    let label = |label: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        (1..=63).contains(&label.len())
            && label.chars().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let help = match text {
        _ if text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok() => "write it under spec.addresses",
        _ if text.contains("://") || text.contains('/') => "write the name alone, without scheme and path",
        _ if text.contains(':') => "write the name alone, and the port under spec.ports",
        "*" => "to allow every host, write 0.0.0.0/0 under spec.addresses",
        _ if name.len() > 253 || !name.split('.').all(label) => "use a DNS name, or `*.` and a DNS name",
        _ => {
            let name = name.into();
            return Some(if below { EgressHost::Below(name) } else { EgressHost::Exactly(name) });
        }
    };
    findings.error(format!("spec.hosts[{index}]"), format!("`{text}` is not the name of a host"), help);
    None
}

fn address(index: usize, text: &str, findings: &mut Findings) -> Option<IpNet> {
    let field = format!("spec.addresses[{index}]");
    let range = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let Some(range) = range else {
        findings.error(
            field,
            format!("`{text}` is not an address range"),
            "write it as ADDRESS/LENGTH or ADDRESS, and names under spec.hosts",
        );
        return None;
    };
    if range.trunc() != range {
        findings.warning(
            field,
            format!("`{text}` has address bits beyond its length and is read as {}", range.trunc()),
            format!("write {}", range.trunc()),
        );
    }
    Some(range.trunc())
}

fn port(index: usize, port: &egress::EgressPort, findings: &mut Findings) -> Option<EgressPort> {
    let protocol = match port.protocol.as_deref().map(str::to_ascii_uppercase).as_deref() {
        None => None,
        Some("HTTP" | "HTTP2" | "GRPC") => Some(EgressProtocol::Http),
        Some("TLS" | "HTTPS") => Some(EgressProtocol::Tls),
        Some("TCP") => Some(EgressProtocol::Tcp),
        Some(_) => {
            let text = port.protocol.as_deref().unwrap_or_default();
            findings.error(
                format!("spec.ports[{index}].protocol"),
                format!("`{text}` is not a protocol that is told apart"),
                "use HTTP, TLS or TCP, or leave it out",
            );
            None
        }
    };
    let number = findings.port(&format!("spec.ports[{index}].number"), port.number)?;
    Some(EgressPort { number, protocol })
}

fn accounts(
    sources: &[egress::EgressSource],
    namespace: &Namespace,
    findings: &mut Findings,
) -> BTreeSet<ServiceAccountKey> {
    let mut accounts = BTreeSet::new();
    for (index, source) in sources.iter().enumerate() {
        let field = |name: &str| format!("spec.sources[{index}].{name}");
        if let Some(kind) = source.kind.as_deref().filter(|kind| *kind != "ServiceAccount") {
            findings.error(field("kind"), format!("a {kind} calls nobody"), "name a ServiceAccount");
        }
        if let Some(other) = source.namespace.as_deref().filter(|other| *other != namespace.as_str()) {
            findings.error(
                field("namespace"),
                format!("an Egress of {namespace} cannot allow accounts of {other} anything"),
                format!("write an Egress in {other}"),
            );
        }
        accounts.insert(ServiceAccountKey::new(namespace.clone(), source.name.as_str()));
    }
    accounts
}
