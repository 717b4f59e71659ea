//! Warm sets in a file, which replicas on one file system may share.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;

use super::document::{self, DocumentError};
use super::{Saved, StoreError, WarmSets, WarmStore};

/// What is larger is not ours.
const MAX_FILE: u64 = 64 << 20;

/// A file. It is replaced as a whole, so a reader sees the old or the new one, also after a crash.
#[derive(Debug)]
pub struct FileStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// What was read or written here last.
    last: Mutex<Option<Stamp>>,
}

/// Tells one file of this name from the next.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Self { inode: metadata.ino(), length: metadata.len(), modified }
    }
}

impl FileStore {
    /// The sets in the file `path`, which need not exist; its directory is made if it has to be.
    pub fn new(path: PathBuf) -> Self {
        Self(Arc::new(Shared { path, last: Mutex::default() }))
    }

    /// Does `work` on a thread that may block.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StoreError>> {
        let shared = self.0.clone();
        async move {
            let at = shared.clone();
            let done = tokio::task::spawn_blocking(move || work(&shared)).await;
            done.unwrap_or_else(|error| Err(at.failed(io::Error::other(error))))
        }
        .boxed()
    }
}

impl WarmStore for FileStore {
    fn load(&self) -> BoxFuture<'_, Result<Option<WarmSets>, StoreError>> {
        self.blocking(Shared::load)
    }

    fn save(&self, sets: WarmSets) -> BoxFuture<'_, Result<Saved, StoreError>> {
        self.blocking(move |shared| shared.save(&sets).map(|()| Saved::Kept))
    }
}

