//! A pod as the playground holds it: its namespaces with a first process inside, and the socket to that process.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::Signal;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::protocol::{Event, Process, Request};
use crate::local::wire::{self, Channel};
use crate::local::{PlaygroundError, WEFT_EXE, node};

/// A pod's namespaces. Dropping it ends every process in them.
pub(crate) struct Sandbox {
    channel: Arc<Channel>,
    waiting: Arc<Mutex<Waiting>>,
    next_id: AtomicU64,
    ip: Ipv4Addr,
    ended: CancellationToken,
}

/// What a request came to, and the descriptors beside the answer.
type Answer = (Result<(), String>, Vec<OwnedFd>);

#[derive(Default)]
struct Waiting {
    answers: HashMap<u64, oneshot::Sender<Answer>>,
    exits: HashMap<u64, oneshot::Sender<i32>>,
}

/// A process that was started in the pod.
pub(crate) struct Running {
    id: u64,
    exit: oneshot::Receiver<i32>,
}

impl Running {
    /// Waits for its end. If the whole pod ends, the code is that of SIGKILL. Dropping the future loses nothing.
    pub(crate) async fn exited(&mut self) -> i32 {
        (&mut self.exit).await.unwrap_or(128 + Signal::KILL.as_raw())
    }
}

/// A running process that is killed when this is dropped before its end.
pub(crate) struct Killing {
    sandbox: Arc<Sandbox>,
    running: Running,
}

impl Killing {
    pub(crate) fn new(sandbox: Arc<Sandbox>, running: Running) -> Self {
        Self { sandbox, running }
    }

    /// Waits for its end.
    pub(crate) async fn exited(mut self) -> i32 {
        self.running.exited().await
    }
}

impl Drop for Killing {
    fn drop(&mut self) {
        // After its end this does nothing: the pod's first process no longer knows it.
        let (sandbox, id) = (Arc::clone(&self.sandbox), self.running.id);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { sandbox.kill(id).await });
        }
    }
}

impl Sandbox {
    /// Makes the namespaces of pod `ip` and connects them to the node.
    pub(crate) async fn create(
        (ip, ipv6): (Ipv4Addr, Option<Ipv6Addr>),
        hostname: String,
        interception: Option<String>,
    ) -> Result<Self, PlaygroundError> {
        let (ours, theirs) = wire::pair().map_err(PlaygroundError::io("make a socket pair"))?;
        let status = tokio::process::Command::new(WEFT_EXE)
            .args(["internal", "pod"])
            .stdin(Stdio::from(theirs))
            .status()
            .await
            .map_err(PlaygroundError::io("start the pod"))?;
        let channel = Channel::new(ours).map_err(PlaygroundError::io("use the pod's socket"))?;
        let pid = match channel.receive().await {
            Ok(Some((Event::Started { pid }, _))) if status.success() => pid,
            _ => return Err(PlaygroundError::Pod("its namespaces could not be made: see the log above".to_owned())),
        };
        blocking(move || node::connect_pod(ip, ipv6, pid)).await??;
        let sandbox = Self {
            channel: Arc::new(channel),
            waiting: Arc::default(),
            next_id: AtomicU64::new(1),
            ip,
            ended: CancellationToken::new(),
        };
        tokio::spawn(dispatch(Arc::clone(&sandbox.channel), Arc::clone(&sandbox.waiting), sandbox.ended.clone()));
        sandbox.ask(|id| Request::Configure { id, ip, ipv6, hostname, interception }, &[]).await?;
        Ok(sandbox)
    }

    /// Cancelled when the pod's first process has ended.
    pub(crate) fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Starts a process with the given standard input, output and error.
    pub(crate) async fn run(&self, process: Process, stdio: [OwnedFd; 3]) -> Result<Running, PlaygroundError> {
        let (ended, exit) = oneshot::channel();
        let mut id = 0;
        let request = |new| {
            id = new;
            lock(&self.waiting).exits.insert(new, ended);
            Request::Run { id: new, process }
        };
        self.ask(request, &stdio.each_ref().map(AsFd::as_fd)).await?;
        Ok(Running { id, exit })
    }

    /// Signals a process and its group.
    pub(crate) async fn signal(&self, running: &Running, signal: Signal) {
        // A pod that is gone needs no signal.
        let _ = self.channel.send(&Request::Signal { id: running.id, signal: signal.as_raw() }, &[]).await;
    }

    async fn kill(&self, id: u64) {
        let _ = self.channel.send(&Request::Signal { id, signal: Signal::KILL.as_raw() }, &[]).await;
    }

    /// A TCP connection from within the pod.
    pub(crate) async fn dial(&self, to: SocketAddr) -> Result<OwnedFd, PlaygroundError> {
        let mut descriptors = self.ask(|id| Request::Dial { id, to }, &[]).await?;
        descriptors.pop().ok_or_else(|| PlaygroundError::Pod("it sent no socket".to_owned()))
    }

    /// Ends every process of the pod and removes its link.
    pub(crate) async fn remove(&self) {
        let ip = self.ip;
        let ended = self.ended.clone();
        // The first process reads the end of the stream and exits; the kernel ends the rest of its pid namespace.
        let _ = self.channel.shut_down();
        ended.cancelled().await;
        if let Ok(Err(error)) = blocking(move || node::disconnect_pod(ip)).await {
            tracing::debug!(%error, "the pod's link went with its namespace");
        }
    }

    async fn ask(
        &self,
        request: impl FnOnce(u64) -> Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Vec<OwnedFd>, PlaygroundError> {
        let gone = || PlaygroundError::Pod("its first process has ended".to_owned());
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (answered, answer) = oneshot::channel();
        lock(&self.waiting).answers.insert(id, answered);
        self.channel.send(&request(id), descriptors).await.map_err(|_| gone())?;
        let (result, descriptors) = tokio::select! {
            answer = answer => answer.map_err(|_| gone())?,
            () = self.ended.cancelled() => return Err(gone()),
        };
        result.map(|()| descriptors).map_err(PlaygroundError::Pod)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.channel.shut_down();
    }
}

async fn dispatch(channel: Arc<Channel>, waiting: Arc<Mutex<Waiting>>, ended: CancellationToken) {
    let _ended = ended.drop_guard();
    while let Ok(Some((event, descriptors))) = channel.receive().await {
        // Whoever no longer waits does not want to know.
        match event {
            Event::Started { .. } => {}
            Event::Answer { id, result } => {
                if let Some(answer) = lock(&waiting).answers.remove(&id) {
                    let _ = answer.send((result, descriptors));
                }
            }
            Event::Exited { id, code } => {
                if let Some(exit) = lock(&waiting).exits.remove(&id) {
                    let _ = exit.send(code);
                }
            }
        }
    }
    *lock(&waiting) = Waiting::default();
}

fn lock(waiting: &Mutex<Waiting>) -> std::sync::MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs what blocks (a tool, the file system) beside the runtime's workers.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PlaygroundError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| PlaygroundError::Io { what: "finish a blocking task", source: error.into() })
}
