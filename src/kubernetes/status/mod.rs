//! What became of objects, for people to see where they look: conditions in their status, and events. Written by the
//! holder of the Lease.
//!
//! ```text
//!  objects seen ──┐
//!  diagnostics  ──┼─▶ conditions (pure) ─ different from what is there ─▶ status of objects of SMI and of Weft
//!  own answers ──┬┘        └─▶ events (pure) ─ not said yet ──────────▶ Events, of every kind
//!  replicas ─────┘ whole (pure)
//! ```
//!
//! Each round compares what should be said with what the API server has. So nothing is written twice, a new holder goes
//! on where another ended, and what somebody else has changed is mended. A spec is never touched. How much is written in a
//! time is limited; what has to wait is written later, if it still holds.

mod conditions;
mod events;
mod limit;
mod replicas;
#[cfg(test)]
mod tests;
mod whole;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Cluster, Report, RequestError, send};
use crate::inspect::answers::{Generation, Generations};
use crate::mesh::{Diagnostic, Kind, ObjectRef, ServiceKey};
use conditions::{Difference, Wanted};
use events::Saying;
use limit::Limit;
pub use replicas::Replica;
use replicas::Reply;
use whole::Whole;

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(1);
/// What was read a shorter time ago may not be in the mesh of every replica yet, or not on its way.
const SETTLES: Duration = Duration::from_secs(2);
/// What was written shows by then, or is written again.
const SHOWS: Duration = Duration::from_secs(10);
/// So long it is believed that a kind has no status.
const BARE: Duration = Duration::from_secs(60);
/// A delivery that is not complete is told anew after this time, if it is another one.
const PROGRESS: Duration = Duration::from_secs(30);
/// Conditions: so many at once, and then so many a second.
const CONDITIONS_LIMIT: (u32, f64) = (50, 10.0);
/// Events: the same.
const EVENTS_LIMIT: (u32, f64) = (20, 2.0);
/// So many events are remembered by name, to be counted when they come again.
const REMEMBERED: usize = 10_000;
/// Who we are to server-side apply.
const MANAGER: &str = "weft-status";
/// What is reported.
const STATUS: &str = "the status of objects";
const EVENTS: &str = "events of objects";
const REPLICAS: &str = "the other replicas";

