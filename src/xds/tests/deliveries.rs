//! What the ledger tells of changes, as proxies answer them.

use std::time::Duration;

use prometheus_client::registry::Registry as Metrics;

use super::*;
use crate::mesh::{Kind, ObjectRef, PodKey, ProxyId};
use crate::snapshot::ResourceType::Listener;
use crate::snapshot::{Pushed, Resource, View};
use crate::xds::Canary;
use crate::xds::status::{Answers, ObjectDelivery};

fn object(kind: Kind, name: &str) -> ObjectRef {
    ObjectRef { kind, namespace: Some("shop".into()), name: name.into() }
}

/// A cluster that is made for a Service of the same name.
fn cluster(name: &str, content: u8) -> Change {
    let made = Resource::clone(&resource(Cluster, name, content));
    Change::Put(Arc::new(Resource { origin: Some(object(Kind::Service, name)), ..made }))
}

/// Pod shop/NAME is known, and everything is pushed to it; its own listener has this content, if any.
fn pod(name: &str, listener: Option<u8>) -> Change {
    let own = listener.map(|content| {
        let made = Resource::clone(&resource(Listener, "inbound", content));
        Arc::new(Resource { origin: Some(object(Kind::Pod, name)), ..made })
    });
    let own = own.into_iter().collect();
    Change::PutView(id(name), Arc::new(View { own, pushed: Pushed::All }))
}

fn id(name: &str) -> ProxyId {
    ProxyId(PodKey::new("shop", name))
}

fn delivery(registry: &Registry, of: &ObjectRef) -> ObjectDelivery {
    let mut found = registry.deliveries(&|object| object == Some(of));
    assert_eq!(found.len(), 1, "of {of}: {found:?}");
    found.remove(0)
}

