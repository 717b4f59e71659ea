use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;
use crate::inspect::proto::inspection_client::InspectionClient;
use crate::inspect::proto::{
    GetConvergenceRequest, GetGraphRequest, ListDiagnosticsRequest, ListProxiesRequest, ListUpstreamsRequest,
};
use crate::inspect::{Edge, How, Origin, Used, metrics};
use crate::mesh::{Diagnostic, Kind, Location, ObjectRef, PodKey, WorkloadKey};
use crate::snapshot::{Resource, ResourceType};
use crate::xds::status::{Delivery as Delivered, HeldBackStatus, ProxyStatus, Refusal, Totals, TypeStatus};

struct Fixture;

impl Proxies for Fixture {
    fn proxies(&self) -> Vec<ProxyStatus> {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600 + seconds);
        let broken = Resource::new(ResourceType::Listener, "inbound", bytes::Bytes::from_static(b"x"), None);
        let refusal = Refusal {
            at: at(9),
            message: "no such filter".to_owned(),
            resources: vec![(broken.name.clone(), broken.version)],
        };
        let cds = TypeStatus { wildcard: true, sent: 3, acknowledged: 3, resources: 4, ..TypeStatus::default() };
        let lds = TypeStatus { sent: 2, refused: 1, refusal: Some(refusal), ..TypeStatus::default() };
        let proxy = |id: &str, types| ProxyStatus {
            proxy: id.parse().unwrap(),
            identity: "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap(),
            peer: "10.244.0.7:40000".to_owned(),
            envoy_version: "1.40.0".to_owned(),
            connected_at: at(0),
            delta: true,
            types,
        };
        let types = BTreeMap::from([(ResourceType::Cluster, cds), (ResourceType::Listener, lds)]);
        vec![proxy("teller-0.bank", BTreeMap::new()), proxy("cart-5d8f-abcde.shop", types)]
    }

    fn totals(&self) -> BTreeMap<ResourceType, Totals> {
        BTreeMap::from([
            (ResourceType::Cluster, Totals { sent: 2, resources_sent: 5, acknowledged: 1, refused: 0 }),
            (ResourceType::Listener, Totals { sent: 1, refused: 1, ..Totals::default() }),
        ])
    }

    fn deliveries(&self) -> Vec<Delivered> {
        Vec::new()
    }

    fn held_back(&self) -> Vec<HeldBackStatus> {
        Vec::new()
    }
}

impl Mesh for Fixture {
    fn diagnostics(&self) -> Vec<Diagnostic> {
        let object = ObjectRef { kind: Kind::Service, namespace: Some("shop".into()), name: "cart".into() };
        let location = Location { file: Arc::new("shop.yaml".into()), line: 12 };
        vec![Diagnostic::error("spec.ports", "has no port", "add one").about(object).at(location)]
    }

    fn workload(&self, pod: &PodKey) -> Option<WorkloadKey> {
        (pod.namespace.as_str() == "shop").then(|| WorkloadKey::new("shop", "cart"))
    }
}

impl Graph for Fixture {
    fn edges(&self) -> Vec<Edge> {
        let edge = |caller: WorkloadKey, called: &str, origin, since, pods| Edge {
            caller,
            destination: called.parse().unwrap(),
            origin,
            since,
            pods,
        };
        let since = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600));
        vec![
            edge(WorkloadKey::new("bank", "teller"), "vault.bank:443", Origin::Declared, None, 0),
            edge(WorkloadKey::new("shop", "web"), "cart.shop:80", Origin::Learned, since, 2),
        ]
    }

    fn used(&self, pod: &PodKey) -> Option<Vec<Used>> {
        let used = |cluster: &str, called: Option<&str>, how| Used {
            cluster: cluster.into(),
            destination: called.map(|called| called.parse().unwrap()),
            how,
        };
        let cart = used("10.96.0.5:80", Some("cart.shop:80"), How::Asked);
        (pod.namespace.as_str() == "shop").then(|| vec![cart, used("passthrough", None, How::Warm)])
    }
}

impl Delivery for Fixture {
    fn snapshot(&self) -> u64 {
        7
    }

    fn behind(&self) -> usize {
        1
    }
}

fn admin(readiness: Readiness, registry: Registry) -> Router {
    let fixture = Arc::new(Fixture);
    let (proxies, mesh, graph, delivery) = (fixture.clone(), fixture.clone(), fixture.clone(), fixture);
    Admin { proxies, mesh, graph, delivery, readiness, registry: Arc::new(registry) }.router()
}

