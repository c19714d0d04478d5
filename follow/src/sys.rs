//! The few system calls that no safe wrapper has.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

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

/// Has a command run with no signal blocked: the daemon blocks those that end it, and a child would inherit that, and its
/// children in turn.
pub(crate) fn unblock_signals(command: &mut Command) {
    let unblock = || {
        let mut none = std::mem::MaybeUninit::uninit();
        // SAFETY: the set is initialized by the first call before the second reads it; both are async-signal-safe.
        let done = unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec, the closure makes async-signal-safe calls only, and allocates nothing.
    unsafe { command.pre_exec(unblock) };
}
