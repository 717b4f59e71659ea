//! Which port numbers are declared TCP, and where they are declared otherwise as well.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::findings::Findings;
use super::service_ref;
use crate::envoy::outbound::TcpPorts;
use crate::mesh::object::Protocol;
use crate::mesh::{Diagnostic, ServiceKey};
use crate::policy::ServicePlan;

/// What Services declare of each port number, and what the outbound listener has to know of it.
#[derive(Debug)]
pub(super) struct Ports {
    declared: BTreeMap<u16, Declared>,
    tcp: TcpPorts,
    parsed: BTreeSet<u16>,
}

impl Default for Ports {
    /// What no Service declares may be a server outside the mesh that speaks first.
    fn default() -> Self {
        let everywhere = Protocol::SERVER_FIRST.into();
        Self { declared: BTreeMap::new(), tcp: TcpPorts { everywhere, ..TcpPorts::default() }, parsed: BTreeSet::new() }
    }
}

/// The Services that declare one port number.
#[derive(Debug, Default)]
struct Declared {
    /// As TCP, with their addresses.
    tcp: BTreeMap<ServiceKey, Vec<IpAddr>>,
    /// As something that is parsed.
    parsed: BTreeSet<ServiceKey>,
}

impl Declared {
    /// The listener of all sidecars looks into what is said on the port, because some Service declares it so.
    fn is_inspected(&self) -> bool {
        !self.parsed.is_empty() && self.tcp.values().any(|ips| !ips.is_empty())
    }
}

impl Ports {
    /// What the outbound listener has to know.
    pub(super) fn tcp(&self) -> &TcpPorts {
        &self.tcp
    }

    /// The ports that some Service declares as something that is looked into.
    pub(super) fn parsed(&self) -> &BTreeSet<u16> {
        &self.parsed
    }

    /// Replaces what a Service declares; whether that changes [`Ports::tcp`].
    pub(super) fn replace(
        &mut self,
        key: &ServiceKey,
        before: Option<&ServicePlan>,
        after: Option<&ServicePlan>,
        findings: &mut Findings,
    ) -> bool {
        let (before, after) = (declarations(before), declarations(after));
        let numbers: BTreeSet<u16> = before.symmetric_difference(&after).map(|(number, _)| *number).collect();
        numbers.into_iter().fold(false, |changed, number| {
            let now = after.iter().filter(|(declared, _)| *declared == number).map(|(_, tcp)| *tcp);
            self.declare(number, key, now, findings) | changed
        })
    }

    /// Replaces what a Service declares of one number: as TCP at these addresses, or as something that is parsed.
    fn declare<'a>(
        &mut self,
        number: u16,
        key: &ServiceKey,
        now: impl Iterator<Item = Option<&'a [IpAddr]>>,
        findings: &mut Findings,
    ) -> bool {
        let declared = self.declared.entry(number).or_default();
        let (was_inspected, was_tcp) = (declared.is_inspected(), declared.tcp.contains_key(key));
        declared.tcp.remove(key);
        declared.parsed.remove(key);
        for tcp in now {
            match tcp {
                Some(ips) => drop(declared.tcp.insert(key.clone(), ips.to_vec())),
                None => drop(declared.parsed.insert(key.clone())),
            }
        }
        let (is_inspected, is_tcp) = (declared.is_inspected(), declared.tcp.contains_key(key));
        // The others are concerned only when the port begins or ceases to be inspected.
        let others = (was_inspected != is_inspected).then(|| declared.tcp.keys().filter(|other| *other != key));
        let others: Vec<_> = others.into_iter().flatten().map(|other| surprise(other, number)).collect();
        if is_inspected {
            findings.add(others);
        } else {
            findings.drop(others);
        }
        findings.drop((was_inspected && was_tcp).then(|| surprise(key, number)));
        findings.add((is_inspected && is_tcp).then(|| surprise(key, number)));

        let is_usual = Protocol::SERVER_FIRST.contains(&number);
        let everywhere = declared.parsed.is_empty() && (is_usual || !declared.tcp.is_empty());
        match declared.parsed.is_empty() {
            true => self.parsed.remove(&number),
            false => self.parsed.insert(number),
        };
        let at = is_inspected.then(|| declared.tcp.values().flatten().copied().collect::<BTreeSet<IpAddr>>());
        if declared.tcp.is_empty() && declared.parsed.is_empty() {
            self.declared.remove(&number);
        }
        let was_everywhere = match everywhere {
            true => !self.tcp.everywhere.insert(number),
            false => self.tcp.everywhere.remove(&number),
        };
        let at_before = match at.clone() {
            Some(ips) => self.tcp.at.insert(number, ips),
            None => self.tcp.at.remove(&number),
        };
        was_everywhere != everywhere || at_before != at
    }
}

/// What a plan declares: each port number, with the Service's addresses if it is TCP.
fn declarations(plan: Option<&ServicePlan>) -> BTreeSet<(u16, Option<&[IpAddr]>)> {
    let ports = plan.into_iter().flat_map(|plan| plan.ports.iter().map(move |port| (plan, port)));
    ports.map(|(plan, port)| (port.port, (port.protocol == Protocol::Tcp).then_some(&plan.ips[..]))).collect()
}

fn surprise(service: &ServiceKey, number: u16) -> Diagnostic {
    Diagnostic::warning(
        "spec.ports",
        format!("port {number} is TCP here and not in another Service, so a server that speaks first waits"),
        "if it does, give one of the two Services another port number",
    )
    .about(service_ref(service))
}
