//! TrafficTarget. The port of its destination, which the hub has no field for, is an annotation there.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{PORT, keep, take};
use crate::mesh::Diagnostic;
use crate::source::manifest::smi::target::{Destination, v1alpha1, v1alpha2, v1alpha3};
use crate::source::manifest::{TrafficTarget, Version};

/// The target in the hub version.
pub(crate) fn hub(target: &TrafficTarget) -> Result<v1alpha3::TrafficTarget, Vec<Diagnostic>> {
    let hub = |metadata: &ObjectMeta, destination: &Destination, sources: &[_], rules: &[_]| {
        let (mut metadata, mut destination) = (metadata.clone(), destination.clone());
        if let Some(port) = destination.port.take() {
            keep(&mut metadata, PORT, Some(&port));
        }
        let spec = v1alpha3::TrafficTargetSpec { destination, sources: sources.to_vec(), rules: rules.to_vec() };
        v1alpha3::TrafficTarget { metadata, spec }
    };
    Ok(match target {
        TrafficTarget::V1alpha1(target) => hub(&target.metadata, &target.destination, &target.sources, &target.specs),
        TrafficTarget::V1alpha2(target) => {
            hub(&target.metadata, &target.spec.destination, &target.spec.sources, &target.spec.rules)
        }
        TrafficTarget::V1alpha3(target) if target.spec.destination.port.is_some() => {
            return Err(vec![Diagnostic::error(
                "spec.destination.port",
                "a TrafficTarget of v1alpha3 has no port, and every port would be opened",
                format!("name the port in a TCPRoute among the rules, or in the annotation {PORT}"),
            )]);
        }
        TrafficTarget::V1alpha3(target) => (**target).clone(),
    })
}

/// The only port that a target in the hub version opens, if it is limited to one.
pub(crate) fn port(metadata: &ObjectMeta) -> Result<Option<IntOrString>, Vec<Diagnostic>> {
    take(&mut metadata.clone(), PORT)
}

/// The target in another version; `None` for a version of another kind.
pub(super) fn written_as(hub: v1alpha3::TrafficTarget, version: Version) -> Option<TrafficTarget> {
    let v1alpha3::TrafficTarget { mut metadata, spec } = hub;
    let v1alpha3::TrafficTargetSpec { mut destination, sources, rules } = spec;
    if version != Version::TrafficTargetV1alpha3
        // What cannot be read stays where it is: it keeps the target from opening anything.
        && let Ok(Some(port)) = port(&metadata)
    {
        keep::<IntOrString>(&mut metadata, PORT, None);
        destination.port = Some(port);
    }
    Some(match version {
        Version::TrafficTargetV1alpha1 => TrafficTarget::V1alpha1(Box::new(v1alpha1::TrafficTarget {
            api_version: "access.smi-spec.io/v1alpha1".to_owned(),
            kind: "TrafficTarget".to_owned(),
            metadata,
            destination,
            sources,
            specs: rules,
        })),
        Version::TrafficTargetV1alpha2 => {
            let spec = v1alpha2::TrafficTargetSpec { destination, sources, rules };
            TrafficTarget::V1alpha2(Box::new(v1alpha2::TrafficTarget { metadata, spec }))
        }
        Version::TrafficTargetV1alpha3 => {
            let spec = v1alpha3::TrafficTargetSpec { destination, sources, rules };
            TrafficTarget::V1alpha3(Box::new(v1alpha3::TrafficTarget { metadata, spec }))
        }
        _ => return None,
    })
}
