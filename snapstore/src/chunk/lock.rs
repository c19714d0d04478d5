//! The store's lock: one process at a time.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::sys::stat::Mode;

use crate::error::{Error, Result};

/// Held while a process uses a store; the kernel lets go of it when the process ends, however it ends.
pub(crate) struct StoreLock {
    _file: Flock<File>,
}

/// How long a process that has ended may take to let go of what it had open: its threads go one by one, and one may have
/// to wait for the disk.
const PATIENCE: Duration = Duration::from_secs(5);

impl StoreLock {
    /// Takes the lock of the store in the directory `dir`. `store` is its path, for messages. A holder that has ended is
    /// waited for.
    pub(crate) fn take(dir: &OwnedFd, store: &Path) -> Result<StoreLock> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let io =
            |source: nix::Error| Error::Io { op: "lock", path: store.join("lock"), source: source.into() };
        let mut file: File = openat(dir, "lock", flags, Mode::from_bits_truncate(0o600)).map_err(io)?.into();
        let until = Instant::now() + PATIENCE;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut file) => {
                    let pid = std::process::id();
                    file.set_len(0)
                        .and_then(|()| file.rewind())
                        .and_then(|()| writeln!(file, "{pid}"))
                        .map_err(Error::io("lock", store))?;
                    return Ok(StoreLock { _file: file });
                }
                Err((held, nix::Error::EWOULDBLOCK)) => file = held,
                Err((_, e)) => return Err(io(e)),
            }
            let mut text = String::new();
            let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
            let pid = text.trim().parse().ok();
            if pid.is_none_or(|pid| !has_ended(pid)) || Instant::now() >= until {
                return Err(Error::Locked { store: store.into(), pid });
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Whether a process is gone, or its first thread is: others of it may be about to go.
fn has_ended(pid: u32) -> bool {
    let stat = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        // It may go between the opening and the reading.
        Err(error) => {
            return error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH);
        }
    };
    // The name before it, in brackets, may have brackets in it.
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn held_by(pid: u32) -> (tempfile::TempDir, OwnedFd, StoreLock) {
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(File::open(dir.path()).unwrap());
        let lock = StoreLock::take(&fd, dir.path()).unwrap();
        std::fs::write(dir.path().join("lock"), format!("{pid}\n")).unwrap();
        (dir, fd, lock)
    }

    #[test]
    fn a_holder_that_has_ended_is_waited_for() {
        let mut ended = Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        let (dir, fd, lock) = held_by(ended.id());
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            drop(lock);
        });
        StoreLock::take(&fd, dir.path()).unwrap();
        late.join().unwrap();
        let text = std::fs::read_to_string(dir.path().join("lock")).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
    }

    #[test]
    fn one_that_lives_is_named() {
        let (dir, fd, _lock) = held_by(std::process::id());
        match StoreLock::take(&fd, dir.path()) {
            Err(Error::Locked { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{:?}", other.err()),
        }
    }

    #[test]
    fn a_process_whose_parent_has_not_asked_has_ended() {
        let mut ended = Command::new("true").spawn().unwrap();
        while !has_ended(ended.id()) {
            thread::sleep(Duration::from_millis(1));
        }
        ended.wait().unwrap();
        assert!(!has_ended(std::process::id()));
    }
}
