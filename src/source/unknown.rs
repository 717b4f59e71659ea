//! Fields that Weft's own kinds do not have.
//!
//! A misspelt `authorization` that is passed over leaves a mesh open, so an object of Weft's own with such a field is
//! refused, and its last good version stays. An API server that has Weft's CustomResourceDefinitions drops the field
//! before anybody sees it; the kinds of SMI and of Kubernetes are others', and may have fields that are new to Weft.

use serde_json::Value;

use super::crds;
use super::document::{unknown_field, unknown_fields};
use super::manifest::Manifest;
use crate::mesh::{Diagnostic, Kind};
use crate::nearest::nearest;

/// What is to be said of the fields of `written` that its kind does not have.
#[derive(Debug, Default)]
pub(super) struct Unknown {
    /// Why the object is not used.
    pub(super) errors: Vec<Diagnostic>,
    /// What of it is not used.
    pub(super) warnings: Vec<Diagnostic>,
}

/// Compares what was written with what was read of it.
pub(super) fn find(written: &Value, manifest: &Manifest) -> Unknown {
    let kind = manifest.kind();
    let mut fields = Vec::new();
    unknown_fields(written, &manifest.to_json(), "", &mut fields);
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    for field in fields {
        // Metadata belongs to Kubernetes, whose newer versions may have more of it.
        match is_own(kind) && !field.starts_with("metadata") {
            true => errors.push(refused(kind, field)),
            false => warnings.push(unknown_field(kind, field)),
        }
    }
    Unknown { errors, warnings }
}

/// Whether the kind is defined by Weft.
pub(super) fn is_own(kind: Kind) -> bool {
    matches!(kind, Kind::MeshConfig | Kind::TrafficFault | Kind::TrafficPolicy | Kind::Egress)
}

fn refused(kind: Kind, field: String) -> Diagnostic {
    let (parent, name) = field.rsplit_once('.').unwrap_or(("", &field));
    let known = crds::fields(kind, parent);
    let known = known.iter().map(String::as_str).filter(|name| !matches!(*name, "status" | "metadata"));
    let known: Vec<&str> = known.collect();
    let help = match nearest(name, known.iter().copied()) {
        Some(meant) => format!("did you mean `{meant}`? Correct the name, or remove the field"),
        None if known.is_empty() => "remove it".to_owned(),
        None => format!("use one of `{}`, or remove it", known.join("`, `")),
    };
    Diagnostic::error(field, format!("{kind} has no such field, so the object is not used"), help)
}
