//! The shop's traces in a real Jaeger (docs/tracing.md), over each protocol, on each Envoy.

#![allow(clippy::expect_used, reason = "a test may, and here its helpers do")]

mod jaeger;

use std::cell::Cell;
use std::time::Duration;

use anyhow::Context;
use jaeger::Trace;
use weft_e2e::mesh::{Mesh, PATIENCE, envoy, pinned_version, weft_beside_tests};
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

const SHELL: &str = "shop/shell";
const MESH: &str = "mesh.yaml";
const NAMESPACES: &str = "namespaces.yaml";
const CLIENTS: &str = "clients.yaml";

/// A trace that somebody else began, and the span in it that called.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// The spans of the shop's call chain: two for each of its four hops that are HTTP.
const CHAIN: usize = 8;

/// One after the other: they measure times on the same cores.
#[test]
fn the_shop_is_traced() {
    all("default", [Names::of_the_request; 3]);
}

#[test]
fn the_shop_is_traced_on_the_oldest_envoy() {
    // It does not know the setting for it.
    all("oldest", [Names::of_the_side, Names::of_the_side, Names::of_the_host]);
}

/// With the names of spans for each provider.
fn all(line: &str, [grpc, http, zipkin]: [fn() -> Names; 3]) {
    over_grpc(line, grpc());
    over_http(line, http());
    with_zipkin(line, zipkin());
}

/// How spans are named: at the caller and at the callee, by method and host or by gRPC method.
struct Names(fn(&str) -> String, fn(&str) -> String);

impl Names {
    fn of_the_request() -> Self {
        let name = |host: &str| match host.starts_with("inventory") {
            true => "/weft.app.v1.Echo/Echo".to_owned(),
            false => format!("GET {host}"),
        };
        Self(name, name)
    }

    fn of_the_side() -> Self {
        Self(|host| format!("egress {host}"), |_| "ingress".to_owned())
    }

    fn of_the_host() -> Self {
        Self(str::to_owned, str::to_owned)
    }

    /// A hop: the span of the caller, and below it that of the callee with what it calls.
    fn hop(&self, caller: &str, callee: &str, host: &str, calls: &str) -> String {
        let calls = if calls.is_empty() { String::new() } else { format!(" [{calls}]") };
        format!("{caller} client {} [{callee} server {}{calls}]", (self.0)(host), (self.1)(host))
    }

    fn chain(&self) -> String {
        let inventory = self.hop("cart.shop", "inventory.warehouse", "inventory.warehouse:9090", "");
        let cart = self.hop("frontend.shop", "cart.shop", "cart", &inventory);
        let catalog = self.hop("frontend.shop", "catalog.shop", "catalog", "");
        self.hop("shell.shop", "frontend.shop", "frontend", &format!("{cart}, {catalog}"))
    }
}

struct Shop {
    mesh: Mesh,
    names: Names,
    calls: Cell<u32>,
}

/// The shop with a Jaeger, to which all is traced. A mesh for each provider: connections that are open when it changes
/// keep the one that they began with.
fn shop(line: &str, names: Names, name: &str, provider: &str) -> (Shop, Scenarios) {
    let version = pinned_version(line).expect("a pinned version");
    let envoy = envoy(&version).expect("make setup-all");
    let weft = weft_beside_tests().expect("cargo build");
    let name = format!("traced-{name}-{line}");
    let mesh = Mesh::start("examples/shop", &name, &weft, Some(envoy), &[]).expect("the shop starts");
    let checks = Scenarios::on(&mesh, &version);
    jaeger::add(&mesh).expect("Jaeger starts");
    let tracing = format!(
        "  tracing: {{provider: {provider}, sampling: 100, tags: [{{name: user, header: X-User}}, {{name: cluster, \
         literal: eu-1}}, {{name: env, environment: OTEL_RESOURCE_ATTRIBUTES}}]}}\n"
    );
    mesh.edit(MESH, |text| text + &tracing).expect("tracing begins");
    if line == "oldest" {
        // Envoy 1.36 begins again with a request that has waited for its destination, and may tell of it twice.
        mesh.call(SHELL, &["http://frontend/"]).expect("a first call");
    }
    (Shop { mesh, names, calls: Cell::default() }, checks)
}

