//! The workload and its caller against each other on loopback.

use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use axum::http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::caller::{Call, Caller, Code, Outcome};
use super::load::Load;
use super::proto::EchoRequest;
use super::proto::echo_client::EchoClient;
use super::serve::{Addresses, Ended, Options, ServeError, Server};
use super::workload::{Identity, Settings};

struct Running {
    addresses: Addresses,
    stop: CancellationToken,
    ended: JoinHandle<Ended>,
}

impl Running {
    fn http(&self, path: &str) -> String {
        format!("http://{}{path}", self.addresses.http.unwrap())
    }

    fn grpc(&self) -> String {
        format!("grpc://{}", self.addresses.grpc.unwrap())
    }

    fn tcp(&self) -> String {
        format!("tcp://{}", self.addresses.tcp.unwrap())
    }

    async fn stop(self) -> Ended {
        self.stop.cancel();
        self.ended.await.unwrap()
    }
}

fn options(name: &str) -> Options {
    Options {
        identity: Identity { name: name.into(), version: "v1".into(), pod: format!("{name}-0") },
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        http: Some(0),
        https: None,
        grpc: Some(0),
        tcp: Some(0),
        tcp_greeting: false,
        upstreams: Vec::new(),
        upstream_timeout: Duration::from_secs(20),
        settings: Settings::default(),
        drain: Duration::ZERO,
        grace: Duration::from_secs(20),
    }
}

async fn start(options: Options) -> Running {
    let server = Server::bind(options).await.unwrap();
    let (addresses, stop) = (server.addresses(), CancellationToken::new());
    let stopped = stop.clone();
    let ended = tokio::spawn(async move { server.run(stopped.cancelled()).await });
    Running { addresses, stop, ended }
}

fn to(url: &str) -> Call {
    Call::new(url.parse().unwrap())
}

async fn call(url: &str) -> Outcome {
    Caller::new(Duration::from_secs(20)).call(&to(url)).await
}

async fn post(url: &str, body: &str) -> Outcome {
    let call = Call { method: Method::POST, body: body.to_owned().into(), ..to(url) };
    Caller::new(Duration::from_secs(20)).call(&call).await
}

