//! Scripts, each named after the rule that it holds. A response is written `Cluster a1 b2 -c`: the type, the resources
//! with their content, the removed names.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::google::rpc::Status;

use super::*;
use crate::snapshot::Change;
use crate::snapshot::ResourceType::{Cluster, Endpoints, Listener, Route, Secret};
use crate::xds::testing::*;

struct Script {
    session: Session,
    snapshot: Arc<Snapshot>,
    secrets: Arc<TestSecrets>,
    now: Instant,
    nonces: HashMap<String, Vec<String>>,
    delta: bool,
}

impl Script {
    fn without_snapshot(protocol: Protocol) -> Self {
        let secrets = TestSecrets::new();
        Self {
            session: Session::new(protocol, proxy(), identity("web"), secrets.clone(), Patience::default()),
            snapshot: Arc::new(Snapshot::empty()),
            secrets,
            now: Instant::now(),
            nonces: HashMap::new(),
            delta: protocol == Protocol::Delta,
        }
    }

    fn new(protocol: Protocol, changes: impl IntoIterator<Item = Change>) -> Self {
        let mut script = Self::without_snapshot(protocol);
        script.publish(changes);
        script
    }

    fn delta(changes: impl IntoIterator<Item = Change>) -> Self {
        Self::new(Protocol::Delta, changes)
    }

    fn sotw(changes: impl IntoIterator<Item = Change>) -> Self {
        Self::new(Protocol::StateOfTheWorld, changes)
    }

    fn publish(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.snapshot = Arc::new(self.snapshot.with(changes));
        self.session.publish(self.snapshot.clone());
    }

    /// Everything that the session says now.
    fn says(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        while let Some(response) = self.session.poll(self.now) {
            let kind = ResourceType::from_type_url(&response.type_url);
            let mut text = kind.map_or(response.type_url.to_string(), |kind| format!("{kind:?}"));
            for resource in &response.resources {
                text += &format!(" {}{}", resource.name, resource.body[0]);
            }
            for name in &response.removed {
                text += &format!(" -{name}");
            }
            let nonces = self.nonces.entry(response.type_url.to_string()).or_default();
            assert!(!nonces.contains(&response.nonce), "a nonce is used twice: {}", response.nonce);
            nonces.push(response.nonce);
            said.push(text);
            assert!(said.len() < 100, "the session does not come to rest: {said:?}");
        }
        said
    }

    fn nonce(&self, kind: ResourceType) -> String {
        self.nonces.get(kind.type_url()).and_then(|nonces| nonces.last()).cloned().unwrap_or_default()
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) {
        self.session.delta(request, self.now).expect("a good request");
    }

    fn subscribe(&mut self, kind: ResourceType, names: &[&str], unsubscribe: &[&str]) {
        self.request(DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names_subscribe: strings(names),
            resource_names_unsubscribe: strings(unsubscribe),
            ..Default::default()
        });
    }

    fn reconnect(&mut self, kind: ResourceType, names: &[&str], has: &[(&str, u8)]) {
        let version =
            |(name, content): &(&str, u8)| (name.to_string(), resource(kind, name, *content).version.to_string());
        self.request(DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names_subscribe: strings(names),
            initial_resource_versions: has.iter().map(version).collect(),
            ..Default::default()
        });
    }

    fn names(&mut self, kind: ResourceType, names: &[&str]) {
        let nonce = self.nonce(kind);
        self.names_with_nonce(kind, names, &nonce, None);
    }

    fn names_with_nonce(&mut self, kind: ResourceType, names: &[&str], nonce: &str, error: Option<Status>) {
        let request = DiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names: strings(names),
            response_nonce: nonce.into(),
            error_detail: error,
            ..Default::default()
        };
        self.session.state_of_the_world(request, self.now).expect("a good request");
    }

    fn answer(&mut self, kind: ResourceType, nonce: String, error: Option<Status>) {
        if self.delta {
            let type_url = kind.type_url().into();
            self.request(DeltaDiscoveryRequest {
                type_url,
                response_nonce: nonce,
                error_detail: error,
                ..Default::default()
            });
        } else {
            let held = &self.session.types[&kind].subscription;
            let names: Vec<_> = held.names().iter().map(|name| name.to_string()).collect();
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            self.names_with_nonce(kind, &names, &nonce, error);
        }
    }

    fn ack(&mut self, kind: ResourceType) {
        let nonce = self.nonce(kind);
        self.answer(kind, nonce, None);
    }

    fn nack(&mut self, kind: ResourceType) {
        let nonce = self.nonce(kind);
        self.answer(kind, nonce, Some(refusal()));
    }

    fn wait(&mut self, duration: Duration) {
        self.now += duration;
    }
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn refusal() -> Status {
    Status { code: 13, message: "Error adding/updating cluster(s) a: no such socket".into(), ..Default::default() }
}

