//! How it stands with each kind: what is to be said of it, and whether all were listed once. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::mesh::{Diagnostic, Kind};
use crate::source::{Event, Part};

/// How it stands with a kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// It was listed, completely.
    Listed,
    /// It is watched.
    Watched,
    /// The server has no such kind.
    Missing,
    /// It cannot be read now.
    Failed(Failure),
}

/// Why something cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Failure {
    /// The server does not answer, or not sensibly: it is the same for all kinds.
    Server(String),
    /// We may not.
    Forbidden {
        /// `list` or `watch`.
        verb: &'static str,
        /// `pods`, `trafficsplits.split.smi-spec.io`.
        resource: String,
        /// The server's words.
        message: String,
    },
    /// The server refuses this kind for another reason.
    Refused(String),
}

/// How it stands with all kinds.
#[derive(Debug)]
pub(super) struct Standings {
    /// Those that were neither listed nor found missing yet.
    awaited: BTreeSet<Kind>,
    /// Those for which the server did not answer.
    unanswered: BTreeSet<Kind>,
    said: BTreeMap<Part, Diagnostic>,
    synced: bool,
}

impl Standings {
    pub(super) fn new(kinds: impl IntoIterator<Item = Kind>) -> Self {
        let awaited = kinds.into_iter().collect();
        Self { awaited, unanswered: BTreeSet::new(), said: BTreeMap::new(), synced: false }
    }

    /// Takes in how it stands with a kind, and tells what follows.
    pub(super) fn note(&mut self, kind: Kind, standing: Standing) -> Vec<Event> {
        let mut events = Vec::new();
        match standing {
            Standing::Listed => {
                self.awaited.remove(&kind);
                self.say(Part::Kind(kind), None, &mut events);
                self.answered(kind, &mut events);
            }
            Standing::Watched => {
                self.say(Part::Kind(kind), None, &mut events);
                self.answered(kind, &mut events);
            }
            Standing::Missing => {
                self.awaited.remove(&kind);
                self.say(Part::Kind(kind), Some(missing(kind)), &mut events);
                self.answered(kind, &mut events);
            }
            Standing::Failed(Failure::Server(message)) => {
                self.unanswered.insert(kind);
                // What the first of them was told stands for the others: there is one server.
                let found = self.said.get(&Part::Whole).cloned().unwrap_or_else(|| unanswered(&message));
                self.say(Part::Whole, Some(found), &mut events);
            }
            Standing::Failed(Failure::Forbidden { verb, resource, message }) => {
                self.say(Part::Kind(kind), Some(forbidden(verb, &resource, &message)), &mut events);
                self.answered(kind, &mut events);
            }
            Standing::Failed(Failure::Refused(message)) => {
                self.say(Part::Kind(kind), Some(refused(kind, &message)), &mut events);
                self.answered(kind, &mut events);
            }
        }
        if self.awaited.is_empty() && !self.synced {
            self.synced = true;
            events.push(Event::Synced);
        }
        events
    }

    fn answered(&mut self, kind: Kind, events: &mut Vec<Event>) {
        self.unanswered.remove(&kind);
        if self.unanswered.is_empty() {
            self.say(Part::Whole, None, events);
        }
    }

    /// Says what is new.
    fn say(&mut self, of: Part, found: Option<Diagnostic>, events: &mut Vec<Event>) {
        let before = match &found {
            Some(found) => self.said.insert(of, found.clone()),
            None => self.said.remove(&of),
        };
        if before != found {
            events.push(Event::Trouble { of, found });
        }
    }
}

fn missing(kind: Kind) -> Diagnostic {
    Diagnostic::warning(
        "",
        format!("the API server has no kind {kind} in a version that Weft reads, and goes without"),
        "install the CustomResourceDefinitions of the chart; it is taken up as soon as it is there",
    )
}

fn unanswered(message: &str) -> Diagnostic {
    Diagnostic::error(
        "",
        format!("the API server does not answer: {message}"),
        "see that it and its etcd are well, and that it can be reached from here; until then the mesh stays as it is, and this mends itself",
    )
}

fn forbidden(verb: &str, resource: &str, message: &str) -> Diagnostic {
    Diagnostic::error(
        "",
        format!("the control plane may not {verb} {resource}: {message}"),
        format!(
            "allow its ServiceAccount the verbs list and watch on {resource}; until then these objects stay as they are"
        ),
    )
}

fn refused(kind: Kind, message: &str) -> Diagnostic {
    Diagnostic::error(
        "",
        format!("objects of kind {kind} cannot be read: {message}"),
        "see the API server's own log; until then these objects stay as they are, and this mends itself",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(events: &[Event]) -> Vec<String> {
        let text = |event: &Event| match event {
            Event::Trouble { of, found } => {
                let found = found.as_ref().map_or("nothing any more", |found| found.reason.as_str());
                format!("{of:?}: {found}")
            }
            Event::Synced => "synced".to_owned(),
            other => panic!("{other:?}"),
        };
        events.iter().map(text).collect()
    }

    fn unreachable(message: &str) -> Standing {
        Standing::Failed(Failure::Server(message.to_owned()))
    }

    #[test]
    fn it_is_synced_once_when_every_kind_was_listed_or_is_missing() {
        let mut standings = Standings::new([Kind::Pod, Kind::Service, Kind::TrafficSplit]);
        assert!(standings.note(Kind::Pod, Standing::Listed).is_empty());
        assert!(standings.note(Kind::Pod, Standing::Watched).is_empty());
        assert!(standings.note(Kind::Pod, Standing::Listed).is_empty(), "again");
        let missing = said(&standings.note(Kind::TrafficSplit, Standing::Missing));
        assert!(missing.len() == 1 && missing[0].contains("no kind TrafficSplit"), "{missing:?}");
        assert!(standings.note(Kind::TrafficSplit, Standing::Missing).is_empty(), "said once");
        assert_eq!(said(&standings.note(Kind::Service, Standing::Listed)), ["synced"]);
        let appears = said(&standings.note(Kind::TrafficSplit, Standing::Listed));
        assert_eq!(appears, ["Kind(TrafficSplit): nothing any more"]);
    }

    #[test]
    fn a_kind_that_may_not_be_read_holds_up_the_beginning() {
        let mut standings = Standings::new([Kind::Pod, Kind::Service]);
        standings.note(Kind::Service, Standing::Listed);
        let failure = Failure::Forbidden { verb: "list", resource: "pods".to_owned(), message: "no".to_owned() };
        let found = said(&standings.note(Kind::Pod, Standing::Failed(failure.clone())));
        assert_eq!(found, ["Kind(Pod): the control plane may not list pods: no"]);
        assert!(standings.note(Kind::Pod, Standing::Failed(failure)).is_empty(), "said once");
        assert_eq!(said(&standings.note(Kind::Pod, Standing::Listed)), ["Kind(Pod): nothing any more", "synced"]);
    }

    #[test]
    fn a_server_that_is_away_is_said_once_and_not_for_each_kind() {
        let mut standings = Standings::new([Kind::Pod, Kind::Service]);
        let first = said(&standings.note(Kind::Pod, unreachable("connection refused")));
        assert_eq!(first, ["Whole: the API server does not answer: connection refused"]);
        assert!(standings.note(Kind::Service, unreachable("connection reset")).is_empty());
        assert!(standings.note(Kind::Pod, Standing::Watched).is_empty(), "one of two is not all");
        assert_eq!(said(&standings.note(Kind::Service, Standing::Watched)), ["Whole: nothing any more"]);
    }
}
