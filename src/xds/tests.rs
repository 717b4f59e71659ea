//! The server as a client sees it: real gRPC over TLS on loopback.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use super::service::ServeError;
use super::status::{Proxies, Totals};
use super::testing::*;
use super::{Registry, Server};
use crate::snapshot::ResourceType::{Cluster, Endpoints, Secret};
use crate::snapshot::{Change, Snapshot};

struct Rig {
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    secrets: Arc<TestSecrets>,
    registry: Arc<Registry>,
    channel: Channel,
    shutdown: CancellationToken,
    served: JoinHandle<Result<(), ServeError>>,
}

impl Rig {
    async fn start(changes: impl IntoIterator<Item = Change>) -> Self {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("TLS versions")
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .expect("a server configuration");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (snapshots, receiver) = watch::channel(Some(Arc::new(Snapshot::empty().with(changes))));
        let (secrets, shutdown) = (TestSecrets::new(), CancellationToken::new());
        let server = Server::new(receiver, Arc::new(TestTokens), secrets.clone(), shutdown.clone());
        let registry = server.registry();
        let served = tokio::spawn(server.serve_tls(listener, tls));
        let trust = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(certified.cert.pem()));
        let endpoint = Endpoint::from_shared(format!("https://localhost:{}", address.port())).expect("an address");
        let endpoint = endpoint.tls_config(trust.domain_name("localhost")).expect("a client configuration");
        Self { snapshots, secrets, registry, channel: endpoint.connect_lazy(), shutdown, served }
    }

    fn publish(&self, changes: impl IntoIterator<Item = Change>) -> u64 {
        let current = self.snapshots.borrow().clone().expect("a first snapshot");
        let next = Arc::new(current.with(changes));
        let number = next.number();
        self.snapshots.send_replace(Some(next));
        number
    }

    async fn delta(&self, first: DeltaDiscoveryRequest, authorization: Option<&str>) -> Result<Delta, Status> {
        let (sender, receiver) = mpsc::channel(8);
        sender.send(first).await.expect("an open channel");
        let call = authorized(ReceiverStream::new(receiver), authorization);
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel.clone());
        let responses = client.delta_aggregated_resources(call).await?.into_inner();
        Ok(Delta { requests: sender, responses })
    }

    /// A proxy of pod shop/NAME that has asked for the clusters, got them and acknowledged them.
    async fn pod(&self, name: &str) -> Delta {
        let first = DeltaDiscoveryRequest { node: node(&format!("{name}.shop")), ..request(Cluster.type_url(), &[]) };
        let mut proxy = self.delta(first, Some(&format!("Bearer good-{name}"))).await.expect("a stream");
        let response = proxy.next().await.expect("clusters");
        proxy.ack(&response).await;
        proxy
    }

    async fn stop(self) {
        self.shutdown.cancel();
        drop(self.channel);
        self.served.await.expect("no panic").expect("a clean end");
    }
}

struct Delta {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Delta {
    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        self.responses.message().await.map(|message| message.expect("the stream goes on"))
    }

    async fn ack(&self, response: &DeltaDiscoveryResponse) {
        let (type_url, response_nonce) = (response.type_url.clone(), response.nonce.clone());
        let request = DeltaDiscoveryRequest { type_url, response_nonce, ..Default::default() };
        self.requests.send(request).await.expect("an open stream");
    }

    async fn refuse(&self, response: &DeltaDiscoveryResponse, message: &str) {
        let (type_url, response_nonce) = (response.type_url.clone(), response.nonce.clone());
        let error = envoy_types::pb::google::rpc::Status { code: 13, message: message.into(), ..Default::default() };
        let request =
            DeltaDiscoveryRequest { type_url, response_nonce, error_detail: Some(error), ..Default::default() };
        self.requests.send(request).await.expect("an open stream");
    }
}

fn authorized<T>(message: T, authorization: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(value) = authorization {
        request.metadata_mut().insert("authorization", value.parse().expect("a header value"));
    }
    request
}

fn node(id: &str) -> Option<Node> {
    Some(Node { id: id.into(), ..Default::default() })
}

