//! What a stock Envoy refuses reaches a few proxies and no more, and nothing else waits for it.
//!
//! ```text
//!  the test ──snapshots──▶ the xDS server (in this process) ◀──TLS, a token── 8 Envoys on loopback
//!     └───────────────────────────── admin: what each has, what each refused ──────┘
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy,
};
use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, SocketAddress,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use envoy_types::pb::google::protobuf::{Any, BoolValue};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prost::Message;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft::mesh::{PodKey, ProxyId, ServiceAccountKey, SpiffeId, TrustDomain};
use weft::snapshot::{Change, Pushed, Resource, ResourceName, ResourceType, Snapshot, View};
use weft::xds::auth::{AuthError, Authenticator, ProxyIdentity, Secrets};
use weft::xds::status::Proxies;
use weft::xds::{Canary, Registry, Server};
use weft_e2e::until;

use crate::stock_envoy;

const PROXIES: usize = 8;
const TOKEN: &str = "the-token-of-this-test";
const PATIENCE: Duration = Duration::from_secs(60);
/// A busy machine is not taken for proxies that do not answer: what goes to all without an answer is not looked at here.
const CANARY_PATIENCE: Duration = Duration::from_secs(2 * 60);

#[test]
fn rule_34_refusals_reach_a_few_and_hold_up_nothing() {
    contained("default", "DELTA_GRPC");
    contained("default", "GRPC");
}

#[test]
fn rule_34_refusals_reach_a_few_and_hold_up_nothing_on_the_oldest_envoy() {
    contained("oldest", "DELTA_GRPC");
    contained("oldest", "GRPC");
}

fn contained(line: &str, api: &str) {
    println!("Envoy {line}, {api}");
    let mut fleet =
        Fleet::start(line, api, [cluster("shared", 1, true), endpoints("shared", 1001), listener("edge", 1, true)]);
    assert_eq!((fleet.having_cluster("shared", 1), fleet.having_listener("edge", 1)), (PROXIES, PROXIES));

    fleet.publish([cluster("first", 1, true), endpoints("first", 1002)]);
    assert_eq!((fleet.having_cluster("first", 1), fleet.refusals("cds")), (PROXIES, 0), "a good cluster reaches all");

    // A new cluster that is bad, with others that are good.
    let good = [cluster("second", 1, true), endpoints("second", 1003), endpoints("shared", 2001)];
    fleet.publish(good.into_iter().chain([cluster("new", 1, false)]));
    fleet.few_refused("cds");
    assert_eq!(fleet.held_back(), [("new".to_owned(), true)]);
    assert_eq!((fleet.having_cluster("new", 1), fleet.having_cluster("second", 1)), (0, PROXIES));
    assert_eq!(fleet.having_endpoint("shared", 2001), PROXIES);
    let refusals = fleet.refusals("cds");

    // It stays as it is while other things change.
    fleet.publish([cluster("third", 1, true), endpoints("third", 1004)]);
    assert_eq!((fleet.having_cluster("third", 1), fleet.refusals("cds")), (PROXIES, refusals), "it is not tried again");

    fleet.publish([cluster("new", 2, true), endpoints("new", 1005)]);
    assert_eq!(
        (fleet.having_cluster("new", 2), fleet.refusals("cds")),
        (PROXIES, refusals),
        "corrected, it is for all"
    );
    assert_eq!(fleet.held_back(), []);

    // A bad version of what all have, beside a good one.
    fleet.publish([cluster("shared", 2, false), cluster("first", 2, true), endpoints("shared", 3001)]);
    fleet.few_refused("cds");
    assert_eq!(fleet.held_back(), [("shared".to_owned(), true)]);
    assert_eq!((fleet.having_cluster("shared", 1), fleet.having_cluster("shared", 2)), (PROXIES, 0), "it works on");
    assert_eq!((fleet.having_cluster("first", 2), fleet.having_endpoint("shared", 3001)), (PROXIES, PROXIES));

    // Listeners: a bad version of what all have, and a new one that is bad.
    fleet.publish([listener("edge", 2, false), listener("good", 1, true), listener("bad", 1, false)]);
    fleet.few_refused("lds");
    assert_eq!(fleet.having_listener("edge", 1), PROXIES, "the last good version stays");
    assert_eq!((fleet.having_listener("good", 1), fleet.having_listener("bad", 1)), (PROXIES, 0));
    let held = fleet.held_back();
    assert_eq!(held.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["shared", "bad", "edge"], "{held:?}");
    let refusals = (fleet.refusals("cds"), fleet.refusals("lds"));
    fleet.publish([cluster("shared", 3, true), listener("edge", 3, true), listener("bad", 3, true)]);
    assert_eq!((fleet.refusals("cds"), fleet.refusals("lds")), refusals);
    assert_eq!((fleet.having_cluster("shared", 3), fleet.having_listener("edge", 3)), (PROXIES, PROXIES));
    assert_eq!((fleet.having_listener("bad", 3), fleet.held_back()), (PROXIES, vec![]));
}