const QUIET: [&str; 0] = [];

#[test]
fn rule_03_versions_nonces_and_subscriptions_are_kept_per_type() {
    let mut s = Script::sotw([eager(), put(Cluster, "a", 1), put(Endpoints, "a", 1)]);
    s.names(Cluster, &[]);
    s.names(Endpoints, &["a"]);
    assert_eq!(s.says(), ["Cluster a1", "Endpoints a1"]);
    let nonce = s.nonce(Cluster);
    s.names_with_nonce(Cluster, &[], &nonce, Some(refusal()));
    s.ack(Endpoints);
    let status = s.session.status(|_| std::time::SystemTime::UNIX_EPOCH);
    assert_eq!((status[&Cluster].refused, status[&Endpoints].refused), (1, 0));
}

#[test]
fn rule_05_nothing_is_answered_before_the_first_snapshot_nor_to_an_unknown_proxy() {
    for protocol in [Protocol::Delta, Protocol::StateOfTheWorld] {
        let mut s = Script::without_snapshot(protocol);
        match protocol {
            Protocol::Delta => s.reconnect(Cluster, &["*"], &[("a", 1)]),
            Protocol::StateOfTheWorld => s.names(Cluster, &[]),
        }
        assert_eq!(s.says(), QUIET);
        s.publish([put(Cluster, "a", 2)]);
        assert_eq!(s.says(), QUIET, "it has no view");
        s.publish([eager()]);
        assert_eq!(s.says(), ["Cluster a2"]);
        s.publish([Change::RemoveView(proxy()), put(Cluster, "a", 3)]);
        assert_eq!(s.says(), QUIET, "its pod is gone");
    }
}

#[test]
fn rule_06_the_first_request_of_a_type_is_answered_even_with_an_old_nonce() {
    let mut s = Script::sotw([eager(), put(Route, "r", 1)]);
    s.names_with_nonce(Route, &["r"], "of an earlier stream", None);
    s.names_with_nonce(Listener, &[], "of an earlier stream", None);
    assert_eq!(s.says(), ["Listener", "Route r1"]);
}

#[test]
fn rule_07_a_stale_nonce_is_not_answered() {
    let mut s = Script::sotw([eager(), put(Endpoints, "a", 1), put(Endpoints, "b", 1)]);
    s.names(Endpoints, &["a"]);
    assert_eq!(s.says(), ["Endpoints a1"]);
    let old = s.nonce(Endpoints);
    s.publish([put(Endpoints, "a", 2)]);
    assert_eq!(s.says(), ["Endpoints a2"]);
    s.names_with_nonce(Endpoints, &["a", "b"], &old, None);
    assert_eq!(s.says(), QUIET);
    s.names(Endpoints, &["a", "b"]);
    assert_eq!(s.says(), ["Endpoints b1"]);
}

#[test]
fn rule_08_only_error_detail_is_a_refusal() {
    let mut s = Script::delta([eager(), put(Cluster, "a", 1)]);
    s.subscribe(Cluster, &[], &[]);
    s.says();
    s.ack(Cluster);
    let status = s.session.status(|_| std::time::SystemTime::UNIX_EPOCH);
    assert_eq!((status[&Cluster].acknowledged, status[&Cluster].refused), (1, 0));
    assert_eq!(s.session.settled(), Some(s.snapshot.number()));
}

