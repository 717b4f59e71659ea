//! One stream: its nonces, its limits, and what it answers in any case.

use super::*;

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
fn rule_02_a_request_says_which_type_it_is_of() {
    for mut s in [Script::delta([eager()]), Script::sotw([eager()])] {
        let error = match s.delta {
            true => s.session.delta(DeltaDiscoveryRequest::default(), s.now),
            false => s.session.state_of_the_world(DiscoveryRequest::default(), s.now),
        };
        assert_eq!(error, Err(RequestError::NoType));
    }
}

#[test]
fn rule_04_a_nonce_names_the_snapshot_and_is_unique_in_its_stream() {
    for mut s in [Script::delta([eager(), put(Route, "r", 1)]), Script::sotw([eager(), put(Route, "r", 1)])] {
        match s.delta {
            true => s.subscribe(Route, &["r"], &[]),
            false => s.names(Route, &["r"]),
        }
        s.says();
        assert_eq!(s.nonce(Route), s.snapshot.number().to_string());
        s.ack(Route);
        match s.delta {
            true => s.subscribe(Route, &["r"], &[]),
            false => s.names(Route, &["other", "r"]),
        }
        s.publish([put(Route, "r", 2)]);
        s.says();
        assert_eq!(s.nonce(Route), s.snapshot.number().to_string());
    }
}

#[test]
fn rule_05_in_both_forms_an_unknown_proxy_is_told_nothing() {
    for protocol in [Protocol::Delta, Protocol::StateOfTheWorld] {
        let mut s = Script::without_snapshot(protocol);
        match s.delta {
            true => s.subscribe(Cluster, &[], &[]),
            false => s.names(Cluster, &[]),
        }
        assert_eq!(s.says(), QUIET);
        s.publish([put(Cluster, "a", 1)]);
        assert_eq!(s.says(), QUIET, "an empty answer would take away what it has");
        s.publish([eager()]);
        assert_eq!(s.says(), ["Cluster a1"]);
    }
}

#[test]
fn rule_29_a_changed_secret_goes_before_the_clusters_that_may_refer_to_it() {
    for protocol in [Protocol::Delta, Protocol::StateOfTheWorld] {
        let mut s = Script::new(protocol, [eager(), put(Cluster, "a", 1)]);
        s.secrets.set("web", "workload", 1);
        for (kind, names) in [(Cluster, &[][..]), (Secret, &["workload"])] {
            match s.delta {
                true => s.subscribe(kind, names, &[]),
                false => s.names(kind, names),
            }
        }
        assert_eq!(s.says(), ["Secret workload1", "Cluster a1"], "on the same stream");
        s.ack(Secret);
        s.ack(Cluster);
        s.secrets.set("web", "workload", 2);
        s.session.secrets_changed();
        s.publish([put(Cluster, "a", 2)]);
        assert_eq!(s.says(), ["Secret workload2", "Cluster a2"]);
    }
}

#[test]
fn rule_35_nothing_unchanged_is_sent_in_either_form() {
    for protocol in [Protocol::Delta, Protocol::StateOfTheWorld] {
        let mut s = settled(protocol);
        s.publish([put(Endpoints, "not subscribed", 1), put(Route, "other", 1)]);
        assert_eq!(s.says(), QUIET);
        s.publish([put(Endpoints, "a", 2), put(Route, "r", 1)]);
        assert_eq!(s.says(), ["Endpoints a2"]);
    }
}
