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

/// A capability by its number in `linux/capability.h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capability(u32);

impl Capability {
    /// Giving files away.
    pub const CHOWN: Capability = Capability(0);
    /// Past the permission bits of files and directories.
    pub const DAC_OVERRIDE: Capability = Capability(1);
    /// Opening files by handle.
    pub const DAC_READ_SEARCH: Capability = Capability(2);
    /// What else only a file's owner may.
    pub const FOWNER: Capability = Capability(3);
    /// Set-id bits on files of others.
    pub const FSETID: Capability = Capability(4);
    /// Signals to other users' processes.
    pub const KILL: Capability = Capability(5);
    /// The flags of files that must not change.
    pub const LINUX_IMMUTABLE: Capability = Capability(9);
    /// Into other users' processes.
    pub const SYS_PTRACE: Capability = Capability(19);
    /// Mounting, and much else.
    pub const SYS_ADMIN: Capability = Capability(21);
    /// Device nodes.
    pub const MKNOD: Capability = Capability(27);
    /// Capabilities of files.
    pub const SETFCAP: Capability = Capability(31);
}

/// Drops all capabilities of this thread, and those it could gain by running a program, but these. What it does not
/// have of these it does not get.
pub fn keep_capabilities(kept: &[Capability]) -> io::Result<()> {
    let wanted = kept.iter().fold(0u64, |set, capability| set | 1 << capability.0);
    let mut bounding = Ok(());
    for number in (0..64).filter(|number| wanted & 1 << number == 0) {
        // SAFETY: this option of prctl takes numbers only.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number as libc::c_ulong, 0, 0, 0) };
        match io::Error::last_os_error() {
            // Above the last one that this kernel has.
            error if dropped != 0 && error.raw_os_error() == Some(libc::EINVAL) => break,
            error if dropped != 0 => bounding = Err(error),
            _ => {}
        }
    }
    let version_3 = 0x2008_0522u32;
    let header = [version_3, 0];
    let mut sets = [0u32; 6];
    // SAFETY: the header names this thread (0), and for version 3 the call writes six numbers, which `sets` holds.
    if unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Effective, permitted, inheritable: first their lower halves, then their upper ones.
    let permitted = (u64::from(sets[4]) << 32 | u64::from(sets[1])) & wanted;
    let (low, high) = (permitted as u32, (permitted >> 32) as u32);
    let sets = [low, low, 0, high, high, 0];
    // SAFETY: as above; the call reads what `sets` holds.
    if unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // An ordinary user has nothing to lose there.
    if permitted == 0 { Ok(()) } else { bounding }
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
    fn capabilities_are_dropped_for_good() {
        // For this thread only.
        let of = |name: &str| {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
            u64::from_str_radix(&line, 16).unwrap()
        };
        let before = of("CapPrm:");
        keep_capabilities(&[Capability::SYS_PTRACE, Capability::SYS_ADMIN]).unwrap();
        let kept = before & (1 << 19 | 1 << 21);
        assert_eq!((of("CapPrm:"), of("CapEff:"), of("CapInh:")), (kept, kept, 0));
        if before != 0 {
            assert_eq!(of("CapBnd:") & !(1 << 19 | 1 << 21), 0);
        }
        keep_capabilities(&[Capability::DAC_OVERRIDE]).unwrap();
        assert_eq!(of("CapPrm:"), 0);
    }

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
