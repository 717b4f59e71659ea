//! The objects of the mesh as the rest of Weft sees them: parsed, checked, and reduced to what is used.
//!
//! Each is made from its Kubernetes form by `source::convert`; two Kubernetes objects that differ only in what Weft
//! does not use are equal here, and such a change stops at [`super::World::apply`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use super::egress::{Egress, EgressHost, EgressMode, EgressPort, EgressProtocol};
use super::telemetry::{AccessLog, Sampling, Tracing};
use super::{Kind, Namespace, ObjectRef, PodKey, ServiceAccountKey, ServiceKey, TrustDomain, Upstream, WorkloadKey};

pub use super::telemetry::{AccessLogMode, LogFormat};
mod attachment;
mod fault;
mod traffic_policy;

pub use attachment::Attachment;
pub use fault::{Abort, Harm, Percentage, Requests, TrafficFault};
pub use traffic_policy::{
    Algorithm, ConnectionSettings, HashKey, OutlierDetection, RateLimit, RequestSettings, Retries, RetryBudget,
    TrafficPolicy, ZonePreference,
};

/// Labels of an object, or the pairs that a selector asks for.
pub type Labels = BTreeMap<String, String>;

/// One object of any kind that the model knows.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "each variant holds the kind of the same name")]
pub enum Object {
    Namespace(NamespaceObject),
    Pod(Pod),
    Service(Service),
    EndpointSlice(EndpointSlice),
    TrafficSplit(TrafficSplit),
    HttpRouteGroup(HttpRouteGroup),
    TcpRoute(TcpRoute),
    TrafficTarget(TrafficTarget),
    TrafficFault(TrafficFault),
    TrafficPolicy(Box<TrafficPolicy>),
    MeshConfig(MeshConfig),
    Egress(Egress),
}

impl Object {
    /// Which object this is.
    pub fn object_ref(&self) -> ObjectRef {
        let namespaced = |kind, namespace: &Namespace, name: &Arc<str>| ObjectRef {
            kind,
            namespace: Some(namespace.clone()),
            name: name.clone(),
        };
        match self {
            Self::Namespace(o) => ObjectRef { kind: Kind::Namespace, namespace: None, name: o.name.as_str().into() },
            Self::Pod(o) => namespaced(Kind::Pod, &o.key.namespace, &o.key.name),
            Self::Service(o) => namespaced(Kind::Service, &o.key.namespace, &o.key.name),
            Self::EndpointSlice(o) => namespaced(Kind::EndpointSlice, &o.service.namespace, &o.name),
            Self::TrafficSplit(o) => namespaced(Kind::TrafficSplit, &o.namespace, &o.name),
            Self::HttpRouteGroup(o) => namespaced(Kind::HTTPRouteGroup, &o.namespace, &o.name),
            Self::TcpRoute(o) => namespaced(Kind::TCPRoute, &o.namespace, &o.name),
            Self::TrafficTarget(o) => namespaced(Kind::TrafficTarget, &o.namespace, &o.name),
            Self::Egress(o) => namespaced(Kind::Egress, &o.namespace, &o.name),
            Self::TrafficFault(o) => namespaced(Kind::TrafficFault, &o.namespace, &o.name),
            Self::TrafficPolicy(o) => namespaced(Kind::TrafficPolicy, &o.namespace, &o.name),
            Self::MeshConfig(_) => ObjectRef { kind: Kind::MeshConfig, namespace: None, name: "default".into() },
        }
    }
}

