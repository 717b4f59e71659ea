//! Where objects come from: one stream of typed events, whatever is behind it.
//!
//! ```text
//!  directory of YAML ───┐
//!                       ├──▶ Manifest ──convert──▶ mesh::Object ──▶ [Event] ──▶ World
//!  Kubernetes' watches ─┘
//! ```
//!
//! Nothing is told before everything has been read once ([`Event::Synced`]). A document that cannot be used is
//! reported ([`Event::Rejected`]) and changes nothing: the last good version of its object stays.

pub mod admission;
pub mod convert;
pub mod crds;
pub mod directory;
mod document;
pub mod kube;
pub mod manifest;
mod unknown;
pub mod versions;
pub(crate) mod yaml;

#[cfg(test)]
mod bad_inputs;

use std::sync::Arc;

use crate::mesh::object::Object;
use crate::mesh::{Diagnostic, Kind, ObjectRef};
use manifest::Manifest;

pub use directory::{DirectorySource, SourceError};

/// Something has happened to an object. Events come in batches; what one change causes is one batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The object is new or different.
    Apply {
        /// Its Kubernetes form.
        manifest: Arc<Manifest>,
        /// What the mesh uses of it. `None`: nothing (any more), and the model drops what it had of this object.
        object: Option<Object>,
        /// What of it is not used, with its place.
        warnings: Vec<Diagnostic>,
    },
    /// The object is gone.
    Delete(ObjectRef),
    /// A document is not used. The object that it names, if any, is unchanged.
    Rejected(Diagnostic),
    /// How a part of the source can be read now. The objects stay as they were.
    Trouble {
        /// The part.
        of: Part,
        /// What hinders it from being read; `None`: nothing any more.
        found: Option<Diagnostic>,
    },
    /// Everything has been read once: what has been applied so far is the whole.
    Synced,
}

/// A part of a source that can fail by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// All of it: the API server does not answer.
    Whole,
    /// The objects of one kind.
    Kind(Kind),
}
