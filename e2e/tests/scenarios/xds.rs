//! The control plane's protocol as a stock Envoy and a stranger speak it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::transport::Endpoint;
use weft::ca::Clock;
use weft::ca::token::TokenSigner;
use weft::control_plane::DNS_NAME;
use weft::local::bootstrap::XDS_PORT;
use weft::local::node::NODE_IP;
use weft::mesh::ServiceAccountKey;
use weft_e2e::mesh::{Mesh, PATIENCE};
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::{scenarios, start};

const CLIENT: &str = "app/client";

/// Not on Envoy 1.36, which aborts when TCP asks for a cluster over state-of-the-world xDS.
#[test]
fn state_of_the_world_and_strangers() {
    let mesh = start("xds", "default");
    let mut checks = scenarios(&mesh, "default");
    state_of_the_world(&mesh, &mut checks);
    rule_41_what_was_asked_for_comes_back_unasked(&mesh, &mut checks);
    rules_23_and_42_what_was_asked_for_is_asked_for_again(&mesh, &mut checks);
    strangers(&mesh, &mut checks);
    checks.end(mesh).expect("every scenario holds");
}

/// How a call ended and which version answered.
fn see(mesh: &Mesh, pod: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let summary = mesh.calls(pod, arguments)?;
    Ok(summary.codes.into_keys().chain(summary.responders.into_keys()).collect::<Vec<_>>().join(" "))
}

fn state_of_the_world(mesh: &Mesh, checks: &mut Scenarios) {
    checks.holds("xds: the sidecars' forms of xDS", "sotw, sotw, delta", || {
        let mut proxies = mesh.inspection()?.proxies()?;
        proxies.sort_by(|a, b| a.pod.cmp(&b.pod));
        let forms: Vec<_> = proxies.iter().map(|proxy| (proxy.pod.as_str(), proxy.delta)).collect();
        Ok((forms == [("client", false), ("server-v1", false), ("server-v2", true)], format!("{forms:?}")))
    });
    checks.equal("xds: a first HTTP call", "200 server v1", see(mesh, CLIENT, &["http://server/"]));
    checks.equal("xds: a second Service", "200 server v2", see(mesh, CLIENT, &["http://server-v2/"]));
    checks.equal("xds: HTTP/2", "200 server v1", see(mesh, CLIENT, &["--http2", "http://server/"]));
    checks.equal("xds: a first TCP call", "ok server v1", see(mesh, CLIENT, &["tcp://server:7000"]));
    let load = mesh.load(CLIENT, &["-c", "4", "--rate", "200", "http://server/"]).expect("a load");
    let shift =
        |text: String| text.replace("weight: 1", "weight: #0").replace("weight: 0", "weight: #1").replace('#', "");
    mesh.edit("split.yaml", shift).expect("the split the other way round");
    checks.equal("xds: endpoints change", "200 server v2", see(mesh, CLIENT, &["http://server/"]));
    mesh.edit("target.yaml", |text| text.replace("name: http}]", "name: http, matches: [beta]}]")).expect("less");
    checks.equal("xds: the callee's rules change", "403", see(mesh, CLIENT, &["http://server-v1/alpha"]));
    checks.equal(
        "xds: the callee's rules change, what is left",
        "200 server v1",
        see(mesh, CLIENT, &["http://server-v1/beta"]),
    );
    mesh.edit("target.yaml", |text| text.replace("name: http, matches: [beta]}]", "name: http}]")).expect("all");
    mesh.remove("split.yaml").expect("removed");
    checks.equal("xds: routes change", "200 server v1", see(mesh, CLIENT, &["http://server/"]));
    checks.holds("xds: changes under load", "answered or denied, never lost", || {
        let summary = load.stop()?;
        let codes = Vec::from_iter(summary.codes.keys().map(String::as_str));
        Ok((codes == ["200", "403"] && summary.responders.len() == 2, summary.said()))
    });
    mesh.client().kill_control_plane().expect("killed");
    mesh.client().start_control_plane(PATIENCE).expect("started");
    checks.holds("xds: the control plane restarted", "all sidecars are back, and nothing was lost", || {
        let mut inspection = mesh.inspection()?;
        until("the sidecars", PATIENCE, || {
            let (back, behind) = (inspection.proxies()?.len(), inspection.convergence()?.behind);
            Ok(if (back, behind) == (3, 0) { Ok(()) } else { Err(format!("{back} back, {behind} behind")) })
        })?;
        let known = see(mesh, CLIENT, &["http://server/"])?;
        let new = see(mesh, CLIENT, &["tcp://server-v2:7000"])?;
        Ok((known == "200 server v1" && new == "ok server v2", format!("{known}, {new}")))
    });
}

/// One sidecar of each form of the protocol.
const FORMS: [(&str, &str); 2] = [("state of the world", CLIENT), ("delta", "app/server-v2")];
const BACK: &str = "back.yaml";

