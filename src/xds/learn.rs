//! What the subscriptions tell beside what they ask for: which workload calls which destination.

use std::fmt;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use crate::mesh::ProxyId;
use crate::snapshot::{ResourceName, ResourceType};

/// Names of one request that are handed on. Whoever has more was pushed everything, or means no good.
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

/// The clusters that an incremental request says are used: those that it asks for, and those that were pushed on an
/// earlier stream, which it has without asking.
pub(crate) fn of_delta(request: &DeltaDiscoveryRequest) -> Vec<ResourceName> {
    let had = &request.initial_resource_versions;
    let had = had.keys().take(if had.len() > MAX_NAMES { 0 } else { MAX_NAMES });
    clusters(&request.type_url, request.resource_names_subscribe.iter().chain(had))
}

/// The clusters that a state-of-the-world request asks for.
pub(crate) fn of_state_of_the_world(request: &DiscoveryRequest) -> Vec<ResourceName> {
    clusters(&request.type_url, request.resource_names.iter())
}

fn clusters<'a>(type_url: &str, names: impl Iterator<Item = &'a String>) -> Vec<ResourceName> {
    if type_url != ResourceType::Cluster.type_url() {
        return Vec::new();
    }
    names.filter(|name| *name != "*").take(MAX_NAMES).map(|name| name.as_str().into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(kind: ResourceType, names: &[&str], has: usize) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
            initial_resource_versions: (0..has).map(|n| (format!("had-{n}"), String::new())).collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    #[test]
    fn what_is_asked_for_and_what_is_had_is_used() {
        let names = of_delta(&request(ResourceType::Cluster, &["*", "10.96.0.5:80"], 1));
        assert_eq!(names, ["10.96.0.5:80", "had-0"].map(ResourceName::from));
        assert!(of_delta(&request(ResourceType::Endpoints, &["10.96.0.5:80"], 1)).is_empty());
        let request = DiscoveryRequest {
            type_url: ResourceType::Cluster.type_url().to_owned(),
            resource_names: vec!["*".to_owned(), "a".to_owned()],
            ..DiscoveryRequest::default()
        };
        assert_eq!(of_state_of_the_world(&request), [ResourceName::from("a")]);
    }

    #[test]
    fn whoever_had_everything_teaches_nothing_and_a_flood_is_cut_off() {
        assert!(of_delta(&request(ResourceType::Cluster, &[], MAX_NAMES + 1)).is_empty());
        let many: Vec<String> = (0..5_000).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(of_delta(&request(ResourceType::Cluster, &many, 0)).len(), MAX_NAMES);
    }
}
