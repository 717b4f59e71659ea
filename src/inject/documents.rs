//! Injection into YAML: what `weft inject` prints.
//!
//! A document that does not change is passed on as it was written, comments and all; one that does is written anew.

use serde_json::Value;

use super::{InjectError, Options, inject};
use crate::source::yaml;

/// Documents with their sidecars.
#[derive(Debug, Default)]
pub struct Injected {
    /// The whole text.
    pub text: String,
    /// What their author should know: `KIND NAME: …`.
    pub warnings: Vec<String>,
    /// How many pods and templates were changed.
    pub changed: usize,
}

/// A document that cannot be injected.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is no YAML.
    #[error("line {line}: {reason}")]
    Syntax {
        /// The line of the text.
        line: u32,
        /// What the parser says.
        reason: String,
    },
    /// A pod or a template in it must not start as it is.
    #[error("{object}: {error}")]
    Pod {
        /// `KIND NAME`.
        object: String,
        /// Why not.
        error: InjectError,
    },
    /// It could not be written; no value of these makes that happen.
    #[error("{object} cannot be written as YAML: {reason}")]
    Write {
        /// `KIND NAME`.
        object: String,
        /// What the serializer says.
        reason: String,
    },
}

/// Adds sidecars to every Pod and pod template of `text`: YAML documents, or JSON.
///
/// # Errors
/// For the first document that cannot be used. Nothing is half done then.
pub fn inject_all(text: &str, options: &Options) -> Result<Injected, DocumentError> {
    let text = yaml::normalise(text);
    let mut injected = Injected::default();
    for (number, chunk) in yaml::documents(&text).into_iter().enumerate() {
        let tree = chunk.parse().map_err(|error| DocumentError::Syntax { line: error.line, reason: error.reason })?;
        let before = tree.to_json();
        let mut after = before.clone();
        object(&mut after, options, &mut injected)?;
        if number > 0 && !(after == before && chunk.text.starts_with("---")) {
            injected.text.push_str("---\n");
        }
        if after == before {
            injected.text.push_str(chunk.text);
        } else {
            let written = serde_saphyr::to_string(&after)
                .map_err(|error| DocumentError::Write { object: name_of(&after), reason: error.to_string() })?;
            injected.text.push_str(&written);
        }
        if !injected.text.ends_with('\n') {
            injected.text.push('\n');
        }
    }
    Ok(injected)
}

/// Where the pod template of a kind is; `Some` of nothing for a Pod itself.
fn template_of(kind: &str) -> Option<&'static str> {
    match kind {
        "Pod" => Some(""),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" | "ReplicationController" => {
            Some("/spec/template")
        }
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

fn object(value: &mut Value, options: &Options, injected: &mut Injected) -> Result<(), DocumentError> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = text(value, "kind");
    if kind.ends_with("List") {
        let items = value.get_mut("items").and_then(Value::as_array_mut);
        return items.into_iter().flatten().try_for_each(|item| object(item, options, injected));
    }
    // Kinds of these names exist elsewhere, too.
    let known = matches!(text(value, "apiVersion").as_str(), "v1" | "apps/v1" | "batch/v1" | "batch/v1beta1");
    let Some(pointer) = template_of(&kind).filter(|_| known) else { return Ok(()) };
    let name = name_of(value);
    let workload = name.split_once(' ').map(|(_, name)| name.to_owned()).unwrap_or_default();
    let Some(template) = value.pointer_mut(pointer) else { return Ok(()) };
    let outcome =
        inject(template, &workload, options).map_err(|error| DocumentError::Pod { object: name.clone(), error })?;
    injected.warnings.extend(outcome.warnings.into_iter().map(|warning| format!("{name}: {warning}")));
    if *template != outcome.pod {
        *template = outcome.pod;
        injected.changed += 1;
    }
    Ok(())
}

fn name_of(value: &Value) -> String {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let metadata = |key: &str| text(value.pointer(&format!("/metadata/{key}")));
    let name = Some(metadata("name")).filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| metadata("generateName").trim_end_matches('-').to_owned());
    format!("{} {name}", text(value.get("kind")))
}
