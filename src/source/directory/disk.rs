//! The file system's side of the directory source: finding, watching and reading files, none of which can hang.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::catalog::{Catalog, Content};
use super::{SourceError, Touch};

/// The largest file that is read. A dump of ten thousand objects fits.
pub(super) const MAX_FILE: u64 = 16 << 20;

/// How far a file system's clock may lag behind a change; two changes within it can have the same time stamp.
const CLOCK_GRAIN: Duration = Duration::from_secs(1);

/// The watched tree.
#[derive(Debug)]
pub(super) struct Disk {
    root: PathBuf,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    /// What each file looked like when it was last read, so that a rescan need not open it again: each opening is an
    /// event of inotify, and a rescan that opens everything could overflow its queue once more.
    stamps: BTreeMap<PathBuf, Stamp>,
}

/// A file's identity and last change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Disk {
    /// Watches `root` and has `handler` told of what happens in it.
    pub(super) fn watching(root: &Path, handler: impl notify::EventHandler) -> Result<Self, SourceError> {
        let refuse = |error| SourceError::Watch { path: root.to_owned(), error };
        let watcher = notify::recommended_watcher(handler).map_err(refuse)?;
        let mut disk = Self { root: root.to_owned(), watcher: Some(watcher), ..Self::unwatched() };
        disk.watch(root)?;
        Ok(disk)
    }

    /// A tree that is only read.
    pub(super) fn unwatched() -> Self {
        Self { root: PathBuf::new(), watcher: None, watched: BTreeSet::new(), stamps: BTreeMap::new() }
    }

    /// Directories are watched one by one: a new one is watched before it is listed, so that no file is missed.
    fn watch(&mut self, directory: &Path) -> Result<(), SourceError> {
        let Some(watcher) = &mut self.watcher else { return Ok(()) };
        match watcher.watch(directory, RecursiveMode::NonRecursive) {
            Ok(()) => {
                self.watched.insert(directory.to_owned());
                Ok(())
            }
            // It was removed in the meantime: its parent's watch tells.
            Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => Ok(()),
            Err(notify::Error { kind: notify::ErrorKind::Io(error), .. })
                if error.kind() == io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Err(error) => Err(SourceError::Watch { path: directory.to_owned(), error }),
        }
    }

    fn unwatch(&mut self, directory: &Path) {
        let from = self.watched.range(directory.to_owned()..);
        let below: Vec<_> = from.take_while(|path| path.starts_with(directory)).cloned().collect();
        for path in below {
            self.watched.remove(&path);
            if let Some(watcher) = &mut self.watcher {
                // It fails when the kernel has dropped the watch together with the directory.
                let _ = watcher.unwatch(&path);
            }
        }
    }

    /// Every file again, except that one which looks as it did is not opened.
    pub(super) fn rescan(&mut self) -> Result<Vec<(PathBuf, Content)>, SourceError> {
        let root = self.root.clone();
        check_directory(&root)?;
        self.scan(&root)
    }

    /// Watches `directory` and everything below it, and reads their files.
    pub(super) fn scan(&mut self, directory: &Path) -> Result<Vec<(PathBuf, Content)>, SourceError> {
        let (mut files, mut directories) = (Vec::new(), vec![directory.to_owned()]);
        while let Some(directory) = directories.pop() {
            self.watch(&directory)?;
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    files.push((directory, unreadable(&error)));
                    continue;
                }
            };
            for entry in entries.flatten() {
                let path = entry.path();
                if is_hidden(&path) {
                    continue;
                }
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => directories.push(path),
                    Ok(_) if is_source(&path) => {
                        let content = self.read_again(&path);
                        files.push((path, content));
                    }
                    _ => {}
                }
            }
        }
        files.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(files)
    }

    /// What has become of the touched paths.
    pub(super) fn look(
        &mut self,
        touched: BTreeMap<PathBuf, Touch>,
        catalog: &Catalog,
    ) -> Result<Vec<(PathBuf, Content)>, SourceError> {
        let (mut files, mut present) = (Vec::new(), Vec::new());
        // What is gone comes first: a renamed directory keeps its watch in the kernel, and giving up the old path's
        // must not end the new one's.
        for (path, touch) in touched {
            match fs::symlink_metadata(&path) {
                Ok(metadata) => present.push((path, touch, metadata)),
                Err(_) if path == self.root => return Err(SourceError::Gone { path }),
                Err(_) => {
                    let content = match touch {
                        Touch::MovedAway(_) => Content::MovedAway,
                        _ => Content::Gone,
                    };
                    self.unwatch(&path);
                    for file in catalog.below(&path) {
                        self.stamps.remove(file);
                        files.push((file.to_owned(), content.clone()));
                    }
                }
            }
        }
        for (path, touch, metadata) in present {
            if metadata.is_dir() {
                // The root's own attributes are nobody's business; a directory may have new permissions.
                if path != self.root {
                    files.extend(self.scan(&path)?);
                }
            } else if is_source(&path) {
                let unfinished = metadata.is_file() && metadata.nlink() == 1 && matches!(touch, Touch::Created(_));
                if !unfinished {
                    let content = self.read(&path);
                    files.push((path, content));
                }
            }
        }
        Ok(files)
    }

    fn read(&mut self, path: &Path) -> Content {
        let before = Stamp::of(path);
        let content = read(path);
        match before.filter(|before| matches!(content, Content::Bytes(_)) && before.is_settled()) {
            Some(stamp) => self.stamps.insert(path.to_owned(), stamp),
            None => self.stamps.remove(path),
        };
        content
    }

    /// As [`Disk::read`], for a file of which no event told.
    fn read_again(&mut self, path: &Path) -> Content {
        match self.stamps.get(path).is_some_and(|known| Stamp::of(path) == Some(*known)) {
            true => Content::Unchanged,
            false => self.read(path),
        }
    }
}

