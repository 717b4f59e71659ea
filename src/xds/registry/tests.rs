//! The registry as a whole, driven through sessions and without sockets: streams come, subscribe, answer, refuse, stall
//! and leave while the source changes.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::google::rpc::Status;
use futures::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::mesh::PodKey;
use crate::snapshot::ResourceType::{Cluster, Endpoints, Listener, Route};
use crate::snapshot::{Pushed, Resource, Version, View};
use crate::xds::learn::Nobody;
use crate::xds::session::{Protocol, Response};
use crate::xds::stream::take_stock;
use crate::xds::testing::{TestSecrets, gone, identity, patience, put, resource};

/// The clients refuse resources of this content.
const BAD: u8 = 9;

fn proxy(number: usize) -> ProxyId {
    ProxyId(PodKey::new("shop", format!("web-{number}")))
}

fn view(number: usize, own: Vec<Arc<Resource>>, pushed: Pushed) -> Change {
    Change::PutView(proxy(number), Arc::new(View { own, pushed }))
}

fn only(names: &[&str]) -> Pushed {
    Pushed::Only(Arc::new(names.iter().map(|name| (*name).into()).collect()))
}

type Wants = BTreeMap<ResourceType, BTreeSet<String>>;
type Has = BTreeMap<(ResourceType, String), Version>;

/// A client and its stream. It wants all clusters and listeners, and names of every type.
struct Client {
    proxy: ProxyId,
    session: Arc<Mutex<Session>>,
    registration: Registration,
    wants: Wants,
    has: Has,
    /// The clusters that it had when it connected.
    claimed: BTreeSet<String>,
    /// Written and not read.
    wire: VecDeque<Response>,
    /// Contents that it was ever sent.
    seen: BTreeSet<(ResourceType, String, u8)>,
}

impl Client {
    fn connect(registry: &Arc<Registry>, proxy: ProxyId, wants: Wants, has: Has, now: Instant) -> Self {
        let (protocol, patience) = (Protocol::Delta, patience());
        let session = Session::new(protocol, proxy.clone(), identity("web"), TestSecrets::new(), patience);
        let session = Arc::new(Mutex::new(session));
        let about = ProxyStatus {
            proxy: proxy.clone(),
            identity: identity("web"),
            peer: String::new(),
            envoy_version: String::new(),
            connected_at: SystemTime::UNIX_EPOCH,
            delta: true,
            types: BTreeMap::new(),
        };
        let registration = registry.enter(about, session.clone());
        let (wire, seen) = (VecDeque::new(), BTreeSet::new());
        let claimed = has.keys().filter(|(kind, _)| *kind == Cluster).map(|(_, name)| name.clone()).collect();
        let mut client = Self { proxy, session, registration, wants: Wants::new(), has, claimed, wire, seen };
        for kind in [Cluster, Endpoints, Listener, Route] {
            let names = wants.get(&kind).cloned().unwrap_or_default();
            client.has.retain(|(other, name), _| *other != kind || kind.has_wildcard() || names.contains(name));
            let wildcard = kind.has_wildcard().then(|| "*".to_owned());
            let subscribe: Vec<_> = names.iter().cloned().chain(wildcard).collect();
            client.wants.insert(kind, names);
            if subscribe.is_empty() {
                continue;
            }
            let claims = client.has.iter().filter(|((other, _), _)| *other == kind);
            let request = DeltaDiscoveryRequest {
                type_url: kind.type_url().into(),
                resource_names_subscribe: subscribe,
                initial_resource_versions: claims.map(|((_, n), v)| (n.clone(), v.to_string())).collect(),
                ..Default::default()
            };
            lock(&client.session).delta(request, now).expect("a good request");
        }
        client.pump(now);
        client
    }

