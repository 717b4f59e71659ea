//! What can be called, and in which ways.

mod wire;

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use weft::local::control::PodSelector;
use weft_e2e::mesh::{Mesh, PATIENCE};
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::{answer, scenarios, start};

const CLIENT: &str = "app/client";

/// How a TCP call ended and who answered.
pub(crate) fn tcp(mesh: &Mesh, pod: &str, url: &str) -> anyhow::Result<String> {
    let summary = mesh.calls(pod, &[url])?;
    let who = summary.responders.into_keys().next().unwrap_or_else(|| "nobody".to_owned());
    let how = summary.codes.into_keys().next().context("a call that ended somehow")?;
    Ok(format!("{how} {who}"))
}

/// The first line that a server says to a client which says nothing.
pub(crate) fn greeting(mesh: &Mesh, pod: &str, to: SocketAddr) -> anyhow::Result<String> {
    let heard = wire::talk(mesh, pod, to, "", "\n")?;
    Ok(heard.trim_end().to_owned())
}

fn ip(mesh: &Mesh, namespace: &str, pod: &str) -> IpAddr {
    let pods = mesh.pods_of(namespace, pod).expect("the pods");
    pods.first().unwrap_or_else(|| panic!("no pod {namespace}/{pod}")).ip.into()
}

/// The address that a Service's name stands for, as a pod resolves it.
fn address(mesh: &Mesh, name: &str, port: u16) -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::new(mesh.resolve(CLIENT, name)?, port))
}

/// Calls by HTTPS without a look at the certificate: who answered, which name it was asked for, and whether the
/// connection arrived over the mesh's mTLS.
pub(crate) fn https(mesh: &Mesh, pod: &str, url: &str) -> anyhow::Result<String> {
    const SCRIPT: &str = "import ssl,sys,urllib.request as u; \
        print(u.urlopen(sys.argv[1], context=ssl._create_unverified_context(), timeout=10).read().decode())";
    let (namespace, name) = pod.split_once('/').context("NAMESPACE/POD")?;
    let argv = ["python3", "-c", SCRIPT, url].map(str::to_owned).to_vec();
    mesh.traffic().call();
    let (_, text) = mesh.client().output(PodSelector::new(namespace, name), argv)?;
    let answer: serde_json::Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    Ok(format!("{} {}", answer["name"].as_str().unwrap_or("?"), answer["headers"]["x-weft-app-sni"]))
}

/// The pod that answered.
fn pod_of(mesh: &Mesh, url: &str) -> anyhow::Result<String> {
    let answer: serde_json::Value = serde_json::from_str(&mesh.call(CLIENT, &[url])?)?;
    Ok(answer["pod"].as_str().unwrap_or("?").to_owned())
}

#[test]
fn everything_can_be_called() {
    run("default");
}

#[cfg(feature = "slow")]
#[test]
fn everything_can_be_called_on_the_oldest_envoy() {
    run("oldest");
}