impl Stamp {
    /// The stamp of what `path` leads to.
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Whether the next change is sure to have another stamp.
    fn is_settled(&self) -> bool {
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(self.changed.0.max(0).unsigned_abs());
        changed.elapsed().is_ok_and(|age| age > 2 * CLOCK_GRAIN)
    }
}

/// Reads one file; whatever it is, this ends soon and takes little memory.
pub(super) fn read(path: &Path) -> Content {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::symlink_metadata(path) {
            Ok(_) => {
                let reason = "the symbolic link points to nothing";
                return Content::Unreadable(reason.to_owned(), "correct the link, or remove it".to_owned());
            }
            Err(_) => return Content::Gone,
        },
        Err(error) => return unreadable(&error),
    };
    if metadata.is_dir() {
        let reason = "symbolic links to directories are not followed";
        return Content::Unreadable(reason.to_owned(), "move the directory here, or link its files".to_owned());
    }
    if !metadata.is_file() {
        // Opening a pipe would wait for its writer.
        let reason = "it is a pipe, a socket or a device";
        return Content::Unreadable(reason.to_owned(), "replace it by a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    match fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)) {
        Ok(length) if length as u64 > MAX_FILE => {
            let reason = format!("the file is larger than {} MiB", MAX_FILE >> 20);
            Content::Unreadable(reason, "split it into several files".to_owned())
        }
        Ok(_) => Content::Bytes(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Content::Gone,
        Err(error) => unreadable(&error),
    }
}

fn unreadable(error: &io::Error) -> Content {
    Content::Unreadable(format!("it cannot be read: {error}"), "correct its permissions, or remove it".to_owned())
}

/// That `path` is a directory whose entries can be listed.
pub(super) fn check_directory(path: &Path) -> Result<(), SourceError> {
    let unreadable = |error| SourceError::Unreadable { path: path.to_owned(), error };
    match fs::metadata(path).map_err(unreadable)?.is_dir() {
        true => fs::read_dir(path).map(|_| ()).map_err(unreadable),
        false => Err(SourceError::NotADirectory { path: path.to_owned() }),
    }
}

/// Editors and atomic writers put their temporary files under such names.
pub(super) fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn is_source(path: &Path) -> bool {
    matches!(path.extension().and_then(|extension| extension.to_str()), Some("yaml" | "yml" | "json"))
}
