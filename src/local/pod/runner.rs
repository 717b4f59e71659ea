//! A pod's first process: pid 1 of the pod's pid namespace, which holds the pod's other namespaces too.
//!
//! `weft internal pod` makes the namespaces, starts `weft internal pod --first` in them and ends. The first process
//! starts what it is asked to over its standard input (a packet socket), reaps, and dials. When the playground closes
//! that socket it ends, and the kernel ends everything in the pod with it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group, wait};
use rustix::thread::UnshareFlags;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};

use super::container;
use super::protocol::{Event, Process, Request};
use crate::local::namespaces::{make_private, mount_proc, unshare};
use crate::local::tools::Tool;
use crate::local::wire::{self, Channel};
use crate::local::{PlaygroundError, WEFT_EXE, node};

/// How long a dial may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes the pod's namespaces and starts its first process in them.
pub fn start() -> Result<(), PlaygroundError> {
    let flags =
        UnshareFlags::NEWNET | UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    unshare(flags).map_err(PlaygroundError::io("make the pod's namespaces"))?;
    let first = Command::new(WEFT_EXE)
        .args(["internal", "pod", "--first"])
        .spawn()
        .map_err(PlaygroundError::io("start the pod's first process"))?;
    let pid = Pid::from_child(&first).as_raw_nonzero().get();
    wire::send(rustix::stdio::stdin(), &Event::Started { pid }, &[]).map_err(PlaygroundError::io("report the pod"))
}

/// Runs as the pod's first process until the playground closes the socket.
pub fn run() -> Result<(), PlaygroundError> {
    make_private()?;
    mount_proc()?;
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
        .map_err(|e| PlaygroundError::io("keep the pod's socket")(e.into()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(PlaygroundError::io("start the pod's runtime"))?;
    runtime.block_on(serve(socket)).map_err(PlaygroundError::io("serve the pod"))
}

async fn serve(socket: OwnedFd) -> io::Result<()> {
    let channel = Arc::new(Channel::new(socket)?);
    let mut children = signal(SignalKind::child())?;
    let mut processes = Processes::default();
    loop {
        tokio::select! {
            packet = channel.receive::<Request>() => match packet? {
                None => return Ok(()),
                Some((request, descriptors)) => handle(request, descriptors, &mut processes, &channel).await?,
            },
            _ = children.recv() => {
                for (id, code) in processes.reap() {
                    channel.send(&Event::Exited { id, code }, &[]).await?;
                }
            }
        }
    }
}

async fn handle(
    request: Request,
    descriptors: Vec<OwnedFd>,
    processes: &mut Processes,
    channel: &Arc<Channel>,
) -> io::Result<()> {
    let (id, result) = match request {
        Request::Configure { id, ip, ipv6, hostname, interception } => {
            (id, configure((ip, ipv6), &hostname, interception.as_deref()).map_err(|e| e.to_string()))
        }
        Request::Run { id, process } => (id, processes.start(id, &process, descriptors).map_err(|e| e.to_string())),
        Request::Signal { id, signal } => return processes.signal(id, signal),
        Request::Dial { id, to } => {
            let channel = Arc::clone(channel);
            tokio::spawn(async move {
                let dialed = dial(to).await;
                let result = dialed.as_ref().map(drop).map_err(|e| format!("cannot connect to {to}: {e}"));
                let socket: Vec<BorrowedFd<'_>> = dialed.iter().map(AsFd::as_fd).collect();
                // If the playground is gone, so is the pod at the next turn of the loop.
                let _ = channel.send(&Event::Answer { id, result }, &socket).await;
            });
            return Ok(());
        }
    };
    channel.send(&Event::Answer { id, result }, &[]).await
}

fn configure(
    (ip, ipv6): (std::net::Ipv4Addr, Option<std::net::Ipv6Addr>),
    hostname: &str,
    interception: Option<&str>,
) -> Result<(), Box<dyn std::error::Error>> {
    rustix::system::sethostname(hostname.as_bytes())?;
    node::set_up_pod(ip, ipv6)?;
    if let Some(rules) = interception {
        Tool::Nft.batch(rules, "load the rules of interception")?;
    }
    Ok(())
}

/// Connects from this network namespace; the socket is a blocking one.
pub(crate) async fn dial(to: SocketAddr) -> io::Result<OwnedFd> {
    let stream = tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(to)).await??.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}

/// The processes that were started on request, by pid.
#[derive(Default)]
struct Processes(HashMap<Pid, u64>);

impl Processes {
    fn start(&mut self, id: u64, process: &Process, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let Ok([stdin, stdout, stderr]) = <[OwnedFd; 3]>::try_from(descriptors) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a process needs three descriptors"));
        };
        let stdio = |fd: OwnedFd| Stdio::from(File::from(fd));
        let child = Command::new(WEFT_EXE)
            .args(["internal", "container"])
            .env_clear()
            .env(container::PROCESS_VARIABLE, serde_json::to_string(process)?)
            .stdin(stdio(stdin))
            .stdout(stdio(stdout))
            .stderr(stdio(stderr))
            .spawn()?;
        // It is reaped with all others; the handle is not needed.
        self.0.insert(Pid::from_child(&child), id);
        Ok(())
    }

    /// A process that has ended already needs no signal.
    fn signal(&self, id: u64, signal: i32) -> io::Result<()> {
        let signal = Signal::from_named_raw(signal).ok_or(io::ErrorKind::InvalidInput)?;
        if let Some((&pid, _)) = self.0.iter().find(|(_, started_by)| **started_by == id) {
            // Until it has become the leader of a session, it has no group of its own.
            let _ = kill_process_group(pid, signal).or_else(|_| kill_process(pid, signal));
        }
        Ok(())
    }

    /// Collects all children that ended, orphans too; returns those that were started on request.
    fn reap(&mut self) -> Vec<(u64, i32)> {
        let mut ended = Vec::new();
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
            ended.extend(self.0.remove(&pid).zip(code));
        }
        ended
    }
}