#[test]
fn rule_09_refused_content_is_not_sent_again_until_it_changes() {
    for mut s in [Script::delta([eager(), put(Route, "r", 1)]), Script::sotw([eager(), put(Route, "r", 1)])] {
        if s.delta {
            s.subscribe(Route, &["r"], &[])
        } else {
            s.names(Route, &["r"])
        }
        assert_eq!(s.says(), ["Route r1"]);
        s.ack(Route);
        s.publish([put(Route, "r", 2)]);
        assert_eq!(s.says(), ["Route r2"]);
        s.nack(Route);
        assert_eq!(s.says(), QUIET);
        s.publish([put(Route, "other", 1)]);
        assert_eq!(s.says(), QUIET);
        let status = s.session.status(|_| std::time::SystemTime::UNIX_EPOCH);
        let refusal = status[&Route].refusal.clone().expect("a refusal that holds");
        assert_eq!(refusal.resources, [("r".into(), resource(Route, "r", 2).version)]);
        s.publish([put(Route, "r", 3)]);
        assert_eq!(s.says(), ["Route r3"]);
        s.ack(Route);
        assert_eq!(s.session.status(|_| std::time::SystemTime::UNIX_EPOCH)[&Route].refusal, None);
    }
}

#[test]
fn rule_10_clusters_and_listeners_are_always_stated_in_full() {
    let mut s = Script::sotw([eager(), put(Cluster, "a", 1), put(Cluster, "b", 1), put(Listener, "l", 1)]);
    s.names(Cluster, &[]);
    assert_eq!(s.says(), ["Cluster a1 b1"]);
    s.ack(Cluster);
    s.names(Listener, &[]);
    assert_eq!(s.says(), ["Listener l1"]);
    s.ack(Listener);
    s.publish([put(Cluster, "b", 2)]);
    assert_eq!(s.says(), ["Cluster a1 b2"]);
    s.ack(Cluster);
    s.publish([gone(Cluster, "a"), gone(Listener, "l")]);
    assert_eq!(s.says(), ["Listener"]);
    s.ack(Listener);
    assert_eq!(s.says(), ["Cluster b2"]);
}

#[test]
fn rule_10_a_refused_cluster_is_stated_as_it_was_before() {
    let mut s = Script::sotw([eager(), put(Cluster, "a", 1)]);
    s.names(Cluster, &[]);
    s.says();
    s.ack(Cluster);
    s.publish([put(Cluster, "a", 2)]);
    assert_eq!(s.says(), ["Cluster a2"]);
    s.nack(Cluster);
    s.publish([put(Cluster, "b", 1)]);
    assert_eq!(s.says(), ["Cluster a1 b1"]);
}

#[test]
fn rule_11_endpoints_and_routes_are_partial_and_not_deleted() {
    let mut s = Script::sotw([eager(), put(Endpoints, "a", 1), put(Endpoints, "b", 1)]);
    s.names(Endpoints, &["a", "b"]);
    assert_eq!(s.says(), ["Endpoints a1 b1"]);
    s.ack(Endpoints);
    s.publish([put(Endpoints, "b", 2)]);
    assert_eq!(s.says(), ["Endpoints b2"]);
    s.ack(Endpoints);
    s.publish([gone(Endpoints, "b")]);
    assert_eq!(s.says(), QUIET);
    s.publish([put(Endpoints, "b", 2)]);
    assert_eq!(s.says(), ["Endpoints b2"]);
}

#[test]
fn rule_12_newly_named_resources_are_sent() {
    let mut s = Script::sotw([eager(), put(Endpoints, "a", 1), put(Endpoints, "b", 1)]);
    s.names(Endpoints, &["a", "b"]);
    s.says();
    s.names(Endpoints, &["a"]);
    assert_eq!(s.says(), QUIET);
    s.names(Endpoints, &["a", "b"]);
    assert_eq!(s.says(), ["Endpoints b1"]);
}

#[test]
fn rule_13_empty_names_unsubscribe() {
    let mut s = Script::sotw([eager(), put(Endpoints, "a", 1)]);
    s.names(Endpoints, &["a"]);
    s.says();
    s.names(Endpoints, &[]);
    s.publish([put(Endpoints, "a", 2)]);
    assert_eq!(s.says(), QUIET);
}

