//! Namespaces and mounts: how the playground's world is made so that it ends with the process that made it.
//!
//! Nothing is named and nothing is written to the host's disk: the namespaces are held only by processes, and every
//! file lives on a tmpfs over `/run` that belongs to the playground's own mount namespace.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_bind, mount_change, move_mount,
    open_tree,
};
use rustix::thread::UnshareFlags;

/// Why the playground's world could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The kernel or its security modules refuse user namespaces.
    #[error(
        "this user may not make namespaces ({0}): run `sudo weft up …`, or let users make them with \
         `sudo sysctl -w user.max_user_namespaces=15000`, on Debian also `kernel.unprivileged_userns_clone=1`, on Ubuntu \
         also `kernel.apparmor_restrict_unprivileged_userns=0`; in a container, it must be allowed by the container's \
         seccomp profile"
    )]
    User(#[source] io::Error),
    /// Root without `CAP_SYS_ADMIN`, as in a container.
    #[error(
        "root may not make namespaces here ({0}): in a container, give it CAP_SYS_ADMIN and CAP_NET_ADMIN (`--privileged`)"
    )]
    Root(#[source] io::Error),
    /// A mount was refused.
    #[error("cannot mount {what} in the playground's own mount namespace: {source}")]
    Mount {
        /// The mount point.
        what: String,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// Who runs the playground; it decides how a sidecar's own sockets are told from the application's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Privilege {
    /// Root: sidecars run as user 1337, as in Kubernetes.
    Root,
    /// A user, in a user namespace that knows one user id only: sidecars mark their sockets with 0x539.
    Rootless,
}

impl Privilege {
    /// What this process has.
    pub fn of_this_process() -> Self {
        if rustix::process::geteuid().is_root() { Self::Root } else { Self::Rootless }
    }
}

/// `unshare(2)`. None of the callers passes `CLONE_FILES`, the one flag for which rustix deprecates the safe form.
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    #[expect(deprecated, reason = "the safe form is deprecated for CLONE_FILES only, which nobody here passes")]
    Ok(rustix::thread::unshare(flags)?)
}

/// Moves this process, which must have a single thread, into namespaces of its own. Its next child becomes pid 1 of
/// the new pid namespace; until then, and after it, this process can start no thread.
pub(crate) fn leave_the_host(privilege: Privilege) -> Result<(), NamespaceError> {
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWPID | UnshareFlags::NEWIPC;
    match privilege {
        Privilege::Root => unshare(flags).map_err(NamespaceError::Root),
        Privilege::Rootless => {
            let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            unshare(flags | UnshareFlags::NEWUSER)
                // user_namespaces(7): without privilege, a group map may be written only when setgroups is denied.
                .and_then(|()| fs::write("/proc/self/setgroups", "deny"))
                .and_then(|()| fs::write("/proc/self/uid_map", format!("0 {uid} 1")))
                .and_then(|()| fs::write("/proc/self/gid_map", format!("0 {gid} 1")))
                .map_err(NamespaceError::User)
        }
    }
}

/// A file or directory that stays visible when `/run` is covered.
pub struct Carry {
    /// Where it is before.
    pub from: PathBuf,
    /// Where it is after, below `/run`.
    pub to: PathBuf,
}

impl Carry {
    /// Keeps `path` where it is; `None` if it is not below `/run` and so needs nothing.
    pub(crate) fn in_place(path: &Path) -> Option<Self> {
        let path = fs::canonicalize(path).ok()?;
        path.starts_with("/run").then(|| Self { from: path.clone(), to: path })
    }
}

/// Makes every mount of this mount namespace private: nothing that is mounted from here on reaches another one.
pub fn make_private() -> Result<(), NamespaceError> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(|e| refused("/", e))
}

/// Mounts a `/proc` that shows this pid namespace.
pub(crate) fn mount_proc() -> Result<(), NamespaceError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None::<&CStr>).map_err(|e| refused("/proc", e))
}

/// Covers `/run` with an empty tmpfs, in which only `carried` is seen.
pub fn cover_run(carried: &[Carry]) -> Result<(), NamespaceError> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let detached = carried
        .iter()
        .map(|carry| {
            let refused = |e| refused(&carry.from.to_string_lossy(), e);
            let is_dir = fs::metadata(&carry.from).map_err(&refused)?.is_dir();
            Ok((open_tree(CWD, &carry.from, clone).map_err(|e| refused(e.into()))?, is_dir, &carry.to))
        })
        .collect::<Result<Vec<_>, NamespaceError>>()?;
    mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755"))
        .map_err(|e| refused("/run", e))?;
    for (tree, is_dir, to) in detached {
        make_mount_point(to, is_dir).map_err(|e| refused(&to.to_string_lossy(), e))?;
        move_mount(tree, c"", CWD, to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|e| refused(&to.to_string_lossy(), e))?;
    }
    Ok(())
}

/// Shows `source` at `target` (a file over a file, a directory over a directory).
pub fn bind(source: &Path, target: &Path) -> Result<(), NamespaceError> {
    mount_bind(source, target).map_err(|e| refused(&target.to_string_lossy(), e))
}

fn make_mount_point(at: &Path, is_dir: bool) -> io::Result<()> {
    if is_dir {
        return fs::create_dir_all(at);
    }
    if let Some(parent) = at.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::File::create(at).map(drop)
}

fn refused(what: &str, source: impl Into<io::Error>) -> NamespaceError {
    let source: io::Error = source.into();
    // A rootless /proc needs a host /proc that nothing hides parts of (mount_too_revealing in fs/namespace.c).
    let source = match (what, source.raw_os_error().map(Errno::from_raw_os_error)) {
        ("/proc", Some(Errno::PERM)) => io::Error::new(
            source.kind(),
            format!("{source}; parts of /proc are hidden, as in a container: run the container with an unmasked /proc"),
        ),
        _ => source,
    };
    NamespaceError::Mount { what: what.to_owned(), source }
}
