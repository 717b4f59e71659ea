//! A watched directory of Kubernetes YAML and JSON.
//!
//! ```text
//!  inotify ──Touch──▶ run(): which paths? ──disk──▶ (path, Content) ──catalog (pure)──▶ [Event] ──▶ channel
//! ```
//!
//! A change is read when its writer closes the file or renames it into place, at once; only touched paths are read.
//! Files count when their names end in `.yaml`, `.yml` or `.json` and neither they nor a directory above them begin
//! with a dot. Symbolic links to files are followed (a change behind one is seen when the link itself changes, or the
//! `..data` link of a mounted ConfigMap); links to directories are not.

pub mod catalog;
mod disk;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Event, document};
use crate::mesh::{Location, ObjectRef};
use catalog::Catalog;
use disk::Disk;

/// Why a directory cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no such directory, or it cannot be read.
    #[error("cannot read the directory {}: {error}; give a directory of YAML files that exists and is readable", path.display())]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// It is something else than a directory.
    #[error("{} is not a directory; give the directory that holds the YAML files", path.display())]
    NotADirectory {
        /// The path that was given.
        path: PathBuf,
    },
    /// inotify refuses.
    #[error("cannot watch {}: {error}; if a limit is reached, raise the sysctls fs.inotify.max_user_watches and max_user_instances", path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// Why not.
        error: notify::Error,
    },
    /// The directory was removed, or the watch ended, while the source ran.
    #[error("the directory {} is no longer there; its objects stay as they were: restore it and start again", path.display())]
    Gone {
        /// The directory.
        path: PathBuf,
    },
}

/// A directory as a source of events.
#[derive(Debug)]
pub struct DirectorySource {
    root: PathBuf,
    state: State,
    touches: mpsc::UnboundedReceiver<Touch>,
}

#[derive(Debug)]
struct State {
    disk: Disk,
    catalog: Catalog,
}

/// A path that something happened to, as inotify tells it.
#[derive(Clone, Debug)]
enum Touch {
    /// It was written and closed, renamed into place, or its permissions changed.
    Changed(PathBuf),
    /// It was made. A regular file is read when it is closed; a directory or a link at once.
    Created(PathBuf),
    /// It was deleted.
    Removed(PathBuf),
    /// It was renamed to something else.
    MovedAway(PathBuf),
    /// inotify has lost events.
    Lost,
}

/// How many touches are handled as one batch.
const BATCH: usize = 4096;

impl DirectorySource {
    /// Watches `root`. Nothing is read before [`DirectorySource::run`].
    ///
    /// # Errors
    /// When `root` is not a readable directory, or the system has no watch left.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, SourceError> {
        let root = root.into();
        disk::check_directory(&root)?;
        let (sender, touches) = mpsc::unbounded_channel();
        let watched = root.clone();
        let handler = move |event: notify::Result<notify::Event>| {
            for touch in touches_of(event, &watched) {
                // A closed channel means that the source has been dropped; its watcher ends next.
                let _ = sender.send(touch);
            }
        };
        let disk = Disk::watching(&root, handler)?;
        Ok(Self { root, state: State { disk, catalog: Catalog::new() }, touches })
    }

    /// Reads everything and sends it as one batch that ends with [`Event::Synced`]; then sends a batch for each change,
    /// until the receiver is dropped.
    ///
    /// # Errors
    /// When the directory itself goes away.
    pub async fn run(self, events: mpsc::Sender<Vec<Event>>) -> Result<(), SourceError> {
        let Self { root, mut state, mut touches } = self;
        let mut batch = vec![Touch::Lost];
        loop {
            let told = if batch.is_empty() {
                state.catalog.tick(Instant::now().into_std())
            } else {
                let touched = std::mem::take(&mut batch);
                let now = Instant::now().into_std();
                // Reading blocks, and so would parsing ten thousand files.
                let step = tokio::task::spawn_blocking(move || {
                    let told = state.step(now, touched);
                    (state, told)
                });
                let told;
                (state, told) = step.await.map_err(|_| SourceError::Gone { path: root.clone() })?;
                told?
            };
            if !told.is_empty() && events.send(told).await.is_err() {
                return Ok(());
            }
            let settled = async {
                match state.catalog.deadline() {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                count = touches.recv_many(&mut batch, BATCH) => if count == 0 {
                    return Err(SourceError::Gone { path: root });
                },
                () = settled => {}
                () = events.closed() => return Ok(()),
            }
        }
    }
}

