//! What `weft audit` tells of calls that enforcement would deny, and the way from there to enforcement.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use weft_e2e::held::Held;
use weft_e2e::mesh::Mesh;
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::{greeting, scenarios, start, weft};

const CLIENT: &str = "app/client";
const OTHER: &str = "app/other";
const STRANGER: &str = "plain/stranger";
const MODE: &str = "work.yaml";
/// Calls nobody while it is audited.
const NOSY: &str = "app/nosy";
const HOST: &str = "server.work";
const SERVER: &str = "http://server.work:8080";

#[test]
fn what_enforcement_would_deny_is_told_by_edge() {
    run("default");
}

#[cfg(feature = "slow")]
#[test]
fn what_enforcement_would_deny_is_told_by_edge_on_the_oldest_envoy() {
    run("oldest");
}

fn run(line: &str) {
    let mesh = start("audit", line);
    let mut checks = scenarios(&mesh, line);
    told(&mesh, &mut checks);
    // The way to enforcement begins with what was told.
    if checks.hold() {
        enforced(&mesh, &mut checks);
    }
    checks.end(mesh).expect("every scenario holds");
}

/// What `weft audit ARGUMENTS` prints.
fn audit(mesh: &Mesh, arguments: &[&str]) -> anyhow::Result<String> {
    let playground = format!("{}-{}", mesh.name(), std::process::id());
    let output = Command::new(weft()).arg("audit").args(arguments).env("WEFT_PLAYGROUND", playground).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(errors.is_empty(), "{errors}");
    Ok(String::from_utf8(output.stdout)?)
}

/// `CALLER PORT METHODS` of each edge, with its calls.
fn edges(mesh: &Mesh) -> anyhow::Result<BTreeMap<String, u64>> {
    let all: Value = serde_json::from_str(&audit(mesh, &["-n", "work", "-o", "json"])?)?;
    let edge = |denial: &Value| {
        let caller = denial["caller"].as_str()?.rsplit('/').next()?;
        let methods: Vec<_> = denial["methods"].as_array()?.iter().filter_map(Value::as_str).collect();
        let methods = if denial["http"] == true { methods.join(",") } else { "TCP".to_owned() };
        Some((format!("{caller} {} {methods}", denial["port"]).trim_start().to_owned(), denial["calls"].as_u64()?))
    };
    all["denials"].as_array().context("denials")?.iter().map(|d| edge(d).with_context(|| d.to_string())).collect()
}

/// Waits until the edges read as expected, and returns them; sidecars report once a second.
fn settled(mesh: &Mesh, expected: &[(&str, u64)]) -> anyhow::Result<String> {
    let said = |edges: &BTreeMap<String, u64>| {
        edges.iter().map(|(edge, calls)| format!("{edge} {calls}")).collect::<Vec<_>>().join("; ")
    };
    let expected = expected.iter().map(|(edge, calls)| ((*edge).to_owned(), *calls)).collect();
    let seen = until("the audit", Duration::from_secs(8), || {
        let edges = edges(mesh)?;
        Ok(if edges == expected { Ok(said(&edges)) } else { Err(said(&edges)) })
    });
    seen.or_else(|_| Ok(said(&edges(mesh)?)))
}

fn told(mesh: &Mesh, checks: &mut Scenarios) {
    let many = |caller: &str, arguments: &[&str]| mesh.calls(caller, arguments).map(|summary| summary.said());
    checks.equal("audit-requests: what a target allows passes", "200", mesh.code(CLIENT, &[&format!("{SERVER}/open")]));
    checks.equal(
        "audit-requests: what none allows passes too",
        "7 requests, 0 failed",
        many(CLIENT, &["-n", "7", SERVER]),
    );
    let post = ["-n", "3", "-X", "POST", &format!("{SERVER}/open")];
    checks.equal("audit-requests: another method passes", "3 requests, 0 failed", many(CLIENT, &post));
    checks.equal(
        "audit-requests: another caller passes",
        "200",
        mesh.code(OTHER, &["--http2", &format!("{SERVER}/open")]),
    );
    checks.equal("audit-requests: a caller in clear passes", "200", mesh.code(STRANGER, &[SERVER]));
    checks.equal("audit-requests: gRPC passes", "OK", mesh.code(OTHER, &["grpc://server.work:9090"]));
    let requests = [(" 8080 GET", 1), ("client 8080 GET,POST", 10), ("other 8080 GET", 1), ("other 9090 POST", 1)];
    let requests = requests.map(|(edge, calls)| (edge.trim_start(), calls));
    let text = "8080 GET 1; client 8080 GET,POST 10; other 8080 GET 1; other 9090 POST 1";
    checks.equal("audit-requests: who, where, what and how often", text, settled(mesh, &requests));
    checks.holds("audit-requests: the table", "reads CALLER, CALLEE, PORT, WOULD BE DENIED, LAST", || {
        let table = audit(mesh, &["-n", "work", "--since", "1h"])?;
        let row = table.lines().find(|line| line.starts_with("app/client")).unwrap_or_default();
        let words: Vec<_> = row.split_whitespace().collect();
        let ok = words.starts_with(&["app/client", "work/server", "8080", "10", "requests:", "GET,", "POST"]);
        Ok((ok && table.contains("in clear"), row.to_owned()))
    });

    checks.equal(
        "audit-connections: pass",
        "2 requests, 0 failed",
        many(OTHER, &["-n", "2", "tcp://server.work:7000"]),
    );
    let held = Held::start(mesh, CLIENT, "server.work", 7000).expect("a connection");
    let mut all = requests.to_vec();
    all.extend([("client 7000 TCP", 1), ("other 7000 TCP", 2)]);
    let text =
        "8080 GET 1; client 7000 TCP 1; client 8080 GET,POST 10; other 7000 TCP 2; other 8080 GET 1; other 9090 POST 1";
    checks.holds("audit-connections: told of, also one that is open", text, || {
        let seen = until("the open connection", Duration::from_secs(20), || {
            let seen = settled(mesh, &all)?;
            Ok(if seen == text { Ok(seen) } else { Err(seen) })
        })?;
        Ok((held.stop()? > 0 && seen == text, seen))
    });
    checks.holds("audit-load: 300 requests in a second or two", "all are counted", || {
        let summary = mesh.calls(OTHER, &["-n", "300", "-c", "4", &format!("{SERVER}/load")])?;
        let count = || anyhow::Ok(edges(mesh)?.get("other 8080 GET").copied().unwrap_or_default());
        let seen = until("all of them", Duration::from_secs(10), || {
            let count = count()?;
            Ok(if count == 301 { Ok(count) } else { Err(count.to_string()) })
        })?;
        Ok((summary.failed == 0 && seen == 301, format!("{} at the caller, {seen} told of", summary.said())))
    });
}

