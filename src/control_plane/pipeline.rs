//! From events to snapshots: one task owns the mesh.
//!
//! ```text
//!  batches of events ─▶ World::apply ─▶ Translator::translate ─▶ Snapshot::with ─▶ published
//!  time ─▶ Expiry: faults end
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::expiry::Expiry;
use super::told::Parts;
use crate::ca::Clock;
use crate::envoy::{Translated, Translator};
use crate::inspect::{Delivery, Mesh, Sidecar};
use crate::kubernetes::{Report, token_review::Pods};
use crate::mesh::diagnostic::{Location, Severity};
use crate::mesh::object::{Object, Pod};
use crate::mesh::{self, Diagnostic, Dirty, ObjectRef, PodKey, ServiceAccountKey, TrustDomain, WorkloadKey, World};
use crate::snapshot::Snapshot;
use crate::source::{Event, Part};
use crate::warm::WarmSets;
use crate::xds::Registry;

/// The first change after a quiet time goes out at once; changes that follow are gathered for this long after it, so
/// that a storm of them is a few snapshots and not one for each.
const GATHER: Duration = Duration::from_millis(20);

/// How long is slept at most until a fault ends, lest the clock was set in the meantime.
const LOOK: Duration = Duration::from_secs(60);

type Batches = mpsc::Receiver<Vec<Event>>;

/// The task that owns the mesh.
pub(super) struct Pipeline {
    batches: Batches,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    state: Arc<State>,
    snapshot: Snapshot,
    /// What the certificate authority signs for; fixed once it is made.
    trust_domain: Option<TrustDomain>,
    clock: Clock,
    expiry: Expiry,
}

/// What the inspection API reads while the task works.
pub(super) struct State(Mutex<Inner>);

#[derive(Default)]
pub(super) struct Inner {
    pub(super) world: World,
    pub(super) translator: Translator,
    /// What the workloads are known to call.
    pub(super) warm: WarmSets,
    /// What each object has a part in.
    pub(super) parts: Parts,
    /// What is said to be wrong, by object, or by place where the object is not known.
    rejected: BTreeMap<Subject, Vec<Diagnostic>>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Object(ObjectRef),
    Place(String),
    /// The source itself.
    Source(Part),
    /// An object of the control plane's own.
    Own(String),
}

impl Pipeline {
    /// A pipeline from `batches` to `snapshots`, and its state for the inspection API.
    pub(super) fn new(
        batches: Batches,
        snapshots: watch::Sender<Option<Arc<Snapshot>>>,
        clock: Clock,
    ) -> (Self, Arc<State>) {
        let state = Arc::new(State(Mutex::default()));
        let pipeline = Self {
            batches,
            snapshots,
            state: state.clone(),
            snapshot: Snapshot::empty(),
            trust_domain: None,
            clock,
            expiry: Expiry::default(),
        };
        (pipeline, state)
    }

    /// Reads until the source has told everything once, and publishes the first snapshot. `None` if it ends before.
    pub(super) async fn synced(mut self) -> Option<(Self, TrustDomain)> {
        let mut dirty = Dirty::default();
        loop {
            let batch = self.batches.recv().await?;
            let synced = batch.contains(&Event::Synced);
            self.take_in(batch, &mut dirty);
            if synced {
                break;
            }
        }
        let trust_domain = self.state.lock().world.config().trust_domain.clone();
        self.trust_domain = Some(trust_domain.clone());
        self.publish(&dirty, Instant::now());
        Some((self, trust_domain))
    }

    /// Works until the source ends.
    pub(super) async fn run(mut self) {
        let mut quiet_until = Instant::now();
        loop {
            let batch = tokio::select! {
                batch = self.batches.recv() => match batch {
                    Some(batch) => batch,
                    None => return,
                },
                () = a_fault_ends(self.expiry.next(), &self.clock) => Vec::new(),
            };
            let read_at = Instant::now();
            let mut dirty = Dirty::default();
            self.take_in(batch, &mut dirty);
            self.end_faults(&mut dirty);
            let gather = tokio::time::sleep_until(quiet_until);
            tokio::pin!(gather);
            loop {
                tokio::select! {
                    biased; // the time is a bound: a storm that does not end is published all the same
                    () = &mut gather => break,
                    more = self.batches.recv() => match more {
                        Some(batch) => self.take_in(batch, &mut dirty),
                        None => break,
                    },
                }
            }
            if !dirty.is_empty() {
                self.publish(&dirty, read_at);
                quiet_until = Instant::now() + GATHER;
            }
        }
    }

