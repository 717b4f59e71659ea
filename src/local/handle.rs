//! A playground as a child process: what the end-to-end tests and the demonstration hold.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Client, ClientError};

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory of Kubernetes YAML.
    pub dir: PathBuf,
    /// The playground's name; tests that run at the same time need different ones.
    pub name: String,
    /// The `weft` executable.
    pub weft_exe: PathBuf,
    /// The Envoy executable; without one, `weft up` looks for it.
    pub envoy: Option<PathBuf>,
    /// More arguments of `weft up`.
    pub arguments: Vec<String>,
    /// How long it may take until all is ready.
    pub ready_within: Duration,
}

/// Why a playground did not become ready.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `weft up` could not be run.
    #[error("cannot run {weft_exe} up: {source}")]
    Spawn {
        /// The executable.
        weft_exe: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// It ended, or did not become ready.
    #[error("the playground `{name}` did not become ready: {cause}; its last lines:\n{log}")]
    NotReady {
        /// Its name.
        name: String,
        /// What happened.
        cause: String,
        /// The end of its output.
        log: String,
    },
}

/// A running playground. Dropping it kills it, and nothing of it is left.
#[derive(Debug)]
pub struct Playground {
    child: Child,
    client: Client,
    log: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Playground {
    /// Starts `weft up` and waits until all is ready.
    pub fn start(options: Options) -> Result<Self, StartError> {
        let Options { dir, name, weft_exe, envoy, arguments, ready_within } = options;
        let mut command = Command::new(&weft_exe);
        command.arg("up").arg(dir).args(["--name", &name]).args(arguments);
        command.args(envoy.iter().flat_map(|envoy| ["--envoy".into(), envoy.clone().into_os_string()]));
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(|source| StartError::Spawn { weft_exe, source })?;
        let log = Arc::<Mutex<Vec<String>>>::default();
        let mut readers = Vec::new();
        readers.extend(child.stdout.take().map(|output| keep(std::os::fd::OwnedFd::from(output), &log)));
        readers.extend(child.stderr.take().map(|output| keep(std::os::fd::OwnedFd::from(output), &log)));
        let client = Client::named(&name);
        let mut playground = Self { child, client, log, readers };
        match playground.wait_ready(ready_within) {
            Ok(()) => Ok(playground),
            Err(cause) => {
                // Its last words are complete when its output has ended.
                playground.kill();
                let log = playground.log();
                let from = log.len().saturating_sub(40);
                Err(StartError::NotReady { name, cause, log: log[from..].join("\n") })
            }
        }
    }

    fn wait_ready(&mut self, within: Duration) -> Result<(), String> {
        let deadline = Instant::now() + within;
        loop {
            match self
                .client
                .wait_ready(deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)))
            {
                Ok(()) => return Ok(()),
                // The socket is bound a moment after the start.
                Err(ClientError::NotRunning(_)) if Instant::now() < deadline => {}
                Err(error) => return Err(error.to_string()),
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("`weft up` ended with {status}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Requests to it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The process id of `weft up`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it and its pods have printed so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops it in order, as Ctrl-C does, and waits for its end.
    pub fn stop(mut self) -> io::Result<ExitStatus> {
        if let Err(error) = self.client.stop() {
            tracing::debug!(%error, "the playground is stopping already");
        }
        let status = self.child.wait();
        self.join();
        status
    }

    fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.join();
    }

    fn join(&mut self) {
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        self.kill();
    }
}

fn keep(output: std::os::fd::OwnedFd, log: &Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        for line in BufReader::new(File::from(output)).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    })
}
