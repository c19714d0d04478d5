//! A whole tree, made anew in another subvolume of the same Btrfs: files share their content with the originals, so no
//! data is copied and no space is taken.
//!
//! Everything comes along that a program can set: owners, modes, extended attributes, ACLs, times of access and change,
//! hard links, holes, device nodes, the inode flags of `chattr`. What the kernel alone sets (time of creation, of the
//! last change of attributes) is new.
//!
//! A directory gets its attributes when all is in it, so that nothing in it inherits from them and its times stay.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat};

use super::sys;
use crate::chunk::adopt::stop;
use crate::chunk::adopt::walk::{Cursor, exists, remove_tree, set_times};
use crate::chunk::eject::follow_xattrs;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::sys::Stat;
use crate::types::FileKind;

/// Flags that say how a file's content is stored: they cannot be changed once there is some.
const STORAGE: i32 = NO_COW | 0x4 | 0x400;
const NO_COW: i32 = 0x0080_0000;
/// Those and the others that `chattr` sets: no dump, synchronous, no atime, synchronous directory.
const FLAGS: i32 = STORAGE | 0x40 | 0x8 | 0x80 | 0x0001_0000;

/// A tree to be made.
pub(super) struct Clone<'a> {
    /// Its root directory, and what messages call it.
    pub from: BorrowedFd<'a>,
    pub path: &'a Path,
    /// An empty directory, which becomes like it.
    pub to: BorrowedFd<'a>,
    /// Where hard links may be kept meanwhile: a directory of the same subvolume as `to`, and a name in it.
    pub links: (BorrowedFd<'a>, &'a OsStr),
}

impl Clone<'_> {
    /// Makes it. Nothing of it is durable on return.
    pub fn run(&self, progress: &dyn Progress) -> Result<()> {
        let (at, name) = self.links;
        let io = |op: &'static str| Error::io(op, self.path);
        remove_tree(at, name).map_err(io("clear the links beside"))?;
        mkdirat(at, name, Mode::from_bits_truncate(0o700)).map_err(|e| io("keep links beside")(e.into()))?;
        let links = super::subvolume::open_below(at, name).map_err(io("keep links beside"))?;
        self.tree(&links, progress)?;
        remove_tree(at, name).map_err(io("clear the links beside"))?;
        let here = OsStr::new("");
        attributes((self.from, here), (self.to, here)).map_err(io("take over"))
    }

    fn tree(&self, links: &OwnedFd, progress: &dyn Progress) -> Result<()> {
        let here = OsStr::new(".");
        let io = |op: &'static str, c: &Cursor, name: &OsStr| Error::io(op, c.path(name));
        let mut from = Cursor::open(self.from, here, self.path).map_err(Error::io("open", self.path))?;
        let mut to = Cursor::open(self.to, here, self.path).map_err(Error::io("open", self.path))?;
        let names = |c: &Cursor| c.names().map_err(|e| io("list", c, OsStr::new(""))(e));
        let mut frames: Vec<std::vec::IntoIter<OsString>> = vec![names(&from)?.into_iter()];
        let mut linked = HashSet::new();
        while let Some(frame) = frames.last_mut() {
            let Some(name) = frame.next() else {
                frames.pop();
                if !frames.is_empty() {
                    let left = from.leave().and_then(|name| to.leave().map(|_| name));
                    let name = left.map_err(|e| io("leave", &from, OsStr::new(""))(e))?;
                    attributes((from.dir(), &name), (to.dir(), &name))
                        .map_err(|e| io("take over", &from, &name)(e))?;
                }
                continue;
            };
            let stat = from.stat(&name).map_err(|e| io("stat", &from, &name)(e))?;
            progress.advance(1);
            if stat.kind == Some(FileKind::Directory) {
                let made = mkdirat(to.dir(), name.as_os_str(), Mode::from_bits_truncate(0o700));
                let entered = made.map_err(io::Error::from).and_then(|()| to.enter(&name));
                entered.map_err(|e| io("make", &from, &name)(e))?;
                from.enter(&name).map_err(|e| io("open", &from, &name)(e))?;
                frames.push(names(&from)?.into_iter());
                continue;
            }
            let one = Entry { from: from.dir(), to: to.dir(), name: &name, stat: &stat };
            let done = match stat.nlink {
                0 | 1 => one.make(),
                _ => one.make_linked(links, &mut linked),
            };
            done.map_err(|e| io("take over", &from, &name)(e))?;
            stop::here();
        }
        Ok(())
    }
}

