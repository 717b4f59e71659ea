use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::extract::RawQuery;
use axum::routing::get;
use clap::Parser;
use tonic::{Request, Response, Status};

use super::reach::Direct;
use super::*;
use crate::inspect::proto;
use crate::inspect::proto::inspection_server::{Inspection, InspectionServer};

const CONFIG_DUMP: &str = include_str!("testdata/config_dump.json");
const CLUSTERS: &str = include_str!("testdata/clusters.json");
const STATS: &str = include_str!("testdata/stats.json");

/// 2026-11-22T18:00:00Z, soon after the answers of Envoy 1.40.0 in testdata/ were recorded.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_370_400)
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn args(words: &str) -> Args {
    Cli::try_parse_from(["proxy"].into_iter().chain(words.split(' '))).unwrap().args
}

struct ControlPlane;

#[tonic::async_trait]
impl Inspection for ControlPlane {
    async fn list_proxies(
        &self,
        _: Request<proto::ListProxiesRequest>,
    ) -> Result<Response<proto::ListProxiesResponse>, Status> {
        let ago = |seconds| Some((now() - Duration::from_secs(seconds)).into());
        let clusters = proto::TypeStatus {
            r#type: proto::ResourceType::Cluster.into(),
            wildcard: true,
            subscribed: 2,
            resources: 5,
            sent: 4,
            acknowledged: 4,
            resources_sent: 6,
            last_sent: ago(12),
            last_acknowledged: ago(12),
            ..Default::default()
        };
        let endpoints = proto::TypeStatus {
            r#type: proto::ResourceType::Endpoints.into(),
            subscribed: 3,
            resources: 3,
            sent: 9,
            acknowledged: 8,
            last_sent: ago(1),
            last_acknowledged: ago(300),
            pending: true,
            ..Default::default()
        };
        let resource = proto::RefusedResource { name: "inbound".into(), version: "00000000000000a2".into() };
        let refusal = proto::Refusal {
            at: ago(65),
            message: "malformed IP address: not-an-address".into(),
            resources: vec![resource],
        };
        let listeners = proto::TypeStatus {
            r#type: proto::ResourceType::Listener.into(),
            wildcard: true,
            resources: 2,
            sent: 2,
            acknowledged: 1,
            refused: 1,
            last_sent: ago(65),
            refusal: Some(refusal),
            ..Default::default()
        };
        let secrets =
            proto::TypeStatus { r#type: proto::ResourceType::Secret.into(), subscribed: 2, ..Default::default() };
        let proxy = |namespace: &str, pod: &str, workload: &str, types| proto::Proxy {
            namespace: namespace.into(),
            pod: pod.into(),
            workload: workload.into(),
            identity: format!("spiffe://cluster.local/ns/{namespace}/sa/{workload}"),
            peer: "10.244.0.7:40000".into(),
            envoy_version: "1.40.0".into(),
            connected_at: ago(7380),
            delta: true,
            types,
        };
        let proxies = vec![
            proxy("shop", "cart-5d8f-abcde", "cart", vec![clusters, endpoints, listeners, secrets]),
            proxy("bank", "teller-0", "teller", vec![clusters_only()]),
        ];
        Ok(Response::new(proto::ListProxiesResponse { proxies }))
    }

    async fn list_diagnostics(
        &self,
        _: Request<proto::ListDiagnosticsRequest>,
    ) -> Result<Response<proto::ListDiagnosticsResponse>, Status> {
        Err(Status::unimplemented("not asked by these commands"))
    }

    async fn get_convergence(
        &self,
        _: Request<proto::GetConvergenceRequest>,
    ) -> Result<Response<proto::Convergence>, Status> {
        Ok(Response::new(proto::Convergence { snapshot: 7, connected: 2, behind: 1, refusing: 1 }))
    }

    async fn list_deliveries(
        &self,
        request: Request<proto::ListDeliveriesRequest>,
    ) -> Result<Response<proto::ListDeliveriesResponse>, Status> {
        assert!(request.into_inner().pending_only, "only what is unfinished is shown");
        let changed_at = Some((now() - Duration::from_secs(90)).into());
        let pod = proto::PodName { namespace: "shop".into(), pod: "cart-5d8f-abcde".into() };
        let answers = proto::Answers {
            proxies: 2,
            sent: 2,
            acknowledged: 1,
            pending: 1,
            pending_proxies: vec![pod],
            ..Default::default()
        };
        let answers = Some(answers);
        let resource = proto::ResourceDelivery { changed_at, answers: answers.clone(), ..Default::default() };
        let object = proto::ObjectDelivery {
            object: Some(cart()),
            changed_at,
            answers,
            resources: vec![resource],
            ..Default::default()
        };
        Ok(Response::new(proto::ListDeliveriesResponse { objects: vec![object] }))
    }

    async fn list_answers(
        &self,
        _: Request<proto::ListAnswersRequest>,
    ) -> Result<Response<proto::ListAnswersResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn list_held_back(
        &self,
        _: Request<proto::ListHeldBackRequest>,
    ) -> Result<Response<proto::ListHeldBackResponse>, Status> {
        let held = proto::HeldBack {
            object: Some(cart()),
            r#type: proto::ResourceType::Route.into(),
            name: "10.96.0.5:80".into(),
            version: "00000000000000b1".into(),
            proxy: Some(proto::PodName { namespace: "bank".into(), pod: "teller-0".into() }),
            at: Some((now() - Duration::from_secs(65)).into()),
            message: "regex: missing ]".into(),
        };
        Ok(Response::new(proto::ListHeldBackResponse { held_back: vec![held] }))
    }

    async fn get_graph(&self, _: Request<proto::GetGraphRequest>) -> Result<Response<proto::Graph>, Status> {
        Err(Status::unimplemented("no command of `weft proxy` asks for it"))
    }

    async fn list_denials(
        &self,
        _: Request<proto::ListDenialsRequest>,
    ) -> Result<Response<proto::ListDenialsResponse>, Status> {
        Err(Status::unimplemented("no command of `weft proxy` asks for it"))
    }

    async fn list_upstreams(
        &self,
        request: Request<proto::ListUpstreamsRequest>,
    ) -> Result<Response<proto::ListUpstreamsResponse>, Status> {
        let proto::ListUpstreamsRequest { namespace, pod } = request.into_inner();
        if (&*namespace, &*pod) != ("shop", "cart-5d8f-abcde") {
            return Err(Status::not_found(format!("the proxy of pod {namespace}/{pod} is not connected")));
        }
        let upstream = |cluster: &str, destination: &str, warm| proto::Upstream {
            cluster: cluster.to_owned(),
            destination: destination.to_owned(),
            warm,
        };
        let upstreams = vec![upstream("10.96.0.5:80", "mail.shop:80", false), upstream("passthrough", "", true)];
        Ok(Response::new(proto::ListUpstreamsResponse { upstreams }))
    }
}

fn cart() -> proto::ObjectName {
    proto::ObjectName { kind: "Service".into(), namespace: "shop".into(), name: "cart".into() }
}

/// A proxy that was told nothing new since it connected.
fn clusters_only() -> proto::TypeStatus {
    proto::TypeStatus {
        r#type: proto::ResourceType::Cluster.into(),
        wildcard: true,
        resources: 3,
        ..Default::default()
    }
}

/// A control plane and an Envoy, each on a port of its own; like the playground, it leads to both.
struct World {
    admin: String,
    server: String,
    pods: Option<Vec<KnownPod>>,
}

impl World {
    async fn start(pods: Option<Vec<KnownPod>>) -> Self {
        let stats = async |RawQuery(query): RawQuery| match query.as_deref() {
            Some("format=json&usedonly&filter=%28bad") => Err((http::StatusCode::BAD_REQUEST, "Invalid re2 regex")),
            _ => Ok(STATS),
        };
        let envoy = Router::new()
            .route("/config_dump", get(async || CONFIG_DUMP))
            .route("/clusters", get(async || CLUSTERS))
            .route("/stats", get(stats));
        let control_plane =
            Router::new().route_service("/weft.inspect.v1.Inspection/{method}", InspectionServer::new(ControlPlane));
        Self { admin: serve(envoy).await, server: serve(control_plane).await, pods }
    }
}

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async { axum::serve(listener, router).await });
    address
}

