//! One encoded resource: its type, its name, its version.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::mesh::ObjectRef;

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

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

impl ResourceType {
    /// Every type, in the order in which additions are sent (xDS protocol, "Eventual consistency considerations").
    pub const ALL: [Self; 5] = [Self::Secret, Self::Cluster, Self::Endpoints, Self::Listener, Self::Route];

    /// The type as `type_url` of requests, responses and `google.protobuf.Any`.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => CLUSTER,
            Self::Endpoints => ENDPOINTS,
            Self::Listener => LISTENER,
            Self::Route => ROUTE,
            Self::Secret => SECRET,
        }
    }

    /// The type of this `type_url`, or `None` if Weft does not serve it.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// Whether "everything" can be subscribed to: clusters and listeners, whose state-of-the-world responses are
    /// also the only ones that are complete, so that absence deletes.
    pub const fn has_wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
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

impl Borrow<str> for ResourceName {
    fn borrow(&self) -> &str {
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

impl Version {
    /// Reads what `Display` writes; `None` for the version of a server of another kind.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok().map(Self)).flatten()
    }

    /// Its bytes, for hashing.
    pub(crate) fn to_le_bytes(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }
}

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

/// The Envoys among which [`Resource::body_for`] distinguishes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Generation {
    /// It loads everything that Weft generates.
    #[default]
    Current,
    /// It has no stats access logger, or not in its present form.
    Older,
}

/// One resource, encoded once.
#[derive(Clone, PartialEq, Eq)]
pub struct Resource {
    /// Its type.
    pub kind: ResourceType,
    /// Its name.
    pub name: ResourceName,
    /// The hash of `body`, and of `older`.
    pub version: Version,
    /// The encoded message of the type that `kind` names (the `value` of its `google.protobuf.Any`).
    pub body: Bytes,
    /// What older Envoys are sent instead, where they could not load `body`.
    pub older: Option<Bytes>,
    /// The object that it was made for, which hears of a refusal.
    pub origin: Option<ObjectRef>,
    /// Of a cluster with endpoints by EDS, their name: they have to follow it.
    pub endpoints: Option<ResourceName>,
}

impl Resource {
    /// A resource with the version that its `body` gives it.
    pub fn new(kind: ResourceType, name: impl Into<ResourceName>, body: Bytes, origin: Option<ObjectRef>) -> Self {
        let version = Version(xxhash_rust::xxh3::xxh3_64(&body));
        Self { kind, name: name.into(), version, body, older: None, origin, endpoints: None }
    }

    /// The same, with another body for older Envoys. Both have one version: which of them a proxy is sent does not change
    /// as long as it runs.
    pub fn for_older(self, body: Bytes) -> Self {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(&self.version.to_le_bytes());
        hash.update(&body);
        Self { version: Version(hash.digest()), older: Some(body), ..self }
    }

    /// What a proxy of this generation is sent.
    pub fn body_for(&self, generation: Generation) -> &Bytes {
        match (generation, &self.older) {
            (Generation::Older, Some(older)) => older,
            _ => &self.body,
        }
    }

    /// The same, for a cluster whose endpoints are the resource of this name.
    pub fn with_endpoints(self, name: ResourceName) -> Self {
        Self { endpoints: Some(name), ..self }
    }
}

/// Without the body: that of a Secret holds a private key.
impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, name, version, body, older: _, origin, endpoints: _ } = self;
        write!(f, "{kind:?} {name}@{version} ({} bytes)", body.len())?;
        origin.iter().try_for_each(|origin| write!(f, " of {origin}"))
    }
}
