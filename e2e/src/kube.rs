//! A real Kubernetes API server for tests: etcd and kube-apiserver on this machine's loopback, started and ended here.
//!
//! ```text
//!  target/kubernetes/kubernetes (e2e/scripts/kubernetes) ─▶ etcd ◀─ kube-apiserver ◀─ TLS ─ Kubernetes::client, weft serve
//! ```
//!
//! On a node the way between the two can be made slow (`way`).
//!
//! `WEFT_KUBECONFIG` names another cluster to use in its place; what stops the server or its etcd fails there.

mod api;
mod clock;
mod controllers;
mod network;
mod node;
mod objects;
mod replica;
mod shop;
mod way;

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Handle;
use weft::local::node::NODE_IP;

use self::way::Way;
use crate::mesh::repository;
use crate::until;

pub use api::Api;
pub use clock::Clock;
pub use node::{Node, PATIENCE, Programs};
pub use objects::{endpoint_slice, meshed_pod, namespace, put, service};
pub use replica::{Replica, http};
pub use shop::Shop;

/// How long the server may take to start on a busy machine.
const START: Duration = Duration::from_secs(120);

/// One with a node and one without at a time: more would starve each other of the machine's CPUs.
static TURNS: [Mutex<()>; 2] = [Mutex::new(()), Mutex::new(())];

/// An API server with nothing in it but what the tests put there.
pub struct Kubernetes {
    api: Api,
    runtime: tokio::runtime::Runtime,
    kubeconfig: PathBuf,
    controllers: Option<Process>,
    /// None where another cluster is used.
    own: Option<Own>,
    directory: TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// The processes.
struct Own {
    etcd: Process,
    server: Option<Process>,
    etcd_port: u16,
    /// On a node, where the server finds its etcd.
    way: Option<Way>,
    port: u16,
    place: Place,
}

/// Where the server is.
#[derive(Clone, Copy)]
enum Place {
    /// On the machine's loopback.
    Loopback,
    /// On a node's network, at all of its addresses: pods call it.
    Node,
}

/// A process that ends with its owner.
pub struct Process(Child);

impl Process {
    /// Runs `command`, whose output goes to the file `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let (stdout, stderr) = (out.try_clone()?, out);
        let command = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        Ok(Self(command.spawn().with_context(|| format!("{command:?}"))?))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Whether it has not ended.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) -> anyhow::Result<()> {
        let sent = Command::new("kill").args([format!("-{name}"), self.id().to_string()]).status()?;
        ensure!(sent.success(), "cannot send {name}");
        Ok(())
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> anyhow::Result<()> {
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill(); // fails when it has ended
        let _ = self.0.wait();
    }
}

impl Kubernetes {
    /// Starts an empty one and waits until it is ready.
    ///
    /// # Errors
    /// When it was not built, or does not become ready.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_in(Place::Loopback)
    }

    /// Starts an empty one on a [`Node`]'s network, which the calling thread and all that it starts are in from then on.
    /// Beside it run Kubernetes' controllers, as far as pods need them.
    ///
    /// # Errors
    /// As [`Kubernetes::start`], and when this user may not make networks.
    pub fn start_for_a_node() -> anyhow::Result<Self> {
        ensure!(
            std::env::var_os("WEFT_KUBECONFIG").is_none(),
            "pods run only at an API server that was started here: unset WEFT_KUBECONFIG"
        );
        network::enter()?;
        let mut kubernetes = Self::start_in(Place::Node)?;
        kubernetes.controllers = Some(kubernetes.controllers_for_a_node()?);
        Ok(kubernetes)
    }

    fn start_in(place: Place) -> anyhow::Result<Self> {
        let turn = TURNS[place as usize].lock().unwrap_or_else(PoisonError::into_inner);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let directory = TempDir::with_prefix("weft-kubernetes-")?;
        let (kubeconfig, own) = match std::env::var_os("WEFT_KUBECONFIG") {
            Some(given) => (PathBuf::from(given), None),
            None => {
                let port = free_port()?;
                (
                    credentials(directory.path(), port)?,
                    Some(Own::start(directory.path(), port, place, runtime.handle())?),
                )
            }
        };
        let client = runtime.block_on(connect(&kubeconfig))?;
        let api = Api::new(client, runtime.handle().clone());
        let mut kubernetes = Self { api, runtime, kubeconfig, controllers: None, own, directory, _turn: turn };
        kubernetes.wait_until_ready()?;
        Ok(kubernetes)
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        until("the API server is ready", START, || {
            let ended = self.own.as_mut().and_then(|own| own.server.as_mut()).is_some_and(|server| !server.runs());
            let etcd = self.own.as_mut().is_none_or(|own| own.etcd.runs());
            ensure!(etcd, "etcd ended:\n{}", self.log_of("etcd"));
            ensure!(!ended, "the API server ended:\n{}", self.log());
            let request = http_request("GET", "/readyz", None);
            Ok(self.block_on(self.client().request_text(request)).map(drop).map_err(|error| {
                let log = self.log();
                format!("{error}\n{}", log[log.len().saturating_sub(2_000)..].to_owned())
            }))
        })
    }

