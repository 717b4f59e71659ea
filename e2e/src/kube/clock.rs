//! A wall clock that is wrong, for some processes of a test: a library (e2e/clock/clock.c) that is preloaded into them.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::mesh::repository;

/// The library, and the file that says how wrong the clock is, in the clock's directory.
const LIBRARY: &str = "clock.so";
const SKEW: &str = "skew";

/// A clock that processes can be started with. It can be set while they run.
#[derive(Debug)]
pub struct Clock {
    directory: PathBuf,
}

impl Clock {
    /// One that is right, with its files in a new `directory`.
    ///
    /// # Errors
    /// When the library cannot be built.
    pub fn create(directory: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&directory)?;
        let built = Command::new("cc")
            .args(["-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", "-o"])
            .args([directory.join(LIBRARY), repository().join("e2e/clock/clock.c")])
            .status()
            .context("cannot run cc: install a C compiler (gcc and libc6-dev)")?;
        ensure!(built.success(), "e2e/clock/clock.c cannot be built");
        let clock = Self { directory };
        clock.set(0)?;
        // Containers have users of their own.
        for (path, mode) in [(clock.directory.clone(), 0o755), (clock.directory.join(SKEW), 0o644)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        Ok(clock)
    }

    /// Has it be so many seconds ahead of this machine's; behind, when they are negative.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set(&self, ahead: i64) -> anyhow::Result<()> {
        // In place: processes have it in memory.
        let mut file = File::options().write(true).create(true).truncate(false).open(self.directory.join(SKEW))?;
        Ok(file.write_all(&ahead.to_ne_bytes())?)
    }

    /// Where its files are.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// What the environment of a process says that goes by the clock whose files it sees in `directory`.
pub(super) fn environment(directory: &Path) -> [(String, String); 2] {
    [("LD_PRELOAD", LIBRARY), ("WEFT_TEST_CLOCK", SKEW)]
        .map(|(name, file)| (name.to_owned(), directory.join(file).display().to_string()))
}
