//! Mounts in the store: heads, views, and what lies in between.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use crate::error::{Error, Result};
use crate::mountinfo::{self, Mount};

/// Somebody may be about to let go of what is to be unmounted or destroyed: so often it is tried again, and after this
/// time.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// The mounts of this process's view of the machine.
pub(crate) fn all() -> Result<Vec<Mount>> {
    mountinfo::read().map_err(Error::io("read", "/proc/self/mountinfo"))
}

/// Whether this ZFS dataset (or snapshot) is what is seen at `place`.
pub(crate) fn shows(mounts: &[Mount], place: &Path, dataset: &str) -> bool {
    mounts
        .iter()
        .rfind(|mount| mount.point == place)
        .is_some_and(|mount| is_zfs(mount) && mount.source == dataset)
}

/// Whether it is ZFS, of the kernel or of zfs-fuse.
pub(crate) fn is_zfs(mount: &Mount) -> bool {
    mount.kind == "zfs" || mount.kind == "fuse.zfs"
}

/// The places below `dir` at which something is mounted, deepest and latest first.
pub(crate) fn below(mounts: &[Mount], dir: &Path) -> Vec<PathBuf> {
    mounts
        .iter()
        .rev()
        .filter(|mount| mount.point.starts_with(dir))
        .map(|mount| mount.point.clone())
        .collect()
}

/// The root directory of what is mounted at `place`, which must be this dataset.
pub(crate) fn open_root(place: &Path, dataset: &str) -> Result<OwnedFd> {
    if !shows(&all()?, place, dataset) {
        let source = io::Error::other(format!("{dataset} is not mounted there"));
        return Err(Error::Io { op: "open", path: place.into(), source });
    }
    open_dir(place)
}

/// Opens a directory.
pub(crate) fn open_dir(place: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    open(place, flags, Mode::empty()).map_err(|error| Error::Io {
        op: "open",
        path: place.into(),
        source: error.into(),
    })
}

/// Makes a directory, and those above it, for root's eyes only.
pub(crate) fn make_dir(place: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(place).map_err(Error::io("make", place))
}

/// Removes an empty directory, if it is there and empty.
pub(crate) fn remove_dir(place: &Path) {
    if let Err(error) = std::fs::remove_dir(place)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(place = %place.display(), %error, "a mount point stays");
    }
}

/// Mounts a snapshot, read-only. Only the kernel's ZFS can.
pub(crate) fn mount_snapshot(snapshot: &str, place: &Path) -> Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    mount(Some(snapshot), place, Some("zfs"), flags, None::<&str>).map_err(|error| Error::Io {
        op: "mount a snapshot at",
        path: place.into(),
        source: error.into(),
    })
}

/// Unmounts what is at `place`.
pub(crate) fn unmount(place: &Path) -> Result<()> {
    patient(|| match umount2(place, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        Err(error) => Err(Error::Io { op: "unmount", path: place.into(), source: error.into() }),
    })
}

/// Takes a mount out of sight now; it ends when nobody uses it any more.
pub(crate) fn detach(place: &Path) -> Result<()> {
    match umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        Err(error) => Err(Error::Io { op: "unmount", path: place.into(), source: error.into() }),
    }
}

/// Does what fails while something is still in use, until it succeeds or a second has passed.
pub(crate) fn patient(mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let mut tries = 0;
    loop {
        match attempt() {
            Err(error) if tries < TRIES && is_busy(&error) => {
                tries += 1;
                thread::sleep(PAUSE);
            }
            result => return result,
        }
    }
}

/// Whether an error means that somebody uses the thing.
pub(crate) fn is_busy(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => source.raw_os_error() == Some(libc::EBUSY),
        // The words of zfs-fuse and OpenZFS.
        Error::Command { reason, .. } => reason.contains("busy"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_top_is_what_is_seen() {
        let mounts = mountinfo::parse(
            b"1 0 0:1 / /st/heads/1 rw - zfs p/a\\040b rw\n\
              2 1 0:2 / /st/heads/1/kid rw - zfs p/a\\040b/kid rw\n\
              3 0 0:3 / /st/heads/2 rw - fuse.zfs p/old rw\n\
              4 0 0:4 / /st/heads/2 rw - tmpfs p/old rw\n",
        );
        assert!(shows(&mounts, Path::new("/st/heads/1"), "p/a b"));
        assert!(!shows(&mounts, Path::new("/st/heads/1"), "p/a"));
        assert!(!shows(&mounts, Path::new("/st/heads/2"), "p/old"), "covered");
        assert!(!shows(&mounts, Path::new("/st"), "p/a b"));
        let places = below(&mounts, Path::new("/st/heads/1"));
        assert_eq!(places, [Path::new("/st/heads/1/kid"), Path::new("/st/heads/1")]);
    }

    #[test]
    fn what_is_busy_is_tried_again() {
        let mut tries = 0;
        let busy =
            || Error::Command { command: "zfs".into(), reason: "exit status 1: dataset is busy".into() };
        patient(|| {
            tries += 1;
            if tries < 3 { Err(busy()) } else { Ok(()) }
        })
        .unwrap();
        assert_eq!(tries, 3);
        let mut tries = 0;
        let other = patient(|| {
            tries += 1;
            Err(Error::Closed)
        });
        assert!(other.is_err() && tries == 1);
    }
}
