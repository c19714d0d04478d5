//! Mounting: from a backend to a served file system.
//!
//! We make the mount ourselves and give the library its descriptor. That keeps two decisions here: who may come in
//! (the kernel's own check, by `allow_other`), and how the mount ends.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::MsFlags;
use nix::sys::stat::Mode;
use nix::unistd::{Uid, getegid, geteuid};
use snapstore::backend::Backend;
use snapstore::mountinfo;

use crate::adapter::{Session, Wanted};
use crate::mounted::Mounted;
use crate::unmount::detach;
use crate::{bdi, passthrough, sys};

/// The mount's type, as `mount` shows it.
const KIND: &str = "fuse.tmfs";
/// The mount's source. Never a name that begins with `fuse`: MDBX takes that for a network file system.
const SOURCE: &str = "tmfs";

/// Who keeps what programs write before it is in the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cache {
    /// The kernel: near native speed; a crash of the daemon loses what was not synced, as a power cut would.
    Writeback,
    /// Nobody: each write call is in the store when it returns.
    Through,
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cache::Writeback => "writeback",
            Cache::Through => "through",
        })
    }
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The directory to mount over. Made absolute and free of symlinks by [`mount`].
    pub mountpoint: PathBuf,
    /// Who keeps written data.
    pub cache: Cache,
    /// Let the kernel read and write the files below by itself, where the backend and the kernel can do it.
    pub passthrough: bool,
    /// Show `@height` and `@time` in the listing of the root.
    pub show_heights: bool,
    /// Where the control socket is: the value of [`snapstore::control::CONTROL_XATTR`] on the root.
    pub control_path: PathBuf,
    /// The data dir, for the status.
    pub data_dir: PathBuf,
    /// The store, for the status.
    pub store: PathBuf,
    /// Threads that answer requests; default: by the number of processors.
    pub threads: Option<usize>,
    /// Let the owner of the data take snapshots by `mkdir` below `@height`, who is else refused like everybody but root
    /// and this process's user.
    pub owner_snapshots: bool,
    /// A request that takes longer than this is told of in the log and in the status.
    pub slow_request: Duration,
}

/// The usual [`MountOptions::slow_request`]: far above what a busy disk needs.
pub const SLOW_REQUEST: Duration = Duration::from_secs(30);

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // Each message says what the variant means.
pub enum MountError {
    #[error("{path}: cannot be mounted over: {source}", path = .path.display())]
    MountPoint { path: PathBuf, source: io::Error },
    #[error("{path}: is already mounted by tmfs", path = .path.display())]
    AlreadyMounted { path: PathBuf },
    #[error("/dev/fuse: {source}; load the module with `modprobe fuse`, or give the container that device")]
    NoDevice { source: io::Error },
    #[error("{path}: mounting failed: {source}", path = .path.display())]
    Mount { path: PathBuf, source: io::Error },
    #[error("{path}: mounting without root needs fusermount3 (package fuse3): {source}", path = .path.display())]
    Fusermount { path: PathBuf, source: io::Error },
    #[error("the kernel's FUSE and this program do not agree: {source}")]
    Handshake { source: io::Error },
}

/// Mounts a backend and serves it from threads of its own.
pub fn mount(backend: Arc<dyn Backend>, mut options: MountOptions) -> Result<Arc<Mounted>, MountError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| MountError::MountPoint { path, source }
    };
    clear_dead_mount(&options.mountpoint).map_err(at(&options.mountpoint))?;
    options.mountpoint = fs::canonicalize(&options.mountpoint).map_err(at(&options.mountpoint))?;
    let point = options.mountpoint.clone();
    let dir = open_point(&point).map_err(at(&point))?;
    let mode = dir.metadata().map_err(at(&point))?.mode();
    if mountinfo::at(&point).map_err(at(&point))?.is_some_and(|mount| mount.kind == KIND) {
        return Err(MountError::AlreadyMounted { path: point });
    }
    let workers = options.threads.unwrap_or_else(default_threads).max(4);
    let (passthrough, without) = passthrough::wanted(&*backend, &options);
    let wanted = Wanted { writeback: options.cache == Cache::Writeback, passthrough };

    let (device, mut limits) = attach(&point, &dir, mode)?;
    drop(dir);
    limits.extend(without);
    let mounted = Arc::new_cyclic(|me| Mounted::new(backend, options, workers, me.clone()));
    mounted.add_limits(limits);
    let session = match Session::new(mounted.clone(), device, wanted, workers) {
        Ok(session) => session,
        Err(source) => {
            let _ = detach(&point, true);
            return Err(MountError::Handshake { source });
        }
    };
    mounted.connect(session.kernel());
    if let Err(error) = mounted.start_watchdog() {
        mounted.add_limits(vec![format!(
            "requests that hang are not noticed: no thread for the watchdog: {error}"
        )]);
    }
    if let Err(error) = mounted.start_trickle() {
        tracing::warn!(%error, "no thread to have data written back before a snapshot asks for it");
    }
    let served = mounted.clone();
    let serve = move || {
        if let Err(error) = session.run() {
            tracing::error!(%error, "the connection to the kernel has failed");
            // A connection without a daemon would answer ENOTCONN for ever.
            let _ = detach(&served.options.mountpoint, true);
        }
        served.finish();
    };
    if let Err(source) = thread::Builder::new().name("tmfs-mount".to_owned()).spawn(serve) {
        let _ = detach(&point, true);
        return Err(MountError::Handshake { source });
    }
    if geteuid().is_root()
        && let Ok(Some(mount)) = mountinfo::at(&point)
    {
        mounted.add_limits(bdi::lift(&mount.device));
    }
    Ok(mounted)
}

