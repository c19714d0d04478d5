//! Taking the mount away.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use snapstore::control::Failure;
use snapstore::procs;

use crate::flush::Flush;
use crate::mount::open_point;
use crate::mounted::{Mounted, busy, failed};
use crate::switch::NAMED;
use crate::sys::fusermount;

/// How long the connection may take to end after the mount is gone from here.
const PATIENCE: Duration = Duration::from_secs(30);

impl Mounted {
    /// Flushes, unmounts, waits until the store is closed. Fails while programs use the mount.
    pub(crate) fn unmount(&self) -> Result<(), Failure> {
        self.end_forgetting();
        let _alone = self.trickle.rest();
        {
            let _one = self.verb.lock();
            self.flush_writers(Flush::All)?;
        }
        let path = &self.options.mountpoint;
        match patiently(path) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Err(self.in_use()),
            // Not mounted any more: somebody was faster.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(failed(format!("{}: cannot be unmounted: {error}", path.display()))),
        }
        self.wait_for(PATIENCE).unwrap_or_else(|| {
            Err(busy(format!(
                "{}: unmounted here, but still mounted in another mount namespace (a container or a service)",
                path.display()
            )))
        })
    }

    fn in_use(&self) -> Failure {
        let path = &self.options.mountpoint;
        let mut users: Vec<String> = procs::open_files(path, false)
            .iter()
            .map(|file| format!("process {} {} ({})", file.pid, file.process, file.path.display()))
            .collect();
        users.truncate(NAMED);
        let users = if users.is_empty() { "a process".to_owned() } else { users.join(", ") };
        busy(format!("{}: in use by {users}; stop it first", path.display()))
    }
}

/// Unmounts; a user that is just about to go is waited for.
fn patiently(path: &Path) -> io::Result<()> {
    let mut result = detach(path, false);
    for _ in 0..10 {
        match &result {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                thread::sleep(Duration::from_millis(20));
                result = detach(path, false);
            }
            _ => break,
        }
    }
    result
}

/// Unmounts what is mounted at a path; lazily: from here at once, for those who use it when they are done.
pub(crate) fn detach(path: &Path, lazily: bool) -> io::Result<()> {
    let flags = if lazily { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    // By its name in the directory above: a symlink that somebody put into the path leads to no other mount.
    let above = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Some((open_point(parent)?, name)),
        _ => None,
    };
    let point = match &above {
        Some((dir, name)) => Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name),
        None => path.to_owned(),
    };
    match umount2(&point, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => by_fusermount(path, lazily),
        Err(errno) => Err(errno.into()),
    }
}

fn by_fusermount(path: &Path, lazily: bool) -> io::Result<()> {
    let mut command = fusermount();
    command.arg("-u");
    if lazily {
        command.arg("-z");
    }
    let output = command.arg("--").arg(path).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // It has no other way to tell which error it was.
    if said.contains("busy") {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    if said.contains("not found in") || said.contains("not mounted") {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Err(io::Error::other(said.trim().to_owned()))
}
