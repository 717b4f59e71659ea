//! The SDS secrets of every identity: minted when first asked for, again at about half of their life.
//!
//! ```text
//!  stream ──secret(identity, name)──▶ cache ──(absent or due)──▶ Authority
//!    ▲                                  ▲
//!    └──changes()── renew(): a leaf is due ─┘      a stream that still wants it asks again, which mints the next one;
//!                                                  a leaf that nobody asks for again is dropped
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret::Type,
};
use prost::Message;
use rand::Rng;
use tokio::sync::watch;

use super::authority::{Authority, CaError, Issued};
use crate::mesh::SpiffeId;
use crate::snapshot::{Resource, ResourceName, ResourceType};

/// The secret that holds the leaf and key of the stream's identity.
pub const WORKLOAD: &str = "workload";
/// The secret that holds the root that peers are verified with.
pub const MESH_ROOT: &str = "mesh-root";

/// How long leafs live.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LeafPolicy {
    /// From minting to expiry.
    pub lifetime: Duration,
    /// A leaf is renewed at half of its life, give or take a random part of its life up to this fraction.
    pub jitter: f64,
}

impl Default for LeafPolicy {
    fn default() -> Self {
        Self { lifetime: Duration::from_secs(24 * 3600), jitter: 0.05 }
    }
}

impl LeafPolicy {
    /// When a leaf that is minted at `now` is due for renewal.
    pub(super) fn renewal(&self, now: SystemTime) -> SystemTime {
        let jitter = self.jitter.clamp(0.0, 0.4);
        now + self.lifetime.mul_f64(0.5 + rand::rng().random_range(-jitter..=jitter))
    }

    /// How long to wait after a failed attempt, and for streams to ask for a leaf that is due: a twentieth of a life.
    pub(super) fn patience(&self) -> Duration {
        self.lifetime / 20
    }
}

/// The current secrets of every identity that somebody asks for.
#[derive(Debug)]
pub struct SecretStore {
    authority: Arc<Authority>,
    policy: LeafPolicy,
    root: Arc<Resource>,
    leafs: Mutex<HashMap<SpiffeId, Leaf>>,
    changes: watch::Sender<u64>,
    minted: watch::Sender<u64>,
}

#[derive(Debug)]
struct Leaf {
    secret: Arc<Resource>,
    not_after: SystemTime,
    state: State,
}

/// Where a leaf is in its life.
#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    /// In use; due at this time.
    Fresh(SystemTime),
    /// Its streams were told to ask again; dropped at this time if none does.
    Due(SystemTime),
}

impl Leaf {
    /// When [`SecretStore::renew`] has to look at it again.
    fn deadline(&self) -> SystemTime {
        match self.state {
            State::Fresh(at) | State::Due(at) => at,
        }
    }
}

impl SecretStore {
    /// A store that mints by `authority`. Whoever makes it also runs [`SecretStore::renew_forever`].
    pub fn new(authority: Arc<Authority>, policy: LeafPolicy) -> Self {
        let root = Arc::new(root_secret(authority.root_pem()));
        let leafs = Mutex::default();
        Self { authority, policy, root, leafs, changes: watch::Sender::new(0), minted: watch::Sender::new(0) }
    }

    /// The secret called `name` of `identity`; `None` for a name that is neither [`WORKLOAD`] nor [`MESH_ROOT`], and
    /// for an identity of another trust domain.
    pub fn secret(&self, identity: &SpiffeId, name: &ResourceName) -> Option<Arc<Resource>> {
        match name.as_str() {
            MESH_ROOT => Some(self.root.clone()),
            WORKLOAD => self.leaf(identity),
            _ => None,
        }
    }

    /// Counts up whenever a secret that was handed out may have been replaced: ask for it again.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// How many leafs were minted, for metrics.
    pub fn minted(&self) -> u64 {
        *self.minted.borrow()
    }

    fn leaf(&self, identity: &SpiffeId) -> Option<Arc<Resource>> {
        let now = self.authority.clock().now();
        let mut leafs = self.leafs();
        let held = leafs.get(identity).filter(|leaf| leaf.not_after > now);
        if let Some(Leaf { secret, state: State::Fresh(due), .. }) = held
            && *due > now
        {
            return Some(secret.clone());
        }
        match self.authority.issue_workload(identity, self.policy.lifetime) {
            Ok(issued) => {
                let secret = Arc::new(workload_secret(&issued));
                let state = State::Fresh(self.policy.renewal(now));
                let leaf = Leaf { secret: secret.clone(), not_after: issued.not_after, state };
                leafs.insert(identity.clone(), leaf);
                drop(leafs);
                self.minted.send_modify(|count| *count += 1); // also wakes `renew_forever`: there is a new deadline
                tracing::debug!(%identity, "minted a certificate");
                Some(secret)
            }
            Err(error) => {
                refused(identity, &error);
                let leaf = leafs.get_mut(identity).filter(|leaf| leaf.not_after > now)?;
                leaf.state = State::Fresh(now + self.policy.patience());
                Some(leaf.secret.clone())
            }
        }
    }

    /// Tells streams of the leafs that are due and drops those that nobody asked for again, until the future is
    /// dropped.
    pub async fn renew_forever(&self) {
        let mut minted = self.minted.subscribe();
        loop {
            minted.mark_unchanged();
            let next = self.renew();
            let wait = async {
                match next {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            // `self` holds the sender of `minted`, so waiting for it cannot fail.
            tokio::select! { () = wait => {}, _ = minted.changed() => {} }
        }
    }

    /// One round of [`SecretStore::renew_forever`]: returns how long nothing will be due.
    fn renew(&self) -> Option<Duration> {
        let now = self.authority.clock().now();
        let drop_at = now + self.policy.patience();
        let mut due = false;
        let mut leafs = self.leafs();
        leafs.retain(|_, leaf| match leaf.state {
            State::Fresh(at) if at <= now => {
                due = true;
                leaf.state = State::Due(drop_at);
                true
            }
            State::Due(at) => at > now,
            State::Fresh(_) => true,
        });
        let next = leafs.values().map(Leaf::deadline).min();
        drop(leafs);
        if due {
            self.changes.send_modify(|count| *count += 1);
        }
        // A timer may fire a little before the clock gets there: never ask for a wait of nothing.
        next.map(|at| at.duration_since(now).unwrap_or_default().max(Duration::from_millis(1)))
    }

    /// A panic while the lock was held cannot leave the map half changed.
    fn leafs(&self) -> MutexGuard<'_, HashMap<SpiffeId, Leaf>> {
        self.leafs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(identity: &SpiffeId, error: &CaError) {
    tracing::error!(%identity, %error, "no certificate minted");
}

fn workload_secret(issued: &Issued) -> Resource {
    encode(
        WORKLOAD,
        Type::TlsCertificate(TlsCertificate {
            certificate_chain: Some(inline(&issued.chain_pem)),
            private_key: Some(inline(issued.key.expose_pem())),
            ..TlsCertificate::default()
        }),
    )
}

fn root_secret(root_pem: &str) -> Resource {
    encode(
        MESH_ROOT,
        Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(inline(root_pem)),
            ..CertificateValidationContext::default()
        }),
    )
}

fn encode(name: &str, r#type: Type) -> Resource {
    let secret = Secret { name: name.to_owned(), r#type: Some(r#type) };
    Resource::new(ResourceType::Secret, name, secret.encode_to_vec().into(), None)
}

fn inline(text: &str) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineString(text.to_owned())), ..DataSource::default() }
}

#[cfg(test)]
mod tests;
