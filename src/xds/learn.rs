//! What the subscriptions tell beside what they ask for: which workload calls which destination.

use std::fmt;

use super::subscription::Changed;
use crate::mesh::ProxyId;
use crate::snapshot::{ResourceName, ResourceType};

/// Names that are handed on at once. Nobody begins to call more at a time: whoever has them was pushed everything, or
/// means no good.
const MAX_NAMES: usize = 512;

/// Whoever wants to know what proxies use. It is called while a stream is served: it may not wait.
pub trait Learn: Send + Sync + fmt::Debug {
    /// The proxy asked for these clusters by name, or had them when it connected again (rule 42).
    fn uses(&self, proxy: &ProxyId, clusters: Vec<ResourceName>);
}

/// Does not want to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nobody;

impl Learn for Nobody {
    fn uses(&self, _: &ProxyId, _: Vec<ResourceName>) {}
}

/// The clusters of which these changes of a stream's subscriptions say that they are used.
pub(crate) fn used(changes: &[(ResourceType, Changed)]) -> Vec<ResourceName> {
    let clusters =
        changes.iter().filter(|(kind, _)| *kind == ResourceType::Cluster).map(|(_, changed)| &*changed.added);
    clusters.filter(|added| added.len() <= MAX_NAMES).flatten().take(MAX_NAMES).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn added(kind: ResourceType, count: usize) -> (ResourceType, Changed) {
        let added = (0..count).map(|n| ResourceName::from(n.to_string())).collect();
        (kind, Changed { added: Arc::new(added), ..Changed::default() })
    }

    #[test]
    fn what_is_subscribed_to_is_used() {
        let names = used(&[added(ResourceType::Endpoints, 3), added(ResourceType::Cluster, 2)]);
        assert_eq!(names, ["0", "1"].map(ResourceName::from));
    }

    #[test]
    fn whoever_had_everything_teaches_nothing_and_a_flood_is_cut_off() {
        assert!(used(&[added(ResourceType::Cluster, MAX_NAMES + 1)]).is_empty());
        let flood: Vec<_> = (0..64).map(|_| added(ResourceType::Cluster, MAX_NAMES)).collect();
        assert_eq!(used(&flood).len(), MAX_NAMES);
    }
}