#[test]
fn rule_14_endpoints_follow_a_changed_cluster_and_the_duplicate_request_is_not_answered_again() {
    let mut s = Script::sotw([eager(), put(Cluster, "a", 1), put(Endpoints, "a", 1)]);
    s.names(Cluster, &[]);
    s.names(Endpoints, &["a"]);
    s.says();
    s.ack(Cluster);
    s.ack(Endpoints);
    let old = s.nonce(Endpoints);
    s.publish([put(Cluster, "a", 2)]);
    assert_eq!(s.says(), ["Cluster a2", "Endpoints a1"]);
    s.names_with_nonce(Endpoints, &["a"], &old, None);
    assert_eq!(s.says(), QUIET);
}

#[test]
fn rule_15_subscriptions_count_on_stale_acknowledging_and_refusing_requests() {
    let mut s =
        Script::delta([eager(), put(Route, "a", 1), put(Route, "b", 1), put(Route, "c", 1), put(Route, "d", 1)]);
    s.subscribe(Route, &["a"], &[]);
    assert_eq!(s.says(), ["Route a1"]);
    for (nonce, error, name) in [("stale".to_owned(), None, "b"), (s.nonce(Route), Some(refusal()), "c")] {
        s.request(DeltaDiscoveryRequest {
            type_url: Route.type_url().into(),
            response_nonce: nonce,
            error_detail: error,
            resource_names_subscribe: strings(&[name]),
            ..Default::default()
        });
        assert_eq!(s.says(), [format!("Route {name}1")]);
    }
    let nonce = s.nonce(Route);
    s.request(DeltaDiscoveryRequest {
        type_url: Route.type_url().into(),
        response_nonce: nonce,
        resource_names_subscribe: strings(&["d"]),
        ..Default::default()
    });
    assert_eq!(s.says(), ["Route d1"]);
}

#[test]
fn rule_16_subscribing_again_is_answered() {
    let mut s = Script::delta([eager(), put(Route, "a", 1)]);
    s.subscribe(Route, &["a"], &[]);
    s.says();
    s.ack(Route);
    s.subscribe(Route, &["a"], &[]);
    assert_eq!(s.says(), ["Route a1"]);
}

#[test]
fn rule_17_an_unsubscription_needs_no_answer() {
    let mut s = Script::delta([eager(), put(Route, "a", 1)]);
    s.subscribe(Route, &["a"], &[]);
    s.says();
    s.subscribe(Route, &[], &["a", "unknown"]);
    s.publish([put(Route, "a", 2)]);
    assert_eq!(s.says(), QUIET);
}

#[test]
fn rule_18_a_name_dropped_beside_the_wildcard_is_answered_with_what_remains() {
    let mut s = Script::delta([on_demand(&["a"]), put(Cluster, "a", 1), put(Cluster, "b", 1)]);
    s.subscribe(Cluster, &["*", "a", "b"], &[]);
    assert_eq!(s.says(), ["Cluster a1 b1"]);
    s.subscribe(Cluster, &[], &["a", "b"]);
    assert_eq!(s.says(), ["Cluster a1 -b"]);
    s.publish([put(Cluster, "a", 2), put(Cluster, "b", 2)]);
    assert_eq!(s.says(), ["Cluster a2"]);
    assert_eq!(s.session.status(|_| std::time::SystemTime::UNIX_EPOCH)[&Cluster].resources, 1);
}

#[test]
fn rule_19_a_missing_name_is_answered_removed() {
    let mut s = Script::delta([on_demand(&[]), Change::Fallback(Arc::new(Pods(7)))]);
    s.subscribe(Cluster, &[], &[]);
    assert_eq!(s.says(), ["Cluster"]);
    s.subscribe(Cluster, &["10.96.0.5:80", "not an address"], &[]);
    assert_eq!(s.says(), ["Cluster -10.96.0.5:80 -not an address"]);
    s.subscribe(Cluster, &["pod-1"], &[]);
    assert_eq!(s.says(), ["Cluster pod-17"]);
    s.subscribe(Secret, &["nobody's"], &[]);
    assert_eq!(s.says(), ["Secret -nobody's"]);
}

#[test]
fn rule_20_a_missing_name_is_pushed_when_it_appears() {
    let mut s = Script::delta([on_demand(&[])]);
    s.subscribe(Cluster, &["*", "10.96.0.5:80"], &[]);
    assert_eq!(s.says(), ["Cluster -10.96.0.5:80"]);
    s.publish([put(Cluster, "10.96.0.5:80", 1)]);
    assert_eq!(s.says(), ["Cluster 10.96.0.5:801"]);
}

