//! What a child process must not inherit.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has a command run with no signal blocked: the daemon blocks those that end it, and a child would inherit that, and its
/// children in turn.
pub fn unblock_signals(command: &mut Command) {
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
