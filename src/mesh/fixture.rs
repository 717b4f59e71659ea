//! Builders of objects for tests: `service("shop/cart").ip("10.96.0.5").http(80).selects("app", "cart")`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::object::*;
use super::{Namespace, PodKey, ServiceAccountKey, ServiceKey, Upstream, WorkloadKey};

fn split_key(key: &str) -> (&str, &str) {
    key.split_once('/').expect("NAMESPACE/NAME")
}

pub(crate) fn service_key(key: &str) -> ServiceKey {
    let (namespace, name) = split_key(key);
    ServiceKey::new(namespace, name)
}

pub(crate) fn pod_key(key: &str) -> PodKey {
    let (namespace, name) = split_key(key);
    PodKey::new(namespace, name)
}

pub(crate) fn upstream(text: &str) -> Upstream {
    text.parse().expect("SERVICE.NAMESPACE")
}

pub(crate) fn account(key: &str) -> ServiceAccountKey {
    let (namespace, name) = split_key(key);
    ServiceAccountKey::new(namespace, name)
}

pub(crate) fn service(key: &str) -> Service {
    Service {
        key: service_key(key),
        cluster_ips: Vec::new(),
        headless: false,
        ports: Vec::new(),
        selector: Labels::new(),
        zone: ZonePreference::Any,
    }
}

impl Service {
    pub(crate) fn ip(mut self, ip: &str) -> Self {
        self.cluster_ips.push(ip.parse().expect("an address"));
        self
    }

    pub(crate) fn port(mut self, port: u16, target: u16, protocol: Protocol) -> Self {
        let name = format!("p{port}");
        self.ports.push(ServicePort { name, port, target: TargetPort::Number(target), protocol });
        self
    }

    pub(crate) fn http(self, port: u16) -> Self {
        self.port(port, 8080, Protocol::Http)
    }

    pub(crate) fn selects(mut self, name: &str, value: &str) -> Self {
        self.selector.insert(name.to_owned(), value.to_owned());
        self
    }
}

/// A meshed pod with the label `app` and the ServiceAccount of its name up to the last dash.
pub(crate) fn pod(key: &str, ip: &str) -> Pod {
    let (namespace, name) = split_key(key);
    let app = name.rsplit_once('-').map_or(name, |(app, _)| app);
    Pod {
        key: pod_key(key),
        uid: "".into(),
        ips: vec![ip.parse().expect("an address")],
        labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
        account: ServiceAccountKey::new(namespace, app),
        workload: WorkloadKey::new(namespace, app),
        meshed: true,
        ports: Vec::new(),
        probes: BTreeSet::new(),
        host_network: false,
        terminating: false,
        upstreams: BTreeSet::new(),
        sampling: None,
        access_log: None,
        direct_ports: BTreeSet::new(),
        mtls: PodMtls::default(),
    }
}

/// Two Services `a` and `b` of weights 90 and 10, say: `split("shop/s", "root", &[("a", 90), ("b", 10)])`.
pub(crate) fn split(key: &str, root: &str, backends: &[(&str, u32)]) -> TrafficSplit {
    let (namespace, name) = split_key(key);
    let backend =
        |(name, weight): &(&str, u32)| SplitBackend { service: ServiceKey::new(namespace, *name), weight: *weight };
    TrafficSplit {
        namespace: namespace.into(),
        name: name.into(),
        root: ServiceKey::new(namespace, root),
        backends: backends.iter().map(backend).collect(),
        matches: Vec::new(),
        created: 0,
    }
}

/// Matches named `m0`, `m1`, … with these path regexes.
pub(crate) fn route_group(key: &str, paths: &[&str]) -> HttpRouteGroup {
    let (namespace, name) = split_key(key);
    let match_ = |(number, path): (usize, &&str)| HttpMatch {
        name: format!("m{number}").into(),
        path_regex: Some((*path).to_owned()),
        methods: BTreeSet::new(),
        headers: Vec::new(),
    };
    HttpRouteGroup {
        namespace: namespace.into(),
        name: name.into(),
        matches: paths.iter().enumerate().map(match_).collect(),
    }
}

pub(crate) fn tcp_route(key: &str, ports: &[u16]) -> TcpRoute {
    let (namespace, name) = split_key(key);
    TcpRoute { namespace: namespace.into(), name: name.into(), ports: ports.iter().copied().collect() }
}

