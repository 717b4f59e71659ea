//! What several replicas of the control plane say, put together: each knows its own proxies, and all know the objects.
//! Pure.

use std::collections::BTreeMap;

use crate::inspect::proto::{
    Answers, CallOrigin, Convergence, Denial, Graph, HeldBack, ListDeliveriesResponse, ListDenialsResponse,
    ListDiagnosticsResponse, ObjectDelivery, ResourceDelivery,
};

/// How far all proxies are. Each replica numbers its own snapshots: the number is the highest.
pub(super) fn convergence(all: Vec<Convergence>) -> Convergence {
    all.into_iter().fold(Convergence::default(), |sum, one| Convergence {
        snapshot: sum.snapshot.max(one.snapshot),
        connected: sum.connected + one.connected,
        behind: sum.behind + one.behind,
        refusing: sum.refusing + one.refusing,
    })
}

/// What any of them says, once.
pub(super) fn diagnostics(all: Vec<ListDiagnosticsResponse>) -> ListDiagnosticsResponse {
    let mut diagnostics = Vec::new();
    for found in all.into_iter().flat_map(|one| one.diagnostics) {
        if !diagnostics.contains(&found) {
            diagnostics.push(found);
        }
    }
    ListDiagnosticsResponse { diagnostics }
}

/// What any of them holds back, a row for each content.
pub(super) fn held_back(all: Vec<Vec<HeldBack>>) -> Vec<HeldBack> {
    let mut held_back: Vec<HeldBack> = Vec::new();
    for held in all.into_iter().flatten() {
        let same =
            |other: &HeldBack| (other.r#type, &other.name, &other.version) == (held.r#type, &held.name, &held.version);
        if !held_back.iter().any(same) {
            held_back.push(held);
        }
    }
    held_back
}

/// A row an object, with the answers of all proxies.
pub(super) fn deliveries(all: Vec<ListDeliveriesResponse>) -> ListDeliveriesResponse {
    let mut objects: BTreeMap<(String, String, String), ObjectDelivery> = BTreeMap::new();
    for object in all.into_iter().flat_map(|one| one.objects) {
        let name = object.object.clone().unwrap_or_default();
        match objects.entry((name.kind, name.namespace, name.name)) {
            std::collections::btree_map::Entry::Vacant(entry) => drop(entry.insert(object)),
            std::collections::btree_map::Entry::Occupied(mut entry) => add_object(entry.get_mut(), object),
        }
    }
    ListDeliveriesResponse { objects: objects.into_values().collect() }
}

fn add_object(sum: &mut ObjectDelivery, more: ObjectDelivery) {
    sum.state = worse(sum.state, more.state);
    sum.changed_at = later(sum.changed_at, more.changed_at);
    add_answers(&mut sum.answers, more.answers);
    for resource in more.resources {
        let same = |other: &&mut ResourceDelivery| {
            (other.r#type, &other.name, &other.proxy) == (resource.r#type, &resource.name, &resource.proxy)
        };
        match sum.resources.iter_mut().find(same) {
            Some(sum) => add_resource(sum, resource),
            None => sum.resources.push(resource),
        }
    }
    let order = |one: &ResourceDelivery| (one.r#type, one.name.clone(), pod(one));
    sum.resources.sort_by_key(order);
}

fn pod(resource: &ResourceDelivery) -> (String, String) {
    resource.proxy.clone().map(|pod| (pod.namespace, pod.pod)).unwrap_or_default()
}

fn add_resource(sum: &mut ResourceDelivery, more: ResourceDelivery) {
    // A replica may be behind: the newest is what is to be had.
    if seconds(more.changed_at) > seconds(sum.changed_at) {
        sum.version = more.version;
    }
    sum.state = worse(sum.state, more.state);
    sum.changed_at = later(sum.changed_at, more.changed_at);
    add_answers(&mut sum.answers, more.answers);
    sum.held_back = sum.held_back.take().or(more.held_back);
}

fn add_answers(sum: &mut Option<Answers>, more: Option<Answers>) {
    let Some(more) = more.filter(|more| more.proxies > 0) else { return };
    // Whom it concerns nowhere takes no time.
    let Some(sum) = sum.as_mut().filter(|sum| sum.proxies > 0) else {
        *sum = Some(more);
        return;
    };
    sum.proxies += more.proxies;
    sum.sent += more.sent;
    sum.acknowledged += more.acknowledged;
    sum.pending += more.pending;
    sum.pending_proxies.extend(more.pending_proxies);
    sum.refusing += more.refusing;
    sum.refusals.extend(more.refusals);
    let duration = |took: prost_types::Duration| (took.seconds, took.nanos);
    sum.took = sum.took.zip(more.took).map(|(one, other)| if duration(one) < duration(other) { other } else { one });
}

/// The states are in the order of how bad they are.
fn worse(one: i32, other: i32) -> i32 {
    one.max(other)
}

fn later(one: Option<prost_types::Timestamp>, other: Option<prost_types::Timestamp>) -> Option<prost_types::Timestamp> {
    if seconds(one) < seconds(other) { other } else { one }
}

fn seconds(at: Option<prost_types::Timestamp>) -> Option<(i64, i32)> {
    at.map(|at| (at.seconds, at.nanos))
}

/// An edge a call, with the pods of all replicas.
pub(super) fn graph(all: Vec<Graph>) -> Graph {
    let mut edges = BTreeMap::new();
    for edge in all.into_iter().flat_map(|one| one.edges) {
        let key = (
            (edge.caller_namespace.clone(), edge.caller.clone()),
            (edge.destination_namespace.clone(), edge.destination.clone(), edge.port),
        );
        let Some(known) = edges.get_mut(&key) else {
            edges.insert(key, edge);
            continue;
        };
        let known: &mut crate::inspect::proto::Edge = known;
        known.pods += edge.pods;
        if edge.origin() == CallOrigin::Learned {
            known.origin = edge.origin;
        }
        // It was learned when the first of them learned it.
        known.since = match (seconds(known.since), seconds(edge.since)) {
            (Some(one), Some(other)) if one <= other => known.since,
            (_, Some(_)) => edge.since,
            _ => known.since,
        };
    }
    Graph { edges: edges.into_values().collect() }
}

/// A row an edge, with the calls that all replicas were told of.
pub(super) fn denials(all: Vec<ListDenialsResponse>) -> ListDenialsResponse {
    let mut sum = ListDenialsResponse::default();
    for one in all {
        sum.uncounted += one.uncounted;
        for denial in one.denials {
            let key = |of: &Denial| {
                (of.caller.clone(), of.namespace.clone(), of.workload.clone(), of.account.clone(), of.port, of.http)
            };
            match sum.denials.iter_mut().find(|known| key(known) == key(&denial)) {
                Some(known) => {
                    known.calls += denial.calls;
                    known.methods.extend(denial.methods);
                    known.methods.sort();
                    known.methods.dedup();
                    known.last_at = later(known.last_at, denial.last_at);
                    if seconds(denial.first_at) < seconds(known.first_at) {
                        known.first_at = denial.first_at;
                    }
                }
                None => sum.denials.push(denial),
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::proto::{DeliveryState, Diagnostic, Edge, ObjectName, PodName, ResourceType};

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    fn answers(proxies: u64, pending: u64, took: Option<i64>) -> Answers {
        let pod = |number| PodName { namespace: "shop".to_owned(), pod: format!("cart-{number}") };
        let took = took.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
        let acknowledged = proxies - pending;
        Answers {
            proxies,
            acknowledged,
            pending,
            pending_proxies: (0..pending).map(pod).collect(),
            took,
            ..Default::default()
        }
    }

    fn object(name: &str, state: DeliveryState, changed: i64, answers: Answers) -> ListDeliveriesResponse {
        let resource = ResourceDelivery {
            r#type: ResourceType::Cluster.into(),
            name: format!("{name}:80"),
            version: format!("v{changed}"),
            state: state.into(),
            changed_at: at(changed),
            answers: Some(answers.clone()),
            ..Default::default()
        };
        let object = ObjectName { kind: "Service".to_owned(), namespace: "shop".to_owned(), name: name.to_owned() };
        ListDeliveriesResponse {
            objects: vec![ObjectDelivery {
                object: Some(object),
                state: state.into(),
                changed_at: at(changed),
                answers: Some(answers),
                resources: vec![resource],
            }],
        }
    }

    #[test]
    fn an_object_is_one_row_with_the_worst_state_and_the_answers_of_all() {
        let done = object("cart", DeliveryState::Delivered, 7, answers(18, 0, Some(3)));
        let waits = object("cart", DeliveryState::Pending, 5, answers(19, 2, None));
        let other = object("bank", DeliveryState::Delivered, 1, answers(1, 0, Some(1)));
        let sum = deliveries(vec![done.clone(), waits, other.clone()]);
        let expected = object("cart", DeliveryState::Pending, 7, answers(37, 2, None));
        assert_eq!(sum.objects, [other.objects, expected.objects].concat());
        let slow = object("cart", DeliveryState::Delivered, 7, answers(19, 0, Some(4)));
        let nobody = object("cart", DeliveryState::Delivered, 7, answers(0, 0, Some(0)));
        let sum = deliveries(vec![nobody, done, slow]);
        assert_eq!(sum, object("cart", DeliveryState::Delivered, 7, answers(37, 0, Some(4))));
    }

    #[test]
    fn what_all_say_is_said_once_and_what_each_counts_is_added() {
        let found = |reason: &str| Diagnostic { reason: reason.to_owned(), ..Default::default() };
        let of = |found: &[Diagnostic]| ListDiagnosticsResponse { diagnostics: found.to_vec() };
        let all = diagnostics(vec![of(&[found("a"), found("b")]), of(&[found("b"), found("c")])]);
        assert_eq!(all, of(&[found("a"), found("b"), found("c")]));
        let one = Convergence { snapshot: 9, connected: 2, behind: 1, refusing: 0 };
        let other = Convergence { snapshot: 4, connected: 1, behind: 0, refusing: 1 };
        assert_eq!(convergence(vec![one, other]), Convergence { snapshot: 9, connected: 3, behind: 1, refusing: 1 });
        let held = |version: &str| HeldBack { version: version.to_owned(), ..Default::default() };
        assert_eq!(held_back(vec![vec![held("1")], vec![held("2"), held("1")]]), [held("1"), held("2")]);
    }

    #[test]
    fn an_edge_is_one_row_since_the_first_of_its_calls() {
        let edge = |origin: CallOrigin, since, pods| Edge {
            caller: "web".to_owned(),
            destination: "cart".to_owned(),
            origin: origin.into(),
            since,
            pods,
            ..Default::default()
        };
        let of = |edge| Graph { edges: vec![edge] };
        let (declared, learned) = (edge(CallOrigin::Declared, None, 1), edge(CallOrigin::Learned, at(7), 2));
        assert_eq!(graph(vec![of(declared), of(learned.clone())]), of(edge(CallOrigin::Learned, at(7), 3)));
        let earlier = edge(CallOrigin::Learned, at(3), 1);
        assert_eq!(graph(vec![of(learned), of(earlier)]), of(edge(CallOrigin::Learned, at(3), 3)));
        let denial = |methods: &[&str], calls, first, last| Denial {
            methods: methods.iter().map(|method| (*method).to_owned()).collect(),
            calls,
            first_at: at(first),
            last_at: at(last),
            ..Default::default()
        };
        let of = |denial, uncounted| ListDenialsResponse { denials: vec![denial], uncounted };
        let sum = denials(vec![of(denial(&["GET"], 2, 4, 5), 1), of(denial(&["GET", "PUT"], 3, 2, 9), 2)]);
        assert_eq!(sum, of(denial(&["GET", "PUT"], 5, 2, 9), 3));
    }
}
