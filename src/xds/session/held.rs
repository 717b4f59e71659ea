//! What a stream has sent of one type, told by exception.
//!
//! ```text
//!  what the client has  =  what it subscribes to of `base`  +  `exceptions`
//! ```
//!
//! `base` is the snapshot that the client was last brought to, shared by all streams. An exception stands for a name
//! where that is not so: it was claimed on reconnection and not yet compared, refused, about to be removed, or is a
//! secret, which is in no snapshot. So a stream costs its subscribed names and its exceptions, not the mesh.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::{Protocol, RefusedVersion};
use crate::mesh::ProxyId;
use crate::snapshot::{Resource, ResourceName, ResourceType, Snapshot, Version};
use crate::xds::rollout::RefusedResource;
use crate::xds::status::Totals;
use crate::xds::steps::Step;
use crate::xds::subscription::{Changed, Names, Subscription};

/// What the client has of one name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Holding {
    /// Unknown if another server gave it, or if it was in a response of several that was refused: Envoy then has
    /// applied some of them (rule 34).
    pub(super) version: Option<Version>,
    /// The last content known to be good, where the stream still has it; never that of a secret.
    pub(super) content: Option<Arc<Resource>>,
}

impl Holding {
    pub(super) fn of(resource: &Arc<Resource>) -> Self {
        let content = (resource.kind != ResourceType::Secret).then(|| resource.clone());
        Self { version: Some(resource.version), content }
    }
}

/// A name of which the client has something else than the base says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Exception {
    pub(super) has: Option<Holding>,
    /// This content was refused and is not sent again (rule 9).
    pub(super) refused: Option<Version>,
    /// It was refused together with others: it is sent once more, alone, to learn which one it was (rule 34).
    pub(super) alone: bool,
    /// It is gone from the snapshot, and removed some time after the routes are acknowledged, or at a time (rule 28).
    pub(super) leaving: Option<Leaving>,
}

/// A removal that waits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Leaving {
    /// Routes may use it.
    Used {
        /// The number of the snapshot that it is gone from.
        number: u64,
        /// When it waits no longer.
        until: Instant,
    },
    /// No new request does, by the client's own word; those that it has already may until then. The client has what
    /// it is to have: nobody waits for this.
    Unused {
        /// When it is removed.
        until: Instant,
    },
}

impl Leaving {
    pub(super) fn until(&self) -> Instant {
        let (Self::Used { until, .. } | Self::Unused { until }) = self;
        *until
    }

    pub(super) fn is_unused(&self) -> bool {
        matches!(self, Self::Unused { .. })
    }
}

/// A response that is neither acknowledged nor refused.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) nonce: String,
    /// The number of the snapshot that it brings the client to.
    pub(super) number: u64,
    pub(super) at: Instant,
    pub(super) items: Items,
    pub(super) removed: Vec<ResourceName>,
}

/// The resources of a response, of which the client may refuse some.
#[derive(Debug, Clone)]
pub(super) enum Items {
    /// The client had nothing before; shared with the streams that began alike.
    First(Arc<[Arc<Resource>]>),
    /// The client had what it was to have before; shared with the streams that had the same.
    Step(Arc<Step>),
    /// With what it had before.
    Changed(Vec<Item>),
}

impl Default for Items {
    fn default() -> Self {
        Self::Changed(Vec::new())
    }
}

