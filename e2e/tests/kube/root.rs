//! The root of the mesh: one for all replicas, in a Secret; and told to sidecars by ConfigMaps.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;
use weft_e2e::kube::{Kubernetes, Replica, meshed_pod, namespace};
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::{account, finish, install, tail};

const PATIENCE: Duration = Duration::from_secs(60);
const SECRET: (&str, &str, &str) = ("v1", "secrets", "weft-system");

#[test]
fn replicas_share_a_root_and_tell_it_to_sidecars() {
    let kubernetes = Kubernetes::start().expect("an API server");
    let mut rows = Scenarios::of("root", "none");
    let kubeconfig = install(&kubernetes).expect("installed");
    kubernetes.put(&namespace("shop")).expect("a namespace");
    let start = |name: &str, arguments: &[&str]| {
        Replica::start(kubernetes.directory(), name, &kubeconfig, arguments).expect("started")
    };
    let own = ["--own-certificate-lifetime", "20s"];
    let mut replicas = Vec::from(["one", "two"].map(|name| start(name, &own)));

    rows.holds(
        "kube-ca: of two replicas that start at once one makes the root, and both sign with it",
        "1 made, both believed",
        || {
            for replica in &mut replicas {
                replica.wait_until_ready()?;
            }
            let made = replicas.iter().filter(|replica| replica.log().contains("made a new root")).count();
            let root = secret_root(&kubernetes)?;
            replicas.iter().try_for_each(|replica| handshake(&kubernetes, replica, &root).map(drop))?;
            Ok((made == 1, format!("{made} made, both believed")))
        },
    );
    rows.holds(
        "kube-root: it is in a ConfigMap of each meshed namespace, and of the control plane's own",
        "the Secret's root, in both",
        || {
            let root = secret_root(&kubernetes)?;
            for space in ["shop", "weft-system"] {
                wait_for_root(&kubernetes, space, &root)?;
            }
            let elsewhere = kubernetes.get("v1", "configmaps", "default", "weft-root")?;
            Ok((elsewhere.is_none(), "in both, and nowhere else".to_owned()))
        },
    );
    rows.holds("kube-root: one that is edited or deleted is mended", "mended, made again", || {
        let root = secret_root(&kubernetes)?;
        kubernetes.patch(("v1", "configmaps", "shop", "weft-root"), &json!({"data": {"root.pem": "mine"}}))?;
        wait_for_root(&kubernetes, "shop", &root)?;
        kubernetes.delete("v1", "configmaps", "shop", "weft-root")?;
        wait_for_root(&kubernetes, "shop", &root)?;
        Ok((true, "mended, made again".to_owned()))
    });
    rows.holds(
        "kube-root: a namespace has it as soon as it is labelled, or has a pod with a sidecar that waits for it",
        "both",
        || {
            let root = secret_root(&kubernetes)?;
            kubernetes.put(&namespace("labelled"))?;
            wait_for_root(&kubernetes, "labelled", &root)?;
            kubernetes.put(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "depot"}}))?;
            kubernetes.put(&account("depot", "store"))?;
            let mut pod = meshed_pod("depot", "store-1", "store", "10.244.0.9");
            pod.as_object_mut().context("an object")?.remove("status");
            kubernetes.put(&pod)?;
            wait_for_root(&kubernetes, "depot", &root)?;
            Ok((true, "both".to_owned()))
        },
    );
    rows.holds(
        "kube-certificates: the control plane's own is renewed without a restart",
        "another serial, the same root",
        || {
            let root = secret_root(&kubernetes)?;
            let before = handshake(&kubernetes, &replicas[0], &root)?;
            until("there is another certificate", PATIENCE, || {
                let now = handshake(&kubernetes, &replicas[0], &root)?;
                Ok(if now == before { Err("the same".to_owned()) } else { Ok(()) })
            })?;
            Ok((replicas[0].runs(), "another serial, the same root".to_owned()))
        },
    );
    rows.holds(
        "kube-ca: a Secret that is deleted changes nothing, and the holder of the lease puts the same root back",
        "the same root, said",
        || {
            let root = secret_root(&kubernetes)?;
            kubernetes.delete(SECRET.0, SECRET.1, SECRET.2, "weft-ca")?;
            until("the Secret is back", PATIENCE, || {
                for replica in &replicas {
                    handshake(&kubernetes, replica, &root)?;
                }
                Ok(secret_root(&kubernetes).map_err(|error| error.to_string()))
            })?;
            ensure!(secret_root(&kubernetes)? == root, "another root");
            let said = until("it is said", PATIENCE, || {
                let said = replicas.iter().find_map(|replica| {
                    replica.log().lines().find(|line| line.contains("put back with the root")).map(str::to_owned)
                });
                Ok(said.ok_or_else(String::new))
            })?;
            let mut third = start("three", &[]);
            third.wait_until_ready()?;
            handshake(&kubernetes, &third, &root)?;
            third.stop()?;
            Ok((true, said))
        },
    );
    rows.holds(
        "kube-lease: one replica holds the lease; when it is killed the other takes it over, and its work",
        "taken over, mended",
        || {
            let holder = wait_for_holder(&kubernetes, |holder| !holder.is_empty())?;
            let at = usize::from(holder.starts_with("two"));
            let dead = replicas.remove(at);
            drop(dead); // SIGKILL
            let root = secret_root(&kubernetes)?;
            kubernetes.patch(("v1", "configmaps", "shop", "weft-root"), &json!({"data": {"root.pem": "mine"}}))?;
            let began = std::time::Instant::now();
            let next = wait_for_holder(&kubernetes, |now| !now.is_empty() && now != holder)?;
            let took = began.elapsed();
            wait_for_root(&kubernetes, "shop", &root)?;
            // 15 s without a renewal, seen every 2 s.
            Ok((
                took < Duration::from_secs(25),
                format!("taken over in {:.0} s, mended ({})", took.as_secs_f64(), next.len() > 3),
            ))
        },
    );
    rows.holds("kube-lease: who is told to end gives it up at once", "within 5 s", || {
        replicas.push(start("four", &[]));
        replicas[1].wait_until_ready()?;
        let holder = wait_for_holder(&kubernetes, |holder| !holder.is_empty())?;
        let at = usize::from(holder.starts_with("four"));
        let began = std::time::Instant::now();
        replicas.remove(at).stop()?;
        wait_for_holder(&kubernetes, |now| !now.is_empty() && now != holder)?;
        let took = began.elapsed();
        Ok((took < Duration::from_secs(8), format!("within {:.1} s", took.as_secs_f64())))
    });
    rows.holds("kube-ca: without its Secret a mesh that was made is given no new root silently", "refused, said, ready when restored", || {
        for replica in replicas.drain(..) {
            replica.stop()?;
        }
        let secret = kubernetes.get(SECRET.0, SECRET.1, SECRET.2, "weft-ca")?.context("the Secret")?;
        kubernetes.delete(SECRET.0, SECRET.1, SECRET.2, "weft-ca")?;
        let mut late = start("late", &[]);
        let said = late.wait_for_log("a new root in its place would make all sidecars distrust each other")?;
        let ready = until("it is said by /readyz too", PATIENCE, || {
            let ready = late.readyz();
            Ok(if ready.contains("is gone") { Ok(ready) } else { Err(ready) })
        })?;
        ensure!(kubernetes.get(SECRET.0, SECRET.1, SECRET.2, "weft-ca")?.is_none(), "it made one");
        let metadata = json!({"namespace": "weft-system", "name": "weft-ca"});
        kubernetes.put(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": secret["type"], "data": secret["data"]}))?;
        late.wait_until_ready()?;
        late.stop()?;
        Ok((ready.starts_with("not ready") && said.contains("weft-root"), said))
    });
    users_own(&kubernetes, &mut rows, &start);
    finish(rows, || tail(&kubernetes.log()));
}