fn json_of(outcome: &Outcome) -> Value {
    serde_json::from_slice(&outcome.body).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

#[tokio::test]
async fn http_says_who_answers_and_what_it_was_asked() {
    let cart = start(options("cart")).await;
    for (http2, protocol) in [(false, "HTTP/1.1"), (true, "HTTP/2.0")] {
        let mut call = Call { http2, method: Method::PUT, body: "12345".into(), ..to(&cart.http("/a/b?c=d")) };
        call.headers.insert("X-Forwarded-Client-Cert", "URI=spiffe://cluster.local/ns/shop/sa/a".parse().unwrap());
        let outcome = Caller::new(Duration::from_secs(20)).call(&call).await;
        assert_eq!((outcome.code, outcome.responder.as_deref()), (Code::Http(200), Some("cart v1")));
        let answer = json_of(&outcome);
        for (field, expected) in [
            ("name", json!("cart")),
            ("version", json!("v1")),
            ("pod", json!("cart-0")),
            ("path", json!("/a/b?c=d")),
            ("method", json!("PUT")),
            ("host", json!(cart.addresses.http.unwrap().to_string())),
            ("protocol", json!(protocol)),
            ("received", json!(5)),
            ("upstream", json!([])),
        ] {
            assert_eq!(answer[field], expected, "{field}");
        }
        assert_eq!(answer["headers"]["x-forwarded-client-cert"], "URI=spiffe://cluster.local/ns/shop/sa/a");
    }
}

#[tokio::test]
async fn grpc_echoes_once_or_as_a_stream() {
    let inventory = start(options("inventory")).await;
    let mut echo = to(&inventory.grpc());
    echo.body = "hi".into();
    echo.headers.insert("traceparent", "00-1".parse().unwrap());
    let outcome = Caller::new(Duration::from_secs(20)).call(&echo).await;
    assert_eq!((outcome.code.to_string().as_str(), outcome.responder.as_deref()), ("OK", Some("inventory v1")));
    let answer = json_of(&outcome);
    assert_eq!((&answer["message"], &answer["headers"]["traceparent"]), (&json!("hi"), &json!("00-1")));

    let endpoint = format!("http://{}", inventory.addresses.grpc.unwrap());
    let mut client = EchoClient::connect(endpoint).await.unwrap();
    let mut stream = client.echo_stream(EchoRequest { message: "hi".into(), count: 3 }).await.unwrap().into_inner();
    let mut sequence = Vec::new();
    while let Some(answer) = stream.message().await.unwrap() {
        sequence.push(answer.sequence);
    }
    assert_eq!(sequence, [1, 2, 3]);
    let refused = client.echo_stream(EchoRequest { message: String::new(), count: u32::MAX }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn tcp_answers_the_first_line_with_its_name_and_echoes() {
    let ledger = start(options("ledger")).await;
    let speaks_first = start(Options { tcp_greeting: true, ..options("mysql") }).await;
    for (server, responder) in [(&ledger, "ledger v1"), (&speaks_first, "mysql v1")] {
        let outcome = call(&server.tcp()).await;
        assert_eq!((outcome.code, outcome.responder.as_deref()), (Code::Tcp, Some(responder)), "{outcome:?}");
        assert_eq!(outcome.body, format!("{responder}\nhello\n"));
    }
    let mut stream = TcpStream::connect(speaks_first.addresses.tcp.unwrap()).await.unwrap();
    let mut greeting = [0; 9];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"mysql v1\n");
}

#[tokio::test]
async fn upstreams_are_called_in_order_and_nested_with_the_trace() {
    let ledger = start(options("ledger")).await;
    let inventory = start(options("inventory")).await;
    let cart = start(Options { upstreams: vec![inventory.grpc().parse().unwrap()], ..options("cart") }).await;
    let upstreams = vec![cart.http("/").parse().unwrap(), ledger.tcp().parse().unwrap()];
    let frontend = start(Options { upstreams, ..options("frontend") }).await;

    let mut request = to(&frontend.http("/"));
    request.headers.insert("x-b3-traceid", "abc".parse().unwrap());
    request.headers.insert("authorization", "secret".parse().unwrap());
    let outcome = Caller::new(Duration::from_secs(20)).call(&request).await;
    let answer = json_of(&outcome);
    assert_eq!(outcome.code, Code::Http(200), "{answer}");
    let (cart_answer, ledger_answer) = (&answer["upstream"][0], &answer["upstream"][1]);
    assert_eq!((&cart_answer["code"], &cart_answer["body"]["name"]), (&json!("200"), &json!("cart")));
    assert_eq!(cart_answer["body"]["headers"]["x-b3-traceid"], "abc");
    assert_eq!(cart_answer["body"]["headers"]["authorization"], Value::Null);
    let inventory_answer = &cart_answer["body"]["upstream"][0];
    assert_eq!((&inventory_answer["code"], &inventory_answer["body"]["name"]), (&json!("OK"), &json!("inventory")));
    assert_eq!(inventory_answer["body"]["headers"]["x-b3-traceid"], "abc");
    assert_eq!((&ledger_answer["code"], &ledger_answer["body"]), (&json!("ok"), &json!("ledger v1\nhello\n")));
}

#[tokio::test]
async fn a_failed_upstream_fails_the_request_and_call_reports_it() {
    let down = "http://127.0.0.1:1/";
    let cart = start(Options { upstreams: vec![down.parse().unwrap()], ..options("cart") }).await;
    let outcome = call(&cart.http("/")).await;
    assert_eq!(outcome.code, Code::Http(502));
    assert_eq!(json_of(&outcome)["upstream"][0]["code"], "connect error");
    let outcome = call(&cart.http(&format!("/call?url={down}"))).await;
    assert_eq!(outcome.code, Code::Http(200));
    assert_eq!(json_of(&outcome)["upstream"][0]["code"], "connect error");
}

#[tokio::test]
async fn a_ring_of_upstreams_comes_to_an_end() {
    let upstreams = vec!["http://127.0.0.1:1/".parse().unwrap()];
    let cart = start(Options { upstreams, ..options("cart") }).await;
    for (hops, code) in [("15", 502), ("16", 508), ("4294967295", 508), ("nonsense", 502)] {
        let mut request = to(&cart.http("/"));
        request.headers.insert("x-weft-app-hops", hops.parse().unwrap());
        let outcome = Caller::new(Duration::from_secs(20)).call(&request).await;
        assert_eq!(outcome.code, Code::Http(code), "{hops}");
    }
}

#[tokio::test]
async fn a_request_asks_for_its_own_status_delay_and_size() {
    let cart = start(options("cart")).await;
    let outcome = call(&cart.http("/?status=418&size=1000&delay=20ms")).await;
    assert_eq!(outcome.code, Code::Http(418));
    assert_eq!(json_of(&outcome)["padding"].as_str().map(str::len), Some(1000));
    assert!(outcome.latency >= Duration::from_millis(20));
    assert_eq!(call(&cart.http("/?status=204")).await.code, Code::Http(204));
}

#[tokio::test]
async fn what_cannot_be_asked_is_answered_with_400() {
    let cart = start(options("cart")).await;
    for path in [
        "/?delay=soon",
        "/?status=99",
        "/?status=101",
        "/?status=600",
        "/?size=-1",
        "/?size=99999999999",
        "/?size=16777217",
        "/call",
        "/call?url=ftp://a/",
        "/call?url=tcp://a",
    ] {
        assert_eq!(call(&cart.http(path)).await.code, Code::Http(400), "{path}");
    }
    for body in ["", "[]", "{\"delay\":5}", "{\"errorRate\":2}", "{\"errorRate\":\"NaN\"}", "{\"unknown\":1}"] {
        assert_eq!(post(&cart.http("/control"), body).await.code, Code::Http(400), "{body}");
    }
    assert_eq!(call(&cart.http("/")).await.code, Code::Http(200));
}

#[tokio::test]
async fn errors_and_delay_are_set_while_it_runs() {
    let cart = start(options("cart")).await;
    let set = post(&cart.http("/control"), r#"{"errorRate":1,"errorStatus":500,"delay":"10ms"}"#).await;
    assert_eq!(json_of(&set), json!({"delay": "10ms", "errorRate": 1.0, "errorStatus": 500, "ready": true}));
    let outcome = call(&cart.http("/")).await;
    assert_eq!((outcome.code, outcome.responder.as_deref()), (Code::Http(500), Some("cart v1")));
    assert!(outcome.latency >= Duration::from_millis(10));
    let outcome = call(&cart.grpc()).await;
    assert_eq!((outcome.code.to_string().as_str(), outcome.responder.as_deref()), ("UNAVAILABLE", Some("cart v1")));
    assert_eq!(call(&cart.tcp()).await.code, Code::Closed);
    assert_eq!(call(&cart.http("/healthz")).await.code, Code::Http(200), "probes do not fail on purpose");
    post(&cart.http("/control"), r#"{"errorRate":0}"#).await;
    assert_eq!(call(&cart.http("/")).await.code, Code::Http(200));
}

#[tokio::test]
async fn readiness_is_told_by_http_and_by_grpc_health() {
    let cart = start(options("cart")).await;
    let endpoint = format!("http://{}", cart.addresses.grpc.unwrap());
    let mut health = HealthClient::new(Endpoint::try_from(endpoint).unwrap().connect().await.unwrap());
    for ready in [false, true] {
        post(&cart.http(&format!("/readyz?ready={ready}")), "").await;
        assert_eq!(call(&cart.http("/readyz")).await.code, Code::Http(if ready { 200 } else { 503 }));
        for service in ["", "weft.app.v1.Echo"] {
            let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap();
            assert_eq!(answer.into_inner().status, if ready { 1 } else { 2 }, "{service:?}");
        }
    }
}

#[tokio::test]
async fn what_no_one_listens_for_is_a_connect_error_in_every_protocol() {
    for url in ["http://127.0.0.1:1/", "grpc://127.0.0.1:1", "tcp://127.0.0.1:1"] {
        let outcome = call(url).await;
        assert_eq!(outcome.code, Code::Connect, "{outcome:?}");
        assert!(outcome.error.unwrap().starts_with(url));
    }
}

#[tokio::test]
async fn a_connection_that_is_closed_on_us_is_closed_in_every_protocol() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let closing = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            let _ = stream.read(&mut buffer).await;
        }
    });
    for url in [format!("http://{address}/"), format!("tcp://{address}"), format!("grpc://{address}")] {
        let outcome = call(&url).await;
        assert_eq!(outcome.code, Code::Closed, "{outcome:?}");
    }
    closing.abort();
}

