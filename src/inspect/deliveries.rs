//! The delivery ledger as messages, which are the JSON of `/deliveries` and `/held-back` too.

use super::proto::{
    Answers, DeliveryState, HeldBack, ListDeliveriesRequest, ListDeliveriesResponse, ListHeldBackResponse,
    ObjectDelivery, ObjectName, PodName, ResourceDelivery, ResourceRefusal,
};
use super::service::resource_type;
use crate::mesh::{ObjectRef, ProxyId};
use crate::xds::status::{self, Proxies};

/// What became of the changes of those objects that the request means.
pub(super) fn list(proxies: &dyn Proxies, request: &ListDeliveriesRequest) -> ListDeliveriesResponse {
    let objects = proxies.deliveries(&|object| wanted(request, object)).into_iter().map(object);
    let done = |object: &ObjectDelivery| object.state() == DeliveryState::Delivered;
    ListDeliveriesResponse { objects: objects.filter(|object| !(request.pending_only && done(object))).collect() }
}

/// What is held back.
pub(super) fn held_back(proxies: &dyn Proxies) -> ListHeldBackResponse {
    ListHeldBackResponse { held_back: proxies.held_back().into_iter().map(held).collect() }
}

fn wanted(request: &ListDeliveriesRequest, object: Option<&ObjectRef>) -> bool {
    let ObjectName { kind, namespace, name } = object_name(object);
    let fits = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
    fits(&request.namespace, &namespace)
        && fits(&request.name, &name)
        && (request.kind.is_empty() || request.kind.eq_ignore_ascii_case(&kind))
}

fn object(delivery: status::ObjectDelivery) -> ObjectDelivery {
    let resources: Vec<_> = delivery.resources.into_iter().map(resource).collect();
    let held_back = resources.iter().any(|resource| resource.held_back.is_some());
    ObjectDelivery {
        object: Some(object_name(delivery.object.as_ref())),
        state: state(&delivery.answers, held_back).into(),
        changed_at: Some(delivery.changed_at.into()),
        answers: Some(answers(delivery.answers)),
        resources,
    }
}

fn resource(delivery: status::Delivery) -> ResourceDelivery {
    ResourceDelivery {
        r#type: resource_type(delivery.kind).into(),
        name: delivery.name.to_string(),
        proxy: delivery.proxy.as_ref().map(pod_name),
        version: delivery.version.map(|version| version.to_string()).unwrap_or_default(),
        state: state(&delivery.answers, delivery.held_back.is_some()).into(),
        changed_at: Some(delivery.changed_at.into()),
        answers: Some(answers(delivery.answers)),
        held_back: delivery.held_back.map(held),
    }
}

/// The worst that is true.
fn state(answers: &status::Answers, held_back: bool) -> DeliveryState {
    match answers {
        _ if held_back => DeliveryState::HeldBack,
        answers if answers.refusing > 0 => DeliveryState::Refused,
        answers if answers.pending > 0 => DeliveryState::Pending,
        _ => DeliveryState::Delivered,
    }
}

pub(super) fn answers(answers: status::Answers) -> Answers {
    Answers {
        proxies: answers.proxies,
        sent: answers.sent,
        acknowledged: answers.acknowledged,
        pending: answers.pending,
        pending_proxies: answers.pending_proxies.iter().map(pod_name).collect(),
        refusing: answers.refusing,
        refusals: answers.refusals.into_iter().map(refusal).collect(),
        took: answers.took.and_then(|took| took.try_into().ok()),
    }
}

fn refusal(refusal: status::ResourceRefusal) -> ResourceRefusal {
    ResourceRefusal {
        proxy: Some(pod_name(&refusal.proxy)),
        at: Some(refusal.at.into()),
        r#type: resource_type(refusal.kind).into(),
        name: refusal.name.to_string(),
        version: refusal.version.to_string(),
        message: refusal.message,
    }
}

fn held(held: status::HeldBackStatus) -> HeldBack {
    HeldBack {
        object: Some(object_name(held.origin.as_ref())),
        r#type: resource_type(held.kind).into(),
        name: held.name.to_string(),
        version: held.version.to_string(),
        proxy: Some(pod_name(&held.by)),
        at: Some(held.at.into()),
        message: held.message,
    }
}

fn pod_name(proxy: &ProxyId) -> PodName {
    PodName { namespace: proxy.0.namespace.to_string(), pod: proxy.0.name.to_string() }
}

/// The parts of an object's name; all empty if there is none.
pub(super) fn object_name(object: Option<&ObjectRef>) -> ObjectName {
    let Some(object) = object else { return ObjectName::default() };
    let namespace = object.namespace.as_ref().map(|namespace| namespace.to_string()).unwrap_or_default();
    ObjectName { kind: object.kind.to_string(), namespace, name: object.name.to_string() }
}