fn run(line: &str) {
    let mesh = start("protocols", line);
    let (server, stranger) = (ip(&mesh, "app", "server"), ip(&mesh, "plain", "stranger"));
    let mut checks = scenarios(&mesh, line);
    let http = |arguments: &[&str]| answer(&mesh, CLIENT, arguments);
    let raw = |url: &str| tcp(&mesh, CLIENT, url);

    checks.equal("protocol-ports: a named target port", "server HTTP/1.1 mtls", http(&["http://several/"]));
    checks.equal(
        "protocol-ports: HTTP/2 on a port for HTTP",
        "server HTTP/2.0 mtls",
        http(&["--http2", "http://several/"]),
    );
    checks.equal(
        "protocol-ports: HTTP/2 on a port of several",
        "server HTTP/2.0 mtls",
        http(&["--http2", "http://several:82/"]),
    );
    checks.equal(
        "protocol-ports: HTTP/2 on a port declared kubernetes.io/h2c",
        "server HTTP/2.0 mtls",
        http(&["--http2", "http://several:83/"]),
    );
    checks.equal(
        "protocol-ports: gRPC on a Service of several ports",
        "OK",
        mesh.code(CLIENT, &["grpc://several:9090"]),
    );
    checks.equal("protocol-ports: TCP on a Service of several ports", "ok server v1", raw("tcp://several:7000"));
    checks.equal("protocol-ports: one that the Service has not", "503", mesh.code(CLIENT, &["http://several:81/"]));

    checks.equal("protocol-headless: by name, HTTP", "server HTTP/1.1 mtls", http(&["http://headless:8080/"]));
    checks.equal("protocol-headless: by name, TCP", "ok server v1", raw("tcp://headless:7000"));
    checks.equal(
        "protocol-headless: by address, HTTP/2",
        "server HTTP/2.0 mtls",
        http(&["--http2", &format!("http://{server}:8080/")]),
    );
    checks.equal("protocol-headless: by address, TCP", "ok server v1", raw(&format!("tcp://{server}:7000")));
    checks.equal(
        "protocol-ports: one of a pod that no Service names",
        "greeter HTTP/1.1 mtls",
        http(&[&format!("http://{server}:9000/")]),
    );

    checks.equal("protocol-undeclared: HTTP/1.1", "server HTTP/1.1 mtls", http(&["http://undeclared:5000/"]));
    checks.equal("protocol-undeclared: HTTP/2", "server HTTP/2.0 mtls", http(&["--http2", "http://undeclared:5000/"]));
    checks.equal("protocol-undeclared: TCP", "ok server v1", raw("tcp://undeclared:5001"));

    let greeted = |name: &str, port: u16| greeting(&mesh, CLIENT, address(&mesh, name, port)?);
    checks.equal("protocol-server-first: on a well-known port", "greeter v1", greeted("database", 3306));
    checks.equal("protocol-ports: one number for TCP and HTTP, TCP", "ok server v1", raw("tcp://clash-tcp:4000"));
    checks.equal(
        "protocol-ports: one number for TCP and HTTP, HTTP",
        "server HTTP/1.1 mtls",
        http(&["http://clash-http:4000/"]),
    );

    checks.equal("protocol-endpoints: none yet", "503", mesh.code(CLIENT, &["http://legacy/"]));
    mesh.write("legacy.yaml", &slice(stranger)).expect("a slice");
    checks.equal("protocol-endpoints: a slice by hand, HTTP", "stranger HTTP/1.1 plaintext", http(&["http://legacy/"]));
    checks.equal("protocol-endpoints: a slice by hand, TCP", "ok stranger v1", raw("tcp://legacy:7000"));

    checks.equal("protocol-itself: a pod calls its own Service", "client HTTP/1.1 mtls", http(&["http://client.app/"]));
    checks.equal(
        "protocol-plaintext: from outside to a permissive Service",
        "server HTTP/1.1 plaintext",
        answer(&mesh, "plain/stranger", &["http://several.app/"]),
    );
    checks.equal(
        "protocol-plaintext: from outside to a permissive Service, TCP",
        "ok server v1",
        tcp(&mesh, "plain/stranger", "tcp://several.app:7000"),
    );
    checks.equal(
        "protocol-ranges: nobody's address in them",
        "200",
        mesh.code(CLIENT, &["http://10.244.0.1:15014/healthz"]),
    );

    for (version, arguments) in [("HTTP/1.1", vec!["http://large-1/"]), ("HTTP/2", vec!["--http2", "http://large-2/"])]
    {
        checks.holds(&format!("protocol-body: a first call with 2 MB, {version}"), "received whole", || {
            let text = mesh.call(CLIENT, &[&["--size", "2000000"], &arguments[..]].concat())?;
            let answer: serde_json::Value = serde_json::from_str(&text).context(text)?;
            Ok((answer["received"] == 2_000_000, answer["received"].to_string()))
        });
    }

    more(&mesh, &mut checks);

    checks.holds("protocol-ranges: an address outside them", "served, by the passthrough cluster", || {
        mesh.edit("mesh.yaml", |text| text.replacen("spec:\n", &format!("spec:\n{}", ranges(server)), 1))?;
        let through = || mesh.stats(CLIENT, "^cluster.passthrough.upstream_cx_total$");
        let sum = |counts: Vec<(String, u64)>| counts.iter().map(|(_, count)| count).sum::<u64>();
        let before = sum(through()?);
        let called = [http(&[&format!("http://{stranger}:8080/")])?, raw(&format!("tcp://{stranger}:7000"))?];
        let count = sum(through()?) - before;
        let ok = called == ["stranger HTTP/1.1 plaintext", "ok stranger v1"] && count == 2;
        Ok((ok, format!("{}; {count} passed through", called.join(", "))))
    });
    checks.equal(
        "protocol-ranges: a Service in those that are left",
        "server HTTP/1.1 mtls",
        http(&["http://several/"]),
    );
    checks.end(mesh).expect("every scenario holds");
}

