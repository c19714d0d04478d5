//! The system calls of this program that no safe wrapper has.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Of `linux/prctl.h`.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Tells the kernel that this thread, and those it starts, serve a file system: it must not wait for memory that only
/// writing to that same file system would free.
pub fn be_io_flusher() -> io::Result<()> {
    // SAFETY: this option of prctl takes numbers only.
    let done = unsafe {
        libc::prctl(
            PR_SET_IO_FLUSHER,
            1 as libc::c_ulong,
            0 as libc::c_ulong,
            0 as libc::c_ulong,
            0 as libc::c_ulong,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes all descriptors but the standard ones: those that whoever started us forgot to keep to themselves, such as
/// the lock of a script. Only for a process that has just begun and has opened nothing itself.
pub fn close_inherited() {
    // SAFETY: the call takes numbers only. By this function's contract no object of ours owns what it closes. Kernels
    // before 5.9 do not know the call; then the descriptors stay open, as they would without it.
    unsafe { libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, 0 as libc::c_uint) };
}

/// A process that can be waited for although it is not our child, and that is never mistaken for a later one of the
/// same number.
pub struct Process(OwnedFd);

impl Process {
    /// The process of this number, as long as it runs.
    pub fn open(pid: u32) -> io::Result<Process> {
        // SAFETY: the call takes numbers only.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so this is a new descriptor that nobody else has.
        Ok(Process(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Waits until the process has ended; `false` when it still runs after this long.
    pub fn wait(&self, limit: Duration) -> bool {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let millis = limit.as_millis().try_into().unwrap_or(i32::MAX);
        // SAFETY: `poll` is one valid entry, and the descriptor in it is open as long as `self` lives.
        unsafe { libc::poll(&mut poll, 1, millis) > 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(!process.wait(Duration::ZERO));
        child.kill().unwrap();
        assert!(process.wait(Duration::from_secs(20)));
        child.wait().unwrap();
    }
}
