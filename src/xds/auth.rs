//! Who a proxy is: its token says, and everything it is given follows from that.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::mesh::{PodKey, ProxyId, SpiffeId};
use crate::snapshot::{Resource, ResourceName};

/// What a token proves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProxyIdentity {
    /// The identity that the stream gets secrets of.
    pub spiffe: SpiffeId,
    /// The pod that the token was made for; then no other pod's node id is accepted with it.
    pub pod: Option<PodKey>,
}

/// Why a stream is not accepted. The messages go to the log and to the peer: none of them contains a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// There is nothing to check.
    #[error("no token: send `authorization: Bearer TOKEN` with a ServiceAccount token for the audience of the mesh")]
    Missing,
    /// The header is there, but not of that form.
    #[error("the authorization header is not of the form `Bearer TOKEN`")]
    NotBearer,
    /// It was checked and is not good.
    #[error("the token is not valid: {0}")]
    Invalid(String),
    /// It could not be checked now; the peer may try again.
    #[error("the token could not be checked: {0}")]
    Unavailable(String),
}

/// Checks tokens.
pub trait Authenticator: Send + Sync {
    /// Who sent `token`, which is a secret: it belongs in no log and no error.
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<ProxyIdentity, AuthError>>;
}

/// Gives the secrets of identities: `workload` (certificate and key) and `mesh-root` (what to trust).
pub trait Secrets: Send + Sync + std::fmt::Debug {
    /// The secret `name` as `identity` gets it, or `None` if there is no such secret. Called whenever a stream
    /// compares, so it answers from memory.
    fn secret(&self, identity: &SpiffeId, name: &ResourceName) -> Option<Arc<Resource>>;

    /// Ticks when what `secret` answers may be different.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// Why the node that a stream's first request names is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// Rule 1.
    #[error("the first request of a stream must carry node.id")]
    Missing,
    /// It is not a sidecar's.
    #[error(transparent)]
    NotAProxy(#[from] crate::mesh::id::IdError),
    /// A token of one pod was used for another's configuration.
    #[error("the token is pod {pod}'s, but node.id is `{node}`: node.id must be POD.NAMESPACE of the token's own pod")]
    OtherPod {
        /// The token's pod.
        pod: PodKey,
        /// What the request says.
        node: ProxyId,
    },
}

/// The proxy that a stream of `identity` may be, given the node id of its first request.
pub fn admit(identity: &ProxyIdentity, node_id: &str) -> Result<ProxyId, NodeError> {
    if node_id.is_empty() {
        return Err(NodeError::Missing);
    }
    // Longer than any pod's and namespace's name together; it would be kept and shown.
    if node_id.len() > 512 {
        let start = node_id.chars().take(64).collect();
        return Err(NodeError::NotAProxy(crate::mesh::id::IdError::ProxyId(start)));
    }
    let node: ProxyId = node_id.parse()?;
    match &identity.pod {
        Some(pod) if *pod != node.0 => Err(NodeError::OtherPod { pod: pod.clone(), node }),
        _ => Ok(node),
    }
}

/// The token of an `authorization` header's value.
pub(crate) fn bearer(header: Option<&http::HeaderValue>) -> Result<&str, AuthError> {
    let text = header.ok_or(AuthError::Missing)?.to_str().map_err(|_| AuthError::NotBearer)?;
    let (scheme, token) = text.split_once(' ').ok_or(AuthError::NotBearer)?;
    match scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() {
        true => Ok(token.trim()),
        false => Err(AuthError::NotBearer),
    }
}