impl Items {
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::First(resources) => resources.is_empty(),
            Self::Step(step) => step.resources.is_empty(),
            Self::Changed(items) => items.is_empty(),
        }
    }

    pub(super) fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        let (shared, changed) = match self {
            Self::First(resources) => (&resources[..], &[][..]),
            Self::Step(step) => (&step.resources[..], &[][..]),
            Self::Changed(items) => (&[][..], &items[..]),
        };
        shared.iter().chain(changed.iter().map(|item| &item.resource))
    }

    /// Each with what the client had before.
    pub(super) fn into_vec(self) -> Vec<Item> {
        match self {
            Self::First(resources) => {
                resources.iter().map(|resource| Item { resource: resource.clone(), had: None }).collect()
            }
            Self::Step(step) => {
                let item = |(resource, had): (&Arc<Resource>, &Option<Arc<Resource>>)| Item {
                    resource: resource.clone(),
                    had: had.as_ref().map(Holding::of),
                };
                step.resources.iter().zip(&step.had).map(item).collect()
            }
            Self::Changed(items) => items,
        }
    }

    /// The same, to change it.
    fn as_vec(&mut self) -> &mut Vec<Item> {
        if !matches!(self, Self::Changed(_)) {
            *self = Self::Changed(std::mem::take(self).into_vec());
        }
        match self {
            Self::Changed(items) => items,
            Self::First(_) | Self::Step(_) => unreachable!("it was changed above"),
        }
    }
}

/// A resource in a response.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) resource: Arc<Resource>,
    /// What the client had before.
    pub(super) had: Option<Holding>,
}

/// What the client refused last.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    pub(super) at: Instant,
    pub(super) message: String,
    pub(super) resources: Vec<(ResourceName, Version)>,
}

/// For `ProxyStatus`.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) totals: Totals,
    pub(super) last_sent: Option<Instant>,
    pub(super) last_acknowledged: Option<Instant>,
    pub(super) refusal: Option<Refused>,
    /// What it said of each resource that it refused alone.
    pub(super) words: BTreeMap<ResourceName, (Version, Instant, String)>,
}

/// A stream's state of one type.
#[derive(Debug)]
pub(super) struct Held {
    kind: ResourceType,
    /// Whether a response states everything, so that absence deletes (rule 10).
    pub(super) complete: bool,
    pub(super) subscription: Subscription,
    pub(super) base: Option<Arc<Snapshot>>,
    pub(super) exceptions: BTreeMap<ResourceName, Exception>,
    /// Names that are answered even if nothing changed (rules 12, 16, 18, 23, 31).
    pub(super) due: BTreeSet<ResourceName>,
    /// All names are: the client has just come, and has nothing.
    pub(super) all_due: bool,
    /// A response is owed even if it is empty (rule 6).
    pub(super) answer: bool,
    /// Something happened since the last rendering, other than a new snapshot.
    pub(super) touched: bool,
    pub(super) outstanding: VecDeque<Sent>,
    pub(super) last_nonce: String,
    nonce_number: u64,
    nonce_repeat: u64,
    /// How many resources the client has.
    pub(super) count: usize,
    pub(super) counters: Counters,
}

/// Envoy's words are kept up to this length, and the names of what it refused up to this number.
const MAX_REFUSAL_TEXT: usize = 4_096;
const MAX_REFUSAL_NAMES: usize = 100;

impl Held {
    pub(super) fn new(kind: ResourceType, protocol: Protocol) -> Self {
        Self {
            kind,
            complete: protocol == Protocol::StateOfTheWorld && kind.has_wildcard(),
            subscription: Subscription::default(),
            base: None,
            exceptions: BTreeMap::new(),
            due: BTreeSet::new(),
            all_due: false,
            answer: false,
            touched: true,
            outstanding: VecDeque::new(),
            last_nonce: String::new(),
            nonce_number: 0,
            nonce_repeat: 0,
            count: 0,
            counters: Counters::default(),
        }
    }

    /// The client says which versions it has from an earlier stream (rule 22).
    pub(super) fn claim(&mut self, versions: impl IntoIterator<Item = (ResourceName, Option<Version>)>) {
        for (name, version) in versions {
            let has = Some(Holding { version, content: None });
            self.exceptions.insert(name, Exception { has, ..Exception::default() });
        }
        self.count = self.exceptions.len();
    }

