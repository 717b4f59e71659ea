//! Modes of mTLS: of namespaces, workloads and ports, and what a change of one does to connections.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use weft_e2e::held::Held;
use weft_e2e::load::Load;
use weft_e2e::mesh::Mesh;
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::{answer, greeting, scenarios, start};

const CLIENT: &str = "app/client";
const STRANGER: &str = "plain/stranger";
const MODE: &str = "moving.yaml";
/// As the pod's annotation has it.
const DRAINED_WITHIN: Duration = Duration::from_secs(2);

#[test]
fn each_port_is_open_to_whom_it_should_be() {
    run("default");
}

#[cfg(feature = "slow")]
#[test]
fn each_port_is_open_to_whom_it_should_be_on_the_oldest_envoy() {
    run("oldest");
}

fn run(line: &str) {
    let mesh = start("mtls", line);
    let mut checks = scenarios(&mesh, line);
    ports(&mesh, &mut checks);
    past_the_sidecar(&mesh, &mut checks);
    workloads(&mesh, &mut checks);
    moved(&mesh, &mut checks);
    checks.end(mesh).expect("every scenario holds");
}

/// How calls end to the ports of a pod: HTTP, the other HTTP, TCP, and the TCP whose server speaks first.
fn ends(mesh: &Mesh, caller: &str, host: &str) -> anyhow::Result<String> {
    let code = |url: String| mesh.code(caller, &[&url]);
    let greeted = greeting(mesh, caller, host, 7001)?;
    Ok([
        code(format!("http://{host}:8080/"))?,
        code(format!("http://{host}:8081/"))?,
        code(format!("tcp://{host}:7000"))?,
        greeted,
    ]
    .join(" "))
}

fn ports(mesh: &Mesh, checks: &mut Scenarios) {
    let clear = |host: &str| ends(mesh, STRANGER, host);
    checks.equal("mtls-ports: open ones of a strict pod, in clear", "200 403 closed ports v1", clear("ports.shut"));
    checks.equal("mtls-ports: closed ones of a permissive pod, in clear", "403 200 ok silence", clear("ports.open"));
    checks.equal("mtls-ports: what cannot be read is strict, in clear", "403 403 ok silence", clear("slip.open"));
    for host in ["ports.shut", "ports.open", "slip.open"] {
        let name = host.split('.').next().unwrap_or_default();
        let all = format!("200 200 ok {name} v1");
        checks.equal(&format!("mtls-ports: every port of {host} over mTLS"), &all, ends(mesh, CLIENT, host));
        let seen = answer(mesh, CLIENT, &[&format!("http://{host}:8080/")]);
        checks.equal(&format!("mtls-ports: {host} sees its caller"), &format!("{name} HTTP/1.1 mtls"), seen);
    }
    checks.holds("mtls-ports: what cannot be read", "is reported", || {
        let all = mesh.inspection()?.diagnostics()?;
        let text = all.iter().map(|diagnostic| format!("{diagnostic:?}")).collect::<Vec<_>>().join("; ");
        let said = ["`8080=stric` has no mode", "`808l=strict` names no port"];
        Ok((said.iter().all(|words| text.contains(words)), text))
    });
}

/// A port that is excluded from interception is called in clear by everyone, callers in the mesh too.
fn past_the_sidecar(mesh: &Mesh, checks: &mut Scenarios) {
    let pod = mesh.pods_of("shut", "past").expect("pods").first().map(|pod| pod.ip.to_string()).expect("a pod");
    for (name, caller, url, expected) in [
        ("from the mesh, by its Service", CLIENT, "http://past.shut:8081/".to_owned(), "plaintext"),
        ("from the mesh, by its address", CLIENT, format!("http://{pod}:8081/"), "plaintext"),
        ("from outside the mesh", STRANGER, "http://past.shut:8081/".to_owned(), "plaintext"),
        ("beside one that is not", CLIENT, "http://past.shut:8080/".to_owned(), "mtls"),
    ] {
        let expected = format!("past HTTP/1.1 {expected}");
        checks.equal(&format!("mtls-past: an excluded port, {name}"), &expected, answer(mesh, caller, &[&url]));
    }
}

fn workloads(mesh: &Mesh, checks: &mut Scenarios) {
    const FILE: &str = "single.yaml";
    let seen = |caller| answer(mesh, caller, &["http://single.shut:8080/"]);
    let refused = "Weft: this workload accepts this request over the mesh's mTLS only\n";
    checks.equal(
        "mtls-workload: permissive in a strict namespace, in clear",
        "single HTTP/1.1 plaintext",
        seen(STRANGER),
    );
    checks.equal("mtls-workload: permissive in a strict namespace, over mTLS", "single HTTP/1.1 mtls", seen(CLIENT));
    let load = mesh.load(CLIENT, &["-c", "2", "--rate", "100", "http://single.shut:8080/"]).expect("a load");
    mesh.edit(FILE, |text| text.replace("weft.dev/mtls: permissive", "weft.dev/mtls: strict")).expect("strict");
    checks.equal("mtls-workload: strict, while the pod runs, in clear", refused, seen(STRANGER));
    mesh.edit(FILE, |text| text.replace("weft.dev/mtls: strict", "weft.dev/mtls: Permissive")).expect("permissive");
    checks.equal("mtls-workload: permissive again, in clear", "single HTTP/1.1 plaintext", seen(STRANGER));
    checks.holds("mtls-workload: changed under load", "no failed request, and the same pod", || {
        let summary = load.stop()?;
        let restarts: u32 = mesh.pods_of("shut", "single")?.iter().map(|pod| pod.restarts).sum();
        Ok((summary.failed == 0 && restarts == 0, summary.said()))
    });
}