#[test]
fn rule_22_on_reconnection_only_the_difference_is_sent() {
    let mut s = Script::delta([eager(), put(Listener, "a", 1), put(Listener, "b", 2), put(Listener, "c", 1)]);
    s.reconnect(Listener, &[], &[("a", 1), ("b", 1), ("d", 1)]);
    assert_eq!(s.says(), ["Listener b2 c1 -d"]);
    s.reconnect(Route, &["r"], &[("r", 1)]);
    assert_eq!(s.says(), ["Route -r"]);
}

#[test]
fn rule_22_a_version_of_another_server_is_replaced() {
    let mut s = Script::delta([eager(), put(Route, "r", 1)]);
    s.request(DeltaDiscoveryRequest {
        type_url: Route.type_url().into(),
        resource_names_subscribe: strings(&["r"]),
        initial_resource_versions: HashMap::from([("r".to_owned(), "41".to_owned())]),
        ..Default::default()
    });
    assert_eq!(s.says(), ["Route r1"]);
}

#[test]
fn rule_23_endpoints_of_a_cluster_that_changed_are_sent_on_reconnection_although_their_version_matches() {
    for endpoints_first in [false, true] {
        let mut s = Script::delta([
            eager(),
            put(Cluster, "a", 2),
            put(Cluster, "b", 1),
            put(Endpoints, "a", 1),
            put(Endpoints, "b", 1),
        ]);
        s.reconnect(Cluster, &["*"], &[("a", 1), ("b", 1)]);
        if !endpoints_first {
            assert_eq!(s.says(), ["Cluster a2"]);
        }
        s.reconnect(Endpoints, &["a", "b"], &[("a", 1), ("b", 1)]);
        let said = s.says();
        assert_eq!(said.last().map(String::as_str), Some("Endpoints a1"), "{said:?}");
    }
}

#[test]
fn rule_25_a_first_request_without_names_gets_everything() {
    let contents = || [eager(), put(Cluster, "a", 1), put(Cluster, "b", 1)];
    let (mut d, mut s) = (Script::delta(contents()), Script::sotw(contents()));
    d.subscribe(Cluster, &[], &[]);
    s.names(Cluster, &[]);
    assert_eq!((d.says(), s.says()), (strings(&["Cluster a1 b1"]), strings(&["Cluster a1 b1"])));
}

#[test]
fn rule_26_a_name_adds_to_the_wildcard_in_delta_and_replaces_it_in_state_of_the_world() {
    let contents = || [on_demand(&["a"]), put(Cluster, "a", 1), put(Cluster, "b", 1)];
    let mut s = Script::delta(contents());
    s.subscribe(Cluster, &[], &[]);
    assert_eq!(s.says(), ["Cluster a1"]);
    s.subscribe(Cluster, &["b"], &[]);
    assert_eq!(s.says(), ["Cluster b1"]);
    s.publish([put(Cluster, "a", 2)]);
    assert_eq!(s.says(), ["Cluster a2"]);
    let mut s = Script::sotw(contents());
    s.names(Cluster, &[]);
    assert_eq!(s.says(), ["Cluster a1"]);
    s.names(Cluster, &["b"]);
    assert_eq!(s.says(), ["Cluster b1"]);
}

#[test]
fn rule_27_an_empty_list_after_names_means_nothing() {
    let mut s = Script::sotw([eager(), put(Cluster, "a", 1)]);
    s.names(Cluster, &["a"]);
    assert_eq!(s.says(), ["Cluster a1"]);
    s.names(Cluster, &[]);
    assert_eq!(s.says(), ["Cluster"]);
    s.publish([put(Cluster, "a", 2)]);
    assert_eq!(s.says(), QUIET);
}

