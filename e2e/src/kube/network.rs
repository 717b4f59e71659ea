//! The networks of a node and of its pods: network namespaces that end with the threads and processes in them.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, anyhow};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, gettid, move_into_link_name_space};
use weft::local::namespaces::unshare;
use weft::local::node;

/// Moves this thread into a network of its own, as that of a node. What it starts from then on is there too; the other
/// threads of the process are not.
pub(super) fn enter() -> anyhow::Result<()> {
    unshare(UnshareFlags::NEWNET).context("cannot make a network: pods of an API server need root")?;
    Ok(node::set_up(false)?)
}

/// A pod's network. It is there as long as this is, whatever runs in it.
pub(super) struct PodNetwork(OwnedFd);

impl PodNetwork {
    /// Makes that of pod `ip` and connects it to the node, whose network this thread is in.
    pub(super) fn create(ip: Ipv4Addr) -> anyhow::Result<Self> {
        let (tell, told) = mpsc::channel();
        let (connected, wait) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                unshare(UnshareFlags::NEWNET)?;
                let network = File::open("/proc/thread-self/ns/net")?;
                tell.send(gettid().as_raw_nonzero().get())?;
                wait.recv().context("the pod was not connected")?;
                node::set_up_pod(ip, None)?;
                anyhow::Ok(Self(network.into()))
            });
            if let Ok(thread) = told.recv() {
                node::connect_pod(ip, None, thread)?;
                let _ = connected.send(()); // it says itself why it is gone
            }
            drop(connected);
            inside.join().map_err(|_| anyhow!("a pod's thread panicked"))?
        })
    }

    /// Runs `work` on a thread that is in the pod's network.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?;
                work()
            });
            inside.join().map_err(|_| anyhow!("a pod's thread panicked"))?
        })
    }
}
