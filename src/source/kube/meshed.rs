//! Which namespaces are meshed: those that are labelled, and those that have a pod with a sidecar all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// The meshed namespaces, as far as they have been read. A pod counts from its creation, before it has an address: what
/// it mounts must be there before it can start.
#[derive(Debug)]
pub struct MeshedNamespaces {
    known: Mutex<Known>,
    published: watch::Sender<BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct Known {
    labelled: BTreeSet<String>,
    /// Pods with a sidecar.
    pods: BTreeMap<String, usize>,
}

impl Default for MeshedNamespaces {
    fn default() -> Self {
        Self { known: Mutex::default(), published: watch::Sender::new(BTreeSet::new()) }
    }
}

impl MeshedNamespaces {
    /// The namespaces, and whenever they change.
    pub fn watch(&self) -> watch::Receiver<BTreeSet<String>> {
        self.published.subscribe()
    }

    pub(super) fn label(&self, namespace: &str, meshed: bool) {
        let mut known = self.known();
        let changed =
            if meshed { known.labelled.insert(namespace.to_owned()) } else { known.labelled.remove(namespace) };
        if changed {
            self.publish(&known);
        }
    }

    pub(super) fn pod_begins(&self, namespace: &str) {
        let mut known = self.known();
        let pods = known.pods.entry(namespace.to_owned()).or_default();
        *pods += 1;
        if *pods == 1 {
            self.publish(&known);
        }
    }

    pub(super) fn pod_ends(&self, namespace: &str) {
        let mut known = self.known();
        let Some(pods) = known.pods.get_mut(namespace) else { return };
        *pods = pods.saturating_sub(1);
        if *pods == 0 {
            known.pods.remove(namespace);
            self.publish(&known);
        }
    }

    fn publish(&self, known: &Known) {
        let all: BTreeSet<_> = known.labelled.iter().chain(known.pods.keys()).cloned().collect();
        self.published.send_if_modified(|published| {
            let changed = *published != all;
            *published = all;
            changed
        });
    }

    /// Nothing that is done under the lock panics half-way.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_meshed_by_its_label_or_by_a_pod() {
        let meshed = MeshedNamespaces::default();
        let mut seen = meshed.watch();
        let now = || meshed.watch().borrow().iter().cloned().collect::<Vec<_>>().join(" ");
        meshed.label("shop", true);
        meshed.pod_begins("depot");
        meshed.pod_begins("depot");
        assert_eq!(now(), "depot shop");
        meshed.pod_ends("depot");
        meshed.label("shop", false);
        assert_eq!(now(), "depot");
        seen.mark_unchanged();
        meshed.label("shop", false);
        meshed.pod_ends("elsewhere");
        assert!(!seen.has_changed().unwrap(), "nothing changed");
        meshed.pod_ends("depot");
        assert_eq!(now(), "");
    }
}
