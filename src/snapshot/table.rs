//! The table itself: persistent maps, so that a snapshot is cheap to make, to keep and to compare.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::{Change, Fallback, Hosts, Pushed, Resource, ResourceName, ResourceType, View};
use crate::mesh::ProxyId;

type Table = OrdMap<ResourceName, Arc<Resource>>;

/// All that the proxies may see at one moment. Cloning costs a few reference counts.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    number: u64,
    read_at: Option<Instant>,
    clusters: Table,
    endpoints: Table,
    listeners: Table,
    routes: Table,
    views: OrdMap<ProxyId, Arc<View>>,
    fallback: Option<Arc<dyn Fallback>>,
}

impl Snapshot {
    /// The snapshot in which there is nothing, number 0.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Counts the snapshots; a later one has a larger number. Starts again when the process does.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The next snapshot. A `Put` of a version that is there already keeps what was there, and if none of the changes
    /// changes anything the number stays too: such a snapshot need not be published.
    ///
    /// Secrets are in no snapshot: a `Put` of one is ignored.
    pub fn with(&self, changes: impl IntoIterator<Item = Change>) -> Self {
        let mut next = self.clone();
        let changed = changes.into_iter().fold(false, |changed, change| next.apply(change) | changed);
        next.number += u64::from(changed);
        next
    }

    /// When the oldest change that it brings was read, if that was noted.
    pub fn read_at(&self) -> Option<Instant> {
        self.read_at
    }

    /// Notes when the oldest change that it brings was read.
    pub fn noting(self, read_at: Instant) -> Self {
        Self { read_at: Some(read_at), ..self }
    }

    /// This snapshot under another number.
    pub fn numbered(&self, number: u64) -> Self {
        Self { number, ..self.clone() }
    }

    /// The steps that lead from `base` to this one. Costs the number of steps, not the size of the tables.
    pub fn since(&self, base: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        for kind in ResourceType::ALL {
            let (Some(old), Some(new)) = (base.table(kind), self.table(kind)) else { continue };
            if old.ptr_eq(new) {
                continue;
            }
            changes.extend(old.diff(new).map(|item| match item {
                DiffItem::Add(_, resource) | DiffItem::Update { new: (_, resource), .. } => {
                    Change::Put(resource.clone())
                }
                DiffItem::Remove(name, _) => Change::Remove(kind, name.clone()),
            }));
        }
        changes.extend(base.views.diff(&self.views).map(|item| match item {
            DiffItem::Add(proxy, view) | DiffItem::Update { new: (proxy, view), .. } => {
                Change::PutView(proxy.clone(), view.clone())
            }
            DiffItem::Remove(proxy, _) => Change::RemoveView(proxy.clone()),
        }));
        if let Some(fallback) = self.fallback.as_ref().filter(|_| self.fallback_since(base).is_some()) {
            changes.push(Change::Fallback(fallback.clone()));
        }
        changes
    }

    /// What is in the table under this name, whoever may see it.
    pub fn shared(&self, kind: ResourceType, name: &ResourceName) -> Option<&Arc<Resource>> {
        self.table(kind)?.get(name)
    }

    /// What this proxy has for itself and is pushed; `None` if it is not known.
    pub fn view(&self, proxy: &ProxyId) -> Option<&Arc<View>> {
        self.views.get(proxy)
    }

    /// All proxies that are known.
    pub fn views(&self) -> impl Iterator<Item = (&ProxyId, &Arc<View>)> {
        self.views.iter()
    }

