//! `weft up` itself: the process on the host, whose end is the end of everything.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use super::namespaces::{self, NamespaceError};
use super::tools::{Tool, ToolError};
use super::{Setup, control, wire};

/// Why the playground could not be started.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The name is in use.
    #[error("a playground named `{0}` is running: stop it, or choose another name with --name")]
    NameInUse(String),
    /// The name cannot be used.
    #[error("`{0}` cannot be a playground's name: use at most 60 letters, digits, `-`, `_` and `.`")]
    Name(String),
    /// No namespaces.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A tool is missing.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A system call.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// What `weft up` tells the playground.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromOuter {
    /// The first message; the control socket comes along.
    Listen,
    /// Stop everything, in order.
    Stop,
}

/// Runs the playground until it is stopped. The calling process must have a single thread: it moves into namespaces.
pub fn run(setup: &Setup) -> Result<ExitCode, UpError> {
    let io = |what| move |source: io::Error| UpError::Io { what, source };
    Tool::Ip.find()?;
    Tool::Nft.find()?;
    // Abstract sockets belong to a network namespace: it is bound in the host's, where clients look for it.
    let listener = claim(&setup.name)?;
    namespaces::leave_the_host(setup.privilege)?;
    let (ours, theirs) = wire::pair().map_err(io("make a socket pair"))?;
    wire::send(&ours, &FromOuter::Listen, &[listener.as_fd()]).map_err(io("pass on the control socket"))?;
    drop(listener);
    let json = serde_json::to_string(setup).map_err(|e| io("pass on the setup")(e.into()))?;
    let mut init = Command::new(&setup.weft)
        .args(["internal", "init", &json])
        .stdin(Stdio::from(theirs))
        .process_group(0) // Ctrl-C is for this process only, which stops the others in order
        .spawn()
        .map_err(io("start the playground's first process"))?;
    wait(&mut init, &ours).map_err(io("wait for the playground"))
}

fn claim(name: &str) -> Result<OwnedFd, UpError> {
    let usable = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 60 || !name.chars().all(usable) {
        return Err(UpError::Name(name.to_owned()));
    }
    let address = SocketAddrUnix::new_abstract_name(&control::socket_name(name));
    let bound = address.and_then(|address| {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &address)?;
        listen(&socket, 64)?;
        Ok(socket)
    });
    bound.map_err(|errno| match errno {
        Errno::ADDRINUSE => UpError::NameInUse(name.to_owned()),
        _ => UpError::Io { what: "bind the control socket", source: errno.into() },
    })
}

/// Waits for the end of the playground. The first signal stops it in order, the second at once.
fn wait(init: &mut Child, socket: &OwnedFd) -> io::Result<ExitCode> {
    // This process can start no thread: its children live in another pid namespace.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let mut children = signal(SignalKind::child())?;
        let mut asked = false;
        loop {
            if let Some(status) = init.try_wait()? {
                let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
            }
            tokio::select! {
                _ = children.recv() => continue,
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
            if asked || wire::send(socket, &FromOuter::Stop, &[]).is_err() {
                init.kill()?;
            }
            asked = true;
        }
    })
}
