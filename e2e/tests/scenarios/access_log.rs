//! What sidecars log, where, and in which form (docs/access-logs.md).

use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use weft_e2e::mesh::Mesh;
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::{scenarios, start};

const CLIENT: &str = "app/client";
const MESH: &str = "mesh.yaml";

/// Envoy writes entries out once a second.
const WRITTEN_WITHIN: Duration = Duration::from_secs(20);

#[test]
fn sidecars_log_what_they_are_asked_to() {
    run("default");
}

#[cfg(feature = "slow")]
#[test]
fn sidecars_log_what_they_are_asked_to_on_the_oldest_envoy() {
    run("oldest");
}

fn run(line: &str) {
    let mesh = start("access-log", line);
    let mut checks = scenarios(&mesh, line);
    one_workload(&mesh, &mut checks);
    json(&mesh, &mut checks);
    errors(&mesh, &mut checks);
    text(&mesh, &mut checks);
    checks.end(mesh).expect("every scenario holds");
}

fn log(mesh: &Mesh, setting: &str) {
    let without = |text: String| {
        let lines = text.lines().filter(|line| !line.starts_with("  accessLog:"));
        lines.collect::<Vec<_>>().join("\n").replacen("spec:\n", &format!("spec:\n  accessLog: {setting}\n"), 1)
    };
    mesh.edit(MESH, without).expect("another access log");
}

/// The entries that a pod's sidecar has written so far, of those that contain all of `words`.
fn entries(mesh: &Mesh, pod: &str, words: &[&str]) -> Vec<String> {
    let (namespace, name) = pod.split_once('/').unwrap_or_default();
    let of_sidecar = |line: &String| {
        line.split_once("] ").is_some_and(|(origin, _)| {
            origin.contains("weft-proxy") && origin.contains(namespace) && origin.contains(name)
        })
    };
    let lines = mesh.log().into_iter().filter(of_sidecar);
    let lines = lines.filter(|line| words.iter().all(|word| line.contains(word)));
    lines.filter_map(|line| Some(line.split_once("] ")?.1.to_owned())).collect()
}

/// The first entry with all of `words`, when it is there.
fn entry(mesh: &Mesh, pod: &str, words: &[&str]) -> anyhow::Result<String> {
    until(&format!("an entry of {pod} with {words:?}"), WRITTEN_WITHIN, || {
        std::thread::sleep(Duration::from_millis(20));
        let all = entries(mesh, pod, &[]);
        let found = entries(mesh, pod, words).into_iter().next();
        Ok(found.ok_or_else(|| format!("{} others: {:?}", all.len(), all.last())))
    })
}