    /// Takes over what a request changed in the subscription. On the `first` request of the type, names that the
    /// client claims to have are compared instead of answered in any case.
    pub(super) fn subscribed(&mut self, proxy: &ProxyId, changed: Changed, first: bool) {
        let any = changed != Changed::default();
        self.touched |= any;
        if changed.wildcard_added && !first {
            // What the client has by name is kept, the rest counts as not sent.
            for name in self.subscription.names().clone() {
                if !changed.added.contains(&name) {
                    let has = self.has(proxy, &name);
                    self.exceptions.entry(name).or_default().has = has;
                }
            }
            self.base = None;
            // What is on its way is kept by a client that wants everything when it comes.
            self.due.extend(self.outstanding.iter().flat_map(|sent| sent.items.resources()).map(|r| r.name.clone()));
        } else if changed.wildcard_asked {
            // Asked for again, and so answered as names are (rule 16).
            self.due.extend(self.base.iter().flat_map(|base| base.wildcard(proxy, self.kind)));
        }
        if let Some(base) = &self.base {
            // The base says that the client has them, which only now is to be.
            for name in changed.added.iter() {
                if !(self.subscription.wildcard() && base.in_wildcard(proxy, self.kind, name)) {
                    self.exceptions.entry(name.clone()).or_default();
                }
            }
        }
        if first && self.exceptions.is_empty() {
            self.all_due = true;
        } else {
            let claimed = |name: &&ResourceName| first && self.exceptions.get(*name).is_some_and(|e| e.has.is_some());
            self.due.extend(changed.asked.iter().filter(|name| !claimed(name)).cloned());
        }
        for name in changed.dropped {
            let had = match self.exceptions.get(&name) {
                Some(exception) => exception.has.is_some(),
                None => self.base.as_ref().is_some_and(|base| base.get(proxy, self.kind, &name).is_some()),
            };
            if self.subscription.wildcard() {
                self.due.insert(name.clone()); // rule 18: it may or may not be part of everything
            } else {
                self.due.remove(&name);
                self.exceptions.remove(&name);
            }
            self.count -= usize::from(had && self.has(proxy, &name).is_none()).min(self.count);
        }
        let wildcard = self.subscription.wildcard();
        self.exceptions.retain(|name, _| wildcard || self.subscription.names().contains(name));
        if changed.wildcard_added || first {
            self.count = self.exceptions.values().filter(|exception| exception.has.is_some()).count();
        } else if changed.wildcard_dropped {
            self.count = self.subscription.names().iter().filter(|name| self.has(proxy, name).is_some()).count();
        }
    }

    /// What the client has under this name.
    pub(super) fn has(&self, proxy: &ProxyId, name: &ResourceName) -> Option<Holding> {
        match self.exceptions.get(name) {
            Some(exception) => exception.has.clone(),
            None => self.wanted(proxy, self.base.as_ref()?, name).as_ref().map(Holding::of),
        }
    }

    /// What the client is to have under this name, by `snapshot`.
    pub(super) fn wanted(&self, proxy: &ProxyId, snapshot: &Snapshot, name: &ResourceName) -> Option<Arc<Resource>> {
        self.subscription.wanted(proxy, self.kind, snapshot, name)
    }

    /// Before the first comparison: what an earlier stream was pushed, exists, and is not in this one's wildcard counts
    /// as asked for, since connections use it. Another control plane may know less of what its workload calls.
    pub(super) fn adopt(&mut self, proxy: &ProxyId, snapshot: &Snapshot) -> Names {
        if self.base.is_some() || !self.subscription.wildcard() {
            return Names::new();
        }
        let claimed = self.exceptions.iter().filter(|(_, exception)| exception.has.is_some()).map(|(name, _)| name);
        let exists = claimed.filter_map(|name| snapshot.intern(self.kind, name.as_str()));
        let left_out = exists.filter(|name| !snapshot.in_wildcard(proxy, self.kind, name));
        self.subscription.adopt(left_out.cloned())
    }

    /// Notes what the client has now and whether it had anything before; no exception is kept where the base says the
    /// same.
    pub(super) fn settle(&mut self, proxy: &ProxyId, name: &ResourceName, has: Option<Holding>, had: bool) {
        self.count = (self.count + usize::from(has.is_some())).saturating_sub(usize::from(had));
        let says = self.base.as_ref().and_then(|base| self.wanted(proxy, base, name)).map(|resource| resource.version);
        if has.as_ref().map(|has| has.version) == says.map(Some) {
            self.exceptions.remove(name);
        } else {
            self.exceptions.insert(name.clone(), Exception { has, ..Exception::default() });
        }
    }