    /// Returns whether `change` made a difference.
    fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Put(resource) => {
                let Some(table) = self.table_mut(resource.kind) else { return false };
                if table.get(&resource.name).is_some_and(|old| old.version == resource.version) {
                    return false;
                }
                table.insert(resource.name.clone(), resource);
                true
            }
            Change::Remove(kind, name) => {
                self.table_mut(kind).is_some_and(|table| table.contains_key(&name) && table.remove(&name).is_some())
            }
            Change::PutView(proxy, view) => {
                if self.views.get(&proxy).is_some_and(|old| *old == view) {
                    return false;
                }
                self.views.insert(proxy, view);
                true
            }
            Change::RemoveView(proxy) => self.views.remove(&proxy).is_some(),
            Change::Fallback(fallback) => {
                self.fallback = Some(fallback);
                true
            }
        }
    }

    /// What `proxy` gets when it asks for `name`; see [`Seen::get`]. Nothing for a proxy without a view.
    pub fn get(&self, proxy: &ProxyId, kind: ResourceType, name: &ResourceName) -> Option<Arc<Resource>> {
        self.seen_by(proxy)?.get(kind, name)
    }

    /// The snapshot as `proxy` sees it; `None` for a proxy without a view.
    pub fn seen_by(&self, proxy: &ProxyId) -> Option<Seen<'_>> {
        Some(Seen { snapshot: self, view: self.views.get(proxy)? })
    }

    /// Whether `proxy` is known. One that is not is answered nothing, which is not the same as an empty table.
    pub fn knows(&self, proxy: &ProxyId) -> bool {
        self.views.contains_key(proxy)
    }

    /// Whether the wildcard of `proxy` contains `name`, if there is a resource of that name at all.
    pub fn in_wildcard(&self, proxy: &ProxyId, kind: ResourceType, name: &ResourceName) -> bool {
        let Some(view) = self.views.get(proxy) else { return false };
        if view.own.iter().any(|own| own.kind == kind && own.name == *name) {
            return true;
        }
        match (kind, &view.pushed) {
            (ResourceType::Cluster, Pushed::Only(names)) => names.contains(name),
            // The fallback has an answer to every address of the mesh: it is had by name only.
            _ => self.table(kind).is_some_and(|table| table.contains_key(name)),
        }
    }

    /// The names in the wildcard of `proxy`. Of those in [`Pushed::Only`], some may not exist.
    pub fn wildcard(&self, proxy: &ProxyId, kind: ResourceType) -> BTreeSet<ResourceName> {
        let Some(view) = self.views.get(proxy) else { return BTreeSet::new() };
        let mut names = own_names(view, kind);
        match (kind, &view.pushed) {
            (ResourceType::Cluster, Pushed::Only(only)) => names.extend(only.iter().cloned()),
            _ => names.extend(self.table(kind).into_iter().flat_map(|table| table.keys().cloned())),
        }
        names
    }

    /// The names of which `proxy` may see something different here than in `base`, in its wildcard or by asking; more
    /// names than necessary, never fewer. `asked` are the names it asked for: what the fallback answers can be
    /// compared for those only. The cost is that of the changes, except after a change of mode or of the fallback.
    pub fn changed<'a>(
        &self,
        base: &Self,
        proxy: &ProxyId,
        kind: ResourceType,
        asked: impl IntoIterator<Item = &'a ResourceName>,
    ) -> BTreeSet<ResourceName> {
        let mut names = BTreeSet::new();
        if let (Some(old), Some(new)) = (base.table(kind), self.table(kind))
            && !old.ptr_eq(new)
        {
            names.extend(old.diff(new).map(|item| match item {
                DiffItem::Add(name, _) | DiffItem::Remove(name, _) => name.clone(),
                DiffItem::Update { new: (name, _), .. } => name.clone(),
            }));
        }
        let hosts = self.fallback_since(base).filter(|_| kind == ResourceType::Cluster);
        if hosts.is_none() && base.views.ptr_eq(&self.views) {
            return names; // as after most changes: no view is any different
        }
        let (old, new) = (base.views.get(proxy), self.views.get(proxy));
        let known = old.is_some() && new.is_some();
        if !matches!((old, new), (Some(old), Some(new)) if Arc::ptr_eq(old, new)) {
            names.extend(old.into_iter().chain(new).flat_map(|view| own_names(view, kind)));
            if kind == ResourceType::Cluster {
                names.extend(pushed_changes(base, self, proxy));
            }
            if !known {
                names.extend(base.wildcard(proxy, kind));
                names.extend(self.wildcard(proxy, kind));
            }
        }
        if let (Some(hosts), Some(Pushed::Only(only))) = (&hosts, new.map(|view| &view.pushed)) {
            names.extend(only.iter().filter(|name| hosts.contain(name)).cloned());
        }
        if hosts.is_some() || !known {
            let differs = |name: &&ResourceName| !known || hosts.as_ref().is_some_and(|hosts| hosts.contain(name));
            names.extend(asked.into_iter().filter(differs).cloned());
        }
        names
    }

    /// Where the fallback may answer other than that of `base`; `None` if it is the same.
    pub fn fallback_since(&self, base: &Self) -> Option<Hosts> {
        match (&base.fallback, &self.fallback) {
            (Some(old), Some(new)) if Arc::ptr_eq(old, new) => None,
            (Some(old), Some(new)) => Some(new.since(&**old)),
            (None, None) => None,
            _ => Some(Hosts::All),
        }
    }

    /// The name as the table holds it, so that subscriptions share their text with the table.
    pub fn intern(&self, kind: ResourceType, name: &str) -> Option<&ResourceName> {
        self.table(kind)?.get_key_value(name).map(|(name, _)| name)
    }

    fn table(&self, kind: ResourceType) -> Option<&Table> {
        match kind {
            ResourceType::Cluster => Some(&self.clusters),
            ResourceType::Endpoints => Some(&self.endpoints),
            ResourceType::Listener => Some(&self.listeners),
            ResourceType::Route => Some(&self.routes),
            ResourceType::Secret => None,
        }
    }

    fn table_mut(&mut self, kind: ResourceType) -> Option<&mut Table> {
        match kind {
            ResourceType::Cluster => Some(&mut self.clusters),
            ResourceType::Endpoints => Some(&mut self.endpoints),
            ResourceType::Listener => Some(&mut self.listeners),
            ResourceType::Route => Some(&mut self.routes),
            ResourceType::Secret => None,
        }
    }
}

