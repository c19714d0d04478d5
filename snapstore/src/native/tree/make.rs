//! Making inodes as somebody else's, with the permissions that the kernel would give them.
//!
//! The file system below applies a directory's default ACL and hands down its group; what it cannot know is whose
//! request it is. So the inode is made as ours, with the mode that was asked for, and then given away. Nobody sees it
//! before: the head is entered, and the kernel has not been told of it. If it cannot be looked at or given away, it is
//! removed: an error means that nothing was made.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};

use super::errors::failed;
use super::table::{PathFd, Table};
use crate::backend::NewInode;
use crate::error::Result;
use crate::sys::{OpenXattrs, proc_path};
use crate::types::{Attr, FileKind, Ino};

const S_ISGID: u32 = 0o2000;

/// Makes an inode with a name. The caller has entered the head.
pub(crate) fn make(table: &Table, parent: Ino, name: &OsStr, new: &NewInode<'_>) -> Result<Attr> {
    let dir = table.fd(parent)?;
    let above = table.attr_of(parent, dir.as_fd())?;
    let mode = new.mode & 0o7777;
    let bits = Mode::from_bits_truncate(mode & 0o777);
    let special = |kind, device| mknodat(&*dir, name, kind, bits, device);
    let made = match new.kind {
        FileKind::Regular => {
            let flags =
                OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
            openat(&*dir, name, flags, bits).map(drop)
        }
        FileKind::Directory => mkdirat(&*dir, name, bits),
        FileKind::Symlink => symlinkat(OsStr::from_bytes(new.target), &*dir, name),
        FileKind::Fifo => special(SFlag::S_IFIFO, 0),
        FileKind::Socket => special(SFlag::S_IFSOCK, 0),
        FileKind::CharDevice => special(SFlag::S_IFCHR, device(new.rdev)),
        FileKind::BlockDevice => special(SFlag::S_IFBLK, device(new.rdev)),
    };
    made.map_err(failed("create in", parent))?;
    // It may be that no descriptor is to be had for it.
    let (fd, attr) = table.child(parent, name).inspect_err(|_| unmake(&dir, name, new.kind))?;
    let given = give_away(table, (&dir, &above), (&fd, &attr), new, mode);
    if given.is_err() {
        unmake(&dir, name, new.kind);
        table.forget(attr.ino);
    }
    given
}

/// Removes what was made and is not to be.
fn unmake(dir: &PathFd, name: &OsStr, kind: FileKind) {
    let how = match kind {
        FileKind::Directory => UnlinkatFlags::RemoveDir,
        _ => UnlinkatFlags::NoRemoveDir,
    };
    if let Err(error) = unlinkat(&**dir, name, how) {
        tracing::warn!(?name, %error, "what could not be given to its owner is left");
    }
}

/// Gives what was made its owner and its mode.
fn give_away(
    table: &Table,
    (dir, above): (&PathFd, &Attr),
    (fd, made): (&PathFd, &Attr),
    new: &NewInode<'_>,
    mode: u32,
) -> Result<Attr> {
    let ino = made.ino;
    // The directory's own group, if it hands that down, is there already.
    let gid = if above.mode & S_ISGID != 0 { above.gid } else { new.gid };
    if (made.uid, made.gid) != (new.uid, gid) {
        let (uid, gid) = (Some(Uid::from_raw(new.uid)), Some(Gid::from_raw(gid)));
        fchownat(&**fd, "", uid, gid, AtFlags::AT_EMPTY_PATH | AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(failed("chown", ino))?;
    }
    if new.kind == FileKind::Symlink {
        return table.attr_of(ino, fd.as_fd());
    }
    let default = OpenXattrs::of(dir.as_fd()).and_then(|x| x.get(OsStr::new("system.posix_acl_default")));
    let permissions = match default {
        // With a default ACL the umask does not count, and the file system has worked out what is left.
        Ok(_) => made.mode & 0o777,
        Err(_) => mode & 0o777 & !new.umask,
    };
    let inherited = if new.kind == FileKind::Directory { above.mode & S_ISGID } else { 0 };
    let wanted = permissions | (mode & 0o7000) | inherited;
    if table.attr_of(ino, fd.as_fd())?.mode != wanted {
        let path = proc_path(std::os::fd::AsRawFd::as_raw_fd(&**fd));
        fchmodat(AT_FDCWD, path.as_str(), Mode::from_bits_truncate(wanted), FchmodatFlags::FollowSymlink)
            .map_err(failed("set the mode of", ino))?;
    }
    table.attr_of(ino, fd.as_fd())
}

/// A device number from the kernel's 32-bit encoding.
fn device(rdev: u32) -> libc::dev_t {
    let (major, minor) = ((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xfff00));
    libc::makedev(major, minor)
}
