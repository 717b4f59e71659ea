//! What the API server asks before it stores an object: injection, validation, and conversion of versions.
//!
//! ```text
//!  API server ──TLS 15017──▶ server (limits, time) ──bytes──▶ inject:   AdmissionReview ─▶ inject::inject ─▶ patch
//!                               ▲                             validate: AdmissionReview ─▶ source::admission
//!      certificate (reloaded) ──┘                             convert:  ConversionReview ─▶ source::versions
//! ```
//!
//! The answers are pure functions of the question: nothing is asked of the API server, nothing is stored, and a dry run
//! is as any other. So the process needs no right and no token.

mod certificate;
mod review;
mod server;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};

use crate::inject::{self, Options, patch};
use crate::mesh::Diagnostic;
use crate::source::{admission, convert, versions};

pub use certificate::{CertificateError, CertificateFiles};
pub use review::Malformed;
pub use server::{ServeError, Server, admin};

use review::{AdmissionRequest, Answer, ConversionRequest};

/// The path of injection.
pub const INJECT_PATH: &str = "/inject";
/// The path of validation.
pub const VALIDATE_PATH: &str = "/validate";
/// The path of conversion, which the CustomResourceDefinitions name.
pub const CONVERT_PATH: &str = crate::source::crds::CONVERT_PATH;

/// How long a warning may be; an API server cuts longer ones.
const WARNING: usize = 250;

/// Answers an AdmissionReview for a Pod that is created: with the patch that adds the sidecar.
///
/// Whether the pod is to have one is decided by the selectors of the webhook's configuration, which see the labels of
/// its namespace.
///
/// # Errors
/// When the question is none.
pub fn inject(body: &[u8], options: &Options) -> Result<Value, Malformed> {
    let request = AdmissionRequest::read(body)?;
    let answer = match request.object.get("kind").and_then(Value::as_str) {
        Some("Pod") => match inject::inject(&request.object, &workload(&request.object), options) {
            Ok(outcome) => Answer::allowed(outcome.warnings.into_iter().map(|warning| format!("weft: {warning}")))
                .with(patch::difference(&request.object, &outcome.pod)),
            Err(error) => Answer::denied(error.to_string()),
        },
        _ => Answer::allowed([]),
    };
    Ok(request.answer(answer))
}

/// The name of a pod's workload: its controller's, else its own as far as it is known.
fn workload(pod: &Value) -> String {
    let metadata = pod.get("metadata").cloned().unwrap_or_default();
    let generated = metadata.get("generateName").and_then(Value::as_str).unwrap_or_default();
    let generated = generated.trim_end_matches('-').to_owned();
    let name = serde_json::from_value(metadata).map(|metadata| convert::workload(&metadata).to_owned());
    name.ok().filter(|name| !name.is_empty()).unwrap_or(generated)
}

/// Answers an AdmissionReview for one of Weft's resources: whether it can be used.
///
/// What an object that is stored has wrong already is no reason to refuse a change of it: else nobody could take away a
/// finalizer, or mend one thing after the other.
///
/// # Errors
/// When the question is none.
pub fn validate(body: &[u8]) -> Result<Value, Malformed> {
    let request = AdmissionRequest::read(body)?;
    let found = admission::check(request.object.clone()).unwrap_or_default();
    let ending = request.object.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null());
    let before = (!found.errors.is_empty()).then(|| admission::check(request.old_object.clone())).flatten();
    let before = before.map(|before| before.errors).unwrap_or_default();
    let (old, new): (Vec<_>, Vec<_>) = found.errors.into_iter().partition(|error| ending || before.contains(error));
    let answer = match new.is_empty() {
        true => Answer::allowed(old.iter().chain(&found.warnings).map(said)),
        false => Answer::denied(new.iter().map(said).collect::<Vec<_>>().join("\n")),
    };
    Ok(request.answer(answer))
}

/// `FIELD: REASON; HELP`: which object it is about the API server says.
fn said(diagnostic: &Diagnostic) -> String {
    Diagnostic { object: None, location: None, ..diagnostic.clone() }.to_string()
}

/// Answers a ConversionReview.
///
/// # Errors
/// When the question is none.
pub fn convert(body: &[u8]) -> Result<Value, Malformed> {
    let ConversionRequest { uid, desired_api_version, objects } = ConversionRequest::read(body)?;
    let response = match versions::convert_all(objects, &desired_api_version) {
        Ok(objects) => json!({"uid": uid, "convertedObjects": objects, "result": {"status": "Success"}}),
        Err(error) => json!({"uid": uid, "convertedObjects": [],
            "result": {"status": "Failed", "message": error.to_string()}}),
    };
    Ok(json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": response}))
}