/// An HTTP/1.1 connection that is kept.
struct Kept(TcpStream);

impl Kept {
    fn open(mesh: &Mesh, caller: &str, host: &str, port: u16) -> anyhow::Result<Self> {
        let socket = mesh.dial(caller, SocketAddr::new(mesh.resolve(caller, host)?, port))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self(socket))
    }

    /// The status of one more request.
    fn request(&mut self) -> anyhow::Result<String> {
        self.0.write_all(b"GET / HTTP/1.1\r\nhost: kept\r\n\r\n")?;
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let read = self.0.read(&mut buffer)?;
            ensure!(read > 0, "the connection was closed");
            text.extend_from_slice(&buffer[..read]);
            let said = String::from_utf8_lossy(&text);
            let Some((head, body)) = said.split_once("\r\n\r\n") else { continue };
            let length =
                head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0_usize) {
                return Ok(head.split(' ').nth(1).context("a status")?.to_owned());
            }
        }
    }
}

/// A raw connection that has said something and had it back.
fn raw(mesh: &Mesh) -> anyhow::Result<TcpStream> {
    let mut socket = mesh.dial(STRANGER, SocketAddr::new(mesh.resolve(STRANGER, "server.moving")?, 7000))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.write_all(b"hello\n")?;
    let mut text = String::new();
    while !text.ends_with("hello\n") {
        let mut buffer = [0; 256];
        let read = socket.read(&mut buffer)?;
        ensure!(read > 0, "closed after {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    Ok(socket)
}

/// What meshed callers do while the mode changes.
const LOADS: [&[&str]; 5] = [
    &["http://server.moving:8080/"],
    &["--no-keepalive", "http://server.moving:8080/"],
    &["--http2", "http://server.moving:8080/"],
    &["grpc://server.moving:9090"],
    &["tcp://server.moving:7000"],
];

fn moved(mesh: &Mesh, checks: &mut Scenarios) {
    let loads = LOADS.map(|how| {
        let rate = if how[0].starts_with("http") || how[0] == "--http2" { "50" } else { "20" };
        (how, mesh.load(CLIENT, &[&["-c", "2", "--rate", rate], how].concat()).expect("a load"))
    });
    let held = Held::start(mesh, CLIENT, "server.moving", 7000).expect("a connection over mTLS");
    let seen = || {
        let http = mesh.code(STRANGER, &["http://server.moving:8080/"])?;
        anyhow::Ok(format!("{http} {}", mesh.code(STRANGER, &["tcp://server.moving:7000"])?))
    };
    let mut kept = Kept::open(mesh, STRANGER, "server.moving", 8080).expect("a connection in clear");
    let open = raw(mesh);
    checks.equal("mtls-moved: permissive, in clear", "200 ok", seen());
    checks.equal("mtls-moved: permissive, on a connection that is kept", "200", kept.request());

    let strict = |mesh: &Mesh| mesh.edit(MODE, |text| text.replace("permissive", "strict"));
    let since = strict(mesh).map(|_| Instant::now()).expect("strict");
    checks.equal("mtls-moved: strict, in clear", "403 closed", seen());
    checks.equal("mtls-moved: strict, on an HTTP connection that was open", "403", kept.request());
    checks.holds("mtls-moved: strict, a raw connection that was open", "is closed once it is drained", || {
        let mut open = open?;
        let read = open.read(&mut [0; 16]);
        let after = since.elapsed();
        let closed =
            matches!(&read, Ok(0)) || read.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset);
        Ok((closed && after < 3 * DRAINED_WITHIN, format!("{read:?} after {:.1} s", after.as_secs_f64())))
    });
    mesh.edit(MODE, |text| text.replace("strict", "permissive")).expect("permissive");
    checks.equal("mtls-moved: permissive again, in clear", "200 ok", seen());
    checks.equal("mtls-moved: permissive again, on the HTTP connection", "200", kept.request());
    // Under load, a few times more, and beyond the time that connections are drained in.
    for _ in 0..3 {
        strict(mesh).expect("strict");
        mesh.edit(MODE, |text| text.replace("strict", "permissive")).expect("permissive");
    }
    let drained = Instant::now();
    until("drained", 5 * DRAINED_WITHIN, || {
        Ok(if drained.elapsed() > 2 * DRAINED_WITHIN { Ok(()) } else { Err("not yet".to_owned()) })
    })
    .expect("time passes");
    for (how, load) in loads {
        let what = how.join(" ");
        checks.holds(&format!("mtls-moved: eight times under load, {what}"), "no failed request", || lost(load));
    }
    checks.holds("mtls-moved: eight times, a TCP connection over mTLS", "every line comes back", || {
        held.stop().map(|lines| (lines > 0, format!("{lines} lines")))
    });
}

fn lost(load: Load) -> anyhow::Result<(bool, String)> {
    let summary = load.stop()?;
    Ok((summary.failed == 0, summary.said()))
}
