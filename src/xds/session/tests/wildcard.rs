//! The wildcard, alone and beside names.

use super::*;

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

#[test]
fn a_wildcard_that_is_added_takes_back_what_was_dropped_on_its_way() {
    let mut s = Script::delta([on_demand(&["b"]), put(Cluster, "a", 1), put(Cluster, "b", 1)]);
    s.subscribe(Cluster, &["a"], &[]);
    assert_eq!(s.says(), ["Cluster a1"]);
    s.subscribe(Cluster, &[], &["a"]);
    s.subscribe(Cluster, &["*"], &[]);
    assert_eq!(s.says(), ["Cluster b1 -a"], "a client that reads the first only now takes it for a part of everything");
}
