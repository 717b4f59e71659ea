//! HTTPRouteGroup and TCPRoute. UDPRoute has one version only.

use super::{MATCHES, keep, take};
use crate::mesh::Diagnostic;
use crate::source::manifest::smi::{http, layer4};
use crate::source::manifest::{HTTPRouteGroup, TCPRoute, Version};

/// The group in the hub version.
pub(crate) fn http_hub(group: &HTTPRouteGroup) -> Result<http::v1alpha4::HTTPRouteGroup, Vec<Diagnostic>> {
    let hub = |metadata, matches| http::v1alpha4::HTTPRouteGroup {
        metadata,
        spec: http::v1alpha4::HTTPRouteGroupSpec { matches },
    };
    Ok(match group {
        HTTPRouteGroup::V1alpha1(group) => {
            let (mut metadata, mut matches) = (group.metadata.clone(), group.matches.clone());
            let kept: Vec<(usize, http::HttpMatch)> = take(&mut metadata, MATCHES)?.unwrap_or_default();
            for (at, one) in kept {
                // One that has been written anew counts instead of the one that was kept.
                if one.name.is_empty() || matches.iter().all(|other| other.name != one.name) {
                    matches.insert(at.min(matches.len()), one);
                }
            }
            hub(metadata, matches)
        }
        HTTPRouteGroup::V1alpha2(group) => hub(group.metadata.clone(), group.matches.clone()),
        HTTPRouteGroup::V1alpha3(group) => hub(group.metadata.clone(), group.spec.matches.clone()),
        HTTPRouteGroup::V1alpha4(group) => (**group).clone(),
    })
}

/// The group in another version; `None` for a version of another kind.
pub(super) fn http_written_as(hub: http::v1alpha4::HTTPRouteGroup, version: Version) -> Option<HTTPRouteGroup> {
    let http::v1alpha4::HTTPRouteGroup { mut metadata, spec: http::v1alpha4::HTTPRouteGroupSpec { matches } } = hub;
    let at_the_top = |version: &str, metadata, matches| {
        let api_version = format!("specs.smi-spec.io/{version}");
        Box::new(http::v1alpha1::HTTPRouteGroup { api_version, kind: "HTTPRouteGroup".to_owned(), metadata, matches })
    };
    Some(match version {
        Version::HTTPRouteGroupV1alpha1 => {
            let has_headers = |(_, one): &(usize, http::HttpMatch)| one.headers.is_some();
            let (kept, open): (Vec<_>, Vec<_>) = matches.into_iter().enumerate().partition(has_headers);
            keep(&mut metadata, MATCHES, Some(&kept).filter(|kept| !kept.is_empty()));
            let open = open.into_iter().map(|(_, one)| one).collect();
            HTTPRouteGroup::V1alpha1(at_the_top("v1alpha1", metadata, open))
        }
        Version::HTTPRouteGroupV1alpha2 => HTTPRouteGroup::V1alpha2(at_the_top("v1alpha2", metadata, matches)),
        Version::HTTPRouteGroupV1alpha3 => {
            let spec = http::v1alpha3::HTTPRouteGroupSpec { matches };
            HTTPRouteGroup::V1alpha3(Box::new(http::v1alpha3::HTTPRouteGroup { metadata, spec }))
        }
        Version::HTTPRouteGroupV1alpha4 => {
            let spec = http::v1alpha4::HTTPRouteGroupSpec { matches };
            HTTPRouteGroup::V1alpha4(Box::new(http::v1alpha4::HTTPRouteGroup { metadata, spec }))
        }
        _ => return None,
    })
}

/// The route in the hub version.
pub(crate) fn tcp_hub(route: &TCPRoute) -> Result<layer4::v1alpha4::TCPRoute, Vec<Diagnostic>> {
    let route = match route {
        TCPRoute::V1alpha1(route) | TCPRoute::V1alpha2(route) | TCPRoute::V1alpha3(route) => route,
        TCPRoute::V1alpha4(route) => return Ok((**route).clone()),
    };
    if route.spec.as_ref().is_some_and(|spec| spec.matches.is_some()) {
        let version = &route.api_version;
        return Err(vec![Diagnostic::error(
            "spec.matches",
            format!("a TCPRoute of {version} names no ports and means every port"),
            "write it as specs.smi-spec.io/v1alpha4",
        )]);
    }
    let mut metadata = route.metadata.clone();
    let matches = take(&mut metadata, MATCHES)?;
    Ok(layer4::v1alpha4::TCPRoute { metadata, spec: layer4::v1alpha4::TCPRouteSpec { matches } })
}

/// The route in another version; `None` for a version of another kind.
pub(super) fn tcp_written_as(hub: layer4::v1alpha4::TCPRoute, version: Version) -> Option<TCPRoute> {
    let without_ports = |version: &str, spec| {
        let mut metadata = hub.metadata.clone();
        keep(&mut metadata, MATCHES, hub.spec.matches.as_ref());
        let api_version = format!("specs.smi-spec.io/{version}");
        Box::new(layer4::v1alpha1::TCPRoute { api_version, kind: "TCPRoute".to_owned(), metadata, spec })
    };
    Some(match version {
        Version::TCPRouteV1alpha1 => TCPRoute::V1alpha1(without_ports("v1alpha1", None)),
        Version::TCPRouteV1alpha2 => TCPRoute::V1alpha2(without_ports("v1alpha2", None)),
        Version::TCPRouteV1alpha3 => {
            TCPRoute::V1alpha3(without_ports("v1alpha3", Some(layer4::v1alpha4::TCPRouteSpec::default())))
        }
        Version::TCPRouteV1alpha4 => TCPRoute::V1alpha4(Box::new(hub)),
        _ => return None,
    })
}
