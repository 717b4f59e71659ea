//! Pods come and go under load: started, restarted, scaled, killed, and ended in good order.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hyper_util::rt::TokioIo;
use tonic::transport::Endpoint;
use weft::app::proto::EchoRequest;
use weft::app::proto::echo_client::EchoClient;
use weft::local::control::PodSelector;
use weft_e2e::load::Load;
use weft_e2e::mesh::{Mesh, PATIENCE};
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::{answer, scenarios, start};

const CLIENT: &str = "app/client";

#[test]
fn pods_come_and_go_without_a_loss() {
    run("default");
}

#[cfg(feature = "slow")]
#[test]
fn pods_come_and_go_without_a_loss_on_the_oldest_envoy() {
    run("oldest");
}

fn run(line: &str) {
    let mesh = start("life", line);
    let mut checks = scenarios(&mesh, line);
    started(&mesh, &mut checks);
    half(&mesh, &mut checks);
    restarted(&mesh, &mut checks);
    scaled(&mesh, &mut checks);
    killed(&mesh, &mut checks);
    ended(&mesh, &mut checks);
    hook(&mesh, &mut checks);
    checks.end(mesh).expect("every scenario holds");
}

/// An application whose first act is a call, which its name tells of.
const EAGER: &str = r#"apiVersion: v1
kind: Pod
metadata:
  name: eager
  namespace: work
  labels: {app: eager}
  annotations:
    weft.dev/local-command: >-
      if weft app call --timeout 3s http://back.work/;
      then exec weft app serve --name=called --http=8080;
      else exec weft app serve --name=failed --http=8080; fi
spec:
  serviceAccountName: eager
  containers: [{name: app, image: ghcr.io/weft-mesh/weft:0.1.0}]
---
apiVersion: v1
kind: Service
metadata: {name: eager, namespace: work}
spec: {selector: {app: eager}, ports: [{name: http, port: 80, targetPort: 8080}]}
"#;

fn started(mesh: &Mesh, checks: &mut Scenarios) {
    // Its workload has called nobody before: even the destination is asked for.
    mesh.put("eager.yaml", EAGER).expect("a pod");
    mesh.wait_for_pods("work", "eager", 1).expect("it runs");
    until("an answer", PATIENCE, || {
        let code = mesh.code(CLIENT, &["http://eager.work/"])?;
        Ok(if code == "200" { Ok(()) } else { Err(code) })
    })
    .expect("it answers");
    let seen = answer(mesh, CLIENT, &["http://eager.work/"]);
    checks.equal("life-start: an application whose first act is a call", "called HTTP/1.1 mtls", seen);
}

/// One of two pods is there and does not listen: its sidecar says that nobody has seen the request.
fn half(mesh: &Mesh, checks: &mut Scenarios) {
    let many = |how: &[&str]| {
        let summary = mesh.calls(CLIENT, &[&["-n", "60", "-c", "2"], how].concat())?;
        anyhow::Ok(summary.said())
    };
    let all = "60 requests, 0 failed";
    checks.equal("life-unserved: GET, one of two does not listen", all, many(&["http://half.work/"]));
    checks.equal("life-unserved: POST, HTTP/2", all, many(&["--http2", "--size", "1000", "http://half.work/"]));
    let retries = || {
        let stats = mesh.stats(CLIENT, "^cluster.work/half/80.upstream_rq_retry_success$")?;
        anyhow::Ok(stats.iter().map(|(_, count)| count).sum::<u64>())
    };
    checks.holds("life-unserved: the caller's sidecar", "has asked another", || {
        let count = retries()?;
        Ok((count > 0, format!("{count} times")))
    });
    mesh.edit("half.yaml", |text| text.replace("--http=8080", "--http=8082")).expect("nobody listens");
    until("other pods", PATIENCE, || {
        let code = mesh.code(CLIENT, &["http://half.work/"])?;
        Ok(if code == "503" { Ok(()) } else { Err(code) })
    })
    .expect("503");
    checks.holds("life-unserved: nobody listens", "503, and no word between the sidecars is seen", || {
        let text = mesh.call(CLIENT, &["-i", "http://half.work/"])?;
        Ok((text.contains("503") && !text.contains("x-weft"), text.lines().next().unwrap_or_default().to_owned()))
    });
}

