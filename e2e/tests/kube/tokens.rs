//! Who sidecars are: projected tokens, which the API server checks.

use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use k8s_openapi::ByteString;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use weft_e2e::kube::{Kubernetes, Replica, meshed_pod, namespace, service};
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::root::root_of;
use crate::{account, file, finish, install, role_without, tail};

pub(crate) const AUDIENCE: &str = "weft-xds";
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn sidecars_are_known_by_their_tokens() {
    let mut kubernetes = Kubernetes::start().expect("an API server");
    let mut rows = Scenarios::of("tokens", "none");
    let kubeconfig = install(&kubernetes).expect("installed");
    shop(&kubernetes).expect("a shop");
    let mut replica = Replica::start(kubernetes.directory(), "one", &kubeconfig, &[]).expect("started");
    replica.wait_until_ready().expect("ready");
    let token = |pod: Option<&str>, audience: &str| kubernetes.token("shop", "cart", Some(audience), pod, 600);
    let good = token(Some("cart-1"), AUDIENCE).expect("a token");
    let mut secrets = vec![good.clone()];

    let served = |token: &str, node: &str| stream(&kubernetes, &replica, token, node);
    rows.equal("kube-token: a projected token of a pod is served as this pod", "served", served(&good, "cart-1.shop"));
    rows.equal("kube-token: it is not served as another pod", "PermissionDenied", served(&good, "cart-2.shop"));
    rows.equal("kube-token: no token is refused", "Unauthenticated", served("", "cart-1.shop"));
    rows.equal("kube-token: one for another audience is refused", "Unauthenticated", {
        let other = token(Some("cart-1"), "vault").expect("a token");
        let answer = served(&other, "cart-1.shop");
        secrets.push(other);
        answer
    });
    rows.equal("kube-token: one that is bound to no pod is refused", "Unauthenticated", {
        let free = token(None, AUDIENCE).expect("a token");
        let answer = served(&free, "cart-1.shop");
        secrets.push(free);
        answer
    });
    rows.equal("kube-token: one that has expired is refused", "Unauthenticated", {
        signed(&kubernetes, &good, |claims| claims["exp"] = json!(now() - 60))
            .and_then(|old| served(&old, "cart-1.shop"))
    });
    rows.equal("kube-token: one of another issuer's key is refused", "Unauthenticated", {
        forged(&good).and_then(|forged| served(&forged, "cart-1.shop"))
    });
    rows.equal("kube-token: the same claims under the API server's own key are accepted", "served", {
        signed(&kubernetes, &good, |_| ()).and_then(|same| served(&same, "cart-1.shop"))
    });
    rows.equal("kube-token: that of a pod that is gone is refused, though its verdict is known", "not served", {
        kubernetes.delete("v1", "pods", "shop", "cart-1").expect("deleted");
        until("it is refused", PATIENCE, || {
            Ok(match served(&good, "cart-1.shop")?.as_str() {
                "served" => Err("served".to_owned()),
                _ => Ok("not served"),
            })
        })
    });
    rows.equal(
        "kube-token: that of an earlier pod of the same name is refused, and the new one's is served",
        "Unauthenticated, served",
        {
            kubernetes.put(&meshed_pod("shop", "cart-1", "cart", "10.244.0.21")).expect("a pod");
            let new = token(Some("cart-1"), AUDIENCE).expect("a token");
            let now = until("the new one is served", PATIENCE, || {
                let answer = served(&new, "cart-1.shop")?;
                Ok(if answer == "served" { Ok(answer) } else { Err(answer) })
            });
            secrets.push(new);
            now.and_then(|now| Ok(format!("{}, {now}", served(&good, "cart-1.shop")?)))
        },
    );
    let third = kubernetes.token("shop", "cart", Some(AUDIENCE), Some("cart-2"), 600).expect("a token");
    rows.equal(
        "kube-token: while the API server is away, who is known is served and who is not comes back later",
        "served, Unavailable",
        {
            let before = stream(&kubernetes, &replica, &third, "cart-2.shop").expect("an answer");
            assert_eq!(before, "served");
            let unknown = kubernetes.token("shop", "cart", Some(AUDIENCE), Some("cart-3"), 600).expect("a token");
            let root = root_of(&kubernetes, "weft-system").expect("a root");
            kubernetes.kill_server().expect("killed");
            let known = stream_with(&kubernetes, &replica, &root, &third, "cart-2.shop").expect("an answer");
            let unknown = stream_with(&kubernetes, &replica, &root, &unknown, "cart-3.shop").expect("an answer");
            kubernetes.start_server().expect("started");
            Ok(format!("{known}, {unknown}"))
        },
    );
    rows.holds(
        "kube-rbac: without the right to TokenReviews new sidecars come back later, and the log says why",
        "Unavailable, …",
        || {
            kubernetes.put(&role_without("tokenreviews"))?;
            let fresh = kubernetes.token("shop", "cart", Some(AUDIENCE), Some("cart-3"), 601)?;
            let answer = until("it is not served", PATIENCE, || {
                let answer = stream(&kubernetes, &replica, &fresh, "cart-3.shop")?;
                Ok(if answer == "served" { Err(answer) } else { Ok(answer) })
            })?;
            let said = replica.wait_for_log("may not create")?;
            kubernetes.apply(&file("rbac.yaml"))?;
            until("it is served", PATIENCE, || {
                let answer = stream(&kubernetes, &replica, &fresh, "cart-3.shop")?;
                Ok(if answer == "served" { Ok(()) } else { Err(answer) })
            })?;
            Ok((answer == "Unavailable" && said.contains("tokenreviews"), format!("{answer}; {said}")))
        },
    );
    rows.holds("kube-token: no token is in the log", "0 of them", || {
        let log = replica.log();
        let signatures = secrets.iter().filter_map(|token| token.rsplit('.').next());
        let found = signatures.filter(|signature| log.contains(*signature)).count();
        Ok((found == 0 && log.contains("not authenticated"), format!("{found} of {}", secrets.len())))
    });
    finish(rows, || tail(&replica.log()));
}