/// A Namespace: what of its labels and annotations concerns the mesh.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceObject {
    /// Its name.
    pub name: Namespace,
    /// The label `weft.dev/inject` is `enabled`.
    pub inject: bool,
    /// The annotation `weft.dev/mtls`, which overrides `MeshConfig.spec.mtls.mode` for the namespace's workloads.
    pub mtls: Option<MtlsMode>,
    /// The annotation `weft.dev/authorization`, which overrides `MeshConfig.spec.authorization.mode`.
    pub authorization: Option<AuthorizationMode>,
    /// The annotation `weft.dev/egress`, which overrides `MeshConfig.spec.egress.mode`.
    pub egress: Option<EgressMode>,
    /// The annotation `weft.dev/trace-sampling`, which overrides `MeshConfig.spec.tracing.sampling`.
    pub sampling: Option<Sampling>,
    /// The annotation `weft.dev/access-log`, which overrides `MeshConfig.spec.accessLog.mode`.
    pub access_log: Option<AccessLogMode>,
}

/// What an inbound listener does with a connection that is not the mesh's mTLS.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum MtlsMode {
    /// Closed, except for the kubelet's probes.
    #[default]
    Strict,
    /// Served.
    Permissive,
}

/// How far TrafficTargets are enforced.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum AuthorizationMode {
    /// Every caller is allowed.
    #[default]
    Permissive,
    /// Every caller is allowed; what enforcement would deny is counted.
    Audit,
    /// Only what a TrafficTarget allows.
    Enforce,
}

/// What sidecars count of the calls that they carry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum MetricsMode {
    /// Golden metrics: with both ends of each call.
    #[default]
    Full,
    /// What Envoy counts by itself.
    Basic,
}

/// A Pod with an IP address. A Pod without one, or one that has finished, is no [`Object`] (the source deletes it).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// Its key.
    pub key: PodKey,
    /// `metadata.uid`, which tells it from an earlier pod of the same name; empty where nobody gives it one.
    pub uid: Arc<str>,
    /// `status.podIPs`, the primary one first; never empty.
    pub ips: Vec<IpAddr>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `spec.serviceAccountName`, `default` when absent.
    pub account: ServiceAccountKey,
    /// The workload it belongs to: the owner Deployment (through its ReplicaSet), StatefulSet, …; else the pod itself.
    pub workload: WorkloadKey,
    /// It has a sidecar: a container or init container named `weft-proxy`.
    pub meshed: bool,
    /// Named and numbered container ports.
    pub ports: Vec<ContainerPort>,
    /// Probes of its containers that come from the kubelet over the network.
    pub probes: BTreeSet<Probe>,
    /// It shares its node's network: no sidecar can stand before it.
    pub host_network: bool,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// What the annotation `weft.dev/upstreams` names, which is warm from the start.
    pub upstreams: BTreeSet<Upstream>,
    /// The annotation `weft.dev/trace-sampling`, which overrides the namespace's.
    pub sampling: Option<Sampling>,
    /// The annotation `weft.dev/access-log`, which overrides the namespace's.
    pub access_log: Option<AccessLogMode>,
    /// The annotation `weft.dev/exclude-inbound-ports`: ports at which it is called past its sidecar, so without mTLS.
    pub direct_ports: BTreeSet<u16>,
    /// What it says of mTLS for itself, which is more specific than what its namespace and the mesh say.
    pub mtls: PodMtls,
}

/// What a pod says of mTLS for itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PodMtls {
    /// The annotation `weft.dev/mtls`: for every port that `ports` does not name.
    pub mode: Option<MtlsMode>,
    /// The annotation `weft.dev/mtls-ports`, by pod port.
    pub ports: BTreeMap<u16, MtlsMode>,
}

impl Pod {
    /// The version that its labels state: `version`, else `app.kubernetes.io/version`.
    pub fn version(&self) -> Option<&str> {
        version(&self.labels)
    }
}

/// The version that a pod's labels state.
pub fn version(labels: &Labels) -> Option<&str> {
    let label = |name: &str| labels.get(name).filter(|value| !value.is_empty());
    label("version").or_else(|| label("app.kubernetes.io/version")).map(String::as_str)
}

/// The label of nodes, and of pods: Kubernetes copies it from 1.35 on.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The zone that a pod's labels state.
pub fn zone(labels: &Labels) -> Option<&str> {
    labels.get(ZONE_LABEL).filter(|value| !value.is_empty()).map(String::as_str)
}

