//! What would become of an object that an API server is about to store. The same code decides that reads it later.

use serde_json::Value;

use super::convert::{Converted, convert};
use super::document::type_error;
use super::manifest::Manifest;
use super::versions;
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
    let found = match Manifest::read(version, object) {
        Err(error) => Err(vec![type_error(error)]),
        Ok(manifest) => convert(&manifest),
    };
    Some(match found {
        Ok(Converted { warnings, .. }) => Findings { errors: Vec::new(), warnings },
        Err(errors) => Findings { errors, warnings: Vec::new() },
    })
}