    fn subscribe(&mut self, kind: ResourceType, add: &[&str], drop: &[&str], now: Instant) {
        let names = self.wants.entry(kind).or_default();
        let drop: Vec<_> = drop.iter().filter(|n| names.contains(**n) && !add.contains(n)).collect();
        names.extend(add.iter().map(|name| name.to_string()));
        for name in &drop {
            names.remove(**name);
            if !kind.has_wildcard() {
                self.has.remove(&(kind, name.to_string()));
            }
        }
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names_subscribe: add.iter().map(|name| name.to_string()).collect(),
            resource_names_unsubscribe: drop.iter().map(|name| name.to_string()).collect(),
            ..Default::default()
        };
        lock(&self.session).delta(request, now).expect("a good request");
        self.pump(now);
    }

    /// What the stream's loop does after each event.
    fn pump(&mut self, now: Instant) {
        take_stock(&self.session, &self.registration, &Nobody);
        loop {
            let response = lock(&self.session).poll(now);
            let Some(response) = response else { break };
            self.wire.push_back(response);
        }
        let answered = lock(&self.session).answered();
        answered.into_iter().for_each(|revision| self.registration.answered(revision));
    }

    fn is_woken(&self) -> bool {
        self.registration.woken().now_or_never().is_some()
    }

    /// Reads a response, applies what is good in it and answers.
    fn read(&mut self, now: Instant) -> bool {
        let Some(response) = self.wire.pop_front() else { return false };
        let kind = ResourceType::from_type_url(&response.type_url).expect("a type of the model");
        let wanted = |name: &str| kind.has_wildcard() || self.wants[&kind].contains(name);
        for resource in response.resources.iter() {
            self.seen.insert((kind, resource.name.to_string(), resource.body[0]));
            if resource.body[0] != BAD && wanted(resource.name.as_str()) {
                self.has.insert((kind, resource.name.to_string()), resource.version);
            }
        }
        for name in &response.removed {
            self.has.remove(&(kind, name.to_string()));
        }
        let bad = response.resources.iter().any(|resource| resource.body[0] == BAD);
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            response_nonce: response.nonce,
            error_detail: bad.then(|| Status { code: 13, message: "no".into(), ..Default::default() }),
            ..Default::default()
        };
        lock(&self.session).delta(request, now).expect("a good request");
        self.pump(now);
        true
    }

    fn reads_all(&mut self, now: Instant) {
        while self.read(now) {}
    }

    fn version(&self, kind: ResourceType, name: &str) -> Option<Version> {
        self.has.get(&(kind, name.to_owned())).copied()
    }
}

struct Rig {
    registry: Arc<Registry>,
    source: Arc<Snapshot>,
    clients: Vec<Client>,
    now: Instant,
}

impl Rig {
    fn new(canaries: u64) -> Self {
        let canary = Canary { proxies: canaries, ..Canary::default() };
        let (source, now) = (Arc::new(Snapshot::empty()), Instant::now());
        Self { registry: Arc::new(Registry::new(canary)), source, clients: Vec::new(), now }
    }

    /// As many proxies, connected, to which everything is pushed.
    fn eager(canaries: u64, proxies: usize, changes: impl IntoIterator<Item = Change>) -> Self {
        let mut rig = Self::new(canaries);
        let views = (0..proxies).map(|number| view(number, vec![], Pushed::All));
        rig.publish(views.chain(changes).collect::<Vec<_>>());
        (0..proxies).for_each(|number| rig.enter(number));
        rig.come_to_rest();
        rig
    }

    fn publish(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.source = Arc::new(self.source.with(changes));
        self.registry.publish(self.source.clone(), self.now);
    }

    fn enter(&mut self, number: usize) {
        let client = Client::connect(&self.registry, proxy(number), Wants::new(), Has::new(), self.now);
        self.clients.push(client);
    }

    /// Time passes until the rollout's patience is at an end.
    fn lose_patience(&mut self) {
        if let Some(deadline) = self.deadline() {
            self.now = self.now.max(deadline);
            self.registry.tick(self.now);
        }
    }

    /// Those whom the newest snapshot does not concern are told of it.
    fn sweep(&self, swept: u64) -> u64 {
        let Some(sweep) = self.registry.idle(swept) else { return swept };
        let number = sweep.newest.number();
        sweep.tell(usize::MAX);
        number
    }

    fn deadline(&self) -> Option<Instant> {
        self.registry.lock().rollout.deadline()
    }

    /// Those who were woken run.
    fn run(&mut self) -> Vec<usize> {
        let woken: Vec<_> = (0..self.clients.len()).filter(|index| self.clients[*index].is_woken()).collect();
        woken.iter().for_each(|index| self.clients[*index].pump(self.now));
        woken
    }

