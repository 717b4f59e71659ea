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

use super::CLOCK_TOLERANCE;
use super::authority::{Authority, CaError, Issued};
use crate::mesh::{ProxyId, SpiffeId};
use crate::snapshot::{Resource, ResourceName, ResourceType};

/// The secret that holds the leaf and key of the stream's identity.
pub const WORKLOAD: &str = "workload";
/// The secret that holds the root that peers are verified with.
pub const MESH_ROOT: &str = "mesh-root";

/// How often it is looked whether the clock was set, at least.
const LOOK: Duration = Duration::from_secs(20);

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

    /// When a certificate that is minted at `now` is to be replaced.
    pub(super) fn term(&self, now: SystemTime) -> Term {
        Term { minted: now, due: self.renewal(now) }
    }

    /// When it is tried again to replace one, after a failed attempt at `now`.
    pub(super) fn retry(&self, now: SystemTime) -> Term {
        Term { minted: now, due: now + self.patience() }
    }

    /// How long to wait after a failed attempt, and for streams to ask for a leaf that is due: a twentieth of a life.
    pub(super) fn patience(&self) -> Duration {
        self.lifetime / 20
    }
}

/// How long a certificate that is in use is to be used.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Term {
    minted: SystemTime,
    due: SystemTime,
}

impl Term {
    /// How long to wait until it is looked at again; `None`: it is over now.
    ///
    /// It is also over when the clock by which the certificate was minted turns out to have been so far ahead that others
    /// do not believe it yet. Nothing but a look tells that the clock was set.
    pub(super) fn left(&self, now: SystemTime) -> Option<Duration> {
        if now + CLOCK_TOLERANCE < self.minted {
            return None;
        }
        let left = self.due.duration_since(now).ok().filter(|left| !left.is_zero())?;
        Some(left.min(LOOK))
    }
}

/// A proxy, as what it proved to be: each has a key of its own, so that none can be another's.
type Holder = (ProxyId, SpiffeId);

/// The current secrets of every proxy that asks.
#[derive(Debug)]
pub struct SecretStore {
    authority: Arc<Authority>,
    policy: LeafPolicy,
    root: Arc<Resource>,
    leafs: Mutex<HashMap<Holder, Leaf>>,
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
    /// In use.
    Fresh(Term),
    /// Its streams were told to ask again; dropped at this time if none does.
    Due(SystemTime),
}

impl Leaf {
    /// How long until [`SecretStore::renew`] has to look at it again.
    fn left(&self, now: SystemTime) -> Duration {
        match self.state {
            State::Fresh(term) => term.left(now),
            State::Due(at) => at.duration_since(now).ok(),
        }
        // A timer may fire a little before the clock gets there: never ask for a wait of nothing.
        .unwrap_or_default()
        .max(Duration::from_millis(1))
    }
}

impl SecretStore {
    /// A store that mints by `authority`. Whoever makes it also runs [`SecretStore::renew_forever`].
    pub fn new(authority: Arc<Authority>, policy: LeafPolicy) -> Self {
        let root = Arc::new(root_secret(authority.root_pem()));
        let leafs = Mutex::default();
        Self { authority, policy, root, leafs, changes: watch::Sender::new(0), minted: watch::Sender::new(0) }
    }

    /// The secret called `name` of `proxy`, which proved to be `identity`; `None` for a name that is neither [`WORKLOAD`] nor [`MESH_ROOT`], and
    /// for an identity of another trust domain.
    pub fn secret(&self, identity: &SpiffeId, proxy: &ProxyId, name: &ResourceName) -> Option<Arc<Resource>> {
        match name.as_str() {
            MESH_ROOT => Some(self.root.clone()),
            WORKLOAD => self.leaf(identity, proxy),
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

    fn leaf(&self, identity: &SpiffeId, proxy: &ProxyId) -> Option<Arc<Resource>> {
        let now = self.authority.clock().now();
        let holder = (proxy.clone(), identity.clone());
        let mut leafs = self.leafs();
        let held = leafs.get(&holder).filter(|leaf| leaf.not_after > now);
        if let Some(Leaf { secret, state: State::Fresh(term), .. }) = held
            && term.left(now).is_some()
        {
            return Some(secret.clone());
        }
        match self.authority.issue_workload(identity, self.policy.lifetime) {
            Ok(issued) => {
                let secret = Arc::new(workload_secret(&issued));
                let state = State::Fresh(self.policy.term(now));
                let leaf = Leaf { secret: secret.clone(), not_after: issued.not_after, state };
                leafs.insert(holder, leaf);
                drop(leafs);
                self.minted.send_modify(|count| *count += 1); // also wakes `renew_forever`: there is a new deadline
                tracing::debug!(%proxy, %identity, "minted a certificate");
                Some(secret)
            }
            Err(error) => {
                refused(identity, &error);
                let leaf = leafs.get_mut(&holder).filter(|leaf| leaf.not_after > now)?;
                leaf.state = State::Fresh(self.policy.retry(now));
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
            State::Fresh(term) if term.left(now).is_none() => {
                due = true;
                leaf.state = State::Due(drop_at);
                true
            }
            State::Due(at) => at > now,
            State::Fresh(_) => true,
        });
        let next = leafs.values().map(|leaf| leaf.left(now)).min();
        drop(leafs);
        if due {
            self.changes.send_modify(|count| *count += 1);
        }
        next
    }

    /// A panic while the lock was held cannot leave the map half changed.
    fn leafs(&self) -> MutexGuard<'_, HashMap<Holder, Leaf>> {
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