    /// Whether the client has what it is to have by the base, and nothing else is due: then a newer snapshot brings it
    /// what it brings the others of its like.
    pub(super) fn is_by_the_base(&self) -> bool {
        let nothing_else = self.exceptions.is_empty() && self.due.is_empty() && !self.all_due && !self.answer;
        nothing_else && !self.complete && self.kind != ResourceType::Secret
    }

    /// Whether the client has nothing at all yet.
    pub(super) fn begins(&self, kind: ResourceType) -> bool {
        let nothing = self.base.is_none() && self.exceptions.is_empty() && self.due.is_empty() && self.count == 0;
        nothing && self.outstanding.is_empty() && kind != ResourceType::Secret
    }

    /// Whether there may be something to send, given the newest snapshot.
    pub(super) fn dirty(&self, newest: &Snapshot) -> bool {
        // Secrets are in no snapshot: another one says nothing of them.
        let moved = |base: &Arc<Snapshot>| self.kind != ResourceType::Secret && base.number() != newest.number();
        self.touched || self.base.as_ref().is_none_or(moved)
    }

    /// Whether the client has taken everything of `newest`; a refusal does not count (rule 28).
    pub(super) fn acknowledged(&self, newest: &Snapshot) -> bool {
        let accepted = |exception: &Exception| exception.refused.is_none() && !exception.alone;
        !self.dirty(newest) && self.outstanding.is_empty() && self.exceptions.values().all(accepted)
    }

    /// A nonce for the next response: the snapshot's number, with a suffix from the second response of it on.
    pub(super) fn next_nonce(&mut self, number: u64) -> String {
        match self.nonce_number == number && !self.last_nonce.is_empty() {
            true => self.nonce_repeat += 1,
            false => (self.nonce_number, self.nonce_repeat) = (number, 0),
        }
        self.last_nonce = match self.nonce_repeat {
            0 => number.to_string(),
            repeat => format!("{number}.{repeat}"),
        };
        self.last_nonce.clone()
    }

    /// The client answers the response `nonce`: it took it, or refused it with the words of `error` (rule 8). An
    /// unknown nonce says nothing.
    ///
    /// Returns the resource that is known to be the bad one.
    pub(super) fn answered(
        &mut self,
        proxy: &ProxyId,
        nonce: &str,
        error: Option<&str>,
        now: Instant,
    ) -> Option<RefusedResource> {
        let position = self.outstanding.iter().position(|sent| sent.nonce == nonce)?;
        let mut answered: Vec<Sent> = self.outstanding.drain(..=position).collect();
        // The next of those to be tried alone may have waited for this answer.
        self.touched |= error.is_some() || self.exceptions.values().any(|exception| exception.alone);
        let Some(message) = error else {
            self.counters.totals.acknowledged += answered.len() as u64;
            self.counters.last_acknowledged = Some(now);
            if self.exceptions.values().all(|e| e.refused.is_none() && !e.alone) {
                self.counters.refusal = None;
            }
            return None;
        };
        self.counters.totals.acknowledged += answered.len() as u64 - 1;
        self.counters.totals.refused += 1;
        let refused = answered.pop()?;
        let named = refused.items.resources().take(MAX_REFUSAL_NAMES);
        self.counters.refusal = Some(Refused {
            at: now,
            message: message.chars().take(MAX_REFUSAL_TEXT).collect(),
            resources: named.map(|resource| (resource.name.clone(), resource.version)).collect(),
        });
        if self.complete {
            // Nor need anything else of it have been applied, such as a removal: what is good is stated once more, if no
            // response is on its way that does so.
            self.answer |= !refused.items.is_empty() && self.outstanding.is_empty();
        } else if !refused.items.is_empty() {
            // Whether the removals beside them were applied is not known: they are said again. If nothing but removals
            // was refused, saying them again would be refused again.
            let (wildcard, names) = (self.subscription.wildcard(), self.subscription.names());
            let again = |name: &ResourceName| (wildcard || names.contains(name)) && self.has(proxy, name).is_none();
            let again: Vec<_> = refused.removed.into_iter().filter(again).collect();
            self.due.extend(again);
        }
        let items = refused.items.into_vec();
        let bad = match &items[..] {
            [item] => Some(RefusedResource {
                by: proxy.clone(),
                resource: item.resource.clone(),
                good: item.had.as_ref().and_then(|had| had.content.clone()),
                had: item.had.is_some(),
                message: message.chars().take(MAX_REFUSAL_TEXT).collect(),
            }),
            _ => None,
        };
        self.hold_back(proxy, items);
        if let Some(bad) = &bad {
            self.remember_words(bad, now);
        }
        bad
    }