    /// Everybody runs, reads and answers, and the streams' own timeouts pass, but not the rollout's patience.
    fn come_to_rest(&mut self) {
        for _ in 0..1_000 {
            let ran = !self.run().is_empty();
            let now = self.now;
            let read = self.clients.iter_mut().filter_map(|client| client.read(now).then_some(())).count() > 0;
            if ran || read {
                continue;
            }
            let deadlines = self.clients.iter().filter_map(|client| lock(&client.session).deadline(now));
            let Some(deadline) = deadlines.min() else { return };
            self.now = deadline;
            self.clients.iter_mut().for_each(|client| client.pump(deadline));
        }
        panic!("the streams do not come to rest");
    }

    /// At rest, every client has what the source says, and nobody waits for anybody.
    fn check(&mut self) {
        assert!(self.registry.lock().rollout.trial().is_none(), "all have answered, and a trial goes on");
        if self.source.number() > 0 {
            assert_eq!(self.registry.pending(), 0, "all have answered, and some are waited for");
            assert!(self.registry.converged(self.source.number()), "all have answered, and that is not told");
        }
        for client in self.clients.iter().filter(|client| self.source.knows(&client.proxy)) {
            for kind in [Cluster, Endpoints, Listener, Route] {
                let mut names: BTreeSet<_> = client.wants[&kind].iter().map(|name| name.as_str().into()).collect();
                if kind.has_wildcard() {
                    names.extend(self.source.wildcard(&client.proxy, kind));
                }
                if kind == Cluster {
                    // What it had when it came, and no longer is in its wildcard, it may keep.
                    let kept = client.claimed.iter().filter(|name| client.version(kind, name).is_some());
                    names.extend(kept.map(|name| name.as_str().into()));
                }
                for name in &names {
                    let has = client.version(kind, name.as_str());
                    match self.source.get(&client.proxy, kind, name) {
                        Some(wanted) if wanted.body[0] == BAD => assert_ne!(has, Some(wanted.version)),
                        wanted => {
                            assert_eq!(has, wanted.map(|wanted| wanted.version), "{} {kind:?} {name}", client.proxy)
                        }
                    }
                }
                let has = client.has.keys().filter(|(other, _)| *other == kind);
                has.for_each(|(_, name)| assert!(names.contains(name.as_str()), "{kind:?} {name} is not asked for"));
            }
        }
        for held in self.registry.held_back() {
            assert_eq!(held.version, resource(held.kind, held.name.as_str(), BAD).version, "{held:?}");
        }
    }
}

#[test]
fn rule_05_those_who_came_before_the_first_snapshot_get_all_of_it_at_once() {
    let mut rig = Rig::new(1);
    (0..4).for_each(|number| rig.enter(number));
    let views = (0..4).map(|number| view(number, vec![], Pushed::All));
    rig.publish(views.chain([put(Cluster, "a", 1), put(Listener, "l", 1)]).collect::<Vec<_>>());
    rig.run();
    let now = rig.now;
    for client in &mut rig.clients {
        client.reads_all(now);
        let both = (client.version(Cluster, "a").is_some(), client.version(Listener, "l").is_some());
        assert_eq!(both, (true, true), "{} is told that something does not exist which does", client.proxy);
    }
}

#[test]
fn an_unknown_proxy_that_came_before_the_first_snapshot_is_not_waited_for() {
    let mut rig = Rig::new(3);
    rig.enter(0);
    rig.publish([put(Cluster, "a", 1)]);
    rig.come_to_rest();
    rig.check();
}

#[test]
fn those_who_tried_in_vain_are_brought_back_when_others_refuse() {
    let mut rig = Rig::eager(1, 3, [put(Route, "r", 1), put(Cluster, "a", 1)]);
    rig.publish([put(Cluster, "a", BAD)]);
    let silent = rig.run();
    assert_eq!(silent.len(), 1, "one tries it, and does not answer");
    rig.lose_patience();
    let next: Vec<_> = rig.run().into_iter().filter(|index| *index != silent[0]).collect();
    assert_eq!(next.len(), 1, "another tries it");
    let now = rig.now;
    rig.clients[next[0]].reads_all(now);
    assert_eq!(rig.registry.held_back().len(), 1);
    rig.come_to_rest();
    rig.check();
    let served: Vec<_> = rig.clients.iter().map(|client| client.registration.served().map(|s| s.number())).collect();
    assert!(served.windows(2).all(|pair| pair[0] == pair[1]), "{served:?}");
}

