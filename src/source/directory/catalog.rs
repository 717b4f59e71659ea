//! The pure core of the directory source: what is in which file, and what follows when a file changes.
//!
//! ```text
//!  (path, Content) ──update()──▶ holders of each object ──who wins?──▶ [Event]
//!              now ──tick()────▶ what has been missing for SETTLE  ──▶ [Event]
//! ```
//!
//! - Each file *holds* the last good version of every object that it has. Of several holders the first by path wins.
//! - A document that cannot be used changes nothing of what its file holds.
//! - A document that has gone from a legible file stays *pending* for [`SETTLE`], since the file may be half written.
//!   A pending holder gives way to any other, so that an object that moves to another file is never gone in between.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_128;

use crate::mesh::{Diagnostic, Location, ObjectRef};
use crate::source::Event;
use crate::source::document::{self, Document, Outcome};

/// How long an object must have been missing from its file before it counts as removed.
///
/// Long enough for a writer that truncates a file and fills it in several writes, or for an editor that moves the old
/// file away before it writes the new one; short enough that a removal feels immediate. Additions and changes never
/// wait, and deleting the file removes its objects at once.
pub const SETTLE: Duration = Duration::from_millis(500);

/// What has been found at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A file with these bytes.
    Bytes(Vec<u8>),
    /// A file that cannot be read: the reason, and what to do.
    Unreadable(String, String),
    /// A file that looks as it did when it was last read.
    Unchanged,
    /// Nothing: the file was deleted.
    Gone,
    /// Nothing: the file was renamed to something that is no source, perhaps by an editor that is about to replace it.
    MovedAway,
}

/// The content of a directory, and what of it has been told.
#[derive(Debug, Default)]
pub struct Catalog {
    files: BTreeMap<Arc<PathBuf>, File>,
    holders: Holders,
    published: HashMap<ObjectRef, Arc<Document>>,
    /// `apiVersion` and `kind` of what has been reported as unknown.
    unknown: HashSet<(String, String)>,
    synced: bool,
}

type Holders = HashMap<ObjectRef, BTreeMap<Arc<PathBuf>, Holder>>;

#[derive(Debug, Default)]
struct File {
    /// The hash of the bytes that were last read; `None` when that was not possible.
    read: Option<u128>,
    /// It holds nothing but white space.
    blank: bool,
    holds: BTreeSet<ObjectRef>,
    /// What is wrong with it now, so that an edit elsewhere in the file does not report it again.
    reported: Vec<Diagnostic>,
    /// When what is pending is removed (or a blank file is reported).
    settles: Option<Instant>,
}

#[derive(Debug)]
struct Holder {
    document: Arc<Document>,
    /// It is no longer in the file.
    pending: bool,
    /// The file that won when this one was last reported as the second.
    lost_to: Option<Arc<PathBuf>>,
}

impl Catalog {
    /// An empty directory that has not been read yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The whole directory has been read: what is not among `files` is gone. The first time ends with
    /// [`Event::Synced`].
    pub fn replace(&mut self, now: Instant, files: Vec<(PathBuf, Content)>) -> Vec<Event> {
        let found: HashSet<&Path> = files.iter().map(|(path, _)| path.as_path()).collect();
        let gone = self.files.keys().filter(|path| !found.contains(path.as_path()));
        let gone: Vec<_> = gone.map(|path| (path.as_ref().clone(), Content::Gone)).collect();
        let mut events = self.update(now, gone.into_iter().chain(files).collect());
        if !self.synced {
            self.synced = true;
            events.push(Event::Synced);
        }
        events
    }

    /// These files have changed. Everything that follows is one batch: a rename within it never shows as a removal.
    pub fn update(&mut self, now: Instant, files: Vec<(PathBuf, Content)>) -> Vec<Event> {
        let (mut dirty, mut events) = (BTreeSet::new(), Vec::new());
        for (path, content) in files {
            let path = Arc::new(path);
            match content {
                Content::Bytes(bytes) => self.read(now, &path, &bytes, &mut dirty, &mut events),
                Content::Unreadable(reason, help) => {
                    self.files.entry(path.clone()).or_default().read = None;
                    self.expect_all(now, &path, &mut dirty);
                    let found = Diagnostic::error("", reason, help).at(Location { file: path.clone(), line: 1 });
                    self.report(&path, vec![found], &mut events);
                }
                Content::Unchanged => {}
                Content::Gone => {
                    for object in self.files.remove(&path).unwrap_or_default().holds {
                        self.drop_holder(&object, &path);
                        dirty.insert(object);
                    }
                }
                Content::MovedAway => {
                    let Some(file) = self.files.get_mut(&path) else { continue };
                    (file.read, file.blank) = (None, false);
                    self.expect(now, &path, &BTreeSet::new(), &mut dirty);
                }
            }
        }
        self.publish(dirty, &mut events);
        events
    }

