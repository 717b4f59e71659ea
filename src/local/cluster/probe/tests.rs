//! Real probes against servers on loopback, with the clock paused where time matters.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::checks::ask;
use super::*;
use crate::mesh::PodKey;

fn container(value: serde_json::Value) -> Container {
    serde_json::from_value(value).expect("a container")
}

/// Dials loopback; commands exit with `code`.
fn reach(code: Arc<AtomicI32>) -> Reach {
    Reach {
        dial: Arc::new(|_, port| Box::pin(TcpStream::connect((Ipv4Addr::LOCALHOST, port)))),
        exec: Arc::new(move |_| {
            let code = code.load(Ordering::SeqCst);
            Box::pin(async move { Ok(code) })
        }),
    }
}

fn probe(check: Check) -> Probe {
    let second = Duration::from_secs(1);
    let initial_delay = Duration::ZERO;
    Probe { check, initial_delay, period: 10 * second, timeout: second, failure_threshold: 3, success_threshold: 1 }
}

fn exec() -> Probe {
    probe(Check::Exec { argv: vec!["true".to_owned()] })
}

#[test]
fn declared_probes_get_their_defaults_and_ports() {
    let mut diagnostics = Vec::new();
    let probes = of_container(
        &container(json!({
            "name": "app", "ports": [{"name": "http", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"port": "http", "path": "ready"}, "periodSeconds": 0},
            "livenessProbe": {"grpc": {"port": 9000}, "failureThreshold": 5},
            "startupProbe": {"tcpSocket": {"port": "nobody"}},
        })),
        "spec.containers[0]",
        &mut diagnostics,
    )
    .expect("probes");
    let http = Check::Http { port: 8080, path: "/ready".into(), headers: vec![] };
    assert_eq!(probes.readiness, Some(Probe { period: Duration::from_secs(1), ..probe(http) }));
    let grpc = Check::Grpc { port: 9000, service: String::new() };
    assert_eq!(probes.liveness, Some(Probe { failure_threshold: 5, ..probe(grpc) }));
    assert_eq!(probes.startup, None);
    let [warning] = &diagnostics[..] else { panic!("{diagnostics:?}") };
    assert_eq!(warning.field, "spec.containers[0].startupProbe");
    assert!(warning.reason.contains("`nobody`"), "{warning}");
}

async fn asked(check: Check) -> Result<(), String> {
    let pod = PodKey::new("shop", "cart");
    let reach = reach(Arc::new(AtomicI32::new(7)));
    let answer = ask(&check, (&pod, "app"), Ipv4Addr::LOCALHOST, Duration::from_secs(5), &reach).await;
    answer.map_err(|failure| failure.to_string())
}

