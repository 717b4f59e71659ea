//! The pure core by scripts and by random layouts, and the watch with real files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use proptest::prelude::*;

use super::catalog::{Catalog, Content, SETTLE};
use crate::mesh::ObjectRef;
use crate::source::Event;

mod watch;

const A: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
const B: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n";
const BROKEN: &str = "apiVersion: v1\nkind: [\n";

/// A catalog with a clock of its own and a record of what has been told.
struct Script {
    catalog: Catalog,
    now: Instant,
    objects: BTreeSet<String>,
}

impl Script {
    fn new() -> Self {
        Self { catalog: Catalog::new(), now: Instant::now(), objects: BTreeSet::new() }
    }

    fn content(&mut self, path: &str, content: Content) -> Vec<String> {
        let events = self.catalog.update(self.now, vec![(path.into(), content)]);
        self.tell(events)
    }

    fn write(&mut self, path: &str, text: &str) -> Vec<String> {
        self.content(path, Content::Bytes(text.into()))
    }

    fn wait(&mut self, milliseconds: u64) -> Vec<String> {
        self.now += std::time::Duration::from_millis(milliseconds);
        let events = self.catalog.tick(self.now);
        self.tell(events)
    }

    fn tell(&mut self, events: Vec<Event>) -> Vec<String> {
        events.iter().map(|event| brief(event, &mut self.objects)).collect()
    }
}

/// An event in a word, with its effect on `objects`. An Apply that changes nothing about what exists is fine; a Delete
/// of what does not exist is a defect.
fn brief(event: &Event, objects: &mut BTreeSet<String>) -> String {
    match event {
        Event::Apply { manifest, .. } => {
            objects.insert(manifest.object_ref().to_string());
            format!("+{}", manifest.object_ref().name)
        }
        Event::Delete(object) => {
            assert!(objects.remove(&object.to_string()), "{object} was deleted twice");
            format!("-{}", object.name)
        }
        Event::Rejected(diagnostic) => format!("!{diagnostic}"),
        Event::Trouble { .. } => "trouble".to_owned(),
        Event::Synced => "synced".to_owned(),
    }
}

fn both() -> String {
    format!("{A}---\n{B}")
}

#[test]
fn the_first_full_read_is_one_batch_that_ends_with_synced() {
    let mut script = Script::new();
    let files = vec![("a.yaml".into(), Content::Bytes(A.into())), ("b.yaml".into(), Content::Bytes(B.into()))];
    let events = script.catalog.replace(script.now, files.clone());
    assert_eq!(script.tell(events), ["+a", "+b", "synced"]);
    let events = script.catalog.replace(script.now, files[..1].to_vec());
    assert_eq!(script.tell(events), ["-b"], "what a rescan does not find is gone, and Synced is said once");
}

#[test]
fn an_equal_object_is_not_told_again() {
    let mut script = Script::new();
    assert_eq!(script.write("f.yaml", A), ["+a"]);
    assert!(script.write("f.yaml", A).is_empty());
    assert!(script.write("f.yaml", &format!("# a comment\n{A}")).is_empty());
}

#[test]
fn a_broken_document_leaves_its_neighbours_and_its_own_last_version() {
    let mut script = Script::new();
    script.write("f.yaml", &both());
    let told = script.write("f.yaml", &format!("{A}---\n{BROKEN}---\n{}", B.replace("name: b", "name: c")));
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.contains(&"+c".to_owned()), "{told:?}");
    assert!(told.iter().any(|told| told.starts_with("!f.yaml:")), "{told:?}");
    assert!(script.wait(10_000).is_empty(), "b may be the broken one, so it stays");
    assert_eq!(script.objects.len(), 3);
}

#[test]
fn an_edit_elsewhere_does_not_report_the_same_fault_again() {
    let mut script = Script::new();
    assert_eq!(script.write("f.yaml", BROKEN).len(), 1);
    assert_eq!(script.write("f.yaml", &format!("{A}---\n{BROKEN}")), ["+a"]);
}

#[test]
fn a_file_that_is_truncated_and_then_complete_loses_nothing() {
    let whole = both();
    for cut in 0..whole.len() {
        let mut script = Script::new();
        script.write("f.yaml", &whole);
        script.write("f.yaml", &whole[..cut]);
        script.wait(400);
        script.write("f.yaml", &whole);
        script.wait(10_000);
        assert_eq!(
            script.objects,
            BTreeSet::from(["Namespace a".to_owned(), "Namespace b".to_owned()]),
            "cut at {cut}"
        );
    }
}

