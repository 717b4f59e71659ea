//! What a stream subscribes to, of one type: the wildcard, names, or both.
//!
//! The rules are those of the protocol's section "How the client specifies what resources to return", and differ
//! between the incremental protocol, whose requests say what changes, and state of the world, whose requests say what
//! holds.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::mesh::ProxyId;
use crate::snapshot::{Resource, ResourceName, ResourceType, Snapshot};

/// The name that stands for everything.
const WILDCARD: &str = "*";

/// What a client may hold of a stream's memory through one type's names. A name is a DNS name and a port, or an
/// address and a port; the largest mesh that is pushed to a proxy whole has some ten thousand of them.
const MAX_NAMES: usize = 65_536;
const MAX_NAME_BYTES: usize = 1_024;
const MAX_TOTAL_BYTES: usize = 8 << 20;

/// Why names were not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubscriptionError {
    /// No resource of the mesh has a name as long as this.
    #[error("a resource name of {0} bytes; at most {MAX_NAME_BYTES} are allowed")]
    NameTooLong(usize),
    /// The stream would take too much memory.
    #[error("more than {MAX_NAMES} names (or {MAX_TOTAL_BYTES} bytes of names) of one type on a stream")]
    TooManyNames,
}

/// Names of resources, in order.
pub type Names = BTreeSet<ResourceName>;

/// Where the text of names is shared.
pub trait Intern {
    /// The name, sharing its text with whoever has it already.
    fn name(&self, name: &str) -> ResourceName;

    /// All of these names, if another stream subscribes to the same.
    fn known(&self, _: &[String]) -> Option<Arc<Names>> {
        None
    }

    /// The same names, shared with the other streams that subscribe to them.
    fn share(&self, names: Arc<Names>) -> Arc<Names> {
        names
    }
}

/// Shares nothing but what the function says.
impl<F: Fn(&str) -> ResourceName> Intern for F {
    fn name(&self, name: &str) -> ResourceName {
        self(name)
    }
}

/// What a request changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Names that the request asks for, which are to be answered whether or not they changed (rules 12 and 16).
    pub asked: Arc<Names>,
    /// Those of `asked` that were not subscribed to by name before.
    pub added: Arc<Names>,
    /// Names that it no longer asks for.
    pub dropped: Names,
    /// It asks for everything.
    pub wildcard_asked: bool,
    /// It did not ask for everything before.
    pub wildcard_added: bool,
    /// It no longer asks for everything.
    pub wildcard_dropped: bool,
}

impl Changed {
    /// The part that says what is subscribed to, without what is asked for again; `None` if there is none.
    pub(crate) fn of_names(&self) -> Option<Self> {
        let Self { added, dropped, wildcard_added, wildcard_dropped, .. } = self;
        let (wildcard_added, wildcard_dropped) = (*wildcard_added, *wildcard_dropped);
        let any = !added.is_empty() || !dropped.is_empty() || wildcard_added || wildcard_dropped;
        any.then(|| {
            let (added, dropped) = (added.clone(), dropped.clone());
            Self { added, dropped, wildcard_added, wildcard_dropped, ..Self::default() }
        })
    }
}

/// The wildcard and the names that one stream has subscribed to, of one type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subscription {
    wildcard: bool,
    names: Arc<Names>,
    /// Those of `names` that the client did not ask for: see [`Subscription::adopt`].
    adopted: Names,
    bytes: usize,
    /// A request of this type was seen.
    started: bool,
    /// A name (or the wildcard's) was sent: an empty list no longer means everything (rule 27).
    named: bool,
}

impl Subscription {
    /// Whether everything is subscribed to.
    pub fn wildcard(&self) -> bool {
        self.wildcard
    }

    /// The names subscribed to one by one.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The same, as it is shared with the streams that subscribe to the same names.
    pub(crate) fn shared_names(&self) -> Arc<Names> {
        self.names.clone()
    }

    /// What the client of `proxy` is to have under a name, by `snapshot`.
    pub(crate) fn wanted(
        &self,
        proxy: &ProxyId,
        kind: ResourceType,
        snapshot: &Snapshot,
        name: &ResourceName,
    ) -> Option<Arc<Resource>> {
        let wanted = self.names.contains(name) || self.wildcard && snapshot.in_wildcard(proxy, kind, name);
        wanted.then(|| snapshot.get(proxy, kind, name)).flatten()
    }

