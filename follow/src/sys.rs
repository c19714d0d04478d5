//! The few system calls that no safe wrapper has.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

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

/// A process that is never mistaken for a later one of the same number.
pub(crate) struct Process {
    pid: libc::pid_t,
    fd: OwnedFd,
}

impl Process {
    /// The process of this number, as long as it runs.
    pub(crate) fn open(pid: libc::pid_t) -> io::Result<Process> {
        // SAFETY: the call takes numbers only.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0 as libc::c_uint) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so this is a new descriptor that nobody else has.
        Ok(Process { pid, fd: unsafe { OwnedFd::from_raw_fd(fd as i32) } })
    }

    /// Whether this user could send it a signal: its real or its saved user is that one. If the process has ended and
    /// the number is another's by now, the answer is about that one, and a signal fails.
    pub(crate) fn is_of(&self, user: libc::uid_t) -> io::Result<bool> {
        let status = std::fs::read(format!("/proc/{}/status", self.pid))?;
        let status = String::from_utf8_lossy(&status);
        let users = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        let mut users = users.unwrap_or_default().split_whitespace().map(str::parse::<libc::uid_t>);
        let (real, _, saved) = (users.next(), users.next(), users.next());
        Ok([real, saved].contains(&Some(Ok(user))))
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        let (fd, info) = (self.fd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: the descriptor is open as long as `self` lives; without an info the kernel reads nothing of ours.
        match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, 0 as libc::c_uint) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