fn shop(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    kubernetes.put(&namespace("shop"))?;
    kubernetes.put(&account("shop", "cart"))?;
    kubernetes.put(&service("shop", "cart", 80))?;
    for number in 1..=3 {
        kubernetes.put(&meshed_pod("shop", &format!("cart-{number}"), "cart", &format!("10.244.0.{}", 10 + number)))?;
    }
    Ok(())
}

/// What a sidecar with this token and node id is answered: `served`, or the gRPC status.
fn stream(kubernetes: &Kubernetes, replica: &Replica, token: &str, node: &str) -> anyhow::Result<String> {
    stream_with(kubernetes, replica, &root_of(kubernetes, "weft-system")?, token, node)
}

fn stream_with(
    kubernetes: &Kubernetes,
    replica: &Replica,
    root: &str,
    token: &str,
    node: &str,
) -> anyhow::Result<String> {
    let answered = async {
        let tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root)).domain_name("weft.weft-system.svc");
        let channel = Channel::from_shared(format!("https://{}", replica.xds()))?.tls_config(tls)?.connect().await?;
        let first = DeltaDiscoveryRequest {
            node: Some(Node { id: node.to_owned(), ..Node::default() }),
            type_url: "type.googleapis.com/envoy.config.listener.v3.Listener".to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        let (requests, sent) = tokio::sync::mpsc::channel(1);
        requests.send(first).await?;
        let mut request = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(sent));
        if !token.is_empty() {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
        }
        let answer = match AggregatedDiscoveryServiceClient::new(channel).delta_aggregated_resources(request).await {
            Ok(answer) => answer.into_inner().message().await,
            Err(status) => Err(status),
        };
        drop(requests);
        anyhow::Ok(match answer {
            Ok(Some(_)) => "served".to_owned(),
            Ok(None) => "ended".to_owned(),
            Err(status) => format!("{:?}", status.code()),
        })
    };
    kubernetes.block_on(async { tokio::time::timeout(Duration::from_secs(20), answered).await })?
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A token with other claims, under the key that the API server signs with.
pub(crate) fn signed(kubernetes: &Kubernetes, token: &str, change: impl FnOnce(&mut Value)) -> anyhow::Result<String> {
    let key = kubernetes.directory().join("accounts-key.pem");
    sign(token, change, &fs::read(key).context("the key of an API server that was started here")?)
}

fn forged(token: &str) -> anyhow::Result<String> {
    sign(token, |_| (), rcgen::KeyPair::generate()?.serialize_pem().as_bytes())
}

/// RFC 7519 with ES256.
fn sign(token: &str, change: impl FnOnce(&mut Value), key: &[u8]) -> anyhow::Result<String> {
    let claims = token.split('.').nth(1).context("claims")?;
    let padded = format!("{claims}{}", "=".repeat((4 - claims.len() % 4) % 4)).replace('-', "+").replace('_', "/");
    let bytes: ByteString = serde_json::from_value(json!(padded))?;
    let mut claims: Value = serde_json::from_slice(&bytes.0)?;
    change(&mut claims);
    let text = format!("{}.{}", url_base64(br#"{"alg":"ES256"}"#)?, url_base64(claims.to_string().as_bytes())?);
    let (key, random) = (PrivatePkcs8KeyDer::from_pem_slice(key)?, SystemRandom::new());
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8_der(), &random);
    let pair = pair.map_err(|error| anyhow::anyhow!("{error}"))?;
    let signature = pair.sign(&random, text.as_bytes()).map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(format!("{text}.{}", url_base64(signature.as_ref())?))
}

fn url_base64(bytes: &[u8]) -> anyhow::Result<String> {
    let text = serde_json::to_value(ByteString(bytes.to_vec()))?;
    let text = text.as_str().context("text")?;
    Ok(text.trim_end_matches('=').replace('+', "-").replace('/', "_"))
}
