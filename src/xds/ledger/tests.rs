use super::*;
use crate::snapshot::ResourceType::Endpoints;
use crate::xds::testing::resource;

fn key(name: &str) -> Key {
    Key { kind: Endpoints, name: name.into() }
}

fn streams(slots: impl IntoIterator<Item = Slot>) -> RoaringBitmap {
    slots.into_iter().collect()
}

struct Book {
    ledger: Ledger,
    start: Instant,
}

impl Book {
    fn new() -> Self {
        Self { ledger: Ledger::default(), start: Instant::now() }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    /// Publishes content `revision` of each name to `to` at `revision` milliseconds.
    fn publish(&mut self, revision: u64, names: &[&str], to: impl IntoIterator<Item = Slot>) {
        let resources = names.iter().map(|name| (key(name), Some(resource(Endpoints, name, revision as u8)))).collect();
        let since = self.at(revision);
        let publication = Publication { revision, since, resources, streams: streams(to), whole: true };
        self.ledger.published(publication, since);
    }

    fn record(&self, name: &str) -> (u64, Option<u64>, Vec<Slot>) {
        let wanted = key(name);
        let found = self.ledger.records().find(|(key, ..)| **key == wanted);
        let (_, record, waiting) = found.unwrap_or_else(|| panic!("no record of {name}"));
        let took = record.took.map(|took| took.as_millis() as u64);
        (record.to, took, waiting.into_iter().flatten().collect())
    }
}

#[test]
fn a_change_is_delivered_when_its_last_stream_has_answered() {
    let mut book = Book::new();
    book.publish(1, &["a"], [1, 2]);
    assert_eq!(book.record("a"), (2, None, vec![1, 2]));
    assert!(book.ledger.answered(1, 1, book.at(5)).is_empty());
    assert_eq!(book.record("a"), (2, None, vec![2]));
    assert_eq!(book.ledger.oldest(), Some(1));
    assert_eq!(book.ledger.answered(2, 1, book.at(9)), [Duration::from_millis(8)]);
    assert_eq!(book.record("a"), (2, Some(8), vec![]));
    assert_eq!((book.ledger.oldest(), book.ledger.owing().len()), (None, 0));
}

#[test]
fn an_answer_stands_for_those_before_it_and_for_none_after_it() {
    let mut book = Book::new();
    book.publish(1, &["a"], [1]);
    book.publish(2, &["b"], [1]);
    book.publish(3, &["a"], [1]);
    assert_eq!(book.ledger.answered(1, 2, book.at(10)), [Duration::from_millis(9), Duration::from_millis(8)]);
    assert_eq!((book.record("a").1, book.record("b").1), (None, Some(8)));
    assert_eq!(book.ledger.answered(1, 3, book.at(13)), [Duration::from_millis(10)]);
    assert_eq!(book.record("a").1, Some(10));
}

#[test]
fn a_stream_that_ended_is_waited_for_no_longer() {
    let mut book = Book::new();
    book.ledger.entered(1, 0);
    book.publish(1, &["a"], [1, 2]);
    book.ledger.answered(2, 1, book.at(2));
    assert_eq!(book.ledger.left(1, book.at(4)), [Duration::from_millis(3)]);
    assert_eq!(book.record("a"), (2, Some(3), vec![]));
}

#[test]
fn a_stream_that_stalls_does_not_hide_what_the_others_took_nor_grow_the_ledger() {
    let mut book = Book::new();
    for revision in 1..=10 * PATIENCE as u64 {
        book.publish(revision, &["a"], [1, 2]);
        book.ledger.answered(2, revision, book.at(revision + 1));
    }
    assert_eq!(book.record("a"), (2, Some(1), vec![]), "the other's answer was the last that was waited for");
    assert!(book.ledger.open.len() <= PATIENCE && book.ledger.owed[&1].len() <= PATIENCE);
    assert_eq!(book.ledger.oldest(), Some(1), "but it is behind, and since when is known");
    book.ledger.answered(1, 10 * PATIENCE as u64, book.at(10_000));
    assert_eq!((book.ledger.oldest(), book.ledger.open.len()), (None, 0));
    book.publish(10_000, &["a"], [1, 2]);
    assert_eq!(book.record("a").2, [1, 2], "it is waited for again");
}

#[test]
fn a_removal_is_forgotten_when_all_have_answered_it() {
    let mut book = Book::new();
    book.publish(1, &["a"], [1]);
    let publication = Publication {
        revision: 2,
        since: book.at(2),
        resources: vec![(key("a"), None)],
        streams: streams([1]),
        whole: true,
    };
    book.ledger.published(publication, book.at(2));
    assert_eq!(book.record("a"), (1, None, vec![1]));
    book.ledger.answered(1, 2, book.at(3));
    assert_eq!(book.ledger.records().count(), 0);
}

#[test]
fn content_counts_as_accepted_when_another_stream_has_answered_it() {
    let mut book = Book::new();
    let both = streams([1, 2]);
    assert!(book.ledger.accepted(&key("old"), 1, &both), "it did not change, and others have it");
    assert!(!book.ledger.accepted(&key("old"), 1, &streams([1])));
    book.publish(1, &["a"], [1, 2]);
    assert!(!book.ledger.accepted(&key("a"), 1, &both));
    book.ledger.answered(1, 1, book.at(2));
    assert!(!book.ledger.accepted(&key("a"), 1, &both), "its own answer does not count");
    assert!(book.ledger.accepted(&key("a"), 2, &both));
}