/// A stream that is subscribed to all types and has acknowledged what there is.
fn settled(protocol: Protocol) -> Script {
    let all = [put(Cluster, "a", 1), put(Endpoints, "a", 1), put(Listener, "l", 1), put(Route, "r", 1), eager()];
    let mut s = Script::new(protocol, all);
    for (kind, names) in [(Cluster, &[][..]), (Endpoints, &["a", "b"]), (Listener, &[]), (Route, &["r"])] {
        match protocol {
            Protocol::Delta => s.subscribe(kind, names, &[]),
            Protocol::StateOfTheWorld => s.names(kind, names),
        }
        assert_eq!(s.says().len(), 1, "{kind:?}");
        s.ack(kind);
    }
    assert_eq!(s.says(), QUIET);
    assert_eq!(s.session.settled(), Some(1));
    s
}

#[test]
fn rule_28_clusters_endpoints_listeners_routes_then_removals() {
    let mut s = settled(Protocol::Delta);
    s.publish([
        put(Cluster, "b", 1),
        put(Endpoints, "b", 1),
        put(Listener, "l", 2),
        put(Route, "r", 2),
        gone(Cluster, "a"),
        gone(Endpoints, "a"),
    ]);
    assert_eq!(s.says(), ["Cluster b1", "Endpoints b1"]);
    s.ack(Cluster);
    assert_eq!(s.says(), ["Listener l2", "Route r2"]);
    s.ack(Listener);
    assert_eq!(s.says(), QUIET, "the route may still use it");
    assert_eq!(s.session.settled(), None);
    s.ack(Route);
    assert_eq!(s.says(), ["Cluster -a", "Endpoints -a"]);
    for kind in [Cluster, Endpoints] {
        s.ack(kind);
    }
    assert_eq!(s.session.settled(), Some(2));
}

#[test]
fn rule_28_a_removal_does_not_wait_for_ever() {
    for protocol in [Protocol::Delta, Protocol::StateOfTheWorld] {
        let mut s = settled(protocol);
        s.publish([put(Route, "r", 2), gone(Cluster, "a")]);
        assert_eq!(s.says(), ["Route r2"]);
        s.nack(Route);
        assert_eq!(s.says(), QUIET);
        let at = s.session.deadline(s.now).expect("a deadline");
        assert_eq!(at, s.now + Patience::default().removal);
        s.wait(Patience::default().removal);
        assert_eq!(s.says(), [if protocol == Protocol::Delta { "Cluster -a" } else { "Cluster" }]);
        assert_eq!(s.session.deadline(s.now), None);
    }
}

#[test]
fn rule_28_a_cluster_that_comes_back_before_its_removal_is_not_touched() {
    let mut s = settled(Protocol::Delta);
    s.publish([put(Route, "r", 2), gone(Cluster, "a")]);
    s.says();
    s.publish([put(Cluster, "a", 1)]);
    s.ack(Route);
    assert_eq!(s.says(), QUIET);
    assert_eq!(s.session.settled(), Some(3));
}

#[test]
fn rule_30_endpoints_do_not_wait_for_the_acknowledgement_of_clusters() {
    let mut s = settled(Protocol::Delta);
    s.publish([put(Cluster, "a", 2), put(Endpoints, "a", 2)]);
    assert_eq!(s.says(), ["Cluster a2", "Endpoints a2"]);
    s.publish([put(Cluster, "a", 3)]);
    assert_eq!(s.says(), ["Cluster a3", "Endpoints a2"]);
    s.subscribe(Cluster, &["b"], &[]);
    assert_eq!(s.says(), ["Cluster -b"], "nor does a new destination");
}

#[test]
fn rule_31_a_changed_cluster_gets_its_unchanged_endpoints_again() {
    for protocol in [Protocol::Delta, Protocol::StateOfTheWorld] {
        let mut s = settled(protocol);
        s.publish([put(Cluster, "a", 2)]);
        assert_eq!(s.says(), ["Cluster a2", "Endpoints a1"]);
    }
}

#[test]
fn rule_33_routes_wait_until_their_clusters_are_warm_but_not_for_ever() {
    let mut s = settled(Protocol::Delta);
    s.publish([put(Cluster, "new", 1), put(Route, "r", 2)]);
    assert_eq!(s.says(), ["Cluster new1"]);
    assert_eq!(s.session.deadline(s.now), Some(s.now + Patience::default().warming));
    s.wait(Patience::default().warming);
    assert_eq!(s.says(), ["Route r2"]);
}

