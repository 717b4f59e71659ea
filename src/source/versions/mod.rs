//! SMI objects in other versions of their kind. Pure.
//!
//! ```text
//!  any version ──hub──▶ the newest one, the hub ──written_as──▶ any version
//! ```
//!
//! An API server stores the hub and serves the others by conversion; everything that Weft makes of an object, it makes
//! of the hub. What a version cannot say is kept in an annotation, so that a way there and back loses nothing and
//! nobody who reads or writes an old version opens more than the object did:
//!
//! | annotation | of | what it keeps |
//! | --- | --- | --- |
//! | [`MATCHES`] | TrafficSplit v1alpha1, v1alpha2 | `spec.matches` |
//! | [`MATCHES`] | TCPRoute v1alpha1 to v1alpha3 | `spec.matches`, without which it would mean every port |
//! | [`MATCHES`] | HTTPRouteGroup v1alpha1 | the matches with headers, whole: without their headers they would fit more |
//! | [`PORT`] | TrafficTarget v1alpha3 | `destination.port`, which stays a constraint |
//! | [`WEIGHTS`] | TrafficSplit v1alpha2 to v1alpha4 | the quantities of v1alpha1, until the weights are changed |

mod quantity;
pub(crate) mod routes;
pub(crate) mod split;
pub(crate) mod target;
#[cfg(test)]
mod tests;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::manifest::{HTTPRouteGroup, Manifest, TrafficSplit, TrafficTarget, VERSIONS, Version};
use crate::mesh::Diagnostic;

/// Keeps matches.
pub const MATCHES: &str = "weft.dev/smi-matches";
/// Keeps the port of a TrafficTarget's destination.
pub const PORT: &str = "weft.dev/smi-port";
/// Keeps the weights of a TrafficSplit as quantities.
pub const WEIGHTS: &str = "weft.dev/smi-weights";

/// Why an object is not converted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConversionError {
    /// Its kind is not served in one of the versions.
    #[error("{object} cannot be converted from {from} to {to}; both must be versions of an SMI kind")]
    Version {
        /// `KIND NAMESPACE/NAME`.
        object: String,
        /// Its `apiVersion`.
        from: String,
        /// The `apiVersion` that was asked for.
        to: String,
    },
    /// A field cannot be read, or has no meaning in the hub.
    #[error("{object}: {field}: {reason}")]
    Field {
        /// `KIND NAMESPACE/NAME`.
        object: String,
        /// The field's path.
        field: String,
        /// What is wrong, and what to do.
        reason: String,
    },
}

/// The objects in the version `api_version` (`GROUP/VERSION`), in their order: what a ConversionReview asks for.
///
/// # Errors
/// For the first object that cannot be converted.
pub fn convert_all(objects: impl IntoIterator<Item = Value>, api_version: &str) -> Result<Vec<Value>, ConversionError> {
    objects.into_iter().map(|object| convert(object, api_version)).collect()
}

/// The object in the version `api_version`. Of its metadata only annotations change, as an API server demands.
///
/// # Errors
/// When its kind has no such version, or the object is not one of its own.
pub fn convert(object: Value, api_version: &str) -> Result<Value, ConversionError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (from, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    if from == api_version {
        return Ok(object);
    }
    let metadata = object["metadata"].clone();
    let name = format!("{kind} {}/{}", text(&metadata["namespace"]), text(&metadata["name"]));
    let unknown = || ConversionError::Version { object: name.clone(), from: from.clone(), to: api_version.to_owned() };
    let field = |field, reason| ConversionError::Field { object: name.clone(), field, reason };
    let versions = version(&kind, &from).zip(version(&kind, api_version));
    let (old, new) = versions.ok_or_else(unknown)?;
    let manifest = Manifest::read(old, object).map_err(|error| field(error.field, error.message))?;
    let converted = written_as(&manifest, new).map_err(|found| {
        let field_of = |found: Diagnostic| {
            field(field_as_written(&manifest, found.field), format!("{}; {}", found.reason, found.help))
        };
        found.into_iter().next().map_or_else(unknown, field_of)
    })?;
    Ok(with_metadata(converted.to_json(), metadata))
}

pub(super) fn version(kind: &str, api_version: &str) -> Option<Version> {
    let found = VERSIONS.iter().find(|(known, version, _)| *version == api_version && known.to_string() == kind);
    found.map(|(_, _, version)| *version)
}

