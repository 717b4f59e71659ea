//! AdmissionReview and ConversionReview, v1, as far as they are read and written here.

use k8s_openapi::ByteString;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::WARNING;
use crate::inject::patch::Operation;

/// A question that cannot be read. The caller is answered with HTTP status 400.
#[derive(Debug, thiserror::Error)]
#[error("this is no {expected}: {error}")]
pub struct Malformed {
    expected: &'static str,
    error: String,
}

/// What is asked of an object.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AdmissionRequest {
    uid: String,
    #[serde(default)]
    pub(super) object: Value,
    #[serde(default)]
    pub(super) old_object: Value,
}

/// Which objects are wanted in which version.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConversionRequest {
    pub(super) uid: String,
    #[serde(rename = "desiredAPIVersion")]
    pub(super) desired_api_version: String,
    #[serde(default)]
    pub(super) objects: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review<R> {
    api_version: String,
    kind: String,
    request: R,
}

fn read<R: DeserializeOwned>(body: &[u8], api_version: &str, expected: &'static str) -> Result<R, Malformed> {
    let review: Review<R> =
        serde_json::from_slice(body).map_err(|error| Malformed { expected, error: error.to_string() })?;
    if review.kind != expected || review.api_version != api_version {
        let error = format!("it is {} of {}, and {api_version} is read", review.kind, review.api_version);
        return Err(Malformed { expected, error });
    }
    Ok(review.request)
}

impl ConversionRequest {
    pub(super) fn read(body: &[u8]) -> Result<Self, Malformed> {
        read(body, "apiextensions.k8s.io/v1", "ConversionReview")
    }
}

impl AdmissionRequest {
    pub(super) fn read(body: &[u8]) -> Result<Self, Malformed> {
        read(body, "admission.k8s.io/v1", "AdmissionReview")
    }

    /// The review with its answer.
    pub(super) fn answer(&self, answer: Answer) -> Value {
        let Answer { denied, warnings, patch } = answer;
        let mut response = json!({"uid": self.uid, "allowed": denied.is_none()});
        if let Some(message) = denied {
            response["status"] = json!({"code": 422, "reason": "Invalid", "message": message});
        }
        if !warnings.is_empty() {
            response["warnings"] = warnings.into();
        }
        if !patch.is_empty() {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = json!(ByteString(json!(patch).to_string().into_bytes()));
        }
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    }
}

/// What an object is answered with.
#[derive(Debug, Default)]
pub(super) struct Answer {
    denied: Option<String>,
    warnings: Vec<String>,
    patch: Vec<Operation>,
}

impl Answer {
    pub(super) fn allowed(warnings: impl IntoIterator<Item = String>) -> Self {
        let cut = |warning: String| match warning.char_indices().nth(WARNING) {
            Some((end, _)) => format!("{}…", &warning[..end]),
            None => warning,
        };
        Self { warnings: warnings.into_iter().map(cut).take(20).collect(), ..Self::default() }
    }

    /// The same with a change of the object.
    pub(super) fn with(self, patch: Vec<Operation>) -> Self {
        Self { patch, ..self }
    }

    pub(super) fn denied(message: String) -> Self {
        Self { denied: Some(message), ..Self::default() }
    }
}