fn request(type_url: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: node("web.shop"),
        type_url: type_url.into(),
        resource_names_subscribe: names.iter().map(|name| name.to_string()).collect(),
        ..Default::default()
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

#[tokio::test]
async fn a_change_reaches_the_proxy_and_its_acknowledgement_the_registry() {
    let rig = Rig::start([eager(), put(Cluster, "a", 1), put(Endpoints, "a", 1)]).await;
    rig.secrets.set("web", "workload", 7);
    let mut proxy = rig.delta(request(Cluster.type_url(), &[]), Some("Bearer good")).await.expect("a stream");
    let response = proxy.next().await.expect("clusters");
    assert_eq!((names(&response), response.system_version_info.as_str()), (vec!["a"], "1"));
    assert_eq!(response.resources[0].version, resource(Cluster, "a", 1).version.to_string());
    let any = response.resources[0].resource.as_ref().expect("a body");
    assert_eq!((any.type_url.as_str(), any.value.as_slice()), (Cluster.type_url(), &[1u8][..]));
    assert_eq!(rig.registry.pending(), 1);
    proxy.ack(&response).await;
    rig.registry.acknowledged().wait_for(|done| done.is_some_and(|done| done.number == 1)).await.expect("a registry");
    assert!(rig.registry.converged(1) && !rig.registry.converged(2));

    let number = rig.publish([put(Cluster, "b", 1)]);
    let response = proxy.next().await.expect("the change");
    assert_eq!(names(&response), ["b"]);
    assert!(!rig.registry.converged(number));
    proxy.ack(&response).await;
    rig.registry.acknowledged().wait_for(|done| done.is_some_and(|d| d.number == number)).await.expect("a registry");
    assert_eq!(rig.registry.pending(), 0);

    proxy.requests.send(request(Secret.type_url(), &["workload"])).await.expect("an open stream");
    assert_eq!(names(&proxy.next().await.expect("the secret")), ["workload"]);
    rig.secrets.set("web", "workload", 8);
    let rotated = proxy.next().await.expect("the rotated secret");
    assert_eq!(rotated.resources[0].resource.as_ref().expect("a body").value, [8]);

    let proxies = rig.registry.proxies();
    assert_eq!(proxies.len(), 1);
    assert_eq!((proxies[0].proxy.to_string().as_str(), proxies[0].delta), ("web.shop", true));
    assert_eq!((proxies[0].types[&Cluster].resources, proxies[0].types[&Cluster].acknowledged), (2, 2));
    let registry = rig.registry.clone();
    rig.shutdown.cancel();
    assert_eq!(proxy.next().await.expect_err("draining").code(), Code::Unavailable);
    drop(proxy);
    rig.stop().await;
    assert_eq!(registry.proxies(), []);
    let clusters = Totals { sent: 2, resources_sent: 2, acknowledged: 2, refused: 0 };
    assert_eq!(registry.totals()[&Cluster], clusters, "the sums outlive the stream");
}

#[tokio::test]
async fn state_of_the_world_works_on_the_same_port() {
    let rig = Rig::start([eager(), put(Cluster, "a", 1)]).await;
    let first = DiscoveryRequest { node: node("web.shop"), type_url: Cluster.type_url().into(), ..Default::default() };
    let requests = futures::StreamExt::chain(tokio_stream::once(first), futures::stream::pending());
    let mut client = AggregatedDiscoveryServiceClient::new(rig.channel.clone());
    let call = authorized(requests, Some("Bearer good"));
    let mut responses = client.stream_aggregated_resources(call).await.expect("a stream").into_inner();
    let response: DiscoveryResponse = responses.message().await.expect("no error").expect("a response");
    assert_eq!((response.version_info.as_str(), response.resources.len()), ("1", 1));
    drop((responses, client));
    rig.stop().await;
}

#[tokio::test]
async fn rule_01_the_first_request_says_who_asks_and_is_remembered() {
    let rig = Rig::start([eager(), put(Cluster, "a", 1), put(Endpoints, "a", 1)]).await;
    let mut proxy = rig.delta(request(Cluster.type_url(), &[]), Some("Bearer good")).await.expect("a stream");
    assert_eq!(names(&proxy.next().await.expect("clusters")), ["a"]);
    let without = DeltaDiscoveryRequest { node: None, ..request(Endpoints.type_url(), &["a"]) };
    proxy.requests.send(without).await.expect("an open stream");
    assert_eq!(names(&proxy.next().await.expect("endpoints, without another node")), ["a"]);
    drop(proxy);
    for node in [None, node("")] {
        let delta = DeltaDiscoveryRequest { node: node.clone(), ..request(Cluster.type_url(), &[]) };
        let ended = match rig.delta(delta, Some("Bearer good")).await {
            Ok(mut stream) => stream.next().await.expect_err("no node"),
            Err(status) => status,
        };
        assert_eq!(ended.code(), Code::InvalidArgument, "{ended:?}");
        let first = DiscoveryRequest { node, type_url: Cluster.type_url().into(), ..Default::default() };
        let mut client = AggregatedDiscoveryServiceClient::new(rig.channel.clone());
        let requests = futures::StreamExt::chain(tokio_stream::once(first), futures::stream::pending());
        let ended = match client.stream_aggregated_resources(authorized(requests, Some("Bearer good"))).await {
            Ok(stream) => stream.into_inner().message().await.expect_err("no node"),
            Err(status) => status,
        };
        assert_eq!(ended.code(), Code::InvalidArgument, "{ended:?}");
    }
    rig.stop().await;
}

/// The rule book stays complete: every number has a test of its name.
#[test]
fn every_rule_is_a_test() {
    const RULES: usize = 42;
    fn read(folder: &std::path::Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                read(&path, text);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                *text += &std::fs::read_to_string(&path).expect("a source");
            }
        }
    }
    let mut text = String::new();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    ["src/xds", "tests"].iter().for_each(|folder| read(&root.join(folder), &mut text));
    let missing: Vec<_> = (1..=RULES).filter(|number| !text.contains(&format!("fn rule_{number:02}_"))).collect();
    assert_eq!(missing, [0; 0], "these rules have no test `rule_NN_…`");
}

