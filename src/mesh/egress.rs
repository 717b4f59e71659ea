//! Egress: what workloads may call outside the mesh.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Namespace, ServiceAccountKey};

/// What becomes of a call to a host outside the mesh.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum EgressMode {
    /// It goes through.
    #[default]
    Allow,
    /// It goes through if an [`Egress`] allows it.
    Deny,
}

/// An Egress: hosts and addresses outside the mesh that workloads of its namespace may call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Egress {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: Arc<str>,
    /// `spec.hosts`: HTTP by its Host, TLS by its SNI.
    pub hosts: BTreeSet<EgressHost>,
    /// `spec.addresses`: anything.
    pub addresses: BTreeSet<IpNet>,
    /// `spec.ports`; empty means 80 for HTTP and 443 for TLS by host, and any port by address.
    pub ports: BTreeSet<EgressPort>,
    /// `spec.sources`, accounts of its own namespace; `None`: every workload of the namespace.
    pub sources: Option<BTreeSet<ServiceAccountKey>>,
}

/// A host by its DNS name, in lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EgressHost {
    /// `api.example.com`.
    Exactly(Arc<str>),
    /// `*.example.com`, here without `*.`: every name below it, however deep, and not itself.
    Below(Arc<str>),
}

/// As it is written in `spec.hosts`.
impl fmt::Display for EgressHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(name) => f.write_str(name),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

/// One entry of `spec.ports`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EgressPort {
    /// Its number.
    pub number: u16,
    /// What is spoken on it; `None`: anything.
    pub protocol: Option<EgressProtocol>,
}

/// What is spoken on a port outside the mesh.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EgressProtocol {
    /// HTTP in clear, any version.
    Http,
    /// TLS that the application begins.
    Tls,
    /// Anything; its server may speak first.
    Tcp,
}
