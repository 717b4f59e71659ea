//! State of the world: requests and responses say what holds.

use super::*;

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
fn rule_41_a_cluster_that_is_still_named_is_stated_again_when_it_comes_back() {
    let mut s = Script::sotw([on_demand(&[]), put(Cluster, "a", 1), put(Listener, "l", 1)]);
    s.names(Listener, &[]);
    s.names(Cluster, &["a"]);
    assert_eq!(s.says(), ["Cluster a1"]);
    s.ack(Cluster);
    assert_eq!(s.says(), ["Listener l1"]);
    s.ack(Listener);
    s.publish([gone(Cluster, "a")]);
    assert_eq!(s.says(), ["Cluster"]);
    s.ack(Cluster);
    s.publish([put(Cluster, "a", 2)]);
    assert_eq!(s.says(), ["Cluster a2"], "the client does not ask again");
}

#[test]
fn rule_42_a_reconnection_names_the_wildcard_and_what_was_asked_for() {
    let mut s = Script::sotw([on_demand(&["pushed"]), put(Cluster, "asked", 1), put(Cluster, "pushed", 1)]);
    s.names_with_nonce(Cluster, &["*", "asked"], "", None);
    assert_eq!(s.says(), ["Cluster asked1 pushed1"]);
}