async fn get_path(router: &Router, path: &str) -> (StatusCode, String) {
    let response = router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn readiness_is_refused_with_the_reason_until_it_opens() {
    let readiness = Readiness::default();
    let blocker = readiness.block("the source has not synced");
    let router = admin(readiness, Registry::default());
    assert_eq!(get_path(&router, "/healthz").await, (StatusCode::OK, "ok\n".to_owned()));
    let (status, body) = get_path(&router, "/readyz").await;
    assert_eq!((status, body.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "not ready: the source has not synced\n"));
    blocker.release();
    assert_eq!(get_path(&router, "/readyz").await.0, StatusCode::OK);
    assert_eq!(get_path(&router, "/other").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_graph_is_json() {
    let (status, body) = get_path(&admin(Readiness::default(), Registry::default()), "/graph").await;
    assert_eq!(status, StatusCode::OK);
    let teller = r#"{"caller":"bank/teller","destination":"vault.bank:443","origin":"declared","pods":0}"#;
    let web = r#"{"caller":"shop/web","destination":"cart.shop:80","origin":"learned","since":"2026-01-01T00:00:00Z","pods":2}"#;
    assert_eq!(body, format!(r#"{{"edges":[{teller},{web}]}}"#));
}

#[tokio::test]
async fn metrics_show_what_is_read_at_the_scrape() {
    let mut registry = Registry::default();
    metrics::register(&mut registry, Arc::new(Fixture), || 5);
    let router = admin(Readiness::default(), registry);
    let (status, text) = get_path(&router, "/metrics").await;
    assert_eq!(status, StatusCode::OK);
    for line in [
        r#"weft_xds_responses_total{type="cluster",event="sent"} 2"#,
        r#"weft_xds_responses_total{type="cluster",event="acknowledged"} 1"#,
        r#"weft_xds_responses_total{type="listener",event="refused"} 1"#,
        r#"weft_xds_resources_sent_total{type="cluster"} 5"#,
        "weft_xds_connected_proxies 2",
        "weft_xds_refusing_proxies 1",
        "weft_ca_certificates_minted_total 5",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let memory = text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes ")).unwrap();
    assert!(memory.parse::<u64>().unwrap() > 1 << 20, "{memory}");
}

#[tokio::test]
async fn the_inspection_api_answers_on_the_same_port_as_http() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let router = admin(Readiness::default(), Registry::default());
    let server = tokio::spawn(serve(listener, router, async { drop(stopped.await) }));
    let mut client = InspectionClient::connect(format!("http://{address}")).await.unwrap();

    let all = client.list_proxies(ListProxiesRequest::default()).await.unwrap().into_inner().proxies;
    assert_eq!(all.iter().map(|proxy| proxy.pod.as_str()).collect::<Vec<_>>(), ["teller-0", "cart-5d8f-abcde"]);
    let one = ListProxiesRequest { namespace: "shop".to_owned() };
    let one = client.list_proxies(one).await.unwrap().into_inner().proxies;
    insta::assert_debug_snapshot!(one);
    let diagnostics = client.list_diagnostics(ListDiagnosticsRequest {}).await.unwrap().into_inner().diagnostics;
    insta::assert_debug_snapshot!(diagnostics);
    let convergence = client.get_convergence(GetConvergenceRequest {}).await.unwrap().into_inner();
    let graph = GetGraphRequest { namespace: "shop".to_owned() };
    let edges = client.get_graph(graph).await.unwrap().into_inner().edges;
    assert_eq!(edges.iter().map(|edge| edge.destination.as_str()).collect::<Vec<_>>(), ["cart"]);
    let of = |namespace: &str| ListUpstreamsRequest { namespace: namespace.to_owned(), pod: "web-1".to_owned() };
    let upstreams = client.list_upstreams(of("shop")).await.unwrap().into_inner().upstreams;
    let found: Vec<_> = upstreams.iter().map(|u| (&*u.cluster, &*u.destination, u.warm)).collect();
    assert_eq!(found, [("10.96.0.5:80", "cart.shop:80", false), ("passthrough", "", true)]);
    assert_eq!(client.list_upstreams(of("bank")).await.unwrap_err().code(), tonic::Code::NotFound);
    let found = (convergence.snapshot, convergence.connected, convergence.behind, convergence.refusing);
    assert_eq!(found, (7, 2, 1, 1));

    drop(client);
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
}
