//! The few system calls that no safe wrapper has.

mod fusermount;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use nix::sched::{CloneFlags, unshare};

pub(crate) use fusermount::mount as mount_by_fusermount;

/// Writes the file's dirty pages and waits until they are written, without a lock that would keep writers out.
pub(crate) fn write_and_wait(file: &File) -> io::Result<()> {
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: takes no pointers; the descriptor is open for as long as `file` is borrowed.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives the calling thread, and it alone, descriptors of its own: all that there are now but those of `/dev/fuse`. What
/// is opened later is its own, or the other threads'.
pub(crate) fn leave_fuse() -> io::Result<()> {
    unshare(CloneFlags::CLONE_FILES)?;
    let mut connections: Vec<RawFd> = Vec::new();
    for entry in fs::read_dir("/proc/thread-self/fd")? {
        let entry = entry?;
        if fs::read_link(entry.path()).is_ok_and(|file| file == Path::new("/dev/fuse"))
            && let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok())
        {
            connections.push(number);
        }
    }
    for connection in connections {
        // Not an `OwnedFd`'s any more: that one is in the table which the other threads share.
        nix::unistd::close(connection)?;
    }
    Ok(())
}