    /// When [`Catalog::tick`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.files.values().filter_map(|file| file.settles).min()
    }

    /// Removes what has been missing for [`SETTLE`].
    pub fn tick(&mut self, now: Instant) -> Vec<Event> {
        let due = self.files.iter().filter(|(_, file)| file.settles.is_some_and(|settles| settles <= now));
        let due: Vec<_> = due.map(|(path, _)| path.clone()).collect();
        let (mut dirty, mut events) = (BTreeSet::new(), Vec::new());
        for path in due {
            let Some(file) = self.files.get_mut(&path) else { continue };
            file.settles = None;
            if file.blank {
                let reason = "the file is empty, and the objects that it held stay";
                let found = Diagnostic::warning("", reason, "delete the file to remove them")
                    .at(Location { file: path.clone(), line: 1 });
                self.report(&path, vec![found], &mut events);
                continue;
            }
            let pending: Vec<_> =
                file.holds.iter().filter(|object| is_pending(&self.holders, object, &path)).cloned().collect();
            for object in pending {
                file.holds.remove(&object);
                if let Some(holders) = self.holders.get_mut(&object) {
                    holders.remove(&path);
                }
                dirty.insert(object);
            }
            if file.read.is_none() && file.holds.is_empty() && file.reported.is_empty() {
                self.files.remove(&path);
            }
        }
        self.publish(dirty, &mut events);
        events
    }

    /// Where the object that counts begins.
    pub(super) fn place(&self, object: &ObjectRef) -> Option<&Location> {
        self.published.get(object).map(|document| &document.location)
    }

    /// The known files below a directory.
    pub(crate) fn below<'a>(&'a self, directory: &'a Path) -> impl Iterator<Item = &'a Path> {
        // Paths are ordered by their parts, so what is below a directory stands right behind it.
        let from = self.files.range::<PathBuf, _>(directory.to_owned()..);
        from.map(|(path, _)| path.as_path()).take_while(move |path| path.starts_with(directory))
    }

    fn read(
        &mut self,
        now: Instant,
        path: &Arc<PathBuf>,
        bytes: &[u8],
        dirty: &mut BTreeSet<ObjectRef>,
        events: &mut Vec<Event>,
    ) {
        let file = self.files.entry(path.clone()).or_default();
        let hash = xxh3_128(bytes);
        if file.read.replace(hash) == Some(hash) {
            return;
        }
        file.blank = bytes.trim_ascii().is_empty();
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
                let line = u32::try_from(line).unwrap_or(u32::MAX);
                let found = Diagnostic::error("", "the file is not UTF-8 text", "save it as UTF-8")
                    .at(Location { file: path.clone(), line });
                self.expect_all(now, path, dirty);
                return self.report(path, vec![found], events);
            }
        };
        let (mut present, mut found, mut legible) = (BTreeSet::new(), Vec::new(), true);
        for outcome in document::read(path, text) {
            match outcome {
                Outcome::Usable(document) => {
                    let object = document.manifest.object_ref();
                    if present.insert(object.clone()) {
                        self.hold(path, object.clone(), *document);
                        dirty.insert(object);
                    } else {
                        let reason = "the object is there twice in this file, and the first counts";
                        let second = Diagnostic::error("metadata.name", reason, "remove or rename one of the two");
                        found.push(second.about(object).at(document.location));
                    }
                }
                Outcome::Rejected(object, diagnostics) => {
                    present.insert(object);
                    found.extend(diagnostics);
                }
                Outcome::Illegible(diagnostic) => {
                    legible = false;
                    found.push(diagnostic);
                }
                Outcome::Unknown(api_version, kind, diagnostic) => {
                    if self.unknown.insert((api_version, kind)) {
                        events.push(Event::Rejected(diagnostic));
                    }
                }
            }
        }
        let file = self.files.entry(path.clone()).or_default();
        if file.blank {
            let settles = (!file.holds.is_empty()).then_some(now + SETTLE);
            self.expect_all(now, path, dirty);
            self.files.entry(path.clone()).or_default().settles = settles;
        } else if legible {
            self.expect(now, path, &present, dirty);
        } else {
            self.expect_all(now, path, dirty);
        }
        self.report(path, found, events);
    }

    fn hold(&mut self, path: &Arc<PathBuf>, object: ObjectRef, document: Document) {
        self.files.entry(path.clone()).or_default().holds.insert(object.clone());
        let holder = Holder { document: Arc::new(document), pending: false, lost_to: None };
        let before = self.holders.entry(object).or_default().remove_entry(path);
        let (path, lost_to) = before.map_or((path.clone(), None), |(path, before)| (path, before.lost_to));
        if let Some(holders) = self.holders.get_mut(&holder.document.manifest.object_ref()) {
            holders.insert(path, Holder { lost_to, ..holder });
        }
    }

    fn drop_holder(&mut self, object: &ObjectRef, path: &Arc<PathBuf>) {
        if let Some(holders) = self.holders.get_mut(object) {
            holders.remove(path);
        }
    }

    /// Nothing that `path` holds is pending: what is in it cannot be told.
    fn expect_all(&mut self, now: Instant, path: &Arc<PathBuf>, dirty: &mut BTreeSet<ObjectRef>) {
        let held = self.files.get(path).map(|file| file.holds.clone()).unwrap_or_default();
        self.expect(now, path, &held, dirty);
    }

    /// What `path` holds beyond `present` is pending from now on, and the rest is not.
    fn expect(
        &mut self,
        now: Instant,
        path: &Arc<PathBuf>,
        present: &BTreeSet<ObjectRef>,
        dirty: &mut BTreeSet<ObjectRef>,
    ) {
        let Some(file) = self.files.get_mut(path) else { return };
        let (mut missing, mut changed) = (false, false);
        for object in &file.holds {
            let pending = !present.contains(object);
            missing |= pending;
            if let Some(holder) = self.holders.get_mut(object).and_then(|holders| holders.get_mut(path))
                && holder.pending != pending
            {
                (holder.pending, changed) = (pending, true);
                dirty.insert(object.clone());
            }
        }
        // While the set of missing objects still changes, somebody is still writing.
        file.settles = match (missing, changed, file.settles) {
            (false, _, _) => None,
            (true, false, Some(settles)) => Some(settles),
            (true, _, _) => Some(now + SETTLE),
        };
    }

    /// Tells what is wrong with a file now and was not before, wherever in the file it has moved to.
    fn report(&mut self, path: &Arc<PathBuf>, found: Vec<Diagnostic>, events: &mut Vec<Event>) {
        let file = self.files.entry(path.clone()).or_default();
        let known = std::mem::replace(&mut file.reported, found);
        let new = file.reported.iter().filter(|new| !known.iter().any(|known| same_but_for_place(known, new)));
        events.extend(new.cloned().map(Event::Rejected));
    }

    /// Tells what has become of the `dirty` objects.
    fn publish(&mut self, dirty: BTreeSet<ObjectRef>, events: &mut Vec<Event>) {
        for object in dirty {
            let holders = self.holders.entry(object.clone()).or_default();
            if holders.values().any(|holder| !holder.pending) {
                // It has moved, and must not come back when its new file goes.
                for (path, _) in holders.extract_if(.., |_, holder| holder.pending) {
                    if let Some(file) = self.files.get_mut(&path) {
                        file.holds.remove(&object);
                    }
                }
            }
            let Some((path, winner)) =
                holders.first_key_value().map(|(path, holder)| (path.clone(), holder.document.clone()))
            else {
                self.holders.remove(&object);
                if self.published.remove(&object).is_some() {
                    events.push(Event::Delete(object));
                }
                continue;
            };
            if !self.published.get(&object).is_some_and(|told| same_content(told, &winner)) {
                events.push(Event::Apply {
                    manifest: winner.manifest.clone(),
                    object: winner.object.clone(),
                    warnings: winner.warnings.clone(),
                });
            }
            for (own, holder) in holders {
                let lost_to = (*own != path).then(|| path.clone());
                if lost_to.is_some() && holder.lost_to != lost_to {
                    let reason = format!("the object is in {} as well, and that one counts", winner.location);
                    let second = Diagnostic::error("metadata.name", reason, "remove or rename one of the two");
                    events.push(Event::Rejected(second.about(object.clone()).at(holder.document.location.clone())));
                }
                holder.lost_to = lost_to;
            }
            self.published.insert(object, winner);
        }
    }
}

fn is_pending(holders: &Holders, object: &ObjectRef, path: &Arc<PathBuf>) -> bool {
    holders.get(object).and_then(|holders| holders.get(path)).is_some_and(|holder| holder.pending)
}

fn same_but_for_place(one: &Diagnostic, other: &Diagnostic) -> bool {
    (&one.object, &one.field, &one.reason) == (&other.object, &other.field, &other.reason)
}

fn same_content(one: &Document, other: &Document) -> bool {
    one.manifest == other.manifest
        && one.warnings.len() == other.warnings.len()
        && one.warnings.iter().zip(&other.warnings).all(|(one, other)| same_but_for_place(one, other))
}
