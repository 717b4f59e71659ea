//! What every proxy may see: an immutable table of encoded resources, shared by all streams.
//!
//! ```text
//!  envoy ──Change──▶ Snapshot::with ──Arc<Snapshot>──▶ xds (each stream holds the snapshot it was last sent)
//! ```
//!
//! A snapshot shares all that did not change with the one before it, so holding an old one costs what has changed
//! since, and the difference of two costs the number of changes, not the size of the table.

mod resource;
mod table;
mod view;

pub use resource::{Generation, Resource, ResourceName, ResourceType, Version};
pub use table::{Seen, Snapshot};
pub use view::{Change, Fallback, Hosts, Pushed, View};

#[cfg(test)]
mod tests;
