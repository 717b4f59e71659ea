//! Pid 1 of the playground: makes its view of files, starts the playground proper, reaps, and ends with it.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, WaitOptions, set_parent_process_death_signal, wait};

use super::namespaces::{Carry, cover_run, make_private, mount_proc};
use super::{ENVOY_EXE, PlaygroundError, Setup, WEFT_EXE};

/// Runs as pid 1. Its standard input is the socket to `weft up`, which the playground inherits.
pub fn run(setup: &Setup) -> Result<ExitCode, PlaygroundError> {
    let io = |what| move |errno: rustix::io::Errno| PlaygroundError::Io { what, source: errno.into() };
    if rustix::process::getpid() != Pid::INIT {
        return Err(PlaygroundError::NotByHand);
    }
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(io("follow the parent's end"))?;
    end_with_the_socket();
    make_private()?;
    cover_run(&carried(setup))?;
    mount_proc()?;
    let json = serde_json::to_string(setup).map_err(|e| PlaygroundError::Wiring(e.to_string()))?;
    let playground = Command::new(WEFT_EXE)
        .args(["internal", "playground", &json])
        .spawn()
        .map_err(PlaygroundError::io("start the playground"))?;
    let playground = Pid::from_child(&playground);
    loop {
        let ended = rustix::io::retry_on_intr(|| wait(WaitOptions::empty())).map_err(io("wait for the playground"))?;
        if let Some((pid, status)) = ended
            && pid == playground
        {
            let code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(1);
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
        }
    }
}

/// Covers the moment before the death signal was set: when `weft up` is gone, the socket hangs up.
fn end_with_the_socket() {
    std::thread::spawn(|| {
        let stdin = rustix::stdio::stdin();
        // No events are asked for: only a hang-up or an error ends the wait.
        let mut fds = [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::empty())];
        while poll(&mut fds, None).is_err() {}
        std::process::exit(1);
    });
}

/// What stays visible of the host's `/run`, and the executables.
fn carried(setup: &Setup) -> Vec<Carry> {
    let mut carried = vec![Carry { from: setup.weft.clone(), to: WEFT_EXE.into() }];
    if let Ok(envoy) = &setup.envoy {
        carried.push(Carry { from: envoy.clone(), to: ENVOY_EXE.into() });
    }
    carried.extend(kept_of_run(setup).iter().filter_map(|path| Carry::in_place(path)));
    carried
}

/// Paths that must be there even if they are below `/run`: the user's directory, and what `/etc/resolv.conf` may link to.
pub(crate) fn kept_of_run(setup: &Setup) -> Vec<std::path::PathBuf> {
    let resolv_conf = fs::canonicalize(Path::new("/etc/resolv.conf"));
    resolv_conf.into_iter().chain([setup.dir.clone()]).collect()
}