/// A CA of the user's: an intermediate certificate of a company's root, as cert-manager writes it.
fn users_own(kubernetes: &Kubernetes, rows: &mut Scenarios, start: &dyn Fn(&str, &[&str]) -> Replica) {
    let company = Company::new().expect("a company");
    rows.holds(
        "kube-ca: a CA that the user names is waited for, and its intermediate certificate is presented",
        "waited; 2 certificates, believed",
        || {
            let mut replica = start("five", &["--ca-secret", "mesh-ca", "--own-certificate-lifetime", "20s"]);
            let said = replica.wait_for_log("which --ca-secret names, is not there")?;
            company.put(kubernetes)?;
            replica.wait_until_ready()?;
            let (before, count) = handshake_and_count(kubernetes, &replica, &company.root)?;
            wait_for_root(kubernetes, "shop", &company.root)?;
            ensure!(count == 2, "{count} certificates");
            // cert-manager renews the intermediate certificate, with another key.
            company.put(kubernetes)?;
            replica.wait_for_log("certificates are signed with it from now on")?;
            until("there is another certificate", PATIENCE, || {
                let now = handshake(kubernetes, &replica, &company.root)?;
                Ok(if now == before { Err("the same".to_owned()) } else { Ok(()) })
            })?;
            let other = Company::new()?;
            other.put(kubernetes)?;
            replica.wait_for_log("it has another root than the one that this process started with")?;
            handshake(kubernetes, &replica, &company.root)?;
            replica.stop()?;
            Ok((true, said))
        },
    );
}

