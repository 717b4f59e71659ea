//! The state directory: what an API server would hold, one document a file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Writes and removes documents below one directory, each atomically: a reader sees the old one or the new one.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
}

/// Why the state directory could not be changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {path}: {source}; check that the state directory is writable and its disk not full")]
pub struct StateError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl StateDir {
    /// The state directory at `root`, which is made if need be.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StateError> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(|source| StateError { doing: "make", path: root.clone(), source })?;
        Ok(Self { root })
    }

    /// Writes a document.
    ///
    /// # Errors
    /// If it cannot be written; then the document before stays.
    pub fn write(&self, path: &Path, yaml: &str) -> Result<(), StateError> {
        let target = self.root.join(path);
        let fail = |source| StateError { doing: "write", path: target.clone(), source };
        let (Some(directory), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(fail(io::ErrorKind::InvalidFilename.into()));
        };
        fs::create_dir_all(directory).map_err(fail)?;
        // The reader of the directory ignores names that begin with a dot.
        let temporary = directory.join(format!(".{}", name.to_string_lossy()));
        fs::write(&temporary, yaml).and_then(|()| fs::rename(&temporary, &target)).map_err(fail)
    }

    /// Removes a document; one that is not there is fine. Directories stay, so that a watch on them does.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(&self, path: &Path) -> Result<(), StateError> {
        let target = self.root.join(path);
        match fs::remove_file(&target) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StateError { doing: "remove", path: target, source })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_written_replaced_and_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(directory.path().join("state")).expect("opened");
        let path = Path::new("Pod/shop/cart.yaml");
        state.write(path, "a: 1\n").expect("written");
        state.write(path, "a: 2\n").expect("replaced");
        let shop = directory.path().join("state/Pod/shop");
        assert_eq!(fs::read_to_string(shop.join("cart.yaml")).expect("there"), "a: 2\n");
        assert_eq!(fs::read_dir(&shop).expect("a directory").count(), 1, "nothing temporary stays");
        state.remove(path).expect("removed");
        state.remove(path).expect("removed already");
        assert_eq!(fs::read_dir(&shop).expect("stays").count(), 0);
    }

    #[test]
    fn a_failure_names_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("Pod"), "in the way").expect("written");
        let state = StateDir::open(directory.path()).expect("opened");
        let error = state.write(Path::new("Pod/shop/cart.yaml"), "").expect_err("a file is in the way");
        assert!(error.to_string().contains("Pod/shop/cart.yaml"), "{error}");
    }
}
