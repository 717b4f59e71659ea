//! What would become of an object that an API server is about to store. The same code decides that reads it later.

use serde_json::Value;

use super::convert::{Converted, convert};
use super::document::type_error;
use super::manifest::Manifest;
use super::{unknown, versions};
use crate::mesh::Diagnostic;

/// What is said of an object.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Findings {
    /// Why it could not be used; empty if it can.
    pub errors: Vec<Diagnostic>,
    /// What of it would not be used.
    pub warnings: Vec<Diagnostic>,
}

/// Reads `object`. `None` if its `apiVersion` and `kind` are none that Weft reads.
///
/// Only the object itself is looked at: others that it names may come later.
pub fn check(object: Value) -> Option<Findings> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let version = versions::version(text("kind"), text("apiVersion"))?;
    let manifest = match Manifest::read(version, object.clone()) {
        Err(error) => return Some(Findings { errors: vec![type_error(error)], warnings: Vec::new() }),
        Ok(manifest) => manifest,
    };
    let mut unknown = unknown::find(&object, &manifest).errors;
    unknown.iter_mut().for_each(|found| found.object = Some(manifest.object_ref()));
    Some(match convert(&manifest) {
        Ok(Converted { warnings, .. }) if unknown.is_empty() => Findings { errors: Vec::new(), warnings },
        converted => {
            let errors = converted.err().into_iter().flatten().chain(unknown).collect();
            Findings { errors, warnings: Vec::new() }
        }
    })
}