/// The names of a workload's pods.
fn names(mesh: &Mesh, workload: &str) -> anyhow::Result<BTreeSet<String>> {
    Ok(mesh.pods_of("work", workload)?.into_iter().map(|pod| pod.name).collect())
}

/// Changes a file, and waits until these workloads have so many new pods, all of them ready.
fn roll(
    mesh: &Mesh,
    file: &str,
    workloads: &[(&str, usize)],
    edit: impl FnOnce(String) -> String,
) -> anyhow::Result<()> {
    let old = workloads.iter().map(|(workload, _)| names(mesh, workload)).collect::<anyhow::Result<Vec<_>>>()?;
    mesh.put(file, &edit(mesh.read(file)?))?;
    for ((workload, count), old) in workloads.iter().zip(&old) {
        until(&format!("new pods of {workload}"), PATIENCE, || {
            let left = names(mesh, workload)?.intersection(old).count();
            Ok(if left > 0 { Err(format!("{left} old ones are left")) } else { Ok(()) })
        })?;
        mesh.wait_for_pods("work", workload, *count)?;
    }
    Ok(())
}

/// As `kubectl rollout restart` marks it.
fn restart(text: &str, number: u32) -> String {
    text.replace(&format!("restartedAt: \"{number}\""), &format!("restartedAt: \"{}\"", number + 1))
}

const RESTARTED: [(&str, usize); 4] = [("back", 2), ("bare", 1), ("front", 1), ("slow", 1)];

const LOADS: [(&str, &[&str]); 11] = [
    ("back, HTTP/1.1", &["http://back.work/"]),
    ("back, a connection for each", &["--no-keepalive", "http://back.work/"]),
    ("back, HTTP/2", &["--http2", "http://back.work/"]),
    ("back, gRPC", &["grpc://back.work:9090"]),
    ("back, TCP", &["tcp://back.work:7000"]),
    ("back, requests that take their time", &["http://back.work/?delay=800ms"]),
    ("bare, HTTP/1.1", &["http://bare.work/"]),
    ("bare, TCP", &["tcp://bare.work:7000"]),
    ("front, which calls back", &["http://front.work/"]),
    ("front, HTTP/2", &["--http2", "http://front.work/"]),
    ("slow, HTTP/1.1", &["http://slow.work/"]),
];

fn restarted(mesh: &Mesh, checks: &mut Scenarios) {
    let loads = LOADS.map(|(what, how)| {
        let load = mesh.load(CLIENT, &[&["-c", "2", "--rate", "20"], how].concat()).expect("a load");
        (what, load)
    });
    let streams = Streams::start(mesh).expect("streams");
    for number in 0..2 {
        checks.holds(
            &format!("life-restart: every workload, {}", ["once", "twice"][number as usize]),
            "new pods",
            || {
                let started = Instant::now();
                roll(mesh, "restarted.yaml", &RESTARTED, |text| restart(&text, number))?;
                Ok((true, format!("after {} s", started.elapsed().as_secs())))
            },
        );
    }
    for (what, load) in loads {
        checks.holds(&format!("life-restart: {what}"), "no failed request", || lost(load));
    }
    checks.holds("life-restart: slow, gRPC streams of 2 s", "each is given to its end", || {
        streams.stop().map(|streams| (streams > 2, format!("{streams} streams")))
    });
}

/// gRPC streams of 2 s, one after the other, each on a connection of its own.
struct Streams {
    done: Arc<AtomicBool>,
    running: JoinHandle<anyhow::Result<u32>>,
}

impl Streams {
    const MESSAGES: u32 = 40;

    fn start(mesh: &Mesh) -> anyhow::Result<Self> {
        let address = SocketAddr::new(mesh.resolve(CLIENT, "slow.work")?, 9090);
        let (client, done) = (mesh.client().clone(), Arc::new(AtomicBool::new(false)));
        let until = done.clone();
        let running = std::thread::spawn(move || {
            let mut streams = 0;
            while !until.load(Ordering::Relaxed) {
                let socket = client.dial(Some(PodSelector::new("app", "client")), address)?;
                let messages = stream(socket).with_context(|| format!("stream {streams}"))?;
                ensure!(messages == Self::MESSAGES, "stream {streams} ended after {messages} messages");
                streams += 1;
            }
            Ok(streams)
        });
        Ok(Self { done, running })
    }

