//! Carrying files over from the head that a rollback leaves: what must not go back in time.
//!
//! Copies between two directories of real file systems, by descriptors, blocks shared where the file system can. The
//! target's directories on the way to a path stay as they are; where one is missing, it is made like the source's. What
//! the target has at the path is replaced. The same code puts files aside and into place again where heads are not kept.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, Whence, fchownat, linkat, lseek64, symlinkat};

use crate::chunk::adopt::walk::{names_in, remove_tree, set_times};
use crate::error::{Error, Result};
use crate::sys::{OpenXattrs, Stat, copy_file_range, proc_path, stat_at};
use crate::types::FileKind;

const DIR: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

/// Deeper than this nothing is carried over: a descriptor is open for each level.
const DEEPEST: usize = 500;

/// The names a path consists of.
fn names(path: &Path) -> Result<Vec<OsString>> {
    let impossible = |reason| Error::PreserveImpossible { path: path.into(), reason };
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::CurDir => {}
            Component::ParentDir => return Err(impossible("it must not contain `..`")),
            _ => return Err(impossible("it must be relative to the data dir")),
        }
    }
    if names.is_empty() { Err(impossible("it is the whole data dir")) } else { Ok(names) }
}

/// Refuses paths that cannot be carried over from a tree. Gives back those that are to be: one below another comes along
/// with that.
pub(crate) fn check(root: BorrowedFd<'_>, paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut wanted: Vec<(Vec<OsString>, PathBuf)> = Vec::new();
    for path in paths {
        let names = names(path)?;
        let missing = || Error::PreserveMissing { path: path.clone() };
        let Some((last, above)) = names.split_last() else { continue };
        let dir = descend(root, above).map_err(|_| missing())?;
        stat_at(dir.as_fd(), last).map_err(|_| missing())?;
        wanted.push((names, path.clone()));
    }
    wanted.sort();
    wanted.dedup_by(|next, kept| next.0.starts_with(&kept.0));
    Ok(wanted.into_iter().map(|(names, _)| names.iter().collect()).collect())
}

/// Carries paths over from one tree to another. Each is durable in the other when it returns, its name excepted. Can be
/// done again.
pub(crate) fn carry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, paths: &[PathBuf]) -> Result<()> {
    let mut copy = Copy { links: HashMap::new() };
    for path in paths {
        let names = names(path)?;
        copy.path(from, to, &names, path).map_err(|cause| match cause {
            Cause::Io(source) => Error::Io { op: "carry over", path: path.clone(), source },
            Cause::Impossible(reason) => Error::PreserveImpossible { path: path.clone(), reason },
        })?;
    }
    Ok(())
}

/// Copies all that is in one directory into another, which has nothing of these names; the directory's own attributes
/// too. Everything is durable when it returns, if the caller syncs the file system.
#[cfg(test)]
pub(crate) fn copy_all(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut copy = Copy { links: HashMap::new() };
    let done = copy.inside(from, to, 0).and_then(|()| {
        let stat = stat_at(from, OsStr::new(""))?;
        Ok(attributes((from, OsStr::new("")), (to, OsStr::new("")), &stat)?)
    });
    done.map_err(|cause| match cause {
        Cause::Io(error) => error,
        Cause::Impossible(reason) => io::Error::other(reason),
    })
}

enum Cause {
    Io(io::Error),
    Impossible(&'static str),
}

impl From<io::Error> for Cause {
    fn from(e: io::Error) -> Cause {
        Cause::Io(e)
    }
}

impl From<nix::Error> for Cause {
    fn from(e: nix::Error) -> Cause {
        Cause::Io(e.into())
    }
}

fn descend(root: BorrowedFd<'_>, names: &[OsString]) -> io::Result<OwnedFd> {
    let mut dir = openat(root, ".", DIR, Mode::empty())?;
    for name in names {
        dir = openat(&dir, name.as_os_str(), DIR, Mode::empty())?;
    }
    Ok(dir)
}

struct Copy {
    /// Where the first name of a file with several names went.
    links: HashMap<(u64, u64), OwnedFd>,
}

impl Copy {
    fn path(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        names: &[OsString],
        path: &Path,
    ) -> std::result::Result<(), Cause> {
        let Some((last, above)) = names.split_last() else { return Ok(()) };
        let mut source = openat(from, ".", DIR, Mode::empty())?;
        let mut target = openat(to, ".", DIR, Mode::empty())?;
        for name in above {
            let inner = openat(&source, name.as_os_str(), DIR, Mode::empty())?;
            let there = stat_at(target.as_fd(), name).ok().and_then(|stat| stat.kind);
            if there != Some(FileKind::Directory) {
                remove_tree(target.as_fd(), name)?;
                mkdirat(&target, name.as_os_str(), Mode::from_bits_truncate(0o700))?;
                let stat = stat_at(inner.as_fd(), OsStr::new(""))?;
                attributes((source.as_fd(), name), (target.as_fd(), name), &stat)?;
                nix::unistd::fsync(&target)?;
            }
            target = openat(&target, name.as_os_str(), DIR, Mode::empty())?;
            source = inner;
        }
        remove_tree(target.as_fd(), last)?;
        tracing::debug!(path = %path.display(), "carried over");
        self.entry((source.as_fd(), last), (target.as_fd(), last), 0)?;
        Ok(nix::unistd::fsync(&target)?)
    }

