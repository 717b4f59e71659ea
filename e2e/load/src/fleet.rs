//! Thousands of sidecars in one process, and what is seen of all of them together.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring;
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::catalog::{Catalog, ChangeId, NameId};
use crate::sidecar::{Have, Persona, Sidecar};
use crate::stream::{self, Command};
use weft::snapshot::ResourceType;

/// TLS handshakes that are under way at once; the rest wait in this process and not in the server's queue.
const HANDSHAKES: usize = 64;

/// Where the server is, and how it is recognised.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its address.
    pub address: SocketAddr,
    /// The name in its certificate.
    pub name: ServerName<'static>,
    /// The same, as HTTP's authority.
    pub authority: String,
    /// Trusts the server's root. Sessions are not resumed: each sidecar is a process of its own.
    pub tls: Arc<ClientConfig>,
}

impl Target {
    /// A server at `address` whose certificate says `name` and comes from this root (PEM).
    pub fn new(address: SocketAddr, name: &str, root: &[u8]) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(root)?)?;
        let tls = ClientConfig::builder_with_provider(Arc::new(as_envoy_offers())).with_protocol_versions(&[&TLS13])?;
        let mut tls = tls.with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        tls.resumption = rustls::client::Resumption::disabled();
        let (name, authority) = (ServerName::try_from(name.to_owned())?, name.to_owned());
        Ok(Self { address, name, authority, tls: Arc::new(tls) })
    }
}

/// Envoy's TLS library offers AES with 128 bits before 256 where the CPU has AES; servers follow, or prefer the same.
fn as_envoy_offers() -> CryptoProvider {
    let cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    CryptoProvider { cipher_suites, ..ring::default_provider() }
}

/// What all sidecars share.
#[derive(Debug)]
pub struct Shared {
    /// Names and contents.
    pub catalog: Catalog,
    pub(crate) target: Target,
    pub(crate) handshakes: Semaphore,
    pub(crate) connected: AtomicUsize,
    bytes: Arc<AtomicU64>,
    began: Instant,
    /// When something was last heard of the server, in microseconds since `began`.
    heard: AtomicU64,
    seen: Mutex<Seen>,
    progress: Notify,
    random: AtomicU64,
    last_refused: AtomicUsize,
}

#[derive(Debug, Default)]
struct Seen {
    synced: Vec<Instant>,
    calls: Vec<Duration>,
    changes: Vec<Change>,
    losses: BTreeMap<String, usize>,
}

/// A change of the source and who has acknowledged it.
#[derive(Clone, Debug)]
pub struct Change {
    /// The moment before it was made.
    pub at: Instant,
    /// How many sidecars will acknowledge it.
    pub expected: usize,
    /// How long after `at` each did.
    pub acknowledged: Vec<Duration>,
}

impl Change {
    /// From the change to the last acknowledgement.
    pub fn last(&self) -> Duration {
        self.acknowledged.iter().max().copied().unwrap_or_default()
    }
}

impl Shared {
    fn new(target: Target) -> Self {
        Self {
            catalog: Catalog::default(),
            target,
            handshakes: Semaphore::new(HANDSHAKES),
            connected: AtomicUsize::new(0),
            bytes: Arc::default(),
            began: Instant::now(),
            heard: AtomicU64::new(0),
            seen: Mutex::default(),
            progress: Notify::new(),
            random: AtomicU64::new(1),
            last_refused: AtomicUsize::new(0),
        }
    }

    pub(crate) fn counter(&self) -> Arc<AtomicU64> {
        self.bytes.clone()
    }

