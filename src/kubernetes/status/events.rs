//! Events as `kubectl describe` shows them. Pure.

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use xxhash_rust::xxh3::xxh3_64;

use super::conditions::{REFUSED, Wanted, shortened, text};
use crate::mesh::Diagnostic;
use crate::mesh::diagnostic::Severity;

/// The component that events are from.
const COMPONENT: &str = "weft";
/// Where events of objects without a namespace are.
const CLUSTER: &str = "default";
/// Bytes of the object's name in the event's, which has 17 more, of 253.
const NAME: usize = 230;

/// What an event says.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Saying {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Saying {
    /// That of a finding.
    pub(super) fn of(found: &Diagnostic) -> Self {
        let reason = match found.severity {
            Severity::Error => "Rejected",
            Severity::Warning => "PartlyUsed",
        };
        Self { reason, message: shortened(&text(found)) }
    }

    /// That of a condition that says that Envoy refuses it.
    pub(super) fn of_refusal(wanted: &Wanted) -> Option<Self> {
        let refused = wanted.reason == REFUSED;
        refused.then(|| Self { reason: "RefusedByProxy", message: wanted.message.clone() })
    }
}

/// The event about an object, when it is said for the first time. The same of the same object has the same name.
pub(super) fn event(of: &ObjectReference, saying: &Saying, replica: &str) -> Event {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let hash = xxh3_64(format!("{}\n{}\n{}", text(&of.uid), saying.reason, saying.message).as_bytes());
    let name = text(&of.name);
    let name = name.get(..name.floor_char_boundary(NAME)).unwrap_or_default().trim_end_matches(['.', '-']);
    let now = Some(Time(Timestamp::now()));
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{hash:016x}")),
            namespace: Some(of.namespace.clone().unwrap_or_else(|| CLUSTER.to_owned())),
            ..ObjectMeta::default()
        },
        involved_object: of.clone(),
        type_: Some("Warning".to_owned()),
        reason: Some(saying.reason.to_owned()),
        message: Some(saying.message.clone()),
        count: Some(1),
        first_timestamp: now.clone(),
        last_timestamp: now,
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: None }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(replica.to_owned()),
        ..Event::default()
    }
}