/// A snapshot as one proxy sees it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    snapshot: &'a Snapshot,
    view: &'a View,
}

impl Seen<'_> {
    /// The resource of this name: the proxy's own if it has one, else the shared one, else (clusters only) what the
    /// fallback makes of the name.
    pub fn get(&self, kind: ResourceType, name: &ResourceName) -> Option<Arc<Resource>> {
        let own = self.view.own.iter().find(|own| own.kind == kind && own.name == *name);
        let made = || match kind {
            ResourceType::Cluster => self.snapshot.fallback.as_ref()?.cluster(name),
            _ => None,
        };
        own.or_else(|| self.snapshot.table(kind)?.get(name)).cloned().or_else(made)
    }

    /// Every resource in the proxy's wildcard.
    pub fn wildcard(&self, kind: ResourceType) -> Vec<Arc<Resource>> {
        let own = || self.view.own.iter().filter(|own| own.kind == kind);
        let shadowed = |resource: &Arc<Resource>| own().any(|own| own.name == resource.name);
        let shared: Vec<_> = match (kind, &self.view.pushed) {
            (ResourceType::Cluster, Pushed::Only(names)) => {
                names.iter().filter_map(|name| self.get(kind, name)).collect()
            }
            _ => self.snapshot.table(kind).into_iter().flat_map(|table| table.values().cloned()).collect(),
        };
        own().cloned().chain(shared.into_iter().filter(|resource| !shadowed(resource))).collect()
    }
}

fn own_names(view: &View, kind: ResourceType) -> BTreeSet<ResourceName> {
    view.own.iter().filter(|own| own.kind == kind).map(|own| own.name.clone()).collect()
}

/// The clusters that entered or left the wildcard because the view changed.
fn pushed_changes(base: &Snapshot, next: &Snapshot, proxy: &ProxyId) -> BTreeSet<ResourceName> {
    let pushed = |snapshot: &Snapshot| snapshot.views.get(proxy).map(|view| view.pushed.clone());
    match (pushed(base), pushed(next)) {
        (Some(Pushed::All), Some(Pushed::All)) => BTreeSet::new(),
        (Some(Pushed::Only(old)), Some(Pushed::Only(new))) => old.symmetric_difference(&new).cloned().collect(),
        _ => &base.wildcard(proxy, ResourceType::Cluster) | &next.wildcard(proxy, ResourceType::Cluster),
    }
}