    /// How many there were, all of them given to their ends.
    fn stop(self) -> anyhow::Result<u32> {
        self.done.store(true, Ordering::Relaxed);
        self.running.join().map_err(|_| anyhow::anyhow!("the streams panicked"))?
    }
}

/// Asks for one stream, and returns how many messages came.
fn stream(socket: TcpStream) -> anyhow::Result<u32> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    socket.set_nonblocking(true)?;
    runtime.block_on(async {
        let mut socket = Some(TokioIo::new(tokio::net::TcpStream::from_std(socket)?));
        let connector = tower::service_fn(move |_| {
            let socket = socket.take().ok_or_else(|| std::io::Error::other("the connection was lost"));
            std::future::ready(socket)
        });
        let channel = Endpoint::from_static("http://slow.work:9090").connect_with_connector(connector).await?;
        let request = EchoRequest { message: "stream".to_owned(), count: Streams::MESSAGES };
        let mut answers = EchoClient::new(channel).echo_stream(request).await?.into_inner();
        let mut messages = 0;
        while answers.message().await?.is_some() {
            messages += 1;
        }
        Ok(messages)
    })
}

fn lost(load: Load) -> anyhow::Result<(bool, String)> {
    let summary = load.stop()?;
    Ok((summary.failed == 0, summary.said()))
}

fn scaled(mesh: &Mesh, checks: &mut Scenarios) {
    let replicas = |count: usize| {
        let text = mesh.read("pair.yaml")?;
        let now = text.lines().find(|line| line.starts_with("  replicas:")).unwrap_or_default().to_owned();
        mesh.put("pair.yaml", &text.replace(&now, &format!("  replicas: {count}")))?;
        mesh.wait_for_pods("work", "pair", count)
    };
    let code = || mesh.code(CLIENT, &["http://pair.work/"]);
    let load =
        mesh.load(CLIENT, &["-c", "2", "--rate", "50", "--expect", "200", "--expect", "503", "http://pair.work/"]);
    let load = load.expect("a load");
    replicas(0).expect("none");
    checks.equal("life-scale: while there is none", "503", code());
    replicas(2).expect("two");
    checks.equal("life-scale: as soon as they are ready again", "200", code());
    checks.holds("life-scale: to none and back", "200, and 503 while there is none", || {
        let summary = load.stop()?;
        Ok((summary.failed == 0 && summary.codes.len() == 2, format!("{:?}", summary.codes)))
    });
}

/// Kills a container of one of two pods under load.
fn kill(mesh: &Mesh, container: &str) -> anyhow::Result<(bool, String)> {
    let load = mesh.load(CLIENT, &["-c", "4", "--rate", "200", "--timeout", "2s", "http://pair.work/"])?;
    let pods = mesh.pods_of("work", "pair")?;
    let Some(pod) = pods.first() else { anyhow::bail!("no pod of pair") };
    ensure!(pods.len() == 2 && pods.iter().all(|pod| pod.ready), "two pods");
    let from = answered(mesh)?;
    until("calls", PATIENCE, || Ok(if answered(mesh)? > from + 50 { Ok(()) } else { Err("few".to_owned()) }))?;
    let before = pod.restarts;
    mesh.client().kill_container(PodSelector::new("work", pod.name.clone()), container)?;
    until("its restart", PATIENCE, || {
        let pods = mesh.pods_of("work", "pair")?;
        let now = pods.iter().find(|now| now.name == pod.name).map_or((0, false), |pod| (pod.restarts, pod.ready));
        Ok(if now.0 > before && now.1 { Ok(()) } else { Err(format!("{now:?}")) })
    })?;
    let from = answered(mesh)?;
    until("calls", PATIENCE, || Ok(if answered(mesh)? > from + 50 { Ok(()) } else { Err("few".to_owned()) }))?;
    let summary = load.stop()?;
    // What was in flight on the connections of the one that died is lost: at most one for each of the callers.
    Ok((summary.failed <= 4, summary.said()))
}

fn answered(mesh: &Mesh) -> anyhow::Result<u64> {
    Ok(mesh.stats(CLIENT, "^cluster.work/pair/80.upstream_rq_2xx$")?.iter().map(|(_, count)| count).sum())
}