    /// Applies a request of the incremental protocol.
    pub fn delta(
        &mut self,
        kind: ResourceType,
        subscribe: &[String],
        unsubscribe: &[String],
        intern: impl Intern,
    ) -> Result<Changed, SubscriptionError> {
        check(subscribe.iter().chain(unsubscribe))?;
        let mut changed = Changed::default();
        // Rule 25: a first request without names means everything; names that come later add to it (rule 26).
        let implicit = !self.started && subscribe.is_empty() && kind.has_wildcard();
        self.started = true;
        // The first request of a proxy in a mesh that pushes everything: a thousand names, the same from every proxy.
        if self.names.is_empty()
            && unsubscribe.is_empty()
            && let Some(names) = intern.known(subscribe)
        {
            self.bytes = names.iter().map(|name| name.as_str().len()).sum();
            (changed.asked, changed.added) = (names.clone(), names.clone());
            self.names = names;
            return Ok(changed);
        }
        for name in unsubscribe {
            if kind.has_wildcard() && name == WILDCARD {
                changed.wildcard_dropped |= std::mem::take(&mut self.wildcard);
                for name in std::mem::take(&mut self.adopted) {
                    changed.dropped.extend(self.remove(name.as_str()));
                }
            } else {
                changed.dropped.extend(self.remove(name));
            }
        }
        let (mut asked, mut added) = (Names::new(), Names::new());
        for name in subscribe {
            if kind.has_wildcard() && name == WILDCARD {
                changed.wildcard_asked = true;
                continue;
            }
            let known = self.names.get(name.as_str()).cloned();
            let name = known.clone().unwrap_or_else(|| intern.name(name));
            if known.is_none() {
                self.insert(name.clone())?;
                added.insert(name.clone());
            }
            self.adopted.remove(&name);
            changed.dropped.remove(&name);
            asked.insert(name);
        }
        if !added.is_empty() || !changed.dropped.is_empty() {
            self.names = intern.share(std::mem::take(&mut self.names));
        }
        (changed.asked, changed.added) = (self.or_all(asked), self.or_all(added));
        if implicit || changed.wildcard_asked {
            changed.wildcard_asked = true;
            changed.wildcard_added = !std::mem::replace(&mut self.wildcard, true);
            changed.wildcard_dropped = false;
        }
        Ok(changed)
    }

    /// Applies a request of the state-of-the-world protocol.
    pub fn state_of_the_world(
        &mut self,
        kind: ResourceType,
        names: &[String],
        intern: impl Intern,
    ) -> Result<Changed, SubscriptionError> {
        check(names)?;
        let mut changed = Changed::default();
        self.started = true;
        self.named |= !names.is_empty();
        // Rules 25 to 27: no names means everything until a name was sent, and nothing from then on.
        let wildcard = kind.has_wildcard() && (!self.named || names.iter().any(|name| name == WILDCARD));
        let is_name = |name: &&String| !kind.has_wildcard() || *name != WILDCARD;
        let count = names.iter().filter(is_name).count();
        let same = count == self.names.len() && names.iter().filter(is_name).all(|n| self.names.contains(n.as_str()));
        if !same {
            let old = std::mem::take(&mut self.names);
            self.bytes = 0;
            let mut added = Names::new();
            for name in names.iter().filter(is_name) {
                let known = old.get(name.as_str()).cloned();
                let name = known.clone().unwrap_or_else(|| intern.name(name));
                if known.is_none() {
                    added.insert(name.clone());
                }
                if !self.names.contains(&name) {
                    self.insert(name)?;
                }
            }
            changed.dropped = old.difference(&self.names).cloned().collect();
            self.names = intern.share(std::mem::take(&mut self.names));
            changed.added = self.or_all(added);
            changed.asked = changed.added.clone();
        }
        changed.wildcard_added = wildcard && !self.wildcard;
        changed.wildcard_asked = changed.wildcard_added;
        changed.wildcard_dropped = self.wildcard && !wildcard;
        self.wildcard = wildcard;
        Ok(changed)
    }

    /// Counts these as asked for, as far as there is room, until the client drops them or the wildcard with which it got
    /// them. Returns those that were not asked for before.
    pub(crate) fn adopt(&mut self, names: impl IntoIterator<Item = ResourceName>) -> Names {
        let mut added = Names::new();
        for name in names {
            if self.names.len() >= MAX_NAMES || self.bytes + name.as_str().len() > MAX_TOTAL_BYTES {
                break;
            }
            if !self.names.contains(&name) {
                self.bytes += name.as_str().len();
                Arc::make_mut(&mut self.names).insert(name.clone());
                added.insert(name);
            }
        }
        self.adopted.extend(added.iter().cloned());
        added
    }

    /// These names of the subscription; if they are all of it, as the shared set.
    fn or_all(&self, some: Names) -> Arc<Names> {
        if some.len() == self.names.len() { self.names.clone() } else { Arc::new(some) }
    }

    fn remove(&mut self, name: &str) -> Option<ResourceName> {
        if !self.names.contains(name) {
            return None; // the set may be shared: it is copied only to be changed
        }
        let name = Arc::make_mut(&mut self.names).take(name)?;
        self.adopted.remove(&name);
        self.bytes -= name.as_str().len();
        Some(name)
    }