    fn take_in(&mut self, batch: Vec<Event>, dirty: &mut Dirty) {
        let state = self.state.clone();
        let mut inner = state.lock();
        for event in batch {
            match event {
                Event::Apply { manifest, object, warnings } => {
                    let about = manifest.object_ref();
                    let over = self.over(&about, object.as_ref());
                    let object = object.filter(|_| over.is_none());
                    let warnings: Vec<_> = warnings.into_iter().chain(over).collect();
                    inner.say(Subject::Object(about.clone()), warnings);
                    let object = object.map(|object| self.in_our_trust_domain(object, &mut inner));
                    let event = object.map_or(mesh::Event::Delete(about.clone()), mesh::Event::Apply);
                    let touched = inner.world.apply(event);
                    inner.parts.note(&about, &touched);
                    dirty.merge(touched);
                }
                Event::Delete(object) => {
                    self.expiry.forget(&object);
                    inner.say(Subject::Object(object.clone()), Vec::new());
                    inner.parts.forget(&object);
                    dirty.merge(inner.world.apply(mesh::Event::Delete(object)));
                }
                Event::Rejected(diagnostic) => {
                    let subject = match (&diagnostic.object, &diagnostic.location) {
                        (Some(object), _) => Subject::Object(object.clone()),
                        (None, Some(Location { file, .. })) => Subject::Place(file.display().to_string()),
                        (None, None) => Subject::Place(String::new()),
                    };
                    inner.say(subject, vec![diagnostic]);
                }
                Event::Trouble { of, found } => {
                    if found.is_none() {
                        tracing::info!(part = ?of, "the source can be read again");
                    }
                    inner.say(Subject::Source(of), found.into_iter().collect());
                }
                Event::Synced => {}
            }
        }
    }

    /// What to say of an object whose time is over, and which therefore is not used.
    fn over(&mut self, about: &ObjectRef, object: Option<&Object>) -> Option<Diagnostic> {
        match object {
            Some(Object::TrafficFault(fault)) => self.expiry.note(about, fault, self.clock.now()),
            _ => None,
        }
    }

    fn end_faults(&mut self, dirty: &mut Dirty) {
        let mut inner = self.state.lock();
        for (object, diagnostic) in self.expiry.due(self.clock.now()) {
            log(&diagnostic);
            inner.rejected.entry(Subject::Object(object.clone())).or_default().push(diagnostic);
            dirty.merge(inner.world.apply(mesh::Event::Delete(object)));
        }
    }

    /// The roots of the mesh are made for one trust domain: another one needs another start.
    fn in_our_trust_domain(&self, object: Object, inner: &mut Inner) -> Object {
        let Some(ours) = &self.trust_domain else { return object };
        let Object::MeshConfig(mut config) = object else { return object };
        if config.trust_domain != *ours {
            let reason = format!("the control plane signs for `{ours}` and keeps to it while it runs");
            let help = "restart the control plane, or set the field back";
            let about = Object::MeshConfig(config.clone()).object_ref();
            let diagnostic = Diagnostic::warning("spec.trustDomain", reason, help).about(about.clone());
            inner.say(Subject::Object(about), vec![diagnostic]);
            config.trust_domain = ours.clone();
        }
        Object::MeshConfig(config)
    }

    fn publish(&mut self, dirty: &Dirty, read_at: Instant) {
        let started = std::time::Instant::now();
        let Inner { world, translator, warm, .. } = &mut *self.state.lock();
        translator.learned(warm.clone());
        let Translated { changes, findings, work } = translator.translate(world, dirty);
        findings.iter().for_each(log);
        let count = changes.len();
        if count == 0 && self.snapshots.borrow().is_some() {
            return;
        }
        self.snapshot = self.snapshot.with(changes).noting(read_at.into_std());
        self.snapshots.send_replace(Some(Arc::new(self.snapshot.clone())));
        tracing::debug!(snapshot = self.snapshot.number(), changes = count, ?work, took = ?started.elapsed(), "published");
    }
}

