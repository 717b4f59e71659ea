//! What Envoy says on a delta stream, as a state machine without I/O.
//!
//! ```text
//!  connect    ─▶ CDS * ─▶ response ─▶ EDS names, SDS names, CDS ACK ─▶ responses, ACKs ─▶ LDS * ─▶ RDS names, ACKs
//!  reconnect  ─▶ CDS, EDS, SDS, LDS, RDS at once, with the versions of what it has
//!  change     ─▶ CDS response ─▶ EDS of new clusters; the CDS ACK only when they are warm
//!  first call ─▶ CDS of the destination's name ─▶ as a change
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_types::pb::envoy::config::core::v3::{BuildVersion, Extension, Node};
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::envoy::r#type::v3::SemanticVersion;
use envoy_types::pb::google::rpc::Status;
use weft::snapshot::ResourceType;

use crate::catalog::{Catalog, ChangeId, ContentId, IdMap, NameId, Seen};
use crate::wire::{self, DeltaResponse, Malformed};

/// The types in the order in which Envoy speaks of them when it reconnects.
pub const TYPES: [ResourceType; 5] =
    [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::Secret, ResourceType::Listener, ResourceType::Route];

/// What a sidecar has under a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Have {
    /// Asked for, and not answered.
    Awaited,
    /// The server said that it does not exist.
    Absent,
    /// This.
    Content(ContentId),
}

#[derive(Debug, Default)]
struct Held {
    names: IdMap<NameId, Have>,
    /// How many are [`Have::Awaited`].
    awaited: usize,
    /// There was a request of this type on this stream.
    asked: bool,
    /// There was a response to it.
    answered: bool,
}

/// How a sidecar differs from others.
#[derive(Clone, Debug)]
pub struct Persona {
    /// `node.id`.
    pub node: String,
    /// The secrets that its clusters refer to.
    pub secrets: Arc<[NameId]>,
    /// It refuses whatever came from a change.
    pub refuses: bool,
}

/// One fake sidecar.
#[derive(Debug)]
pub struct Sidecar {
    persona: Persona,
    types: [Held; 5],
    /// Clusters that it called by name.
    called: Vec<NameId>,
    /// Calls that wait for their destination, by the name of its endpoints once that is known.
    calls: Vec<(NameId, Instant)>,
    /// Endpoints that a changed or new cluster waits for.
    warming: IdMap<NameId, ()>,
    /// CDS responses that are acknowledged when nothing warms any more.
    withheld: Vec<String>,
    /// Resources that came on this stream.
    pub resources: u64,
    scratch: Vec<Seen>,
}

/// The Envoy of the present release, as far as it decides what it is sent.
fn node(persona: &Persona) -> Node {
    let version = SemanticVersion { major_number: 1, minor_number: 40, patch: 0 };
    let version = BuildVersion { version: Some(version), ..Default::default() };
    Node {
        id: persona.node.clone(),
        user_agent_name: "envoy".to_owned(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentBuildVersion(version)),
        extensions: vec![Extension { name: "envoy.access_loggers.stats".to_owned(), ..Default::default() }],
        ..Default::default()
    }
}

/// What follows from a response.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Requests to send, as gRPC messages.
    pub requests: Vec<Bytes>,
    /// The changes that they acknowledge.
    pub acknowledged: Vec<ChangeId>,
    /// How long each call waited that can go on now.
    pub calls: Vec<Duration>,
}

impl Sidecar {
    /// One that was never connected.
    pub fn new(persona: Persona) -> Self {
        Self {
            persona,
            types: Default::default(),
            called: Vec::new(),
            calls: Vec::new(),
            warming: IdMap::default(),
            withheld: Vec::new(),
            resources: 0,
            scratch: Vec::new(),
        }
    }

    /// What it says first on a new stream.
    pub fn connect(&mut self, catalog: &Catalog) -> Vec<Bytes> {
        let again = TYPES.map(|kind| std::mem::take(&mut self.types[index(kind)].asked));
        (self.resources, self.withheld) = (0, Vec::new());
        self.warming.clear();
        let mut requests = Vec::new();
        let mut node = Some(node(&self.persona));
        for (kind, again) in TYPES.into_iter().zip(again) {
            self.types[index(kind)].answered = false;
            if !again && kind != ResourceType::Cluster {
                continue;
            }
            let held = &mut self.types[index(kind)];
            let mut subscribe: Vec<_> = match kind {
                ResourceType::Cluster => self.called.clone(),
                ResourceType::Listener => Vec::new(),
                _ => held.names.keys().copied().collect(),
            };
            subscribe.sort(); // as Envoy, whose names are ordered
            let mut subscribe: Vec<_> = subscribe.iter().map(|name| catalog.text(*name).to_string()).collect();
            if kind == ResourceType::Cluster && !subscribe.is_empty() {
                subscribe.insert(0, "*".to_owned());
            }
            let versions = held.names.iter().filter_map(|(name, have)| match have {
                Have::Content(id) => Some((catalog.text(*name).to_string(), catalog.version(*id).to_string())),
                _ => None,
            });
            held.asked = true;
            requests.push(wire::frame(&DeltaDiscoveryRequest {
                node: node.take(),
                type_url: kind.type_url().to_owned(),
                resource_names_subscribe: subscribe,
                initial_resource_versions: versions.collect(),
                ..Default::default()
            }));
        }
        requests
    }