    /// A kubeconfig with all rights.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Runs a future beside the test.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }

    /// Deletes a key of etcd and makes it forget all versions but the newest, as if that had happened while nobody
    /// looked. The server must not run.
    ///
    /// # Errors
    /// When etcd refuses.
    pub fn delete_behind_the_server(&mut self, key: &str) -> anyhow::Result<()> {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, self.own()?.etcd_port));
        let post = |path: &str, body: Value| {
            let answer = replica::http(at, "POST", path, &body.to_string())?;
            anyhow::Ok(serde_json::from_str::<Value>(&answer)?)
        };
        let deleted = post("/v3/kv/deleterange", json!({"key": base64(key)}))?;
        ensure!(deleted["deleted"] == "1", "{key}: {deleted}");
        post("/v3/kv/compaction", json!({"revision": deleted["header"]["revision"], "physical": true}))?;
        Ok(())
    }

    /// Has each message between the API server and its etcd take so long from now on, there and back.
    ///
    /// # Errors
    /// When they are not on a node.
    pub fn slow_down_etcd(&self, by: Duration) -> anyhow::Result<()> {
        let way = self.own.as_ref().and_then(|own| own.way.as_ref());
        way.context("an API server that was started for a node")?.delay(by);
        Ok(())
    }

    /// The port of the API server on its node.
    fn port(&self) -> anyhow::Result<u16> {
        Ok(self.own.as_ref().context("an API server that was started here")?.port)
    }

    /// A directory that lives as long as this does.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What the API server has logged.
    pub fn log(&self) -> String {
        self.log_of("kube-apiserver")
    }

    fn log_of(&self, program: &str) -> String {
        fs::read_to_string(self.directory.path().join(format!("{program}.log"))).unwrap_or_default()
    }

    /// A kubeconfig with the rights of a ServiceAccount.
    ///
    /// # Errors
    /// When there is no such account.
    pub fn kubeconfig_of(&self, namespace: &str, account: &str) -> anyhow::Result<PathBuf> {
        let token = self.token(namespace, account, None, None, 3_600)?;
        let admin: Value = serde_json::from_str(&fs::read_to_string(&self.kubeconfig)?)?;
        let cluster = &admin["clusters"][0]["cluster"];
        let path = self.directory.path().join(format!("{namespace}-{account}.kubeconfig"));
        fs::write(&path, kubeconfig(cluster, &json!({"token": token})))?;
        Ok(path)
    }

    /// Ends the API server without ceremony.
    ///
    /// # Errors
    /// When it is another cluster's.
    pub fn kill_server(&mut self) -> anyhow::Result<()> {
        self.own()?.server = None;
        Ok(())
    }

    /// Starts it again, at the same address, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_server(&mut self) -> anyhow::Result<()> {
        let directory = self.directory.path().to_owned();
        let own = self.own()?;
        let etcd = own.way.as_ref().map_or(own.etcd_port, Way::port);
        own.server = Some(server(&directory, own.port, etcd, own.place)?);
        self.wait_until_ready()
    }

    fn own(&mut self) -> anyhow::Result<&mut Own> {
        self.own.as_mut().context("this is done only with an API server that was started here: unset WEFT_KUBECONFIG")
    }
}