pub(crate) fn target(key: &str, destination: &str, sources: &[&str], rules: Vec<TargetRule>) -> TrafficTarget {
    let (namespace, name) = split_key(key);
    TrafficTarget {
        namespace: namespace.into(),
        name: name.into(),
        destination: ServiceAccountKey::new(namespace, destination),
        port: None,
        sources: sources.iter().map(|source| account(source)).collect(),
        rules,
    }
}

pub(crate) fn http_rule(group: &str) -> TargetRule {
    TargetRule::Http(group.into(), None)
}

pub(crate) fn http_rule_of(group: &str, matches: &[&str]) -> TargetRule {
    TargetRule::Http(group.into(), Some(matches.iter().map(|name| Arc::from(*name)).collect()))
}

pub(crate) fn tcp_rule(route: &str) -> TargetRule {
    TargetRule::Tcp(route.into())
}

/// A fault of 503 for every request to Services of its namespace.
pub(crate) fn fault(key: &str, services: &[&str]) -> TrafficFault {
    let (namespace, name) = split_key(key);
    let attach = |name: &&str| Attachment { service: ServiceKey::new(namespace, *name), port: None };
    TrafficFault {
        namespace: namespace.into(),
        name: name.into(),
        created: 0,
        targets: services.iter().map(attach).collect(),
        callers: None,
        requests: None,
        percentage: Percentage::ALL,
        harm: Harm { abort: Some(Abort::Http(503)), ..Harm::default() },
        expires_after: None,
    }
}

/// A policy that changes nothing, for Services of its namespace.
pub(crate) fn traffic_policy(key: &str, services: &[&str]) -> TrafficPolicy {
    let (namespace, name) = split_key(key);
    let attach = |name: &&str| Attachment { service: ServiceKey::new(namespace, *name), port: None };
    TrafficPolicy {
        namespace: namespace.into(),
        name: name.into(),
        created: 0,
        targets: services.iter().map(attach).collect(),
        requests: RequestSettings::default(),
        connections: ConnectionSettings::default(),
        rate: None,
    }
}

/// A slice of one endpoint a pod, all of them ready, on `ports` by the names that [`Service::port`] gives.
pub(crate) fn slice(key: &str, service: &str, ports: &[(u16, u16)], pods: &[&Pod]) -> EndpointSlice {
    let (namespace, name) = split_key(key);
    let endpoint = |pod: &&Pod| Endpoint {
        ip: pod.ips[0],
        ready: true,
        terminating: false,
        pod: Some(pod.key.clone()),
        zone: None,
    };
    EndpointSlice {
        name: name.into(),
        service: ServiceKey::new(namespace, service),
        ports: ports.iter().map(|(port, target)| (format!("p{port}"), *target)).collect(),
        endpoints: pods.iter().map(endpoint).collect(),
    }
}

pub(crate) fn namespace(name: &str) -> NamespaceObject {
    NamespaceObject {
        name: Namespace::from(name),
        inject: true,
        mtls: None,
        authorization: None,
        egress: None,
        sampling: None,
        access_log: None,
    }
}

/// An Egress that names nothing yet.
pub(crate) fn egress(key: &str) -> Egress {
    let (namespace, name) = split_key(key);
    Egress {
        namespace: namespace.into(),
        name: name.into(),
        hosts: BTreeSet::new(),
        addresses: BTreeSet::new(),
        ports: BTreeSet::new(),
        sources: None,
    }
}

impl Egress {
    pub(crate) fn host(mut self, host: &str) -> Self {
        self.hosts.insert(match host.strip_prefix("*.") {
            Some(name) => EgressHost::Below(name.into()),
            None => EgressHost::Exactly(host.into()),
        });
        self
    }

    pub(crate) fn address(mut self, range: &str) -> Self {
        self.addresses.insert(range.parse().expect("a range"));
        self
    }

    pub(crate) fn port(mut self, number: u16, protocol: Option<EgressProtocol>) -> Self {
        self.ports.insert(EgressPort { number, protocol });
        self
    }

    pub(crate) fn source(mut self, name: &str) -> Self {
        let account = ServiceAccountKey::new(self.namespace.clone(), name);
        self.sources.get_or_insert_default().insert(account);
        self
    }
}

pub(crate) fn enforcing() -> Object {
    Object::MeshConfig(MeshConfig { authorization: AuthorizationMode::Enforce, ..MeshConfig::default() })
}
