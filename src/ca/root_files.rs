//! The root on disk: two files in one directory, made once, by one process.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::PrivateKey;
use super::authority::CaError;

/// Where the root certificate and its key are.
pub(super) struct RootFiles {
    dir: PathBuf,
    /// The certificate, readable by everyone.
    pub(super) certificate: PathBuf,
    /// The key, mode 0600.
    pub(super) key: PathBuf,
}

impl RootFiles {
    pub(super) fn in_dir(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), certificate: dir.join("root.pem"), key: dir.join("root-key.pem") }
    }

    /// Reads both files, or makes them with what `make` returns if neither exists.
    ///
    /// The directory is locked meanwhile, so processes that start at once agree on one root. The key comes last and
    /// whole (a link to a finished file): after a crash on the way there is no key, and nothing was signed.
    pub(super) fn load_or_create(
        &self,
        make: impl FnOnce() -> Result<(String, PrivateKey), CaError>,
    ) -> Result<(String, PrivateKey), CaError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(at(&self.dir))?;
        let lock = File::open(&self.dir).map_err(at(&self.dir))?;
        lock.lock().map_err(at(&self.dir))?; // released when `lock` is closed
        match (exists(&self.certificate)?, exists(&self.key)?) {
            (true, true) => self.load(),
            (false, false) => {
                let (certificate, key) = make()?;
                publish(&self.certificate, certificate.as_bytes(), 0o644)?;
                publish(&self.key, key.expose_pem().as_bytes(), 0o600)?;
                lock.sync_all().map_err(at(&self.dir))?;
                Ok((certificate, key))
            }
            (true, false) => Err(self.half(&self.key, &self.certificate)),
            (false, true) => Err(self.half(&self.certificate, &self.key)),
        }
    }

    fn load(&self) -> Result<(String, PrivateKey), CaError> {
        let certificate = fs::read_to_string(&self.certificate).map_err(at(&self.certificate))?;
        // The mode is asked of the open file, so that it is the mode of what is read.
        let mut file = File::open(&self.key).map_err(at(&self.key))?;
        let mode = file.metadata().map_err(at(&self.key))?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(CaError::KeyExposed { path: self.key.clone(), mode });
        }
        let mut key = String::new();
        file.read_to_string(&mut key).map_err(at(&self.key))?;
        Ok((certificate, PrivateKey::from_pem(key)))
    }

    fn half(&self, missing: &Path, present: &Path) -> CaError {
        CaError::HalfRoot { missing: missing.to_owned(), present: present.to_owned() }
    }
}

/// Writes a file that must not exist, so that it appears with all its content or not at all.
fn publish(path: &Path, content: &[u8], mode: u32) -> Result<(), CaError> {
    let unfinished = path.with_extension("pem.new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&unfinished)(error)),
        _ => {} // what a crash left behind is gone; the lock keeps out others who would be writing it
    }
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::hard_link(&unfinished, path)?; // unlike a rename, this fails if `path` exists
        fs::remove_file(&unfinished)
    };
    write().map_err(at(path))
}

fn exists(path: &Path) -> Result<bool, CaError> {
    path.try_exists().map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CaError {
    let path = path.to_owned();
    move |source| CaError::Io { path, source }
}