impl Deref for Kubernetes {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

impl Drop for Own {
    /// The server first: it would wait for its etcd.
    fn drop(&mut self) {
        self.server = None;
        let _ = self.etcd.signal("TERM");
    }
}

impl Own {
    fn start(directory: &Path, port: u16, place: Place, runtime: &Handle) -> anyhow::Result<Self> {
        let (etcd_port, peer_port) = (free_port()?, free_port()?);
        let (client, peer) = (format!("http://127.0.0.1:{etcd_port}"), format!("http://127.0.0.1:{peer_port}"));
        let etcd = Process::start(
            Command::new(binary()?).arg("etcd").args([
                format!("--data-dir={}", directory.join("etcd").display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=default={peer}"),
                // What is lost with the machine was a test's.
                "--unsafe-no-fsync".to_owned(),
                "--log-level=warn".to_owned(),
            ]),
            &directory.join("etcd.log"),
        )?;
        let way = match place {
            Place::Loopback => None,
            Place::Node => Some(Way::start(runtime, etcd_port)?),
        };
        let server = server(directory, port, way.as_ref().map_or(etcd_port, Way::port), place)?;
        Ok(Self { etcd, server: Some(server), etcd_port, way, port, place })
    }
}

fn server(directory: &Path, port: u16, etcd_port: u16, place: Place) -> anyhow::Result<Process> {
    let file = |name: &str| directory.join(name).display().to_string();
    let mut command = Command::new(binary()?);
    command.arg("kube-apiserver").args([
        format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
        "--etcd-compaction-interval=0".to_owned(),
        format!("--secure-port={port}"),
        // The Service `kubernetes` needs no endpoints, and may have none on loopback.
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--tls-cert-file={}", file("server.pem")),
        format!("--tls-private-key-file={}", file("server-key.pem")),
        format!("--client-ca-file={}", file("ca.pem")),
        format!("--service-account-key-file={}", file("accounts.pem")),
        format!("--service-account-signing-key-file={}", file("accounts-key.pem")),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/12".to_owned(),
        "--authorization-mode=RBAC".to_owned(),
        // Webhooks are called at their endpoints: no kube-proxy leads to the addresses of Services.
        "--enable-aggregator-routing=true".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--profiling=false".to_owned(),
    ]);
    match place {
        Place::Loopback => command.arg("--bind-address=127.0.0.1"),
        Place::Node => command.args(["--bind-address=0.0.0.0".to_owned(), format!("--advertise-address={NODE_IP}")]),
    };
    Process::start(&mut command, &directory.join("kube-apiserver.log"))
}

fn binary() -> anyhow::Result<PathBuf> {
    let path = repository().join("target/kubernetes/kubernetes");
    ensure!(path.exists(), "there is no {}: run e2e/scripts/kubernetes", path.display());
    Ok(path)
}

/// RFC 4648, section 4.
fn base64(text: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let bits = (0..3).fold(0_usize, |bits, at| bits << 8 | usize::from(chunk.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            let letter = LETTERS[bits >> (18 - 6 * at) & 63];
            out.push(if at <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

/// A port that was free a moment ago, and that this process has not been given before.
///
/// It is none of those that the kernel gives (net.ipv4.ip_local_port_range, from 32768): another connection or listener could
/// have it before whoever this is for listens.
///
/// # Errors
/// When there is none.
pub fn free_port() -> anyhow::Result<u16> {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(..)));
    let ports = std::iter::repeat_with(|| 20_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 12_000);
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    ports.take(1_000).find(free).context("no port is free")
}

async fn connect(kubeconfig: &Path) -> anyhow::Result<Client> {
    let config = Kubeconfig::read_from(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// A request to the API server.
pub(crate) fn http_request(method: &str, path: &str, body: Option<(&str, String)>) -> hyper::Request<Vec<u8>> {
    let mut request = hyper::Request::new(Vec::new());
    // Both are this module's own.
    *request.method_mut() = method.parse().unwrap_or_default();
    *request.uri_mut() = path.parse().unwrap_or_default();
    if let Some((kind, body)) = body {
        if let Ok(kind) = kind.parse() {
            request.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
        }
        *request.body_mut() = body.into_bytes();
    }
    request
}

fn kubeconfig(cluster: &Value, user: &Value) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    })
    .to_string()
}

/// Certificates of the server and of its administrator, and a kubeconfig of the latter.
fn credentials(directory: &Path, port: u16) -> anyhow::Result<PathBuf> {
    let file = |name: &str| directory.join(name);
    let mut root = CertificateParams::default();
    root.distinguished_name.push(DnType::CommonName, "the test's own");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let root_key = KeyPair::generate()?;
    fs::write(file("ca.pem"), root.self_signed(&root_key)?.pem())?;
    let issuer = Issuer::new(root, root_key);
    let issue = |name: &str, params: CertificateParams| {
        let key = KeyPair::generate()?;
        fs::write(file(&format!("{name}.pem")), params.signed_by(&key, &issuer)?.pem())?;
        fs::write(file(&format!("{name}-key.pem")), key.serialize_pem())?;
        anyhow::Ok(())
    };
    let names = ["127.0.0.1", "10.96.0.1", "localhost", "kubernetes.default.svc"].map(str::to_owned);
    let mut server = CertificateParams::new(names)?;
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    issue("server", server)?;
    let mut admin = CertificateParams::default();
    admin.distinguished_name.push(DnType::OrganizationName, "system:masters");
    admin.distinguished_name.push(DnType::CommonName, "admin");
    admin.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    issue("admin", admin)?;
    let accounts = KeyPair::generate()?;
    fs::write(file("accounts-key.pem"), accounts.serialize_pem())?;
    fs::write(file("accounts.pem"), accounts.public_key_pem())?;
    let cluster = json!({"server": format!("https://127.0.0.1:{port}"), "certificate-authority": file("ca.pem")});
    let user = json!({"client-certificate": file("admin.pem"), "client-key": file("admin-key.pem")});
    let path = file("admin.kubeconfig");
    fs::write(&path, kubeconfig(&cluster, &user))?;
    Ok(path)
}
