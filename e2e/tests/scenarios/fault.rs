//! TrafficFault: what goes wrong on purpose, for whom, and for how long.

use std::time::Duration;

use anyhow::Context;
use weft_e2e::mesh::Mesh;
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::{scenarios, start, told};

const CLIENT: &str = "app/client";
const OTHER: &str = "app/other";
const FAULT: &str = "fault.yaml";
const HTTP: &str = "targetRefs: [{kind: Service, name: echo, port: 80}]";

#[test]
fn faults_hit_whom_they_should_and_nobody_else() {
    run("default");
}

#[cfg(feature = "slow")]
#[test]
fn faults_hit_whom_they_should_on_the_oldest_envoy() {
    run("oldest");
}

fn run(line: &str) {
    let mesh = start("fault", line);
    let mut checks = scenarios(&mesh, line);
    harm(&mesh, &mut checks);
    whom(&mesh, &mut checks);
    several(&mesh, &mut checks);
    time(&mesh, &mut checks);
    checks.end(mesh).expect("every scenario holds");
}

/// A fault named `NAME` with these fields of its spec, each a line.
fn fault(name: &str, fields: &[&str]) -> String {
    let fields: String = fields.iter().map(|field| format!("  {field}\n")).collect();
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: TrafficFault\nmetadata: {{name: {name}, namespace: app}}\nspec:\n{fields}"
    )
}

/// Sets the fault, and waits until every sidecar has it. One that is not taken is a scenario that does not hold.
fn set(mesh: &Mesh, checks: &mut Scenarios, fields: &[&str]) {
    if let Err(error) = mesh.write(FAULT, &fault("f", fields)) {
        checks.equal::<&str>(&format!("fault-taken: {fields:?}"), "taken", Err(error));
    }
}

/// How calls of these URLs by a pod end, one after the other.
fn codes(mesh: &Mesh, pod: &str, urls: &[&str]) -> anyhow::Result<String> {
    let codes = urls.iter().map(|url| mesh.code(pod, &[url])).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(codes.join(" "))
}

fn harm(mesh: &Mesh, checks: &mut Scenarios) {
    let slow = |arguments: &[&str]| mesh.calls(CLIENT, &[&["-n", "10"], arguments].concat());
    checks.holds("fault-delay: the time before", "at once", || {
        let summary = slow(&["http://echo/"])?;
        Ok((summary.failed == 0 && summary.latency_ms.p50 < 100.0, format!("{} ms", summary.latency_ms.p50)))
    });
    set(mesh, checks, &[HTTP, "delay: {fixed: 300ms}"]);
    for (scenario, arguments) in [
        ("fault-delay: HTTP/1.1", &["http://echo/"][..]),
        ("fault-delay: HTTP/2", &["--http2", "http://echo/"]),
        ("fault-delay: the caller's own x-weft-dst", &["-H", "x-weft-dst: 10.96.0.1:80", "http://echo/"]),
    ] {
        checks.holds(scenario, "every request waits 300 ms and is served", || {
            let summary = slow(arguments)?;
            let waits = (295.0..450.0).contains(&summary.latency_ms.p50);
            Ok((summary.failed == 0 && waits, format!("{} ms, {}", summary.latency_ms.p50, summary.said())))
        });
    }
    checks.holds("fault-port: another port of the Service", "at once", || {
        let summary = slow(&["http://echo:81/"])?;
        Ok((summary.failed == 0 && summary.latency_ms.p50 < 100.0, format!("{} ms", summary.latency_ms.p50)))
    });

    set(mesh, checks, &[HTTP, "abort: {httpStatus: 418}"]);
    checks.equal("fault-abort: HTTP", "418 200", codes(mesh, CLIENT, &["http://echo/", "http://echo:81/"]));
    checks.equal(
        "fault-abort: the answer says who gave it",
        "Weft: TrafficFault app/f answers in place of the callee",
        mesh.call(CLIENT, &["http://echo/"]).map(|text| text.trim().to_owned()),
    );
    checks.holds("fault-abort: the callee", "sees nothing of 50 aborted requests", || {
        let seen = || served(mesh);
        let before = seen()?;
        let summary = mesh.calls(CLIENT, &["-n", "50", "--expect", "418", "http://echo/"])?;
        let after = seen()?;
        Ok((summary.failed == 0 && after == before, format!("{}, {} seen", summary.said(), after - before)))
    });

    set(
        mesh,
        checks,
        &["targetRefs: [{kind: Service, name: echo, port: 9090}]", "abort: {grpcStatus: RESOURCE_EXHAUSTED}"],
    );
    checks.equal("fault-abort: gRPC status by name", "RESOURCE_EXHAUSTED", mesh.code(CLIENT, &["grpc://echo:9090"]));
    set(mesh, checks, &["targetRefs: [{kind: Service, name: echo, port: 9090}]", "abort: {grpcStatus: 7}"]);
    checks.equal("fault-abort: gRPC status by number", "PERMISSION_DENIED", mesh.code(CLIENT, &["grpc://echo:9090"]));
    set(mesh, checks, &["targetRefs: [{kind: Service, name: echo, port: 9090}]", "abort: {httpStatus: 503}"]);
    checks.equal("fault-abort: an HTTP status for gRPC", "UNAVAILABLE", mesh.code(CLIENT, &["grpc://echo:9090"]));

    set(mesh, checks, &[HTTP, "bandwidth: {response: 128KiB}"]);
    checks.holds("fault-bandwidth: a response of 256 KiB at 128 KiB a second", "takes 2 s", || {
        let summary = mesh.calls(CLIENT, &["-n", "1", "http://echo/?size=262144"])?;
        let takes = (1600.0..2600.0).contains(&summary.latency_ms.max);
        Ok((summary.failed == 0 && takes, format!("{} ms, {}", summary.latency_ms.max, summary.said())))
    });
}

