//! The control plane as a child process: started again with back-off when it ends, killed and started on request.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use http::{Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::control::ControlPlaneStatus;
use super::log::Log;
use super::pod::dial;
use super::{PlaygroundError, admin};

const LOOK: Duration = Duration::from_millis(50);
const STOP_GRACE: Duration = Duration::from_secs(5);

/// How to run it.
#[derive(Debug, Clone)]
pub struct ControlPlaneCommand {
    /// The executable; [`WEFT_EXE`](super::WEFT_EXE) but in tests.
    pub program: PathBuf,
    /// Its arguments: `serve --source …`.
    pub arguments: Vec<String>,
    /// Where `GET /readyz` answers 200 when it serves.
    pub readiness: SocketAddr,
}

/// A handle on the supervised control plane.
#[derive(Clone)]
pub(crate) struct ControlPlane {
    wanted: watch::Sender<bool>,
    status: watch::Receiver<ControlPlaneStatus>,
}

impl ControlPlane {
    /// Starts it, until `stop`. `None` runs none, for playgrounds without a mesh.
    pub(crate) fn start(
        command: Option<ControlPlaneCommand>,
        stop: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (wanted, wanted_seen) = watch::channel(true);
        let first = if command.is_some() { ControlPlaneStatus::Down } else { ControlPlaneStatus::None };
        let (publish, status) = watch::channel(first);
        let task = tokio::spawn(async move {
            match command {
                Some(command) => supervise(command, wanted_seen, publish, stop).await,
                None => stop.cancelled().await,
            }
        });
        (Self { wanted, status }, task)
    }

    pub(crate) fn status(&self) -> ControlPlaneStatus {
        *self.status.borrow()
    }

    /// Waits until it serves; at once if there is none.
    pub(crate) async fn ready(&self) {
        let mut status = self.status.clone();
        // It fails only when the supervisor has ended, that is, when the playground stops.
        let _ = status.wait_for(|s| matches!(s, ControlPlaneStatus::Ready | ControlPlaneStatus::None)).await;
    }

    /// Kills it and waits for its end.
    pub(crate) async fn kill(&self) {
        self.wanted.send_replace(false);
        let mut status = self.status.clone();
        let _ = status.wait_for(|s| matches!(s, ControlPlaneStatus::Down | ControlPlaneStatus::None)).await;
    }

    /// Lets it run again.
    pub(crate) fn run(&self) {
        self.wanted.send_replace(true);
    }
}

async fn supervise(
    command: ControlPlaneCommand,
    mut wanted: watch::Receiver<bool>,
    status: watch::Sender<ControlPlaneStatus>,
    stop: CancellationToken,
) {
    let log = Log::new("control-plane".to_owned());
    let mut backoff = Backoff::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = until(&mut wanted, true) => {}
        }
        backoff.starting();
        let ended = match spawn(&command, &log) {
            Ok(mut child) => {
                status.send_replace(ControlPlaneStatus::Starting);
                let announce = async {
                    ready(command.readiness).await;
                    status.send_replace(ControlPlaneStatus::Ready);
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    ended = child.wait() => ended.map(|status| status.to_string()).unwrap_or_default(),
                    () = announce => String::new(),
                    () = until(&mut wanted, false) => {
                        // An error means that it has ended already.
                        let _ = child.kill().await;
                        status.send_replace(ControlPlaneStatus::Down);
                        continue;
                    }
                    () = stop.cancelled() => return end(child).await,
                }
            }
            Err(error) => error.to_string(),
        };
        status.send_replace(ControlPlaneStatus::Down);
        let wait = backoff.failed();
        tracing::error!("the control plane ended ({ended}) and starts again in {wait:?}; sidecars keep what they have");
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Waits until that is wanted. Without anybody left to want something, for ever.
async fn until(wanted: &mut watch::Receiver<bool>, value: bool) {
    if wanted.wait_for(|wanted| *wanted == value).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn spawn(command: &ControlPlaneCommand, log: &Log) -> Result<Child, PlaygroundError> {
    let output = || log.writer().map(Stdio::from);
    let spawn = || {
        Command::new(&command.program)
            .args(&command.arguments)
            .stdin(Stdio::null())
            .stdout(output()?)
            .stderr(output()?)
            .kill_on_drop(true)
            .spawn()
    };
    spawn().map_err(PlaygroundError::io("start the control plane"))
}

async fn ready(at: SocketAddr) {
    loop {
        let answer = async { admin::request(dial(at).await?, Method::GET, "/readyz").await };
        if matches!(answer.await, Ok((StatusCode::OK, _))) {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn end(mut child: Child) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(STOP_GRACE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Something that answers 200 to everything, in place of the control plane's admin port.
    async fn readiness() -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        let router = axum::Router::new().route("/readyz", axum::routing::get(|| async { "ok" }));
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    async fn shell(script: &str) -> ControlPlaneCommand {
        let arguments = vec!["-c".to_owned(), script.to_owned()];
        ControlPlaneCommand { program: "sh".into(), arguments, readiness: readiness().await }
    }

    #[tokio::test]
    async fn it_is_killed_and_started_on_request_and_ends_with_the_playground() {
        let stop = CancellationToken::new();
        let (control_plane, task) = ControlPlane::start(Some(shell("exec sleep 1000").await), stop.clone());
        control_plane.ready().await;
        control_plane.kill().await;
        assert_eq!(control_plane.status(), ControlPlaneStatus::Down);
        control_plane.run();
        control_plane.ready().await;
        assert_eq!(control_plane.status(), ControlPlaneStatus::Ready);
        stop.cancel();
        task.await.expect("ended");
    }

    #[tokio::test]
    async fn it_is_started_again_when_it_ends_by_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        let starts = dir.path().join("starts");
        let script = format!("echo >> {0}; [ $(wc -l < {0}) -ge 2 ] && exec sleep 1000", starts.display());
        let stop = CancellationToken::new();
        let (control_plane, task) = ControlPlane::start(Some(shell(&script).await), stop.clone());
        let count = || std::fs::read_to_string(&starts).unwrap_or_default().lines().count();
        let twice = async {
            while count() < 2 {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), twice).await.expect("started twice");
        control_plane.ready().await;
        stop.cancel();
        task.await.expect("ended");
    }

    #[tokio::test]
    async fn a_playground_without_one_does_not_wait_for_it() {
        let (control_plane, _task) = ControlPlane::start(None, CancellationToken::new());
        control_plane.ready().await;
        control_plane.kill().await;
        assert_eq!(control_plane.status(), ControlPlaneStatus::None);
    }
}