/// The answers to what changed of an object, when they are as expected.
async fn answers(registry: &Registry, of: &ObjectRef, expected: impl Fn(&Answers) -> bool) -> Answers {
    let poll = async {
        loop {
            let found = delivery(registry, of).answers;
            if expected(&found) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(10), poll).await;
    found.unwrap_or_else(|_| panic!("still {:?}", delivery(registry, of)))
}

async fn converged(rig: &Rig, number: u64) {
    let mut acknowledged = rig.registry.acknowledged();
    let wait = acknowledged.wait_for(|done| done.is_some_and(|done| done.number >= number));
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("in time").expect("a registry");
}

/// How many changes the histogram has counted.
fn counted(registry: &Registry) -> u64 {
    let (mut metrics, mut text) = (Metrics::default(), String::new());
    metrics.register("d", "", registry.delivery_seconds());
    prometheus_client::encoding::text::encode(&mut text, &metrics).expect("text");
    text.lines().find_map(|line| line.strip_prefix("d_count ")).expect("a count").parse().expect("a number")
}

#[tokio::test]
async fn what_is_refused_is_held_back_and_told_with_its_object_and_the_words_of_the_proxy() {
    let rig = Rig::start([pod("web", None), cluster("a", 1)]).await;
    let mut proxy = rig.pod("web").await;
    let number = rig.publish([cluster("a", 2)]);
    let bad = proxy.next().await.expect("the change");
    proxy.refuse(&bad, "no such filter").await;
    converged(&rig, number).await;

    let held = rig.registry.held_back();
    let service = object(Kind::Service, "a");
    assert_eq!(held.len(), 1);
    assert_eq!(
        (held[0].origin.as_ref(), &held[0].by, &*held[0].message),
        (Some(&service), &id("web"), "no such filter")
    );
    let found = delivery(&rig.registry, &service);
    assert_eq!((found.answers.proxies, found.answers.acknowledged, found.answers.took), (1, 0, None));
    assert_eq!((&found.answers.refusals[0].proxy, &*found.answers.refusals[0].message), (&id("web"), "no such filter"));
    assert_eq!(found.resources[0].held_back.as_ref().map(|held| held.version), Some(held[0].version));
    assert_eq!(found.resources[0].version, Some(resource(Cluster, "a", 1).version), "it stays as it was");

    let number = rig.publish([cluster("a", 3)]);
    let good = proxy.next().await.expect("the change");
    proxy.ack(&good).await;
    converged(&rig, number).await;
    assert_eq!(rig.registry.held_back(), []);
    let found = delivery(&rig.registry, &service).answers;
    assert_eq!((found.proxies, found.acknowledged, found.refusals.len()), (1, 1, 0));
    assert!(found.took.is_some());
    drop(proxy);
    rig.stop().await;
}

#[tokio::test]
async fn what_was_refused_at_its_first_appearance_is_told_too() {
    let rig = Rig::start([pod("web", None), cluster("a", 1)]).await;
    let mut proxy = rig.pod("web").await;
    let number = rig.publish([cluster("b", 1)]);
    let bad = proxy.next().await.expect("the change");
    proxy.refuse(&bad, "no such filter").await;
    converged(&rig, number).await;
    let found = delivery(&rig.registry, &object(Kind::Service, "b"));
    assert_eq!((found.answers.acknowledged, found.resources[0].version), (0, None));
    assert!(found.resources[0].held_back.is_some());
    drop(proxy);
    rig.stop().await;
}

#[tokio::test]
async fn what_one_proxy_alone_refuses_is_told_as_its_refusal() {
    let rig = Rig::start([pod("web", None), pod("cart", None), cluster("a", 1)]).await;
    let (mut web, mut cart) = (rig.pod("web").await, rig.pod("cart").await);
    let service = object(Kind::Service, "a");
    answers(&rig.registry, &service, |found| found.acknowledged == 2).await;
    let number = rig.publish([cluster("a", 2)]);
    let response = cart.next().await.expect("the change");
    cart.ack(&response).await;
    answers(&rig.registry, &service, |found| found.acknowledged == 1).await;
    let response = web.next().await.expect("the change");
    web.refuse(&response, "too old an Envoy").await;
    converged(&rig, number).await;
    assert_eq!(rig.registry.held_back(), [], "the other has it");
    let found = delivery(&rig.registry, &service).answers;
    assert_eq!((found.proxies, found.acknowledged, found.pending, found.refusing), (2, 1, 0, 1));
    assert_eq!((&found.refusals[0].proxy, &*found.refusals[0].message), (&id("web"), "too old an Envoy"));
    drop((web, cart));
    rig.stop().await;
}

#[tokio::test]
async fn a_stalled_proxy_is_named_and_each_change_is_counted_once_at_its_last_answer() {
    let rig = Rig::start([pod("web", None), pod("cart", None), cluster("a", 1)]).await;
    let (mut web, mut cart) = (rig.pod("web").await, rig.pod("cart").await);
    let service = object(Kind::Service, "a");
    answers(&rig.registry, &service, |found| found.acknowledged == 2).await;
    assert_eq!(counted(&rig.registry), 0, "what a proxy gets when it connects is no change");

    let number = rig.publish([cluster("a", 2)]);
    let response = web.next().await.expect("the change");
    web.ack(&response).await;
    let found = answers(&rig.registry, &service, |found| found.acknowledged == 1).await;
    assert_eq!((found.pending, found.pending_proxies, found.took), (1, vec![id("cart")], None));
    assert_eq!(counted(&rig.registry), 0);

    let response = cart.next().await.expect("the change");
    cart.ack(&response).await;
    converged(&rig, number).await;
    let found = delivery(&rig.registry, &service).answers;
    assert_eq!((found.acknowledged, found.pending), (2, 0));
    assert!(found.took.is_some());
    assert_eq!(counted(&rig.registry), 1);
    let number = rig.publish([put(Endpoints, "nobody's", 1)]);
    converged(&rig, number).await;
    assert_eq!(counted(&rig.registry), 1, "it concerned nobody");
    drop((web, cart));
    rig.stop().await;
}

#[tokio::test]
async fn those_who_wait_while_a_few_try_a_change_are_pending() {
    let rig = Rig::start([pod("web", None), pod("cart", None), cluster("a", 1)]).await;
    rig.registry.set_canary(Canary { proxies: 1, ..Canary::default() });
    let (mut web, mut cart) = (rig.pod("web").await, rig.pod("cart").await);
    let service = object(Kind::Service, "a");
    answers(&rig.registry, &service, |found| found.acknowledged == 2).await;
    let number = rig.publish([cluster("a", 2)]);
    let found = answers(&rig.registry, &service, |found| found.sent == 1).await;
    assert_eq!((found.proxies, found.acknowledged, found.pending, found.took), (2, 0, 2, None));
    for proxy in [&mut web, &mut cart] {
        let response = proxy.next().await.expect("the change");
        proxy.ack(&response).await;
    }
    converged(&rig, number).await;
    let found = delivery(&rig.registry, &service).answers;
    assert_eq!((found.sent, found.acknowledged, found.pending), (2, 2, 0));
    drop((web, cart));
    rig.stop().await;
}

#[tokio::test]
async fn what_a_proxy_has_for_itself_is_told_of_its_pod() {
    let rig = Rig::start([pod("web", Some(1)), pod("cart", Some(1)), cluster("a", 1)]).await;
    let mut web = rig.pod("web").await;
    let asks = DeltaDiscoveryRequest { node: None, ..request(Listener.type_url(), &[]) };
    web.requests.send(asks).await.expect("an open stream");
    let response = web.next().await.expect("its listener");
    web.ack(&response).await;
    let its = object(Kind::Pod, "web");
    answers(&rig.registry, &its, |found| found.acknowledged == 1).await;
    let number = rig.publish([pod("web", Some(2))]);
    let found = answers(&rig.registry, &its, |found| found.pending == 1).await;
    assert_eq!((found.proxies, found.pending_proxies), (1, vec![id("web")]));
    let response = web.next().await.expect("the change");
    web.ack(&response).await;
    converged(&rig, number).await;
    let found = delivery(&rig.registry, &its);
    assert_eq!((found.answers.acknowledged, found.resources.len()), (1, 1));
    assert_eq!(found.resources[0].proxy, Some(id("web")));
    assert_eq!(delivery(&rig.registry, &object(Kind::Pod, "cart")).answers.proxies, 0, "it is not connected");
    let number = rig.publish([Change::RemoveView(id("cart"))]);
    converged(&rig, number).await;
    assert_eq!(rig.registry.deliveries(&|of| of == Some(&object(Kind::Pod, "cart"))), []);
    drop(web);
    rig.stop().await;
}
