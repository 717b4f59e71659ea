//! What every proxy may see: an immutable table of encoded resources, shared by all streams.
//!
//! ```text
//!  envoy ──Change──▶ Snapshot::with ──Arc<Snapshot>──▶ xds (each stream holds the snapshot it was last sent)
//! ```

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::mesh::{ObjectRef, ProxyId};

/// The types of resource that Weft serves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ResourceType {
    /// `envoy.config.cluster.v3.Cluster`, the wildcard type of CDS.
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`.
    Endpoints,
    /// `envoy.config.listener.v3.Listener`, the wildcard type of LDS.
    Listener,
    /// `envoy.config.route.v3.RouteConfiguration`.
    Route,
    /// `envoy.extensions.transport_sockets.tls.v3.Secret`. Never in the table: see `ca`.
    Secret,
}

/// A resource's name, unique within its type.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceName(Arc<str>);

impl ResourceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ResourceName {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl From<String> for ResourceName {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The version of a resource: a hash of its content, equal on every replica and after a restart. Shown in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version(u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One resource, encoded once.
#[derive(Clone, PartialEq, Eq)]
pub struct Resource {
    /// Its type.
    pub kind: ResourceType,
    /// Its name.
    pub name: ResourceName,
    /// The hash of `body`.
    pub version: Version,
    /// The encoded message of the type that `kind` names (the `value` of its `google.protobuf.Any`).
    pub body: Bytes,
    /// The object that it was made for, which hears of a refusal.
    pub origin: Option<ObjectRef>,
}

impl Resource {
    /// A resource with the version that its `body` gives it.
    pub fn new(kind: ResourceType, name: impl Into<ResourceName>, body: Bytes, origin: Option<ObjectRef>) -> Self {
        let version = Version(xxhash_rust::xxh3::xxh3_64(&body));
        Self { kind, name: name.into(), version, body, origin }
    }
}

/// Without the body: that of a Secret holds a private key.
impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, name, version, body, origin } = self;
        write!(f, "{kind:?} {name}@{version} ({} bytes)", body.len())?;
        origin.iter().try_for_each(|origin| write!(f, " of {origin}"))
    }
}

/// What one proxy has for itself, and what it is pushed without asking.
#[derive(Clone, PartialEq, Debug)]
pub struct View {
    /// Resources that only this proxy sees: its inbound listener. They shadow shared ones of the same type and name.
    pub own: Vec<Arc<Resource>>,
    /// The shared clusters that its wildcard subscription contains.
    pub pushed: Pushed,
}

/// The shared clusters in the wildcard of a proxy. Others are had by name.
#[derive(Clone, PartialEq, Debug)]
pub enum Pushed {
    /// Every shared cluster (`eager`).
    All,
    /// These: what every proxy needs, and the warm set of its workload.
    Only(Arc<std::collections::BTreeSet<ResourceName>>),
}

/// Makes the clusters that are no Service's and so are in no table: a pod called by its address, and an address in
/// the mesh's ranges that is nobody's. Pure: equal inputs give equal resources.
pub trait Fallback: Send + Sync + fmt::Debug {
    /// The cluster of this name, or `None` if the name is no address in the mesh's ranges.
    fn cluster(&self, name: &ResourceName) -> Option<Arc<Resource>>;
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
