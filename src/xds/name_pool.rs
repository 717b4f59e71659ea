//! Sets of names that many streams subscribe to, kept once.
//!
//! In a mesh that pushes everything, every proxy asks for the endpoints of every Service. A thousand streams then hold
//! one set of a thousand names; a stream whose subscription changes has a copy, or again what others have.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use xxhash_rust::xxh3::xxh3_64;

use super::registry::lock;
use super::subscription::Names;

/// Smaller sets are not worth the search.
pub(crate) const WORTH_SHARING: usize = if cfg!(test) { 2 } else { 32 };

/// The shared sets, as long as a stream has them.
#[derive(Debug, Default)]
pub(crate) struct NamePool(Mutex<HashMap<u64, Weak<Names>>>);

impl NamePool {
    /// The set of exactly these names, if there is one.
    pub(crate) fn known(&self, names: &[String]) -> Option<Arc<Names>> {
        if names.len() < WORTH_SHARING {
            return None;
        }
        let place = place(names.iter().map(String::as_str));
        let set = lock(&self.0).get(&place)?.upgrade()?;
        let ordered = || set.iter().zip(names).all(|(a, b)| a.as_str() == b);
        let contained = || names.iter().all(|name| set.contains(name.as_str()));
        // Names that are said twice make the lengths differ, and then nothing is shared.
        (set.len() == names.len() && (ordered() || contained())).then_some(set)
    }

    /// The set that equals this one, which is this one if it is the first.
    pub(crate) fn share(&self, names: Arc<Names>) -> Arc<Names> {
        if names.len() < WORTH_SHARING {
            return names;
        }
        let place = place(names.iter().map(|name| name.as_str()));
        let mut sets = lock(&self.0);
        if let Some(set) = sets.get(&place).and_then(Weak::upgrade).filter(|set| *set == names) {
            return set;
        }
        if sets.len() == sets.capacity() {
            sets.retain(|_, set| set.strong_count() > 0);
        }
        sets.insert(place, Arc::downgrade(&names));
        names
    }
}

/// The same for the same names in any order.
fn place<'a>(names: impl Iterator<Item = &'a str>) -> u64 {
    names.fold(0, |all, name| all ^ xxh3_64(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("10.96.0.{n}:80")).collect()
    }

    fn set(count: usize) -> Arc<Names> {
        Arc::new(strings(count).into_iter().map(Into::into).collect())
    }

    #[test]
    fn equal_sets_are_one_as_long_as_somebody_has_it() {
        let pool = NamePool::default();
        let first = pool.share(set(100));
        assert!(Arc::ptr_eq(&first, &pool.share(set(100))));
        let mut shuffled = strings(100);
        shuffled.reverse();
        assert!(pool.known(&shuffled).is_some_and(|known| Arc::ptr_eq(&known, &first)));
        drop(first);
        assert_eq!(pool.known(&strings(100)), None);
    }

    #[test]
    fn other_sets_are_not_taken_for_it() {
        let pool = NamePool::default();
        let first = pool.share(set(100));
        assert_eq!(pool.known(&strings(101)), None);
        assert!(!Arc::ptr_eq(&first, &pool.share(set(99))));
        // Two more of the same name leave the place of the set as it is.
        let twice: Vec<_> = strings(100).into_iter().chain(["x".to_owned(), "x".to_owned()]).collect();
        assert_eq!(pool.known(&twice), None);
    }
}
