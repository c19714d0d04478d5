//! A tree of mounts, looked at without what is mounted in it.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;

use super::c_name;

/// `OPEN_TREE_CLONE` of `linux/mount.h`.
const CLONE: libc::c_int = 1;

/// The directory at a path (not itself covered by a mount that matters), on a private copy of its mount that has nothing
/// mounted in it, and which nobody else sees. The copy goes with the last descriptor of it; what is open through it keeps
/// the file system, but not the mount that was copied.
///
/// Fails without `CAP_SYS_ADMIN` (EPERM), and where Linux is older than 5.2 (ENOSYS).
pub fn tree_without_mounts(path: &Path) -> io::Result<OwnedFd> {
    let path = c_name(path.as_os_str())?;
    // `OPEN_TREE_CLOEXEC` is O_CLOEXEC by definition.
    let flags = CLONE | libc::O_CLOEXEC;
    // SAFETY: the path is a C string that lives across the call; the kernel only reads it.
    let rc = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(rc as libc::c_int) })
}
