//! Which streams a change concerns: an index from resource to the streams that subscribe to it.
//!
//! A stream is a small number, a `Slot`, which is used again when the stream has ended; sets of them are bitmaps. So a
//! change wakes those who use it and nobody else, and thousands of streams with the same thousand subscriptions cost a
//! thousand bitmaps and not millions of entries.

use std::collections::{BTreeSet, HashMap};

use roaring::RoaringBitmap;

use super::subscription::Changed;
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
    named: HashMap<Key, RoaringBitmap>,
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

impl Interest {
    /// A stream of `proxy` begins.
    pub(crate) fn enter(&mut self, slot: Slot, proxy: &ProxyId, view: Option<&View>) {
        self.all.insert(slot);
        self.proxies.entry(proxy.clone()).or_default().insert(slot);
        self.push(slot, view);
    }

    /// It ends; `names` are those that it is still subscribed to.
    pub(crate) fn leave(&mut self, slot: Slot, proxy: &ProxyId, names: impl IntoIterator<Item = Key>) {
        self.all.remove(slot);
        self.push(slot, None);
        for streams in self.wildcard.values_mut() {
            streams.remove(slot);
        }
        for key in names {
            self.forget(key, slot);
        }
        remove(&mut self.proxies, proxy, slot);
    }

    /// What the stream subscribes to of a type has changed.
    pub(crate) fn subscribed(&mut self, slot: Slot, kind: ResourceType, changed: &Changed) {
        for name in &changed.dropped {
            self.forget(Key { kind, name: name.clone() }, slot);
        }
        for name in changed.added.iter() {
            self.named.entry(Key { kind, name: name.clone() }).or_default().insert(slot);
            if kind == ResourceType::Cluster {
                self.hosts.entry(host(name).to_owned()).or_default().insert(name.clone());
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
        let mut streams = self.named.get(key).cloned().unwrap_or_default();
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

    /// The stream no longer subscribes to this name.
    fn forget(&mut self, key: Key, slot: Slot) {
        remove(&mut self.named, &key, slot);
        if key.kind == ResourceType::Cluster
            && !self.named.contains_key(&key)
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
