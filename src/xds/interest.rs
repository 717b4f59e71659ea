//! Which streams a change concerns: an index from resource to the streams that subscribe to it.
//!
//! A stream is a small number, a `Slot`, which is used again when the stream has ended; sets of them are bitmaps. So a
//! change wakes those who use it and nobody else. Thousands of streams with the same thousand subscriptions share one
//! set of names: the names are looked at once, when the first of them comes, and each further stream is one more bit.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::name_pool::WORTH_SHARING;
use super::subscription::{Changed, Names};
use crate::mesh::ProxyId;
use crate::snapshot::{Change, Hosts, Pushed, ResourceName, ResourceType, Snapshot, View};

/// The number of a live stream.
pub(crate) type Slot = u32;

/// A resource by type and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Key {
    /// Its type.
    pub(crate) kind: ResourceType,
    /// Its name.
    pub(crate) name: ResourceName,
}

/// Who subscribes to what. It may name a stream too many, never one too few.
#[derive(Debug, Default)]
pub(crate) struct Interest {
    all: RoaringBitmap,
    named: HashMap<Key, Named>,
    /// The streams that subscribe to all names of a set, by the set's place in memory: the streams keep it there.
    sets: HashMap<SetId, RoaringBitmap>,
    /// Of each stream and type that was subscribed to: the set with which it began, if it still has all of it. What it
    /// subscribes to beside that it names singly.
    set_of: HashMap<(Slot, ResourceType), Option<Arc<Names>>>,
    /// The names of clusters in `named`, by host.
    hosts: HashMap<String, BTreeSet<ResourceName>>,
    wildcard: HashMap<ResourceType, RoaringBitmap>,
    /// Streams whose wildcard contains every shared cluster.
    pushed_all: RoaringBitmap,
    /// Streams whose wildcard contains this cluster.
    pushed: HashMap<ResourceName, RoaringBitmap>,
    /// Under which names of `pushed` a stream stands.
    pushed_of: HashMap<Slot, Pushed>,
    /// More than one stream a proxy while it connects again.
    proxies: HashMap<ProxyId, RoaringBitmap>,
}

/// A set of names of one type, told by where it is: [`Interest::set_of`] keeps it there.
type SetId = (ResourceType, usize);

/// Who subscribes to one name.
#[derive(Debug, Default)]
struct Named {
    /// The streams that name it singly.
    streams: RoaringBitmap,
    /// The sets that contain it.
    sets: Vec<SetId>,
}

impl Interest {
    /// A stream of `proxy` begins.
    pub(crate) fn enter(&mut self, slot: Slot, proxy: &ProxyId, view: Option<&View>) {
        self.all.insert(slot);
        self.proxies.entry(proxy.clone()).or_default().insert(slot);
        self.push(slot, view);
    }

    /// It ends; `names` are those that it is still subscribed to.
    pub(crate) fn leave(
        &mut self,
        slot: Slot,
        proxy: &ProxyId,
        names: impl IntoIterator<Item = (ResourceType, Arc<Names>)>,
    ) {
        self.all.remove(slot);
        self.push(slot, None);
        for streams in self.wildcard.values_mut() {
            streams.remove(slot);
        }
        for (kind, names) in names {
            let set = self.leave_set(slot, kind);
            if set.as_ref().is_some_and(|set| Arc::ptr_eq(set, &names)) {
                continue;
            }
            for name in names.iter().filter(|name| set.as_ref().is_none_or(|set| !set.contains(*name))) {
                self.forget(Key { kind, name: name.clone() }, slot);
            }
        }
        remove(&mut self.proxies, proxy, slot);
    }

    /// What the stream subscribes to of a type has changed.
    pub(crate) fn subscribed(&mut self, slot: Slot, kind: ResourceType, changed: &Changed) {
        let set = self.set_of.get(&(slot, kind)).and_then(Option::as_ref);
        if set.is_some_and(|set| changed.dropped.iter().any(|name| set.contains(name)))
            && let Some(set) = self.leave_set(slot, kind)
        {
            self.set_of.insert((slot, kind), None);
            set.iter().for_each(|name| self.add(slot, kind, name));
        }
        for name in &changed.dropped {
            self.forget(Key { kind, name: name.clone() }, slot);
        }
        match self.set_of.get(&(slot, kind)).cloned() {
            None if changed.added.len() >= WORTH_SHARING => self.enter_set(slot, kind, &changed.added),
            set => {
                let set = set.flatten();
                self.set_of.entry((slot, kind)).or_default();
                // What is dropped and asked for again in one request is new, and may be in the set.
                let known = |name: &&ResourceName| set.as_ref().is_some_and(|set| set.contains(*name));
                changed.added.iter().filter(|name| !known(name)).for_each(|name| self.add(slot, kind, name));
            }
        }
        if changed.wildcard_added {
            self.wildcard.entry(kind).or_default().insert(slot);
        } else if changed.wildcard_dropped {
            remove(&mut self.wildcard, &kind, slot);
        }
    }

    /// What a proxy is pushed has changed.
    pub(crate) fn viewed(&mut self, proxy: &ProxyId, view: Option<&View>) {
        for slot in self.of_proxy(proxy) {
            self.push(slot, view);
        }
    }

    /// All streams.
    pub(crate) fn all(&self) -> &RoaringBitmap {
        &self.all
    }

