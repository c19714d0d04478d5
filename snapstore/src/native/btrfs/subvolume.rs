//! Subvolumes, by the directory they lie in.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, fstatfs};

use super::sys;
use crate::chunk::adopt::walk::names_in;
use crate::sys::stat_at;
use crate::types::FileKind;

const DIR: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

/// Opens a directory below another; symlinks are not followed.
pub(super) fn open_below(dir: BorrowedFd<'_>, name: impl AsRef<OsStr>) -> io::Result<OwnedFd> {
    Ok(openat(dir, name.as_ref(), DIR, Mode::empty())?)
}

/// Opens a directory by a path relative to another, however deep.
fn open_path(dir: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    path.components().try_fold(open_below(dir, ".")?, |at, part| open_below(at.as_fd(), part))
}

/// Whether this lies on Btrfs.
pub(super) fn is_on_btrfs(file: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(fstatfs(file)?.filesystem_type() == BTRFS_SUPER_MAGIC)
}

/// Whether a directory is the root of a subvolume.
pub(super) fn is_root(dir: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(is_on_btrfs(dir)? && stat_at(dir, OsStr::new(""))?.id.1 == sys::SUBVOLUME_ROOT)
}

/// Opens a subvolume by name; `None` if there is nothing of this name, or something else.
pub(super) fn open(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    match open_below(dir, name) {
        Ok(subvolume) => Ok(is_root(subvolume.as_fd())?.then_some(subvolume)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The paths, relative to a subvolume's root, of the subvolumes that lie directly in it. Below those may be more.
pub(super) fn nested(subvolume: BorrowedFd<'_>) -> io::Result<Vec<PathBuf>> {
    let mut holders: Vec<u64> = sys::children(subvolume)?.into_iter().map(|(_, dir)| dir).collect();
    holders.sort_unstable();
    holders.dedup();
    let root = (!holders.is_empty()).then(|| root_of(subvolume)).transpose()?;
    let mut found = Vec::new();
    for holder in holders {
        let path = PathBuf::from(OsStr::from_bytes(&sys::path_of(subvolume, holder)?));
        let dir = open_path(root.as_ref().expect("there is a holder").as_fd(), &path)?;
        for name in names_in(dir.as_fd())? {
            let stat = stat_at(dir.as_fd(), &name)?;
            if stat.id.1 == sys::SUBVOLUME_ROOT && stat.kind == Some(FileKind::Directory) {
                found.push(path.join(name));
            }
        }
    }
    Ok(found)
}

/// The root directory of the subvolume that a directory lies in.
pub(super) fn root_of(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut at = open_below(dir, ".")?;
    while stat_at(at.as_fd(), OsStr::new(""))?.id.1 != sys::SUBVOLUME_ROOT {
        let above = openat(&at, "..", DIR, Mode::empty())?;
        let (here, there) = (stat_at(at.as_fd(), OsStr::new(""))?, stat_at(above.as_fd(), OsStr::new(""))?);
        if here.id == there.id || here.id.0 != there.id.0 {
            // A bind mount of a part of a subvolume hides the rest.
            return Err(io::Error::other("the root of its subvolume cannot be reached"));
        }
        at = above;
    }
    Ok(at)
}

/// The subvolumes within a directory, which may be a subvolume or lie in one: paths relative to it.
pub(super) fn nested_below(dir: BorrowedFd<'_>) -> io::Result<Vec<PathBuf>> {
    let own = stat_at(dir, OsStr::new(""))?.id.1;
    if own == sys::SUBVOLUME_ROOT {
        return nested(dir);
    }
    let prefix = PathBuf::from(OsStr::from_bytes(&sys::path_of(dir, own)?));
    let mut found = Vec::new();
    for (_, holder) in sys::children(dir)? {
        let path = PathBuf::from(OsStr::from_bytes(&sys::path_of(dir, holder)?));
        let Ok(below) = path.strip_prefix(&prefix) else { continue };
        let holder = open_path(dir, below)?;
        for name in names_in(holder.as_fd())? {
            let stat = stat_at(holder.as_fd(), &name)?;
            if stat.id.1 == sys::SUBVOLUME_ROOT && stat.kind == Some(FileKind::Directory) {
                found.push(below.join(name));
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Removes a subvolume; that it is not there is fine. What lies in it and is a subvolume itself keeps it.
pub(super) fn destroy(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match sys::destroy(dir, name) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// The names in a directory that are numbers as tmfs writes them, and are subvolumes.
pub(super) fn numbers(dir: BorrowedFd<'_>) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for name in names_in(dir)? {
        if let Some(number) = number(&name)
            && open(dir, &name)?.is_some()
        {
            found.push(number);
        }
    }
    Ok(found)
}

fn number(name: &OsString) -> Option<u64> {
    let text = name.to_str()?;
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}