#[tokio::test]
async fn bad_requests_end_as_intended() {
    let rig = Rig::start([eager()]).await;
    let good = || request(Cluster.type_url(), &[]);
    let with = |change: fn(&mut DeltaDiscoveryRequest)| {
        let mut request = good();
        change(&mut request);
        request
    };
    let many: Vec<String> = (0..70_000).map(|n| n.to_string()).collect();
    let long = "x".repeat(2_000);
    let rows: Vec<(&str, Option<&str>, DeltaDiscoveryRequest, Code, &str)> = vec![
        ("no token", None, good(), Code::Unauthenticated, "no token"),
        ("another scheme", Some("Basic d2ViOnB3"), good(), Code::Unauthenticated, "not of the form"),
        ("an empty token", Some("Bearer"), good(), Code::Unauthenticated, "not of the form"),
        ("a bad token", Some("Bearer bad"), good(), Code::Unauthenticated, "unknown key"),
        ("a token that cannot be checked", Some("Bearer later"), good(), Code::Unavailable, "not loaded"),
        ("no node", Some("Bearer good"), with(|r| r.node = None), Code::InvalidArgument, "node.id"),
        ("no node id", Some("Bearer good"), with(|r| r.node = node("")), Code::InvalidArgument, "node.id"),
        ("no proxy's id", Some("Bearer good"), with(|r| r.node = node("web")), Code::InvalidArgument, "POD.NAMESPACE"),
        (
            "a huge node id",
            Some("Bearer good"),
            with(|r| r.node = node(&"a.".repeat(5_000))),
            Code::InvalidArgument,
            "POD.NAMESPACE",
        ),
        (
            "another pod's id",
            Some("Bearer good"),
            with(|r| r.node = node("cart.shop")),
            Code::PermissionDenied,
            "the token is pod shop/web's",
        ),
        ("no type", Some("Bearer good"), with(|r| r.type_url.clear()), Code::InvalidArgument, "type_url"),
        ("a huge type", Some("Bearer good"), request(&long, &[]), Code::InvalidArgument, "type_url"),
        (
            "a huge name",
            Some("Bearer good"),
            request(Cluster.type_url(), &[&long]),
            Code::InvalidArgument,
            "2000 bytes",
        ),
        ("a huge name of an unknown type", Some("Bearer good"), request("x", &[&long]), Code::InvalidArgument, "2000"),
        (
            "a huge name that it claims to have",
            Some("Bearer good"),
            DeltaDiscoveryRequest {
                initial_resource_versions: HashMap::from([(long.clone(), String::new())]),
                ..good()
            },
            Code::InvalidArgument,
            "2000 bytes",
        ),
        (
            "too many names",
            Some("Bearer good"),
            DeltaDiscoveryRequest { resource_names_subscribe: many, ..good() },
            Code::ResourceExhausted,
            "more than",
        ),
        (
            "a request beyond the limit",
            Some("Bearer good"),
            DeltaDiscoveryRequest { response_nonce: "x".repeat(5 << 20), ..good() },
            Code::OutOfRange,
            "too large",
        ),
    ];
    for (row, token, first, code, message) in rows {
        let ended = match rig.delta(first, token).await {
            Ok(mut stream) => stream.next().await.expect_err(row),
            Err(status) => status,
        };
        assert_eq!(ended.code(), code, "{row}: {ended:?}");
        assert!(ended.message().contains(message), "{row}: {}", ended.message());
        assert!(!ended.message().contains("bad"), "{row}: a token is no part of a message");
    }
    rig.stop().await;
}

#[tokio::test]
async fn odd_requests_leave_the_stream_alive() {
    let rig = Rig::start([eager(), put(Cluster, "a", 1)]).await;
    let mut proxy =
        rig.delta(request("type.googleapis.com/some.Thing", &["x"]), Some("Bearer good")).await.expect("a stream");
    assert_eq!(proxy.next().await.expect("an answer").removed_resources, ["x"]);
    let error = envoy_types::pb::google::rpc::Status { code: 3, message: "of what?".into(), ..Default::default() };
    let odd = [
        DeltaDiscoveryRequest { response_nonce: "never sent".into(), ..request(Endpoints.type_url(), &[]) },
        DeltaDiscoveryRequest { error_detail: Some(error), ..request(Endpoints.type_url(), &[]) },
        DeltaDiscoveryRequest { node: node("cart.shop"), ..request(Endpoints.type_url(), &[]) },
        DeltaDiscoveryRequest {
            resource_names_unsubscribe: vec!["never asked".into(), "*".into()],
            ..request(Endpoints.type_url(), &[])
        },
    ];
    for request in odd {
        proxy.requests.send(request).await.expect("an open stream");
    }
    proxy.requests.send(request(Cluster.type_url(), &[])).await.expect("an open stream");
    assert_eq!(names(&proxy.next().await.expect("the clusters")), ["a"]);
    assert_eq!(rig.registry.proxies()[0].proxy, super::testing::proxy(), "a later node changes nothing");
    drop(proxy);
    rig.stop().await;
}

mod deliveries;
