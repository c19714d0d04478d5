//! The few system calls that no safe wrapper has.

mod fusermount;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

pub(crate) use fusermount::{command as fusermount, mount as mount_by_fusermount};

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

/// Gives the calling thread, and it alone, descriptors of its own: the three standard ones, and what it opens from now
/// on. It must not use any other that it has from before.
pub(crate) fn leave_fuse() -> io::Result<()> {
    let (first, last, unshare) = (3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE);
    // SAFETY: the call takes numbers only. The descriptors stay open in the table that the other threads share; what
    // owns one of them is never dropped on this thread.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, unshare) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives memory that was freed back to the system. Opening a store reads all of its metadata once, page by page, and the
/// allocator keeps what that took: twice of what is in use, with 1,000,000 files.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers; the allocator locks what it touches.
    unsafe {
        libc::malloc_trim(0);
    }
}