/// How many requests the callee's sidecar has seen.
fn served(mesh: &Mesh) -> anyhow::Result<u64> {
    let counts = mesh.stats("app/echo", "^http.inbound.downstream_rq_total$")?;
    counts.first().map(|(_, count)| *count).context("a counter of requests")
}

fn whom(mesh: &Mesh, checks: &mut Scenarios) {
    /// What only a callee's sidecar may say of a caller.
    const CLAIM: &str = "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/app/sa/client";
    const ABORT: &str = "abort: {httpStatus: 503}";
    set(mesh, checks, &[HTTP, ABORT, "percentage: 30"]);
    checks.holds("fault-percentage: 30 of 100 are hit", "30 % of 1,500, within 4", || {
        let summary =
            mesh.calls(CLIENT, &["-n", "1500", "-c", "8", "--expect", "200", "--expect", "503", "http://echo/"])?;
        #[allow(clippy::cast_precision_loss, reason = "counts of requests")]
        let share = 100.0 * summary.codes.get("503").copied().unwrap_or(0) as f64 / summary.requests as f64;
        Ok((summary.failed == 0 && (share - 30.0).abs() < 4.0, format!("{share:.1} %, {}", summary.said())))
    });
    set(mesh, checks, &[HTTP, ABORT, "percentage: 0"]);
    checks.holds("fault-percentage: 0 hits nothing", "no failed request of 100", || {
        let summary = mesh.calls(CLIENT, &["-n", "100", "http://echo/"])?;
        Ok((summary.failed == 0, summary.said()))
    });

    set(mesh, checks, &[HTTP, ABORT, "callers: [{kind: ServiceAccount, name: client}]"]);
    checks.equal("fault-caller: the one that is named", "503", mesh.code(CLIENT, &["http://echo/"]));
    checks.equal("fault-caller: another one", "200", mesh.code(OTHER, &["http://echo/"]));
    checks.equal(
        "fault-caller: another one that claims to be the first",
        "200",
        mesh.code(OTHER, &["-H", CLAIM, "http://echo/"]),
    );
    checks.holds("fault-caller: what tells of the destination", "does not leave its sidecar", || {
        let text = mesh.call(OTHER, &["http://echo/"])?;
        Ok((text.contains("\"headers\"") && !text.contains("x-weft-"), text))
    });

    let see = |urls: &[&str]| codes(mesh, CLIENT, urls);
    set(mesh, checks, &[HTTP, ABORT, "requests: [{pathRegex: /slow}]"]);
    checks.equal(
        "fault-path: the beginning of the path",
        "503 503 200",
        see(&["http://echo/slow/x?y=1", "http://echo/slow", "http://echo/x/slow"]),
    );
    set(mesh, checks, &[HTTP, ABORT, "requests: [{headers: [{x-user: 'beta-.*'}]}]"]);
    let with = |header: &str| mesh.code(CLIENT, &["-H", header, "http://echo/"]);
    checks.equal("fault-header: its value fits", "503", with("x-user: beta-7"));
    checks.equal("fault-header: another value", "200", with("x-user: alpha"));
    checks.equal("fault-header: without it", "200", see(&["http://echo/"]));
    set(mesh, checks, &[HTTP, ABORT, "requests: [{methods: [POST, PUT]}]"]);
    let method = |method: &str| mesh.code(CLIENT, &["-X", method, "http://echo/"]);
    checks.equal("fault-method: one that is named", "503", method("POST"));
    checks.equal("fault-method: another one", "200", method("GET"));
    set(mesh, checks, &[HTTP, ABORT, "requests: [{routeGroup: api}]"]);
    let urls = ["http://echo/orders/7", "http://echo/orders/x", "http://echo/carts/1"];
    checks.equal("fault-group: every match of an HTTPRouteGroup", "503 200 503", see(&urls));
    set(mesh, checks, &[HTTP, ABORT, "requests: [{routeGroup: api, matches: [carts]}]"]);
    checks.equal("fault-group: one match by name", "200 200 503", see(&urls));
    mesh.edit("mesh.yaml", |text| text.replace("pathRegex: /carts", "pathRegex: /orders/x")).expect("a changed group");
    checks.equal("fault-group: the group changes", "200 503 200", see(&urls));
    mesh.edit("mesh.yaml", |text| text.replace("pathRegex: /orders/x", "pathRegex: /carts")).expect("as it was");
}

