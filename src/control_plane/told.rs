//! What is told of objects on Kubernetes: what the source saw of them, what is wrong with them, and who has them.
//!
//! An object has a part in the resources of the Services and pods that its last change touched, and in those that all
//! sidecars share.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::pipeline::State;
use crate::inspect::Mesh as _;
use crate::inspect::answers::{Generation, Generations, ReplicaAnswers};
use crate::kubernetes::status::{Findings, Observed, Replica};
use crate::mesh::{Diagnostic, Dirty, Kind, ObjectRef, ServiceKey};
use crate::source::kube::ObservedObjects;
use crate::xds::{Registry, pace};

/// An object that touched more than this is taken for one that concerns the whole mesh.
const MANY: usize = 1_000;
/// What was read a shorter time ago may not be in the mesh yet, or not on its way.
const SETTLES: Duration = pace::LONGEST.saturating_add(Duration::from_millis(500));
/// A change may be told together with others that were read so much earlier.
const GATHERED: Duration = Duration::from_millis(100);

/// What the last change of each object of SMI and of Weft touched.
#[derive(Debug, Default)]
pub(super) struct Parts(BTreeMap<ObjectRef, Part>);

#[derive(Debug)]
enum Part {
    Whole,
    Of(BTreeSet<ObjectRef>),
}

impl Parts {
    /// A change touched this. One that touched nothing leaves what is known: it was no change of what is used.
    pub(super) fn note(&mut self, object: &ObjectRef, touched: &Dirty) {
        if touched.is_empty()
            || matches!(object.kind, Kind::Namespace | Kind::Pod | Kind::Service | Kind::EndpointSlice)
        {
            return;
        }
        let part = match touched.config || touched.services.len() + touched.pods.len() > MANY {
            true => Part::Whole,
            false => {
                let of = |kind, namespace: &_, name: &Arc<str>| ObjectRef {
                    kind,
                    namespace: Some(Clone::clone(namespace)),
                    name: name.clone(),
                };
                let services = touched.services.iter().map(|key| of(Kind::Service, &key.namespace, &key.name));
                Part::Of(
                    services.chain(touched.pods.iter().map(|key| of(Kind::Pod, &key.namespace, &key.name))).collect(),
                )
            }
        };
        self.0.insert(object.clone(), part);
    }

    /// The object is gone.
    pub(super) fn forget(&mut self, object: &ObjectRef) {
        self.0.remove(object);
    }

    /// The groups, by their place in `objects`, that resources of an object belong to.
    fn groups(&self, objects: &[&ObjectRef]) -> Groups {
        let mut groups = Groups::default();
        for (at, object) in objects.iter().enumerate() {
            match self.0.get(*object) {
                Some(Part::Whole) => groups.whole.push(at),
                Some(Part::Of(of)) => {
                    groups.shared.push(at);
                    of.iter().for_each(|object| groups.of.entry(object.clone()).or_default().push(at));
                }
                None => {}
            }
        }
        groups
    }
}

#[derive(Debug, Default)]
struct Groups {
    whole: Vec<usize>,
    /// Those that what is shared belongs to, beside the whole.
    shared: Vec<usize>,
    of: HashMap<ObjectRef, Vec<usize>>,
}

impl Groups {
    fn of(&self, origin: Option<&ObjectRef>) -> Vec<usize> {
        let part = origin.map_or(Some(&self.shared), |origin| self.of.get(origin));
        self.whole.iter().chain(part.into_iter().flatten()).copied().collect()
    }
}

/// All that is told.
pub(super) struct Told {
    pub(super) observed: Arc<ObservedObjects>,
    pub(super) mesh: Arc<State>,
    pub(super) streams: Arc<Registry>,
}

impl Findings for Told {
    fn objects(&self) -> Vec<(ObjectRef, Arc<Observed>)> {
        self.observed.all()
    }

    fn diagnostics(&self) -> Vec<Diagnostic> {
        self.mesh.diagnostics()
    }

    fn replicas(&self, service: &ServiceKey) -> Vec<Replica> {
        Replica::all(self.mesh.lock().world.slices_of(service))
    }
}

impl Generations for Told {
    fn answers(&self, of: &[Generation]) -> Vec<Option<ReplicaAnswers>> {
        let (now, time) = (Instant::now(), SystemTime::now());
        let since = |of: &Generation| {
            let seen = self.observed.get(&of.object)?;
            let age = now.saturating_duration_since(seen.at);
            let read = seen.uid == of.uid && seen.generation == of.generation && age >= SETTLES;
            read.then(|| time - age - GATHERED)
        };
        let since: Vec<Option<SystemTime>> = of.iter().map(since).collect();
        let read = of.iter().zip(&since).filter_map(|(of, since)| Some((&of.object, (*since)?)));
        let (objects, times): (Vec<_>, Vec<_>) = read.unzip();
        let groups = self.mesh.lock().parts.groups(&objects);
        let mut answers = self.streams.together(&times, &|origin| groups.of(origin)).into_iter();
        let mut answer = |since: SystemTime| match answers.next().flatten() {
            Some((changed_at, answers)) => ReplicaAnswers { answers, changed: changed_at >= since },
            None => ReplicaAnswers::default(),
        };
        since.into_iter().map(|since| since.map(&mut answer)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::ServiceKey;

    fn object(kind: Kind, name: &str) -> ObjectRef {
        ObjectRef { kind, namespace: Some("shop".into()), name: name.into() }
    }

    #[test]
    fn an_object_has_a_part_in_what_its_last_change_touched_and_in_what_is_shared() {
        let mut parts = Parts::default();
        let (split, config, idle) =
            (object(Kind::TrafficSplit, "s"), object(Kind::MeshConfig, "default"), object(Kind::TCPRoute, "idle"));
        let touched = Dirty { services: [ServiceKey::new("shop", "cart")].into(), ..Dirty::default() };
        parts.note(&split, &touched);
        parts.note(&split, &Dirty::default());
        parts.note(&config, &Dirty { config: true, ..Dirty::default() });
        parts.note(&idle, &Dirty::default());
        parts.note(&object(Kind::Service, "cart"), &touched);
        assert_eq!(parts.0.len(), 2);
        let groups = parts.groups(&[&split, &config, &idle]);
        assert_eq!(groups.of(Some(&object(Kind::Service, "cart"))), [1, 0]);
        assert_eq!(groups.of(Some(&object(Kind::Service, "other"))), [1]);
        assert_eq!(groups.of(None), [1, 0]);
        parts.forget(&split);
        assert_eq!(parts.groups(&[&split]).of(None), Vec::<usize>::new());
    }
}
