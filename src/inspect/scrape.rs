//! Where Prometheus finds the sidecars: HTTP service discovery (`http_sd_configs`), a target for each meshed pod.
//!
//! What is known of a pod stands in labels that begin with `__meta_weft_`: Prometheus shows them to relabelling, and
//! drops them afterwards.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::mesh::{PodKey, ServiceAccountKey, ServiceKey, WorkloadKey};

/// Where a sidecar serves its readiness and its metrics.
const PORT: u16 = 15020;

/// A pod with a sidecar.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sidecar {
    /// The pod.
    pub pod: PodKey,
    /// Its primary address.
    pub ip: IpAddr,
    /// What it is an instance of.
    pub workload: WorkloadKey,
    /// The version that its labels state.
    pub version: Option<String>,
    /// Who it is.
    pub account: ServiceAccountKey,
    /// The Services that it is behind, each once.
    pub services: Vec<ServiceKey>,
}

/// One entry of the answer, as Prometheus defines it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct TargetGroup {
    targets: [String; 1],
    labels: BTreeMap<&'static str, String>,
}

impl From<Sidecar> for TargetGroup {
    fn from(sidecar: Sidecar) -> Self {
        let Sidecar { pod, ip, workload, version, account, services } = sidecar;
        let services: Vec<_> = services.iter().map(|service| &*service.name).collect();
        let labels = [
            ("__meta_weft_namespace", Some(pod.namespace.to_string())),
            ("__meta_weft_pod", Some(pod.name.to_string())),
            ("__meta_weft_workload", Some(workload.name.to_string())),
            ("__meta_weft_version", version),
            ("__meta_weft_account", Some(account.name.to_string())),
            ("__meta_weft_services", (!services.is_empty()).then(|| services.join(","))),
        ];
        Self {
            targets: [SocketAddr::new(ip, PORT).to_string()],
            labels: labels.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
        }
    }
}