impl Shared {
    fn load(&self) -> Result<Option<WarmSets>, StoreError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed(error)),
        };
        let stamp = Stamp::of(&file.metadata().map_err(|error| self.failed(error))?);
        if self.last() == Some(stamp) {
            return Ok(None);
        }
        let mut content = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut content).map_err(|error| self.failed(error))?;
        let decoded = match content.len() as u64 > MAX_FILE {
            true => Err(format!("it is larger than {MAX_FILE} bytes")),
            false => match document::decode(&content) {
                Ok(sets) => Ok(sets),
                Err(error @ DocumentError::Newer(_)) => return Err(self.newer(error)),
                Err(error) => Err(error.to_string()),
            },
        };
        match decoded {
            Ok(sets) => {
                self.set_last(Some(stamp));
                Ok(Some(sets))
            }
            Err(reason) => {
                let aside = self.beside("bad");
                fs::rename(&self.path, &aside).map_err(|error| self.failed(error))?;
                let (file, aside) = (self.path.display(), aside.display());
                tracing::warn!(%file, %aside, reason, "the warm sets cannot be read: kept aside, and begun anew");
                Ok(None)
            }
        }
    }

    fn save(&self, sets: &WarmSets) -> Result<(), StoreError> {
        let content = document::encode(sets).map_err(|error| self.failed(io::Error::other(error)))?;
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory).map_err(|error| self.failed(error))?;
        }
        // Replicas that write at once each have a name of their own; the last one stays, and the others merge.
        let unfinished = self.beside(&format!("{}.new", std::process::id()));
        let write = || -> io::Result<Stamp> {
            let mut file = File::create(&unfinished)?;
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
            let stamp = Stamp::of(&file.metadata()?);
            fs::rename(&unfinished, &self.path)?;
            Ok(stamp)
        };
        match write() {
            Ok(stamp) => self.set_last(Some(stamp)),
            Err(error) => {
                let _ = fs::remove_file(&unfinished); // it may not even be there
                return Err(self.failed(error));
            }
        }
        Ok(())
    }

    /// `FILE.SUFFIX`, in the same directory, so that a rename is atomic.
    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".");
        name.push(suffix);
        name.into()
    }

    fn last(&self) -> Option<Stamp> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_last(&self, stamp: Option<Stamp>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = stamp;
    }

    fn failed(&self, error: io::Error) -> StoreError {
        StoreError::Unusable { place: display(&self.path), error: error.into() }
    }

    fn newer(&self, error: DocumentError) -> StoreError {
        StoreError::Newer { place: display(&self.path), error }
    }
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::WorkloadKey;
    use crate::warm::Moment;

    fn sets(services: &[&str]) -> WarmSets {
        let mut sets = WarmSets::default();
        for service in services {
            let upstream = format!("{service}.shop:80").parse().expect("an upstream");
            sets.learn(&WorkloadKey::new("shop", "web"), upstream, Moment(1));
        }
        sets
    }

    struct Rig {
        directory: tempfile::TempDir,
        path: PathBuf,
    }

    impl Rig {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("below/warm-sets.json");
            Self { directory, path }
        }

        fn store(&self) -> FileStore {
            FileStore::new(self.path.clone())
        }

        fn put(&self, content: &[u8]) {
            fs::create_dir_all(self.path.parent().expect("a parent")).expect("made");
            fs::write(&self.path, content).expect("written");
        }

        fn files(&self) -> Vec<String> {
            let below = fs::read_dir(self.directory.path().join("below")).expect("a directory");
            let mut names: Vec<_> =
                below.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        }
    }

    #[tokio::test]
    async fn what_was_saved_is_loaded_after_a_restart() {
        let rig = Rig::new();
        assert_eq!(rig.store().load().await.expect("no file is no error"), None);
        rig.store().save(sets(&["cart"])).await.expect("saved");
        assert_eq!(rig.store().load().await.expect("loaded"), Some(sets(&["cart"])));
        assert_eq!(rig.files(), ["warm-sets.json"], "nothing unfinished is left");
    }

    #[tokio::test]
    async fn it_is_read_again_only_when_another_replica_wrote_it() {
        let rig = Rig::new();
        let (ours, theirs) = (rig.store(), rig.store());
        ours.save(sets(&["cart"])).await.expect("saved");
        assert_eq!(ours.load().await.expect("loaded"), None, "it is ours");
        assert_eq!(theirs.load().await.expect("loaded"), Some(sets(&["cart"])));
        theirs.save(sets(&["cart", "mail"])).await.expect("saved");
        assert_eq!(ours.load().await.expect("loaded"), Some(sets(&["cart", "mail"])));
        assert_eq!(ours.load().await.expect("loaded"), None);
    }

    #[tokio::test]
    async fn a_file_that_is_not_ours_is_kept_aside_and_begun_anew() {
        for garbage in [&b"{\"version\":1,\"work"[..], b"", b"\xff\xfe", b"[]"] {
            let rig = Rig::new();
            rig.put(garbage);
            let store = rig.store();
            assert_eq!(store.load().await.expect("not an error"), None);
            assert_eq!(fs::read(store.0.beside("bad")).expect("aside"), garbage);
            store.save(sets(&["cart"])).await.expect("saved");
            assert_eq!(rig.store().load().await.expect("loaded"), Some(sets(&["cart"])));
        }
    }

    #[tokio::test]
    async fn the_file_of_a_later_weft_is_left_alone() {
        let rig = Rig::new();
        let later = br#"{"version":9,"anything":[]}"#;
        rig.put(later);
        let error = rig.store().load().await.expect_err("not read");
        assert!(error.to_string().contains("version 9 is of a later Weft"), "{error}");
        assert_eq!((fs::read(&rig.path).expect("there"), rig.files()), (later.to_vec(), vec!["warm-sets.json".into()]));
    }

    #[tokio::test]
    async fn a_place_that_cannot_be_written_is_named() {
        let rig = Rig::new();
        fs::create_dir_all(&rig.path).expect("a directory in its place");
        let error = rig.store().save(sets(&["cart"])).await.expect_err("not saved").to_string();
        assert!(error.contains("below/warm-sets.json"), "{error}");
        assert_eq!(rig.files(), ["warm-sets.json"], "nothing unfinished is left");
    }
}
