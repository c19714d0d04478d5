//! System calls that no crate wraps. The only unsafe code of this crate.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Starts the write-back of all dirty pages of a file without waiting (`sync_file_range`).
pub(crate) fn start_writeback(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed and so open; the call touches no memory of ours.
    let rc = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
