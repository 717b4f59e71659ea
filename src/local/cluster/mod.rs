//! The playground's Kubernetes: controllers, kubelet decisions, cluster DNS and the service proxy of a single node.
//!
//! ```text
//!  user's directory ──Input::Applied/Deleted──▶ ┌─────────┐ ──Write/Remove──▶ state directory ──▶ weft serve
//!  machine ──PodEvent──────────────────────────▶ │ Cluster │ ──Ruleset──────▶ nft (service proxy)
//!  clock ──Tick────────────────────────────────▶ └─────────┘ ──Zone─────────▶ cluster DNS
//!                                                     └───────PodAction─────▶ machine (namespaces, processes, Envoy)
//! ```
//!
//! [`Cluster`] is a synchronous state machine: it decides, and touches nothing. [`driver`] owns it, feeds it and
//! carries out what it says; [`state`], [`dns`], [`service_proxy`] and [`probe`] are the parts that meet the machine.
//! Pods themselves (network namespaces, processes, sidecars) belong to the machine side, which is met only through
//! the types of this file: [`PodAction`] goes out, [`PodEvent`] comes in.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use crate::mesh::{PodKey, ServiceAccountKey, WorkloadKey};

mod addresses;
mod controller;
pub mod dns;
pub mod driver;
mod endpoints;
mod hash;
mod object;
mod outside;
mod pod;
mod pre_stop;
pub mod probe;
mod rollout;
pub mod service_proxy;
pub mod state;
mod template;

pub use controller::{Cluster, Config, Input, Output};
pub use object::Object;
pub use pre_stop::PreStop;
pub use probe::{Check, ContainerProbes, Probe};
pub use template::expand;

/// What the machine side is to do with a pod.
#[derive(Clone, PartialEq, Debug)]
#[allow(clippy::large_enum_variant, reason = "few exist at a time, and each is taken apart at once")]
pub enum PodAction {
    /// Make the pod run. For a pod that has its namespaces already: start those of its containers that do not run
    /// (a restart; the address, the uid and the sidecar stay).
    Start(PodSpecToRun),
    /// End the pod: SIGTERM to its containers, SIGKILL after `grace`, then remove its namespaces and say
    /// [`PodEvent::Gone`].
    Stop {
        /// Which pod.
        pod: PodKey,
        /// `terminationGracePeriodSeconds`.
        grace: Duration,
    },
}

/// What the machine side says of a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PodEvent {
    /// Its sidecar, if it has one, is up and all its containers were started. Sent again after a restart.
    Running {
        /// Which pod.
        pod: PodKey,
    },
    /// A container has ended (or could not be started).
    Exited {
        /// Which pod.
        pod: PodKey,
        /// The exit code, 128 + signal for a signal, as a shell has it.
        code: i32,
    },
    /// Its readiness has changed. Comes from the prober; a pod without probes needs none.
    Ready {
        /// Which pod.
        pod: PodKey,
        /// All its containers are ready.
        ready: bool,
    },
    /// Whether its sidecar serves, from its start on. While it does not, the pod is not ready.
    Sidecar {
        /// Which pod.
        pod: PodKey,
        /// It does.
        serves: bool,
    },
    /// Nothing of it is left, and its address may be given away.
    Gone {
        /// Which pod.
        pod: PodKey,
    },
}

/// All that the machine side needs to know to run a pod.
#[derive(Clone, PartialEq, Debug)]
pub struct PodSpecToRun {
    /// Its key.
    pub key: PodKey,
    /// `metadata.uid`.
    pub uid: String,
    /// Its address, for as long as it exists.
    pub ip: Ipv4Addr,
    /// Its second address, in a cluster of both families.
    pub ipv6: Option<Ipv6Addr>,
    /// The ServiceAccount that its token names.
    pub account: ServiceAccountKey,
    /// Its Deployment, or itself.
    pub workload: WorkloadKey,
    /// The version that its labels state.
    pub version: Option<String>,
    /// The zone that its labels state.
    pub zone: Option<String>,
    /// It gets a sidecar.
    pub meshed: bool,
    /// What runs in it, without the sidecar.
    pub containers: Vec<ContainerToRun>,
    /// What the kubelet part probes. [`driver`] does so; the machine side may ignore it.
    pub probes: Vec<ContainerProbes>,
    /// `metadata.annotations`.
    pub annotations: std::collections::BTreeMap<String, String>,
    /// What its `/etc/resolv.conf` says.
    pub dns: DnsConfig,
    /// What `hostname` says in it.
    pub hostname: String,
}

/// A container as a process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContainerToRun {
    /// Its name in the pod.
    pub name: String,
    /// The program and its arguments; never empty.
    pub argv: Vec<String>,
    /// Its environment, by name, beyond what every container gets (`PATH`, `HOSTNAME`).
    pub env: Vec<(String, String)>,
    /// `workingDir`.
    pub workdir: Option<PathBuf>,
    /// `lifecycle.preStop`.
    pub pre_stop: Option<PreStop>,
}

/// A pod's resolver configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsConfig {
    /// The cluster DNS.
    pub nameserver: Ipv4Addr,
    /// The search list, the pod's own namespace first.
    pub search: Vec<String>,
}

/// The address of the cluster DNS, an address of the node itself.
pub const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The address of the node.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// The node's address in a cluster of both families.
pub const NODE_ADDRESS_IPV6: Ipv6Addr = addresses::ipv6(NODE_ADDRESS);
/// The domain of the cluster's names.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// The container that makes a pod meshed.
pub const SIDECAR: &str = "weft-proxy";
