//! What the API server says of the objects of SMI and of Weft beside what is in them: for what is written about them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::Value;
use tokio::time::Instant;

use super::resource::{Resource, is_built_in};
use crate::kubernetes::status::Observed;
use crate::mesh::ObjectRef;

/// The objects of SMI and of Weft, as they were seen last.
#[derive(Debug, Default)]
pub struct ObservedObjects(Mutex<BTreeMap<ObjectRef, Arc<Observed>>>);

impl ObservedObjects {
    /// All of them.
    pub fn all(&self) -> Vec<(ObjectRef, Arc<Observed>)> {
        self.lock().iter().map(|(object, observed)| (object.clone(), observed.clone())).collect()
    }

    /// One of them.
    pub fn get(&self, object: &ObjectRef) -> Option<Arc<Observed>> {
        self.lock().get(object).cloned()
    }

    /// The object was seen. When its generation was read first is kept.
    pub(super) fn seen(&self, object: &ObjectRef, resource: &Resource, json: &Value) {
        if is_built_in(object.kind) {
            return;
        }
        let metadata = |field: &str| json.get("metadata").and_then(|metadata| metadata.get(field));
        let uid: Arc<str> = metadata("uid").and_then(Value::as_str).unwrap_or_default().into();
        let generation = metadata("generation").and_then(Value::as_i64).unwrap_or_default();
        let conditions = json.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
        let conditions: Vec<Condition> =
            conditions.filter_map(|condition| serde_json::from_value(condition.clone()).ok()).collect();
        let mut all = self.lock();
        let before = all.get(object).filter(|before| before.uid == uid && before.generation == generation);
        let observed = Observed {
            api_version: resource.api_version,
            plural: resource.plural.as_str().into(),
            uid,
            generation,
            conditions,
            at: before.map_or_else(Instant::now, |before| before.at),
        };
        all.insert(object.clone(), Arc::new(observed));
    }

    /// The object is gone.
    pub(super) fn gone(&self, object: &ObjectRef) {
        if !is_built_in(object.kind) {
            self.lock().remove(object);
        }
    }

    /// Nothing that is done under the lock panics half-way.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ObjectRef, Arc<Observed>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mesh::Kind;
    use crate::source::manifest::VERSIONS;

    #[tokio::test(start_paused = true)]
    async fn a_generation_is_as_old_as_its_first_sight() {
        let observed = ObservedObjects::default();
        let (_, api_version, version) = VERSIONS.iter().find(|(kind, ..)| *kind == Kind::Egress).unwrap();
        let resource = Resource { version: *version, api_version, plural: "egresses".to_owned() };
        let egress = ObjectRef { kind: Kind::Egress, namespace: Some("shop".into()), name: "out".into() };
        let see = |generation: i64, conditions: Value| {
            let json =
                json!({"metadata": {"uid": "u", "generation": generation}, "status": {"conditions": conditions}});
            observed.seen(&egress, &resource, &json);
            observed.all()[0].1.clone()
        };
        let first = see(1, json!("none"));
        tokio::time::advance(std::time::Duration::from_secs(5)).await;
        let condition = json!({"type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let again = see(1, json!([condition, {"type": "not one"}]));
        assert_eq!((again.at, again.conditions.len()), (first.at, 1));
        assert!(see(2, json!([])).at > first.at);
        let service = ObjectRef { kind: Kind::Service, ..egress.clone() };
        observed.seen(&service, &resource, &json!({}));
        assert_eq!(observed.all().len(), 1, "of built-in kinds nothing is kept");
        observed.gone(&egress);
        assert!(observed.all().is_empty());
    }
}