/// What an API server says of an object beside what is in it.
#[derive(Clone, PartialEq, Debug)]
pub struct Observed {
    /// The version that it is read in: `weft.dev/v1alpha1`.
    pub api_version: &'static str,
    /// `trafficpolicies`.
    pub plural: Arc<str>,
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.generation`.
    pub generation: i64,
    /// `status.conditions`.
    pub conditions: Vec<Condition>,
    /// When this generation was read.
    pub at: Instant,
}

/// What there is to tell, and what the proxies of this replica have answered.
pub trait Findings: Generations {
    /// The objects of SMI and of Weft.
    fn objects(&self) -> Vec<(ObjectRef, Arc<Observed>)>;

    /// What is wrong with objects.
    fn diagnostics(&self) -> Vec<Diagnostic>;

    /// The replicas of the control plane, this one among them, by their Service.
    fn replicas(&self, service: &ServiceKey) -> Vec<Replica>;
}

/// Writes what became of objects.
pub struct Status {
    cluster: Cluster,
    findings: Arc<dyn Findings>,
    report: Arc<dyn Report>,
}

/// What one holder remembers from one round to the next.
struct Tenure {
    conditions: Limit,
    events: Limit,
    /// The conditions that were written a short time ago.
    sent: HashMap<ObjectRef, (Vec<Wanted>, Instant)>,
    /// Those whose status was not there when it was to be written.
    missed: HashSet<ObjectRef>,
    /// Kinds whose definition has no status.
    bare: HashMap<Kind, Instant>,
    /// What events have said and still holds.
    said: HashMap<ObjectRef, BTreeSet<Saying>>,
    /// The names of events that were written.
    written: HashSet<String>,
}

impl Tenure {
    fn new(now: Instant) -> Self {
        Self {
            conditions: Limit::new(CONDITIONS_LIMIT, now),
            events: Limit::new(EVENTS_LIMIT, now),
            sent: HashMap::new(),
            missed: HashSet::new(),
            bare: HashMap::new(),
            said: HashMap::new(),
            written: HashSet::new(),
        }
    }
}

impl Status {
    /// That of what `findings` tell.
    pub fn new(cluster: &Cluster, findings: Arc<dyn Findings>, report: Arc<dyn Report>) -> Self {
        Self { cluster: cluster.clone(), findings, report }
    }

    /// Writes what is new, until the future is dropped.
    pub async fn keep(&self) {
        let mut tenure = Tenure::new(Instant::now());
        let mut rounds = interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            self.round(&mut tenure).await;
        }
    }

    async fn round(&self, tenure: &mut Tenure) {
        let now = Instant::now();
        let objects: BTreeMap<ObjectRef, Arc<Observed>> = self.findings.objects().into_iter().collect();
        let mut found: BTreeMap<ObjectRef, Vec<Diagnostic>> = BTreeMap::new();
        for diagnostic in self.findings.diagnostics() {
            if let Some(object) = diagnostic.object.clone() {
                found.entry(object).or_default().push(diagnostic);
            }
        }
        tenure.bare.retain(|_, since| now.duration_since(*since) < BARE);
        tenure.sent.retain(|object, (_, at)| objects.contains_key(object) && now.duration_since(*at) < PROGRESS);
        tenure.missed.retain(|object| objects.contains_key(object));
        let mut wanted = self.wanted(&objects, &found, now).await;
        // Before the conditions are written: what they say already needs no event.
        let sayings = sayings(&found, &wanted);
        tenure.said.retain(|object, _| sayings.contains_key(object));
        for (object, said) in &sayings {
            if let Some((observed, _)) =
                objects.get(object).zip(wanted.get(object)).filter(|_| !tenure.said.contains_key(object))
            {
                let already = said.iter().filter(|saying| conditions::say(&observed.conditions, saying)).cloned();
                tenure.said.insert(object.clone(), already.collect());
            }
        }
        wanted.retain(|object, wanted| {
            let sent = tenure.sent.get(object);
            match objects.get(object).map(|seen| conditions::difference(seen, wanted)) {
                Some(Difference::Verdict) => {
                    !sent.is_some_and(|(sent, at)| sent == wanted && now.duration_since(*at) < SHOWS)
                }
                Some(Difference::Progress) => sent.is_none(),
                Some(Difference::None) | None => false,
            }
        });
        self.write_conditions(&objects, wanted, tenure, now).await;
        self.write_events(&objects, &sayings, tenure).await;
    }

    /// The conditions that objects should have; those that were read a moment ago are left out.
    async fn wanted(
        &self,
        objects: &BTreeMap<ObjectRef, Arc<Observed>>,
        found: &BTreeMap<ObjectRef, Vec<Diagnostic>>,
        now: Instant,
    ) -> BTreeMap<ObjectRef, Vec<Wanted>> {
        let mut wanted = BTreeMap::new();
        let mut under_way = Vec::new();
        for (object, seen) in objects.iter().filter(|(_, seen)| now.duration_since(seen.at) >= SETTLES) {
            let accepted = conditions::accepted(found.get(object).map(Vec::as_slice).unwrap_or_default());
            let settled = conditions::settled(seen, &accepted);
            if settled.is_none() {
                let (uid, generation) = (seen.uid.clone(), seen.generation);
                under_way.push(Generation { object: object.clone(), uid, generation });
            }
            wanted.insert(object.clone(), [Some(accepted), settled].into_iter().flatten().collect::<Vec<_>>());
        }
        let under_way: Arc<[Generation]> = under_way.into();
        let others = self.ask(&under_way).await;
        let own = if under_way.is_empty() { Vec::new() } else { self.findings.answers(&under_way) };
        for (place, (of, own)) in under_way.iter().zip(own).enumerate() {
            let Some(own) = own else {
                // It has changed in the meantime: the next round is about what it is now.
                wanted.remove(&of.object);
                continue;
            };
            let mut whole = Whole::of(own);
            others.iter().for_each(|(replica, reply)| whole.add(replica, reply, place));
            wanted.entry(of.object.clone()).or_default().push(conditions::delivered(&whole));
        }
        wanted
    }

    /// What the other replicas say of these objects.
    async fn ask(&self, of: &Arc<[Generation]>) -> Vec<(Replica, Reply)> {
        let mut others = match of.is_empty() {
            true => Vec::new(),
            false => self.findings.replicas(&ServiceKey::new(self.cluster.namespace(), replicas::SERVICE)),
        };
        others.retain(|replica| *replica.name != *self.cluster.replica);
        let replies = replicas::ask(others, of).await;
        self.report.report(REPLICAS, replicas::silence(&replies));
        replies
    }

    async fn write_conditions(
        &self,
        objects: &BTreeMap<ObjectRef, Arc<Observed>>,
        wanted: BTreeMap<ObjectRef, Vec<Wanted>>,
        tenure: &mut Tenure,
        now: Instant,
    ) {
        let (mut failed, mut forbidden) = (None, HashSet::new());
        for (object, wanted) in wanted {
            let skipped = tenure.bare.contains_key(&object.kind) || forbidden.contains(&object.kind);
            let Some(seen) = objects.get(&object).filter(|_| !skipped) else { continue };
            if !tenure.conditions.take(now) {
                break;
            }
            match self.write_status(&object, seen, &wanted).await {
                Ok(()) => {
                    tenure.sent.insert(object, (wanted, now));
                }
                // It is gone, which will be told soon; or there is no status.
                Err(RequestError::Missing) => {
                    if !tenure.missed.insert(object.clone()) {
                        tenure.bare.insert(object.kind, now);
                    }
                }
                // It is another object of this name by now.
                Err(RequestError::Conflict) => {}
                Err(error) => {
                    // What is forbidden for one kind may be allowed for the next.
                    let ends = !matches!(error, RequestError::Forbidden { .. });
                    failed = Some((error, format!("{}/status", seen.plural)));
                    forbidden.insert(object.kind);
                    if ends {
                        break;
                    }
                }
            }
        }
        self.say(STATUS, failed);
    }

    async fn write_status(&self, object: &ObjectRef, seen: &Observed, wanted: &[Wanted]) -> Result<(), RequestError> {
        let resource = ApiResource { plural: seen.plural.to_string(), ..resource(seen.api_version, object.kind) };
        let api: Api<DynamicObject> = match &object.namespace {
            Some(namespace) => Api::namespaced_with(self.cluster.client(), namespace.as_str(), &resource),
            None => Api::all_with(self.cluster.client(), &resource),
        };
        let status = json!({
            "apiVersion": seen.api_version, "kind": object.kind.to_string(),
            // Never of another object that has come to have this name.
            "metadata": {"name": &*object.name, "uid": &*seen.uid},
            "status": {
                "observedGeneration": seen.generation,
                "conditions": wanted.iter().map(|wanted| wanted.condition(seen)).collect::<Vec<_>>(),
            },
        });
        let params = PatchParams::apply(MANAGER).force();
        send("patch", api.patch_status(&object.name, &params, &Patch::Apply(status))).await.map(drop)
    }

    async fn write_events(
        &self,
        objects: &BTreeMap<ObjectRef, Arc<Observed>>,
        sayings: &BTreeMap<ObjectRef, BTreeSet<Saying>>,
        tenure: &mut Tenure,
    ) {
        let mut failed = None;
        'objects: for (object, sayings) in sayings {
            let said = tenure.said.entry(object.clone()).or_default();
            said.retain(|saying| sayings.contains(saying));
            let new: Vec<_> = sayings.iter().filter(|saying| !said.contains(*saying)).cloned().collect();
            if new.is_empty() {
                continue;
            }
            let mut reference = None;
            for saying in new {
                if !tenure.events.take(Instant::now()) {
                    break 'objects;
                }
                if reference.is_none() {
                    reference = match self.reference(object, objects.get(object)).await {
                        Ok(found) => found,
                        Err(error) => {
                            failed = Some((error, "the object".to_owned()));
                            break 'objects;
                        }
                    };
                }
                if let Some(of) = &reference
                    && let Err(error) = self.write_event(of, &saying, &mut tenure.written).await
                {
                    failed = Some((error, "events".to_owned()));
                    break 'objects;
                }
                // An object that is gone needs no event.
                tenure.said.entry(object.clone()).or_default().insert(saying);
            }
        }
        self.say(EVENTS, failed);
    }

    /// Writes an event, or counts it when it was written before.
    async fn write_event(
        &self,
        of: &ObjectReference,
        saying: &Saying,
        written: &mut HashSet<String>,
    ) -> Result<(), RequestError> {
        let event = events::event(of, saying, &self.cluster.replica);
        let (name, space) = (event.metadata.name.clone().unwrap_or_default(), event.metadata.namespace.clone());
        let api: Api<Event> = Api::namespaced(self.cluster.client(), space.as_deref().unwrap_or_default());
        if written.len() >= REMEMBERED {
            written.clear();
        }
        let new = written.insert(name.clone());
        match send("create", api.create(&PostParams::default(), &event)).await {
            // It was written by an earlier holder, when it began.
            Err(RequestError::Conflict) if new => Ok(()),
            Err(RequestError::Conflict) => {
                let found = send("get", api.get(&name)).await?;
                let again =
                    json!({"count": found.count.unwrap_or(1).saturating_add(1), "lastTimestamp": event.last_timestamp});
                send("patch", api.patch(&name, &PatchParams::default(), &Patch::Merge(again))).await.map(drop)
            }
            // The namespace is gone, or going.
            Err(RequestError::Missing) => Ok(()),
            Err(RequestError::Forbidden { message, .. }) if message.contains("being terminated") => Ok(()),
            written => written.map(drop),
        }
    }

    /// The object as an event names it; `None` when it is gone.
    async fn reference(
        &self,
        object: &ObjectRef,
        observed: Option<&Arc<Observed>>,
    ) -> Result<Option<ObjectReference>, RequestError> {
        let reference = |api_version: &str, uid: Option<String>| ObjectReference {
            api_version: Some(api_version.to_owned()),
            kind: Some(object.kind.to_string()),
            namespace: object.namespace.as_ref().map(|namespace| namespace.as_str().to_owned()),
            name: Some(object.name.to_string()),
            uid,
            ..ObjectReference::default()
        };
        if let Some(observed) = observed {
            return Ok(Some(reference(observed.api_version, Some(observed.uid.to_string()))));
        }
        let api_version = match object.kind {
            Kind::EndpointSlice => "discovery.k8s.io/v1",
            Kind::Namespace | Kind::Pod | Kind::Service => "v1",
            _ => return Ok(None),
        };
        let resource = resource(api_version, object.kind);
        let api: Api<DynamicObject> = match &object.namespace {
            Some(namespace) => Api::namespaced_with(self.cluster.client(), namespace.as_str(), &resource),
            None => Api::all_with(self.cluster.client(), &resource),
        };
        // A list of one: the right to list is there, since all of them are read.
        let only = ListParams::default().fields(&format!("metadata.name={}", object.name));
        let found = send("list", api.list(&only)).await?.items.into_iter().next();
        Ok(found.map(|found| reference(api_version, found.metadata.uid)))
    }

    fn say(&self, of: &str, failed: Option<(RequestError, String)>) {
        let found = failed.map(|(error, resource)| {
            let reason = format!("{of} cannot be written, so they do not say what became of them: {error}");
            Diagnostic::warning("", reason, error.help(&resource))
        });
        self.report.report(of, found);
    }
}

/// What is to be said of each object by events.
fn sayings(
    found: &BTreeMap<ObjectRef, Vec<Diagnostic>>,
    wanted: &BTreeMap<ObjectRef, Vec<Wanted>>,
) -> BTreeMap<ObjectRef, BTreeSet<Saying>> {
    let mut sayings: BTreeMap<ObjectRef, BTreeSet<Saying>> = BTreeMap::new();
    for (object, found) in found {
        sayings.entry(object.clone()).or_default().extend(found.iter().map(Saying::of));
    }
    for (object, wanted) in wanted {
        let refused = wanted.iter().filter_map(Saying::of_refusal);
        for saying in refused {
            sayings.entry(object.clone()).or_default().insert(saying);
        }
    }
    sayings
}

fn resource(api_version: &str, kind: Kind) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind.to_string()))
}
