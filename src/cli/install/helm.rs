//! Helm, which installs the chart: a program beside this one.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use tokio::process::Command;

use crate::cli::api_server::ApiServer;

/// The oldest Helm whose Kubernetes client speaks to the oldest Kubernetes that Weft runs on.
const OLDEST: (u32, u32) = (3, 12);

/// Why Helm is of no help.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum HelmError {
    /// There is none.
    #[error(
        "cannot run Helm, `{}`: {error}; install Helm {}.{} or newer (https://helm.sh/docs/intro/install), or say where it is: --helm PROGRAM, or WEFT_HELM{by_hand}",
        program.display(), OLDEST.0, OLDEST.1
    )]
    Missing { program: PathBuf, error: io::Error, by_hand: String },
    /// It is not what it should be.
    #[error("`{} version` says `{said}`: Helm {}.{} or newer is needed; name another with --helm PROGRAM", program.display(), OLDEST.0, OLDEST.1)]
    Version { program: PathBuf, said: String },
    /// It refuses what it is asked.
    #[error("{what}: {said}")]
    Refused { what: String, said: String },
}

/// Which Helm is used.
#[derive(clap::Args, Clone, Debug)]
pub(in crate::cli) struct Which {
    /// The Helm to use
    #[arg(long, env = "WEFT_HELM", default_value = "helm", value_name = "PROGRAM")]
    helm: PathBuf,
}

/// A Helm that works, and the API server that it is used for.
pub(in crate::cli) struct Helm {
    program: PathBuf,
    server: Vec<OsString>,
}

impl Helm {
    /// The one that is named. `by_hand` says how to do without this program what is wanted.
    ///
    /// # Errors
    /// When there is none, or it is too old.
    pub(in crate::cli) async fn find(which: &Which, server: &ApiServer, by_hand: &str) -> Result<Self, HelmError> {
        let helm = Self { program: which.helm.clone(), server: server.for_helm() };
        let done = helm.command(["version", "--template", "{{.Version}}"]).output().await;
        let done = done.map_err(|error| {
            let by_hand = format!("\nBy hand: {by_hand}");
            HelmError::Missing { program: helm.program.clone(), error, by_hand }
        })?;
        let said = text(&done.stdout);
        match version(&said) {
            Some(version) if done.status.success() && version >= OLDEST => Ok(helm),
            _ => {
                let said = if done.status.success() { said } else { text(&done.stderr) };
                Err(HelmError::Version { program: helm.program, said })
            }
        }
    }

    /// Helm with these arguments, for the API server that is meant: what the environment says of another one does not
    /// count.
    pub(in crate::cli) fn command<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, arguments: I) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).args(&self.server).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"HELM_KUBE") || name == "HELM_NAMESPACE" {
                command.env_remove(name);
            }
        }
        command
    }

    /// What it prints.
    ///
    /// # Errors
    /// When it refuses; `what` says to do what.
    pub(in crate::cli) async fn ask<I, S>(&self, what: &str, arguments: I) -> Result<String, HelmError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let done = self.command(arguments).output().await;
        let done = done.map_err(|error| HelmError::Refused { what: what.to_owned(), said: error.to_string() })?;
        printed(what, &done)
    }
}

/// What it has printed.
///
/// # Errors
/// When it has refused.
pub(in crate::cli) fn printed(what: &str, done: &Output) -> Result<String, HelmError> {
    match done.status.success() {
        true => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
        false => Err(HelmError::Refused { what: what.to_owned(), said: reason(&text(&done.stderr)) }),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// What Helm says, without how it begins, and without warnings and what it logs before.
fn reason(said: &str) -> String {
    let at = said.find("Error: ").map_or(0, |at| at + "Error: ".len());
    said.get(at..).unwrap_or(said).trim().to_owned()
}

/// `v3.14.2`, `v4.3`.
fn version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.strip_prefix('v')?.split(['.', '-', '+']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// A path as an argument.
pub(in crate::cli) fn path(path: &Path) -> OsString {
    path.as_os_str().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_helm_are_read_and_compared() {
        for (said, expected) in [
            ("v4.3", Some((4, 3))),
            ("v3.14.2", Some((3, 14))),
            ("v3.9.0+g7ceeda6", Some((3, 9))),
            ("v3", None),
            ("usage: helm", None),
            ("", None),
        ] {
            assert_eq!(version(said), expected, "{said}");
        }
        assert!((3, 9) < OLDEST && (4, 0) > OLDEST && (3, 14) > OLDEST);
    }

    #[test]
    fn what_helm_refuses_is_told_in_its_words_alone() {
        let said = "level=WARN msg=\"no\"\nError: values don't meet the specifications of the schema(s):\n- replicas";
        assert_eq!(reason(said), "values don't meet the specifications of the schema(s):\n- replicas");
        assert_eq!(reason("helm: not found"), "helm: not found");
    }

    #[tokio::test]
    async fn a_helm_that_is_missing_or_is_none_is_said_with_what_to_do() {
        let find = async |program: &str| {
            let which = Which { helm: program.into() };
            Helm::find(&which, &ApiServer::default(), "helm install it").await.err().unwrap().to_string()
        };
        let missing = find("/nowhere/helm").await;
        for words in ["`/nowhere/helm`", "install Helm 3.12 or newer", "--helm PROGRAM", "By hand: helm install it"] {
            assert!(missing.contains(words), "{missing}");
        }
        let none = find("true").await;
        assert!(none.contains("`true version` says ``: Helm 3.12 or newer is needed"), "{none}");
    }
}
