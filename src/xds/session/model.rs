//! Random sessions against a small faithful client.
//!
//! The client applies responses in order, some of them late, acknowledges or refuses, subscribes and unsubscribes and
//! connects again with what it has. When nothing is on its way any more it must have exactly what it subscribes to of
//! the newest snapshot; and on the way nothing was sent that it had, unless a rule says so.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::google::rpc::Status;
use proptest::prelude::*;

use super::*;
use crate::snapshot::ResourceType::{Cluster, Endpoints, Listener, Route};
use crate::snapshot::{Change, Pushed, View};
use crate::xds::testing::*;

const KINDS: [ResourceType; 4] = [Cluster, Endpoints, Listener, Route];
const NAMES: [&str; 5] = ["a", "b", "c", "pod-1", "pod-2"];
/// The client refuses resources of this content.
const BAD: u8 = 9;

#[derive(Clone, Debug)]
enum Step {
    Publish(Vec<Change>),
    /// Subscribes to names, and drops others.
    Subscribe(ResourceType, Vec<&'static str>, Vec<&'static str>),
    Wildcard(ResourceType, bool),
    /// The session writes this many responses.
    Write(usize),
    /// The client reads and answers one response.
    Read,
    Reconnect,
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = || prop::sample::select(&KINDS[..]);
    let name = || prop::sample::select(&NAMES[..]);
    let names = || prop::collection::vec(name(), 0..3);
    let content = || prop_oneof![4 => 0u8..4, 1 => Just(BAD)];
    let pushed = names().prop_map(|names| Pushed::Only(Arc::new(names.into_iter().map(Into::into).collect())));
    let pushed = prop_oneof![Just(Pushed::All), pushed];
    let own = prop::collection::vec((kind(), name(), content()).prop_map(|(k, n, c)| resource(k, n, c)), 0..2);
    let change = prop_oneof![
        8 => (kind(), name(), content()).prop_map(|(k, n, c)| put(k, n, c)),
        4 => (kind(), name()).prop_map(|(k, n)| gone(k, n)),
        1 => (own, pushed).prop_map(|(own, pushed)| Change::PutView(proxy(), Arc::new(View { own, pushed }))),
        1 => (0u8..3).prop_map(|c| Change::Fallback(Arc::new(Pods(c)))),
    ];
    prop_oneof![
        4 => prop::collection::vec(change, 1..5).prop_map(Step::Publish),
        4 => (kind(), names(), names()).prop_map(|(k, a, b)| Step::Subscribe(k, a, b)),
        1 => (prop::sample::select(vec![Cluster, Listener]), any::<bool>()).prop_map(|(k, on)| Step::Wildcard(k, on)),
        6 => (1usize..4).prop_map(Step::Write),
        6 => Just(Step::Read),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Wait),
    ]
}

/// What the client subscribes to and has of a type.
#[derive(Default)]
struct Wants {
    started: bool,
    wildcard: bool,
    names: BTreeSet<String>,
    nonce: String,
    has: BTreeMap<String, Version>,
}

struct Model {
    protocol: Protocol,
    /// Of a response with a bad resource the good ones are applied (else nothing is).
    partial: bool,
    session: Session,
    snapshot: Arc<Snapshot>,
    now: Instant,
    wants: HashMap<ResourceType, Wants>,
    /// Written and not read.
    wire: VecDeque<Response>,
    /// What the client will have when it has read everything, to check what is sent.
    will_have: BTreeMap<(ResourceType, String), Version>,
    /// What may be sent although the client has it.
    excused: BTreeSet<(ResourceType, String)>,
    /// Clusters of an earlier stream that are kept although this one's wildcard does not contain them.
    adopted: BTreeSet<String>,
}

impl Model {
    fn new(protocol: Protocol, partial: bool) -> Self {
        let snapshot = Arc::new(Snapshot::empty().with([eager()]));
        let mut model = Self {
            protocol,
            partial,
            session: session(protocol),
            snapshot,
            now: Instant::now(),
            wants: KINDS.into_iter().map(|kind| (kind, Wants::default())).collect(),
            wire: VecDeque::new(),
            will_have: BTreeMap::new(),
            excused: BTreeSet::new(),
            adopted: BTreeSet::new(),
        };
        model.session.publish(model.snapshot.clone());
        model
    }