fn ads() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource::default())),
        resource_api_version: ApiVersion::V3 as i32,
        ..Default::default()
    }
}

fn put(kind: ResourceType, name: &str, body: &impl Message, endpoints: Option<&str>) -> Change {
    let resource = Resource::new(kind, name, body.encode_to_vec().into(), None);
    Change::Put(Arc::new(match endpoints {
        Some(endpoints) => resource.with_endpoints(endpoints.into()),
        None => resource,
    }))
}

fn mark(name: &str, version: u32) -> String {
    format!("{name}-mark-{version}")
}

/// A cluster of this version. A bad one passes the schema's constraints, and Envoy refuses what it means.
fn cluster(name: &str, version: u32, good: bool) -> Change {
    let policy = if good { LbPolicy::RoundRobin } else { LbPolicy::ClusterProvided };
    let cluster = Cluster {
        name: name.into(),
        alt_stat_name: mark(name, version),
        lb_policy: policy as i32,
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(ads()), ..Default::default() }),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        ..Default::default()
    };
    put(ResourceType::Cluster, name, &cluster, Some(name))
}

fn address(host: &str, port: u16) -> Address {
    let port_specifier = Some(PortSpecifier::PortValue(port.into()));
    let socket = SocketAddress { address: host.into(), port_specifier, ..Default::default() };
    Address { address: Some(AddressKind::SocketAddress(socket)) }
}

fn endpoints(name: &str, port: u16) -> Change {
    let endpoint = Endpoint { address: Some(address("127.0.0.1", port)), ..Default::default() };
    let host_identifier = Some(HostIdentifier::Endpoint(endpoint));
    let lb_endpoints = vec![LbEndpoint { host_identifier, ..Default::default() }];
    let locality = LocalityLbEndpoints { lb_endpoints, ..Default::default() };
    let load = ClusterLoadAssignment { cluster_name: name.into(), endpoints: vec![locality], ..Default::default() };
    put(ResourceType::Endpoints, name, &load, None)
}

/// A listener of this version, which takes no port. A bad one is at an address that is none.
fn listener(name: &str, version: u32, good: bool) -> Change {
    let proxy = TcpProxy {
        stat_prefix: mark(name, version),
        cluster_specifier: Some(ClusterSpecifier::Cluster("shared".into())),
        ..Default::default()
    };
    let type_url = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy".to_owned();
    let config = Any { type_url, value: proxy.encode_to_vec() };
    let filter = Filter { name: "tcp".into(), config_type: Some(ConfigType::TypedConfig(config)) };
    let port = 1 + name.bytes().map(u16::from).sum::<u16>();
    let listener = Listener {
        name: name.into(),
        address: Some(address(if good { "127.0.0.1" } else { "nowhere" }, port)),
        bind_to_port: Some(BoolValue { value: false }),
        filter_chains: vec![FilterChain { filters: vec![filter], ..Default::default() }],
        ..Default::default()
    };
    put(ResourceType::Listener, name, &listener, None)
}

/// Whoever has the test's token.
struct Tokens;

impl Authenticator for Tokens {
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<ProxyIdentity, AuthError>> + Send + 'a>> {
        let spiffe = SpiffeId::new(TrustDomain::default(), ServiceAccountKey::new("shop", "web"));
        let known = (token == TOKEN).then_some(ProxyIdentity { spiffe, pod: None });
        Box::pin(std::future::ready(known.ok_or_else(|| AuthError::Invalid("it is not the test's".into()))))
    }
}

/// No secret is asked for.
#[derive(Debug)]
struct NoSecrets(watch::Sender<u64>);

