//! Clusters that no Service has: a pod called by its address, addresses in the mesh's ranges that are nobody's, and hosts
//! outside the mesh. Whether a host may be called is said by listeners and routes: a listener that is drained goes on with
//! the clusters that it knows.

use std::any::Any;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use imbl::ordmap::DiffItem;
use ipnet::IpNet;
use prost::Message;

use super::{cluster, metrics, names};
use crate::mesh::{Kind, ObjectRef, PodKey, SpiffeId, TrustDomain};
use crate::policy::Workload;
use crate::snapshot::{Fallback, Hosts, Resource, ResourceName, ResourceType};

/// What is needed to reach a pod by its address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodAddress {
    /// The pod.
    pub key: PodKey,
    /// What it proves; `None` without a sidecar.
    pub identity: Option<SpiffeId>,
    /// Ports at which it is called past its sidecar.
    pub direct_ports: BTreeSet<u16>,
    /// What it is an instance of.
    pub workload: Workload,
}

/// Answers for every address in the mesh's ranges that is no Service's.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// The pods by address; shared with the next version of this.
    pub pods: imbl::OrdMap<IpAddr, PodAddress>,
    /// The mesh's ranges.
    pub ranges: Arc<[IpNet]>,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
}

impl Fallback for Addresses {
    fn cluster(&self, name: &ResourceName) -> Option<Arc<Resource>> {
        if let Some((host, port)) = names::parse_egress(name) {
            return Some(Arc::new(resource(name, cluster::outside(host, port).encode_to_vec().into(), None)));
        }
        if name.as_str() == names::EGRESS_WILDCARD {
            return Some(Arc::new(resource(name, cluster::outside_by_wildcard().encode_to_vec().into(), None)));
        }
        let address = names::parse_destination(name)?;
        let (ip, port) = (address.ip(), address.port());
        if let Some(pod) = self.pods.get(&ip) {
            let identity = pod.identity.clone().filter(|_| !pod.direct_ports.contains(&port));
            let endpoint = cluster::at(address, identity, pod.workload.clone());
            let stat_name = names::address_stat_name("pod", ip, port);
            let sni = format!("{port}.{}.{}.pod.cluster.local", pod.key.name, pod.key.namespace);
            let mut message = cluster::pod(name.as_str(), stat_name, sni, &endpoint, &self.trust_domain);
            message.metadata = metrics::of_pod(&pod.key.namespace);
            let origin =
                ObjectRef { kind: Kind::Pod, namespace: Some(pod.key.namespace.clone()), name: pod.key.name.clone() };
            return Some(Arc::new(resource(name, message.encode_to_vec().into(), Some(origin))));
        }
        self.ranges.iter().any(|range| range.contains(&ip)).then(|| {
            let stat_name = names::address_stat_name("unknown", ip, port);
            let message = cluster::original_destination(name.as_str(), stat_name);
            Arc::new(resource(name, message.encode_to_vec().into(), None))
        })
    }

    fn since(&self, before: &dyn Fallback) -> Hosts {
        let before: &dyn Any = before;
        let Some(before) = before.downcast_ref::<Self>() else { return Hosts::All };
        if before.ranges != self.ranges || before.trust_domain != self.trust_domain {
            return Hosts::All;
        }
        let ip = |item| match item {
            DiffItem::Add(ip, _) | DiffItem::Remove(ip, _) | DiffItem::Update { new: (ip, _), .. } => names::host(*ip),
        };
        Hosts::Only(before.pods.diff(&self.pods).map(ip).collect())
    }
}

fn resource(name: &ResourceName, body: Bytes, origin: Option<ObjectRef>) -> Resource {
    Resource::new(ResourceType::Cluster, name.clone(), body, origin)
}
