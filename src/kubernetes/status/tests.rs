use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::conditions::{Difference, accepted, delivered, difference, settled};
use super::*;
use crate::inspect::answers::ReplicaAnswers;
use crate::mesh::{PodKey, ProxyId};
use crate::snapshot::{ResourceType, Version};
use crate::xds::status::{Answers, ResourceRefusal};

fn seen(generation: i64, conditions: Vec<Condition>) -> Observed {
    Observed {
        api_version: "weft.dev/v1alpha1",
        plural: "egresses".into(),
        uid: "u".into(),
        generation,
        conditions,
        at: Instant::now(),
    }
}

fn object(kind: Kind, name: &str) -> ObjectRef {
    ObjectRef { kind, namespace: Some("shop".into()), name: name.into() }
}

/// What all proxies have answered to a change.
fn whole(proxies: u64, pending: &[&str], took: Option<u64>) -> Whole {
    let pending_proxies = pending.iter().map(|pod| ProxyId(PodKey::new("shop", *pod))).collect::<Vec<_>>();
    let pending = pending_proxies.len() as u64;
    let took = took.map(Duration::from_millis);
    let answers = Answers {
        proxies,
        sent: proxies,
        acknowledged: proxies - pending,
        pending,
        pending_proxies,
        took,
        ..Answers::default()
    };
    Whole::of(ReplicaAnswers { answers, changed: true })
}

fn line(wanted: &Wanted) -> String {
    format!("{} {} {}: {}", wanted.kind, if wanted.holds { "True" } else { "False" }, wanted.reason, wanted.message)
}

#[test]
fn accepted_says_whether_and_how_far_an_object_is_used() {
    let error = Diagnostic::error("spec.weight", "it is negative", "use 0").about(object(Kind::TrafficSplit, "s"));
    let warning = Diagnostic::warning("spec.x", "unknown", "remove it");
    for (found, expected) in [
        (vec![], "Accepted True Accepted: it is used"),
        (vec![warning.clone()], "Accepted True PartlyUsed: spec.x: unknown; remove it"),
        (vec![warning, error], "Accepted False Rejected: spec.weight: it is negative; use 0"),
    ] {
        assert_eq!(line(&accepted(&found)), expected);
    }
}

#[test]
fn delivered_says_who_has_it_and_how_long_it_took() {
    let refused = ResourceRefusal {
        proxy: ProxyId(PodKey::new("shop", "cart-1")),
        at: std::time::SystemTime::UNIX_EPOCH,
        kind: ResourceType::Route,
        name: "outbound".into(),
        version: Version::parse("0000000000000000").unwrap(),
        message: "no such filter\n".to_owned(),
    };
    let refused = |mut whole: Whole| {
        whole.answers.refusals = vec![refused.clone()];
        whole
    };
    let unchanged = |whole: Whole| Whole { changed: false, ..whole };
    let unknown = |mut whole: Whole, of: &[&str]| {
        whole.unknown = of.iter().map(|replica| format!("replica {replica} does not answer")).collect();
        whole
    };
    for (whole, expected) in [
        (Whole::default(), "Delivered True Unused: no proxy uses it"),
        (whole(0, &[], Some(0)), "Delivered True Unused: no proxy uses it"),
        (whole(37, &[], Some(412)), "Delivered True Delivered: 37/37 proxies, 0.4 s"),
        (whole(37, &[], Some(12)), "Delivered True Delivered: 37/37 proxies, 12 ms"),
        (unchanged(whole(37, &[], Some(412))), "Delivered True Delivered: 37/37 proxies"),
        (whole(3, &["b"], None), "Delivered False Pending: 2/3 proxies; waiting for b.shop"),
        (
            whole(9, &["a", "b", "c", "d", "e"], None),
            "Delivered False Pending: 4/9 proxies; waiting for a.shop, b.shop, c.shop and 2 more",
        ),
        (whole(3, &[], None), "Delivered False Pending: 3/3 proxies"),
        (refused(whole(3, &[], None)), "Delivered False Refused: cart-1.shop refuses it: no such filter"),
        (
            unknown(whole(37, &[], Some(412)), &["two"]),
            "Delivered False Pending: 37/37 proxies; replica two does not answer",
        ),
        (unknown(Whole::default(), &["two"]), "Delivered False Pending: 0/0 proxies; replica two does not answer"),
        (
            unknown(whole(3, &["b"], None), &["two", "three"]),
            "Delivered False Pending: 2/3 proxies; waiting for b.shop; replica two does not answer; replica three does \
             not answer",
        ),
        (
            refused(unknown(whole(3, &[], None), &["two"])),
            "Delivered False Refused: cart-1.shop refuses it: no such filter",
        ),
    ] {
        assert_eq!(line(&delivered(&whole)), expected);
    }
}