    fn delta(&self) -> bool {
        self.protocol == Protocol::Delta
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Publish(changes) => {
                self.snapshot = Arc::new(self.snapshot.with(changes));
                self.session.publish(self.snapshot.clone());
                self.adopt();
                if !self.delta() {
                    self.excuse_kept();
                }
            }
            Step::Subscribe(kind, add, drop) => self.subscribe(kind, &add, &drop),
            Step::Wildcard(kind, on) => self.wildcard(kind, on),
            Step::Write(count) => {
                for _ in 0..count {
                    self.write();
                }
            }
            Step::Read => {
                self.read();
            }
            Step::Reconnect => self.reconnect(),
            Step::Wait => self.now += Duration::from_secs(3),
        }
    }

    /// What is left out of the wildcard before the stream was first brought to a snapshot.
    fn adopt(&mut self) {
        let wants = &self.wants[&Cluster];
        let compared = self.session.types.get(&Cluster).is_none_or(|held| held.base.is_some());
        if self.delta() && !compared && wants.wildcard {
            let exists = |name: &&String| self.snapshot.intern(Cluster, name).is_some();
            let left_out = |name: &&String| !self.snapshot.in_wildcard(&proxy(), Cluster, &name.as_str().into());
            let claimed = wants.has.keys().filter(|name| !wants.names.contains(*name));
            self.adopted.extend(claimed.filter(exists).filter(left_out).cloned());
        }
    }

    fn excuse(&mut self, kind: ResourceType, name: &str) {
        self.excused.insert((kind, name.to_owned()));
    }

    /// What state of the world cannot remove, the client keeps and the server forgets (rule 11).
    fn excuse_kept(&mut self) {
        for (kind, name) in [Endpoints, Route].into_iter().flat_map(|kind| NAMES.map(|name| (kind, name))) {
            if self.snapshot.get(&proxy(), kind, &name.into()).is_none() {
                self.excuse(kind, name);
            }
        }
    }

    fn subscribe(&mut self, kind: ResourceType, add: &[&str], drop: &[&str]) {
        let wants = self.wants.get_mut(&kind).expect("a type of the model");
        let started = std::mem::replace(&mut wants.started, true);
        let drop: Vec<&str> = drop.iter().copied().filter(|n| wants.names.contains(*n) && !add.contains(n)).collect();
        let add: Vec<&str> =
            add.iter().copied().filter(|n| self.protocol == Protocol::Delta || !wants.names.contains(*n)).collect();
        if !started && add.is_empty() && kind.has_wildcard() {
            wants.wildcard = true;
        } else if self.protocol == Protocol::StateOfTheWorld && !add.is_empty() {
            wants.wildcard &= wants.names.contains("*"); // rule 26
        }
        wants.names.extend(add.iter().map(|name| name.to_string()));
        if kind == Cluster {
            self.adopted.retain(|name| !add.contains(&name.as_str()));
        }
        for name in &drop {
            wants.names.remove(*name);
            if !wants.wildcard {
                wants.has.remove(*name);
                self.will_have.remove(&(kind, name.to_string()));
            }
        }
        let wildcard = wants.wildcard;
        if !wildcard {
            let names = wants.names.clone();
            wants.has.retain(|name, _| names.contains(name));
            self.will_have.retain(|(other, name), _| *other != kind || names.contains(name));
        }
        for name in add.iter().chain(drop.iter().filter(|_| wildcard)) {
            self.excuse(kind, name);
        }
        if self.delta() {
            let add = add.iter().map(|name| name.to_string()).collect();
            let drop = drop.iter().map(|name| name.to_string()).collect();
            self.request_delta(kind, add, drop, String::new(), None);
        } else {
            self.request_sotw(kind, None);
        }
    }

    /// Only the incremental protocol can do this beside names; in the other it is left alone.
    fn wildcard(&mut self, kind: ResourceType, on: bool) {
        if !self.delta() || !self.wants[&kind].started {
            return;
        }
        let wants = self.wants.get_mut(&kind).expect("a type of the model");
        wants.wildcard = on;
        if on {
            NAMES.iter().for_each(|name| self.excuse(kind, name));
            self.request_delta(kind, vec!["*".into()], vec![], String::new(), None);
        } else {
            let names = wants.names.clone();
            wants.has.retain(|name, _| names.contains(name));
            self.will_have.retain(|(other, name), _| *other != kind || names.contains(name));
            if kind == Cluster {
                self.adopted.clear();
            }
            self.request_delta(kind, vec![], vec!["*".into()], String::new(), None);
        }
    }

    fn request_delta(
        &mut self,
        kind: ResourceType,
        add: Vec<String>,
        drop: Vec<String>,
        nonce: String,
        error: Option<Status>,
    ) {
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names_subscribe: add,
            resource_names_unsubscribe: drop,
            response_nonce: nonce,
            error_detail: error,
            ..Default::default()
        };
        self.session.delta(request, self.now).expect("a good request");
    }

    fn request_sotw(&mut self, kind: ResourceType, error: Option<Status>) {
        let wants = &self.wants[&kind];
        let request = DiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names: wants.names.iter().cloned().collect(),
            response_nonce: wants.nonce.clone(),
            error_detail: error,
            ..Default::default()
        };
        self.session.state_of_the_world(request, self.now).expect("a good request");
    }

    /// Lets the session write a response, and checks that it had to.
    fn write(&mut self) -> bool {
        let Some(response) = self.session.poll(self.now) else { return false };
        let kind = ResourceType::from_type_url(&response.type_url).expect("a type of the model");
        let complete = !self.delta() && kind.has_wildcard();
        if complete {
            self.will_have.retain(|(other, _), _| *other != kind);
        }
        for resource in response.resources.iter() {
            let key = (kind, resource.name.to_string());
            let wants = &self.wants[&kind];
            if kind == Endpoints && !wants.names.contains(resource.name.as_str()) {
                let waits = self.wants[&Cluster].names.contains(resource.name.as_str())
                    || self.adopted.contains(resource.name.as_str());
                assert!(self.delta() && waits, "{key:?} is sent ahead of a cluster that is not waited for");
                continue;
            }
            let had = self.will_have.insert(key.clone(), resource.version);
            let excused = self.excused.remove(&key);
            assert!(complete || excused || had != Some(resource.version), "{key:?} is sent again for no reason");
            if kind == Cluster {
                self.excuse(Endpoints, resource.name.as_str());
            }
        }
        for name in &response.removed {
            self.will_have.remove(&(kind, name.to_string()));
        }
        self.wire.push_back(response);
        true
    }

    /// The client reads a response and answers it.
    fn read(&mut self) -> bool {
        let Some(response) = self.wire.pop_front() else { return false };
        let kind = ResourceType::from_type_url(&response.type_url).expect("a type of the model");
        let bad = response.resources.iter().any(|resource| resource.body[0] == BAD);
        let complete = !self.delta() && kind.has_wildcard();
        let wants = self.wants.get_mut(&kind).expect("a type of the model");
        if !bad || self.partial {
            if complete {
                wants.has.retain(|name, _| response.resources.iter().any(|r| r.name.as_str() == name));
            }
            for resource in response.resources.iter().filter(|resource| resource.body[0] != BAD) {
                if wants.wildcard || wants.names.contains(resource.name.as_str()) {
                    wants.has.insert(resource.name.to_string(), resource.version);
                }
            }
            for name in &response.removed {
                wants.has.remove(name.as_str());
            }
        }
        wants.nonce = response.nonce.clone();
        let error = bad.then(|| Status { code: 13, message: "no".into(), ..Default::default() });
        if bad {
            // What the client has of these is not known to the server now.
            response.resources.iter().for_each(|resource| self.excuse(kind, resource.name.as_str()));
        }
        match self.delta() {
            true => self.request_delta(kind, vec![], vec![], response.nonce, error),
            false => self.request_sotw(kind, error),
        }
        true
    }

    fn reconnect(&mut self) {
        self.session = session(self.protocol);
        self.session.publish(self.snapshot.clone());
        self.wire.clear();
        self.will_have.clear();
        self.excused.clear();
        self.adopted.clear();
        let delta = self.delta();
        for kind in KINDS {
            let wants = self.wants.get_mut(&kind).expect("a type of the model");
            wants.nonce.clear();
            if !wants.started {
                continue;
            }
            if !delta {
                if kind.has_wildcard() {
                    wants.wildcard = wants.names.is_empty(); // rule 25, on the new stream
                }
                self.request_sotw(kind, None);
                continue;
            }
            let mut names: Vec<_> = wants.names.iter().cloned().collect();
            if wants.wildcard {
                names.push("*".into());
            } else if names.is_empty() {
                wants.started = false; // an empty first request would mean everything
                wants.has.clear();
                continue;
            }
            self.will_have.extend(wants.has.iter().map(|(name, version)| ((kind, name.clone()), *version)));
            let request = DeltaDiscoveryRequest {
                type_url: kind.type_url().into(),
                resource_names_subscribe: names,
                initial_resource_versions: wants.has.iter().map(|(n, v)| (n.clone(), v.to_string())).collect(),
                ..Default::default()
            };
            self.session.delta(request, self.now).expect("a good request");
        }
        self.adopt();
    }

    /// Everything is written, read and answered, and all timeouts have passed.
    fn come_to_rest(&mut self) {
        for _ in 0..10_000 {
            if self.write() || self.read() {
                continue;
            }
            let Some(deadline) = self.session.deadline(self.now) else { return };
            self.now = deadline;
        }
        panic!("the session does not come to rest");
    }

    fn check(&self) {
        assert_eq!(self.session.settled(), Some(self.snapshot.number()));
        for kind in KINDS {
            let wants = &self.wants[&kind];
            let mut names: BTreeSet<ResourceName> = wants.names.iter().map(|n| n.as_str().into()).collect();
            if wants.wildcard {
                names.extend(self.snapshot.wildcard(&proxy(), kind));
            }
            if kind == Cluster {
                names.extend(self.adopted.iter().map(|name| name.as_str().into()));
            }
            let can_delete = self.delta() || kind.has_wildcard();
            for name in &names {
                let has = wants.has.get(name.as_str());
                match self.snapshot.get(&proxy(), kind, name) {
                    Some(resource) if resource.body[0] == BAD => assert_ne!(has, Some(&resource.version)),
                    Some(resource) => assert_eq!(has, Some(&resource.version), "{kind:?} {name}"),
                    None => assert!(has.is_none() || !can_delete, "{kind:?} {name} should be gone"),
                }
            }
            for name in wants.has.keys() {
                assert!(names.contains(name.as_str()), "{kind:?} {name} is not asked for and there");
            }
            if self.delta() && wants.started {
                let status = self.session.status(|_| std::time::SystemTime::UNIX_EPOCH);
                let refused = names.iter().any(|name| {
                    self.snapshot.get(&proxy(), kind, name).is_some_and(|resource| resource.body[0] == BAD)
                });
                assert!(refused || status[&kind].resources == wants.has.len(), "{kind:?} is counted wrong");
            }
            let held = self.session.types.get(&kind);
            assert!(held.is_none_or(|held| held.exceptions.values().all(|e| e.refused.is_some() || e.has.is_some())));
        }
    }
}

fn session(protocol: Protocol) -> Session {
    Session::new(protocol, proxy(), identity("web"), TestSecrets::new(), patience())
}

fn play(protocol: Protocol, partial: bool, steps: Vec<Step>) {
    let mut model = Model::new(protocol, partial);
    for step in steps {
        model.step(step);
    }
    model.come_to_rest();
    model.check();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn at_rest_a_delta_client_has_what_it_subscribes_to(
        partial in any::<bool>(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        play(Protocol::Delta, partial, steps);
    }

    #[test]
    fn at_rest_a_state_of_the_world_client_has_what_it_subscribes_to(
        partial in any::<bool>(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        play(Protocol::StateOfTheWorld, partial, steps);
    }
}
