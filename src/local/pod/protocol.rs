//! What the playground and a pod's first process say to each other, one packet a message.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// To the pod's first process. Each request with an id is answered by [`Event::Answer`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Once, after the node's end of the pod's link is there.
    Configure { id: u64, ip: Ipv4Addr, ipv6: Option<Ipv6Addr>, hostname: String, interception: Option<String> },
    /// Start a process; its standard input, output and error come along. Its end is told by [`Event::Exited`].
    Run { id: u64, process: Process },
    /// Signal the process that was started by request `id`, and its group.
    Signal { id: u64, signal: i32 },
    /// Connect to `to` from within the pod; the answer carries the socket.
    Dial { id: u64, to: SocketAddr },
}

/// From the pod.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    /// The pod's first process is there; its pid as the playground sees it.
    Started { pid: i32 },
    /// A request was carried out, or why not.
    Answer { id: u64, result: Result<(), String> },
    /// The process that was started by request `id` ended.
    Exited { id: u64, code: i32 },
}

/// A process of a container, with all that is the container's own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// The working directory.
    pub workdir: PathBuf,
    /// What it may do.
    pub rights: Rights,
    /// The files that it sees in place of the machine's.
    pub files: Files,
}

/// What a container's process may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Rights {
    /// An application: what a container runtime leaves by default, without raw sockets (they could set the mark).
    Application,
    /// A sidecar with a user id of its own and no capability.
    SidecarUser(u32),
    /// A sidecar where there is one user id only: it may mark its sockets.
    SidecarMark,
}

/// Files of a container that hide the machine's, as (source, target).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Files {
    /// Shown over existing files, `/etc/hosts` and the like.
    pub over: Vec<(PathBuf, PathBuf)>,
    /// All that is left of `/run`.
    pub run: Vec<(PathBuf, PathBuf)>,
}