    /// The streams that subscribe to this resource.
    pub(crate) fn of(&self, key: &Key) -> RoaringBitmap {
        let mut streams = RoaringBitmap::new();
        if let Some(named) = self.named.get(key) {
            streams |= &named.streams;
            named.sets.iter().filter_map(|set| self.sets.get(set)).for_each(|of_set| streams |= of_set);
        }
        let Some(wildcard) = self.wildcard.get(&key.kind) else { return streams };
        match key.kind {
            ResourceType::Cluster => {
                streams |= wildcard & &self.pushed_all;
                if let Some(pushed) = self.pushed.get(&key.name) {
                    streams |= wildcard & pushed;
                }
            }
            _ => streams |= wildcard,
        }
        streams
    }

    /// The streams of this proxy.
    pub(crate) fn of_proxy(&self, proxy: &ProxyId) -> RoaringBitmap {
        self.proxies.get(proxy).cloned().unwrap_or_default()
    }

    /// The streams to which this step from `before` to `after` makes a difference.
    pub(crate) fn concerned(&self, step: &Change, before: &Snapshot, after: &Snapshot) -> RoaringBitmap {
        match step {
            Change::Put(resource) => self.of(&Key { kind: resource.kind, name: resource.name.clone() }),
            Change::Remove(kind, name) => self.of(&Key { kind: *kind, name: name.clone() }),
            Change::PutView(proxy, _) | Change::RemoveView(proxy) => self.of_proxy(proxy),
            Change::Fallback(_) => match after.fallback_since(before) {
                None => RoaringBitmap::new(),
                Some(Hosts::All) => self.all.clone(),
                Some(Hosts::Only(hosts)) => {
                    let names = hosts.iter().filter_map(|host| self.hosts.get(host)).flatten();
                    let streams = names.map(|name| self.of(&Key { kind: ResourceType::Cluster, name: name.clone() }));
                    streams.fold(RoaringBitmap::new(), |all, streams| all | streams)
                }
            },
        }
    }

    /// The stream subscribes to this name.
    fn add(&mut self, slot: Slot, kind: ResourceType, name: &ResourceName) {
        self.named(kind, name).streams.insert(slot);
    }

    /// The stream no longer subscribes to this name.
    fn forget(&mut self, key: Key, slot: Slot) {
        self.unname(key, |named| {
            named.streams.remove(slot);
        });
    }

    /// The stream subscribes to all of these names.
    fn enter_set(&mut self, slot: Slot, kind: ResourceType, names: &Arc<Names>) {
        let id = (kind, Arc::as_ptr(names) as usize);
        self.set_of.insert((slot, kind), Some(names.clone()));
        if let Some(streams) = self.sets.get_mut(&id) {
            streams.insert(slot);
            return;
        }
        self.sets.insert(id, RoaringBitmap::from_iter([slot]));
        names.iter().for_each(|name| self.named(kind, name).sets.push(id));
    }

    /// The stream no longer subscribes to its set of this type, which is returned.
    fn leave_set(&mut self, slot: Slot, kind: ResourceType) -> Option<Arc<Names>> {
        let names = self.set_of.remove(&(slot, kind))??;
        let id = (kind, Arc::as_ptr(&names) as usize);
        remove(&mut self.sets, &id, slot);
        if !self.sets.contains_key(&id) {
            for name in names.iter() {
                self.unname(Key { kind, name: name.clone() }, |named| named.sets.retain(|set| *set != id));
            }
        }
        Some(names)
    }

    /// Who subscribes to a name, which somebody now does.
    fn named(&mut self, kind: ResourceType, name: &ResourceName) -> &mut Named {
        if kind == ResourceType::Cluster {
            self.hosts.entry(host(name).to_owned()).or_default().insert(name.clone());
        }
        self.named.entry(Key { kind, name: name.clone() }).or_default()
    }

    /// Changes who subscribes to a name, which may then be nobody.
    fn unname(&mut self, key: Key, change: impl FnOnce(&mut Named)) {
        let Some(named) = self.named.get_mut(&key) else { return };
        change(named);
        if !named.streams.is_empty() || !named.sets.is_empty() {
            return;
        }
        self.named.remove(&key);
        if key.kind == ResourceType::Cluster
            && let Some(names) = self.hosts.get_mut(host(&key.name))
        {
            names.remove(&key.name);
            if names.is_empty() {
                self.hosts.remove(host(&key.name));
            }
        }
    }

    fn push(&mut self, slot: Slot, view: Option<&View>) {
        let new = view.map(|view| &view.pushed);
        if self.pushed_of.get(&slot) == new {
            return;
        }
        match self.pushed_of.remove(&slot) {
            Some(Pushed::All) => drop(self.pushed_all.remove(slot)),
            Some(Pushed::Only(names)) => names.iter().for_each(|name| remove(&mut self.pushed, name, slot)),
            None => {}
        }
        match new {
            Some(Pushed::All) => drop(self.pushed_all.insert(slot)),
            Some(Pushed::Only(names)) => {
                for name in names.iter() {
                    self.pushed.entry(name.clone()).or_default().insert(slot);
                }
            }
            None => return,
        }
        self.pushed_of.extend(new.map(|pushed| (slot, pushed.clone())));
    }
}

/// What a cluster's name says before the port.
fn host(name: &ResourceName) -> &str {
    name.as_str().rsplit_once(':').map_or(name.as_str(), |(host, _)| host)
}

/// Takes a stream out of a set, and the set out of the map when it is empty.
fn remove<K: std::hash::Hash + Eq>(map: &mut HashMap<K, RoaringBitmap>, key: &K, slot: Slot) {
    if let Some(streams) = map.get_mut(key) {
        streams.remove(slot);
        if streams.is_empty() {
            map.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
