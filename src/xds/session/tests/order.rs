//! What is sent before what, and what waits for whom.

use super::*;

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
fn rule_28_a_cluster_stays_for_the_requests_that_were_routed_to_it_and_nobody_waits_for_that() {
    let mut s = settled(Protocol::Delta);
    s.session.patience.lingering = Duration::from_secs(3);
    s.publish([put(Route, "r", 2), gone(Cluster, "a")]);
    assert_eq!(s.says(), ["Route r2"]);
    assert_eq!(s.session.settled(), None);
    s.ack(Route);
    assert_eq!(s.says(), QUIET);
    assert_eq!((s.session.settled(), s.session.answered()), (Some(2), Some(2)));
    assert_eq!(s.session.deadline(s.now), Some(s.now + Duration::from_secs(3)));
    s.publish([put(Cluster, "a", 1)]);
    s.publish([gone(Cluster, "a")]);
    assert_eq!(s.says(), QUIET, "it has been there all the time");
    s.publish([put(Route, "r", 3)]);
    assert_eq!(s.says(), ["Route r3"]);
    s.wait(Duration::from_secs(3));
    assert_eq!(s.says(), ["Cluster -a"], "newer routes do not use it either");
    s.publish([put(Cluster, "a", 1)]);
    assert_eq!(s.says(), ["Cluster a1", "Endpoints a1"]);
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
fn rule_28_endpoints_that_come_back_are_left_alone_before_their_removal_and_sent_again_after_it() {
    let mut s = settled(Protocol::Delta);
    s.publish([gone(Endpoints, "a")]);
    assert_eq!(s.says(), ["Endpoints -a"], "no route is on its way");
    s.publish([put(Endpoints, "a", 1)]);
    assert_eq!(s.says(), ["Endpoints a1"], "although the removal is not acknowledged");
    s.ack(Endpoints);
    s.publish([gone(Endpoints, "a"), put(Route, "r", 2)]);
    assert_eq!(s.says(), ["Route r2"]);
    s.publish([put(Endpoints, "a", 1)]);
    assert_eq!(s.says(), QUIET);
    s.ack(Route);
    assert_eq!(s.says(), QUIET);
}

#[test]
fn rule_31_the_endpoints_of_a_cluster_in_use_stay_until_the_one_that_replaces_it_is_warm() {
    let with = |content, endpoints: &str| {
        let cluster = (*resource(Cluster, "a", content)).clone();
        Change::Put(Arc::new(cluster.with_endpoints(endpoints.into())))
    };
    let mut s = Script::delta([eager(), with(1, "a@1"), put(Endpoints, "a@1", 1)]);
    s.subscribe(Cluster, &[], &[]);
    s.subscribe(Listener, &[], &[]);
    assert_eq!(s.says(), ["Cluster a1"]);
    s.subscribe(Endpoints, &["a@1"], &[]);
    assert_eq!(s.says(), ["Endpoints a@11"]);
    s.ack(Endpoints);
    s.ack(Cluster);
    assert_eq!(s.says(), ["Listener"]);
    s.ack(Listener);
    s.publish([with(2, "a@2"), put(Endpoints, "a@2", 2), gone(Endpoints, "a@1")]);
    assert_eq!(s.says(), ["Cluster a2"]);
    s.subscribe(Endpoints, &["a@2"], &[]);
    assert_eq!(s.says(), ["Endpoints a@22"], "the old ones are still in use");
    s.ack(Endpoints);
    assert_eq!(s.says(), QUIET);
    s.ack(Cluster);
    s.subscribe(Endpoints, &[], &["a@1"]);
    assert_eq!(s.says(), QUIET, "the client has let go of them itself");
    assert_eq!(s.session.settled(), Some(s.snapshot.number()));
}

#[test]
fn rule_30_in_state_of_the_world_too_endpoints_do_not_wait_for_the_acknowledgement_of_clusters() {
    let mut s = settled(Protocol::StateOfTheWorld);
    s.publish([put(Cluster, "a", 2), put(Endpoints, "a", 2)]);
    assert_eq!(s.says(), ["Cluster a2", "Endpoints a2"]);
}

#[test]
fn rule_33_in_state_of_the_world_too_routes_wait_until_their_clusters_are_warm() {
    let mut s = settled(Protocol::StateOfTheWorld);
    s.publish([put(Cluster, "b", 1), put(Route, "r", 2)]);
    assert_eq!(s.says(), ["Cluster a1 b1"]);
    s.ack(Cluster);
    assert_eq!(s.says(), ["Route r2"]);
}