#[test]
fn a_stream_that_begins_during_a_trial_hears_of_what_it_is_pushed_from_then_on() {
    let mut rig = Rig::new(1);
    let inbound = || vec![resource(Listener, "inbound", 1)];
    rig.publish((0..3).map(|number| view(number, vec![], only(&[]))).chain([put(Cluster, "a", 1)]).collect::<Vec<_>>());
    (0..2).for_each(|number| rig.enter(number));
    rig.come_to_rest();
    rig.publish((0..3).map(|number| view(number, inbound(), only(&["a"]))).collect::<Vec<_>>());
    assert!(rig.deadline().is_some(), "the listener that they share is tried");
    rig.enter(2);
    rig.come_to_rest();
    rig.registry.set_canary(Canary { proxies: 0, ..Canary::default() });
    rig.publish([put(Cluster, "a", 2)]);
    rig.come_to_rest();
    rig.check();
}

#[test]
fn a_stream_that_a_change_does_not_concern_is_not_woken() {
    let mut rig = Rig::new(1);
    rig.publish((0..4).map(|number| view(number, vec![], only(&[]))).collect::<Vec<_>>());
    (0..4).for_each(|number| rig.enter(number));
    let now = rig.now;
    rig.clients[..3].iter_mut().for_each(|client| client.subscribe(Cluster, &["a"], &[], now));
    rig.clients[3].subscribe(Cluster, &["b"], &[], now);
    rig.come_to_rest();
    rig.publish([put(Cluster, "b", 1)]);
    assert_eq!(rig.run(), [3]);
    rig.come_to_rest();
    rig.publish([put(Cluster, "a", BAD)]);
    let tries = rig.run();
    assert_eq!(tries.len(), 1, "one of the three tries it");
    rig.clients[tries[0]].reads_all(now);
    assert_eq!(rig.run(), tries, "and only it is told of what it refused");
    rig.come_to_rest();
    rig.check();
    rig.publish([put(Cluster, "a", 1)]);
    let tries = rig.run();
    rig.clients[tries[0]].reads_all(now);
    let others: Vec<_> = (0..3).filter(|index| !tries.contains(index)).collect();
    assert_eq!(rig.run(), others, "the rest follows");
    rig.come_to_rest();
    rig.check();
}

#[test]
fn names_that_a_stream_dropped_in_its_last_request_are_forgotten() {
    let mut rig = Rig::eager(3, 1, [put(Route, "r", 1)]);
    let now = rig.now;
    rig.clients[0].subscribe(Route, &["r"], &[], now);
    let request = DeltaDiscoveryRequest {
        type_url: Route.type_url().into(),
        resource_names_unsubscribe: vec!["r".into()],
        ..Default::default()
    };
    lock(&rig.clients[0].session).delta(request, now).expect("a good request");
    rig.clients.clear();
    rig.enter(0);
    rig.come_to_rest();
    rig.publish([put(Route, "r", 2)]);
    assert_eq!(rig.run(), [0; 0], "the stream that has its number now did not ask");
}

#[test]
fn what_is_delivered_is_told_while_trials_follow_one_another() {
    let mut rig = Rig::eager(1, 3, [put(Cluster, "a", 1)]);
    rig.publish([put(Cluster, "a", 2)]);
    let first = rig.source.number();
    let canary = rig.run();
    rig.publish([put(Cluster, "b", 1)]);
    let now = rig.now;
    canary.iter().for_each(|index| rig.clients[*index].reads_all(now));
    assert!(rig.deadline().is_some(), "the next trial runs");
    assert!(!rig.registry.converged(first), "the first has only just gone to the others");
    for index in rig.run().into_iter().filter(|index| !canary.contains(index)) {
        rig.clients[index].reads_all(now);
    }
    assert!(rig.deadline().is_some(), "the next trial still runs");
    assert!(rig.registry.converged(first));
    rig.come_to_rest();
    rig.check();
}

