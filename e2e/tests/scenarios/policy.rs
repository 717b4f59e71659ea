//! TrafficPolicy: time-outs, retries, limits, outliers, load balancing, rates.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weft_e2e::load::Summary;
use weft_e2e::mesh::Mesh;
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::{scenarios, start, told};

const CLIENT: &str = "app/client";
const POLICY: &str = "policy.yaml";

#[test]
fn a_policy_does_what_it_says() {
    run("default");
}

#[cfg(feature = "slow")]
#[test]
fn a_policy_does_what_it_says_on_the_oldest_envoy() {
    run("oldest");
}

fn run(line: &str) {
    let mesh = start("policy", line);
    let mut checks = scenarios(&mesh, line);
    timeouts(&mesh, &mut checks);
    retries(&mesh, &mut checks);
    limits(&mesh, &mut checks);
    outliers(&mesh, &mut checks);
    balance(&mesh, &mut checks);
    rates(&mesh, &mut checks);
    several(&mesh, &mut checks);
    checks.end(mesh).expect("every scenario holds");
}

fn policy(name: &str, target: &str, fields: &[&str]) -> String {
    let fields: String = fields.iter().map(|field| format!("  {field}\n")).collect();
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: app}}\nspec:\n  \
         targetRefs: [{{group: \"\", kind: Service, {target}}}]\n{fields}"
    )
}

/// Sets the policy for Service `echo`, port 80. One that is not taken is a scenario that does not hold.
fn set(mesh: &Mesh, checks: &mut Scenarios, fields: &[&str]) {
    if let Err(error) = mesh.write(POLICY, &policy("p", "name: echo, port: 80", fields)) {
        checks.equal::<&str>(&format!("policy-taken: {fields:?}"), "taken", Err(error));
    }
}

/// Tells a pod how to act, by the Service that leads to it alone.
fn control(mesh: &Mesh, pod: &str, settings: &str) {
    let url = format!("http://{pod}/control");
    let answer = mesh.call(CLIENT, &["-X", "POST", "-d", settings, &url]).expect("an answer");
    assert!(answer.contains("errorRate"), "{answer}");
}

const WELL: &str = r#"{"errorRate": 0, "delay": "0s"}"#;

fn timeouts(mesh: &Mesh, checks: &mut Scenarios) {
    let call = |url: &str| mesh.calls(CLIENT, &["-n", "1", "--expect", "200", "--expect", "504", url]);
    let said = |summary: &Summary| format!("{:?} in {} ms", summary.codes, summary.latency_ms.max);
    set(mesh, checks, &["timeouts: {request: 300ms}"]);
    checks.holds("timeout-request: a slow answer", "504 after 300 ms", || {
        let summary = call("http://echo/?delay=2s")?;
        let on_time = (290.0..600.0).contains(&summary.latency_ms.max);
        Ok((summary.codes.contains_key("504") && on_time, said(&summary)))
    });
    checks.equal("timeout-request: one in time", "200", mesh.code(CLIENT, &["http://echo/?delay=50ms"]));
    checks.equal("timeout-request: another Service", "200", mesh.code(CLIENT, &["http://one/?delay=600ms"]));
    set(mesh, checks, &["timeouts: {idle: 300ms}"]);
    checks.holds("timeout-idle: an answer that is silent for too long", "ends after 300 ms", || {
        let summary = call("http://echo/?delay=2s")?;
        let on_time = (290.0..700.0).contains(&summary.latency_ms.max);
        Ok((summary.codes.contains_key("504") && on_time, said(&summary)))
    });
}

/// How many retries the caller's sidecar has made to Service `echo`.
fn retried(mesh: &Mesh) -> anyhow::Result<u64> {
    let counts = mesh.stats(CLIENT, "^cluster.app/echo/80.upstream_rq_retry$")?;
    Ok(counts.iter().map(|(_, count)| count).sum())
}

fn retries(mesh: &Mesh, checks: &mut Scenarios) {
    let calls = |arguments: &[&str]| {
        let summary = mesh.calls(CLIENT, &[&["-n", "60", "--expect", "200", "--expect", "503"], arguments].concat())?;
        anyhow::Ok((summary.codes.get("503").copied().unwrap_or(0), summary))
    };
    control(mesh, "one", r#"{"errorRate": 1}"#);
    mesh.remove(POLICY).expect("removed");
    checks.holds("retry-none: without a policy an answer of 503 is the answer", "20 of 60", || {
        let (failed, summary) = calls(&["http://echo/"])?;
        Ok((failed == 20, summary.said() + &format!(", {failed} answered 503")))
    });
    for (scenario, retries) in [
        ("retry-on: a condition", "retries: {on: [gateway-error], attempts: 2}"),
        ("retry-codes: a status", "retries: {codes: [503], attempts: 1}"),
    ] {
        set(mesh, checks, &[retries]);
        checks.holds(scenario, "another endpoint answers each of them", || {
            let before = retried(mesh)?;
            let (failed, summary) = calls(&["http://echo/"])?;
            let retried = retried(mesh)? - before;
            Ok((failed == 0 && retried >= 20, format!("{}, {retried} retries", summary.said())))
        });
    }
    set(
        mesh,
        checks,
        &["retries: {codes: [503], attempts: 1}", "loadBalancing: {algorithm: Maglev, hash: {header: x-user}}"],
    );
    checks.holds("retry-elsewhere: where a hash leads to one endpoint", "another one answers its users", || {
        let mut retries = 0;
        for user in 0..24 {
            let before = retried(mesh)?;
            let code = mesh.code(CLIENT, &["-H", &format!("x-user: {user}"), "http://echo/"])?;
            anyhow::ensure!(code == "200", "user {user}: {code}");
            retries += retried(mesh)? - before;
        }
        Ok((retries >= 1, format!("{retries} of 24 users were retried")))
    });
    set(mesh, checks, &["retries: {on: [reset], attempts: 2}"]);
    checks.holds("retry-on: another condition", "20 of 60 are 503, as without a policy", || {
        let (failed, summary) = calls(&["http://echo/"])?;
        Ok((failed == 20, format!("{}, {failed} answered 503", summary.said())))
    });
    for pod in ["two", "three"] {
        control(mesh, pod, r#"{"errorRate": 1}"#);
    }
    set(mesh, checks, &["retries: {codes: [503], attempts: 2, backoff: {base: 200ms, max: 200ms}}"]);
    checks.holds("retry-attempts: when all fail", "two retries for each request", || {
        let before = retried(mesh)?;
        let summary = mesh.calls(CLIENT, &["-n", "6", "--expect", "503", "http://echo/"])?;
        let retried = retried(mesh)? - before;
        Ok((summary.failed == 0 && retried == 12, format!("{}, {retried} retries", summary.said())))
    });
    // Two waits of 100 ms on average. Envoy's own would be 12 and 37 ms.
    checks.holds("retry-backoff: 200 ms before each retry at most", "about 200 ms, never beyond 400 ms", || {
        let summary = mesh.calls(CLIENT, &["-n", "40", "-c", "10", "--expect", "503", "http://echo/"])?;
        let latency = summary.latency_ms;
        let ok = (110.0..300.0).contains(&latency.p50) && latency.max < 600.0;
        Ok((summary.failed == 0 && ok, format!("p50 {} ms, max {} ms", latency.p50, latency.max)))
    });
    set(
        mesh,
        checks,
        &["retries: {codes: [503], attempts: 5, budget: {percent: 1, minConcurrent: 1}, backoff: {base: 50ms}}"],
    );
    checks.holds("retry-budget: many failures at once", "most retries are not made", || {
        let before = retried(mesh)?;
        mesh.calls(CLIENT, &["-n", "100", "-c", "20", "--expect", "503", "http://echo/"])?;
        let overflow = mesh.stats(CLIENT, "^cluster.app/echo/80.upstream_rq_retry_overflow$")?;
        let retried = retried(mesh)? - before;
        let refused: u64 = overflow.iter().map(|(_, count)| count).sum();
        Ok((refused >= 50 && retried < 200, format!("{retried} retries, {refused} refused")))
    });
    for pod in ["one", "two", "three"] {
        control(mesh, pod, WELL);
    }
    control(mesh, "one", r#"{"delay": "2s"}"#);
    set(
        mesh,
        checks,
        &["timeouts: {request: 5s}", "retries: {on: [reset, gateway-error], attempts: 2, perTryTimeout: 200ms}"],
    );
    checks.holds("retry-per-try-timeout: an endpoint that does not answer in time", "another one does", || {
        let summary = mesh.calls(CLIENT, &["-n", "15", "http://echo/"])?;
        let ok = summary.latency_ms.max < 1000.0 && !summary.responders.contains_key("echo one");
        Ok((summary.failed == 0 && ok, format!("{}, {:?}", summary.said(), summary.responders)))
    });
    control(mesh, "one", WELL);
}

fn limits(mesh: &Mesh, checks: &mut Scenarios) {
    let many = |url: &str| {
        let arguments = ["-n", "20", "-c", "20", "--no-keepalive", "--expect", "200", "--expect", "503", url];
        let summary = mesh.calls(CLIENT, &arguments)?;
        let served = summary.codes.get("200").copied().unwrap_or(0);
        anyhow::Ok((served, summary))
    };
    let slow = "http://echo/?delay=400ms";
    set(mesh, checks, &["limits: {requests: 5}"]);
    checks.holds("limit-requests: 20 at once where 5 may be", "about 5 are served, the others 503 at once", || {
        let (served, summary) = many(slow)?;
        Ok((summary.failed == 0 && (4..=10).contains(&served), format!("{served} served, {}", summary.said())))
    });
    set(mesh, checks, &["limits: {connections: 1, pendingRequests: 1}"]);
    checks.holds("limit-connections: 20 at once on few connections", "some are served, the others 503", || {
        // The connections are there first: a request that waits for one would itself be the pending one.
        mesh.calls(CLIENT, &["-n", "6", "http://echo/"])?;
        let (served, summary) = many(slow)?;
        Ok((summary.failed == 0 && (2..=10).contains(&served), format!("{served} served, {}", summary.said())))
    });
    set(mesh, checks, &["limits: {connections: 3, pendingRequests: 100}"]);
    checks.holds("limit-pending: 20 at once, 17 of which may wait", "all are served, one after the other", || {
        let (served, summary) = many("http://echo/?delay=100ms")?;
        let waited = summary.latency_ms.max > 350.0;
        Ok((summary.failed == 0 && served == 20 && waited, format!("{served} served, {} ms", summary.latency_ms.max)))
    });
    set(mesh, checks, &["limits: {requests: 100}"]);
    checks.equal("limit-requests: few requests", "200", mesh.code(CLIENT, &["http://echo/"]));
}

fn outliers(mesh: &Mesh, checks: &mut Scenarios) {
    control(mesh, "one", r#"{"errorRate": 1}"#);
    let detection = "outlierDetection: {consecutiveErrors: 3, interval: 500ms, ejectionTime: 4s}";
    set(mesh, checks, &[detection]);
    let calls = || mesh.calls(CLIENT, &["-n", "60", "--expect", "200", "--expect", "503", "http://echo/"]);
    checks.holds(
        "outlier-ejected: an endpoint that fails three times",
        "3 of 60 are 503, then it gets nothing",
        || {
            let first = calls()?;
            let second = mesh.calls(CLIENT, &["-n", "30", "http://echo/"])?;
            let failed = first.codes.get("503").copied().unwrap_or(0);
            Ok((failed == 3 && second.failed == 0, format!("{failed}, then {}", second.said())))
        },
    );
    control(mesh, "one", WELL);
    checks.holds("outlier-returns: when its time is over", "it is called again", || {
        let responders = until("echo one answers", Duration::from_secs(15), || {
            let summary = mesh.calls(CLIENT, &["-n", "12", "http://echo/"])?;
            let back = summary.responders.contains_key("echo one");
            Ok(if back { Ok(summary.responders) } else { Err(format!("{:?}", summary.responders)) })
        })?;
        Ok((true, format!("{responders:?}")))
    });
}

/// Who answers requests with these arguments, and how often.
fn responders(mesh: &Mesh, arguments: &[&str]) -> anyhow::Result<BTreeMap<String, u64>> {
    let summary = mesh.calls(CLIENT, &[arguments, &["http://echo/"]].concat())?;
    anyhow::ensure!(summary.failed == 0, "{}", summary.said());
    Ok(summary.responders)
}

fn balance(mesh: &Mesh, checks: &mut Scenarios) {
    mesh.remove(POLICY).expect("removed");
    checks.holds("balance-round-robin: 60 requests", "20 each", || {
        let seen = responders(mesh, &["-n", "60"])?;
        Ok((seen.len() == 3 && seen.values().all(|count| *count == 20), format!("{seen:?}")))
    });
    for (algorithm, slug) in [("RingHash", "ring-hash"), ("Maglev", "maglev")] {
        set(mesh, checks, &[&format!("loadBalancing: {{algorithm: {algorithm}, hash: {{header: x-user}}}}")]);
        checks.holds(&format!("balance-{slug}: one user by a header"), "one endpoint", || {
            let seen = responders(mesh, &["-n", "30", "-c", "3", "-H", "x-user: anna"])?;
            Ok((seen.len() == 1, format!("{seen:?}")))
        });
        checks.holds(&format!("balance-{slug}: 24 users by a header"), "every endpoint has some", || {
            let mut all = BTreeMap::new();
            for user in 0..24 {
                let seen = responders(mesh, &["-n", "1", "-H", &format!("x-user: {user}")])?;
                seen.into_keys().for_each(|who| *all.entry(who).or_insert(0) += 1);
            }
            Ok((all.len() == 3, format!("{all:?}")))
        });
    }
    set(mesh, checks, &["loadBalancing: {algorithm: RingHash, hash: {cookie: {name: session, ttl: 1h}}}"]);
    checks.holds("balance-cookie: a client without one", "is given one", || {
        let text = mesh.call(CLIENT, &["-i", "http://echo/"])?;
        let cookie = text.lines().find(|line| line.starts_with("set-cookie: session=")).unwrap_or_default();
        Ok((cookie.contains("Max-Age=3600"), cookie.to_owned()))
    });
    checks.holds("balance-cookie: a client with one", "one endpoint", || {
        let seen = responders(mesh, &["-n", "30", "-c", "3", "-H", "cookie: session=anna"])?;
        Ok((seen.len() == 1, format!("{seen:?}")))
    });
    // Envoy compares two endpoints that it takes at random, so this one gets a ninth if it always has the more requests:
    // it has to keep them far longer than a busy machine keeps those of the others.
    control(mesh, "one", r#"{"delay": "1500ms"}"#);
    set(mesh, checks, &["loadBalancing: {algorithm: LeastRequest}"]);
    checks.holds("balance-least-request: one endpoint is slow", "it gets less than the others", || {
        let seen = responders(mesh, &["-n", "200", "-c", "8"])?;
        let of = |who: &str| seen.get(who).copied().unwrap_or(0);
        let least = of("echo two").min(of("echo three"));
        Ok((of("echo one") * 2 < least, format!("{seen:?}")))
    });
    control(mesh, "one", WELL);
    checks.holds("balance-change: from one algorithm to the next under load", "no failed request", || {
        let load = mesh.load(CLIENT, &["-c", "4", "--rate", "200", "http://echo/"])?;
        let change = |fields: &[&str]| mesh.write(POLICY, &policy("p", "name: echo, port: 80", fields));
        change(&["loadBalancing: {slowStart: {window: 10s}}", "connections: {maxAge: 1s}"])?;
        change(&["loadBalancing: {algorithm: Maglev, hash: {header: x-user}}"])?;
        mesh.remove(POLICY)?;
        let summary = load.stop()?;
        Ok((summary.failed == 0, summary.said()))
    });
    slow_start(mesh, checks);
    set(mesh, checks, &["connections: {maxAge: 300ms}"]);
    checks.holds("connection-age: 300 ms under load", "connections are replaced and no request fails", || {
        let made = || -> anyhow::Result<u64> {
            let counts = mesh.stats(CLIENT, "^cluster.app/echo/80.upstream_cx_max_duration_reached$")?;
            Ok(counts.iter().map(|(_, count)| count).sum())
        };
        let load = mesh.load(CLIENT, &["-c", "2", "--rate", "100", "http://echo/"])?;
        let before = made()?;
        let replaced = until("connections are replaced", Duration::from_secs(10), || {
            let count = made()? - before;
            Ok(if count >= 5 { Ok(count) } else { Err(count.to_string()) })
        })?;
        let summary = load.stop()?;
        Ok((summary.failed == 0, format!("{replaced} replaced, {}", summary.said())))
    });
}

/// A pod that comes when the others have been there for longer than the window.
fn slow_start(mesh: &Mesh, checks: &mut Scenarios) {
    const WINDOW: Duration = Duration::from_secs(4);
    for algorithm in ["RoundRobin", "LeastRequest"] {
        set(mesh, checks, &[&format!("loadBalancing: {{algorithm: {algorithm}, slowStart: {{window: 4s}}}}")]);
        let others_are_new = Instant::now();
        let pod = mesh.read("one.yaml").expect("the pod");
        mesh.delete("one.yaml").expect("deleted");
        mesh.wait_for_pods("app", "one", 0).expect("it is gone");
        // The window is a time and nothing else: what is left of it has to pass.
        std::thread::sleep(WINDOW.saturating_sub(others_are_new.elapsed()));
        checks.holds(&format!("balance-slow-start: a new endpoint, {algorithm}"), "little, then its share", || {
            mesh.put("one.yaml", &pod)?;
            mesh.wait_for_pods("app", "one", 1)?;
            let share = || -> anyhow::Result<(u64, String)> {
                let seen = responders(mesh, &["-n", "120", "-c", "4"])?;
                Ok((seen.get("echo one").copied().unwrap_or(0), format!("{seen:?}")))
            };
            let (first, begun) = share()?;
            let whole = until("a third of the calls", Duration::from_secs(15), || {
                let (now, seen) = share()?;
                Ok(if now >= 35 { Ok(seen) } else { Err(seen) })
            })?;
            Ok((first < 25, format!("{begun}, then {whole}")))
        });
    }
}

fn rates(mesh: &Mesh, checks: &mut Scenarios) {
    let limited = |service: &str, port: u16| {
        policy("rate", &format!("name: {service}, port: {port}"), &["rateLimit: {count: 5, per: 1h, burst: 10}"])
    };
    mesh.write(POLICY, &limited("one", 80)).expect("a policy");
    checks.holds("rate-http: 30 requests where 10 may be", "10 are served, 20 are 429", || {
        let summary = mesh.calls(CLIENT, &["-n", "30", "--expect", "200", "--expect", "429", "http://one/"])?;
        let ok = summary.codes.get("200") == Some(&10) && summary.codes.get("429") == Some(&20);
        Ok((ok, summary.said() + &format!(" {:?}", summary.codes)))
    });
    checks.equal("rate-http: the limit is the pod's, whichever Service leads to it", "429", {
        let seen = mesh.calls(CLIENT, &["-n", "3", "--expect", "200", "--expect", "429", "http://echo/"]);
        seen.map(|summary| if summary.codes.contains_key("429") { "429" } else { "200" })
    });
    checks.equal("rate-http: what a gRPC call is told", "RESOURCE_EXHAUSTED", mesh.code(CLIENT, &["grpc://one:80"]));
    checks.equal("rate-http: another pod", "200", mesh.code(CLIENT, &["http://two/"]));
    checks.equal("rate-http: another HTTP port of the pod", "OK", mesh.code(CLIENT, &["grpc://one:9090"]));
    checks.equal("rate-http: another port of the pod", "ok", mesh.code(CLIENT, &["tcp://one:7000"]));
    mesh.write(POLICY, &limited("two", 7000)).expect("a policy");
    checks.holds("rate-tcp: 30 connections where 10 may be", "10 are served, 20 are closed", || {
        let arguments = ["-n", "30", "--no-keepalive", "--expect", "ok", "--expect", "closed", "tcp://two:7000"];
        let summary = mesh.calls(CLIENT, &arguments)?;
        let ok = summary.codes.get("ok") == Some(&10) && summary.codes.get("closed") == Some(&20);
        Ok((ok, summary.said() + &format!(" {:?}", summary.codes)))
    });
    // Over HTTP/2, for which there is no connection yet.
    checks.equal("rate-tcp: another port of the pod", "200", mesh.code(CLIENT, &["--http2", "http://two/"]));
    checks.equal("rate-tcp: another pod", "ok", mesh.code(CLIENT, &["tcp://one:7000"]));
    mesh.remove(POLICY).expect("removed");
    checks.equal("rate-tcp: without the policy", "ok", mesh.code(CLIENT, &["tcp://two:7000"]));
}

fn several(mesh: &Mesh, checks: &mut Scenarios) {
    mesh.write(POLICY, &policy("every", "name: echo", &["timeouts: {request: 100ms}"])).expect("a policy");
    checks.equal("policy-port: one for every port", "504", mesh.code(CLIENT, &["http://echo/?delay=500ms"]));
    let port = policy("port", "name: echo, port: 80", &["timeouts: {request: 5s}"]);
    mesh.write("port.yaml", &port).expect("a second policy");
    checks.equal(
        "policy-port: one that names the port counts",
        "200",
        mesh.code(CLIENT, &["http://echo/?delay=500ms"]),
    );
    mesh.put("third.yaml", &policy("third", "name: echo, port: 80", &["timeouts: {request: 1s}"])).expect("a third");
    checks.holds("policy-conflict: two for one port", "the second is reported", || {
        told(mesh, "TrafficPolicy app/third spec.targetRefs the policy `port` already counts for port 80")
    });
    mesh.put("third.yaml", &policy("third", "name: nobody", &["timeouts: {request: 1s}"])).expect("a third");
    checks.holds("policy-target: a Service that does not exist", "is reported", || {
        told(mesh, "TrafficPolicy app/third spec.targetRefs[0] Service app/nobody does not exist")
    });
}
