use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;
use crate::inspect::answers::{self, Generation, ReplicaAnswers};
use crate::inspect::proto::inspection_client::InspectionClient;
use crate::inspect::proto::{
    GetConvergenceRequest, GetGraphRequest, ListDeliveriesRequest, ListDenialsRequest, ListDiagnosticsRequest,
    ListHeldBackRequest, ListProxiesRequest, ListUpstreamsRequest,
};
use crate::inspect::{DeniedCalls, DeniedEdge, Edge, How, Origin, Sidecar, Used, metrics};
use crate::mesh::{Diagnostic, Kind, Location, ObjectRef, PodKey, ServiceAccountKey, ServiceKey, WorkloadKey};
use crate::snapshot::{Resource, ResourceType};
use crate::xds::status::{
    Answers, Delivery as Delivered, HeldBackStatus, ObjectDelivery, ProxyStatus, Refusal, ResourceRefusal, Totals,
    TypeStatus,
};

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

    fn deliveries(&self, wanted: &dyn Fn(Option<&ObjectRef>) -> bool) -> Vec<ObjectDelivery> {
        let held = held_back();
        let cart = held.origin.clone();
        let refusal = ResourceRefusal {
            proxy: held.by.clone(),
            at: held.at,
            kind: held.kind,
            name: held.name.clone(),
            version: held.version,
            message: held.message.clone(),
        };
        let answers = Answers { proxies: 37, sent: 37, refusals: vec![refusal], ..Answers::default() };
        let row = |object: Option<ObjectRef>, answers: Answers, held_back: Option<HeldBackStatus>| ObjectDelivery {
            object,
            changed_at: held.at,
            answers: answers.clone(),
            resources: vec![Delivered {
                kind: ResourceType::Cluster,
                name: "10.96.0.5:80".into(),
                proxy: None,
                version: None,
                changed_at: held.at,
                answers,
                held_back,
            }],
        };
        let took = Some(Duration::from_millis(400));
        let done = Answers { proxies: 37, sent: 37, acknowledged: 37, took, ..Answers::default() };
        let pod = ObjectRef { kind: Kind::Pod, namespace: Some("bank".into()), name: "teller-0".into() };
        let behind = vec!["teller-0.bank".parse().unwrap()];
        let pending = Answers { proxies: 1, sent: 1, pending: 1, pending_proxies: behind, ..Answers::default() };
        let refused = Answers { proxies: 2, sent: 2, acknowledged: 1, refusing: 1, ..Answers::default() };
        let ledger = cart.clone().map(|cart| ObjectRef { name: "ledger".into(), ..cart });
        let all = [
            row(None, done, None),
            row(cart, answers, Some(held.clone())),
            row(ledger, refused, None),
            row(Some(pod), pending, None),
        ];
        all.into_iter().filter(|row| wanted(row.object.as_ref())).collect()
    }

    fn held_back(&self) -> Vec<HeldBackStatus> {
        vec![held_back()]
    }
}

fn held_back() -> HeldBackStatus {
    let bad = Resource::new(ResourceType::Cluster, "10.96.0.5:80", bytes::Bytes::from_static(b"bad"), None);
    HeldBackStatus {
        kind: bad.kind,
        name: bad.name,
        version: bad.version,
        origin: Some(ObjectRef { kind: Kind::Service, namespace: Some("shop".into()), name: "cart".into() }),
        by: "cart-5d8f-abcde.shop".parse().unwrap(),
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600),
        message: "no such filter".to_owned(),
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

    fn sidecars(&self) -> Vec<Sidecar> {
        let sidecar = |pod: &str, ip: [u16; 8], version: Option<&str>, services: &[&str]| Sidecar {
            pod: PodKey::new("shop", pod),
            ip: IpAddr::from(ip).to_canonical(),
            workload: WorkloadKey::new("shop", "cart"),
            version: version.map(str::to_owned),
            account: ServiceAccountKey::new("shop", "cart-sa"),
            services: services.iter().map(|service| ServiceKey::new("shop", *service)).collect(),
        };
        vec![
            sidecar("cart-1", [0, 0, 0, 0, 0, 0xffff, 0x0af4, 7], Some("v1"), &["cart", "cart-canary"]),
            sidecar("cart-2", [0xfd00, 0, 0, 0, 0, 0, 0, 7], None, &[]),
        ]
    }
}