/// The directory at a path that has been resolved: a symlink that somebody puts into it now is not followed, so that
/// nobody has root mount over a directory of his choice.
pub(crate) fn open_point(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(AT_FDCWD, path, how) {
        // Kernels before 5.6, and sandboxes that do not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => {
            Ok(nix::fcntl::open(path, flags | OFlag::O_NOFOLLOW, Mode::empty())?.into())
        }
        opened => Ok(opened?.into()),
    }
}

/// Enough that slow syncs, and changes that wait for a cut, leave workers free for a barrier's writes.
fn default_threads() -> usize {
    let processors = thread::available_parallelism().map_or(2, usize::from);
    (4 * processors).clamp(16, 64)
}

/// Mounts an empty connection: directly where we may, else through the helper. With what that leaves out, in words.
fn attach(point: &Path, dir: &File, mode: u32) -> Result<(OwnedFd, Vec<String>), MountError> {
    if !geteuid().is_root() {
        return attach_by_helper(point);
    }
    match attach_directly(point, dir, mode) {
        Ok(device) => Ok((device, Vec::new())),
        // Root of a container that may not mount.
        Err(MountError::Mount { source, .. }) if source.raw_os_error() == Some(libc::EPERM) => {
            attach_by_helper(point)
        }
        Err(error) => Err(error),
    }
}

fn attach_directly(point: &Path, dir: &File, mode: u32) -> Result<OwnedFd, MountError> {
    let failed = |errno: Errno| MountError::Mount { path: point.to_owned(), source: errno.into() };
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open("/dev/fuse")
        .map_err(|source| MountError::NoDevice { source })?;
    let data = format!(
        "fd={},rootmode={mode:o},user_id={},group_id={},default_permissions,allow_other",
        device.as_raw_fd(),
        Uid::effective(),
        getegid(),
    );
    // Onto the directory that was looked at, wherever its path leads by now.
    let point = format!("/proc/self/fd/{}", dir.as_raw_fd());
    // Device nodes and set-id programs of the data dir go on working as they did before it was mounted.
    nix::mount::mount(Some(SOURCE), point.as_str(), Some(KIND), MsFlags::empty(), Some(data.as_str()))
        .map_err(failed)?;
    Ok(device.into())
}

fn attach_by_helper(point: &Path) -> Result<(OwnedFd, Vec<String>), MountError> {
    let mut limits = vec![
        "mounted without root: set-id bits and device nodes have no effect".to_owned(),
        "mounted without root: the kernel's write throttle and read-ahead stay small".to_owned(),
    ];
    let mut options = format!("fsname={SOURCE},subtype=tmfs,default_permissions");
    if users_may_allow_other() {
        options.push_str(",allow_other");
    } else {
        limits.push(
            "mounted without root: only this user sees the files (`user_allow_other` in /etc/fuse.conf allows more)"
                .to_owned(),
        );
    }
    let device = sys::mount_by_fusermount(point, &options)
        .map_err(|source| MountError::Fusermount { path: point.to_owned(), source })?;
    Ok((device, limits))
}

fn users_may_allow_other() -> bool {
    let config = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    config.lines().any(|line| line.trim() == "user_allow_other")
}

/// Takes away the mount that a daemon left at a path when it died (what the kernel has not cached says ENOTCONN).
/// `false`: there is none.
pub fn clear_dead_mount(path: &Path) -> io::Result<bool> {
    let mut cleared = false;
    // Several may lie above each other.
    for _ in 0..16 {
        // Not `stat`: the kernel may still have the attributes that the daemon told it to keep.
        match nix::sys::statvfs::statvfs(path) {
            Err(Errno::ENOTCONN | Errno::ECONNABORTED) => {}
            _ => break,
        }
        let point = resolve_dead(path)?;
        match mountinfo::at(&point)? {
            Some(mount) if mount.kind == KIND => detach(&point, true)?,
            _ => break,
        }
        tracing::info!(path = %point.display(), "cleared the mount of a daemon that died");
        cleared = true;
    }
    Ok(cleared)
}

/// The absolute path of a dead mount: the kernel cannot resolve its last component.
fn resolve_dead(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(fs::canonicalize(parent)?.join(name)),
        _ => Ok(path),
    }
}
