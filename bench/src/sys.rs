//! What the safe libraries do not offer.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

/// Lets a program that is started receive signals again that this process holds back for itself.
pub fn unmasked(command: &mut Command) -> &mut Command {
    let unmask =
        || sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(io::Error::from);
    // SAFETY: between fork and exec only functions that are safe in a signal handler may be called. `sigprocmask` is
    // one, and nothing here allocates: turning an errno into an `io::Error` does not either.
    unsafe { command.pre_exec(unmask) }
}

/// Drops what the kernel has cached of all file systems, of FUSE's as of the disk's. Dirty pages must have been written
/// before: they stay. Needs root.
pub fn drop_caches() -> io::Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "3")
}

/// Opens an LMDB environment.
pub fn open_lmdb(dir: &Path, size: usize) -> heed::Result<heed::Env> {
    let mut options = heed::EnvOpenOptions::new();
    options.map_size(size);
    // SAFETY: each row has a directory of its own, opens one environment in it at a time, and changes its files through
    // it alone.
    unsafe { options.open(dir) }
}