#[tokio::test]
async fn http_passes_by_its_status() {
    for (status, passes) in [("200 OK", true), ("302 Found", true), ("404 Not Found", false), ("503 X", false)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("bound").port();
        let server = async {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let mut request = vec![0; 1024];
            let length = stream.read(&mut request).await.expect("a request");
            stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await.expect("sent");
            String::from_utf8_lossy(&request[..length]).into_owned()
        };
        let headers = vec![("X-Probe".to_owned(), "1".to_owned())];
        let (answer, request) = tokio::join!(asked(Check::Http { port, path: "/ready?now".into(), headers }), server);
        assert_eq!(answer.is_ok(), passes, "{status}: {answer:?}");
        assert!(request.starts_with("GET /ready?now HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("user-agent: kube-probe/") && request.contains("x-probe: 1"), "{request}");
    }
}

#[tokio::test]
async fn tcp_and_exec() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("bound").port();
    assert_eq!(asked(Check::Tcp { port }).await, Ok(()));
    drop(listener);
    assert!(asked(Check::Tcp { port }).await.is_err());
    assert_eq!(asked(Check::Exec { argv: vec![] }).await, Err("exit code 7".to_owned()));
}

#[tokio::test]
async fn grpc_health_of_a_real_server() {
    use super::checks::{HealthCheckRequest, HealthCheckResponse};
    #[derive(Clone)]
    struct Health;
    impl tonic::server::UnaryService<HealthCheckRequest> for Health {
        type Response = HealthCheckResponse;
        type Future = std::future::Ready<Result<tonic::Response<HealthCheckResponse>, tonic::Status>>;
        fn call(&mut self, request: tonic::Request<HealthCheckRequest>) -> Self::Future {
            let answer = match request.into_inner().service.as_str() {
                "" => Ok(tonic::Response::new(HealthCheckResponse { status: 1 })),
                "down" => Ok(tonic::Response::new(HealthCheckResponse { status: 2 })),
                _ => Err(tonic::Status::not_found("unknown service")),
            };
            std::future::ready(answer)
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("bound").port();
    let health = axum::routing::post(|request: axum::extract::Request| async {
        let codec = tonic_prost::ProstCodec::<HealthCheckResponse, HealthCheckRequest>::default();
        tonic::server::Grpc::new(codec).unary(Health, request).await
    });
    let router = axum::Router::new().route("/grpc.health.v1.Health/Check", health);
    tokio::spawn(async move { axum::serve(listener, router).await });
    for (service, expected) in [("", ""), ("down", "not SERVING"), ("other", "unknown service")] {
        let failure = asked(Check::Grpc { port, service: service.to_owned() }).await.err().unwrap_or_default();
        assert!(failure.contains(expected) && failure.is_empty() == expected.is_empty(), "{service}: {failure}");
    }
}

/// Probes by commands whose exit code is set from outside.
struct Running {
    code: Arc<AtomicI32>,
    events: mpsc::UnboundedReceiver<ProbeEvent>,
    began: Instant,
}

impl Running {
    fn begin(probes: ContainerProbes, code: i32) -> Self {
        let code = Arc::new(AtomicI32::new(code));
        let (sender, events) = mpsc::unbounded_channel();
        let pod = PodKey::new("shop", "cart");
        tokio::spawn(run(pod, Ipv4Addr::LOCALHOST, vec![probes], reach(code.clone()), sender));
        Self { code, events, began: Instant::now() }
    }

    /// The next event and the second at which it came.
    async fn next(&mut self) -> (ProbeEvent, u64) {
        let event = self.events.recv().await.expect("an event");
        (event, self.began.elapsed().as_secs())
    }
}

fn probes() -> ContainerProbes {
    ContainerProbes { container: "app".to_owned(), startup: None, readiness: None, liveness: None }
}

fn unhealthy() -> ProbeEvent {
    ProbeEvent::Unhealthy { container: "app".to_owned() }
}

#[tokio::test(start_paused = true)]
async fn readiness_is_asked_each_second_until_it_passes_and_then_by_its_period() {
    let mut running = Running::begin(ContainerProbes { readiness: Some(exec()), ..probes() }, 1);
    assert_eq!(running.next().await, (ProbeEvent::Ready(false), 0));
    tokio::time::sleep(Duration::from_millis(4500)).await;
    running.code.store(0, Ordering::SeqCst);
    assert_eq!(running.next().await, (ProbeEvent::Ready(true), 5));
    running.code.store(1, Ordering::SeqCst);
    assert_eq!(running.next().await, (ProbeEvent::Ready(false), 35), "the third failure in a row");
}

#[tokio::test(start_paused = true)]
async fn liveness_waits_for_startup_and_fails_by_its_threshold() {
    let both = ContainerProbes { startup: Some(exec()), liveness: Some(exec()), ..probes() };
    let mut running = Running::begin(both.clone(), 0);
    assert_eq!(running.next().await.0, ProbeEvent::Ready(false));
    assert_eq!(running.next().await, (ProbeEvent::Ready(true), 0));
    running.code.store(1, Ordering::SeqCst);
    let (event, second) = running.next().await;
    assert_eq!(event, unhealthy());
    assert!((20..=30).contains(&second), "{second}");

    let mut starting = Running::begin(both, 1);
    assert_eq!(starting.next().await.0, ProbeEvent::Ready(false));
    assert_eq!(starting.next().await, (unhealthy(), 29), "3 x 10 s, although asked each second");
}
