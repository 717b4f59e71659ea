//! Scripts, each named after the rule that it holds. A response is written `Cluster a1 b2 -c`: the type, the resources
//! with their content, the removed names.

mod delta;
mod order;
mod refusals;
mod state_of_the_world;
mod stream;
mod wildcard;

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
            session: Session::new(protocol, proxy(), identity("web"), secrets.clone(), patience()),
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
            for resource in response.resources.iter() {
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