    pub(crate) fn heard(&self) {
        self.heard.store(self.began.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    pub(crate) fn synced(&self) {
        self.seen().synced.push(Instant::now());
        self.progress.notify_one();
    }

    pub(crate) fn acknowledged(&self, changes: impl Iterator<Item = ChangeId>) {
        let (now, mut seen) = (Instant::now(), self.seen());
        for ChangeId(change) in changes {
            if let Some(change) = seen.changes.get_mut(change) {
                change.acknowledged.push(now - change.at);
                if change.acknowledged.len() >= change.expected {
                    self.progress.notify_one();
                }
            }
        }
    }

    pub(crate) fn called(&self, calls: Vec<Duration>) {
        if !calls.is_empty() {
            self.seen().calls.extend(calls);
            self.progress.notify_one();
        }
    }

    pub(crate) fn lost(&self, reason: &anyhow::Error) {
        let reason = format!("{reason:#}");
        let refused = reason.contains("Connection refused");
        self.last_refused.store(usize::from(refused), Ordering::Relaxed);
        *self.seen().losses.entry(reason).or_default() += 1;
        self.progress.notify_one();
    }

    /// Whether the server does not listen.
    pub(crate) fn refused(&self) -> bool {
        self.last_refused.load(Ordering::Relaxed) == 1
    }

    /// Between half of `time` and all of it.
    pub(crate) fn jitter(&self, time: Duration) -> Duration {
        let next = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mixed = xxhash_rust::xxh3::xxh3_64(&next.to_le_bytes());
        time.mul_f64(0.5 + (mixed % 1024) as f64 / 2048.0)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Member {
    sidecar: Arc<Mutex<Sidecar>>,
    commands: mpsc::UnboundedSender<Command>,
}

/// Sidecars that are connected to one server.
pub struct Fleet {
    shared: Arc<Shared>,
    members: Vec<Member>,
    /// Dropping it ends them.
    _tasks: JoinSet<()>,
}

impl Fleet {
    /// Connects a sidecar for each persona, with its token; none begins its stream.
    pub async fn connect(
        target: Target,
        personas: impl FnOnce(&Catalog) -> anyhow::Result<Vec<(Persona, String)>>,
    ) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::new(target));
        let (mut tasks, mut members) = (JoinSet::new(), Vec::new());
        for (persona, token) in personas(&shared.catalog)? {
            let (commands, receiver) = mpsc::unbounded_channel();
            let sidecar = Arc::new(Mutex::new(Sidecar::new(persona)));
            tasks.spawn(stream::run(shared.clone(), sidecar.clone(), token, receiver));
            members.push(Member { sidecar, commands });
        }
        let fleet = Self { shared, members, _tasks: tasks };
        let (count, connected) = (fleet.len(), &fleet.shared.connected);
        let all = || connected.load(Ordering::Relaxed) == count;
        let start = Instant::now();
        while !all() {
            if start.elapsed() > Duration::from_secs(120) {
                bail!("{} of {count} connected; {}", connected.load(Ordering::Relaxed), fleet.losses());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(fleet)
    }

    /// How many sidecars there are.
    #[allow(clippy::len_without_is_empty, reason = "no fleet is empty")]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Names and contents.
    pub fn catalog(&self) -> &Catalog {
        &self.shared.catalog
    }

    /// What was read from all sockets.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Tells some sidecars.
    pub fn tell(&self, members: impl IntoIterator<Item = usize>, command: &Command) {
        for member in members {
            // It fails when the sidecar has ended, which `losses` tells.
            let _ = self.members[member].commands.send(command.clone());
        }
    }

    /// Waits until `count` streams have everything that they asked for, counted from the last [`Fleet::forget`].
    pub async fn synced(&self, count: usize, within: Duration) -> anyhow::Result<Vec<Instant>> {
        let done = |seen: &Seen| (seen.synced.len() >= count).then(|| seen.synced.clone());
        self.wait("sidecars have everything", within, done, |seen| format!("{} of {count}", seen.synced.len())).await
    }

    /// Forgets who is synced, the calls and the changes.
    pub fn forget(&self) {
        let mut seen = self.shared.seen();
        (seen.synced, seen.calls) = (Vec::new(), Vec::new());
    }

    /// A change of the endpoints or routes of this name is made now.
    pub fn begin_change(&self, name: NameId, expected: usize) -> ChangeId {
        let mut seen = self.shared.seen();
        let id = ChangeId(seen.changes.len());
        self.shared.catalog.await_change(name, id);
        seen.changes.push(Change { at: Instant::now(), expected, acknowledged: Vec::with_capacity(expected) });
        id
    }

    /// Waits until a change was acknowledged by all who are to.
    pub async fn changed(&self, change: ChangeId, within: Duration) -> anyhow::Result<Change> {
        let of = |seen: &Seen| seen.changes[change.0].clone();
        let done = |seen: &Seen| {
            let change = &seen.changes[change.0];
            (change.acknowledged.len() >= change.expected).then(|| of(seen))
        };
        let far = |seen: &Seen| format!("{} of {}", of(seen).acknowledged.len(), of(seen).expected);
        self.wait("acknowledgements of a change", within, done, far).await
    }

    /// Waits until that many calls were answered, and takes them.
    pub async fn calls(&self, count: usize, within: Duration) -> anyhow::Result<Vec<Duration>> {
        let done = |seen: &Seen| (seen.calls.len() >= count).then(|| seen.calls.clone());
        self.wait("first calls", within, done, |seen| format!("{} of {count}", seen.calls.len())).await
    }

    /// Waits until the server has said nothing for this long.
    pub async fn quiet(&self, time: Duration) {
        loop {
            let heard = Duration::from_micros(self.shared.heard.load(Ordering::Relaxed));
            let since = self.shared.began.elapsed().saturating_sub(heard);
            if since >= time {
                return;
            }
            tokio::time::sleep(time - since).await;
        }
    }

    /// When something was last heard.
    pub fn last_heard(&self) -> Instant {
        self.shared.began + Duration::from_micros(self.shared.heard.load(Ordering::Relaxed))
    }

    /// How many resources came on the streams that are open.
    pub fn resources(&self) -> u64 {
        (0..self.len()).map(|member| self.sidecar(member).resources).sum()
    }

    /// A sidecar's state.
    pub fn sidecar(&self, member: usize) -> MutexGuard<'_, Sidecar> {
        self.members[member].sidecar.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who holds these endpoints.
    pub fn holders(&self, name: NameId) -> usize {
        let holds = |member: &usize| {
            matches!(self.sidecar(*member).have(ResourceType::Endpoints, name), Some(Have::Content(_)))
        };
        (0..self.len()).filter(holds).count()
    }

    /// How many connections were lost and why.
    pub fn losses(&self) -> String {
        match &self.shared.seen().losses {
            losses if losses.is_empty() => "no connection was lost".to_owned(),
            losses => format!("connections lost: {losses:?}"),
        }
    }

    async fn wait<T>(
        &self,
        what: &str,
        within: Duration,
        done: impl Fn(&Seen) -> Option<T>,
        far: impl Fn(&Seen) -> String,
    ) -> anyhow::Result<T> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let progress = self.shared.progress.notified();
            if let Some(value) = done(&self.shared.seen()) {
                return Ok(value);
            }
            if tokio::time::timeout_at(deadline, progress).await.is_err() {
                let far = far(&self.shared.seen());
                bail!("{what}: {far} within {within:?}; {}", self.losses());
            }
        }
    }
}