#[test]
fn rule_34_resources_that_were_refused_together_are_tried_alone_and_the_bad_one_is_held() {
    let mut s = Script::delta([eager(), put(Cluster, "a", 1), put(Cluster, "b", 1), put(Cluster, "c", 1)]);
    s.subscribe(Cluster, &[], &[]);
    assert_eq!(s.says(), ["Cluster a1 b1 c1"]);
    s.nack(Cluster);
    let mut said = s.says();
    let nonces = s.nonces[Cluster.type_url()].clone();
    for (text, nonce) in said.iter().zip(&nonces[1..]) {
        s.answer(Cluster, nonce.clone(), (text == "Cluster b1").then(refusal));
    }
    said.sort();
    assert_eq!(said, ["Cluster a1", "Cluster b1", "Cluster c1"]);
    assert_eq!(s.says(), QUIET);
    s.publish([put(Cluster, "c", 2)]);
    assert_eq!(s.says(), ["Cluster c2"], "the bad one blocks nobody");
    s.ack(Cluster);
    s.publish([put(Cluster, "b", 2)]);
    assert_eq!(s.says(), ["Cluster b2"]);
}

#[test]
fn rule_34_state_of_the_world_finds_the_bad_one_too() {
    let mut s = Script::sotw([eager(), put(Cluster, "a", 1), put(Cluster, "b", 1), put(Cluster, "c", 1)]);
    s.names(Cluster, &[]);
    assert_eq!(s.says(), ["Cluster a1 b1 c1"]);
    s.nack(Cluster);
    let mut rounds = Vec::new();
    loop {
        let said = s.says();
        let Some(last) = said.last().cloned() else { break };
        if last.contains("b1") {
            s.nack(Cluster)
        } else {
            s.ack(Cluster)
        }
        rounds.extend(said);
    }
    assert_eq!(rounds, ["Cluster c1", "Cluster b1 c1", "Cluster a1 c1"]);
}

#[test]
fn rule_34_a_refused_cluster_that_is_asked_for_again_is_answered_with_the_last_good_one() {
    let mut s = Script::delta([on_demand(&[]), put(Cluster, "a", 1)]);
    s.subscribe(Cluster, &["a"], &[]);
    s.says();
    s.ack(Cluster);
    s.publish([put(Cluster, "a", 2)]);
    s.says();
    s.nack(Cluster);
    s.subscribe(Cluster, &["a"], &[]);
    assert_eq!(s.says(), ["Cluster a1"]);
}

#[test]
fn rule_35_many_requests_of_a_type_are_answered_once() {
    let mut s = Script::delta([eager(), put(Route, "a", 1), put(Route, "b", 1)]);
    for _ in 0..50 {
        s.subscribe(Route, &["a"], &["b"]);
        s.subscribe(Route, &["b"], &["a"]);
    }
    assert_eq!(s.says(), ["Route b1"]);
}

#[test]
fn rule_36_a_slow_client_gets_the_newest_only_and_costs_no_queue() {
    let mut s = settled(Protocol::Delta);
    for content in 10..200 {
        s.publish([put(Endpoints, "a", content)]);
    }
    assert_eq!(s.says(), ["Endpoints a199"]);
    for content in 0..=255 {
        s.publish([put(Endpoints, "a", content)]);
        s.says();
    }
    let held = &s.session.types[&Endpoints];
    assert_eq!(held.outstanding.len(), MAX_OUTSTANDING, "it acknowledges nothing");
    s.ack(Endpoints);
    assert_eq!(s.says(), ["Endpoints a255"]);
}

#[test]
fn rule_38_an_unknown_type_is_answered_empty() {
    let mut d = Script::delta([eager()]);
    let request = |nonce: &str| DeltaDiscoveryRequest {
        type_url: "type.googleapis.com/some.Thing".into(),
        resource_names_subscribe: if nonce.is_empty() { strings(&["x"]) } else { vec![] },
        response_nonce: nonce.into(),
        ..Default::default()
    };
    d.request(request(""));
    assert_eq!(d.says(), ["type.googleapis.com/some.Thing -x"]);
    d.request(request("1"));
    assert_eq!(d.says(), QUIET);
    let mut s = Script::sotw([eager()]);
    let request = DiscoveryRequest { type_url: "type.googleapis.com/some.Thing".into(), ..Default::default() };
    s.session.state_of_the_world(request, s.now).expect("not refused");
    assert_eq!(s.says(), ["type.googleapis.com/some.Thing"]);
}

