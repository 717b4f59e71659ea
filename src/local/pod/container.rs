//! `weft internal container`: becomes a container's process. It is started in the pod's namespaces, gives itself a mount
//! namespace with the container's view of files, gives up rights, and executes the program.

use std::env;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::thread::{CapabilitySet, UnshareFlags, remove_capability_from_bounding_set};

use super::protocol::{Files, Process, Rights};
use crate::local::PlaygroundError;
use crate::local::namespaces::{Carry, bind, cover_run, make_private, unshare};

/// Carries the [`Process`]: an environment is not shown to other users, as arguments are.
pub(crate) const PROCESS_VARIABLE: &str = "WEFT_INTERNAL_PROCESS";

/// What a container runtime leaves to root by default (Docker's list), without `MKNOD` and `AUDIT_WRITE`.
const APPLICATION: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL);

/// Becomes the process, or says why not: 127 if the program is not there, 126 otherwise, as a shell does.
pub fn run() -> Result<ExitCode, PlaygroundError> {
    let text = env::var(PROCESS_VARIABLE).map_err(|_| PlaygroundError::NotByHand)?;
    let process: Process = serde_json::from_str(&text).map_err(|_| PlaygroundError::NotByHand)?;
    // A session of its own: no controlling terminal, and a group that can be signalled as one.
    rustix::process::setsid().map_err(|e| PlaygroundError::io("make a session")(e.into()))?;
    show_files(&process.files)?;
    limit(process.rights).map_err(|e| PlaygroundError::io("give up capabilities")(e.into()))?;
    let Some((program, arguments)) = process.argv.split_first() else {
        return Err(PlaygroundError::NotByHand);
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(process.env).current_dir(&process.workdir);
    if let Rights::SidecarUser(uid) = process.rights {
        command.uid(uid).gid(uid);
    }
    let error = command.exec();
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    tracing::error!(%program, workdir = %process.workdir.display(), %error, "cannot run the container's command");
    Ok(ExitCode::from(code))
}

fn show_files(files: &Files) -> Result<(), PlaygroundError> {
    unshare(UnshareFlags::NEWNS).map_err(PlaygroundError::io("make a mount namespace"))?;
    make_private()?;
    for (source, target) in &files.over {
        bind(source, target)?;
    }
    let carried: Vec<Carry> = files.run.iter().map(|(from, to)| Carry { from: from.clone(), to: to.clone() }).collect();
    Ok(cover_run(&carried)?)
}

/// Executing a program as user 0 gives it the capabilities of the bounding set: that is what is cut down.
fn limit(rights: Rights) -> rustix::io::Result<()> {
    let keep = match rights {
        Rights::Application => APPLICATION,
        // What changing the user needs; the change then leaves nothing.
        Rights::SidecarUser(_) => CapabilitySet::SETUID | CapabilitySet::SETGID,
        Rights::SidecarMark => CapabilitySet::NET_ADMIN,
    };
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if !keep.contains(capability) {
            match remove_capability_from_bounding_set(capability) {
                Err(rustix::io::Errno::INVAL) => break, // beyond the last one that this kernel knows
                other => other?,
            }
        }
    }
    Ok(())
}
