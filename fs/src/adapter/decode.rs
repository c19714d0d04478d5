//! The library's types from ours, and ours from the library's.

use std::cell::RefCell;
use std::time::UNIX_EPOCH;

use fuser::{FileAttr, FileType, INodeNo, RenameFlags, Request, TimeOrNow};
use snapstore::backend::{RenameMode, XattrMode};
use snapstore::{Attr, CHUNK_SIZE, FileKind, Timestamp};

use crate::errno::{Errno, Result};
use crate::node::NodeId;
use crate::tree::Caller;

pub fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

pub fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

pub fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.0)
}

pub fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

pub fn file_attr(id: NodeId, attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(id.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime.into(),
        mtime: attr.mtime.into(),
        ctime: attr.ctime.into(),
        crtime: attr.btime.into(),
        kind: file_type(attr.kind),
        perm: attr.mode as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: CHUNK_SIZE as u32,
        flags: 0,
    }
}

/// The attributes of nothing: an entry with node 0 says that a name is not there.
pub fn negative() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

pub fn timestamp(time: TimeOrNow) -> Timestamp {
    match time {
        TimeOrNow::SpecificTime(time) => from_fuser(time),
        TimeOrNow::Now => Timestamp::now(),
    }
}

/// A time that came through fuser, which for times before 1970 takes the nanoseconds away instead of adding them
/// (fuser 0.18, `system_time_from_time`). Undone here; its other direction is right.
pub fn from_fuser(time: std::time::SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(_) => time.into(),
        Err(before) => {
            let d = before.duration();
            Timestamp { secs: -(d.as_secs() as i64), nanos: d.subsec_nanos() }
        }
    }
}

pub fn rename_mode(flags: RenameFlags) -> Result<RenameMode> {
    const NO_REPLACE: u32 = libc::RENAME_NOREPLACE;
    const EXCHANGE: u32 = libc::RENAME_EXCHANGE;
    const WHITEOUT: u32 = libc::RENAME_WHITEOUT;
    const WHITEOUT_NO_REPLACE: u32 = WHITEOUT | NO_REPLACE;
    Ok(match flags.bits() {
        0 => RenameMode::Replace,
        NO_REPLACE => RenameMode::NoReplace,
        EXCHANGE => RenameMode::Exchange,
        WHITEOUT => RenameMode::Whiteout,
        WHITEOUT_NO_REPLACE => RenameMode::WhiteoutNoReplace,
        _ => return Err(Errno(libc::EINVAL)),
    })
}

pub fn xattr_mode(flags: i32) -> Result<XattrMode> {
    match flags {
        0 => Ok(XattrMode::Set),
        libc::XATTR_CREATE => Ok(XattrMode::Create),
        libc::XATTR_REPLACE => Ok(XattrMode::Replace),
        _ => Err(Errno(libc::EINVAL)),
    }
}

thread_local! {
    /// Each worker reads into one buffer, and the reply is written straight from it.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends the worker's buffer, at least `size` bytes of it, with whatever an earlier request left in it.
pub fn with_buffer<T>(size: usize, f: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        f(&mut buffer[..size])
    })
}