fn over_grpc(line: &str, names: Names) {
    let (shop, mut checks) = shop(line, names, "grpc", "{otlp: {grpc: \"jaeger.observability:4317\"}}");
    chain(&shop, &mut checks, "OTLP over gRPC");
    checks.equal("trace-names: services", "true", services(&shop));
    checks.equal("trace-names: the pod that a span is of", "shop frontend-", pod_of_a_span(&shop));
    checks.holds("trace-time: an answer that takes 300 ms", "in the spans above it, and in no other", || slow(&shop));
    checks.holds("trace-fault: a delay of 300 ms before the inventory", "in the spans above, not in its own", || {
        delayed(&shop)
    });
    checks.equal("trace-error: a request that fails", "503 true, 503 true", failed(&shop));
    checks.equal("trace-tag: header, literal, environment", "bob eu-1 service.name=shell.shop,…", tags(&shop));
    checks.equal("trace-request-id: the application's own stays", "own", own_request_id(&shop));
    checks.equal("trace-w3c: a decision to trace", "the caller's trace and span", continued(&shop, "01"));
    decisions(&shop, &mut checks);
    checks.end(shop.mesh).expect("every scenario holds");
}

fn over_http(line: &str, names: Names) {
    let (shop, mut checks) = shop(line, names, "http", "{otlp: {http: \"http://jaeger.observability:4318\"}}");
    chain(&shop, &mut checks, "OTLP over HTTP");
    logs(&shop, &mut checks, line);
    checks.end(shop.mesh).expect("every scenario holds");
}

fn with_zipkin(line: &str, names: Names) {
    let (shop, mut checks) = shop(line, names, "zipkin", "{zipkin: \"http://jaeger.observability:9411\"}");
    chain(&shop, &mut checks, "Zipkin");
    checks.equal("trace-w3c: with Zipkin", "the caller's trace and span", continued(&shop, "01"));
    b3(&shop, &mut checks);
    away(&shop, &mut checks);
    checks.end(shop.mesh).expect("every scenario holds");
}

impl Shop {
    /// An id for a request that no other has: a UUID, since Zipkin's spans are chosen by it.
    fn request_id(&self) -> String {
        self.calls.set(self.calls.get() + 1);
        format!("6b4453ce-cd29-4f96-bc1e-{:012x}", self.calls.get())
    }

    /// Another sampling of the mesh.
    fn sample(&self, from: &str, to: &str) -> anyhow::Result<()> {
        self.mesh.edit(MESH, |text| text.replace(&format!("sampling: {from},"), &format!("sampling: {to},")))?;
        Ok(())
    }

    /// The trace of one call from the shell.
    fn call(&self, url: &str, headers: &[&str], spans: usize) -> anyhow::Result<Trace> {
        let id = self.request_id();
        let own = format!("x-request-id: {id}");
        let mut arguments = vec!["-H", own.as_str()];
        headers.iter().for_each(|header| arguments.extend(["-H", header]));
        arguments.push(url);
        self.mesh.call(SHELL, &arguments)?;
        jaeger::trace(&self.mesh, "shell.shop", &id, spans)
    }
}

fn chain(shop: &Shop, checks: &mut Scenarios, over: &str) {
    let seen = shop.call("http://frontend/", &[], CHAIN).map(|trace| trace.tree());
    checks.equal(&format!("trace-chain: {over}"), &shop.names.chain(), seen);
}

/// Whether all services are called `WORKLOAD.NAMESPACE`, and are those of the chain.
fn services(shop: &Shop) -> anyhow::Result<String> {
    let services = jaeger::services(&shop.mesh)?;
    let expected = ["cart.shop", "frontend.shop", "shell.shop"];
    let known = |service: &String| {
        expected.contains(&service.as_str()) || service.starts_with("catalog-v") || service.starts_with("inventory-v")
    };
    let all = services.iter().all(known) && expected.iter().all(|name| services.iter().any(|service| service == name));
    Ok(if all { "true".to_owned() } else { services.join(" ") })
}