/// One name that is no directory's.
struct Entry<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    name: &'a OsStr,
    stat: &'a Stat,
}

impl Entry<'_> {
    fn make(&self) -> io::Result<()> {
        let (name, dir) = (self.name, self.to);
        let mode = Mode::from_bits_truncate(0o600);
        match self.stat.kind {
            Some(FileKind::Regular) => self.regular()?,
            Some(FileKind::Symlink) => symlinkat(readlinkat(self.from, name)?.as_os_str(), dir, name)?,
            Some(FileKind::Fifo) => mknodat(dir, name, SFlag::S_IFIFO, mode, 0)?,
            Some(FileKind::Socket) => mknodat(dir, name, SFlag::S_IFSOCK, mode, 0)?,
            Some(FileKind::CharDevice) => mknodat(dir, name, SFlag::S_IFCHR, mode, self.device())?,
            Some(FileKind::BlockDevice) => mknodat(dir, name, SFlag::S_IFBLK, mode, self.device())?,
            Some(FileKind::Directory) | None => return Err(io::ErrorKind::Unsupported.into()),
        }
        attributes((self.from, name), (dir, name))
    }

    /// The device number as the calls take it, from the kernel's 32 bits.
    fn device(&self) -> libc::dev_t {
        let packed = self.stat.rdev;
        let (major, minor) = ((packed >> 8) & 0xfff, (packed & 0xff) | ((packed >> 12) & 0xfff00));
        libc::makedev(major, minor)
    }

    fn regular(&self) -> io::Result<()> {
        let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let make = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let from: File = openat(self.from, self.name, read, Mode::empty())?.into();
        let to: File = openat(self.to, self.name, make, Mode::from_bits_truncate(0o600))?.into();
        copy_flags(from.as_fd(), to.as_fd())?;
        if self.stat.size == 0 {
            return Ok(());
        }
        stop::link_error().map_or(Ok(()), Err)?;
        sys::clone_file(from.as_fd(), to.as_fd()).map_err(|e| {
            io::Error::new(e.kind(), format!("its content cannot be shared with another subvolume: {e}"))
        })?;
        match to.metadata()?.len() == from.metadata()?.len() {
            true => Ok(()),
            false => Err(io::Error::other("it changed meanwhile")),
        }
    }

    /// A file with several names: the first that is met makes it, under a name by which the others find it.
    fn make_linked(&self, links: &OwnedFd, linked: &mut HashSet<u64>) -> io::Result<()> {
        let number = OsString::from(self.stat.id.1.to_string());
        if linked.insert(self.stat.id.1) {
            self.make()?;
            return Ok(linkat(self.to, self.name, links, number.as_os_str(), AtFlags::empty())?);
        }
        assert!(exists(links.as_fd(), &number)?, "its first name was met");
        linkat(links, number.as_os_str(), self.to, self.name, AtFlags::empty())?;
        Ok(())
    }
}

fn copy_flags(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let (wanted, present) = (sys::inode_flags(from)? & FLAGS, sys::inode_flags(to)?);
    match present & FLAGS == wanted {
        true => Ok(()),
        false => sys::set_inode_flags(to, present & !FLAGS | wanted),
    }
}

/// Gives `to` the attributes of `from`; an empty name is the directory itself.
pub(super) fn attributes(from: (BorrowedFd<'_>, &OsStr), to: (BorrowedFd<'_>, &OsStr)) -> io::Result<()> {
    let stat = crate::sys::stat_at(from.0, from.1)?;
    let name = if to.1.is_empty() { OsStr::new(".") } else { to.1 };
    if stat.kind == Some(FileKind::Directory) {
        let (source, made) = (
            super::subvolume::open_below(from.0, if from.1.is_empty() { OsStr::new(".") } else { from.1 })?,
            super::subvolume::open_below(to.0, name)?,
        );
        copy_flags(source.as_fd(), made.as_fd())?;
    }
    let (uid, gid) = (Uid::from_raw(stat.uid), Gid::from_raw(stat.gid));
    fchownat(to.0, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if stat.kind != Some(FileKind::Symlink) {
        fchmodat(to.0, name, Mode::from_bits_truncate(stat.mode), FchmodatFlags::FollowSymlink)?;
    }
    follow_xattrs(from, to)?;
    set_times(to.0, name, (stat.atime, stat.mtime))
}