/// Waits until a fault may have ended; for ever, if none will.
async fn a_fault_ends(next: Option<SystemTime>, clock: &Clock) {
    match next {
        Some(next) => tokio::time::sleep(next.duration_since(clock.now()).unwrap_or_default().min(LOOK)).await,
        None => std::future::pending().await,
    }
}

impl Inner {
    /// Replaces what is said of the subject. What was not said before is logged: an API server tells of the same pod many
    /// times.
    fn say(&mut self, subject: Subject, diagnostics: Vec<Diagnostic>) {
        let before = self.rejected.get(&subject).map(Vec::as_slice).unwrap_or_default();
        diagnostics.iter().filter(|new| !before.contains(new)).for_each(log);
        if diagnostics.is_empty() {
            self.rejected.remove(&subject);
        } else {
            self.rejected.insert(subject, diagnostics);
        }
    }
}

impl State {
    /// Nothing that is done under the lock panics half-way; what it guards is whole.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What hinders the control plane from beginning.
    pub(super) fn hindrances(&self) -> Vec<String> {
        let inner = self.lock();
        let own = |subject: &Subject| matches!(subject, Subject::Source(_) | Subject::Own(_));
        let found = inner.rejected.iter().filter(|(subject, _)| own(subject)).flat_map(|(_, found)| found);
        found.filter(|found| found.severity == Severity::Error).map(|found| found.reason.clone()).collect()
    }
}

impl Report for State {
    fn report(&self, of: &str, found: Option<Diagnostic>) {
        self.lock().say(Subject::Own(of.to_owned()), found.into_iter().collect());
    }
}

impl Pods for State {
    fn pod(&self, pod: &PodKey) -> Option<(Arc<str>, ServiceAccountKey)> {
        self.lock().world.pod(pod).map(|pod| (pod.uid.clone(), pod.account.clone()))
    }
}

impl Mesh for State {
    fn diagnostics(&self) -> Vec<Diagnostic> {
        let inner = self.lock();
        inner.rejected.values().flatten().cloned().chain(inner.translator.diagnostics()).collect()
    }

    fn workload(&self, pod: &PodKey) -> Option<WorkloadKey> {
        self.lock().world.pod(pod).map(|pod| pod.workload.clone())
    }

    fn sidecars(&self) -> Vec<Sidecar> {
        let inner = self.lock();
        let meshed = inner.world.pods().filter(|pod| pod.meshed && !pod.host_network);
        let sidecar = |pod: &Pod| {
            let services: BTreeSet<_> = inner.world.services_of_pod(pod).map(|service| service.key.clone()).collect();
            Some(Sidecar {
                pod: pod.key.clone(),
                ip: *pod.ips.first()?,
                workload: pod.workload.clone(),
                version: pod.version().map(str::to_owned),
                account: pod.account.clone(),
                services: services.into_iter().collect(),
            })
        };
        meshed.filter_map(sidecar).collect()
    }
}

/// How far the newest snapshot has come.
pub(super) struct Progress {
    pub(super) published: watch::Receiver<Option<Arc<Snapshot>>>,
    pub(super) streams: Arc<Registry>,
}

impl Delivery for Progress {
    fn snapshot(&self) -> u64 {
        self.published.borrow().as_ref().map_or(0, |snapshot| snapshot.number())
    }

    fn behind(&self) -> usize {
        match self.streams.newest() < self.snapshot() {
            true => self.streams.connected(), // it waits for those before it
            false => self.streams.pending(),
        }
    }
}

fn log(diagnostic: &Diagnostic) {
    match diagnostic.severity {
        Severity::Error => tracing::error!("{diagnostic}"),
        Severity::Warning => tracing::warn!("{diagnostic}"),
    }
}
