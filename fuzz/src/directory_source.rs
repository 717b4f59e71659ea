//! The directory source's pure core: files with any content come, change and go in any order.
//!
//! What must hold: nothing panics, no object is deleted that was not there, what is in a directory that stays as it is
//! does not change, and one broken file never removes another's object.

use std::collections::HashSet;
use std::time::Instant;

use weft::source::Event;
use weft::source::directory::catalog::{Catalog, Content, SETTLE};

const WITNESS: &str = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: witness, namespace: fuzz}\n";

/// The input is a list of steps separated by a byte 0: its first byte says which file and what happens to it.
pub fn run(data: &[u8]) {
    let mut now = Instant::now();
    let mut catalog = Catalog::new();
    let mut objects = HashSet::new();
    let mut tell = |events: Vec<Event>| {
        for event in events {
            match event {
                Event::Apply { manifest, object, .. } => {
                    let name = manifest.object_ref();
                    assert!(object.is_none_or(|object| object.object_ref() == name), "{name} became another object");
                    objects.insert(name);
                }
                Event::Delete(object) => assert!(objects.remove(&object), "{object} was not there"),
                Event::Rejected(_) | Event::Trouble { .. } | Event::Synced => {}
            }
        }
        assert!(objects.iter().any(|object| &*object.name == "witness"), "the witness is gone");
    };
    tell(catalog.replace(now, vec![("0.yaml".into(), Content::Bytes(WITNESS.into()))]));
    for step in data.split(|byte| *byte == 0) {
        let Some((first, rest)) = step.split_first() else { continue };
        let content = match first >> 6 {
            0 | 1 => Content::Bytes(rest.to_vec()),
            2 => Content::Gone,
            _ => Content::MovedAway,
        };
        tell(catalog.update(now, vec![(format!("{}.yaml", 1 + first % 4).into(), content)]));
        now += SETTLE / u32::from(1 + (first >> 2) % 4);
        tell(catalog.tick(now));
    }
    now += 2 * SETTLE;
    tell(catalog.tick(now));
    assert!(catalog.tick(now + SETTLE).is_empty(), "something changes in a directory that stays as it is");
}