fn pod_of_a_span(shop: &Shop) -> anyhow::Result<String> {
    let trace = shop.call("http://frontend/leaf", &[], 2)?;
    let server = trace.spans.iter().find(|span| span.tag("span.kind") == "server").context("a server span")?;
    let pod = trace.process_tag(server, "k8s.pod.name");
    Ok(format!("{} {}", trace.process_tag(server, "k8s.namespace.name"), pod.get(..9).unwrap_or(&pod)))
}

fn slow(shop: &Shop) -> anyhow::Result<(bool, String)> {
    let set = |delay: &str| {
        let change = format!("{{\"delay\":\"{delay}\"}}");
        for version in ["v1", "v2"] {
            let pod = format!("warehouse/inventory-{version}");
            shop.mesh.call(&pod, &["-d", &change, "http://127.0.0.1:8080/control"])?;
        }
        anyhow::Ok(())
    };
    set("300ms")?;
    let trace = shop.call("http://frontend/", &[], CHAIN)?;
    set("0s")?;
    Ok(took(&trace, &["catalog"]))
}

/// A TrafficFault's delay is where it was put: between cart and inventory, which does not notice it.
fn delayed(shop: &Shop) -> anyhow::Result<(bool, String)> {
    let fault = "apiVersion: weft.dev/v1alpha1\nkind: TrafficFault\nmetadata: {name: slow, namespace: warehouse}\n\
                 spec:\n  targetRefs: [{kind: Service, name: inventory}]\n  delay: {fixed: 300ms}\n";
    shop.mesh.write("fault.yaml", fault)?;
    let trace = shop.call("http://frontend/", &[], CHAIN)?;
    shop.mesh.remove("fault.yaml")?;
    Ok(took(&trace, &["catalog", "inventory."]))
}

/// Whether every span took 300 ms but both ends of the catalog's, which is called beside the cart, and those of these
/// services; and how long each took.
fn took(trace: &Trace, quick: &[&str]) -> (bool, String) {
    let took = trace.spans.iter().map(|span| {
        let about = format!("{} {}", trace.service(span), span.tag("span.kind"));
        let is_quick =
            quick.iter().any(|service| about.starts_with(service)) || span.tag("http.url").contains("catalog");
        (about, is_quick, span.duration / 1000)
    });
    let took = Vec::from_iter(took);
    let ok = took.iter().all(|(_, is_quick, ms)| if *is_quick { *ms < 300 } else { *ms >= 300 });
    (ok, took.iter().map(|(about, _, ms)| format!("{about} {ms} ms")).collect::<Vec<_>>().join(", "))
}

fn failed(shop: &Shop) -> anyhow::Result<String> {
    let trace = shop.call("http://frontend/leaf?status=503", &[], 2)?;
    let said = trace.spans.iter().map(|span| format!("{} {}", span.tag("http.status_code"), span.tag("error")));
    Ok(said.collect::<Vec<_>>().join(", "))
}

fn tags(shop: &Shop) -> anyhow::Result<String> {
    let trace = shop.call("http://frontend/leaf", &["x-user: bob"], 2)?;
    let client = trace.spans.iter().find(|span| span.tag("span.kind") == "client").context("a client span")?;
    let env = client.tag("env").replace(",k8s", ",…k8s");
    let env = env.split('…').next().unwrap_or_default();
    Ok(format!("{} {} {env}…", client.tag("user"), client.tag("cluster")))
}

/// An id that is no UUID is left as it is, and the request is traced all the same.
fn own_request_id(shop: &Shop) -> anyhow::Result<String> {
    let text = shop.mesh.call(SHELL, &["-H", "x-request-id: own", "http://frontend/leaf"])?;
    jaeger::trace(&shop.mesh, "frontend.shop", "own", 2)?;
    let answer: serde_json::Value = serde_json::from_str(&text)?;
    Ok(answer["headers"]["x-request-id"].as_str().unwrap_or("-").to_owned())
}

