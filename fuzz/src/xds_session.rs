//! Drives one xDS session with arbitrary requests, snapshots and time. It must not panic, must come to rest after each
//! step, and must say nothing more than once it has.
//!
//! The input is a list of steps: a byte that says which, then its operands. Requests are either built from the names
//! and types that the snapshot knows, so that the deep paths are reached, or decoded from the input as they are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use prost::Message;
use tokio::sync::watch;
use weft::mesh::{PodKey, ProxyId, ServiceAccountKey, SpiffeId, TrustDomain};
use weft::snapshot::{Change, Pushed, Resource, ResourceName, ResourceType, Snapshot, View};
use weft::xds::auth::Secrets;
use weft::xds::session::{Patience, Protocol, Session};
use weft::xds::wire;

const NAMES: [&str; 8] = ["a", "b", "c", "*", "10.96.0.5:80", "workload", "", "mesh-root"];

#[derive(Debug)]
struct OneSecret;

impl Secrets for OneSecret {
    fn secret(&self, _: &SpiffeId, _: &ProxyId, name: &ResourceName) -> Option<Arc<Resource>> {
        let body = bytes::Bytes::from_static(b"certificate");
        (name.as_str() == "workload").then(|| Arc::new(Resource::new(ResourceType::Secret, "workload", body, None)))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::Sender::new(0).subscribe()
    }
}

/// Reads the input; at its end everything is 0.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first)
    }

    fn kind(&mut self) -> ResourceType {
        ResourceType::ALL[self.byte() % ResourceType::ALL.len()]
    }

    fn names(&mut self) -> Vec<String> {
        let bits = self.byte();
        NAMES.iter().enumerate().filter(|(n, _)| bits >> n & 1 == 1).map(|(_, name)| name.to_string()).collect()
    }

    fn raw(&mut self) -> &[u8] {
        let length = self.byte().min(self.0.len());
        let (raw, rest) = self.0.split_at(length);
        self.0 = rest;
        raw
    }
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let protocol = if input.byte() % 2 == 0 { Protocol::Delta } else { Protocol::StateOfTheWorld };
    let proxy = ProxyId(PodKey::new("shop", "web"));
    let identity = SpiffeId::new(TrustDomain::default(), ServiceAccountKey::new("shop", "web"));
    let mut session = Session::new(protocol, proxy.clone(), identity, Arc::new(OneSecret), Patience::default());
    let mut snapshot = Snapshot::empty();
    let mut nonces = vec![String::new()];
    let start = Instant::now();
    let mut now = start;
    while !input.0.is_empty() {
        match input.byte() % 8 {
            0 => {
                let (kind, name, content) = (input.kind(), NAMES[input.byte() % NAMES.len()], input.byte() % 4);
                let body = bytes::Bytes::from(vec![content as u8]);
                let change = match content {
                    0 => Change::Remove(kind, name.into()),
                    _ => Change::Put(Arc::new(Resource::new(kind, name, body, None))),
                };
                snapshot = snapshot.with([change]);
                session.publish(Arc::new(snapshot.clone()));
            }
            1 => {
                let names = input.names();
                let pushed = match names.len() {
                    0 => Pushed::All,
                    _ => Pushed::Only(Arc::new(names.into_iter().map(ResourceName::from).collect())),
                };
                let view = View { own: Vec::new(), pushed };
                let change = match input.byte() % 8 {
                    0 => Change::RemoveView(proxy.clone()),
                    _ => Change::PutView(proxy.clone(), Arc::new(view)),
                };
                snapshot = snapshot.with([change]);
                session.publish(Arc::new(snapshot.clone()));
            }
            2 => now += Duration::from_secs(input.byte() as u64 % 20),
            3 => session.secrets_changed(),
            4 => match protocol {
                Protocol::Delta => {
                    let _ = DeltaDiscoveryRequest::decode(input.raw()).map(|request| session.delta(request, now));
                }
                Protocol::StateOfTheWorld => {
                    let _ = DiscoveryRequest::decode(input.raw()).map(|r| session.state_of_the_world(r, now));
                }
            },
            _ => {
                let type_url = input.kind().type_url().to_owned();
                let (names, dropped) = (input.names(), input.names());
                let response_nonce = nonces[input.byte() % nonces.len()].clone();
                let error_detail = (input.byte() % 4 == 0).then(Default::default);
                let result = match protocol {
                    Protocol::Delta => {
                        let claims = input.names().into_iter().map(|name| (name, "0000000000000000".to_owned()));
                        let request = DeltaDiscoveryRequest {
                            type_url,
                            resource_names_subscribe: names,
                            resource_names_unsubscribe: dropped,
                            initial_resource_versions: claims.collect(),
                            response_nonce,
                            error_detail,
                            ..Default::default()
                        };
                        session.delta(request, now)
                    }
                    Protocol::StateOfTheWorld => {
                        let request = DiscoveryRequest {
                            type_url,
                            resource_names: names,
                            response_nonce,
                            error_detail,
                            ..Default::default()
                        };
                        session.state_of_the_world(request, now)
                    }
                };
                assert!(result.is_ok(), "these names are within the limits");
            }
        }
        let mut said = 0;
        while let Some(response) = session.poll(now) {
            nonces.push(response.nonce.clone());
            let _ = wire::encode(protocol, &response);
            said += 1;
            assert!(said < 200, "the session does not come to rest");
        }
        let _ = session.deadline(now);
        let status = session.status(|at| std::time::UNIX_EPOCH + at.saturating_duration_since(start));
        assert!(status.values().all(|status| status.subscribed < 300 && status.resources < 300));
    }
}