    /// Copies what a name leads to.
    fn entry(
        &mut self,
        (from, name): (BorrowedFd<'_>, &OsStr),
        (to, new): (BorrowedFd<'_>, &OsStr),
        depth: usize,
    ) -> std::result::Result<(), Cause> {
        let stat = stat_at(from, name)?;
        let kind = stat.kind.ok_or(Cause::Impossible("it is of an unknown kind"))?;
        if let Some(first) = self.links.get(&stat.id) {
            let path = proc_path(first.as_raw_fd());
            linkat(AT_FDCWD, path.as_str(), to, new, AtFlags::AT_SYMLINK_FOLLOW)?;
            return Ok(());
        }
        let bits = Mode::from_bits_truncate(0o600);
        let device =
            || libc::makedev((stat.rdev >> 8) & 0xfff, (stat.rdev & 0xff) | ((stat.rdev >> 12) & 0xfff00));
        let mut content = None;
        match kind {
            FileKind::Directory => {
                if depth >= DEEPEST {
                    return Err(Cause::Impossible("its directories are nested too deeply"));
                }
                mkdirat(to, new, Mode::from_bits_truncate(0o700))?;
                let (source, target) =
                    (openat(from, name, DIR, Mode::empty())?, openat(to, new, DIR, Mode::empty())?);
                self.inside(source.as_fd(), target.as_fd(), depth + 1)?;
                nix::unistd::fsync(&target)?;
            }
            FileKind::Regular => {
                let read = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
                let source = File::from(openat(from, name, read, Mode::empty())?);
                let write =
                    OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
                let target = File::from(openat(to, new, write, bits)?);
                copy_content(&source, &target, stat.size)?;
                content = Some(target);
            }
            FileKind::Symlink => symlinkat(readlinkat(from, name)?.as_os_str(), to, new)?,
            FileKind::Fifo => mknodat(to, new, SFlag::S_IFIFO, bits, 0)?,
            FileKind::Socket => mknodat(to, new, SFlag::S_IFSOCK, bits, 0)?,
            FileKind::CharDevice => mknodat(to, new, SFlag::S_IFCHR, bits, device())?,
            FileKind::BlockDevice => mknodat(to, new, SFlag::S_IFBLK, bits, device())?,
        }
        attributes((from, name), (to, new), &stat)?;
        if let Some(file) = content {
            file.sync_all()?;
        }
        if kind != FileKind::Directory && stat.nlink > 1 {
            let path = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            self.links.insert(stat.id, openat(to, new, path, Mode::empty())?);
        }
        Ok(())
    }

    /// Copies all that is in a directory.
    fn inside(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        depth: usize,
    ) -> std::result::Result<(), Cause> {
        for name in names_in(from)? {
            self.entry((from, &name), (to, &name), depth)?;
        }
        Ok(())
    }
}

/// Copies content, holes left out, blocks shared where the file system can.
fn copy_content(from: &File, to: &File, size: u64) -> io::Result<()> {
    to.set_len(size)?;
    let mut end: i64 = 0;
    let mut within_kernel = true;
    loop {
        let mut at = match lseek64(from, end, Whence::SeekData) {
            Ok(at) => at,
            Err(nix::Error::ENXIO) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        end = lseek64(from, at, Whence::SeekHole)?;
        let mut buf = Vec::new();
        while at < end {
            let want = (end - at).min(1 << 30) as usize;
            if within_kernel {
                match copy_file_range((from.as_fd(), at), (to.as_fd(), at), want) {
                    Ok(0) => return Ok(()),
                    Ok(n) => at += n as i64,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EIO | libc::EDQUOT)) => {
                        return Err(e);
                    }
                    Err(_) => within_kernel = false,
                }
                continue;
            }
            buf.resize(want.min(1 << 20), 0);
            let got = from.read_at(&mut buf, at as u64)?;
            if got == 0 {
                return Ok(());
            }
            to.write_all_at(&buf[..got], at as u64)?;
            at += got as i64;
        }
    }
}

/// Gives a copy the attributes of its source: extended ones, owner, mode and times.
fn attributes(
    (from, name): (BorrowedFd<'_>, &OsStr),
    (to, new): (BorrowedFd<'_>, &OsStr),
    stat: &Stat,
) -> io::Result<()> {
    let open = |dir, name: &OsStr| -> io::Result<OwnedFd> {
        let name = if name.is_empty() { OsStr::new(".") } else { name };
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(dir, name, flags, Mode::empty())?)
    };
    let (source, target) = (open(from, name)?, open(to, new)?);
    fchownat(
        &target,
        "",
        Some(Uid::from_raw(stat.uid)),
        Some(Gid::from_raw(stat.gid)),
        AtFlags::AT_EMPTY_PATH | AtFlags::AT_SYMLINK_NOFOLLOW,
    )?;
    let (source, xattrs) = (OpenXattrs::of(source.as_fd())?, OpenXattrs::of(target.as_fd())?);
    let listed = match source.list() {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Vec::new(),
        listed => listed?,
    };
    for key in listed {
        let value = source.get(&key)?;
        match xattrs.set(&key, &value, 0) {
            // What a security module has put there, it puts there by itself.
            Err(e)
                if key.as_bytes().starts_with(b"security.") && e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            }
            done => done?,
        }
    }
    if stat.kind != Some(FileKind::Symlink) {
        let path = proc_path(target.as_raw_fd());
        fchmodat(AT_FDCWD, path.as_str(), Mode::from_bits_truncate(stat.mode), FchmodatFlags::FollowSymlink)?;
    }
    let at = if new.is_empty() { OsStr::new(".") } else { new };
    set_times(to, at, (stat.atime, stat.mtime))
}