/// One entry of `spec.containers[].ports`, protocol TCP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContainerPort {
    /// The port's name, empty when it has none.
    pub name: String,
    /// `containerPort`.
    pub port: u16,
}

/// A probe that arrives over the network, with its port resolved to a number.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Probe {
    /// `httpGet` with scheme HTTP: the port, and the path without its query.
    Http(u16, String),
    /// `tcpSocket`.
    Tcp(u16),
    /// `grpc`.
    Grpc(u16),
}

impl Probe {
    /// The path of the request that it makes; `None` if it makes none.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Http(_, path) => Some(path),
            Self::Tcp(_) => None,
            Self::Grpc(_) => Some(GRPC_HEALTH_CHECK),
        }
    }
}

/// The path of the gRPC health check that a `grpc` probe calls.
pub const GRPC_HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

/// A Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Its key.
    pub key: ServiceKey,
    /// `spec.clusterIPs`; empty for a headless Service.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.clusterIP` is `None`.
    pub headless: bool,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
    /// `spec.selector`; empty when its EndpointSlices are written by hand.
    pub selector: Labels,
    /// `spec.trafficDistribution`, or the annotation `service.kubernetes.io/topology-mode`.
    pub zone: ZonePreference,
}

/// A TCP port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Its name; empty when the Service has a single unnamed port.
    pub name: String,
    /// `port`.
    pub port: u16,
    /// `targetPort`, or `port` when absent.
    pub target: TargetPort,
    /// The protocol by product rules: `appProtocol`, else the prefix of the name, else a well-known server-first port
    /// (3306, 25, …) is TCP, else detected.
    pub protocol: Protocol,
}

/// Where a Service port leads on a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// The name of a container port, which may be another number on each pod.
    Name(String),
}

/// What is spoken on a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC.
    Grpc,
    /// Anything; never parsed.
    Tcp,
    /// Not declared: the first bytes decide.
    Detect,
}

impl Protocol {
    /// Ports of protocols in which the server speaks first: waiting for the client's first bytes would wait for ever.
    ///
    /// PostgreSQL (5432), MongoDB (27017), Redis (6379) and AMQP (5672) are not here: their clients speak first.
    pub const SERVER_FIRST: [u16; 15] = [
        21,    // FTP
        22,    // SSH
        23,    // Telnet
        25,    // SMTP
        110,   // POP3
        119,   // NNTP
        143,   // IMAP
        587,   // SMTP submission
        873,   // rsync
        2525,  // SMTP, by convention
        3306,  // MySQL
        4222,  // NATS: the server begins with INFO
        5900,  // VNC
        6600,  // MPD
        33060, // MySQL X, which begins with a notice
    ];
}

/// An EndpointSlice of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// Its name (its namespace is its Service's).
    pub name: Arc<str>,
    /// The label `kubernetes.io/service-name`.
    pub service: ServiceKey,
    /// `ports`, by the name of the Service's port (empty: the unnamed one).
    pub ports: BTreeMap<String, u16>,
    /// `endpoints`.
    pub endpoints: Vec<Endpoint>,
}

/// One entry of an EndpointSlice with one address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Its address.
    pub ip: IpAddr,
    /// `conditions.ready`; absent means ready.
    pub ready: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// `targetRef`, when it is a Pod.
    pub pod: Option<PodKey>,
    /// The zone whose callers it is for: `hints.forZones`, else `zone`.
    pub zone: Option<Arc<str>>,
}

/// An SMI TrafficSplit, whichever version it was written in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TrafficSplit {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: Arc<str>,
    /// `spec.service`, resolved to a Service of the split's own namespace.
    pub root: ServiceKey,
    /// `spec.backends` in their order. Weights are relative.
    pub backends: Vec<SplitBackend>,
    /// `spec.matches`: the names of HTTPRouteGroups in the split's namespace.
    pub matches: Vec<Arc<str>>,
    /// `metadata.creationTimestamp` in seconds since the epoch; 0 when absent. The oldest split of a root wins.
    pub created: i64,
}

