use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::inject::patch::{self, Operation};

fn admission(request: Value) -> Vec<u8> {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).to_string().into_bytes()
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": "cart-6c9f-", "labels": {"pod-template-hash": "6c9f"}, "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "cart-6c9f", "uid": "u", "controller": true}]},
        "spec": {"containers": [{"name": "cart", "image": "cart:1"}], "newInKubernetes": true},
    })
}

fn split(weight: Value) -> Value {
    json!({
        "apiVersion": "split.smi-spec.io/v1alpha4", "kind": "TrafficSplit", "metadata": {"name": "s", "namespace": "n"},
        "spec": {"service": "root", "backends": [{"service": "a", "weight": weight}]},
    })
}

#[test]
fn a_pod_is_answered_with_the_patch_of_its_injection() {
    let review =
        inject(&admission(json!({"uid": "42", "object": pod(), "dryRun": true})), &Options::default()).unwrap();
    let response = &review["response"];
    assert_eq!((&response["uid"], &response["allowed"]), (&json!("42"), &json!(true)));
    assert_eq!((&review["kind"], &response["patchType"]), (&json!("AdmissionReview"), &json!("JSONPatch")));
    let encoded: k8s_openapi::ByteString = serde_json::from_value(response["patch"].clone()).unwrap();
    let sent: Value = serde_json::from_slice(&encoded.0).unwrap();
    let after = crate::inject::inject(&pod(), "cart", &Options::default()).unwrap().pod;
    assert_eq!(sent, json!(patch::difference(&pod(), &after)), "the workload is the Deployment above the ReplicaSet");
    // What the pod has is not written again: not even what this version does not know.
    let touched = |operation: &Operation| json!(operation)["path"].as_str().unwrap().starts_with("/spec/containers");
    assert!(!patch::difference(&pod(), &after).iter().any(touched));
}

#[test]
fn a_pod_that_must_not_start_is_denied_and_one_that_cannot_be_meshed_is_told_so() {
    let mut bad = pod();
    bad["metadata"]["annotations"] = json!({"weft.dev/exclude-outbound-ports": "http"});
    let review = inject(&admission(json!({"uid": "1", "object": bad})), &Options::default()).unwrap();
    assert_eq!(review["response"]["allowed"], false);
    let message = review["response"]["status"]["message"].as_str().unwrap();
    assert!(message.contains("weft.dev/exclude-outbound-ports: `http` is not a port"), "{message}");
    let mut host = pod();
    host["spec"]["hostNetwork"] = json!(true);
    let review = inject(&admission(json!({"uid": "1", "object": host})), &Options::default()).unwrap();
    assert_eq!(review["response"]["allowed"], true);
    assert!(review["response"]["warnings"][0].as_str().unwrap().contains("hostNetwork"), "{review}");
    assert!(review["response"]["patch"].is_string(), "an annotation says it, too");
    let review = inject(&admission(json!({"uid": "1", "object": split(json!(1))})), &Options::default()).unwrap();
    assert_eq!(review["response"], json!({"uid": "1", "allowed": true}), "what is no pod is let through");
}

