//! What a client refuses, and what becomes of the rest.

use super::*;
use crate::snapshot::{Pushed, View};

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
fn a_refused_first_response_is_followed_by_what_is_good_so_that_an_earlier_streams_leftovers_go() {
    let mut s = Script::sotw([eager(), put(Cluster, "bad", 1), put(Cluster, "good", 1)]);
    s.names(Cluster, &[]);
    assert_eq!(s.says(), ["Cluster bad1 good1"]);
    s.nack(Cluster);
    assert_eq!(s.says(), ["Cluster good1"], "the client may have others, which go only with a response that it takes");
    s.ack(Cluster);
    assert_eq!(s.says(), ["Cluster bad1 good1"]);
    s.nack(Cluster);
    assert_eq!(s.says(), ["Cluster good1"]);
    s.nack(Cluster);
    assert_eq!(s.says(), QUIET, "a client that refuses even this is left alone");
}

#[test]
fn a_resource_that_only_the_proxy_had_goes_although_the_one_beside_it_is_refused() {
    let alone = |own| Change::PutView(proxy(), Arc::new(View { own, pushed: Pushed::All }));
    let mut s = Script::sotw([alone(vec![resource(Listener, "inbound", 1)])]);
    s.names(Listener, &[]);
    assert_eq!(s.says(), ["Listener inbound1"]);
    s.ack(Listener);
    s.publish([alone(vec![]), put(Listener, "bad", 1)]);
    assert_eq!(s.says(), ["Listener bad1"]);
    s.nack(Listener);
    assert_eq!(s.says(), ["Listener"]);
}

#[test]
fn two_responses_with_the_same_bad_resource_and_a_missing_name_come_to_rest() {
    let mut s = Script::sotw([eager(), put(Listener, "bad", 1)]);
    s.names(Listener, &["bad", "missing"]);
    assert_eq!(s.says(), ["Listener bad1"]);
    let first = s.nonce(Listener);
    s.names_with_nonce(Listener, &["bad", "missing", "late"], "", None);
    s.publish([put(Cluster, "other", 1)]);
    assert_eq!(s.says(), ["Listener bad1"]);
    s.answer(Listener, first, Some(refusal()));
    assert_eq!(s.says(), QUIET, "the second is on its way");
    s.nack(Listener);
    assert_eq!(s.says(), ["Listener"]);
    s.ack(Listener);
    assert_eq!(s.says(), QUIET);
}

#[test]
fn rule_34_what_was_refused_with_others_may_be_there_although_its_next_version_is_refused_too() {
    let mut s = Script::delta([eager(), put(Cluster, "a", 1), put(Cluster, "bad", 9)]);
    s.subscribe(Cluster, &[], &[]);
    assert_eq!(s.says(), ["Cluster a1 bad9"]);
    let first = s.nonce(Cluster);
    s.publish([put(Cluster, "a", 9)]);
    assert_eq!(s.says(), ["Cluster a9"]);
    let second = s.nonce(Cluster);
    s.answer(Cluster, first, Some(refusal()));
    assert_eq!(s.says(), ["Cluster bad9"]);
    s.answer(Cluster, second, Some(refusal()));
    s.nack(Cluster);
    s.publish([gone(Cluster, "a"), gone(Cluster, "bad")]);
    assert_eq!(s.says(), QUIET);
    s.wait(Patience::default().removal);
    assert_eq!(s.says(), ["Cluster -a -bad"], "the client may have taken what came beside the bad one");
}

#[test]
fn rule_31_a_cluster_that_is_stated_as_it_was_before_a_refusal_gets_its_endpoints_again() {
    let endpoints = [put(Endpoints, "a", 1), put(Endpoints, "b", 1)];
    let mut s = Script::sotw([eager(), put(Cluster, "a", 1), put(Cluster, "b", 1)].into_iter().chain(endpoints));
    for (kind, names) in [(Cluster, &[][..]), (Endpoints, &["a", "b"])] {
        s.names(kind, names);
        s.says();
        s.ack(kind);
    }
    s.publish([put(Cluster, "a", 2), put(Cluster, "b", 9)]);
    assert_eq!(s.says(), ["Cluster a2 b9", "Endpoints a1 b1"]);
    s.ack(Endpoints);
    s.nack(Cluster);
    assert_eq!(s.says(), ["Cluster a1 b9", "Endpoints a1 b1"], "a was taken, and is now another again");
    s.ack(Endpoints);
    s.nack(Cluster);
    assert_eq!(s.says(), ["Cluster a2 b1", "Endpoints a1 b1"]);
}