/// One backend of a TrafficSplit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SplitBackend {
    /// The Service.
    pub service: ServiceKey,
    /// Its share, relative to the others'.
    pub weight: u32,
}

/// An SMI HTTPRouteGroup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpRouteGroup {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: Arc<str>,
    /// The matches; a request that any of them fits belongs to the group.
    pub matches: Vec<HttpMatch>,
}

/// One match of an HTTPRouteGroup: all that is present must fit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpMatch {
    /// Its name, by which TrafficTargets refer to it.
    pub name: Arc<str>,
    /// `pathRegex`: anchored at the beginning only, on the path without its query. Known to compile.
    pub path_regex: Option<String>,
    /// `methods`; empty means any (so does `*`, which the conversion removes).
    pub methods: BTreeSet<String>,
    /// `headers`: lower-case name, and a regex that the whole value must fit. Known to compile.
    pub headers: Vec<(String, String)>,
}

impl HttpMatch {
    /// Fits every request.
    pub fn any() -> Self {
        Self { name: "".into(), path_regex: None, methods: BTreeSet::new(), headers: Vec::new() }
    }
}

/// An SMI TCPRoute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TcpRoute {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: Arc<str>,
    /// `matches.ports`, pod ports; empty means every port.
    pub ports: BTreeSet<u16>,
}

/// An SMI TrafficTarget.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TrafficTarget {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: Arc<str>,
    /// `spec.destination`, a ServiceAccount in the target's own namespace.
    pub destination: ServiceAccountKey,
    /// The port that v1alpha1 and v1alpha2 can name: nothing else is opened.
    pub port: Option<u16>,
    /// `spec.sources`; empty allows nobody.
    pub sources: BTreeSet<ServiceAccountKey>,
    /// `spec.rules`.
    pub rules: Vec<TargetRule>,
}

/// One rule of a TrafficTarget; routes are looked up in the target's own namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TargetRule {
    /// An HTTPRouteGroup, with the names of the matches that count (`None`: all).
    Http(Arc<str>, Option<BTreeSet<Arc<str>>>),
    /// A TCPRoute.
    Tcp(Arc<str>),
}

/// The mesh's settings: MeshConfig `default`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MeshConfig {
    /// `spec.trustDomain`.
    pub trust_domain: TrustDomain,
    /// `spec.mtls.mode`.
    pub mtls: MtlsMode,
    /// `spec.authorization.mode`.
    pub authorization: AuthorizationMode,
    /// `spec.discovery.mode`.
    pub discovery: DiscoveryMode,
    /// `spec.metrics.mode`.
    pub metrics: MetricsMode,
    /// `spec.egress.mode`.
    pub egress: EgressMode,
    /// `spec.network.ranges`: the pod and Service ranges; destinations outside them pass through.
    pub ranges: Vec<IpNet>,
    /// `spec.tracing`; nothing is traced before a provider is named.
    pub tracing: Option<Tracing>,
    /// `spec.accessLog`.
    pub access_log: AccessLog,
}

/// How a sidecar comes to know a destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DiscoveryMode {
    /// When its workload first calls it.
    #[default]
    OnDemand,
    /// Everything from the start.
    Eager,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            mtls: MtlsMode::default(),
            authorization: AuthorizationMode::default(),
            discovery: DiscoveryMode::default(),
            metrics: MetricsMode::default(),
            egress: EgressMode::default(),
            ranges: vec![
                IpNet::V4(ipnet::Ipv4Net::new_assert([10, 96, 0, 0].into(), 12)),
                IpNet::V4(ipnet::Ipv4Net::new_assert([10, 244, 0, 0].into(), 16)),
            ],
            tracing: None,
            access_log: AccessLog::default(),
        }
    }
}