    /// Keeps what was said of a resource for as long as it counts as refused.
    fn remember_words(&mut self, bad: &RefusedResource, now: Instant) {
        let (exceptions, words) = (&self.exceptions, &mut self.counters.words);
        let refused = |name: &ResourceName| exceptions.get(name).and_then(|exception| exception.refused);
        words.retain(|name, (version, ..)| refused(name) == Some(*version));
        let (name, version) = (bad.resource.name.clone(), bad.resource.version);
        if refused(&name) == Some(version) && words.len() < MAX_REFUSAL_NAMES {
            words.insert(name, (version, now, bad.message.clone()));
        }
    }

    /// What was refused and is not sent again, as far as its words are kept.
    pub(super) fn refused(&self, kind: ResourceType) -> impl Iterator<Item = RefusedVersion> {
        let holds = |name: &ResourceName| self.exceptions.get(name).and_then(|exception| exception.refused);
        let words = self.counters.words.iter();
        words.filter(move |(name, (version, ..))| holds(name) == Some(*version)).map(
            move |(name, (version, at, message))| {
                let (name, message) = (name.clone(), message.clone());
                RefusedVersion { kind, name, version: *version, at: *at, message }
            },
        )
    }

    /// The number of the snapshot up to which the client has answered everything of this type.
    pub(super) fn answered_up_to(&self) -> Option<u64> {
        let sent = self.outstanding.front().map(|sent| sent.number);
        let leaving = self.exceptions.values().filter_map(|exception| match exception.leaving? {
            Leaving::Used { number, .. } => Some(number),
            Leaving::Unused { .. } => None,
        });
        let missing = sent.into_iter().chain(leaving).min();
        let base = match self.kind {
            ResourceType::Secret => u64::MAX,
            _ => self.base.as_ref()?.number(),
        };
        Some(missing.map_or(base, |missing| base.min(missing.saturating_sub(1))))
    }

    /// A single resource that was refused is not sent again; several are tried one by one (rule 34).
    fn hold_back(&mut self, proxy: &ProxyId, items: Vec<Item>) {
        let single = items.len() == 1;
        for item in items {
            // Of several, some may have been applied all the same (rule 34).
            let had = match single {
                true => item.had,
                false => Some(Holding { version: None, content: item.had.and_then(|had| had.content) }),
            };
            let mut replaced = false;
            for later in self
                .outstanding
                .iter_mut()
                .flat_map(|sent| sent.items.as_vec())
                .filter(|l| l.resource.name == item.resource.name)
            {
                replaced = true;
                // What was refused now is not what the client falls back to if the later one is refused too.
                if later.had.as_ref().is_some_and(|had| had.version == Some(item.resource.version)) {
                    later.had = had.clone();
                }
            }
            let current = self.has(proxy, &item.resource.name).and_then(|has| has.version);
            if replaced || current != Some(item.resource.version) {
                continue; // or it is no longer asked for
            }
            if had.is_none() {
                self.count = self.count.saturating_sub(1);
            }
            let refused = single.then_some(item.resource.version);
            self.exceptions
                .insert(item.resource.name.clone(), Exception { has: had, refused, alone: !single, leaving: None });
        }
    }
}
