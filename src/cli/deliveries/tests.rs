use std::time::UNIX_EPOCH;

use clap::Parser;

use super::*;
use crate::inspect::proto::{ResourceDelivery, ResourceRefusal};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_370_400)
}

fn before(seconds: u64) -> Option<Timestamp> {
    Some((now() - Duration::from_secs(seconds)).into())
}

fn pod(namespace: &str, pod: &str) -> PodName {
    PodName { namespace: namespace.into(), pod: pod.into() }
}

fn answers(acknowledged: u64, proxies: u64, took: Option<u64>) -> Answers {
    let took = took.and_then(|millis| Duration::from_millis(millis).try_into().ok());
    Answers { proxies, sent: proxies, acknowledged, took, ..Default::default() }
}

fn object(kind: &str, name: &str, state: DeliveryState, answers: Answers) -> ObjectDelivery {
    let resource = |kind: ResourceType| ResourceDelivery {
        r#type: kind.into(),
        name: "10.96.0.5:80".into(),
        version: "00000000000000a1".into(),
        state: state.into(),
        changed_at: before(75),
        answers: Some(answers.clone()),
        ..Default::default()
    };
    let kinds = [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::Endpoints];
    ObjectDelivery {
        object: Some(ObjectName { kind: kind.into(), namespace: "shop".into(), name: name.into() }),
        state: state.into(),
        changed_at: before(75),
        resources: kinds.map(resource).into(),
        answers: Some(answers),
    }
}

fn every_state() -> ListDeliveriesResponse {
    let stalled = Answers { pending: 7, pending_proxies: vec![pod("shop", "web-1"); 7], ..answers(30, 37, None) };
    let tried = Answers { sent: 3, pending: 34, pending_proxies: vec![pod("shop", "web-1")], ..answers(3, 37, None) };
    let refusal = ResourceRefusal {
        proxy: Some(pod("shop", "web-1")),
        at: before(60),
        r#type: ResourceType::Listener.into(),
        name: "inbound".into(),
        version: "00000000000000a1".into(),
        message: "no such filter".into(),
    };
    let refused = Answers { refusing: 1, refusals: vec![refusal.clone()], ..answers(36, 37, Some(1_240)) };
    let mut held_back = object("Service", "mail", DeliveryState::HeldBack, answers(0, 37, None));
    held_back.resources[0].held_back = Some(HeldBack {
        object: held_back.object.clone(),
        r#type: ResourceType::Cluster.into(),
        name: "10.96.0.9:80".into(),
        version: "00000000000000b2".into(),
        proxy: Some(pod("shop", "web-2")),
        at: before(8),
        message: "a bad cluster".into(),
    });
    let mut mesh = object("", "", DeliveryState::Delivered, answers(37, 37, Some(0)));
    mesh.object = Some(ObjectName::default());
    let objects = vec![
        mesh,
        object("Service", "cart", DeliveryState::Delivered, answers(37, 37, Some(43))),
        object("Service", "catalog", DeliveryState::Pending, stalled),
        object("Service", "ledger", DeliveryState::Pending, tried),
        held_back,
        object("Pod", "web-1", DeliveryState::Refused, refused),
    ];
    ListDeliveriesResponse { objects }
}

#[test]
fn a_row_an_object_and_then_what_is_wrong() {
    insta::assert_snapshot!(text(&every_state(), now()));
    assert_eq!(
        text(&ListDeliveriesResponse::default(), now()),
        "Nothing to show. Changes are delivered as the Services and Pods that they are about: see --help.\n"
    );
}

#[test]
fn the_json_has_the_names_of_the_api() {
    let mut one = every_state();
    one.objects = one.objects.split_off(4);
    one.objects[0].resources.truncate(1);
    one.objects.truncate(1);
    insta::assert_snapshot!(output::render(Format::Json, &one, |_| String::new()).unwrap());
}

#[test]
fn an_object_is_named_as_for_kubectl() {
    let request = |words: &str| {
        let words = ["deliveries"].into_iter().chain(words.split_whitespace());
        let ListDeliveriesRequest { namespace, kind, name, pending_only } =
            Cli::try_parse_from(words).unwrap().args.request();
        (kind, name, namespace, pending_only)
    };
    let expected =
        |kind: &str, name: &str, namespace: &str, pending| (kind.into(), name.into(), namespace.into(), pending);
    assert_eq!(request(""), expected("", "", "", false));
    assert_eq!(request("service"), expected("Service", "", "", false));
    assert_eq!(request("svc/cart -n shop --pending"), expected("Service", "cart", "shop", true));
    let refused = |word: &str| Cli::try_parse_from(["deliveries", word]).map(drop).unwrap_err();
    assert_eq!(refused("servce").exit_code(), 2);
    assert!(refused("servce").to_string().contains("did you mean `service`?"), "{}", refused("servce"));
}