/// A call in a trace that the application began, with its decision.
fn continued(shop: &Shop, flags: &str) -> anyhow::Result<String> {
    let trace = shop.call("http://frontend/leaf", &[&format!("traceparent: 00-{TRACE}-{SPAN}-{flags}")], 2)?;
    Ok(continues(&trace))
}

fn continues(trace: &Trace) -> String {
    let parents = trace.roots().into_iter().map(|root| root.parent().unwrap_or("none")).collect::<Vec<_>>();
    // Spans of earlier calls are in the trace as well.
    match trace.id.ends_with(TRACE) && parents.iter().all(|parent| *parent == SPAN) {
        true => "the caller's trace and span".to_owned(),
        false => format!("{} {parents:?}", trace.id),
    }
}

/// Who decides what is traced.
fn decisions(shop: &Shop, checks: &mut Scenarios) {
    let not_traced = |pod: &str, service: &str, headers: &[&str]| untraced(shop, pod, service, headers);
    checks.equal(
        "trace-w3c: a decision not to trace, where all is sampled",
        "no trace",
        not_traced(SHELL, "shell.shop", &[&format!("traceparent: 00-{TRACE}-{SPAN}-00")]),
    );
    shop.sample("100", "0").expect("another sampling");
    checks.equal("trace-sampling: 0", "no trace", not_traced(SHELL, "shell.shop", &[]));
    checks.equal(
        "trace-sampling: a decision to trace, where nothing is sampled",
        "the caller's trace and span",
        continued(shop, "01"),
    );
    let annotate = |text: String| {
        text.replacen("  name: shop\n", "  name: shop\n  annotations: {weft.dev/trace-sampling: \"100\"}\n", 1)
    };
    shop.mesh.edit(NAMESPACES, annotate).expect("an annotation of the namespace");
    checks.equal(
        "trace-sampling: 100 in one namespace",
        &shop.names.chain(),
        shop.call("http://frontend/", &[], CHAIN).map(|trace| trace.tree()),
    );
    checks.equal(
        "trace-sampling: 0 in the other namespace",
        "no trace",
        not_traced("warehouse/ledger-v1", "ledger-v1.warehouse", &[]),
    );
    let quiet = |text: String| {
        text.replacen(
            "  labels: {app: shell}\n",
            "  labels: {app: shell}\n  annotations: {weft.dev/trace-sampling: \"0\"}\n",
            1,
        )
    };
    shop.mesh.edit(CLIENTS, quiet).expect("an annotation of the pod");
    shop.mesh.wait_for_pods("shop", "shell", 1).expect("the shell");
    until("the shell calls", PATIENCE, || {
        Ok(match shop.mesh.code(SHELL, &["http://frontend/leaf"])?.as_str() {
            "200" => Ok(()),
            other => Err(other.to_owned()),
        })
    })
    .expect("the shell calls");
    checks.equal("trace-sampling: 0 for one workload", "no trace", not_traced(SHELL, "shell.shop", &[]));
    shop.mesh
        .edit(CLIENTS, |text| text.replace("  annotations: {weft.dev/trace-sampling: \"0\"}\n", ""))
        .expect("as it was");
    shop.mesh.wait_for_pods("shop", "shell", 1).expect("the shell");
    shop.sample("0", "100").expect("another sampling");
}

/// Calls that leave no trace: when a later one has come through to Jaeger, none of theirs has.
fn untraced(shop: &Shop, pod: &str, service: &str, headers: &[&str]) -> anyhow::Result<String> {
    let id = shop.request_id();
    let own = format!("x-request-id: {id}");
    let mut arguments = vec!["-n", "20", "-H", own.as_str()];
    headers.iter().for_each(|header| arguments.extend(["-H", header]));
    arguments.push("http://frontend.shop/leaf");
    shop.mesh.call(pod, &arguments)?;
    let (marker, traced) = (shop.request_id(), format!("traceparent: 00-{TRACE}-{SPAN}-01"));
    shop.mesh.call(pod, &["-H", &format!("x-request-id: {marker}"), "-H", &traced, "http://frontend.shop/leaf"])?;
    jaeger::trace(&shop.mesh, service, &marker, 2)?;
    let found = jaeger::now(&shop.mesh, service, &id)?;
    Ok(if found.is_empty() { "no trace".to_owned() } else { format!("{} traces", found.len()) })
}

