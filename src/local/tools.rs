//! The system's tools that the playground calls, and what to install when one is missing.

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A tool of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    /// `ip`, of iproute2.
    Ip,
    /// `nft`, of nftables.
    Nft,
}

/// Why a tool could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("`{name}` is not installed: install the package `{package}` (Debian: `apt-get install {package}`)")]
    Missing {
        /// The program.
        name: &'static str,
        /// The package that has it.
        package: &'static str,
    },
    /// It could not be run.
    #[error("cannot run `{name}`: {source}")]
    Run {
        /// The program.
        name: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// It refused its input.
    #[error("`{name}` refused to {what}: {stderr}")]
    Refused {
        /// The program.
        name: &'static str,
        /// What was to be done.
        what: String,
        /// What it printed.
        stderr: String,
    },
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Nft => "nft",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Ip => "iproute2",
            Self::Nft => "nftables",
        }
    }

    /// Where it is. A user's PATH often lacks the directories of system tools, so they are searched too.
    pub(crate) fn find(self) -> Result<PathBuf, ToolError> {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path)
            .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
            .map(|directory| directory.join(self.name()))
            .find(|candidate| candidate.is_file())
            .ok_or(ToolError::Missing { name: self.name(), package: self.package() })
    }

    /// Runs it as a batch: `ip -batch -` or `nft -f -`. `what` completes "refused to …".
    pub(crate) fn batch(self, input: &str, what: &str) -> Result<(), ToolError> {
        let arguments: &[&str] = match self {
            Self::Ip => &["-batch", "-"],
            Self::Nft => &["-f", "-"],
        };
        let run = |source| ToolError::Run { name: self.name(), source };
        let mut child = Command::new(self.find()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(run)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A tool that stops reading says why on its standard error, which is reported below.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().map_err(run)?;
        if output.status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(ToolError::Refused { name: self.name(), what: what.to_owned(), stderr })
    }
}