#[test]
fn what_was_delivered_or_is_not_used_is_not_looked_up() {
    let good = accepted(&[]);
    let done = delivered(&whole(2, &[], Some(1)));
    let waiting = delivered(&whole(2, &["a"], None));
    let after =
        |generation, wanted: &Wanted| settled(&seen(generation, vec![wanted.condition(&seen(1, vec![]))]), &good);
    assert_eq!(after(1, &done), Some(done.clone()));
    assert_eq!(after(2, &done), None, "another generation");
    assert_eq!(after(1, &waiting), None);
    let bad = accepted(&[Diagnostic::error("spec", "no", "yes")]);
    assert_eq!(settled(&seen(1, vec![]), &bad).map(|wanted| wanted.reason), Some("NotAccepted"));
}

#[test]
fn only_what_differs_is_written_and_the_time_of_a_transition_is_kept() {
    let long_ago = Time(Timestamp::UNIX_EPOCH);
    let good = accepted(&[]);
    let condition = Condition { last_transition_time: long_ago.clone(), ..good.condition(&seen(1, vec![])) };
    let there = seen(1, vec![condition.clone()]);
    assert_eq!(difference(&there, std::slice::from_ref(&good)), Difference::None);
    assert_eq!(difference(&seen(2, vec![condition.clone()]), std::slice::from_ref(&good)), Difference::Verdict);
    assert_eq!(difference(&seen(1, vec![]), std::slice::from_ref(&good)), Difference::Verdict);
    let warned = accepted(&[Diagnostic::warning("spec", "a", "b")]);
    assert_eq!(difference(&there, std::slice::from_ref(&warned)), Difference::Verdict);
    assert_eq!(warned.condition(&there).last_transition_time, long_ago, "it holds as it held");
    let bad = accepted(&[Diagnostic::error("spec", "a", "b")]);
    assert!(bad.condition(&there).last_transition_time.0 > long_ago.0);
    let waits = |pending: &[&str]| delivered(&whole(3, pending, None));
    let there = seen(1, vec![waits(&["a", "b"]).condition(&there)]);
    assert_eq!(difference(&there, &[waits(&["a"])]), Difference::Progress);
    assert_eq!(difference(&there, &[waits(&["a", "b"])]), Difference::None);
}

#[test]
fn an_event_is_named_by_what_it_says_of_which_object() {
    let of = |uid: &str, name: &str, namespace: Option<&str>| ObjectReference {
        uid: Some(uid.to_owned()),
        name: Some(name.to_owned()),
        namespace: namespace.map(str::to_owned),
        ..ObjectReference::default()
    };
    let saying = |text: &str| Saying::of(&Diagnostic::error("spec", text, "do"));
    let name = |of: &ObjectReference, saying: &Saying| events::event(of, saying, "one").metadata.name.unwrap();
    let cart = of("u", "cart", Some("shop"));
    assert_eq!(name(&cart, &saying("a")), name(&cart, &saying("a")));
    assert_ne!(name(&cart, &saying("a")), name(&cart, &saying("b")));
    assert_ne!(name(&cart, &saying("a")), name(&of("v", "cart", Some("shop")), &saying("a")));
    assert!(name(&of("u", &"ü".repeat(200), None), &saying("a")).len() <= 253);
    let event = events::event(&of("u", "default", None), &saying(&"long ".repeat(1_000)), "one");
    assert_eq!((event.metadata.namespace.as_deref(), event.type_.as_deref()), (Some("default"), Some("Warning")));
    assert!(event.message.unwrap().len() <= 1_024, "as the API server wants it");
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_limited_and_time_allows_for_more() {
    let mut limit = Limit::new((3, 0.5), Instant::now());
    let mut taken = |now| (0..10).filter(|_| limit.take(now)).count();
    assert_eq!(taken(Instant::now()), 3);
    tokio::time::advance(Duration::from_secs(4)).await;
    assert_eq!(taken(Instant::now()), 2);
    tokio::time::advance(Duration::from_secs(4_000)).await;
    assert_eq!(taken(Instant::now()), 3);
}