fn b3(shop: &Shop, checks: &mut Scenarios) {
    let (id, span) = (format!("x-b3-traceid: {TRACE}"), format!("x-b3-spanid: {SPAN}"));
    let several = shop.call("http://frontend/leaf", &[&id, &span, "x-b3-sampled: 1"], 2);
    checks.equal("trace-b3: several headers", "the caller's trace and span", several.map(|trace| continues(&trace)));
    let one = shop.call("http://frontend/leaf", &[&format!("b3: {TRACE}-{SPAN}-1")], 2);
    checks.equal("trace-b3: one header", "the caller's trace and span", one.map(|trace| continues(&trace)));
    let refused = untraced(shop, SHELL, "shell.shop", &[&id, &span, "x-b3-sampled: 0"]);
    checks.equal("trace-b3: a decision not to trace", "no trace", refused);
    let passed_on = shop.mesh.call(SHELL, &["http://frontend/leaf"]).and_then(|text| {
        let answer: serde_json::Value = serde_json::from_str(&text)?;
        let has = |name: &str| answer["headers"][name].is_string();
        Ok(format!("traceparent {}, B3 {}", has("traceparent"), has("x-b3-traceid")))
    });
    checks.equal("trace-b3: what the application is given", "traceparent true, B3 true", passed_on);
}

/// Access logs over OTLP, to the collector that Jaeger is.
fn logs(shop: &Shop, checks: &mut Scenarios, line: &str) {
    if line == "oldest" {
        return;
    }
    let otlp = "\n  accessLog: {mode: All, output: {otlp: {grpc: \"jaeger.observability:4317\"}}}\n";
    shop.mesh.edit(MESH, |text| text + otlp).expect("an access log");
    checks.holds("log-otlp: a request", "a record of either side, with what it says", || {
        let trace = shop.call("http://frontend/logged", &[], 2)?;
        let lines = jaeger::printed(&shop.mesh, "-> path: Str(/logged)")?.join("\n");
        let has = |text: &str| lines.contains(text);
        let seen = [
            has("-> direction: Str(outbound)") || has("-> direction: Str(inbound)"),
            has("-> caller: Str(spiffe://cluster.local/ns/shop/sa/shell)"),
            has("-> code: Str(200)"),
            has(&format!("-> trace_id: Str({})", trace.id)),
        ];
        Ok((seen == [true; 4], format!("{seen:?}")))
    });
    shop.mesh.edit(MESH, |text| text.replace(otlp.trim_start_matches('\n'), "")).expect("no access log");
}

/// A collector that is gone costs spans, and nothing else.
fn away(shop: &Shop, checks: &mut Scenarios) {
    checks.holds("trace-away: the collector goes and comes back", "no failed request", || {
        let load = shop.mesh.load(SHELL, &["-c", "4", "--rate", "200", "http://frontend/leaf"])?;
        jaeger::remove(&shop.mesh)?;
        until("a span that nobody takes", PATIENCE, || {
            let lost = shop.mesh.stats(SHELL, "^cluster.tracing.upstream_cx_connect_fail$")?;
            Ok(if lost.iter().any(|(_, count)| *count > 0) { Ok(()) } else { Err(format!("{lost:?}")) })
        })?;
        jaeger::add(&shop.mesh)?;
        let summary = load.stop()?;
        Ok((summary.failed == 0, summary.said()))
    });
    // What is sent before the sidecars have noticed is lost.
    let again = until("a whole trace", PATIENCE, || {
        let id = shop.request_id();
        shop.mesh.call(SHELL, &["-H", &format!("x-request-id: {id}"), "http://frontend/"])?;
        let seen = jaeger::trace_within(Duration::from_secs(3), &shop.mesh, "shell.shop", &id, CHAIN);
        Ok(seen.map(|trace| trace.tree()).map_err(|error| error.to_string()))
    });
    checks.equal("trace-away: it is back", &shop.names.chain(), again);
}
