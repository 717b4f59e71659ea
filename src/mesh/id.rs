//! Names, each a type of its own, so that a Service's key cannot be passed where a Pod's is meant.
//!
//! All of them are cheap to clone (`Arc<str>` inside) and order by namespace, then name.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A Kubernetes namespace's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Namespace {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Defines a key of a namespaced object, shown as `namespace/name`.
macro_rules! namespaced_key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            /// The namespace the object is in.
            pub namespace: Namespace,
            /// The object's name within its namespace.
            pub name: Arc<str>,
        }

        impl $name {
            /// The key of `name` in `namespace`.
            pub fn new(namespace: impl Into<Namespace>, name: impl Into<Arc<str>>) -> Self {
                Self { namespace: namespace.into(), name: name.into() }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.namespace, self.name)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.namespace, self.name)
            }
        }
    };
}

namespaced_key!(
    /// The key of a Service.
    ServiceKey
);
namespaced_key!(
    /// The key of a Pod.
    PodKey
);
namespaced_key!(
    /// The key of a ServiceAccount.
    ServiceAccountKey
);
namespaced_key!(
    /// The key of a workload: the Deployment (or StatefulSet, DaemonSet, Job, bare Pod) that a pod belongs to.
    WorkloadKey
);

/// The trust domain of the mesh, the authority part of its SPIFFE IDs: `cluster.local`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The trust domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

/// Why a text is no trust domain or no SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// SPIFFE-ID specification, section 2.1: lower-case letters, digits, dots, dashes and underscores, 1 to 255 long.
    #[error("`{0}` is not a trust domain: use lower-case letters, digits, `.`, `-` and `_`, at most 255 characters")]
    TrustDomain(String),
    /// Weft's identities have exactly this form.
    #[error("`{0}` is not of the form spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT")]
    SpiffeId(String),
    /// A proxy's node id is `POD.NAMESPACE`.
    #[error("`{0}` is not a proxy's node id: it must be POD.NAMESPACE")]
    ProxyId(String),
}

impl FromStr for TrustDomain {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
        if text.is_empty() || text.len() > 255 || !text.chars().all(allowed) {
            return Err(IdError::TrustDomain(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An identity of the mesh: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    /// The authority part.
    pub trust_domain: TrustDomain,
    /// The ServiceAccount that the path names.
    pub account: ServiceAccountKey,
}

impl SpiffeId {
    /// The identity of `account` in `trust_domain`.
    pub fn new(trust_domain: TrustDomain, account: ServiceAccountKey) -> Self {
        Self { trust_domain, account }
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let refuse = || IdError::SpiffeId(text.to_owned());
        let rest = text.strip_prefix("spiffe://").ok_or_else(refuse)?;
        match rest.split('/').collect::<Vec<_>>()[..] {
            [domain, "ns", namespace, "sa", account] if !namespace.is_empty() && !account.is_empty() => {
                Ok(Self::new(domain.parse()?, ServiceAccountKey::new(namespace, account)))
            }
            _ => Err(refuse()),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.account.namespace, self.account.name)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A sidecar's node id in xDS, `POD.NAMESPACE`.
///
/// A pod's name may contain dots and a namespace's may not, so the last dot separates them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProxyId(pub PodKey);

impl FromStr for ProxyId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        match text.rsplit_once('.') {
            Some((pod, namespace)) if !pod.is_empty() && !namespace.is_empty() => Ok(Self(PodKey::new(namespace, pod))),
            _ => Err(IdError::ProxyId(text.to_owned())),
        }
    }
}

impl fmt::Display for ProxyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0.name, self.0.namespace)
    }
}

impl fmt::Debug for ProxyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The kinds of object that Weft reads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs, reason = "each variant is the Kubernetes kind of the same name")]
pub enum Kind {
    Namespace,
    ServiceAccount,
    Pod,
    Deployment,
    StatefulSet,
    Service,
    EndpointSlice,
    TrafficSplit,
    HTTPRouteGroup,
    TCPRoute,
    UDPRoute,
    TrafficTarget,
    TrafficFault,
    TrafficPolicy,
    MeshConfig,
    Egress,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Which object, whatever its kind: `Service shop/cart`, `Namespace shop` (cluster-scoped kinds have no namespace).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectRef {
    /// The object's kind.
    pub kind: Kind,
    /// Its namespace; `None` for a cluster-scoped kind.
    pub namespace: Option<Namespace>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_id_reads_back_what_it_writes() {
        let id = SpiffeId::new(TrustDomain::default(), ServiceAccountKey::new("shop", "cart"));
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/cart");
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn texts_that_are_no_spiffe_id_of_the_mesh_are_refused() {
        for text in [
            "",
            "cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://Cluster/ns/a/sa/b",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_pod_with_dots_in_its_name_keeps_them_in_its_proxy_id() {
        let id: ProxyId = "web.v1-0.shop".parse().expect("a node id");
        assert_eq!(id.0, PodKey::new("shop", "web.v1-0"));
        assert_eq!(id.to_string(), "web.v1-0.shop");
    }
}
