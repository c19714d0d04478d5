//! System calls that no crate wraps. The only unsafe code of this crate.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

mod child;
mod flags;
mod handle;
mod open_xattr;
mod stat;
mod tree;
pub(crate) mod uncached;
mod xattr;

pub use child::unblock_signals;
pub(crate) use flags::set_immutable;
pub(crate) use handle::FileHandle;
pub(crate) use open_xattr::OpenXattrs;
pub(crate) use stat::{Stat, has_name, space_of, stat_at};
pub use tree::tree_without_mounts;
pub(crate) use xattr::{get_xattr, list_xattr, remove_xattr, set_xattr};

/// Starts the write-back of all dirty pages of a file without waiting (`sync_file_range`).
pub(crate) fn start_writeback(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed and so open; the call touches no memory of ours.
    let rc = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Of `fcntl`, in the kernel's `asm-generic/fcntl.h`; not all builds of libc have it.
const F_SETSIG: libc::c_int = 10;

/// Whether nobody but the owner of this descriptor, which must be the only one of its file in this process that it means,
/// has the file open, or mapped (`F_SETLEASE`: a lease for writing is given to a sole user only).
pub(crate) fn is_sole_user(file: BorrowedFd<'_>) -> bool {
    // SAFETY: the descriptor is borrowed and so open; the calls touch no memory of ours.
    unsafe {
        // Who opens the file while there is a lease has its owner sent a signal: one that is ignored, not SIGIO, which
        // ends a process.
        if libc::fcntl(file.as_raw_fd(), F_SETSIG, libc::SIGURG) != 0 {
            return false;
        }
        let given = libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) == 0;
        given && libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) == 0
    }
}

/// Renames with flags of `renameat2` (`RENAME_NOREPLACE`, `RENAME_EXCHANGE`).
pub(crate) fn rename_with(
    from: (BorrowedFd<'_>, &OsStr),
    to: (BorrowedFd<'_>, &OsStr),
    flags: libc::c_uint,
) -> io::Result<()> {
    let names = (c_name(from.1)?, c_name(to.1)?);
    // Not through the C library: not each has it.
    // SAFETY: the descriptors are borrowed and so open, and the names are NUL-terminated and live until the call ends.
    let done = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            from.0.as_raw_fd(),
            names.0.as_ptr(),
            to.0.as_raw_fd(),
            names.1.as_ptr(),
            flags,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Copies up to `len` bytes between two files within the kernel, sharing blocks where the file system can; 0 at the
/// source's end.
pub(crate) fn copy_file_range(
    (from, from_at): (BorrowedFd<'_>, i64),
    (to, to_at): (BorrowedFd<'_>, i64),
    len: usize,
) -> io::Result<usize> {
    let (mut from_at, mut to_at) = (from_at, to_at);
    // SAFETY: both descriptors are borrowed and so open; the kernel reads and writes the two offsets, which are ours.
    let n =
        unsafe { libc::copy_file_range(from.as_raw_fd(), &mut from_at, to.as_raw_fd(), &mut to_at, len, 0) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// A name as the kernel takes it.
fn c_name(name: &OsStr) -> io::Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The name in `/proc` that leads to what a descriptor of this process is open on, whatever the descriptor may do.
pub(crate) fn proc_path(fd: std::os::fd::RawFd) -> String {
    format!("/proc/self/fd/{fd}")
}