fn killed(mesh: &Mesh, checks: &mut Scenarios) {
    const EXPECTED: &str = "no call fails but those in flight";
    checks.holds("life-kill: the application of one of two pods", EXPECTED, || kill(mesh, "app"));
    checks.holds("life-kill: the sidecar of one of two pods", EXPECTED, || kill(mesh, "weft-proxy"));
}

/// What an injector writes into a sidecar's container.
const PRE_STOP: &str = include_str!("../../../envoy-bootstrap/pre-stop.sh");

/// The hook drains a sidecar as the playground does: answers carry `connection: close`, and it ends when the last is given.
fn hook(mesh: &Mesh, checks: &mut Scenarios) {
    let run = || {
        let client = mesh.client().clone();
        let argv = ["bash", "-c", PRE_STOP].map(str::to_owned).to_vec();
        std::thread::spawn(move || client.output(PodSelector::new("work", "eager"), argv))
    };
    let closed = || {
        // The caller's sidecar keeps the word for itself.
        let stats = mesh.stats("work/eager", "^http.inbound.downstream_cx_drain_close$")?;
        anyhow::Ok(stats.iter().map(|(_, count)| count).sum::<u64>())
    };
    checks.holds(
        "life-pre-stop: the hook for Kubernetes",
        "waits for a request of 2 s, then asks to go elsewhere",
        || {
            let slow = mesh.load(CLIENT, &["-c", "1", "--rate", "100", "http://eager.work/?delay=2s"])?;
            let active = || {
                let stats = mesh.stats("work/eager", "^http.inbound.downstream_rq_active$")?;
                anyhow::Ok(stats.iter().map(|(_, count)| count).sum::<u64>())
            };
            until("a request", PATIENCE, || Ok(if active()? > 0 { Ok(()) } else { Err("none".to_owned()) }))?;
            let started = Instant::now();
            let hook = run();
            let summary = slow.end()?;
            let (code, text) = hook.join().map_err(|_| anyhow::anyhow!("the hook panicked"))??;
            let took = started.elapsed();
            let after = mesh.code(CLIENT, &["http://eager.work/"])?;
            let closed = closed()?;
            let ok = code == 0 && text.is_empty() && summary.failed == 0 && after == "200" && closed > 0;
            let waited = took > Duration::from_millis(500);
            let said = format!(
                "exit {code} {text} after {:.1} s, {}, then {after}, {closed} closed",
                took.as_secs_f64(),
                summary.said()
            );
            Ok((ok && waited, said))
        },
    );
}

fn ended(mesh: &Mesh, checks: &mut Scenarios) {
    const FILE: &str = "ending.yaml";
    // The last act of one is a call to a pod that nobody else calls now, not even a probe.
    let called = || {
        let stats = mesh.stats("work/eager", "^http.inbound.downstream_rq_2xx$")?;
        anyhow::Ok(stats.iter().map(|(_, count)| count).sum::<u64>())
    };
    let text = mesh.read(FILE).expect("a file");
    let [first, second] = text.split("---\n").collect::<Vec<_>>()[..] else { panic!("two pods in {FILE}") };
    let gone = |workload: &str| {
        let started = Instant::now();
        until(&format!("the end of {workload}"), PATIENCE, || {
            Ok(if names(mesh, workload)?.is_empty() { Ok(()) } else { Err("it is there".to_owned()) })
        })?;
        anyhow::Ok(started.elapsed())
    };
    checks.holds("life-pre-stop: a hook that calls out through the sidecar", "one call more is answered", || {
        let before = called()?;
        mesh.put(FILE, second)?;
        let took = gone("hooked")?;
        let calls = called()? - before;
        Ok((calls == 1, format!("{calls} calls, {:.1} s", took.as_secs_f64())))
    });
    checks.holds("life-grace: an application that does not end by itself", "is killed after its 3 s", || {
        mesh.put(FILE, &first.replace("name: hooked", "name: another"))?;
        let took = gone("stubborn")?;
        let ok = (Duration::from_millis(2500)..Duration::from_secs(6)).contains(&took);
        Ok((ok, format!("gone after {:.1} s", took.as_secs_f64())))
    });
}