struct Company {
    root: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Company {
    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    }

    fn new() -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let root = Self::params("company").self_signed(&key)?.pem();
        Ok(Self { root, issuer: Issuer::new(Self::params("company"), key) })
    }

    /// Writes a new intermediate certificate.
    fn put(&self, kubernetes: &Kubernetes) -> anyhow::Result<()> {
        let key = KeyPair::generate()?;
        let certificate = Self::params("mesh").signed_by(&key, &self.issuer)?.pem();
        kubernetes.put(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "weft-system", "name": "mesh-ca"},
            "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": certificate, "tls.key": key.serialize_pem(), "ca.crt": self.root},
        }))
    }
}

/// The root that a namespace's sidecars are told; waits for it.
pub(crate) fn root_of(kubernetes: &Kubernetes, space: &str) -> anyhow::Result<String> {
    until("the root is told", PATIENCE, || Ok(told_root(kubernetes, space)?.ok_or_else(|| "none".to_owned())))
}

fn told_root(kubernetes: &Kubernetes, space: &str) -> anyhow::Result<Option<String>> {
    let map = kubernetes.get("v1", "configmaps", space, "weft-root")?;
    Ok(map.and_then(|map| map["data"]["root.pem"].as_str().map(str::to_owned)))
}

fn wait_for_root(kubernetes: &Kubernetes, space: &str, root: &str) -> anyhow::Result<()> {
    until(&format!("the root is told to {space}"), PATIENCE, || {
        let told = told_root(kubernetes, space)?;
        Ok(if told.as_deref() == Some(root) { Ok(()) } else { Err(format!("{told:?}")) })
    })
}

/// The root in the Secret; an error when there is none.
fn secret_root(kubernetes: &Kubernetes) -> anyhow::Result<String> {
    let secret = kubernetes.get(SECRET.0, SECRET.1, SECRET.2, "weft-ca")?.context("no Secret weft-ca")?;
    let data = secret["data"]["ca.crt"].as_str().context("ca.crt")?.to_owned();
    let bytes: k8s_openapi::ByteString = serde_json::from_value(json!(data))?;
    Ok(String::from_utf8(bytes.0)?)
}

fn wait_for_holder(kubernetes: &Kubernetes, wanted: impl Fn(&str) -> bool) -> anyhow::Result<String> {
    until("the lease is held", PATIENCE, || {
        let lease = kubernetes.get("coordination.k8s.io/v1", "leases", "weft-system", "weft")?;
        let holder = lease.and_then(|lease| lease["spec"]["holderIdentity"].as_str().map(str::to_owned));
        let holder = holder.unwrap_or_default();
        Ok(if wanted(&holder) { Ok(holder) } else { Err(format!("held by `{holder}`")) })
    })
}

/// The control plane's own certificate, which must be believed by who trusts `root`.
pub(crate) fn handshake(kubernetes: &Kubernetes, replica: &Replica, root: &str) -> anyhow::Result<Vec<u8>> {
    Ok(handshake_and_count(kubernetes, replica, root)?.0)
}

fn handshake_and_count(kubernetes: &Kubernetes, replica: &Replica, root: &str) -> anyhow::Result<(Vec<u8>, usize)> {
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(root.as_bytes()) {
        roots.add(root?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    kubernetes.block_on(async {
        let socket = tokio::net::TcpStream::connect(replica.xds()).await?;
        let name = ServerName::try_from("weft.weft-system.svc")?;
        let session = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
        let presented = session.get_ref().1.peer_certificates().context("certificates")?;
        Ok((presented.first().context("a certificate")?.to_vec(), presented.len()))
    })
}