#[test]
fn a_document_that_stays_away_is_removed_after_the_settle_time() {
    let mut script = Script::new();
    script.write("f.yaml", &both());
    assert!(script.write("f.yaml", A).is_empty());
    assert_eq!(script.catalog.deadline(), Some(script.now + SETTLE));
    assert!(script.wait(499).is_empty());
    assert_eq!(script.wait(1), ["-b"]);
    assert_eq!(script.catalog.deadline(), None);
}

#[test]
fn the_settle_time_begins_again_while_documents_still_vanish() {
    let mut script = Script::new();
    let c = B.replace("name: b", "name: c");
    script.write("f.yaml", &format!("{A}---\n{B}---\n{c}"));
    script.write("f.yaml", &both());
    script.wait(400);
    script.write("f.yaml", A);
    assert!(script.wait(499).is_empty());
    assert_eq!(script.wait(1), ["-b", "-c"]);
}

#[test]
fn an_empty_file_removes_nothing_and_says_so_once_it_stays_empty() {
    let mut script = Script::new();
    script.write("f.yaml", A);
    assert!(script.write("f.yaml", "\n").is_empty());
    let told = script.wait(500);
    assert!(told.len() == 1 && told[0].contains("delete the file"), "{told:?}");
    assert_eq!(script.objects.len(), 1);
    assert_eq!(script.content("f.yaml", Content::Gone), ["-a"]);
}

#[test]
fn a_deleted_file_removes_its_objects_at_once() {
    let mut script = Script::new();
    script.write("f.yaml", &both());
    assert_eq!(script.content("f.yaml", Content::Gone), ["-a", "-b"]);
    assert_eq!(script.write("f.yaml", A), ["+a"]);
}

#[test]
fn a_file_that_an_editor_moves_away_and_writes_anew_does_not_flap() {
    let mut script = Script::new();
    script.write("f.yaml", A);
    assert!(script.content("f.yaml", Content::MovedAway).is_empty());
    script.wait(100);
    assert!(script.write("f.yaml", A).is_empty());
    assert!(script.wait(10_000).is_empty());
    assert!(script.content("f.yaml", Content::MovedAway).is_empty());
    assert_eq!(script.wait(500), ["-a"]);
}

#[test]
fn an_object_that_moves_to_another_file_is_never_gone() {
    let mut script = Script::new();
    let changed = A.replace("name: a", "name: a, labels: {x: z}");
    script.write("a.yaml", &both());
    assert!(script.write("a.yaml", B).is_empty());
    assert_eq!(script.write("z.yaml", &changed), ["+a"], "the new one counts, although the old one's file comes first");
    assert_eq!(script.content("z.yaml", Content::Gone), ["-a"], "the old one does not come back");
    assert_eq!(script.write("z.yaml", &changed), ["+a"]);
    assert!(script.wait(500).is_empty());
    let batch = vec![("z.yaml".into(), Content::Gone), ("y.yaml".into(), Content::Bytes(changed.into()))];
    let events = script.catalog.update(script.now, batch);
    assert!(script.tell(events).is_empty(), "a rename within one batch is no event at all");
}

#[test]
fn of_two_files_with_one_object_the_first_counts_and_the_second_takes_over() {
    let mut script = Script::new();
    let other = A.replace("name: a", "name: a, labels: {x: z}");
    assert_eq!(script.write("z.yaml", &other), ["+a"]);
    let told = script.write("b.yaml", A);
    assert_eq!(told[0], "+a");
    assert!(
        told[1].starts_with("!z.yaml:1: Namespace a: metadata.name: the object is in b.yaml:1 as well"),
        "{told:?}"
    );
    assert!(script.write("z.yaml", &format!("# again\n{other}")).is_empty(), "said once");
    assert_eq!(script.content("b.yaml", Content::Gone), ["+a"]);
}

#[test]
fn an_unknown_kind_is_reported_once() {
    let mut script = Script::new();
    let unknown = "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: x}\n";
    assert_eq!(script.write("f.yaml", &format!("{unknown}---\n{unknown}")).len(), 1);
    assert!(script.write("g.yaml", unknown).is_empty());
}

#[test]
fn an_unreadable_file_changes_nothing() {
    let mut script = Script::new();
    script.write("f.yaml", &both());
    script.write("f.yaml", A);
    let told = script.content("f.yaml", Content::Unreadable("it is a pipe".into(), "remove it".into()));
    assert_eq!(told, ["!f.yaml:1: it is a pipe; remove it"]);
    assert!(script.wait(10_000).is_empty());
    let told = script.content("f.yaml", Content::Bytes(b"a: 1\n# \xff\n".to_vec()));
    assert!(told.len() == 1 && told[0].starts_with("!f.yaml:2: the file is not UTF-8"), "{told:?}");
    assert_eq!(script.objects.len(), 2);
}

