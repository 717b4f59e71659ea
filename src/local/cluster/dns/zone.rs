//! The data of the cluster DNS.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::super::object::{label, name, namespace};
use super::super::{CLUSTER_DOMAIN, DNS_ADDRESS, endpoints};
use super::reverse;

/// The data at a name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Data {
    Address(IpAddr),
    Cname(String),
    Srv { port: u16, target: String },
    Ptr(String),
}

/// What a zone knows of a name.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// The name exists; it may have no data of its own.
    Records(&'a BTreeSet<Data>),
    /// It would be the cluster's, below this apex, and does not exist.
    Nothing(&'static str),
    /// It is not the cluster's.
    Foreign,
}

/// The names of a cluster with their data. Names are lower-case, without the final dot.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Zone {
    names: BTreeMap<String, BTreeSet<Data>>,
}

/// The reverse zones of the pod and the Service range (10.244.0.0/16, 10.96.0.0/12).
fn reverse_apex(name: &str) -> Option<&'static str> {
    let second: u8 = name.strip_suffix(".10.in-addr.arpa")?.rsplit('.').next()?.parse().ok()?;
    (second == 244 || (96..112).contains(&second)).then_some("10.in-addr.arpa")
}

/// A name in the form of [`Zone`].
pub(super) fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

impl Zone {
    /// The names of `services` with their `slices`, of `pods` (namespace and address), and of `hosts` outside, which may
    /// begin with `*.`.
    pub fn new<'a>(
        services: impl IntoIterator<Item = &'a Service>,
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
        pods: impl IntoIterator<Item = (&'a str, Ipv4Addr)>,
        hosts: impl IntoIterator<Item = (String, IpAddr)>,
    ) -> Self {
        let mut of_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in slices {
            if let Some(service) = label(&slice.metadata, endpoints::SERVICE_NAME) {
                of_service.entry((namespace(&slice.metadata), service)).or_default().push(slice);
            }
        }
        let mut zone = Self::default();
        zone.names.insert(CLUSTER_DOMAIN.to_owned(), BTreeSet::new());
        let dns = format!("kube-dns.kube-system.svc.{CLUSTER_DOMAIN}");
        zone.insert(&format!("ns.dns.{CLUSTER_DOMAIN}"), Data::Address(DNS_ADDRESS.into()));
        zone.insert(&dns, Data::Address(DNS_ADDRESS.into()));
        zone.insert(&reverse(DNS_ADDRESS.into()), Data::Ptr(dns));
        for service in services {
            let key = (namespace(&service.metadata), name(&service.metadata));
            zone.add_service(service, of_service.get(&key).map_or(&[][..], Vec::as_slice));
        }
        for (namespace, ip) in pods {
            zone.insert(&format!("{}.{namespace}.pod.{CLUSTER_DOMAIN}", dashed(ip.into())), Data::Address(ip.into()));
        }
        for (host, ip) in hosts {
            zone.insert(&host, Data::Address(ip));
        }
        zone
    }

    pub(super) fn find(&self, name: &str) -> Found<'_> {
        if let Some(records) = self.names.get(name) {
            return Found::Records(records);
        }
        let ours = name.strip_suffix(CLUSTER_DOMAIN).is_some_and(|rest| rest.ends_with('.'));
        match (ours, reverse_apex(name)) {
            (true, _) => Found::Nothing(CLUSTER_DOMAIN),
            (false, Some(apex)) => Found::Nothing(apex),
            (false, None) => self.wildcard(name).map_or(Found::Foreign, Found::Records),
        }
    }

    /// What is there for all names below one of those above `name`.
    fn wildcard(&self, name: &str) -> Option<&BTreeSet<Data>> {
        let above = std::iter::successors(name.split_once('.'), |(_, above)| above.split_once('.'));
        above.into_iter().find_map(|(_, above)| self.names.get(&format!("*.{above}")))
    }

    /// Adds data. The names above exist too from then on, if only as such.
    fn insert(&mut self, name: &str, data: Data) {
        let name = name.to_ascii_lowercase();
        let mut above = name.as_str();
        while let Some((_, parent)) = above.split_once('.')
            && parent.len() > CLUSTER_DOMAIN.len()
            && name.ends_with(CLUSTER_DOMAIN)
        {
            self.names.entry(parent.to_owned()).or_default();
            above = parent;
        }
        self.names.entry(name).or_default().insert(data);
    }

    fn add_service(&mut self, service: &Service, slices: &[&EndpointSlice]) {
        let Some(spec) = &service.spec else { return };
        let base = format!("{}.{}.svc.{CLUSTER_DOMAIN}", name(&service.metadata), namespace(&service.metadata));
        if spec.type_.as_deref() == Some("ExternalName") {
            if let Some(target) = spec.external_name.as_deref().filter(|target| !target.is_empty()) {
                self.insert(&base, Data::Cname(normal(target)));
            }
            return;
        }
        if spec.cluster_ip.as_deref() == Some("None") {
            // It exists even while it has no endpoints.
            self.names.entry(base.to_ascii_lowercase()).or_default();
            slices.iter().for_each(|slice| self.add_headless(&base, slice));
            return;
        }
        let more = spec.cluster_ips.iter().flatten().filter(|ip| Some(*ip) != spec.cluster_ip.as_ref());
        let ips = spec.cluster_ip.iter().chain(more).filter_map(|ip| ip.parse::<IpAddr>().ok());
        let ips = Vec::from_iter(ips);
        if ips.is_empty() {
            return;
        }
        for ip in ips {
            self.insert(&base, Data::Address(ip));
            self.insert(&reverse(ip), Data::Ptr(base.clone()));
        }
        for port in spec.ports.iter().flatten() {
            if let (Some(name), Ok(number)) = (&port.name, u16::try_from(port.port)) {
                self.add_srv(name, endpoints::protocol(port), &base, number, &base);
            }
        }
    }

    fn add_headless(&mut self, base: &str, slice: &EndpointSlice) {
        let ready = |endpoint: &&Endpoint| endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
        for endpoint in slice.endpoints.iter().flatten().filter(ready) {
            for ip in endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok()) {
                let host = endpoint.hostname.clone().unwrap_or_else(|| dashed(ip));
                let host = format!("{host}.{base}");
                self.insert(base, Data::Address(ip));
                self.insert(&host, Data::Address(ip));
                self.insert(&reverse(ip), Data::Ptr(host.clone()));
                for port in slice.ports.iter().flatten() {
                    if let (Some(name), Some(Ok(number))) = (&port.name, port.port.map(u16::try_from)) {
                        self.add_srv(name, port.protocol.as_deref().unwrap_or("TCP"), base, number, &host);
                    }
                }
            }
        }
    }

    fn add_srv(&mut self, port: &str, protocol: &str, base: &str, number: u16, target: &str) {
        if !port.is_empty() {
            let data = Data::Srv { port: number, target: target.to_ascii_lowercase() };
            self.insert(&format!("_{port}._{protocol}.{base}"), data);
        }
    }
}

/// `10.244.0.2` is `10-244-0-2`.
fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}
