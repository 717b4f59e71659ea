//! What TrafficFault and TrafficPolicy are attached to: Gateway API's policy attachment, within a namespace.

use std::sync::Arc;

use crate::mesh::ServiceKey;

/// A Service of the object's own namespace, or one port of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// The Service.
    pub service: ServiceKey,
    /// The Service's port; `None`: every port.
    pub port: Option<u16>,
}

/// Which of two objects counts where only one can: the older, then the first by name. An object without a
/// `creationTimestamp` (0) is older than all that have one.
pub type Seniority<'a> = (i64, &'a Arc<str>);