#[tokio::test]
async fn no_answer_in_time_is_a_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("tcp://{}", silent.local_addr().unwrap());
    let outcome = Caller::new(Duration::from_millis(20)).call(&to(&url)).await;
    assert_eq!(outcome.code, Code::Timeout);
}

#[tokio::test]
async fn a_load_is_counted_by_code_and_responder() {
    let cart = start(options("cart")).await;
    for (url, http2, keepalive, code) in [
        (cart.http("/"), false, true, "200"),
        (cart.http("/"), false, false, "200"),
        (cart.http("/"), true, true, "200"),
        (cart.grpc(), false, true, "OK"),
        (cart.grpc(), false, false, "OK"),
        (cart.tcp(), false, true, "ok"),
    ] {
        let load = Load { keepalive, ..load(Call { http2, ..to(&url) }) };
        let report = load.run(CancellationToken::new()).await;
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["requests"], &json["failed"]), (&json!(100), &json!(0)), "{url}: {json}");
        assert_eq!((&json["codes"][code], &json["responders"]["cart v1"]), (&json!(100), &json!(100)), "{url}: {json}");
    }
}

fn load(call: Call) -> Load {
    Load {
        call,
        count: NonZeroU64::new(100),
        duration: None,
        concurrency: NonZeroU32::new(8).unwrap(),
        rate: None,
        timeout: Duration::from_secs(20),
        keepalive: true,
        expect: Vec::new(),
    }
}