impl Audit for Fixture {
    fn denied(&self) -> Vec<(DeniedEdge, DeniedCalls)> {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        let denied = |namespace: &str, http| {
            let edge = DeniedEdge {
                callee: WorkloadKey::new(namespace, "cart"),
                account: ServiceAccountKey::new(namespace, "cart"),
                port: 8080,
                http,
                caller: "spiffe://cluster.local/ns/shop/sa/web".parse().ok(),
            };
            (edge, DeniedCalls { ended: 0, methods: BTreeSet::new(), first: at, last: at })
        };
        vec![denied("bank", false), denied("shop", true)]
    }

    fn uncounted(&self) -> u64 {
        3
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

impl Generations for Fixture {
    fn answers(&self, of: &[Generation]) -> Vec<Option<ReplicaAnswers>> {
        let known = |of: &Generation| {
            let whole = self.deliveries(&|object| object == Some(&of.object)).pop()?;
            Some(ReplicaAnswers { answers: whole.answers, changed: of.generation > 1 })
        };
        of.iter().map(known).collect()
    }
}

fn admin(readiness: Readiness, registry: Registry) -> Router {
    admin_with(Arc::new(Fixture), readiness, registry)
}

fn admin_with(generations: Arc<dyn Generations>, readiness: Readiness, registry: Registry) -> Router {
    let fixture = Arc::new(Fixture);
    let (proxies, mesh, graph) = (fixture.clone(), fixture.clone(), fixture.clone());
    let (delivery, audit) = (fixture.clone(), fixture);
    Admin { proxies, mesh, generations, graph, delivery, audit, readiness, registry: Arc::new(registry) }.router()
}

/// Serves an inspection API that tells of these generations; `None`: one that has no such call.
pub(crate) async fn serve_answers(generations: Option<Arc<dyn Generations>>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = match generations {
        Some(generations) => admin_with(generations, Readiness::default(), Registry::default()),
        None => health(Readiness::default()),
    };
    tokio::spawn(serve(listener, router, std::future::pending()));
    address
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
async fn prometheus_finds_every_sidecar() {
    let (status, body) = get_path(&admin(Readiness::default(), Registry::default()), "/sd/prometheus").await;
    assert_eq!(status, StatusCode::OK);
    let found: serde_json::Value = serde_json::from_str(&body).unwrap();
    let common = |pod: &str| {
        serde_json::json!({
            "__meta_weft_namespace": "shop", "__meta_weft_pod": pod,
            "__meta_weft_workload": "cart", "__meta_weft_account": "cart-sa",
        })
    };
    let (mut first, second) = (common("cart-1"), common("cart-2"));
    first["__meta_weft_version"] = "v1".into();
    first["__meta_weft_services"] = "cart,cart-canary".into();
    let expected = serde_json::json!([
        {"targets": ["10.244.0.7:15020"], "labels": first},
        {"targets": ["[fd00::7]:15020"], "labels": second},
    ]);
    assert_eq!(found, expected);
}

#[tokio::test]
async fn the_graph_is_json() {
    let (status, body) = get_path(&admin(Readiness::default(), Registry::default()), "/graph").await;
    assert_eq!(status, StatusCode::OK);
    let teller = r#"{"caller":"bank/teller","destination":"vault.bank:443","origin":"declared","pods":0}"#;
    let web = r#"{"caller":"shop/web","destination":"cart.shop:80","origin":"learned","since":"2026-01-01T00:00:00Z","pods":2}"#;
    assert_eq!(body, format!(r#"{{"edges":[{teller},{web}]}}"#) + "\n");
}

#[tokio::test]
async fn metrics_show_what_is_read_at_the_scrape() {
    let mut registry = Registry::default();
    metrics::register(&mut registry, Arc::new(Fixture), || 5);
    let took = prometheus_client::metrics::histogram::Histogram::new([0.1, 1.0]);
    took.observe(0.4);
    metrics::register_delivery(&mut registry, took, Arc::new(Fixture), Arc::new(Fixture));
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
        r#"weft_xds_delivery_seconds_bucket{le="0.1"} 0"#,
        r#"weft_xds_delivery_seconds_bucket{le="1.0"} 1"#,
        "weft_xds_delivery_seconds_sum 0.4",
        "weft_xds_held_back 1",
        "weft_xds_pending_proxies 1",
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
    let diagnostics =
        client.list_diagnostics(ListDiagnosticsRequest::default()).await.unwrap().into_inner().diagnostics;
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
    let cart = ListDeliveriesRequest { kind: "service".to_owned(), name: "cart".to_owned(), ..Default::default() };
    let deliveries = client.list_deliveries(cart).await.unwrap().into_inner();
    let json: serde_json::Value = serde_json::from_str(
        &get_path(&admin(Readiness::default(), Registry::default()), "/deliveries?kind=Service&name=cart").await.1,
    )
    .unwrap();
    assert_eq!(serde_json::to_value(deliveries).unwrap(), json, "one answer, two forms");
    let held_back = client.list_held_back(ListHeldBackRequest {}).await.unwrap().into_inner().held_back;
    assert_eq!((held_back.len(), held_back[0].message.as_str()), (1, "no such filter"));
    let of = |kind, namespace: &str, name: &str, generation| Generation {
        object: ObjectRef { kind, namespace: Some(namespace.into()), name: name.into() },
        uid: "u".into(),
        generation,
    };
    let of = [
        of(Kind::Service, "shop", "cart", 2),
        of(Kind::Pod, "bank", "teller-9", 1),
        of(Kind::Pod, "bank", "teller-0", 1),
    ];
    let mut request = answers::request(&of);
    request.objects[1].object.as_mut().unwrap().kind = "OfALaterVersion".to_owned();
    let told = client.list_answers(request).await.unwrap().into_inner().objects;
    let told: Vec<_> = told.into_iter().map(answers::read).collect();
    let known = |of: &Generation| Fixture.answers(std::slice::from_ref(of)).pop().unwrap();
    assert_eq!(told, [known(&of[0]), None, known(&of[2])], "in the order in which they were asked for");
    assert!(
        told[0].as_ref().unwrap().answers.refusals[0].message == "no such filter" && told[0].as_ref().unwrap().changed
    );
    let of = ListDenialsRequest { namespace: "shop".to_owned() };
    let denials = client.list_denials(of).await.unwrap().into_inner();
    let [ref denial] = denials.denials[..] else { panic!("{denials:?}") };
    assert_eq!((&*denial.workload, denial.http, denial.calls, denials.uncounted), ("cart", true, 1, 3));

    drop(client);
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn deliveries_and_what_is_held_back_are_json_too() {
    let router = admin(Readiness::default(), Registry::default());
    let (status, body) = get_path(&router, "/deliveries?namespace=shop&name=cart").await;
    assert_eq!(status, StatusCode::OK);
    insta::assert_snapshot!(body);
    insta::assert_snapshot!(get_path(&router, "/held-back").await.1);

    let states = async |path: &str| -> Vec<(String, String)> {
        let body: serde_json::Value = serde_json::from_str(&get_path(&router, path).await.1).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let row = |row: &serde_json::Value| (text(&row["object"]["name"]), text(&row["state"]));
        body["objects"].as_array().unwrap().iter().map(row).collect()
    };
    let row = |name: &str, state: &str| (name.to_owned(), state.to_owned());
    let unfinished = [row("cart", "held_back"), row("ledger", "refused"), row("teller-0", "pending")];
    assert_eq!(states("/deliveries?pending_only=true").await, unfinished);
    assert_eq!(states("/deliveries").await[0], row("", "delivered"));
    assert_eq!(states("/deliveries?kind=pod").await, [row("teller-0", "pending")]);
    assert_eq!(states("/deliveries?namespace=nowhere").await, []);
    assert_eq!(get_path(&router, "/deliveries?nmae=cart").await.0, StatusCode::BAD_REQUEST);
}