impl Reach for World {
    fn connect(&self, target: &Target) -> std::io::Result<TcpStream> {
        match target {
            Target::Admin(pod) if *pod == PodKey::new("shop", "cart-5d8f-abcde") => TcpStream::connect(&self.admin),
            Target::Admin(_) => Err(std::io::ErrorKind::ConnectionRefused.into()),
            Target::Address(address) => TcpStream::connect(address),
            Target::ControlPlane | Target::Replica(_) => TcpStream::connect(&self.server),
        }
    }

    fn pods(&self) -> std::io::Result<Option<Vec<KnownPod>>> {
        Ok(self.pods.clone())
    }
}

async fn output(words: &str) -> String {
    let world = World::start(None).await;
    execute(&args(words), &world, now()).await.unwrap_or_else(|error| panic!("{words}: {error:#}")).0
}

async fn error(words: &str) -> String {
    let world = World::start(None).await;
    format!("{:#}", execute(&args(words), &world, now()).await.map(drop).unwrap_err())
}

#[tokio::test]
async fn status_shows_a_row_for_each_proxy_and_fails_while_one_refuses() {
    let world = World::start(None).await;
    let (text, code) = execute(&args("status"), &world, now()).await.unwrap();
    assert_eq!(code, ExitCode::FAILURE);
    insta::assert_snapshot!(text);
    let (text, code) = execute(&args("status -n bank"), &world, now()).await.unwrap();
    assert_eq!(code, ExitCode::FAILURE, "something is held back, which concerns all");
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn status_of_one_proxy_shows_every_type() {
    insta::assert_snapshot!(output("status deploy/cart").await);
    insta::assert_snapshot!(output("status deploy/cart -o json").await);
}

#[tokio::test]
async fn config_is_a_table_for_each_type() {
    insta::assert_snapshot!(output("config cart").await);
}

#[tokio::test]
async fn config_can_be_narrowed_and_shown_as_envoy_has_it() {
    insta::assert_snapshot!(output("config cart --type clusters --resource 10.96.0.11:80 -o yaml").await);
    assert!(error("config cart --type routes --resource nothing").await.contains("contains `nothing`"));
}

#[tokio::test]
async fn clusters_show_health_requests_and_failures() {
    insta::assert_snapshot!(output("clusters cart").await);
}

#[tokio::test]
async fn stats_show_values() {
    insta::assert_snapshot!(output("stats cart").await);
    let bad = error("stats cart --filter (bad").await;
    assert_eq!(
        bad,
        "the proxy of pod shop/cart-5d8f-abcde answered GET /stats?format=json&usedonly&filter=%28bad with 400 Bad \
         Request: Invalid re2 regex"
    );
}

#[tokio::test]
async fn certificates_show_identity_issuer_and_validity() {
    insta::assert_snapshot!(output("certs cart").await);
    insta::assert_snapshot!(output("certs cart -o json").await);
}

#[test]
fn a_private_key_that_envoy_did_not_redact_is_not_shown() {
    let secret = "SECRET-KEY-MATERIAL";
    let dump = CONFIG_DUMP.replace("[redacted]", secret);
    assert!(dump.contains(secret));
    let entries = config_dump::entries(&serde_json::from_str(&dump).unwrap());
    for format in [Format::Table, Format::Json, Format::Yaml] {
        let text = output::render(format, &entries, |entries| config::tables(entries)).unwrap();
        assert!(!text.contains(secret), "{text}");
    }
    assert!(entries.iter().any(|entry| entry.resource.pointer("/tls_certificate/private_key").is_some()));
}

#[tokio::test]
async fn a_pod_is_looked_up_where_its_way_is_known() {
    let key = PodKey::new("test", "lonely-0");
    let world = World::start(Some(vec![KnownPod { key, workload: None }])).await;
    let error = execute(&args("clusters cart"), &world, now()).await.unwrap_err();
    assert_eq!(error.to_string(), "no proxy fits `cart`; there are test/lonely-0");
    let error = execute(&args("clusters lonely"), &world, now()).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot connect to the proxy of pod test/lonely-0");
}

#[tokio::test]
async fn an_address_leads_to_an_admin_interface_without_a_pod() {
    let world = World::start(None).await;
    let words = format!("--admin {} clusters", world.admin);
    let (text, _) = execute(&args(&words), &world, now()).await.unwrap();
    assert!(text.contains("127.0.0.1:19080"), "{text}");
    assert_eq!(error("clusters").await, "which proxy? Name a POD, or give --admin HOST:PORT");
    let direct = Direct { server: None, admin: None };
    let error = execute(&args("status"), &direct, now()).await.unwrap_err();
    assert_eq!(format!("{error:#}"), "cannot connect to the control plane: no way is known; give --server HOST:PORT");
}

#[tokio::test]
async fn something_else_on_the_port_is_a_clear_error() {
    let other = serve(Router::new().fallback(async || "hello")).await;
    let direct: Arc<dyn Reach> = Arc::new(Direct { server: None, admin: Some(other.clone()) });
    let error = execute(&args(&format!("--admin {other} clusters")), &*direct, now()).await.unwrap_err();
    let expected = format!(
        "the proxy at {other} answered /clusters?format=json with what is not JSON; is it Envoy's admin interface?"
    );
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_dump_of_an_unexpected_form_is_passed_over() {
    for text in [
        "null",
        "[]",
        "{}",
        r#"{"configs": 3}"#,
        r#"{"configs": [null, 1, "x", [], {"@type": 1}]}"#,
        r#"{"configs": [{"@type": "a.ClustersConfigDump", "static_clusters": [null, {"cluster": null}, {"cluster": {}}]}]}"#,
        r#"{"configs": [{"@type": "a.ListenersConfigDump", "dynamic_listeners": [1, {"active_state": []}]}]}"#,
        r#"{"configs": [{"@type": "a.ListenersConfigDump", "static_listeners": [{"listener": {"filter_chains": [1]}}]}]}"#,
        r#"{"cluster_statuses": [1, {"host_statuses": [null, {}]}], "stats": [1, {"histograms": 1}]}"#,
    ] {
        let value = serde_json::from_str(text).unwrap();
        let entries = config_dump::entries(&value);
        config::tables(&entries);
        certs::table(&certs::read(&entries, now()));
        clusters::table(&clusters::endpoints(&value));
        stats::table(&stats::read(&value));
    }
}

#[test]
fn histograms_show_their_quantiles() {
    let text = r#"{"stats": [{"histograms": {"supported_quantiles": [0,25,50,75,90,95,99,99.5,99.9,100],
        "computed_quantiles": [{"name": "cluster.a.upstream_rq_time", "values": [{"cumulative": 0, "interval": null},
        {"cumulative": 1, "interval": null}, {"cumulative": 2.05}, {"cumulative": 3}, {"cumulative": 4.0},
        {"cumulative": 5}, {"cumulative": 6}, {"cumulative": 7}, {"cumulative": 8}, {"cumulative": 9}]}]}}]}"#;
    let table = stats::table(&stats::read(&serde_json::from_str(text).unwrap()));
    assert!(table.ends_with("\n2.0  4.0  6.0  9.0  cluster.a.upstream_rq_time\n"), "{table}");
}

#[tokio::test]
async fn upstreams_are_told_with_how_they_are_known() {
    assert_eq!(
        output("upstreams cart -n shop").await,
        "CLUSTER       DESTINATION   KNOWN BY\n10.96.0.5:80  mail.shop:80  call\npassthrough   -             push\n"
    );
    let json = output("upstreams cart -n shop -o json").await;
    assert!(json.contains(r#""destination": "mail.shop:80""#), "{json}");
}