#[test]
fn rule_39_secrets_are_those_of_the_streams_identity() {
    for protocol in [Protocol::Delta, Protocol::StateOfTheWorld] {
        let mut s = Script::new(protocol, [eager()]);
        s.secrets.set("web", "workload", 1);
        s.secrets.set("cart", "workload", 2);
        match protocol {
            Protocol::Delta => s.subscribe(Secret, &["workload"], &[]),
            Protocol::StateOfTheWorld => s.names(Secret, &["workload"]),
        }
        assert_eq!(s.says(), ["Secret workload1"]);
        s.ack(Secret);
        s.secrets.set("cart", "workload", 3);
        s.session.secrets_changed();
        assert_eq!(s.says(), QUIET, "another's change");
        s.secrets.set("web", "workload", 4);
        s.session.secrets_changed();
        assert_eq!(s.says(), ["Secret workload4"]);
        let held = &s.session.types[&Secret];
        assert!(held.exceptions.values().all(|e| e.has.as_ref().is_some_and(|has| has.content.is_none())));
    }
}

#[test]
fn rule_41_a_cluster_that_was_removed_is_pushed_when_it_comes_back() {
    let mut s = settled(Protocol::Delta);
    s.publish([on_demand(&[]), put(Cluster, "10.96.0.5:80", 1)]);
    s.says();
    s.subscribe(Cluster, &["10.96.0.5:80"], &[]);
    assert_eq!(s.says(), ["Cluster 10.96.0.5:801"]);
    s.ack(Cluster);
    s.says();
    s.publish([gone(Cluster, "10.96.0.5:80")]);
    assert_eq!(s.says(), ["Cluster -10.96.0.5:80"]);
    s.ack(Cluster);
    s.publish([put(Cluster, "10.96.0.5:80", 1)]);
    assert_eq!(s.says(), ["Cluster 10.96.0.5:801"]);
}

#[test]
fn rule_42_a_reconnection_names_the_wildcard_and_what_was_asked_for() {
    let mut s = Script::delta([
        on_demand(&["a"]),
        put(Cluster, "a", 1),
        put(Cluster, "b", 1),
        put(Cluster, "c", 2),
        Change::Fallback(Arc::new(Pods(1))),
    ]);
    s.reconnect(Cluster, &["*", "b", "c", "pod-1", "nothing"], &[("a", 1), ("b", 1), ("c", 1), ("pod-1", 1)]);
    assert_eq!(s.says(), ["Cluster c2 -nothing"]);
    s.ack(Cluster);
    s.publish([Change::Fallback(Arc::new(Pods(2)))]);
    assert_eq!(s.says(), ["Cluster pod-12"]);
}

#[test]
fn on_demand_discovery_beside_the_wildcard() {
    let mut s = Script::delta([on_demand(&["warm"]), put(Cluster, "warm", 1), put(Cluster, "10.96.0.5:80", 1)]);
    s.publish([put(Endpoints, "10.96.0.5:80", 1), put(Endpoints, "warm", 1)]);
    s.subscribe(Cluster, &[], &[]);
    assert_eq!(s.says(), ["Cluster warm1"]);
    s.subscribe(Endpoints, &["warm"], &[]);
    assert_eq!(s.says(), ["Endpoints warm1"]);
    s.ack(Endpoints);
    s.ack(Cluster);
    s.subscribe(Cluster, &["10.96.0.5:80"], &[]);
    assert_eq!(s.says(), ["Cluster 10.96.0.5:801"]);
    s.subscribe(Endpoints, &["10.96.0.5:80"], &[]);
    assert_eq!(s.says(), ["Endpoints 10.96.0.5:801"]);
    s.ack(Endpoints);
    s.ack(Cluster);
    s.publish([put(Endpoints, "10.96.0.5:80", 2), put(Cluster, "never-asked", 1), put(Endpoints, "never-asked", 1)]);
    assert_eq!(s.says(), ["Endpoints 10.96.0.5:802"]);
    s.ack(Endpoints);
    assert_eq!(s.session.settled(), Some(s.snapshot.number()));
}