    /// Its workload calls destinations for the first time.
    pub fn call(&mut self, names: &[NameId], catalog: &Catalog, now: Instant) -> Vec<Bytes> {
        let held = &mut self.types[index(ResourceType::Cluster)];
        let unknown = |name: &&NameId| !held.names.contains_key(*name);
        let new: Vec<NameId> = names.iter().filter(unknown).copied().collect();
        held.awaited += new.len();
        held.names.extend(new.iter().map(|name| (*name, Have::Awaited)));
        self.called.extend(&new);
        self.calls.extend(new.iter().map(|name| (*name, now)));
        // Envoy asks for each destination when it is called, so each is a request.
        let request = |name: &NameId| subscription(ResourceType::Cluster, [*name], [], catalog);
        new.iter().map(request).collect()
    }

    /// Takes a response.
    pub(crate) fn response(&mut self, message: &[u8], catalog: &Catalog) -> Result<Outcome, Malformed> {
        let response = DeltaResponse::read(message)?;
        let mut outcome = Outcome::default();
        let Some(kind) = ResourceType::from_type_url(response.type_url) else { return Ok(outcome) };
        let mut seen = std::mem::take(&mut self.scratch);
        catalog.enter(kind, &response, &mut seen)?;
        self.resources += seen.len() as u64;
        outcome.acknowledged.extend(seen.iter().filter_map(|seen| seen.change));
        self.types[index(kind)].answered = true;
        if self.persona.refuses && !outcome.acknowledged.is_empty() {
            outcome.requests.push(answer(kind, response.nonce, Some("refused, as this sidecar was told to")));
        } else {
            let removed: Vec<_> = response.removed().map(|name| catalog.name(name)).collect();
            match kind {
                ResourceType::Cluster => self.clusters(&seen, &removed, catalog, &mut outcome),
                ResourceType::Listener => self.listeners(&seen, &removed, catalog, &mut outcome),
                _ => {
                    seen.iter().for_each(|seen| self.put(kind, seen));
                    removed.iter().for_each(|name| self.types[index(kind)].set(*name, Have::Absent));
                }
            }
            match kind {
                ResourceType::Cluster if self.is_up() && !self.warming.is_empty() => {
                    self.withheld.push(response.nonce.to_owned());
                }
                _ => outcome.requests.push(answer(kind, response.nonce, None)),
            }
            if kind == ResourceType::Endpoints {
                self.warmed(seen.iter().map(|seen| seen.name).chain(removed), &mut outcome);
            }
        }
        self.bring_up(&mut outcome);
        seen.clear();
        self.scratch = seen;
        self.scratch.shrink_to(64);
        Ok(outcome)
    }

    /// Whether everything that it asked for was answered.
    pub fn is_synced(&self) -> bool {
        let answered = |kind| self.types[index(kind)].answered;
        answered(ResourceType::Cluster)
            && answered(ResourceType::Listener)
            && self.types.iter().all(|held| held.awaited == 0)
            && self.withheld.is_empty()
    }

    /// What it has of a type.
    pub fn holds(&self, kind: ResourceType) -> impl Iterator<Item = (NameId, Have)> {
        self.types[index(kind)].names.iter().map(|(name, have)| (*name, *have))
    }

    /// What it has under a name.
    pub fn have(&self, kind: ResourceType, name: NameId) -> Option<Have> {
        self.types[index(kind)].names.get(&name).copied()
    }

    /// Its `node.id`.
    pub fn node(&self) -> &str {
        &self.persona.node
    }

