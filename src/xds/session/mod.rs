//! One stream's side of the protocol as a state machine without I/O: requests and snapshots in, responses out.
//!
//! ```text
//!  request, publish, secrets_changed ──▶ what is subscribed to, what is due        (state only, bounded)
//!  poll(now) ──▶ the next response: secrets, clusters, endpoints, listeners, routes, removals
//! ```
//!
//! Nothing is queued: `poll` is called when the stream can be written and compares what the client has with the newest
//! snapshot. The rules that are named in comments are those of the xDS rule book; each is a test of that name.
//!
//! A cluster's resource names its endpoints: so the session knows which to send behind it without reading it.

mod held;
mod render;

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use self::held::{Held, Items};
use super::auth::Secrets;
use super::beginnings::Beginnings;
use super::name_pool::{NamePool, WORTH_SHARING};
use super::rollout::RefusedResource;
use super::status::{Refusal, Totals, TypeStatus};
use super::steps::Steps;
use super::subscription::{self, Changed, Intern, Names, SubscriptionError};
use crate::mesh::{ProxyId, SpiffeId};
use crate::snapshot::{Generation, Resource, ResourceName, ResourceType, Snapshot, Version};

/// The two forms of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// `DeltaAggregatedResources`: requests and responses say what changes.
    Delta,
    /// `StreamAggregatedResources`: requests and responses say what holds.
    StateOfTheWorld,
}

/// How long the session waits for a proxy before it goes on without its answer.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Listeners and routes wait this long for the acknowledgement of clusters that they may use. Envoy withholds it
    /// until the clusters are warm (rule 30), and does not warm routes (rule 33).
    pub warming: Duration,
    /// Removals wait this long for the acknowledgement of listeners and routes (rule 28).
    pub removal: Duration,
    /// Removals wait this long after it: a request that was routed before may still be held up, by a TrafficFault's
    /// delay for one, and is lost when its cluster is gone by then.
    pub lingering: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { warming: Duration::from_secs(5), removal: Duration::from_secs(15), lingering: Duration::from_secs(5) }
    }
}

/// Why a request ends the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Rule 2: ADS requests say which type they are of.
    #[error("a request without type_url on an aggregated stream: set DiscoveryRequest.type_url")]
    NoType,
    /// It would be echoed in the answer.
    #[error("a type_url of {0} bytes is no type's name")]
    TypeTooLong(usize),
    /// The names are too long or too many.
    #[error(transparent)]
    Subscription(#[from] SubscriptionError),
}

/// A response to be encoded and written.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// The type, as the client wrote it.
    pub type_url: Cow<'static, str>,
    /// Unique among the responses of this type on this stream.
    pub nonce: String,
    /// The number of the snapshot that it brings the client to: `system_version_info`, `version_info`.
    pub number: u64,
    /// Which form of them the client can load.
    pub generation: Generation,
    /// New and changed resources; in a state-of-the-world response of clusters or listeners all of them. Streams that
    /// begin alike share the list.
    pub resources: Arc<[Arc<Resource>]>,
    /// Names that no longer exist, or do not exist yet; incremental only.
    pub removed: Vec<ResourceName>,
}

/// Content that the client refused and that it is not sent again.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RefusedVersion {
    /// Its type.
    pub(crate) kind: ResourceType,
    /// Its name.
    pub(crate) name: ResourceName,
    /// The refused version.
    pub(crate) version: Version,
    /// When.
    pub(crate) at: Instant,
    /// In Envoy's words.
    pub(crate) message: String,
}

/// Responses of one type that may be on their way. Envoy withholds an acknowledgement while clusters warm and must
/// still be answered; a client that never acknowledges must not grow the stream.
const MAX_OUTSTANDING: usize = 64;
/// Answers for types that Weft does not serve.
const MAX_UNKNOWN: usize = 16;
const MAX_TYPE_URL: usize = 256;