    fn insert(&mut self, name: ResourceName) -> Result<(), SubscriptionError> {
        self.bytes += name.as_str().len();
        Arc::make_mut(&mut self.names).insert(name);
        match self.names.len() > MAX_NAMES || self.bytes > MAX_TOTAL_BYTES {
            true => Err(SubscriptionError::TooManyNames),
            false => Ok(()),
        }
    }
}

/// Names are checked before any is kept.
pub(crate) fn check<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<(), SubscriptionError> {
    for (count, name) in names.into_iter().enumerate() {
        if name.len() > MAX_NAME_BYTES {
            return Err(SubscriptionError::NameTooLong(name.len()));
        }
        if count >= MAX_NAMES {
            return Err(SubscriptionError::TooManyNames);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    fn set(names: &[&str]) -> BTreeSet<ResourceName> {
        names.iter().map(|name| ResourceName::from(*name)).collect()
    }

    fn delta(subscription: &mut Subscription, kind: ResourceType, add: &[&str], drop: &[&str]) -> Changed {
        subscription.delta(kind, &strings(add), &strings(drop), |name: &str| name.into()).expect("within the limits")
    }

    fn sotw(subscription: &mut Subscription, kind: ResourceType, names: &[&str]) -> Changed {
        subscription.state_of_the_world(kind, &strings(names), |name: &str| name.into()).expect("within the limits")
    }

    #[test]
    fn rule_25_a_first_request_without_names_means_everything() {
        for kind in ResourceType::ALL {
            let (mut a, mut b) = (Subscription::default(), Subscription::default());
            assert_eq!(delta(&mut a, kind, &[], &[]).wildcard_asked, kind.has_wildcard());
            assert_eq!(sotw(&mut b, kind, &[]).wildcard_asked, kind.has_wildcard());
            assert_eq!((a.wildcard(), b.wildcard()), (kind.has_wildcard(), kind.has_wildcard()));
        }
    }

    #[test]
    fn rule_26_names_after_the_implicit_wildcard_add_in_delta_and_replace_in_state_of_the_world() {
        let (mut a, mut b) = (Subscription::default(), Subscription::default());
        delta(&mut a, ResourceType::Cluster, &[], &[]);
        let changed = delta(&mut a, ResourceType::Cluster, &["10.96.0.5:80"], &[]);
        assert_eq!(((*changed.added).clone(), changed.wildcard_dropped), (set(&["10.96.0.5:80"]), false));
        assert!(a.wildcard());
        sotw(&mut b, ResourceType::Cluster, &[]);
        assert!(sotw(&mut b, ResourceType::Cluster, &["a"]).wildcard_dropped);
        assert!(!b.wildcard());
    }

    #[test]
    fn rule_27_once_a_name_was_sent_an_empty_list_means_nothing() {
        let (mut a, mut b) = (Subscription::default(), Subscription::default());
        delta(&mut a, ResourceType::Cluster, &["a"], &[]);
        assert_eq!(delta(&mut a, ResourceType::Cluster, &[], &["a"]).dropped, set(&["a"]));
        assert_eq!(delta(&mut a, ResourceType::Cluster, &[], &[]), Changed::default());
        sotw(&mut b, ResourceType::Cluster, &["a"]);
        assert_eq!(sotw(&mut b, ResourceType::Cluster, &[]).dropped, set(&["a"]));
        assert!(!a.wildcard() && !b.wildcard());
    }

    #[test]
    fn an_explicit_wildcard_is_dropped_alone() {
        let mut a = Subscription::default();
        delta(&mut a, ResourceType::Listener, &["*", "a"], &[]);
        let changed = delta(&mut a, ResourceType::Listener, &[], &["*"]);
        assert!(changed.wildcard_dropped && changed.dropped.is_empty());
        assert_eq!(a.names(), &set(&["a"]));
    }

    #[test]
    fn rule_17_dropping_an_unknown_name_changes_nothing() {
        let mut a = Subscription::default();
        delta(&mut a, ResourceType::Route, &["a"], &[]);
        assert_eq!(delta(&mut a, ResourceType::Route, &[], &["b"]), Changed::default());
    }

    #[test]
    fn names_beyond_the_limits_are_refused() {
        let mut a = Subscription::default();
        let long = ["x".repeat(MAX_NAME_BYTES + 1)];
        let error = a.delta(ResourceType::Route, &long, &[], |name: &str| name.into()).expect_err("too long");
        assert_eq!(error, SubscriptionError::NameTooLong(MAX_NAME_BYTES + 1));
        let many: Vec<_> = (0..=MAX_NAMES).map(|n| n.to_string()).collect();
        let error = a.delta(ResourceType::Route, &many, &[], |name: &str| name.into()).expect_err("too many");
        assert_eq!(error, SubscriptionError::TooManyNames);
    }
}
