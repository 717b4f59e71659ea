//! The playground: a mesh on this machine, without a cluster.
//!
//! ```text
//!  weft up DIR                     on the host; waits for Ctrl-C; when it dies, by whatever cause, all below dies
//!  └─ weft internal init           pid 1 of the playground's pid namespace: mounts, reaping
//!     └─ weft internal playground  the tiny Kubernetes (cluster/), the control socket, this module's pods
//!        ├─ weft serve             the control plane, in the node's network namespace; may be killed and restarted
//!        └─ weft internal pod      one a pod: pid 1 of its pid namespace, holds its network, mounts and host name
//!           ├─ envoy               the sidecar of a meshed pod
//!           └─ …                   the application's containers
//! ```
//!
//! Everything lives in namespaces (user, when started without root; mount, network, pid, IPC) that are held by these
//! processes only, and every file on a tmpfs in the playground's own mount namespace. So there is nothing to clean up:
//! neither after Ctrl-C nor after SIGKILL.

pub mod bootstrap;
pub mod client;
pub mod cluster;
pub mod control;
pub mod envoy_binary;
pub mod intercept;
pub mod namespaces;
pub mod node;
pub mod outer;
pub mod playground;
pub mod probes;
pub mod tools;

mod admin;
mod backoff;
mod control_plane;
mod handle;
mod init;
mod log;
mod pod;
mod server;
mod sidecar;
mod wire;
mod wiring;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use client::{Client, ClientError};
pub use handle::{Options, Playground, StartError};
pub use init::run as run_init;
pub use namespaces::Privilege;
pub use pod::{run_container, run_pod, start_pod};
pub use wiring::wire;

/// Where the running `weft` is seen by every process of the playground.
pub const WEFT_EXE: &str = "/run/weft/bin/weft";
/// Where Envoy is seen; the original may be below a directory that the sidecar's user cannot enter.
pub const ENVOY_EXE: &str = "/run/weft/bin/envoy";
/// The directory that the tiny Kubernetes writes and the control plane reads.
pub const STATE_DIR: &str = "/run/weft/state";
/// The control plane's certificate authority.
pub const CA_DIR: &str = "/run/weft/ca";

/// What `weft up` was asked for, handed down to the processes in the namespaces.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// The directory of Kubernetes YAML.
    pub dir: PathBuf,
    /// The playground's name.
    pub name: String,
    /// Who runs it.
    pub privilege: Privilege,
    /// The `weft` executable on the host.
    pub weft: PathBuf,
    /// The Envoy executable on the host, or why there is none.
    pub envoy: Result<PathBuf, String>,
    /// More arguments of the control plane, `weft serve`.
    pub serve: Vec<String>,
    /// Pods have IPv6 addresses as well.
    pub dual_stack: bool,
}

/// What goes wrong inside the playground.
#[derive(Debug, thiserror::Error)]
pub enum PlaygroundError {
    /// Namespaces and mounts.
    #[error(transparent)]
    Namespace(#[from] namespaces::NamespaceError),
    /// Links, addresses, rules.
    #[error(transparent)]
    Network(#[from] node::NetworkError),
    /// A system call.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A pod's first process refused, or is gone.
    #[error("the pod failed: {0}")]
    Pod(String),
    /// The playground could not be put together.
    #[error("cannot start the playground: {0}")]
    Wiring(String),
    /// A meshed pod, and no Envoy.
    #[error("{0}")]
    NoEnvoy(String),
    /// An annotation of the pod.
    #[error(transparent)]
    Annotation(#[from] intercept::ExclusionError),
    /// The pod's annotation about xDS cannot be understood.
    #[error(transparent)]
    XdsProtocol(#[from] bootstrap::XdsProtocolError),
    /// Somebody called `weft internal …`.
    #[error("`weft internal` is called by `weft up`, not by hand")]
    NotByHand,
}

impl PlaygroundError {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