/// What runs on HTTP, beside it, and by other names.
fn more(mesh: &Mesh, checks: &mut Scenarios) {
    let several = address(mesh, "several.app", 80);
    let several = several.expect("the address of a Service");
    let stranger = SocketAddr::new(ip(mesh, "plain", "stranger"), 8080);
    let talk = |to, say: &str| wire::talk(mesh, CLIENT, to, say, "");
    let asked = |say: &str, field: &str| talk(several, say).map(|answer| wire::status_and(&answer, field));

    checks.equal("protocol-websocket: over HTTP/1.1", "101 hello", wire::websocket(mesh, CLIENT, several, "several"));
    checks.equal(
        "protocol-websocket: over HTTP/2",
        "200 hello",
        wire::websocket_http2(mesh, CLIENT, several, "several"),
    );
    checks.equal(
        "protocol-websocket: to a pod without a sidecar",
        "101 hello",
        wire::websocket(mesh, CLIENT, stranger, "x"),
    );
    checks.equal(
        "protocol-grpc-stream: both sides speak in turn",
        "2000 answers in order, ended",
        wire::grpc_chat(mesh, CLIENT, SocketAddr::new(several.ip(), 9090), 2000),
    );

    checks.equal(
        "protocol-http10: with a Host",
        "200 several",
        asked("GET / HTTP/1.0\r\nHost: several\r\n\r\n", "host"),
    );
    checks.equal("protocol-http10: without a Host", "200 unknown", asked("GET / HTTP/1.0\r\n\r\n", "host"));
    const CLOSE: &str = "Connection: close\r\n\r\n";
    let host = |host: &str| asked(&format!("GET / HTTP/1.1\r\n{host}{CLOSE}"), "host");
    checks.equal("protocol-host: absent in HTTP/1.1", "400", host(""));
    checks.equal("protocol-host: with a port", "200 several:80", host("Host: several:80\r\n"));
    checks.equal("protocol-host: in upper case", "200 SEVERAL.App", host("HOST: SEVERAL.App\r\n"));
    checks.equal("protocol-host: of somebody else", "200 www.example.org", host("Host: www.example.org\r\n"));
    checks.equal(
        "protocol-host: in an absolute URI",
        "200 several",
        asked(&format!("GET http://several/ HTTP/1.1\r\nHost: other\r\n{CLOSE}"), "host"),
    );

    let large = |size| asked(&format!("GET / HTTP/1.1\r\nHost: x\r\nx-large: {}\r\n{CLOSE}", "x".repeat(size)), "host");
    checks.equal("protocol-headers: of 60 KiB", "200 x", large(60 * 1024));
    checks.equal("protocol-headers: of more than 96 KiB", "431", large(97 * 1024));
    checks.holds("protocol-headers: of 60 KiB in an answer", "there", || {
        let answer = talk(several, &format!("GET /?header=61440 HTTP/1.1\r\nHost: x\r\n{CLOSE}"))?;
        let length =
            answer.split("x-weft-app-large: ").nth(1).map_or(0, |rest| rest.split('\r').next().map_or(0, str::len));
        Ok((length == 61440, format!("{} of {length} bytes", wire::status_and(&answer, "host"))))
    });

    checks.holds("protocol-expect: 100 comes from the application, then its answer", "100, 200", || {
        let mut socket = mesh.dial(CLIENT, several)?;
        mesh.traffic().call();
        socket.set_read_timeout(Some(PATIENCE))?;
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n{CLOSE}");
        socket.write_all(head.as_bytes())?;
        let first = wire::hear(&mut socket, "\r\n\r\n")?;
        socket.write_all(b"body")?;
        let second = wire::hear(&mut socket, "")?;
        let seen = format!("{}, {}", wire::status_and(&first, "host"), wire::status_and(&second, "host"));
        Ok((seen == "100, 200 x" && second.contains("\"received\": 4"), seen))
    });
    checks.equal(
        "protocol-expect: the application refuses before the body",
        "405",
        talk(
            several,
            &format!("POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n{CLOSE}"),
        )
        .map(|answer| wire::status_and(&answer, "host")),
    );

    checks.holds("protocol-trailers: over HTTP/1.1, both ways", "there and back", || {
        let chunked = "POST /?trailer=back HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nTrailer: x-sent\r\n\
            Transfer-Encoding: chunked\r\nConnection: close, TE\r\n\r\n4\r\nbody\r\n0\r\nx-sent: there\r\n\r\n";
        let answer = talk(several, chunked)?;
        let sent = answer.contains("\"x-sent\": \"there\"");
        let back = answer.to_ascii_lowercase().contains("x-weft-app-trailer: back");
        Ok((sent && back, format!("{} there: {sent}, back: {back}", wire::status_and(&answer, "host"))))
    });
    checks.equal(
        "protocol-trailers: over HTTP/2, both ways",
        "there back",
        wire::trailers_http2(mesh, CLIENT, several, "x"),
    );

    checks.equal(
        "protocol-tls: of the application, declared",
        "server \"secure.app\"",
        https(mesh, CLIENT, "https://secure.app/"),
    );
    checks.equal(
        "protocol-tls: of the application, undeclared",
        "server \"secure.app\"",
        https(mesh, CLIENT, "https://secure.app:444/"),
    );
    checks.equal(
        "protocol-tls: from outside the mesh",
        "server \"secure.app\"",
        https(mesh, "plain/stranger", "https://secure.app/"),
    );
    checks.equal(
        "protocol-tls: to a host outside",
        "outside \"api.example.com\"",
        https(mesh, CLIENT, "https://api.example.com/"),
    );
    checks.equal(
        "protocol-server-first: outside, on a well-known port that no Service has",
        "mail v1",
        address(mesh, "api.example.com", 25).and_then(|to| greeting(mesh, CLIENT, to)),
    );

    for pod in ["db-0", "db-1"] {
        checks.equal(
            &format!("protocol-stateful: {pod} by name, HTTP"),
            pod,
            pod_of(mesh, &format!("http://{pod}.db:8080/")),
        );
    }
    checks.equal(
        "protocol-stateful: a pod by its whole name, TCP",
        "ok db v1",
        tcp(mesh, CLIENT, "tcp://db-1.db.app.svc.cluster.local:7000"),
    );
    checks.holds("protocol-stateful: a new pod of the same name at another address", "db-1 answers again", || {
        let before = mesh.resolve(CLIENT, "db-1.db")?;
        mesh.edit("pods.yaml", |text| text.replacen("--name=db,", "--name=db, --version=v2,", 1))?;
        until("the StatefulSet is replaced, the last pod first", PATIENCE, || {
            let summary = mesh.calls(CLIENT, &["tcp://db-0.db:7000"])?;
            let new = summary.responders.contains_key("db v2");
            Ok(if new { Ok(()) } else { Err(format!("{:?}", summary.codes)) })
        })?;
        let (after, pod) = (mesh.resolve(CLIENT, "db-1.db")?, pod_of(mesh, "http://db-1.db:8080/")?);
        Ok((before != after && pod == "db-1", format!("{pod}, {before} before and {after} after")))
    });

    checks.equal(
        "protocol-external-name: another Service",
        "server HTTP/1.1 mtls",
        answer(mesh, CLIENT, &["http://alias/"]),
    );
    checks.equal(
        "protocol-external-name: a host outside",
        "outside HTTP/1.1 plaintext",
        answer(mesh, CLIENT, &["http://away/"]),
    );
    checks.equal(
        "protocol-shared-pods: HTTP by one Service",
        "server HTTP/1.1 mtls",
        answer(mesh, CLIENT, &["http://headless:8080/"]),
    );
    checks.equal(
        "protocol-shared-pods: the same port opaque by another",
        "server HTTP/1.1 plaintext",
        answer(mesh, CLIENT, &["http://opaque:8080/"]),
    );

    for (port, kind, expected) in [
        (1001, "http", "server HTTP/1.1 mtls"),
        (1002, "HTTP", "server HTTP/1.1 mtls"),
        (1003, "kubernetes.io/ws", "server HTTP/1.1 mtls"),
        (1004, "kubernetes.io/h2c", "server HTTP/2.0 mtls"),
        (1005, "http2", "server HTTP/2.0 mtls"),
    ] {
        let url = format!("http://declared:{port}/");
        let arguments = if expected.contains("2.0") { vec!["--http2", &url] } else { vec![url.as_str()] };
        checks.equal(&format!("protocol-app-protocol: {kind}"), expected, answer(mesh, CLIENT, &arguments));
    }
    let declared = |port| address(mesh, "declared.app", port);
    checks.equal(
        "protocol-app-protocol: WebSocket on kubernetes.io/ws",
        "101 hello",
        declared(1003).and_then(|to| wire::websocket(mesh, CLIENT, to, "declared")),
    );
    checks.equal("protocol-app-protocol: grpc", "OK", mesh.code(CLIENT, &["grpc://declared:1006"]));
    for (port, kind) in [(1007, "https"), (1008, "kubernetes.io/wss")] {
        checks.equal(
            &format!("protocol-app-protocol: {kind}"),
            "server \"declared.app\"",
            https(mesh, CLIENT, &format!("https://declared.app:{port}/")),
        );
    }
    for (port, kind) in [(1009, "tcp"), (1010, "example.com/own")] {
        checks.equal(
            &format!("protocol-app-protocol: {kind}"),
            "ok server v1",
            tcp(mesh, CLIENT, &format!("tcp://declared:{port}")),
        );
    }
}

/// Services, and of all pods only this one.
fn ranges(server: IpAddr) -> String {
    format!("  network:\n    ranges: [10.96.0.0/12, {server}/32]\n")
}

fn slice(ip: IpAddr) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: legacy-by-hand
  namespace: app
  labels: {{kubernetes.io/service-name: legacy}}
addressType: IPv4
ports:
  - {{name: http, port: 8080}}
  - {{name: tcp, port: 7000}}
endpoints:
  - addresses: [{ip}]
"
    )
}
