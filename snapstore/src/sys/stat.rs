//! `statx`: what `stat` tells, with the time of creation, the flags that forbid renaming, and mount points.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::c_name;
use crate::types::{FileKind, Timestamp};

/// What the kernel knows of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stat {
    /// Device and inode: what makes two names one file.
    pub id: (u64, u64),
    /// Permission bits, without the type.
    pub mode: u32,
    /// `None` for a type that nobody knows.
    pub kind: Option<FileKind>,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// In the kernel's 32-bit encoding.
    pub rdev: u32,
    pub size: u64,
    /// In units of 512 bytes.
    pub blocks: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// Creation, where the file system keeps it.
    pub btime: Option<Timestamp>,
    /// The immutable or the append-only flag is set: it can be neither renamed nor removed.
    pub pinned: bool,
    /// A file system is mounted here (also a bind mount of the same one).
    pub mount_root: bool,
    /// Which mount it is reached through.
    pub mount: u64,
}

/// Whether an open file has a name. (Times are not asked for: see [`crate::disk::DiskFile::stat`].)
pub(crate) fn has_name(file: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(statx(file, c"", libc::STATX_NLINK)?.stx_nlink > 0)
}

/// What is at `name` in the directory `dir`, symlinks not followed; an empty name is the directory itself.
pub(crate) fn stat_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Stat> {
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME | libc::STATX_MNT_ID;
    let x = statx(dir, &c_name(name)?, mask)?;
    let time = |t: libc::statx_timestamp| Timestamp { secs: t.tv_sec, nanos: t.tv_nsec };
    let is = |attribute: libc::c_int| x.stx_attributes & attribute as u64 != 0;
    Ok(Stat {
        id: (libc::makedev(x.stx_dev_major, x.stx_dev_minor), x.stx_ino),
        mode: u32::from(x.stx_mode) & 0o7777,
        kind: FileKind::from_mode(x.stx_mode.into()),
        nlink: x.stx_nlink,
        uid: x.stx_uid,
        gid: x.stx_gid,
        rdev: (x.stx_rdev_minor & 0xff) | (x.stx_rdev_major << 8) | ((x.stx_rdev_minor & !0xff) << 12),
        size: x.stx_size,
        blocks: x.stx_blocks,
        atime: time(x.stx_atime),
        mtime: time(x.stx_mtime),
        ctime: time(x.stx_ctime),
        btime: (x.stx_mask & libc::STATX_BTIME != 0).then(|| time(x.stx_btime)),
        pinned: is(libc::STATX_ATTR_IMMUTABLE) || is(libc::STATX_ATTR_APPEND),
        mount_root: is(libc::STATX_ATTR_MOUNT_ROOT),
        mount: x.stx_mnt_id,
    })
}

/// The length in bytes and the space in units of 512 bytes of an open file; its times are not looked at.
pub(crate) fn space_of(file: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let x = statx(file, c"", libc::STATX_SIZE | libc::STATX_BLOCKS)?;
    Ok((x.stx_size, x.stx_blocks))
}

/// What `mask` asks for of `path` in `dir`, symlinks not followed; an empty path is the descriptor itself.
fn statx(dir: BorrowedFd<'_>, path: &CStr, mask: libc::c_uint) -> io::Result<libc::statx> {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH | libc::AT_NO_AUTOMOUNT;
    let mut x = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the descriptor is borrowed and so open, the path is NUL-terminated and outlives the call, and the
    // kernel writes one `statx` where there is room for one.
    let rc = unsafe { libc::statx(dir.as_raw_fd(), path.as_ptr(), flags, mask, x.as_mut_ptr()) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all its fields are numbers, which zeros are, and the call has filled them in.
    Ok(unsafe { x.assume_init() })
}
