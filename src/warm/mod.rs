//! What each workload calls, so that a new pod of it has its destinations before its first call.
//!
//! ```text
//!  subscriptions ─▶ WarmSets::learn ─┐                     ┌─▶ envoy: pushed to new pods with the wildcard
//!  other replicas ─▶ WarmSets::merge ┼─▶ WarmSets ─────────┼─▶ inspect: who calls whom
//!  WarmStore::load ─▶ merge          ┘        └─▶ WarmStore::save, a while later
//! ```
//!
//! A set is of a workload, and names Services by name and port: an address may be another's tomorrow. Pods that are
//! called by address are not in it for that reason.
//!
//! [`WarmSets`] is a state-based CRDT: replicas that share a [`WarmStore`] come to the same sets in whatever order they
//! read and write, without a lock. So a lost write costs nothing but time.

pub(crate) mod document;
mod file;
mod sets;

use std::fmt;

use futures::future::BoxFuture;

pub use document::DocumentError;
pub use file::FileStore;
pub use sets::{Learned, MAX_IN_SET, Moment, Seen, WarmSets};

/// Where warm sets are kept when the control plane ends, and where replicas find each other's.
///
/// Neither call is made for each thing that is learned: the control plane calls them every few seconds at most.
pub trait WarmStore: Send + Sync + fmt::Debug {
    /// What is kept there; `None` if that is nothing else than was loaded or saved here last.
    fn load(&self) -> BoxFuture<'_, Result<Option<WarmSets>, StoreError>>;

    /// Keeps `sets` in place of what is there; they contain what was loaded before.
    fn save(&self, sets: WarmSets) -> BoxFuture<'_, Result<Saved, StoreError>>;
}

/// Whether sets were kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Saved {
    /// They are.
    Kept,
    /// Another replica was faster, or it is too soon: to be loaded and saved again.
    NotYet,
}

/// Why sets are not kept. Nothing but warmth is lost.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// They cannot be read or written.
    #[error("warm sets in {place}: {error}; new pods wait at their first calls until this is repaired")]
    Unusable {
        /// The file, or the ConfigMap.
        place: String,
        /// Why not.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// They are of a later Weft, which is left its own.
    #[error("warm sets in {place}: {error}; they are neither read nor written here")]
    Newer {
        /// The file, or the ConfigMap.
        place: String,
        /// Its version.
        error: DocumentError,
    },
}