/// `converted` with the metadata that the object came with, byte for byte but for the annotations.
fn with_metadata(mut converted: Value, metadata: Value) -> Value {
    let Some(fields) = converted.as_object_mut() else { return converted };
    let annotations = fields.get_mut("metadata").and_then(|metadata| metadata.get_mut("annotations")).map(Value::take);
    if let Value::Object(mut metadata) = metadata {
        match annotations {
            Some(annotations) => drop(metadata.insert("annotations".to_owned(), annotations)),
            None => drop(metadata.shift_remove("annotations")),
        }
        fields.insert("metadata".to_owned(), metadata.into());
    }
    converted
}

/// The manifest in another version of its kind.
///
/// # Errors
/// What keeps it from having a meaning in the hub; nothing, when its kind has no such version.
fn written_as(manifest: &Manifest, version: Version) -> Result<Manifest, Vec<Diagnostic>> {
    let converted = match manifest {
        Manifest::TrafficSplit(split) => split::written_as(split::hub(split)?, version).map(Manifest::TrafficSplit),
        Manifest::HTTPRouteGroup(group) => {
            routes::http_written_as(routes::http_hub(group)?, version).map(Manifest::HTTPRouteGroup)
        }
        Manifest::TCPRoute(route) => routes::tcp_written_as(routes::tcp_hub(route)?, version).map(Manifest::TCPRoute),
        Manifest::TrafficTarget(target) => {
            target::written_as(target::hub(target)?, version).map(Manifest::TrafficTarget)
        }
        _ => None,
    };
    converted.ok_or_else(Vec::new)
}

/// Where a field of the hub stands in the manifest as its author wrote it: `spec.rules[0]` is `specs[0]` in v1alpha1.
pub(crate) fn field_as_written(manifest: &Manifest, field: String) -> String {
    let port = annotation(PORT);
    match manifest {
        Manifest::TrafficTarget(TrafficTarget::V1alpha1(target)) => match &target.destination.port {
            Some(_) if field == port => "destination.port".to_owned(),
            _ => at_the_top(&field.replacen("spec.rules", "spec.specs", 1)),
        },
        Manifest::TrafficTarget(TrafficTarget::V1alpha2(target))
            if field == port && target.spec.destination.port.is_some() =>
        {
            "spec.destination.port".to_owned()
        }
        Manifest::HTTPRouteGroup(HTTPRouteGroup::V1alpha1(_) | HTTPRouteGroup::V1alpha2(_)) => at_the_top(&field),
        Manifest::TrafficSplit(TrafficSplit::V1alpha1(_) | TrafficSplit::V1alpha2(_))
            if field.starts_with("spec.matches") =>
        {
            annotation(MATCHES)
        }
        _ => field,
    }
}

fn at_the_top(field: &str) -> String {
    field.strip_prefix("spec.").unwrap_or(field).to_owned()
}

/// The path of an annotation's field.
fn annotation(name: &str) -> String {
    format!("metadata.annotations.{name}")
}

/// Keeps a value in an annotation, or removes it: what an object does not have must not come back from an old one.
fn keep<T: Serialize>(metadata: &mut ObjectMeta, name: &str, value: Option<&T>) {
    match value {
        Some(value) => {
            // None of the types that are kept can fail to be written; nothing would be an error when it is read.
            let text = serde_json::to_string(value).unwrap_or_default();
            metadata.annotations.get_or_insert_default().insert(name.to_owned(), text);
        }
        None => drop(remove(metadata, name)),
    }
}

/// Takes out what an annotation keeps.
fn take<T: DeserializeOwned>(metadata: &mut ObjectMeta, name: &str) -> Result<Option<T>, Vec<Diagnostic>> {
    let Some(text) = remove(metadata, name) else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        let reason = format!("it keeps what another version of the object says, and cannot be read: {error}");
        vec![Diagnostic::error(
            annotation(name),
            reason,
            "remove the annotation, or write the object in its newest version",
        )]
    })
}

fn remove(metadata: &mut ObjectMeta, name: &str) -> Option<String> {
    let annotations = metadata.annotations.as_mut()?;
    let text = annotations.remove(name);
    if text.is_some() && annotations.is_empty() {
        metadata.annotations = None;
    }
    text
}
