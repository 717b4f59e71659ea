//! TrafficSplit.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{MATCHES, WEIGHTS, keep, quantity, take};
use crate::mesh::Diagnostic;
use crate::source::manifest::smi::split::v1alpha1::{self, Quantity};
use crate::source::manifest::smi::split::{Backend, LocalReference, v1alpha2, v1alpha3, v1alpha4};
use crate::source::manifest::{TrafficSplit, Version};

/// The split in the hub version.
pub(crate) fn hub(split: &TrafficSplit) -> Result<v1alpha4::TrafficSplit, Vec<Diagnostic>> {
    let hub = |metadata: ObjectMeta, service: &str, backends: Vec<Backend>, matches| v1alpha4::TrafficSplit {
        metadata,
        spec: v1alpha4::TrafficSplitSpec { service: service.to_owned(), backends, matches },
    };
    Ok(match split {
        TrafficSplit::V1alpha1(split) => {
            let (mut metadata, spec) = (split.metadata.clone(), &split.spec);
            let matches = take(&mut metadata, MATCHES)?;
            let weights = quantity::weights(spec.backends.iter().map(|backend| &backend.weight));
            let weights = weights.map_err(|(at, reason, help)| {
                vec![Diagnostic::error(format!("spec.backends[{at}].weight"), reason, help)]
            })?;
            let written: Vec<&Quantity> = spec.backends.iter().map(|backend| &backend.weight).collect();
            // Most are what would be written anyway.
            let odd = written.iter().zip(&weights).any(|(written, weight)| written.0 != weight.0.to_string());
            keep(&mut metadata, WEIGHTS, odd.then_some(&written));
            let backends = spec.backends.iter().zip(weights);
            let backends = backends.map(|(backend, weight)| Backend { service: backend.service.clone(), weight });
            hub(metadata, &spec.service, backends.collect(), matches)
        }
        TrafficSplit::V1alpha2(split) => {
            let (mut metadata, spec) = (split.metadata.clone(), &split.spec);
            let matches = take(&mut metadata, MATCHES)?;
            hub(metadata, &spec.service, spec.backends.clone(), matches)
        }
        TrafficSplit::V1alpha3(split) => {
            let spec = &split.spec;
            hub(split.metadata.clone(), &spec.service, spec.backends.clone(), spec.matches.clone())
        }
        TrafficSplit::V1alpha4(split) => (**split).clone(),
    })
}

/// The split in another version; `None` for a version of another kind.
pub(super) fn written_as(hub: v1alpha4::TrafficSplit, version: Version) -> Option<TrafficSplit> {
    let v1alpha4::TrafficSplit { mut metadata, spec } = hub;
    let v1alpha4::TrafficSplitSpec { service, backends, matches } = spec;
    Some(match version {
        Version::TrafficSplitV1alpha1 => {
            keep::<Vec<LocalReference>>(&mut metadata, MATCHES, matches.as_ref());
            let backends = quantities(&mut metadata, backends);
            let spec = v1alpha1::TrafficSplitSpec { service, backends };
            TrafficSplit::V1alpha1(Box::new(v1alpha1::TrafficSplit { metadata, spec }))
        }
        Version::TrafficSplitV1alpha2 => {
            keep::<Vec<LocalReference>>(&mut metadata, MATCHES, matches.as_ref());
            let spec = v1alpha2::TrafficSplitSpec { service, backends };
            TrafficSplit::V1alpha2(Box::new(v1alpha2::TrafficSplit { metadata, spec }))
        }
        Version::TrafficSplitV1alpha3 => {
            let spec = v1alpha3::TrafficSplitSpec { service, backends, matches };
            TrafficSplit::V1alpha3(Box::new(v1alpha3::TrafficSplit { metadata, spec }))
        }
        Version::TrafficSplitV1alpha4 => {
            let spec = v1alpha4::TrafficSplitSpec { service, backends, matches };
            TrafficSplit::V1alpha4(Box::new(v1alpha4::TrafficSplit { metadata, spec }))
        }
        _ => return None,
    })
}

/// The weights as quantities: as they were once written, unless they have been changed since.
fn quantities(metadata: &mut ObjectMeta, backends: Vec<Backend>) -> Vec<v1alpha1::Backend> {
    let written: Vec<Quantity> = take(metadata, WEIGHTS).ok().flatten().unwrap_or_default();
    let still = quantity::weights(&written).is_ok_and(|then| then.iter().eq(backends.iter().map(|now| &now.weight)));
    let mut written = written.into_iter().filter(|_| still);
    backends
        .into_iter()
        .map(|Backend { service, weight }| {
            let weight = written.next().unwrap_or_else(|| Quantity(weight.0.to_string()));
            v1alpha1::Backend { service, weight }
        })
        .collect()
}