#[test]
fn an_object_is_checked_with_the_code_that_reads_it() {
    let answer = |object: Value, old: Value| {
        let review = validate(&admission(json!({"uid": "1", "object": object, "oldObject": old}))).unwrap();
        review["response"].clone()
    };
    assert_eq!(answer(split(json!(1)), Value::Null), json!({"uid": "1", "allowed": true}));
    let denied = answer(split(json!(-1)), Value::Null);
    assert_eq!(denied["allowed"], false);
    assert_eq!(denied["status"]["message"], "spec.backends[0].weight: the weight -1 is negative; use 0 for no traffic",);
    // What was wrong before may stay while something else changes; what is newly wrong may not.
    let was_bad = answer(split(json!(-1)), split(json!(-1)));
    assert_eq!((&was_bad["allowed"], was_bad["warnings"].as_array().unwrap().len()), (&json!(true), 1));
    assert_eq!(answer(split(json!(-1)), split(json!(1)))["allowed"], false);
    let mut ending = split(json!(-1));
    ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(answer(ending, Value::Null)["allowed"], true, "an object that is being deleted may go");
    // What only does nothing is said.
    let mut doubtful = split(json!(0));
    doubtful["spec"]["backends"][0]["weight"] = json!(0);
    assert_eq!(answer(doubtful, Value::Null)["allowed"], true);
    let unknown = answer(json!({"apiVersion": "v1", "kind": "ConfigMap"}), Value::Null);
    assert_eq!(unknown, json!({"uid": "1", "allowed": true}));
    let config =
        json!({"apiVersion": "weft.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "other"}, "spec": {}});
    assert_eq!(answer(config, Value::Null)["allowed"], false);
}

#[test]
fn objects_are_converted_in_their_order_or_not_at_all() {
    let convert = |objects: Value, version: &str| {
        let body = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "request":
            {"uid": "7", "desiredAPIVersion": version, "objects": objects}});
        super::convert(body.to_string().as_bytes()).unwrap()["response"].clone()
    };
    let converted = convert(json!([split(json!(1)), split(json!(2))]), "split.smi-spec.io/v1alpha1");
    assert_eq!((&converted["uid"], &converted["result"]["status"]), (&json!("7"), &json!("Success")));
    let weights: Vec<_> =
        converted["convertedObjects"].as_array().unwrap().iter().map(|o| &o["spec"]["backends"][0]["weight"]).collect();
    assert_eq!(weights, [&json!("1"), &json!("2")]);
    let failed = convert(json!([split(json!(1)), split(json!("x"))]), "split.smi-spec.io/v1alpha1");
    assert_eq!((&failed["convertedObjects"], &failed["result"]["status"]), (&json!([]), &json!("Failed")));
    assert!(failed["result"]["message"].as_str().unwrap().contains("spec.backends[0].weight"), "{failed}");
}

#[test]
fn what_is_no_review_is_refused() {
    for body in [&b""[..], b"{", b"null", b"[]", b"{\"kind\":\"AdmissionReview\"}", &[0xff, 0xfe]] {
        assert!(inject(body, &Options::default()).is_err() && validate(body).is_err() && super::convert(body).is_err());
    }
    let old = json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": {"uid": "1"}});
    let error = validate(old.to_string().as_bytes()).unwrap_err().to_string();
    assert!(error.contains("v1beta1"), "{error}");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        prop_oneof!["-1", "80", "1Ki", "/a?b", "spec", "Always", "HTTPS"].prop_map(Value::from),
    ];
    let key = "kind|apiVersion|metadata|spec|containers|initContainers|volumes|name|ports|containerPort|labels|\
               annotations|securityContext|runAsUser|livenessProbe|tcpSocket|httpGet|scheme|port|path|backends|weight|\
               service|matches|headers|targetRefs|destination|sources|rules|specs|hosts|.{0,2}";
    leaf.prop_recursive(5, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..6).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn whatever_object_is_asked_about_is_answered(
        spec in any_json(), metadata in any_json(), kind in "Pod|TrafficSplit|HTTPRouteGroup|TCPRoute|TrafficTarget|\
        MeshConfig|TrafficFault|TrafficPolicy|Egress", version in "v1|split.smi-spec.io/v1alpha[1-4]|\
        specs.smi-spec.io/v1alpha[1-4]|access.smi-spec.io/v1alpha[1-3]|weft.dev/v1alpha1", to in 1..5_u8,
    ) {
        let object = json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec,
            "matches": spec, "destination": spec, "sources": spec, "specs": spec});
        let review = admission(json!({"uid": "1", "object": object, "oldObject": spec}));
        prop_assert!(inject(&review, &Options::default()).is_ok());
        prop_assert!(validate(&review).is_ok());
        let group = version.split('/').next().unwrap_or_default();
        let body = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "request":
            {"uid": "7", "desiredAPIVersion": format!("{group}/v1alpha{to}"), "objects": [object]}});
        prop_assert!(super::convert(body.to_string().as_bytes()).is_ok());
    }
}

