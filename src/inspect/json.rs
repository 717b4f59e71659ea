//! How fields of messages are written as JSON where the generated form would say less (see build.rs).

use std::time::SystemTime;

use prost_types::{Duration, Timestamp};
use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::proto::{DeliveryState, ResourceType, Severity};

/// RFC 3339, or null.
pub(super) fn time<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    let at = at.and_then(|at| SystemTime::try_from(at).ok());
    at.and_then(|at| OffsetDateTime::from(at).format(&Rfc3339).ok()).serialize(serializer)
}

/// Seconds as a number, or null.
pub(super) fn seconds<S: Serializer>(took: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    let took = took.and_then(|took| std::time::Duration::try_from(took).ok());
    took.map(|took| took.as_secs_f64()).serialize(serializer)
}

/// `cluster`, `endpoints`, …
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
pub(super) fn resource_type<S: Serializer>(kind: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    name(ResourceType::try_from(*kind).unwrap_or_default().as_str_name(), "RESOURCE_TYPE_").serialize(serializer)
}

/// `delivered`, `held_back`, …
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
pub(super) fn state<S: Serializer>(state: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    name(DeliveryState::try_from(*state).unwrap_or_default().as_str_name(), "DELIVERY_STATE_").serialize(serializer)
}

/// `warning`, `error`.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
pub(super) fn severity<S: Serializer>(severity: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    name(Severity::try_from(*severity).unwrap_or_default().as_str_name(), "SEVERITY_").serialize(serializer)
}

/// An enum's value as JSON has it: without the enum's own name, in small letters.
fn name(value: &str, prefix: &str) -> String {
    value.strip_prefix(prefix).unwrap_or(value).to_lowercase()
}
