//! The control plane put together: what `weft serve` runs.
//!
//! ```text
//!  source ─▶ pipeline (World, Translator; one task) ─▶ watch<Snapshot> ─▶ xds server (15010, TLS)
//!                                                                              │
//!  ca ─▶ secrets, server certificate ──────────────────────────────────────────┤
//!  token ─▶ authenticator ─────────────────────────────────────────────────────┘
//!  origin: which source, which ca, which authenticator; on Kubernetes its own objects there (lease, root)
//!  access logs ─▶ audit (what enforcement would deny)
//!  subscriptions ─▶ warm (what workloads call, for their new pods) ─▶ pipeline
//!  inspect (15014): health, readiness, metrics, inspection API, graph
//!
//!  rehearsal: what all this would say of objects that nobody has applied (`weft validate`)
//! ```

mod audit;
mod expiry;
mod graph;
mod identity;
mod origin;
mod pipeline;
pub mod rehearsal;
mod told;
mod warm;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::ca::token::TokenKeyError;
use crate::ca::{CaError, Clock, LeafPolicy, SecretStore, ServerCertificate};
use crate::inspect::readiness::Blocker;
use crate::inspect::{self, Admin, Readiness, metrics};
use crate::kubernetes::ConnectError;
use crate::source::SourceError;
use crate::warm::{FileStore, WarmStore};
use crate::xds::{self, service::ServeError};

use audit::Audit;
use graph::Graph;
use identity::Identities;
use origin::Opened;
pub use origin::{DirectoryOrigin, KubernetesOrigin, Origin};
use pipeline::{Pipeline, State};
use told::Told;
use warm::Memory;

/// The name by which sidecars know the control plane, the SAN of its certificate, where it is in its usual namespace.
pub const DNS_NAME: &str = "weft.weft-system.svc";

/// Connections that wait to be accepted: when it restarts, all sidecars come back at once. The kernel's own limit
/// (net.core.somaxconn) is the same by default.
const BACKLOG: u32 = 4_096;

const UNREAD: &str = "the source has not been read yet";
const NO_ROOT: &str = "the root of the mesh has not been read yet";
/// How often it is looked why the control plane is not ready.
const EXPLAIN: std::time::Duration = std::time::Duration::from_millis(250);

/// What a control plane is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the mesh's objects, its root, and the identities of sidecars come from.
    pub origin: Origin,
    /// The file that keeps what workloads call; `None`: on Kubernetes a ConfigMap does, else the memory.
    pub warm_sets: Option<PathBuf>,
    /// Where xDS is served, over TLS.
    pub xds: SocketAddr,
    /// Where health, metrics and the inspection API are served, in clear.
    pub admin: SocketAddr,
    /// How long workload certificates live.
    pub leaf: LeafPolicy,
    /// How long the control plane's own do.
    pub own_leaf: LeafPolicy,
    /// What sidecars may take of the xDS server.
    pub limits: xds::Limits,
    /// How new versions of what many sidecars share are rolled out.
    pub canary: xds::Canary,
}