/// A Service that both may call.
fn back(version: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: back, namespace: app}}\nspec:\n  clusterIP: 10.96.7.7\n  \
         selector: {{version: {version}}}\n  ports: [{{name: http, port: 80, targetPort: 8080}}]\n---\n\
         apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata: {{name: back, namespace: app}}\n\
         spec:\n  destination: {{kind: ServiceAccount, name: server}}\n  sources:\n    \
         - {{kind: ServiceAccount, name: server}}\n  rules: [{{kind: HTTPRouteGroup, name: http}}]\n"
    )
}

/// Whether a sidecar has the cluster of the Service `back`.
fn has_back(mesh: &Mesh, pod: &str) -> anyhow::Result<bool> {
    Ok(mesh.admin(pod, "/config_dump?resource=dynamic_active_clusters")?.contains("app/back/80"))
}

/// A proxy does not ask again for a cluster that it once asked for and that was removed.
fn rule_41_what_was_asked_for_comes_back_unasked(mesh: &Mesh, checks: &mut Scenarios) {
    mesh.write(BACK, &back("v2")).expect("a Service");
    for (form, pod) in FORMS {
        let called = see(mesh, pod, &["http://back/"]);
        checks.equal(&format!("rule 41, {form}: asked for"), "200 server v2", called);
        checks.equal(&format!("rule 41, {form}: there"), "true", has_back(mesh, pod));
    }
    mesh.remove(BACK).expect("removed");
    for (form, pod) in FORMS {
        checks.equal(&format!("rule 41, {form}: removed"), "false", has_back(mesh, pod));
    }
    mesh.write(BACK, &back("v2")).expect("a Service");
    for (form, pod) in FORMS {
        checks.equal(&format!("rule 41, {form}: there again, without a call"), "true", has_back(mesh, pod));
    }
}

/// What changed while the control plane was away reaches those who asked for it before; with the cluster, which
/// believes another identity now, its endpoints.
fn rules_23_and_42_what_was_asked_for_is_asked_for_again(mesh: &Mesh, checks: &mut Scenarios) {
    mesh.client().kill_control_plane().expect("killed");
    mesh.put(BACK, &back("v1")).expect("the Service changes");
    mesh.client().start_control_plane(PATIENCE).expect("started");
    for (form, pod) in FORMS {
        let called = until("the other pod's answer", PATIENCE, || {
            let answered = see(mesh, pod, &["http://back/"])?;
            Ok(if answered == "200 server v1" { Ok(answered) } else { Err(answered) })
        });
        checks.equal(&format!("rules 23 and 42, {form}"), "200 server v1", called);
    }
}

fn strangers(mesh: &Mesh, checks: &mut Scenarios) {
    let ours = TokenSigner::generate(Clock::system()).expect("a key");
    let account = ServiceAccountKey::new("app", "client");
    let forged = ours.sign(&account, "client", Duration::from_secs(600)).expect("a token");
    for (check, token, reason) in [
        ("a token of another key", Some(forged.as_str()), "the token's signature is not by this mesh's key"),
        ("no JWT", Some("letmein"), "the token is not a JWT"),
        ("no token", None, "no token"),
    ] {
        checks.holds(check, "UNAUTHENTICATED, and the log says why", || {
            let status = ask(mesh, token)?;
            let logged = until("a line in the log", Duration::from_secs(5), || {
                let found = mesh
                    .log()
                    .into_iter()
                    .rfind(|line| line.contains("refused an xDS stream") && line.contains(reason));
                Ok(found.ok_or_else(|| "no such line".to_owned()))
            })?;
            let secret = token.is_some_and(|token| logged.contains(token) || status.message().contains(token));
            let ok = status.code() == tonic::Code::Unauthenticated && status.message().contains(reason) && !secret;
            Ok((ok, format!("{status:?}; {logged}")))
        });
    }
}

/// What the control plane answers to a request for secrets with this token, over TLS that believes the mesh's root.
fn ask(mesh: &Mesh, token: Option<&str>) -> anyhow::Result<Status> {
    let socket = mesh.client().dial(None, SocketAddr::new(NODE_IP.into(), XDS_PORT))?;
    socket.set_nonblocking(true)?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root(mesh)?.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = tokio::net::TcpStream::from_std(socket)?;
        let stream = TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from(DNS_NAME)?, socket).await?;
        let mut stream = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_| {
            std::future::ready(stream.take().ok_or_else(|| std::io::Error::other("the connection was lost")))
        });
        let channel = Endpoint::from_static("http://weft").connect_with_connector(connector).await?;
        let mut request = tonic::Request::new(tokio_stream::once(DeltaDiscoveryRequest::default()));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
        }
        let answer = AggregatedDiscoveryServiceClient::new(channel).delta_aggregated_resources(request).await;
        answer.err().context("the stream was accepted")
    })
}

/// The mesh's root, as a sidecar has it.
fn root(mesh: &Mesh) -> anyhow::Result<String> {
    let dump: Value = serde_json::from_str(&mesh.admin(CLIENT, "/config_dump?resource=dynamic_active_secrets")?)?;
    let mut secrets = dump["configs"].as_array().into_iter().flatten();
    let root = secrets.find(|secret| secret["name"] == "mesh-root").context("a secret mesh-root")?;
    let pem = root["secret"]["validation_context"]["trusted_ca"]["inline_string"].as_str();
    Ok(pem.context("its PEM")?.to_owned())
}
