//! What TrafficFault and TrafficPolicy are attached to: Gateway API's policy attachment, within a namespace.

use crate::mesh::ServiceKey;

/// A Service of the object's own namespace, or one port of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// The Service.
    pub service: ServiceKey,
    /// The Service's port; `None`: every port.
    pub port: Option<u16>,
}
