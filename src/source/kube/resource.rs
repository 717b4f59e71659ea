//! What of the API is read: the kinds, in which version, from which path.

use kube::core::discovery::ApiResource;
use kube::{Client, Error};

use crate::mesh::Kind;
use crate::source::manifest::{VERSIONS, Version};

/// The kinds that are watched: those that the mesh has a use for. Of workloads and ServiceAccounts it has none, pods say
/// all that is needed.
pub(super) const KINDS: [Kind; 13] = [
    Kind::Namespace,
    Kind::Pod,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::TrafficSplit,
    Kind::HTTPRouteGroup,
    Kind::TCPRoute,
    Kind::UDPRoute,
    Kind::TrafficTarget,
    Kind::TrafficFault,
    Kind::TrafficPolicy,
    Kind::MeshConfig,
    Kind::Egress,
];

/// A kind in the version that it is read in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Resource {
    pub(super) version: Version,
    /// `split.smi-spec.io/v1alpha4`.
    pub(super) api_version: &'static str,
    /// `trafficsplits`.
    pub(super) plural: String,
}

impl Resource {
    /// The path of all objects of the kind.
    pub(super) fn path(&self) -> String {
        let root = if self.api_version.contains('/') { "apis" } else { "api" };
        format!("/{root}/{}/{}", self.api_version, self.plural)
    }

    /// As RBAC names it: `trafficsplits.split.smi-spec.io`, `pods`.
    pub(super) fn name(&self) -> String {
        match self.api_version.split_once('/') {
            Some((group, _)) => format!("{}.{group}", self.plural),
            None => self.plural.clone(),
        }
    }
}

/// Whether every API server has the kind.
pub(super) fn is_built_in(kind: Kind) -> bool {
    matches!(kind, Kind::Namespace | Kind::Pod | Kind::Service | Kind::EndpointSlice)
}

/// The newest version of a kind that is both read and served; `None` if none is served.
pub(super) async fn find(client: &Client, kind: Kind) -> Result<Option<Resource>, Error> {
    let newest_first = VERSIONS.iter().rev().filter(|(of, _, _)| *of == kind);
    for (_, api_version, version) in newest_first {
        if is_built_in(kind) {
            return Ok(Some(built_in(kind, api_version, *version)));
        }
        let served = match client.list_api_group_resources(api_version).await {
            Ok(served) => served,
            Err(Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error),
        };
        let name = kind.to_string();
        // `trafficsplits/status` has the kind as well.
        let found = served.resources.into_iter().find(|found| found.kind == name && !found.name.contains('/'));
        if let Some(found) = found {
            return Ok(Some(Resource { version: *version, api_version, plural: found.name }));
        }
    }
    Ok(None)
}

fn built_in(kind: Kind, api_version: &'static str, version: Version) -> Resource {
    let gvk = kube::core::GroupVersionKind { group: String::new(), version: String::new(), kind: kind.to_string() };
    Resource { version, api_version, plural: ApiResource::from_gvk(&gvk).plural }
}

/// Which objects of the kind are read. Pods that have finished concern nobody; when one finishes, the server says that
/// it is gone.
pub(super) fn field_selector(kind: Kind) -> Option<String> {
    (kind == Kind::Pod).then(|| "status.phase!=Succeeded,status.phase!=Failed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_names_are_kubernetes_own() {
        let of = |kind: Kind| {
            let (_, api_version, version) = VERSIONS.iter().find(|(of, _, _)| *of == kind).unwrap();
            let resource = built_in(kind, api_version, *version);
            format!("{} {}", resource.path(), resource.name())
        };
        assert_eq!(of(Kind::Pod), "/api/v1/pods pods");
        assert_eq!(of(Kind::Namespace), "/api/v1/namespaces namespaces");
        assert_eq!(of(Kind::EndpointSlice), "/apis/discovery.k8s.io/v1/endpointslices endpointslices.discovery.k8s.io");
    }

    #[test]
    fn every_kind_is_watched_or_of_no_use() {
        let unused = [Kind::ServiceAccount, Kind::Deployment, Kind::StatefulSet];
        for (kind, _, _) in VERSIONS {
            assert!(KINDS.contains(&kind) != unused.contains(&kind), "{kind}");
        }
    }
}