    fn clusters(&mut self, seen: &[Seen], removed: &[NameId], catalog: &Catalog, outcome: &mut Outcome) {
        let mut subscribe = Vec::new();
        for new in seen {
            let before = self.have(ResourceType::Cluster, new.name);
            self.put(ResourceType::Cluster, new);
            if before == Some(Have::Content(new.id)) {
                continue; // as Envoy, which compares the content's hash
            }
            let Some(endpoints) = new.endpoints else {
                self.finish_call(new.name, outcome);
                continue;
            };
            self.calls.iter_mut().filter(|(name, _)| *name == new.name).for_each(|(name, _)| *name = endpoints);
            self.warming.insert(endpoints, ());
            if self.have(ResourceType::Endpoints, endpoints).is_none() {
                subscribe.push(endpoints);
            }
        }
        let mut unsubscribe = Vec::new();
        for name in removed {
            let before = self.have(ResourceType::Cluster, *name);
            if let Some(Have::Content(id)) = before
                && let Some(endpoints) = catalog.endpoints(id)
            {
                unsubscribe.push(endpoints);
                self.warming.remove(&endpoints);
                self.types[index(ResourceType::Endpoints)].forget(endpoints);
            }
            match self.called.contains(name) {
                true => self.types[index(ResourceType::Cluster)].set(*name, Have::Absent),
                false => self.types[index(ResourceType::Cluster)].forget(*name),
            }
            self.finish_call(*name, outcome);
        }
        if !subscribe.is_empty() || !unsubscribe.is_empty() {
            let held = &mut self.types[index(ResourceType::Endpoints)];
            held.asked = true;
            subscribe.iter().for_each(|name| held.set(*name, Have::Awaited));
            outcome.requests.push(subscription(ResourceType::Endpoints, subscribe, unsubscribe, catalog));
        }
        let secrets = &mut self.types[index(ResourceType::Secret)];
        if !secrets.asked && !self.persona.secrets.is_empty() {
            secrets.asked = true;
            self.persona.secrets.iter().for_each(|name| secrets.set(*name, Have::Awaited));
            let names = self.persona.secrets.iter().copied();
            outcome.requests.push(subscription(ResourceType::Secret, names, [], catalog));
        }
    }

    fn listeners(&mut self, seen: &[Seen], removed: &[NameId], catalog: &Catalog, outcome: &mut Outcome) {
        let mut routes = Vec::new();
        for new in seen {
            self.put(ResourceType::Listener, new);
            let held = &mut self.types[index(ResourceType::Route)];
            for route in catalog.routes(new.id).iter().filter(|route| !held.names.contains_key(route)) {
                routes.push(*route);
            }
        }
        removed.iter().for_each(|name| self.types[index(ResourceType::Listener)].forget(*name));
        if !routes.is_empty() {
            let held = &mut self.types[index(ResourceType::Route)];
            held.asked = true;
            routes.iter().for_each(|name| held.set(*name, Have::Awaited));
            outcome.requests.push(subscription(ResourceType::Route, routes, [], catalog));
        }
    }

    /// Endpoints have come: clusters are warm, calls go on.
    fn warmed(&mut self, names: impl Iterator<Item = NameId>, outcome: &mut Outcome) {
        for name in names {
            self.warming.remove(&name);
            self.finish_call(name, outcome);
        }
        if self.warming.is_empty() {
            let withheld = std::mem::take(&mut self.withheld);
            outcome.requests.extend(withheld.iter().map(|nonce| answer(ResourceType::Cluster, nonce, None)));
        }
    }

    fn finish_call(&mut self, name: NameId, outcome: &mut Outcome) {
        if !self.calls.is_empty() {
            let done = self.calls.extract_if(.., |(waiting, _)| *waiting == name);
            outcome.calls.extend(done.map(|(_, since)| since.elapsed()));
        }
    }

    /// Listeners are asked for once the first clusters are warm.
    fn bring_up(&mut self, outcome: &mut Outcome) {
        let ready = [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::Secret];
        let clusters_answered = self.types[index(ResourceType::Cluster)].answered;
        if !self.is_up() && clusters_answered && ready.iter().all(|kind| self.types[index(*kind)].awaited == 0) {
            self.types[index(ResourceType::Listener)].asked = true;
            let type_url = ResourceType::Listener.type_url().to_owned();
            outcome.requests.push(wire::frame(&DeltaDiscoveryRequest { type_url, ..Default::default() }));
        }
    }

    fn is_up(&self) -> bool {
        self.types[index(ResourceType::Listener)].asked
    }

    fn put(&mut self, kind: ResourceType, seen: &Seen) {
        self.types[index(kind)].set(seen.name, Have::Content(seen.id));
    }
}

impl Held {
    fn set(&mut self, name: NameId, have: Have) {
        let before = self.names.insert(name, have);
        self.awaited += usize::from(have == Have::Awaited);
        self.awaited -= usize::from(before == Some(Have::Awaited));
    }

    fn forget(&mut self, name: NameId) {
        let before = self.names.remove(&name);
        self.awaited -= usize::from(before == Some(Have::Awaited));
    }
}

fn index(kind: ResourceType) -> usize {
    kind as usize
}

fn answer(kind: ResourceType, nonce: &str, error: Option<&str>) -> Bytes {
    let refusal = |message: &str| Status { code: 13, message: message.to_owned(), ..Default::default() };
    wire::frame(&DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        response_nonce: nonce.to_owned(),
        error_detail: error.map(refusal),
        ..Default::default()
    })
}

fn subscription(
    kind: ResourceType,
    subscribe: impl IntoIterator<Item = NameId>,
    unsubscribe: impl IntoIterator<Item = NameId>,
    catalog: &Catalog,
) -> Bytes {
    wire::frame(&DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: subscribe.into_iter().map(|name| catalog.text(name).to_string()).collect(),
        resource_names_unsubscribe: unsubscribe.into_iter().map(|name| catalog.text(name).to_string()).collect(),
        ..Default::default()
    })
}