/// What was read of a directory (or a single file) at one time.
#[derive(Debug)]
pub struct Reading {
    /// What a source would tell; it ends with [`Event::Synced`].
    pub events: Vec<Event>,
    catalog: Catalog,
}

impl Reading {
    /// Reads `path` with the rules of a source.
    ///
    /// # Errors
    /// When `path` cannot be read at all.
    pub fn of(path: &Path) -> Result<Self, SourceError> {
        let files = match path.is_file() {
            true => vec![(path.to_owned(), disk::read(path))],
            false => {
                disk::check_directory(path)?;
                Disk::unwatched().scan(path)?
            }
        };
        let mut catalog = Catalog::new();
        let events = catalog.replace(std::time::Instant::now(), files);
        Ok(Self { events, catalog })
    }

    /// Where a field of an object stands; where the object begins, if the field is not there; `None` for an object that
    /// was not read. The file is read again.
    pub fn place(&self, object: &ObjectRef, field: &str) -> Option<Location> {
        let Location { file, line } = self.catalog.place(object)?.clone();
        let text = std::fs::read_to_string(&*file).ok();
        let line = text.and_then(|text| document::line_of(&text, object, field)).unwrap_or(line);
        Some(Location { file, line })
    }
}

/// Reads a directory (or a single file) once, with the rules of a source.
///
/// # Errors
/// When `path` cannot be read at all.
pub fn read_once(path: &Path) -> Result<Vec<Event>, SourceError> {
    Ok(Reading::of(path)?.events)
}

impl State {
    /// Reads what has been touched and tells what follows.
    fn step(&mut self, now: std::time::Instant, touched: Vec<Touch>) -> Result<Vec<Event>, SourceError> {
        if touched.iter().any(|touch| matches!(touch, Touch::Lost)) {
            let files = self.disk.rescan()?;
            return Ok(self.catalog.replace(now, files));
        }
        let mut latest = BTreeMap::new();
        for touch in touched {
            let path = match &touch {
                Touch::Changed(path) | Touch::Created(path) | Touch::Removed(path) | Touch::MovedAway(path) => path,
                Touch::Lost => continue,
            };
            latest.insert(path.clone(), touch);
        }
        let files = self.disk.look(latest, &self.catalog)?;
        Ok(self.catalog.update(now, files))
    }
}

/// What an event of inotify means here. Openings and unfinished writes mean nothing.
fn touches_of(event: notify::Result<notify::Event>, root: &Path) -> Vec<Touch> {
    let Ok(event) = event else { return vec![Touch::Lost] };
    if event.need_rescan() {
        return vec![Touch::Lost];
    }
    let touch: fn(PathBuf) -> Touch = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Metadata(_) | ModifyKind::Name(RenameMode::To)) => Touch::Changed,
        EventKind::Create(_) => Touch::Created,
        EventKind::Remove(_) => Touch::Removed,
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) => Touch::MovedAway,
        _ => return Vec::new(),
    };
    // A mounted ConfigMap changes all its files by renaming one hidden link.
    let is_mount = |path: &Path| path.file_name().is_some_and(|name| name == "..data");
    let paths = event.paths.into_iter().filter(|path| path == root || is_mount(path) || !disk::is_hidden(path));
    paths.map(|path| if is_mount(&path) { Touch::Lost } else { touch(path) }).collect()
}
