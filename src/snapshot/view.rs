//! What differs between proxies, and the steps from one snapshot to the next.

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::{Resource, ResourceName, ResourceType};
use crate::mesh::ProxyId;

/// What one proxy has for itself, and what it is pushed without asking.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// Resources that only this proxy sees: its inbound listener. They shadow shared ones of the same type and name.
    pub own: Vec<Arc<Resource>>,
    /// The shared clusters that its wildcard subscription contains.
    pub pushed: Pushed,
}

/// The shared clusters in the wildcard of a proxy. Others are had by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pushed {
    /// Every shared cluster (`eager`).
    All,
    /// These: what every proxy needs, and the warm set of its workload.
    Only(Arc<BTreeSet<ResourceName>>),
}

/// Makes the clusters that are no Service's and so are in no table: a pod called by its address, and an address in
/// the mesh's ranges that is nobody's. Pure: equal inputs give equal resources.
pub trait Fallback: Any + Send + Sync + fmt::Debug {
    /// The cluster of this name, or `None` if the name is no address in the mesh's ranges.
    fn cluster(&self, name: &ResourceName) -> Option<Arc<Resource>>;

    /// Where the answers may be other than those of `before`.
    fn since(&self, before: &dyn Fallback) -> Hosts;
}

/// Hosts, as the names of clusters begin with them: `10.244.0.7`, `[fd00::7]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hosts {
    /// Any.
    All,
    /// These.
    Only(BTreeSet<String>),
}

impl Hosts {
    /// Whether the host of a cluster's name is one of these.
    pub fn contain(&self, cluster: &ResourceName) -> bool {
        match self {
            Self::All => true,
            Self::Only(hosts) => cluster.as_str().rsplit_once(':').is_some_and(|(host, _)| hosts.contains(host)),
        }
    }
}

/// One step from a snapshot to the next.
#[derive(Clone, Debug)]
pub enum Change {
    /// A shared resource is new or different.
    Put(Arc<Resource>),
    /// A shared resource is gone.
    Remove(ResourceType, ResourceName),
    /// A proxy is known, or what it sees is different. A proxy without a view is answered nothing at all.
    PutView(ProxyId, Arc<View>),
    /// A proxy is gone.
    RemoveView(ProxyId),
    /// What `Fallback::cluster` answers may be different.
    Fallback(Arc<dyn Fallback>),
}