impl Secrets for NoSecrets {
    fn secret(&self, _: &SpiffeId, _: &ProxyId, _: &ResourceName) -> Option<Arc<Resource>> {
        None
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

/// A server and the Envoys that it serves.
struct Fleet {
    runtime: Runtime,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    registry: Arc<Registry>,
    shutdown: CancellationToken,
    admin: Client<HttpConnector, Empty<Bytes>>,
    envoys: Vec<Envoy>,
    /// How often each had refused something before the last change, by kind.
    before: BTreeMap<&'static str, Vec<u64>>,
}

impl Fleet {
    fn start(line: &str, api: &str, changes: impl IntoIterator<Item = Change>) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
        let (key, certificate) = {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
            (made.signing_key.serialize_der(), made.cert)
        };
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("TLS versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls::pki_types::PrivateKeyDer::try_from(key).expect("a key"),
            )
            .expect("a server's configuration");
        let proxies = (0..PROXIES).map(|number| ProxyId(PodKey::new("shop", format!("web-{number}"))));
        let views = proxies.map(|proxy| Change::PutView(proxy, Arc::new(View { own: vec![], pushed: Pushed::All })));
        let first = Snapshot::empty().with(views.chain(changes));
        let (snapshots, receiver) = watch::channel(Some(Arc::new(first)));
        let shutdown = CancellationToken::new();
        let (registry, xds) = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("bound");
            let secrets = Arc::new(NoSecrets(watch::Sender::new(0)));
            let canary = Canary { patience: CANARY_PATIENCE, ..Canary::default() };
            let server = Server::new(receiver, Arc::new(Tokens), secrets, shutdown.clone()).canary(canary);
            let registry = server.registry();
            tokio::spawn(server.serve_tls(listener, tls));
            (registry, address)
        });
        let binary = stock_envoy(line);
        let root = certificate.pem();
        let envoys: Vec<_> = (0..PROXIES).map(|number| Envoy::start(&binary, number, api, xds, &root)).collect();
        let admin = Client::builder(TokioExecutor::new()).build_http();
        let before = BTreeMap::new();
        let fleet = Self { runtime, snapshots, registry, shutdown, admin, envoys, before };
        until("the Envoys", PATIENCE, || {
            let proxies = fleet.registry.proxies();
            let listening = |proxy: &&weft::xds::status::ProxyStatus| proxy.types.contains_key(&ResourceType::Listener);
            let ready = proxies.iter().filter(listening).count();
            let all = (ready, fleet.registry.pending()) == (PROXIES, 0);
            Ok(if all { Ok(()) } else { Err(format!("{ready} are here, {} behind", fleet.registry.pending())) })
        })
        .expect("all connect");
        fleet
    }

    /// Publishes changes and waits until every proxy has answered them.
    fn publish(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.before = ["cds", "lds"].into_iter().map(|kind| (kind, self.rejected(kind))).collect();
        let next = Arc::new(self.snapshots.borrow().clone().expect("a first snapshot").with(changes));
        let number = next.number();
        let mut acknowledged = self.registry.acknowledged();
        self.snapshots.send_replace(Some(next));
        let done = acknowledged.wait_for(|done| done.is_some_and(|done| done.number >= number));
        let started = Instant::now();
        let done = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, done).await.is_ok() });
        println!("snapshot {number} is answered after {:?}", started.elapsed());
        assert!(
            done,
            "{} proxies have not answered; held back: {:?}",
            self.registry.pending(),
            self.registry.held_back()
        );
        assert_eq!(self.waited_in_vain(), Vec::<String>::new(), "endpoints did not come while their clusters warmed");
    }

    /// The resources that an Envoy asked for and gave up waiting for.
    fn waited_in_vain(&self) -> Vec<String> {
        let stats = self.envoys.iter().map(|envoy| self.get(envoy, "/stats?filter=init_fetch_timeout"));
        let lines = stats.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
        let (waited, all): (Vec<_>, Vec<_>) = lines.partition(|line| !line.ends_with(": 0"));
        assert!(waited.len() + all.len() >= self.envoys.len(), "no Envoy counts this");
        waited
    }

    fn get(&self, envoy: &Envoy, path: &str) -> String {
        let uri = format!("http://{}{path}", envoy.admin).parse().expect("a URI");
        self.runtime.block_on(async {
            let response = self.admin.get(uri).await.expect("an answer");
            let body = response.into_body().collect().await.expect("a body").to_bytes();
            String::from_utf8(body.to_vec()).expect("text")
        })
    }

    /// How many have this in what a path of the admin interface shows.
    fn having(&self, path: &str, text: &str) -> usize {
        self.envoys.iter().filter(|envoy| self.get(envoy, path).contains(text)).count()
    }

    fn having_cluster(&self, name: &str, version: u32) -> usize {
        self.having("/config_dump?resource=dynamic_active_clusters", &format!("\"{}\"", mark(name, version)))
    }

    /// As it is active, and not as what was refused last.
    fn having_listener(&self, name: &str, version: u32) -> usize {
        let mark = mark(name, version);
        let has = |envoy: &&Envoy| {
            let dump: Value =
                serde_json::from_str(&self.get(envoy, "/config_dump?resource=dynamic_listeners")).expect("JSON");
            let mut listeners = dump["configs"].as_array().into_iter().flatten();
            listeners.any(|listener| listener["active_state"].to_string().contains(&mark))
        };
        self.envoys.iter().filter(has).count()
    }

    fn having_endpoint(&self, cluster: &str, port: u16) -> usize {
        self.having("/clusters", &format!("{cluster}::127.0.0.1:{port}::"))
    }

    /// How many responses each has refused.
    fn rejected(&self, kind: &str) -> Vec<u64> {
        let stat =
            if kind == "cds" { "cluster_manager.cds.update_rejected" } else { "listener_manager.lds.update_rejected" };
        let read = |envoy: &Envoy| {
            let text = self.get(envoy, &format!("/stats?filter={stat}"));
            let value = text.trim().strip_prefix(stat).and_then(|rest| rest.strip_prefix(": "));
            value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {stat} in {text:?}"))
        };
        self.envoys.iter().map(read).collect()
    }

    fn refusals(&self, kind: &str) -> u64 {
        self.rejected(kind).iter().sum()
    }

    /// The last change was refused, and by no more Envoys than those which try what is new.
    fn few_refused(&self, kind: &str) {
        let (before, now) = (&self.before[kind], self.rejected(kind));
        let who = now.iter().zip(before).filter(|(now, before)| now > before).count() as u64;
        assert!((1..=Canary::default().proxies).contains(&who), "{kind}: {before:?} to {now:?}");
    }

    /// The names of what is held back, each with whether it is told in Envoy's words and by whom it was refused.
    fn held_back(&self) -> Vec<(String, bool)> {
        let held = self.registry.held_back().into_iter().map(|held| {
            let words = held.message.contains("cluster provided LB") || held.message.contains("malformed IP address");
            let by = held.by.to_string();
            (held.name.to_string(), words && by.starts_with("web-") && by.ends_with(".shop"))
        });
        held.collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.envoys.clear();
        self.shutdown.cancel();
    }
}