#[tokio::test]
async fn a_load_ends_when_told_and_its_last_calls_are_answered() {
    let cart = start(options("cart")).await;
    for count in [None, NonZeroU64::new(u64::MAX)] {
        let stop = CancellationToken::new();
        let running = tokio::spawn(Load { count, ..load(to(&cart.http("/"))) }.run(stop.clone()));
        call(&cart.http("/")).await;
        stop.cancel();
        let report = running.await.unwrap();
        assert_eq!(report.failed, 0, "{report}");
    }
}

#[tokio::test]
async fn requests_under_way_are_answered_when_the_server_stops() {
    // Every request waits in this upstream until we let it go, so that all are under way when the server stops.
    let gate = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstreams = vec![format!("tcp://{}", gate.local_addr().unwrap()).parse().unwrap()];
    let cart = start(Options { upstreams, ..options("cart") }).await;

    let mut calls = Vec::new();
    let mut held = Vec::new();
    let callers = [false, true].map(|http2| (http2, Caller::new(Duration::from_secs(20))));
    for (http2, caller) in callers.iter().cycle().take(8).cloned() {
        let request = Call { http2, ..to(&cart.http("/")) };
        calls.push(tokio::spawn(async move { caller.call(&request).await }));
        held.push(gate.accept().await.unwrap().0);
    }
    let (address, stop, ended) = (cart.addresses.http.unwrap(), cart.stop, cart.ended);
    stop.cancel();
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await; // until the listener is closed
    }
    assert!(!ended.is_finished(), "requests are under way");
    for mut stream in held {
        stream.write_all(b"hello\n").await.unwrap();
    }
    for call in calls {
        let outcome = call.await.unwrap();
        assert_eq!(outcome.code, Code::Http(200), "{outcome:?}");
    }
    assert_eq!(ended.await.unwrap(), Ended::Drained);
}

#[tokio::test]
async fn while_it_drains_it_is_not_ready_and_answers_close_their_connection() {
    let cart = start(Options { drain: Duration::from_secs(3600), ..options("cart") }).await;
    assert_eq!(call(&cart.http("/")).await.headers.get("connection"), None);
    cart.stop.cancel();
    while call(&cart.http("/readyz")).await.code != Code::Http(503) {
        tokio::task::yield_now().await;
    }
    let outcome = call(&cart.http("/")).await;
    assert_eq!((outcome.code, outcome.headers["connection"].as_bytes()), (Code::Http(200), &b"close"[..]));
    cart.ended.abort();
}

#[tokio::test]
async fn a_request_that_outlasts_the_grace_period_is_cut_off() {
    let gate = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstreams = vec![format!("tcp://{}", gate.local_addr().unwrap()).parse().unwrap()];
    let cart = start(Options { upstreams, grace: Duration::from_millis(10), ..options("cart") }).await;
    let url = cart.http("/");
    let hanging = tokio::spawn(async move { call(&url).await });
    let _held = gate.accept().await.unwrap();
    assert_eq!(cart.stop().await, Ended::CutOff);
    hanging.abort();
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_the_end() {
    let cart = start(options("cart")).await;
    let idle = TcpStream::connect(cart.addresses.tcp.unwrap()).await.unwrap();
    let keeps = Caller::new(Duration::from_secs(20));
    for http2 in [false, true] {
        assert!(keeps.call(&Call { http2, ..to(&cart.http("/")) }).await.code.succeeded());
    }
    assert!(keeps.call(&to(&cart.grpc())).await.code.succeeded());
    assert_eq!(cart.stop().await, Ended::Drained);
    drop(idle);
}

#[tokio::test]
async fn what_cannot_be_served_is_said() {
    let nothing = Options { http: None, grpc: None, tcp: None, ..options("cart") };
    assert!(matches!(Server::bind(nothing).await.map(|_| ()), Err(ServeError::NoPort)));
    let cart = start(options("cart")).await;
    let taken = Options { http: cart.addresses.http.map(|address| address.port()), ..options("cart") };
    let error = Server::bind(taken).await.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("HTTP") && error.contains("is the port taken?"), "{error}");
    let settings = Settings { error_rate: 2.0, ..Settings::default() };
    let wrong = Options { settings, ..options("cart") };
    assert!(matches!(Server::bind(wrong).await.map(|_| ()), Err(ServeError::Settings(_))));
}