fn several(mesh: &Mesh, checks: &mut Scenarios) {
    let see = |urls: &[&str]| codes(mesh, CLIENT, urls);
    set(mesh, checks, &[HTTP, "abort: {httpStatus: 503}", "requests: [{pathRegex: /a}]"]);
    let younger = |fields: &[&str]| fault("younger", fields);
    mesh.write("younger.yaml", &younger(&[HTTP, "abort: {httpStatus: 501}"])).expect("a second fault");
    checks.equal(
        "fault-conflict: the older one counts where both fit",
        "503 501",
        see(&["http://echo/a", "http://echo/b"]),
    );
    checks.holds("fault-conflict: the younger one", "is reported", || {
        told(mesh, "TrafficFault app/younger spec.requests the older fault `f` decides")
    });
    set(mesh, checks, &[HTTP, "abort: {httpStatus: 503}", "requests: [{pathRegex: /a}]", "percentage: 0"]);
    checks.equal("fault-conflict: whom the older one spares", "200 501", see(&["http://echo/a", "http://echo/b"]));
    mesh.remove(FAULT).expect("removed");
    checks.equal("fault-conflict: the older one goes", "501 501", see(&["http://echo/a", "http://echo/b"]));
    mesh.remove("younger.yaml").expect("removed");

    let split = "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {name: echo, namespace: app}\n\
                 spec:\n  service: echo\n  matches: [{kind: HTTPRouteGroup, name: api}]\n  \
                 backends: [{service: canary, weight: 1}]\n";
    mesh.write("split.yaml", split).expect("a split");
    set(
        mesh,
        checks,
        &[HTTP, "abort: {httpStatus: 503}", "requests: [{pathRegex: /carts/1}, {headers: [{x-fail: now}]}]"],
    );
    checks.holds("fault-split: a fault beside a split with matches", "both do what they say", || {
        let version = |arguments: &[&str]| {
            let summary =
                mesh.calls(CLIENT, &[&["-n", "1", "--expect", "200", "--expect", "503"], arguments].concat())?;
            let who = summary.responders.into_keys().next();
            anyhow::Ok(who.unwrap_or_else(|| summary.codes.into_keys().collect()))
        };
        let seen = [
            version(&["http://echo/"])?,
            version(&["http://echo/carts/2"])?,
            version(&["http://echo/carts/1"])?,
            version(&["-H", "x-fail: now", "http://echo/carts/2"])?,
            version(&["-H", "x-fail: now", "http://echo/"])?,
        ]
        .join(", ");
        Ok((seen == "echo v1, echo v2, 503, 503, 503", seen))
    });
    set(mesh, checks, &[HTTP, "delay: {fixed: 50ms}", "requests: [{headers: [{x-slow: now}]}]"]);
    checks.holds("fault-split: a delay of what is split", "it still goes where the split says", || {
        let summary = mesh.calls(CLIENT, &["-n", "5", "-H", "x-slow: now", "http://echo/carts/2"])?;
        let ok = summary.responders.contains_key("echo v2") && summary.latency_ms.p50 >= 49.0;
        Ok((ok && summary.failed == 0, format!("{:?}, {} ms", summary.responders, summary.latency_ms.p50)))
    });
    mesh.remove("split.yaml").expect("removed");
    mesh.remove(FAULT).expect("removed");

    mesh.put(FAULT, &fault("f", &["targetRefs: [{kind: Service, name: echo, port: 7000}]", "delay: {fixed: 1s}"]))
        .expect("a fault");
    checks.holds("fault-tcp: a fault for a TCP port", "is reported", || {
        told(mesh, "TrafficFault app/f spec.targetRefs[0].port port 7000 of Service app/echo is TCP")
    });
    checks.equal("fault-tcp: what is called there", "ok", mesh.code(CLIENT, &["tcp://echo:7000"]));
    mesh.put(FAULT, &fault("f", &["targetRefs: [{kind: Service, name: nobody}]", "delay: {fixed: 1s}"]))
        .expect("a fault");
    checks.holds("fault-target: a Service that does not exist", "is reported", || {
        told(mesh, "TrafficFault app/f spec.targetRefs[0] Service app/nobody does not exist")
    });
    mesh.delete(FAULT).expect("removed");
}