/// These fields of the entry in JSON.
fn fields(mesh: &Mesh, pod: &str, words: &[&str], names: &[&str]) -> anyhow::Result<String> {
    let line = entry(mesh, pod, words)?;
    let entry: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
    let field = |name: &&str| match &entry[*name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Ok(names.iter().map(field).collect::<Vec<_>>().join(" "))
}

/// A call that leaves no entry at a pod: when a later one that is logged there is written, the first is not.
fn silent(mesh: &Mesh, pod: &str, path: &str, marker: impl Fn() -> anyhow::Result<String>) -> anyhow::Result<String> {
    let marker = marker()?;
    entry(mesh, pod, &[&marker])?;
    let found = entries(mesh, pod, &[path]);
    Ok(found.first().cloned().unwrap_or_else(|| "no entry".to_owned()))
}

/// Before the mesh says anything: a pod that says it for itself, and one that does not.
fn one_workload(mesh: &Mesh, checks: &mut Scenarios) {
    let calls = |pod: &str| {
        mesh.call(pod, &["http://first/fine"])?;
        mesh.call(pod, &["http://first/gone?status=410"])
    };
    checks.holds("log-workload: errors of one workload only", "its failed request, nowhere else, no other", || {
        calls(CLIENT)?;
        calls("app/loud")?;
        let own = entry(mesh, "app/loud", &["/gone"])?;
        let others =
            [entries(mesh, CLIENT, &["/"]), entries(mesh, "app/server", &["/"]), entries(mesh, "app/loud", &["/fine"])];
        let ok = own.contains("code=\"410\"") && others.iter().all(Vec::is_empty);
        Ok((ok, format!("{own}; {others:?}")))
    });
    checks.equal("log-off: unless somebody asks", "0", Ok(entries(mesh, CLIENT, &["direction"]).len()));
}

fn json(mesh: &Mesh, checks: &mut Scenarios) {
    log(mesh, "{mode: All, format: Json}");
    // The first request to a destination, which waits for its cluster, is logged without its name by Envoy 1.36.
    mesh.call(CLIENT, &["http://server/"]).expect("a call");
    let id = "x-request-id: 5b4453ce-cd29-4f96-bc1e-000000000001";
    mesh.call(CLIENT, &["-X", "PUT", "-d", "12345", "-H", id, "http://server/json"]).expect("a call");
    let what = [
        "direction",
        "caller",
        "callee",
        "destination",
        "method",
        "path",
        "protocol",
        "code",
        "flags",
        "bytes_received",
        "request_id",
    ];
    let ends = "spiffe://cluster.local/ns/app/sa/client spiffe://cluster.local/ns/app/sa/server";
    let rest = "PUT /json HTTP/1.1 200 - 5 5b4453ce-cd29-4f96-bc1e-000000000001";
    checks.equal(
        "log-json: the caller's side",
        &format!("outbound {ends} app/server/80 {rest}"),
        fields(mesh, CLIENT, &["/json"], &what),
    );
    checks.equal(
        "log-json: the callee's side",
        &format!("inbound {ends} 80.server.app.svc.cluster.local {rest}"),
        fields(mesh, "app/server", &["/json"], &what),
    );
    checks.equal("log-grpc: the status of a call", "200 OK /weft.app.v1.Echo/Echo", {
        let called = mesh.code(CLIENT, &["grpc://server:9090"]);
        called.and_then(|_| fields(mesh, CLIENT, &["Echo"], &["code", "grpc_status", "path"]))
    });
    checks.equal("log-tcp: both directions in bytes", "outbound app/server/7000 6 16 -", {
        let called = mesh.code(CLIENT, &["tcp://server:7000"]);
        let what = ["direction", "destination", "bytes_received", "bytes_sent", "flags"];
        called.and_then(|_| fields(mesh, CLIENT, &["app/server/7000"], &what))
    });
    checks.equal("log-tcp: the callee's side", &format!("inbound {ends} 7000.server.app.svc.cluster.local"), {
        fields(mesh, "app/server", &["7000.server"], &["direction", "caller", "callee", "destination"])
    });
}

fn errors(mesh: &Mesh, checks: &mut Scenarios) {
    log(mesh, "{mode: Errors, format: Json}");
    let failed = |path: &'static str| {
        move || {
            mesh.call(CLIENT, &[&format!("http://third{path}?status=500")])?;
            Ok(path.to_owned())
        }
    };
    checks.equal("log-errors: a request that is answered with 500", "inbound 500 /broken?status=500", {
        mesh.call(CLIENT, &["http://third/broken?status=500"])
            .and_then(|_| fields(mesh, "app/server", &["/broken"], &["direction", "code", "path"]))
    });
    checks.equal("log-errors: a request that is answered with 200", "no entry", {
        mesh.call(CLIENT, &["http://third/quiet"]).and_then(|_| silent(mesh, CLIENT, "/quiet", failed("/after-quiet")))
    });
    checks.equal("log-errors: a gRPC call that is OK", "no entry", {
        let before = entries(mesh, CLIENT, &["Echo"]).len();
        mesh.code(CLIENT, &["grpc://third:9090"]).and_then(|_| {
            entry(mesh, CLIENT, &[&failed("/after-grpc")()?])?;
            Ok(match entries(mesh, CLIENT, &["Echo"]).len() == before {
                true => "no entry",
                false => "an entry",
            })
        })
    });
    checks.equal("log-errors: a gRPC call that is denied", "200 PermissionDenied", {
        mesh.code(CLIENT, &["grpc://vault.guarded:9090"])
            .and_then(|_| fields(mesh, CLIENT, &["vault.guarded:9090"], &["code", "grpc_status"]))
    });
    checks.equal("log-denied: a request, and why", "403 rbac_access_denied_matched_policy[none]", {
        mesh.call(CLIENT, &["http://vault.guarded/denied"])
            .and_then(|_| fields(mesh, "guarded/vault", &["/denied"], &["code", "details"]))
    });
    checks.equal("log-denied: plaintext from outside the mesh", "inbound null 403 /outside", {
        mesh.call("plain/stranger", &["http://server.app/outside"])
            .and_then(|_| fields(mesh, "app/server", &["/outside"], &["direction", "caller", "code", "path"]))
    });
    checks.equal(
        "log-denied: a connection, and why",
        "spiffe://cluster.local/ns/app/sa/client rbac_access_denied_matched_policy[none] \
         no TrafficTarget allows this caller this TCP port",
        {
            mesh.code(CLIENT, &["tcp://vault.guarded:7000"])
                .and_then(|_| fields(mesh, "guarded/vault", &["7000.vault"], &["caller", "details", "denied"]))
        },
    );
    checks.holds("log-denied: a connection in the handshake, in plain words before Envoy's", "who, and why", || {
        mesh.code("app/loud", &["tcp://vault.guarded:7000"])?;
        let said = fields(mesh, "guarded/vault", &["7000.vault", "sa/loud"], &["caller", "denied", "failure"])?;
        // Envoy 1.36 does not say what of the certificate is refused.
        let plain =
            ["no TrafficTarget allows this caller a TCP port", "identity or the certificate of this caller is refused"];
        let is_plain = plain.iter().any(|words| said.contains(words)) && said.contains("CERTIFICATE_VERIFY_FAILED");
        Ok((said.starts_with("spiffe://cluster.local/ns/app/sa/loud ") && is_plain, said))
    });
    checks.equal("log-errors: nobody there", "503 UH", {
        mesh.call(CLIENT, &["http://nobody/"])
            .and_then(|_| fields(mesh, CLIENT, &["app/nobody/80"], &["code", "flags"]))
    });
}

fn text(mesh: &Mesh, checks: &mut Scenarios) {
    log(mesh, "{mode: All}");
    checks.holds("log-text: a line", "name=\"value\" for each field", || {
        mesh.call(CLIENT, &["http://server/text"])?;
        let line = entry(mesh, CLIENT, &["/text"])?;
        let has = ["direction=\"outbound\"", "method=\"GET\"", "path=\"/text\"", "code=\"200\"", "flags=\"-\""];
        Ok((line.starts_with("time=\"") && has.iter().all(|part| line.contains(part)), line))
    });
    log(mesh, "{mode: \"Off\"}");
    checks.equal("log-off: the pod that logs for itself goes on", "no entry", {
        mesh.call(CLIENT, &["http://server/off"]).and_then(|_| {
            mesh.call("app/loud", &["http://server/loud?status=500"])?;
            entry(mesh, "app/loud", &["/loud"])?;
            Ok(entries(mesh, CLIENT, &["/off"]).pop().unwrap_or_else(|| "no entry".to_owned()))
        })
    });
}
