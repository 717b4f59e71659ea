//! The incremental protocol: requests and responses say what changes.

use super::*;

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
    assert_eq!(s.says(), ["Cluster 10.96.0.5:801", "Endpoints 10.96.0.5:801"], "a request waits: both at once");
    s.subscribe(Endpoints, &["10.96.0.5:80"], &[]);
    assert_eq!(s.says(), ["Endpoints 10.96.0.5:801"]);
    s.ack(Endpoints);
    s.ack(Cluster);
    s.publish([put(Endpoints, "10.96.0.5:80", 2), put(Cluster, "never-asked", 1), put(Endpoints, "never-asked", 1)]);
    assert_eq!(s.says(), ["Endpoints 10.96.0.5:802"]);
    s.ack(Endpoints);
    assert_eq!(s.session.settled(), Some(s.snapshot.number()));
}

#[test]
fn a_cluster_that_was_pushed_before_a_reconnection_stays_although_it_is_no_longer_known_to_be_used() {
    let mut s = Script::delta([on_demand(&["a"]), put(Cluster, "a", 1), put(Cluster, "b", 2), put(Cluster, "c", 1)]);
    s.reconnect(Cluster, &["*"], &[("a", 1), ("b", 1), ("c", 1), ("gone", 1)]);
    assert_eq!(s.says(), ["Cluster b2"], "connections use them");
    s.ack(Cluster);
    s.wait(Duration::from_secs(15)); // there are no routes whose acknowledgement would end the wait (rule 28)
    assert_eq!(s.says(), ["Cluster -gone"]);
    s.ack(Cluster);
    s.publish([put(Cluster, "c", 2)]);
    assert_eq!(s.says(), ["Cluster c2"]);
    s.ack(Cluster);
    assert_eq!(s.session.status(|_| std::time::SystemTime::UNIX_EPOCH)[&Cluster].resources, 3);
    s.publish([gone(Cluster, "c")]);
    assert_eq!(s.says(), QUIET);
    s.wait(Duration::from_secs(15));
    assert_eq!(s.says(), ["Cluster -c"]);
    s.ack(Cluster);
    assert_eq!(s.session.settled(), Some(s.snapshot.number()));
}

#[test]
fn a_flood_of_first_calls_is_answered_at_once_and_in_one() {
    let mut s = Script::delta([on_demand(&[]), put(Cluster, "10.96.0.5:80", 1)]);
    s.subscribe(Cluster, &[], &[]);
    assert_eq!(s.says(), ["Cluster"]);
    s.ack(Cluster);
    for number in 0..1_000 {
        s.subscribe(Cluster, &[&format!("10.97.0.{}:{number}", number % 256)], &[]);
    }
    s.subscribe(Cluster, &["10.96.0.5:80"], &[]);
    let said = s.says();
    assert_eq!(said.len(), 1, "only the newest request is answered");
    assert!(said[0].starts_with("Cluster 10.96.0.5:801 -10.97."), "{}", said[0]);
    assert_eq!(said[0].matches(" -").count(), 1_000);
    s.ack(Cluster);
    assert_eq!(s.session.types[&Cluster].subscription.names().len(), 1_001);
    assert_eq!(s.session.settled(), Some(s.snapshot.number()));
}