fn enforced(mesh: &Mesh, checks: &mut Scenarios) {
    let targets = audit(mesh, &["-o", "smi"]).expect("targets");
    checks.holds("audit-targets: a caller in clear", "no target, but a word", || {
        Ok((
            targets.starts_with("# work/server port 8080 is called in clear"),
            targets.lines().next().unwrap_or_default().to_owned(),
        ))
    });
    mesh.write("targets.yaml", &targets).expect("the targets are taken");
    let calls = |caller: &str| -> anyhow::Result<String> {
        let codes = [
            mesh.code(caller, &[&format!("{SERVER}/")]),
            mesh.code(caller, &["-X", "POST", &format!("{SERVER}/open")]),
            mesh.code(caller, &["-X", "DELETE", &format!("{SERVER}/open")]),
            mesh.code(caller, &["grpc://server.work:9090"]),
            mesh.code(caller, &["tcp://server.work:7000"]),
        ];
        Ok(codes.into_iter().collect::<anyhow::Result<Vec<_>>>()?.join(" "))
    };
    let passes = "200 200 200 OK ok";
    checks.equal("audit-targets: everything passes still", passes, calls(CLIENT));
    checks.holds(
        "audit-targets: what they allow is told of no more",
        "a method and a port that were not seen before",
        || {
            let seen = until("the audit", Duration::from_secs(8), || {
                let edges = edges(mesh)?;
                let of = |edge: &str| edges.get(edge).copied().unwrap_or_default();
                let calls = [of("client 8080 DELETE,GET,POST"), of("client 9090 POST"), of("client 7000 TCP")];
                Ok(if calls[..2] == [11, 1] { Ok(calls) } else { Err(format!("{edges:?}")) })
            })?;
            Ok((seen == [11, 1, 1], format!("{seen:?}")))
        },
    );

    let loads: Vec<_> = [
        (CLIENT, vec![SERVER]),
        (CLIENT, vec!["--http2", SERVER]),
        (CLIENT, vec!["tcp://server.work:7000"]),
        (OTHER, vec!["--no-keepalive", SERVER]),
        (OTHER, vec!["grpc://server.work:9090"]),
    ]
    .into_iter()
    .map(|(pod, how)| {
        let load = mesh.load(pod, &[&["-c", "2", "--rate", "40"], &how[..]].concat()).expect("a load");
        (format!("{pod} {}", how.join(" ")), load)
    })
    .collect();
    let held = Held::start(mesh, CLIENT, "server.work", 7000).expect("a connection");
    mesh.edit(MODE, |text| text.replace("Audit", "Enforce")).expect("enforced");
    checks.equal("authorization-enforced: what the targets allow", "200 200 403 PERMISSION_DENIED ok", calls(CLIENT));
    checks.equal("authorization-enforced: a caller in clear", "403 closed", {
        let tcp = mesh.code(STRANGER, &["tcp://server.work:7000"]);
        mesh.code(STRANGER, &[SERVER]).and_then(|http| Ok(format!("{http} {}", tcp?)))
    });
    checks.holds("authorization-enforced: the 403", "says who was refused what", || {
        let text = mesh.call(CLIENT, &["-X", "DELETE", &format!("{SERVER}/open")])?;
        let said = ["no TrafficTarget allows", "/ns/app/sa/client", "DELETE /open", "/ns/work/sa/server"];
        Ok((said.iter().all(|words| text.contains(words)), text.trim_end().to_owned()))
    });
    let greeted = || Ok(format!("{}, {}", greeting(mesh, NOSY, HOST, 7001)?, greeting(mesh, STRANGER, HOST, 7001)?));
    checks.equal("authorization-enforced: a server that speaks first", "silence, silence", greeted());
    mesh.edit(MODE, |text| text.replace("Enforce", "Permissive")).expect("permissive");
    checks.equal("authorization-permissive: a server that speaks first", "greeter v1, greeter v1", greeted());
    checks.equal("authorization-permissive: everything passes", "200 200 200 OK ok", calls(CLIENT));
    mesh.edit(MODE, |text| text.replace("Permissive", "Audit")).expect("audited");
    for (what, load) in loads {
        checks.holds(&format!("authorization-moved: three times under load, {what}"), "no failed request", || {
            let summary = load.stop()?;
            Ok((summary.failed == 0, summary.said()))
        });
    }
    checks.holds("authorization-moved: a TCP connection", "every line comes back", || {
        held.stop().map(|lines| (lines > 0, format!("{lines} lines")))
    });
}
