//! The store's lock: one process at a time.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::sys::stat::Mode;

use crate::error::{Error, Result};

/// Held while a process uses a store; the kernel lets go of it when the process ends, however it ends.
pub(crate) struct StoreLock {
    _file: Flock<File>,
}

impl StoreLock {
    /// Takes the lock of the store in the directory `dir`. `store` is its path, for messages.
    pub(crate) fn take(dir: &OwnedFd, store: &Path) -> Result<StoreLock> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let io =
            |source: nix::Error| Error::Io { op: "lock", path: store.join("lock"), source: source.into() };
        let file: File = openat(dir, "lock", flags, Mode::from_bits_truncate(0o600)).map_err(io)?.into();
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                let pid = std::process::id();
                file.set_len(0).and_then(|()| writeln!(file, "{pid}")).map_err(Error::io("lock", store))?;
                Ok(StoreLock { _file: file })
            }
            Err((mut file, nix::Error::EWOULDBLOCK)) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                Err(Error::Locked { store: store.into(), pid: text.trim().parse().ok() })
            }
            Err((_, e)) => Err(io(e)),
        }
    }
}
