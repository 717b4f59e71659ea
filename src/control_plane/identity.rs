//! Joins the certificate authority and its tokens to what the xDS server asks of them.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::ca::SecretStore;
use crate::ca::token::TokenVerifier;
use crate::mesh::{SpiffeId, TrustDomain};
use crate::snapshot::{Resource, ResourceName};
use crate::xds::auth::{AuthError, Authenticator, ProxyIdentity, Secrets};

/// Knows a proxy by a token that the playground signed.
#[derive(Debug)]
pub(super) struct Tokens {
    verifier: TokenVerifier,
    trust_domain: TrustDomain,
}

impl Tokens {
    pub(super) fn new(verifier: TokenVerifier, trust_domain: TrustDomain) -> Self {
        Self { verifier, trust_domain }
    }
}

impl Authenticator for Tokens {
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<ProxyIdentity, AuthError>> {
        let verified = self.verifier.verify(token).map_err(|error| AuthError::Invalid(error.to_string()));
        let identity = verified.map(|subject| ProxyIdentity {
            spiffe: SpiffeId::new(self.trust_domain.clone(), subject.account),
            pod: subject.pod,
        });
        Box::pin(std::future::ready(identity))
    }
}

/// Gives each identity its own secrets.
#[derive(Debug)]
pub(super) struct Identities(pub(super) Arc<SecretStore>);

impl Secrets for Identities {
    fn secret(&self, identity: &SpiffeId, name: &ResourceName) -> Option<Arc<Resource>> {
        self.0.secret(identity, name)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes()
    }
}