/// A client of the server, and where it is.
struct Client {
    address: SocketAddr,
    roots: rustls::RootCertStore,
}

impl Client {
    async fn connect(&self) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await?;
        let name = "weft-webhook.weft-system.svc".try_into().unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    async fn post(&self, path: &str, body: &[u8]) -> String {
        let mut stream = self.connect().await.unwrap();
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: w\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        let _ = stream.write_all(body).await; // a server that has read enough closes
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// Writes a certificate as the kubelet would, and returns it as PEM.
fn write_certificate(directory: &std::path::Path) -> String {
    let made = rcgen::generate_simple_self_signed(["weft-webhook.weft-system.svc".to_owned()]).unwrap();
    std::fs::write(directory.join("tls.crt"), made.cert.pem()).unwrap();
    std::fs::write(directory.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    made.cert.pem()
}

#[tokio::test]
async fn the_server_answers_over_tls_with_a_certificate_that_may_change() {
    let directory = tempfile::tempdir().unwrap();
    let files = Arc::new(CertificateFiles::new(directory.path()));
    assert!(files.load().is_err() && !files.is_ready(), "it is not there yet");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
    let server = tokio::spawn(Server::new(Options::default()).serve(listener, files.clone(), shutdown.clone()));
    let trusting = |pem: &str| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        Client { address, roots }
    };
    let first = trusting(&write_certificate(directory.path()));
    first.connect().await.map(drop).unwrap_err();
    assert!(files.load().unwrap() && files.is_ready());
    let answer = first.post(INJECT_PATH, &admission(json!({"uid": "9", "object": pod()}))).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(r#""uid":"9""#), "{answer}");
    // A new certificate: the next handshake has it, a half-written one is not used.
    let second = trusting(&write_certificate(directory.path()));
    assert!(files.load().unwrap());
    second.connect().await.expect("the new one");
    first.connect().await.map(drop).unwrap_err();
    std::fs::write(directory.path().join("tls.crt"), "half").unwrap();
    assert!(files.load().is_err());
    second.connect().await.expect("the last good one");

    assert!(second.post(VALIDATE_PATH, b"{").await.starts_with("HTTP/1.1 400"));
    assert!(second.post(INJECT_PATH, &vec![b' '; 9 << 20]).await.starts_with("HTTP/1.1 413"), "too large");
    assert!(second.post("/other", b"{}").await.starts_with("HTTP/1.1 404"));
    // Who says no more does not hold a place for long.
    let mut silent = second.connect().await.unwrap();
    silent.write_all(b"POST /inject HTTP/1.1\r\nhost: w\r\ncontent-length: 10\r\n\r\n{").await.unwrap();
    let mut answer = vec![0; 256];
    let read = tokio::time::timeout(Duration::from_secs(8), silent.read(&mut answer)).await.expect("in time").unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer[..read]));
    shutdown.cancel();
    drop(silent);
    tokio::time::timeout(Duration::from_secs(15), server).await.expect("it ends").unwrap().unwrap();
}

#[test]
fn a_field_that_weft_does_not_have_is_refused_in_its_own_kinds_alone() {
    let answer = |object: Value| {
        let review = validate(&admission(json!({"uid": "1", "object": object}))).unwrap();
        review["response"].clone()
    };
    let config = |spec: Value| json!({"apiVersion": "weft.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "default"}, "spec": spec});
    let denied = answer(config(json!({"authorisation": {"mode": "Enforce"}})));
    assert_eq!(denied["allowed"], false);
    let message = denied["status"]["message"].as_str().unwrap();
    assert!(message.starts_with("spec.authorisation: MeshConfig has no such field"), "{message}");
    assert!(message.contains("did you mean `authorization`?"), "{message}");
    let mut known = config(json!({"authorization": {"mode": "Enforce"}}));
    known["metadata"]["newInKubernetes"] = json!(true);
    known["status"] = json!({"conditions": []});
    assert_eq!(answer(known), json!({"uid": "1", "allowed": true}));
    let mut other = split(json!(1));
    other["spec"]["newInSmi"] = json!(true);
    assert_eq!(answer(other)["allowed"], true);
}
