//! What the tiny Kubernetes asks of the machine side, and what it is told in return.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use crate::mesh::id::{PodKey, ServiceAccountKey, WorkloadKey};

/// What the cluster asks of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodAction {
    /// Run this pod until it is stopped.
    Start(PodSpecToRun),
    /// Stop this pod; it may take `grace` to finish its work.
    Stop {
        /// The pod.
        pod: PodKey,
        /// How long from the beginning of the stop to SIGKILL (`terminationGracePeriodSeconds`).
        grace: Duration,
    },
}

/// What the machine tells the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodEvent {
    /// All containers of the pod have been started.
    Running {
        /// The pod.
        pod: PodKey,
    },
    /// An application container of the pod ended; it is restarted with back-off.
    Exited {
        /// The pod.
        pod: PodKey,
        /// Its exit code; 128 + the signal's number if a signal ended it.
        code: i32,
    },
    /// The pod's processes can (or can no longer) serve, as far as the machine sees; probes come on top.
    Ready {
        /// The pod.
        pod: PodKey,
        /// Whether.
        ready: bool,
    },
    /// The pod is stopped, and its address may be given to another.
    Gone {
        /// The pod.
        pod: PodKey,
    },
}

/// A pod, reduced to what is needed to run it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSpecToRun {
    /// Its name.
    pub key: PodKey,
    /// `metadata.uid`.
    pub uid: String,
    /// Its address, in 10.244.0.0/16.
    pub ip: Ipv4Addr,
    /// Its ServiceAccount.
    pub account: ServiceAccountKey,
    /// The workload it belongs to.
    pub workload: WorkloadKey,
    /// Whether it gets a sidecar and interception.
    pub meshed: bool,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// The application's containers (not the sidecar).
    pub containers: Vec<ContainerToRun>,
    /// How names are resolved in it.
    pub dns: PodDns,
    /// `spec.hostname`, or the pod's name.
    pub hostname: String,
}

/// What goes into a pod's `/etc/resolv.conf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodDns {
    /// The cluster's DNS server.
    pub nameserver: Ipv4Addr,
    /// The search domains, in order.
    pub search: Vec<String>,
}

/// A container, reduced to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerToRun {
    /// Its name within the pod.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The environment that the pod declares.
    pub env: Vec<(String, String)>,
    /// The working directory.
    pub workdir: Option<PathBuf>,
}
