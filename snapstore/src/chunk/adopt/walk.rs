//! Walking a real directory tree of any depth.
//!
//! A path as long as a tree may be deep does not fit into a system call, and a descriptor for each level would run
//! out. So a [`Cursor`] stands in one directory: it enters a subdirectory by name and leaves it by `..`, and checks
//! that it came back to where it was: somebody who moves directories about meanwhile is noticed, not followed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::sys::{Stat, rename_with, stat_at};
use crate::types::{FileKind, Timestamp};

/// A place in a directory tree.
pub(crate) struct Cursor {
    dir: OwnedFd,
    /// The path of where the walk began, for messages.
    base: PathBuf,
    /// The directories above, outermost first: their ids, and the names that were entered there.
    above: Vec<((u64, u64), OsString)>,
}

const DIR: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

impl Cursor {
    /// Begins in `name` in the directory `at`; `base` is what messages call it.
    pub(crate) fn open(at: BorrowedFd<'_>, name: &OsStr, base: &Path) -> io::Result<Cursor> {
        let dir = openat(at, name, DIR, Mode::empty())?;
        Ok(Cursor { dir, base: base.into(), above: Vec::new() })
    }

    /// The directory it stands in.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The path of `name` here, for messages.
    pub(crate) fn path(&self, name: &OsStr) -> PathBuf {
        let mut path = self.base.clone();
        path.extend(self.above.iter().map(|(_, name)| name));
        if !name.is_empty() {
            path.push(name);
        }
        path
    }

    /// How many directories lie between here and the beginning.
    pub(crate) fn depth(&self) -> usize {
        self.above.len()
    }

    /// The names here, without `.` and `..`, sorted.
    pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
        names_in(self.dir())
    }

    /// What `name` here is.
    pub(crate) fn stat(&self, name: &OsStr) -> io::Result<Stat> {
        stat_at(self.dir(), name)
    }

    /// Goes into the directory `name`.
    pub(crate) fn enter(&mut self, name: &OsStr) -> io::Result<()> {
        let inner = openat(self.dir(), name, DIR, Mode::empty())?;
        let here = self.stat(OsStr::new(""))?.id;
        self.above.push((here, name.into()));
        self.dir = inner;
        Ok(())
    }

    /// Like [`Cursor::enter`], for a tree that is ours alone: permissions that keep its owner out are changed.
    pub(crate) fn enter_ours(&mut self, name: &OsStr) -> io::Result<()> {
        if !nix::unistd::geteuid().is_root() {
            let mode = self.stat(name)?.mode;
            if mode & 0o700 != 0o700 {
                let mode = Mode::from_bits_truncate(mode | 0o700);
                fchmodat(self.dir(), name, mode, FchmodatFlags::FollowSymlink)?;
            }
        }
        self.enter(name)
    }

    /// Goes back up. Returns the name of the directory it was in.
    pub(crate) fn leave(&mut self) -> io::Result<OsString> {
        let Some((id, name)) = self.above.pop() else { return Err(io::ErrorKind::NotFound.into()) };
        let outer = openat(self.dir(), "..", DIR, Mode::empty())?;
        if stat_at(outer.as_fd(), OsStr::new(""))?.id != id {
            return Err(io::Error::other("a directory was moved meanwhile"));
        }
        self.dir = outer;
        Ok(name)
    }
}

/// The names in a directory, without `.` and `..`, sorted.
pub(crate) fn names_in(dir: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let own = openat(dir, ".", DIR, Mode::empty())?;
    let mut names = Vec::new();
    for entry in nix::dir::Dir::from_fd(own)?.iter() {
        match entry?.file_name().to_bytes() {
            b"." | b".." => {}
            name => names.push(OsString::from_vec(name.to_vec())),
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Removes `name` in `at` with everything below it; nothing there is fine. Never follows a symlink.
pub(crate) fn remove_tree(at: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match stat_at(at, name) {
        Ok(stat) if stat.kind == Some(FileKind::Directory) => {}
        Ok(_) => return Ok(unlinkat(at, name, UnlinkatFlags::NoRemoveDir)?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    let here = openat(at, ".", DIR, Mode::empty())?;
    let mut cursor = Cursor { dir: here, base: PathBuf::new(), above: Vec::new() };
    cursor.enter_ours(name)?;
    let mut pending = vec![cursor.names()?];
    while let Some(names) = pending.last_mut() {
        let Some(next) = names.pop() else {
            pending.pop();
            let done = cursor.leave()?;
            unlinkat(cursor.dir(), done.as_os_str(), UnlinkatFlags::RemoveDir)?;
            continue;
        };
        match unlinkat(cursor.dir(), next.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(nix::Error::ENOENT) => {}
            Err(nix::Error::EISDIR | nix::Error::EPERM)
                if cursor.stat(&next)?.kind == Some(FileKind::Directory) =>
            {
                cursor.enter_ours(&next)?;
                pending.push(cursor.names()?);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Whether there is a `name` in `at`.
pub(crate) fn exists(at: BorrowedFd<'_>, name: impl AsRef<OsStr>) -> io::Result<bool> {
    match nix::sys::stat::fstatat(at, name.as_ref(), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(nix::Error::ENOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Renames, replacing nothing.
pub(crate) fn rename_new(from: (BorrowedFd<'_>, &OsStr), to: (BorrowedFd<'_>, &OsStr)) -> io::Result<()> {
    match rename_with(from, to, libc::RENAME_NOREPLACE) {
        // The file system does not know the flag; nobody else is about here.
        Err(error) if flag_unknown(&error) && !exists(to.0, to.1)? => {
            Ok(nix::fcntl::renameat(from.0, from.1, to.0, to.1)?)
        }
        done => done,
    }
}

/// Has two names change places, in one step. False where the file system cannot.
pub(crate) fn exchange(a: (BorrowedFd<'_>, &OsStr), b: (BorrowedFd<'_>, &OsStr)) -> io::Result<bool> {
    if !super::stop::can_exchange() {
        return Ok(false);
    }
    match rename_with(a, b, libc::RENAME_EXCHANGE) {
        Ok(()) => Ok(true),
        Err(error) if flag_unknown(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a file system or a kernel does not know a flag of `renameat2`.
fn flag_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS))
}

/// Sets the times of last access and change of content.
pub(crate) fn set_times(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    (atime, mtime): (Timestamp, Timestamp),
) -> io::Result<()> {
    let spec = |t: Timestamp| TimeSpec::new(t.secs as _, t.nanos as _);
    Ok(utimensat(dir, name, &spec(atime), &spec(mtime), UtimensatFlags::NoFollowSymlink)?)
}

/// A name as bytes without what could not stand in a message.
pub(crate) fn shown(name: &OsStr) -> String {
    String::from_utf8_lossy(name.as_bytes()).escape_debug().to_string()
}
