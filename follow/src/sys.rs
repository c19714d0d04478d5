//! The one system call that no safe wrapper has.

use std::io;

/// Gives the calling thread, and it alone, descriptors of its own: the three standard ones, and what it opens from now
/// on. It must not use any other that it has from before.
pub(crate) fn own_descriptors() -> io::Result<()> {
    let (first, last, unshare) = (3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE);
    // SAFETY: the call takes numbers only. The descriptors stay open in the table that the other threads share; what
    // owns one of them is never dropped on this thread.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, unshare) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