/// Why the control plane does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be watched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// There is no API server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// There is no certificate authority.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The key file is not there.
    #[error("cannot read the token key {}: {error}; give the public key that tokens are verified with (PEM)", path.display())]
    TokenKeyFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The key file holds something else.
    #[error("{}: {error}", path.display())]
    TokenKey {
        /// The file.
        path: PathBuf,
        /// What it is not.
        error: TokenKeyError,
    },
    /// A port is taken, or not ours.
    #[error("cannot listen on {address} for {what}: {error}; choose another address with --{flag}")]
    Listen {
        /// What is served there.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The flag that changes it.
        flag: &'static str,
        /// Why not.
        error: std::io::Error,
    },
    /// The server's own TLS.
    #[error("cannot set up TLS for xDS: {0}")]
    Tls(#[from] rustls::Error),
    /// Serving xDS ended.
    #[error(transparent)]
    Xds(#[from] ServeError),
    /// Serving the admin port ended.
    #[error("the admin port ended: {0}")]
    Admin(std::io::Error),
    /// The task that keeps the mesh ended.
    #[error("the mesh's own task ended")]
    Pipeline,
}

/// Runs until `shutdown` is cancelled, or something ends that the control plane cannot be without.
///
/// The admin port answers first, then everything is read once, then the certificate authority is made (for the trust
/// domain that MeshConfig states), and only then sidecars are served: an empty first snapshot would take away what
/// they have.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let clock = Clock::system();
    let mut origin = Opened::open(config.origin, &clock).await?;
    let xds_listener = listen("xDS", config.xds, "xds")?;
    let admin_listener = listen("health, metrics and inspection", config.admin, "admin")?;
    let (events, batches) = mpsc::channel(16);
    let _stop_with_us = shutdown.clone().drop_guard();

    let (snapshots, published) = watch::channel(None);
    let (pipeline, mesh) = Pipeline::new(batches, snapshots, clock.clone());
    let store = match config.warm_sets {
        Some(path) => Some(Arc::new(FileStore::new(path)) as Arc<dyn WarmStore>),
        None => origin.warm_store(mesh.clone()),
    };
    let (mut memory, ears) = Memory::new(mesh.clone(), published.clone(), store);
    let readiness = Readiness::default();
    let reading = readiness.block(UNREAD);
    let early = early_health(&admin_listener, &readiness)?;
    let source = origin.read(events);
    let synced = async {
        memory.load().await; // before the first snapshot, whose pods are then warm
        pipeline.synced().await
    };
    let synced = explained(UNREAD, &reading, &mesh, synced);
    let (pipeline, trust_domain) = tokio::select! {
        synced = synced => synced.ok_or(Error::Pipeline)?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let authority = tokio::select! {
        authority = explained(NO_ROOT, &reading, &mesh, origin.authority(&trust_domain, &clock, mesh.clone())) => authority?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let secrets = Arc::new(SecretStore::new(authority.clone(), config.leaf));
    let certificate = Arc::new(ServerCertificate::new(authority.clone(), &origin.dns_name(), config.own_leaf)?);
    let tls = certificate.server_config()?;

    let audit = Arc::new(Audit::new(mesh.clone()));
    let server = xds::Server::new(
        published.clone(),
        origin.authenticator(mesh.clone(), trust_domain, clock),
        Arc::new(Identities(secrets.clone())),
        shutdown.clone(),
    )
    .limit(config.limits)
    .canary(config.canary)
    .learn(Arc::new(ears))
    .denials(audit.clone());
    let streams = server.registry();
    let mut registry = Registry::default();
    let minted = secrets.clone();
    metrics::register(&mut registry, streams.clone(), move || minted.minted());
    metrics::register_pressure(&mut registry, server.counts());
    let delivery = Arc::new(pipeline::Progress { published: published.clone(), streams: streams.clone() });
    metrics::register_delivery(&mut registry, streams.delivery_seconds(), streams.clone(), delivery.clone());
    let told = Arc::new(Told { observed: origin.observed(), mesh: mesh.clone(), streams: streams.clone() });
    let admin = Admin {
        proxies: streams.clone(),
        graph: Arc::new(Graph::new(mesh.clone(), published, streams)),
        generations: told.clone(),
        mesh: mesh.clone(),
        delivery,
        audit,
        readiness,
        registry: Arc::new(registry),
    };
    reading.release();
    drop(early);
    tracing::info!(xds = %config.xds, admin = %config.admin, "serving");
    let ended = tokio::select! {
        ended = source => match ended {
            Ok(ended) => ended.map_err(Error::from),
            Err(_) => Err(Error::Pipeline),
        },
        () = pipeline.run() => Err(Error::Pipeline),
        ended = server.serve_tls(xds_listener, tls) => ended.map_err(Error::from),
        ended = inspect::serve(admin_listener, admin.router(), shutdown.clone().cancelled_owned()) => {
            ended.map_err(Error::Admin)
        }
        () = secrets.renew_forever() => Ok(()),
        () = certificate.renew_forever() => Ok(()),
        () = memory.run() => Ok(()),
        () = origin.tend(&authority, mesh, told) => Ok(()),
    };
    origin.end().await;
    memory.exchange().await; // what was learned since the last time
    ended
}

/// Health and readiness are told from the beginning: who is asked and does not answer is taken for dead. It ends when the
/// guard is dropped.
fn early_health(listener: &TcpListener, readiness: &Readiness) -> Result<DropGuard, Error> {
    let same = rustix::io::fcntl_dupfd_cloexec(listener, 0).map_err(|error| Error::Admin(error.into()))?;
    let same = TcpListener::from_std(same.into()).map_err(Error::Admin)?;
    let end = CancellationToken::new();
    tokio::spawn(inspect::serve(same, inspect::health(readiness.clone()), end.clone().cancelled_owned()));
    Ok(end.drop_guard())
}

/// Waits for `work`, and keeps saying why it is not done.
async fn explained<T>(what: &str, reading: &Blocker, mesh: &State, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    let mut look = tokio::time::interval(EXPLAIN);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = look.tick() => {
                let found = mesh.hindrances();
                reading.because(if found.is_empty() { what.to_owned() } else { format!("{what}: {}", found.join("; ")) });
            }
        }
    }
}

fn listen(what: &'static str, address: SocketAddr, flag: &'static str) -> Result<TcpListener, Error> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error| Error::Listen { what, address, flag, error })
}