/// One stream.
#[derive(Debug)]
pub struct Session {
    protocol: Protocol,
    proxy: ProxyId,
    identity: SpiffeId,
    secrets: Arc<dyn Secrets>,
    patience: Patience,
    names: Arc<NamePool>,
    generation: Generation,
    beginnings: Arc<Beginnings>,
    steps: Arc<Steps>,
    snapshot: Option<Arc<Snapshot>>,
    /// Whether `snapshot` knows the proxy: it is asked several times for each snapshot, and found once.
    known: bool,
    types: BTreeMap<ResourceType, Held>,
    /// Clusters that were sent before the first request for endpoints: theirs are sent whatever versions that request
    /// claims (rule 23).
    owed: Vec<Arc<Resource>>,
    /// The same, of the clusters with which the client began.
    owed_first: Option<Arc<[Arc<Resource>]>>,
    /// Clusters that the client waits for by name, whose endpoints follow before it asks for them.
    ahead: Vec<Arc<Resource>>,
    unknown: VecDeque<Response>,
    unknown_count: u64,
    /// What the subscriptions changed, for the index of who subscribes to what.
    changes: Vec<(ResourceType, Changed)>,
    /// What was refused alone, for the rollout.
    refused: Vec<RefusedResource>,
}

impl Session {
    /// The session of `proxy`, which authenticated as `identity`.
    pub fn new(
        protocol: Protocol,
        proxy: ProxyId,
        identity: SpiffeId,
        secrets: Arc<dyn Secrets>,
        patience: Patience,
    ) -> Self {
        Self {
            protocol,
            proxy,
            identity,
            secrets,
            patience,
            names: Arc::default(),
            generation: Generation::default(),
            beginnings: Arc::default(),
            steps: Arc::default(),
            snapshot: None,
            known: false,
            types: BTreeMap::new(),
            owed: Vec::new(),
            owed_first: None,
            ahead: Vec::new(),
            unknown: VecDeque::new(),
            unknown_count: 0,
            changes: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// Shares its sets of names, what it begins with, and what comes then, with the sessions of the same pools.
    pub(crate) fn sharing(self, names: Arc<NamePool>, beginnings: Arc<Beginnings>, steps: Arc<Steps>) -> Self {
        Self { names, beginnings, steps, ..self }
    }

    /// Sends what an Envoy of this generation can load.
    pub(crate) fn of_generation(self, generation: Generation) -> Self {
        Self { generation, ..self }
    }

    /// A newer snapshot is there.
    pub fn publish(&mut self, snapshot: Arc<Snapshot>) {
        self.known = snapshot.knows(&self.proxy);
        self.snapshot = Some(snapshot);
        self.adopt();
    }

    /// Some identity's secrets changed.
    pub fn secrets_changed(&mut self) {
        if let Some(held) = self.types.get_mut(&ResourceType::Secret) {
            held.touched = true;
        }
    }

    /// Takes an incremental request.
    pub fn delta(&mut self, request: DeltaDiscoveryRequest, now: Instant) -> Result<(), RequestError> {
        let Some(kind) = known(&request.type_url)? else {
            let asks = request.response_nonce.is_empty() || !request.resource_names_subscribe.is_empty();
            subscription::check(&request.resource_names_subscribe)?;
            if asks {
                self.answer_unknown(request.type_url, request.resource_names_subscribe);
            }
            return Ok(());
        };
        let first = !self.types.contains_key(&kind);
        let held = self.types.entry(kind).or_insert_with(|| Held::new(kind, self.protocol));
        let claims = request.initial_resource_versions;
        if first {
            subscription::check(claims.keys())?;
        }
        let error = request.error_detail.as_ref().map(|error| error.message.as_str());
        self.refused.extend(held.answered(&self.proxy, &request.response_nonce, error, now));
        let intern = Interned { snapshot: self.snapshot.as_deref(), kind, pool: &self.names };
        let (subscribe, unsubscribe) = (&request.resource_names_subscribe, &request.resource_names_unsubscribe);
        let changed = held.subscription.delta(kind, subscribe, unsubscribe, intern)?;
        held.answer |= first && changed.wildcard_asked;
        self.changes.extend(changed.of_names().map(|changed| (kind, changed)));
        let as_it_should_be = self.snapshot.as_ref().filter(|_| first && claims.len() >= WORTH_SHARING);
        let as_it_should_be = as_it_should_be.filter(|snapshot| {
            let beginning = self.beginnings.of(&self.proxy, snapshot, kind, &held.subscription);
            beginning.is_some_and(|beginning| beginning.is_had(&claims))
        });
        if let Some(snapshot) = as_it_should_be {
            held.base = Some(snapshot.clone());
            held.count = claims.len();
        } else {
            if first {
                held.claim(claims.into_iter().map(|(name, version)| (name.into(), Version::parse(&version))));
            }
            held.subscribed(&self.proxy, changed, first);
        }
        self.pay_endpoints(kind, first);
        if first {
            self.adopt();
        }
        Ok(())
    }

    /// Takes a state-of-the-world request.
    pub fn state_of_the_world(&mut self, request: DiscoveryRequest, now: Instant) -> Result<(), RequestError> {
        let Some(kind) = known(&request.type_url)? else {
            if request.response_nonce.is_empty() {
                self.answer_unknown(request.type_url, Vec::new());
            }
            return Ok(());
        };
        let first = !self.types.contains_key(&kind);
        let held = self.types.entry(kind).or_insert_with(|| Held::new(kind, self.protocol));
        let error = request.error_detail.as_ref().map(|error| error.message.as_str());
        self.refused.extend(held.answered(&self.proxy, &request.response_nonce, error, now));
        // Rules 6 and 7: a first request may carry the nonce of an earlier stream; a later one that is not about the
        // newest response is not answered, since the same names will come again with the newest nonce. They count all
        // the same: a name that is dropped and added again meanwhile would else be taken for one that the client has.
        let stale = !first && request.response_nonce != held.last_nonce;
        let touched = held.touched;
        let intern = Interned { snapshot: self.snapshot.as_deref(), kind, pool: &self.names };
        let changed = held.subscription.state_of_the_world(kind, &request.resource_names, intern)?;
        let different = changed != Default::default();
        held.answer |= first || kind.has_wildcard() && different;
        self.changes.extend(changed.of_names().map(|changed| (kind, changed)));
        held.subscribed(&self.proxy, changed, first);
        held.touched = if stale { touched } else { held.touched || held.answer || !held.due.is_empty() };
        self.pay_endpoints(kind, first);
        Ok(())
    }

    /// The next response, if there is anything to say. Called again until it returns `None`, each time the stream
    /// can be written.
    pub fn poll(&mut self, now: Instant) -> Option<Response> {
        let snapshot = self.snapshot.clone()?; // rule 5
        if let Some(response) = self.unknown.pop_front() {
            return Some(response);
        }
        // A proxy without a view is not known yet, or no longer: an empty answer would take away all it has.
        if !self.known {
            return None;
        }
        for kind in ResourceType::ALL {
            let uses_clusters = matches!(kind, ResourceType::Listener | ResourceType::Route);
            if uses_clusters && self.warming_until().is_some_and(|until| now < until) {
                continue;
            }
            if let Some(response) = self.render(kind, &snapshot, now) {
                return Some(response);
            }
            if kind == ResourceType::Endpoints
                && let Some(response) = self.send_ahead(&snapshot, now)
            {
                return Some(response);
            }
        }
        self.remove(&snapshot, now)
    }

    /// When `poll` is to be called again although nothing happened.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let leaving =
            self.types.values().flat_map(|held| held.exceptions.values()).filter_map(|e| Some(e.leaving?.until()));
        leaving.chain(self.warming_until()).filter(|at| *at > now).min()
    }

    /// The number of the snapshot that the client has answered everything of (taken it, or refused some of it), or
    /// `None` while something is to be sent or on its way.
    pub fn settled(&self) -> Option<u64> {
        let snapshot = self.snapshot.as_ref()?;
        let quiet = |held: &Held| {
            !held.dirty(snapshot)
                && held.outstanding.is_empty()
                && held.exceptions.values().all(|e| e.leaving.is_none_or(|leaving| leaving.is_unused()))
        };
        (!self.known || self.types.values().all(quiet)).then(|| snapshot.number())
    }

    /// The number of the snapshot up to which the client has answered everything; `None` before it was sent anything
    /// of some type that it subscribes to. It grows although newer responses are on their way.
    pub fn answered(&self) -> Option<u64> {
        let snapshot = self.snapshot.as_ref()?;
        if !self.known {
            return Some(snapshot.number());
        }
        self.types.values().map(Held::answered_up_to).min().unwrap_or(Some(snapshot.number()))
    }

    /// Nothing in `newest` concerns this stream: it holds no older snapshot for it, if it has nothing else to do.
    pub(crate) fn skip_to(&mut self, newest: &Arc<Snapshot>) {
        let held = self.snapshot.as_ref().filter(|held| held.number() < newest.number());
        if held.is_none_or(|held| !self.known || self.settled() != Some(held.number())) {
            return;
        }
        self.types.values_mut().for_each(|held| held.base = held.base.as_ref().map(|_| newest.clone()));
        self.known = newest.knows(&self.proxy);
        self.snapshot = Some(newest.clone());
    }

    /// What the subscriptions changed since this was asked last.
    pub(crate) fn take_changes(&mut self) -> Vec<(ResourceType, Changed)> {
        std::mem::take(&mut self.changes)
    }

    /// Whether there is something to take.
    pub(crate) fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// What the client refused, and is known to be the bad one, since this was asked last.
    pub(crate) fn take_refused(&mut self) -> Vec<RefusedResource> {
        std::mem::take(&mut self.refused)
    }

    /// Every name that the stream subscribes to, by type.
    pub(crate) fn names(&self) -> Vec<(ResourceType, Arc<Names>)> {
        self.types.iter().map(|(kind, held)| (*kind, held.subscription.shared_names())).collect()
    }

    /// What the inspection API shows. `when` tells the wall clock's time of an instant.
    pub fn status(&self, when: impl Fn(Instant) -> std::time::SystemTime) -> BTreeMap<ResourceType, TypeStatus> {
        let status = |held: &Held| TypeStatus {
            subscribed: held.subscription.names().len(),
            wildcard: held.subscription.wildcard(),
            resources: held.count,
            sent: held.counters.totals.sent,
            resources_sent: held.counters.totals.resources_sent,
            acknowledged: held.counters.totals.acknowledged,
            refused: held.counters.totals.refused,
            last_sent: held.counters.last_sent.map(&when),
            last_acknowledged: held.counters.last_acknowledged.map(&when),
            pending: !held.outstanding.is_empty(),
            refusal: held.counters.refusal.clone().map(|refused| Refusal {
                at: when(refused.at),
                message: refused.message,
                resources: refused.resources,
            }),
        };
        self.types.iter().map(|(kind, held)| (*kind, status(held))).collect()
    }

    /// What the client refused and is not sent again.
    pub(crate) fn refused(&self) -> Vec<RefusedVersion> {
        let refused = |(kind, held): (&ResourceType, &Held)| held.refused(*kind).collect::<Vec<_>>();
        self.types.iter().flat_map(refused).collect()
    }

    /// The clusters that the proxy asked for by name on this stream, or had before and kept.
    pub(crate) fn asked_clusters(&self) -> Names {
        let held = self.types.get(&ResourceType::Cluster);
        held.map(|held| held.subscription.names().clone()).unwrap_or_default()
    }

    /// What was said and heard on this stream so far.
    pub(crate) fn totals(&self) -> impl Iterator<Item = (ResourceType, Totals)> {
        self.types.iter().map(|(kind, held)| (*kind, held.counters.totals))
    }

    /// Until when listeners and routes wait for clusters to be acknowledged.
    fn warming_until(&self) -> Option<Instant> {
        let sent = self.types.get(&ResourceType::Cluster)?.outstanding.iter();
        sent.filter(|sent| !sent.items.is_empty()).map(|sent| sent.at + self.patience.warming).max()
    }

    /// Clusters that the client has from an earlier stream and would lose count as asked for (see [`Held::adopt`]).
    fn adopt(&mut self) {
        let Some(snapshot) = self.snapshot.as_ref().filter(|_| self.known) else { return };
        let Some(held) = self.types.get_mut(&ResourceType::Cluster) else { return };
        let added = held.adopt(&self.proxy, snapshot);
        if !added.is_empty() {
            self.changes.push((ResourceType::Cluster, Changed { added: Arc::new(added), ..Changed::default() }));
        }
    }

    /// The first request for endpoints: those of clusters that this stream has sent are due in any case (rule 23).
    fn pay_endpoints(&mut self, kind: ResourceType, first: bool) {
        if kind != ResourceType::Endpoints || !first {
            return;
        }
        let (owed, first) = (std::mem::take(&mut self.owed), self.owed_first.take());
        let Some(held) = self.types.get_mut(&kind).filter(|held| !held.all_due) else { return };
        let names = held.subscription.names();
        let owed = owed.iter().chain(first.iter().flat_map(|clusters| clusters.iter()));
        held.due.extend(owed.filter_map(|cluster| cluster.endpoints.clone()).filter(|name| names.contains(name)));
    }

    /// A cluster that was sent waits for its endpoints, even if they did not change (rules 14, 23, 31).
    fn endpoints_due(&mut self, clusters: Vec<Arc<Resource>>) {
        let Some(held) = self.types.get_mut(&ResourceType::Endpoints) else {
            self.owed.extend(clusters.into_iter().filter(|cluster| cluster.endpoints.is_some()));
            // A client that never asks for endpoints does not grow the stream.
            self.owed.sort_by(|a, b| a.endpoints.cmp(&b.endpoints));
            self.owed.dedup_by(|a, b| a.endpoints == b.endpoints);
            return;
        };
        let mut unasked = Vec::new();
        for cluster in clusters {
            match &cluster.endpoints {
                Some(name) if held.subscription.names().contains(name) => {
                    held.touched = true;
                    held.due.insert(name.clone());
                }
                Some(_) => unasked.push(cluster),
                None => {}
            }
        }
        if self.protocol == Protocol::Delta {
            unasked.retain(|cluster| self.subscribes(ResourceType::Cluster, &cluster.name));
            self.ahead.extend(unasked);
        }
    }

    /// As `endpoints_due`, of all clusters that the client begins with.
    fn first_endpoints_due(&mut self, clusters: &Arc<[Arc<Resource>]>) {
        match self.types.contains_key(&ResourceType::Endpoints) {
            true => self.endpoints_due(clusters.to_vec()),
            false => self.owed_first = Some(clusters.clone()),
        }
    }

    /// Whether this name of the type is subscribed to by name.
    fn subscribes(&self, kind: ResourceType, name: &ResourceName) -> bool {
        self.types.get(&kind).is_some_and(|held| held.subscription.names().contains(name))
    }

    /// A request waits for a cluster that is asked for by name. Envoy takes endpoints as soon as it has their cluster,
    /// so they follow the cluster at once, which spares that request one way to here and back. Envoy asks for them all
    /// the same and is answered (rule 16), so nothing is noted but the response.
    fn send_ahead(&mut self, snapshot: &Arc<Snapshot>, now: Instant) -> Option<Response> {
        let ahead = std::mem::take(&mut self.ahead);
        let waited_for = |cluster: Arc<Resource>| {
            let name = cluster.endpoints.as_ref().filter(|_| self.subscribes(ResourceType::Cluster, &cluster.name))?;
            let ahead = !self.subscribes(ResourceType::Endpoints, name);
            ahead.then(|| snapshot.get(&self.proxy, ResourceType::Endpoints, name)).flatten()
        };
        let endpoints: Vec<_> = ahead.into_iter().filter_map(waited_for).collect();
        if endpoints.is_empty() {
            return None;
        }
        self.respond(ResourceType::Endpoints, snapshot, endpoints.into(), Vec::new(), Items::default(), now)
    }

    /// Rule 38: a type that is not served has no resources, which is said so that the client does not wait.
    fn answer_unknown(&mut self, type_url: String, names: Vec<String>) {
        if self.unknown.len() >= MAX_UNKNOWN {
            return;
        }
        self.unknown_count += 1;
        self.unknown.push_back(Response {
            type_url: type_url.into(),
            nonce: self.unknown_count.to_string(),
            number: 0,
            generation: self.generation,
            resources: Arc::default(),
            removed: names.into_iter().map(ResourceName::from).collect(),
        });
    }
}

fn known(type_url: &str) -> Result<Option<ResourceType>, RequestError> {
    match type_url.len() {
        0 => Err(RequestError::NoType),
        length if length > MAX_TYPE_URL => Err(RequestError::TypeTooLong(length)),
        _ => Ok(ResourceType::from_type_url(type_url)),
    }
}

/// Names share their text with the table, and sets of names with the other streams.
struct Interned<'a> {
    snapshot: Option<&'a Snapshot>,
    kind: ResourceType,
    pool: &'a NamePool,
}

impl Intern for Interned<'_> {
    fn name(&self, name: &str) -> ResourceName {
        let known = self.snapshot.and_then(|snapshot| snapshot.intern(self.kind, name));
        known.cloned().unwrap_or_else(|| name.into())
    }

    fn known(&self, names: &[String]) -> Option<Arc<Names>> {
        self.pool.known(names)
    }

    fn share(&self, names: Arc<Names>) -> Arc<Names> {
        self.pool.share(names)
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