/// The shortest history known, of those that the property test finds, in which those who are to try a version have it
/// already: a trial that they have nothing to answer in would hold up everything else.
#[test]
fn what_is_taken_back_while_others_try_it_waits_for_nobody() {
    let mut rig = Rig::new(1);
    rig.publish([put(Listener, "c", 0)]);
    rig.enter(1);
    rig.publish([put(Cluster, "a", 1)]);
    rig.enter(0);
    rig.enter(0);
    rig.publish([gone(Cluster, "a")]);
    rig.enter(1);
    rig.publish([view(0, vec![], Pushed::All), put(Listener, "c", 1)]);
    rig.lose_patience();
    rig.enter(0);
    rig.publish([put(Endpoints, "a", 1)]);
    rig.publish([put(Listener, "c", 0)]);
    rig.come_to_rest();
    rig.check();
}

#[test]
fn a_stream_that_never_answers_does_not_grow_the_registry() {
    let mut rig = Rig::eager(0, 1, [put(Cluster, "a", 1)]);
    for content in 0..2 * MAX_PUBLISHED {
        rig.publish([put(Cluster, "a", 10 + (content % 2) as u8)]);
    }
    assert_eq!(rig.registry.lock().published.len(), MAX_PUBLISHED);
    rig.come_to_rest();
    rig.check();
}

const NAMES: [&str; 3] = ["a", "b", "c"];
const KINDS: [ResourceType; 4] = [Cluster, Endpoints, Listener, Route];
const PROXIES: usize = 5;

#[derive(Clone, Debug)]
enum Step {
    Publish(Vec<Change>),
    Enter(usize),
    Reconnect(usize),
    Leave(usize),
    Subscribe(usize, ResourceType, Vec<&'static str>, Vec<&'static str>),
    /// Those who were woken run.
    Run,
    Read(usize),
    LosePatience,
    Sweep,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = || prop::sample::select(&KINDS[..]);
    let name = || prop::sample::select(&NAMES[..]);
    let names = || prop::collection::vec(name(), 0..3);
    let content = || prop_oneof![4 => 0u8..4, 1 => Just(BAD)];
    let own = prop::collection::vec(content().prop_map(|content| resource(Listener, "inbound", content)), 0..2);
    let pushed = prop_oneof![Just(Pushed::All), names().prop_map(|names| only(&names))];
    let change = prop_oneof![
        8 => (kind(), name(), content()).prop_map(|(k, n, c)| put(k, n, c)),
        4 => (kind(), name()).prop_map(|(k, n)| gone(k, n)),
        4 => (0..PROXIES, own, pushed).prop_map(|(number, own, pushed)| view(number, own, pushed)),
    ];
    let client = || 0..8usize;
    prop_oneof![
        6 => prop::collection::vec(change, 1..5).prop_map(Step::Publish),
        3 => (0..PROXIES).prop_map(Step::Enter),
        1 => client().prop_map(Step::Reconnect),
        1 => client().prop_map(Step::Leave),
        4 => (client(), kind(), names(), names()).prop_map(|(i, k, a, b)| Step::Subscribe(i, k, a, b)),
        4 => Just(Step::Run),
        8 => client().prop_map(Step::Read),
        1 => Just(Step::LosePatience),
        1 => Just(Step::Sweep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn at_rest_all_have_what_the_source_says_and_nobody_waits(
        canaries in 0u64..3,
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut rig = Rig::new(canaries);
        let mut swept = 0;
        for step in steps {
            let (now, count) = (rig.now, rig.clients.len());
            match step {
                Step::Publish(changes) => rig.publish(changes),
                Step::Enter(number) => rig.enter(number),
                Step::Reconnect(index) if index < count => {
                    let Client { proxy, wants, has, .. } = rig.clients.remove(index);
                    rig.clients.push(Client::connect(&rig.registry, proxy, wants, has, now));
                }
                Step::Leave(index) if index < count => drop(rig.clients.remove(index)),
                Step::Subscribe(index, kind, add, drop) if index < count => {
                    rig.clients[index].subscribe(kind, &add, &drop, now);
                }
                Step::Run => drop(rig.run()),
                Step::Read(index) if index < count => drop(rig.clients[index].read(now)),
                Step::LosePatience => rig.lose_patience(),
                Step::Sweep => swept = rig.sweep(swept),
                _ => {}
            }
        }
        rig.come_to_rest();
        rig.sweep(swept);
        rig.come_to_rest();
        rig.check();
    }
}