/// Distinct objects of several kinds, as documents.
fn documents(count: usize) -> Vec<String> {
    let document = |i: usize| match i % 4 {
        0 => format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: n{i}}}\n"),
        1 => format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s{i}}}\nspec: {{ports: [{{port: {i}}}]}}\n"),
        2 => format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: sa{i}, namespace: x}}\n"),
        _ => format!(
            "apiVersion: split.smi-spec.io/v1alpha2\nkind: TrafficSplit\nmetadata: {{name: t{i}}}\n\
             spec: {{service: s, backends: [{{service: b, weight: {i}}}]}}\n"
        ),
    };
    (0..count).map(document).collect()
}

fn state(batches: impl IntoIterator<Item = Vec<Event>>) -> BTreeMap<ObjectRef, String> {
    let mut state = BTreeMap::new();
    for event in batches.into_iter().flatten() {
        match event {
            Event::Apply { manifest, .. } => {
                state.insert(manifest.object_ref(), manifest.to_yaml().expect("YAML"));
            }
            Event::Delete(object) => assert!(state.remove(&object).is_some(), "{object} was not there"),
            Event::Rejected(diagnostic) => panic!("{diagnostic}"),
            Event::Trouble { .. } | Event::Synced => {}
        }
    }
    state
}

proptest! {
    #[test]
    fn the_layout_of_documents_over_files_and_their_order_do_not_matter(
        order in Just((0..12).collect::<Vec<usize>>()).prop_shuffle(),
        homes in prop::collection::vec(0..5usize, 12),
        moved in prop::collection::vec(0..5usize, 12),
        list in any::<bool>(),
    ) {
        let documents = documents(12);
        let start = Instant::now();
        let expected = state([Catalog::new().update(start, vec![("all.yaml".into(), Content::Bytes(documents.join("---\n").into()))])]);
        let layout = |homes: &[usize]| {
            let mut files: BTreeMap<PathBuf, Vec<&str>> = (0..5).map(|i| (format!("{i}.yaml").into(), vec![])).collect();
            order.iter().for_each(|i| files.entry(format!("{}.yaml", homes[*i]).into()).or_default().push(&documents[*i]));
            files.into_iter().map(|(path, documents)| (path, file(&documents, list))).collect::<Vec<_>>()
        };
        let mut catalog = Catalog::new();
        let mut batches: Vec<_> = layout(&homes).into_iter().map(|file| catalog.update(start, vec![file])).collect();
        prop_assert_eq!(&state(batches.clone()), &expected);
        // Then everything moves to other files, in one batch, and nothing has changed, then or later.
        batches.push(catalog.update(start, layout(&moved).into_iter().map(|(path, content)| match content {
            Content::Bytes(bytes) if bytes.is_empty() => (path, Content::Gone),
            content => (path, content),
        }).collect()));
        batches.push(catalog.tick(start + SETTLE));
        let last = batches.split_off(5).into_iter().flatten().count();
        prop_assert_eq!(last, 0, "a move is no event");
    }

    #[test]
    fn no_bytes_make_it_panic_or_forget(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0..200usize) {
        let mut script = Script::new();
        script.write("a.yaml", A);
        let text = both();
        let mut mixed = text.as_bytes()[..cut.min(text.len())].to_vec();
        mixed.extend(bytes);
        script.content("b.yaml", Content::Bytes(mixed));
        script.wait(500);
        prop_assert!(script.objects.contains("Namespace a"));
    }
}

fn file(documents: &[&str], list: bool) -> Content {
    if !list || documents.is_empty() {
        return Content::Bytes(documents.join("---\n").into());
    }
    let item = |document: &&str| format!("- {}", document.trim_end().replace('\n', "\n  "));
    let items = documents.iter().map(item).collect::<Vec<_>>().join("\n");
    Content::Bytes(format!("apiVersion: v1\nkind: List\nitems:\n{items}\n").into())
}

#[test]
fn the_last_good_version_of_a_weft_object_stays_when_a_field_is_misspelt() {
    let config = |field: &str| {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec:\n  {field}: {{mode: Enforce}}\n"
        )
    };
    let mut script = Script::new();
    assert_eq!(script.write("mesh.yaml", &config("authorization")), ["+default"]);
    let told = script.write("mesh.yaml", &config("authorisation"));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("!mesh.yaml:5: MeshConfig default: spec.authorisation: "), "{told:?}");
    assert!(script.wait(10_000).is_empty(), "it is in the file, so it is not removed either");
    assert!(script.objects.contains("MeshConfig default"));
}