fn time(mesh: &Mesh, checks: &mut Scenarios) {
    checks.holds("fault-change: made, changed and removed under load", "no failed request", || {
        let load = mesh.load(CLIENT, &["-c", "4", "--rate", "200", "http://echo/"])?;
        mesh.write(FAULT, &fault("f", &[HTTP, "delay: {fixed: 20ms}"]))?;
        let of_client = "callers: [{kind: ServiceAccount, name: client}]";
        mesh.write(FAULT, &fault("f", &[HTTP, "delay: {fixed: 40ms}", of_client]))?;
        mesh.remove(FAULT)?;
        let summary = load.stop()?;
        Ok((summary.failed == 0, summary.said()))
    });
    set(mesh, checks, &[HTTP, "abort: {httpStatus: 503}", "expiresAfter: 3s"]);
    checks.equal("fault-expires: before its time is over", "503", mesh.code(CLIENT, &["http://echo/"]));
    checks.holds("fault-expires: after it", "the fault ends by itself and says so", || {
        let (said, text) = told(mesh, "TrafficFault app/f spec.expiresAfter the fault has ended by itself, 3s after")?;
        let code = until("200", Duration::from_secs(5), || match mesh.code(CLIENT, &["http://echo/"])? {
            code if code == "200" => Ok(Ok(code)),
            code => Ok(Err(code)),
        })?;
        let logged = mesh.log().iter().any(|line| line.contains("the fault has ended by itself"));
        Ok((said && logged, format!("{code}, {text}, logged: {logged}")))
    });
    let old = fault("f", &[HTTP, "abort: {httpStatus: 503}", "expiresAfter: 1h"])
        .replace("metadata: {", "metadata: {creationTimestamp: '2020-01-01T00:00:00Z', ");
    mesh.put(FAULT, &old).expect("a fault");
    checks.holds("fault-expires: one that was made long ago", "hits nothing and is reported", || {
        let (said, text) = told(mesh, "ended by itself, 3600s after")?;
        Ok((said && mesh.code(CLIENT, &["http://echo/"])? == "200", text))
    });
}