/// A process, which ends with its value.
struct Envoy {
    process: Child,
    admin: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Envoy {
    fn start(binary: &Path, number: usize, api: &str, xds: SocketAddr, root: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (configuration, admin) = (directory.path().join("envoy.json"), directory.path().join("admin"));
        std::fs::write(&configuration, bootstrap(number, api, xds, root).to_string()).expect("written");
        let mut process = Command::new(binary)
            .arg("-c")
            .arg(&configuration)
            .arg("--admin-address-path")
            .arg(&admin)
            .args(["--concurrency", "1", "--disable-hot-restart", "-l", "off"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Envoy starts");
        let address = until("Envoy's admin address", PATIENCE, || {
            if let Some(status) = process.try_wait()? {
                anyhow::bail!("Envoy ended: {status}");
            }
            let text = std::fs::read_to_string(&admin).unwrap_or_default();
            Ok(text.trim().parse().map_err(|_| format!("{text:?}")))
        });
        let address = address.expect("it listens");
        Self { process, admin: address, _directory: directory }
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

fn bootstrap(number: usize, api: &str, xds: SocketAddr, root: &str) -> Value {
    const HTTP: &str = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    let ads = json!({"resource_api_version": "V3", "ads": {}});
    let token = json!({"key": "authorization", "value": format!("Bearer {TOKEN}")});
    let service = json!({"envoy_grpc": {"cluster_name": "xds"}, "initial_metadata": [token]});
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    json!({
        "node": {"id": format!("web-{number}.shop"), "cluster": "web"},
        "admin": {"address": socket(any_port)},
        "dynamic_resources": {
            "ads_config": {"api_type": api, "transport_api_version": "V3", "grpc_services": [service]},
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": {"clusters": [{
            "name": "xds",
            "type": "STATIC",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions":
                    {"@type": HTTP, "explicit_http_config": {"http2_protocol_options": {}}},
            },
            "load_assignment": {
                "cluster_name": "xds",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(xds)}}]}],
            },
            "transport_socket": {"name": "tls", "typed_config": {
                "@type": TLS,
                "sni": "localhost",
                "common_tls_context": {"validation_context": {"trusted_ca": {"inline_string": root}}},
            }},
        }]},
    })
}
