//! A source that is read in this process: what it tells, and the mesh that comes of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::Client;
use tokio::sync::mpsc;
use weft::envoy::Translator;
use weft::mesh::{Dirty, Event as MeshEvent, World};
use weft::snapshot::Change;
use weft::source::kube::KubeSource;
use weft::source::{Event, directory};
use weft_e2e::kube::Kubernetes;
use weft_e2e::until;

const PATIENCE: Duration = Duration::from_secs(60);

/// Resources by type and name, with the hash of their content.
pub(crate) type Plan = BTreeMap<String, String>;

/// What a source has told so far.
#[derive(Default)]
struct Seen {
    world: World,
    told: Vec<String>,
}

/// A source that is read.
#[derive(Clone)]
pub(crate) struct Watched(Arc<Mutex<Seen>>);

impl Watched {
    /// Reads the API server with this client from now on.
    pub(crate) fn start(kubernetes: &Kubernetes, client: Client) -> Self {
        let watched = Self(Arc::default());
        let (events, mut batches) = mpsc::channel(16);
        kubernetes.spawn(KubeSource::new(client).run(events));
        let seen = watched.clone();
        kubernetes.spawn(async move {
            while let Some(batch) = batches.recv().await {
                let mut seen = seen.0.lock().unwrap();
                batch.into_iter().for_each(|event| seen.take(event));
            }
        });
        watched
    }

    /// What it has told, one event a line.
    pub(crate) fn told(&self) -> Vec<String> {
        self.0.lock().unwrap().told.clone()
    }

    /// Forgets what it has told until now, so that what follows can be looked at.
    pub(crate) fn forget(&self) {
        self.0.lock().unwrap().told.clear();
    }

    /// Waits for an event that begins and goes on like this.
    pub(crate) fn wait_for(&self, begins: &str, has: &str) -> anyhow::Result<String> {
        until(&format!("`{begins}… {has}`"), PATIENCE, || {
            let told = self.told();
            let found = told.iter().find(|line| line.starts_with(begins) && line.contains(has));
            Ok(found.cloned().ok_or_else(|| told[told.len().saturating_sub(10)..].join("\n")))
        })
    }

    /// What sidecars would be sent.
    pub(crate) fn plan(&self) -> Plan {
        plan(&self.0.lock().unwrap().world)
    }
}

impl Seen {
    fn take(&mut self, event: Event) {
        self.told.push(match &event {
            Event::Apply { manifest, .. } => format!("apply {}", manifest.object_ref()),
            Event::Delete(object) => format!("delete {object}"),
            Event::Rejected(found) => format!("rejected {found}"),
            Event::Trouble { of, found: Some(found) } => format!("trouble {of:?}: {found}"),
            Event::Trouble { of, found: None } => format!("over {of:?}"),
            Event::Synced => "synced".to_owned(),
        });
        apply(&mut self.world, event);
    }
}

fn apply(world: &mut World, event: Event) {
    match event {
        Event::Apply { object: Some(object), .. } => drop(world.apply(MeshEvent::Apply(object))),
        Event::Apply { object: None, manifest, .. } => drop(world.apply(MeshEvent::Delete(manifest.object_ref()))),
        Event::Delete(object) => drop(world.apply(MeshEvent::Delete(object))),
        _ => {}
    }
}

/// What sidecars would be sent for the objects of a directory or file.
pub(crate) fn plan_of(path: &Path) -> anyhow::Result<Plan> {
    let mut world = World::default();
    for event in directory::read_once(path)? {
        if let Event::Rejected(found) = &event {
            anyhow::bail!("{found}");
        }
        apply(&mut world, event);
    }
    Ok(plan(&world))
}

fn plan(world: &World) -> Plan {
    let mut everything = Dirty { config: true, ..Dirty::default() };
    everything.services.extend(world.services().map(|service| service.key.clone()));
    everything.pods.extend(world.pods().map(|pod| pod.key.clone()));
    let changes = Translator::default().translate(world, &everything).changes;
    let mut plan = Plan::new();
    let mut note = |whose: &str, resource: &weft::snapshot::Resource| {
        plan.insert(format!("{whose}{:?} {}", resource.kind, resource.name), format!("{:?}", resource.version));
    };
    for change in changes {
        match change {
            Change::Put(resource) => note("", &resource),
            Change::PutView(proxy, view) => {
                view.own.iter().for_each(|own| note(&format!("{proxy}: "), own));
            }
            Change::Fallback(_) | Change::Remove(..) | Change::RemoveView(..) => {}
        }
    }
    plan
}
