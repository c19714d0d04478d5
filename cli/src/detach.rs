//! Taking a mount out of the tree of files without asking its daemon: nobody can open anything in it any more, and what
//! is open stays so until it is closed.

use std::path::Path;
use std::process::Command;

use anyhow::Context;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use snapstore::procs;

use crate::output;
use crate::verbs::mount::list_users;

/// Detaches the mount at a path (absolute, without symlinks).
pub fn lazily(point: &Path) -> anyhow::Result<()> {
    match umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Err(Errno::EPERM) => {
            let detached = Command::new("fusermount3").arg("-uz").arg("--").arg(point).status();
            match detached.context("cannot run fusermount3")? {
                status if status.success() => Ok(()),
                status => anyhow::bail!("fusermount3 -uz {}: {status}", point.display()),
            }
        }
        detached => detached.with_context(|| format!("cannot detach {}", point.display())),
    }
}

/// Flushes what the kernel still has, then detaches the mount.
pub fn after_flush(point: &Path) -> anyhow::Result<()> {
    // Wakes the kernel's flusher; what it does not write now it writes when the files are closed.
    match std::fs::File::open(point) {
        Ok(root) => {
            if let Err(error) = nix::unistd::syncfs(&root) {
                tracing::warn!(%error, "flushing before the detach failed");
            }
        }
        Err(error) => tracing::warn!(%error, "cannot flush before the detach"),
    }
    lazily(point)
}

/// Clears the mount of a daemon that has died, and says what comes of it.
pub fn dead(data_dir: &Path, what_next: &str) -> anyhow::Result<()> {
    // While it is there, the kernel names what is open in it.
    let writers = procs::open_files(data_dir, true);
    let cleared = tmfs_fs::clear_dead_mount(data_dir)
        .with_context(|| format!("cannot clear the dead mount of {}", data_dir.display()))?;
    // The kernel may answer for the root from what it remembers of it, so that it does not look dead.
    if !cleared {
        lazily(data_dir)?;
    }
    output::complain(&format!("{}: the daemon of this mount had died; {what_next}", data_dir.display()));
    if !writers.is_empty() {
        output::complain(&format!(
            "{}: still has files of that mount open; restart these processes, a rollback cannot see that they write:{}",
            data_dir.display(),
            list_users(&writers)
        ));
    }
    Ok(())
}
