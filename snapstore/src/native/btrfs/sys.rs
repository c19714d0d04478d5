//! The ioctls of Btrfs, as functions.
//!
//! The structures are those of `linux/btrfs.h`, which neither `libc` nor `nix` has. All of them are plain numbers and
//! bytes, of the sizes that are asserted below. A subvolume is told by any open descriptor in it, or, where it is made
//! or removed, by the directory it lies in and its name there.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

const MAGIC: u8 = 0x94;

/// The inode number of every subvolume's root directory.
pub(super) const SUBVOLUME_ROOT: u64 = 256;
/// The id of the subvolume that holds all others.
#[cfg(test)]
pub(super) const TOP_LEVEL: u64 = 5;

const READ_ONLY: u64 = 1 << 1;
/// The same in what [`info`] tells.
const ROOT_READ_ONLY: u64 = 1 << 0;
const NAME_MAX_V2: usize = 4039;

/// `BTRFS_QUOTA_TREE_OBJECTID`.
pub(super) const QUOTA_TREE: u64 = 8;
/// The tree of all trees, and the type of its items that are the roots of others (`btrfs_tree.h`).
const ROOT_TREE: u64 = 1;
const ROOT_ITEM: u32 = 132;
/// Where that tree notes what was deleted and is not gone yet: one item each, whose offset is its number.
const ORPHANS: u64 = -5_i64 as u64;
const ORPHAN_ITEM: u32 = 48;
/// `BTRFS_QGROUP_INFO_KEY`.
pub(super) const QGROUP_INFO: u32 = 242;

#[repr(C)]
struct VolArgsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; NAME_MAX_V2 + 1],
}
const _: () = assert!(size_of::<VolArgsV2>() == 4096);

#[repr(C)]
#[derive(Clone, Copy)]
struct Timespec {
    sec: u64,
    nsec: u32,
    _pad: u32,
}

#[repr(C)]
struct SubvolInfoArgs {
    treeid: u64,
    name: [u8; 256],
    parent_id: u64,
    dirid: u64,
    generation: u64,
    flags: u64,
    uuid: [u8; 16],
    parent_uuid: [u8; 16],
    received_uuid: [u8; 16],
    ctransid: u64,
    otransid: u64,
    stransid: u64,
    rtransid: u64,
    times: [Timespec; 4],
    reserved: [u64; 8],
}
const _: () = assert!(size_of::<SubvolInfoArgs>() == 504);

const ROOTREFS: usize = 255;

#[repr(C)]
struct RootrefArgs {
    min_treeid: u64,
    rootref: [[u64; 2]; ROOTREFS],
    num_items: u8,
    align: [u8; 7],
}
const _: () = assert!(size_of::<RootrefArgs>() == 4096);

#[repr(C)]
struct InoLookupArgs {
    treeid: u64,
    objectid: u64,
    name: [u8; 4080],
}
const _: () = assert!(size_of::<InoLookupArgs>() == 4096);

/// Room for items in one answer of a search.
const ITEMS: usize = 64 << 10;

#[repr(C)]
struct SearchArgs {
    tree_id: u64,
    min_objectid: u64,
    max_objectid: u64,
    min_offset: u64,
    max_offset: u64,
    min_transid: u64,
    max_transid: u64,
    min_type: u32,
    max_type: u32,
    nr_items: u32,
    unused: u32,
    unused_more: [u64; 4],
    buf_size: u64,
    buf: [u8; ITEMS],
}
/// Of [`SearchArgs`], without the room that follows.
const SEARCH_HEAD: usize = 112;
const _: () = assert!(std::mem::offset_of!(SearchArgs, buf) == SEARCH_HEAD);

const SYNC: libc::Ioctl = nix::request_code_none!(MAGIC, 8);
const TREE_SEARCH_V2: libc::Ioctl = nix::request_code_readwrite!(MAGIC, 17, SEARCH_HEAD);
const INO_LOOKUP: libc::Ioctl = nix::request_code_readwrite!(MAGIC, 18, 4096);
const WAIT_SYNC: libc::Ioctl = nix::request_code_write!(MAGIC, 22, 8);
const SNAP_CREATE_V2: libc::Ioctl = nix::request_code_write!(MAGIC, 23, 4096);
const SUBVOL_CREATE_V2: libc::Ioctl = nix::request_code_write!(MAGIC, 24, 4096);
const START_SYNC: libc::Ioctl = nix::request_code_read!(MAGIC, 24, 8);
#[cfg(test)]
const SUBVOL_SETFLAGS: libc::Ioctl = nix::request_code_write!(MAGIC, 26, 8);
const GET_SUBVOL_INFO: libc::Ioctl = nix::request_code_read!(MAGIC, 60, 504);
const GET_SUBVOL_ROOTREF: libc::Ioctl = nix::request_code_readwrite!(MAGIC, 61, 4096);
const SNAP_DESTROY_V2: libc::Ioctl = nix::request_code_write!(MAGIC, 63, 4096);
const FICLONE: libc::Ioctl = nix::request_code_write!(MAGIC, 9, 4);

/// What Btrfs knows of a subvolume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct SubvolInfo {
    /// Its number.
    pub id: u64,
    /// The number of the subvolume it lies in; 0 for the top level.
    pub parent_id: u64,
    pub read_only: bool,
    /// The transaction in which its tree was last written.
    pub generation: u64,
    pub uuid: [u8; 16],
    /// Of what it was a snapshot of; zeros if of nothing.
    pub parent_uuid: [u8; 16],
    /// The transaction in which an inode in it last changed.
    pub changed_in: u64,
    /// The transaction that made it.
    pub made_in: u64,
    /// When it was made: seconds and nanoseconds since 1970.
    pub made_at: (u64, u32),
}

/// One item of a tree, as [`search`] shows it.
pub(super) struct Item<'a> {
    pub objectid: u64,
    pub offset: u64,
    pub bytes: &'a [u8],
}

/// Calls an ioctl whose argument the kernel reads and, for some, writes.
///
/// # Safety
/// `T` must be what this request takes: the kernel reads and writes at most its size.
unsafe fn call<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, arg: *mut T) -> io::Result<()> {
    loop {
        // SAFETY: the descriptor is borrowed and so open; the rest is the caller's promise.
        if unsafe { libc::ioctl(fd.as_raw_fd(), request, arg) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn vol_args(name: &OsStr, fd: i64, flags: u64) -> io::Result<Box<VolArgsV2>> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > 255 || bytes.contains(&0) || bytes.contains(&b'/') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut args = Box::new(VolArgsV2 { fd, transid: 0, flags, unused: [0; 4], name: [0; NAME_MAX_V2 + 1] });
    args.name[..bytes.len()].copy_from_slice(bytes);
    Ok(args)
}

/// Makes an empty subvolume.
pub(in crate::native) fn create(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let mut args = vol_args(name, 0, 0)?;
    // SAFETY: this request takes a `btrfs_ioctl_vol_args_v2`.
    unsafe { call(dir, SUBVOL_CREATE_V2, &raw mut *args) }
}

/// Makes a snapshot of the subvolume whose root directory `of` is. It is durable on return.
pub(super) fn snapshot(
    of: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    name: &OsStr,
    read_only: bool,
) -> io::Result<()> {
    let mut args = vol_args(name, of.as_raw_fd().into(), if read_only { READ_ONLY } else { 0 })?;
    // SAFETY: this request takes a `btrfs_ioctl_vol_args_v2`; the descriptor in it is borrowed and so open.
    unsafe { call(dir, SNAP_CREATE_V2, &raw mut *args) }
}

/// Removes a subvolume by its name: the name at once, the content in the background.
pub(super) fn destroy(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let mut args = vol_args(name, 0, 0)?;
    // SAFETY: this request takes a `btrfs_ioctl_vol_args_v2`.
    unsafe { call(dir, SNAP_DESTROY_V2, &raw mut *args) }
}

/// Whether the subvolume that a descriptor is in is read-only.
pub(super) fn is_read_only(inside: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(info(inside)?.read_only)
}

/// Makes a subvolume read-only, or writable.
#[cfg(test)]
pub(super) fn set_read_only(subvolume: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let mut flags: u64 = if on { READ_ONLY } else { 0 };
    // SAFETY: this request reads a `u64`.
    unsafe { call(subvolume, SUBVOL_SETFLAGS, &raw mut flags) }
}

/// What Btrfs knows of the subvolume that a descriptor is in.
pub(super) fn info(subvolume: BorrowedFd<'_>) -> io::Result<SubvolInfo> {
    let none = Timespec { sec: 0, nsec: 0, _pad: 0 };
    let mut args = Box::new(SubvolInfoArgs {
        treeid: 0,
        name: [0; 256],
        parent_id: 0,
        dirid: 0,
        generation: 0,
        flags: 0,
        uuid: [0; 16],
        parent_uuid: [0; 16],
        received_uuid: [0; 16],
        ctransid: 0,
        otransid: 0,
        stransid: 0,
        rtransid: 0,
        times: [none; 4],
        reserved: [0; 8],
    });
    // SAFETY: this request writes a `btrfs_ioctl_get_subvol_info_args`.
    unsafe { call(subvolume, GET_SUBVOL_INFO, &raw mut *args) }?;
    Ok(SubvolInfo {
        id: args.treeid,
        parent_id: args.parent_id,
        read_only: args.flags & ROOT_READ_ONLY != 0,
        generation: args.generation,
        uuid: args.uuid,
        parent_uuid: args.parent_uuid,
        changed_in: args.ctransid,
        made_in: args.otransid,
        made_at: (args.times[1].sec, args.times[1].nsec),
    })
}

/// The subvolumes that lie directly in one: the number of each, and the inode of the directory that holds it.
pub(super) fn children(subvolume: BorrowedFd<'_>) -> io::Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    let mut args =
        Box::new(RootrefArgs { min_treeid: 0, rootref: [[0; 2]; ROOTREFS], num_items: 0, align: [0; 7] });
    loop {
        // SAFETY: this request reads and writes a `btrfs_ioctl_get_subvol_rootref_args`.
        let answer = unsafe { call(subvolume, GET_SUBVOL_ROOTREF, &raw mut *args) };
        let more = match answer {
            Ok(()) => false,
            // There are more than fit; `min_treeid` says where to go on.
            Err(e) if e.raw_os_error() == Some(libc::EOVERFLOW) => true,
            Err(e) => return Err(e),
        };
        let count = usize::from(args.num_items).min(ROOTREFS);
        found.extend(args.rootref[..count].iter().map(|&[id, dir]| (id, dir)));
        if !more || count == 0 {
            return Ok(found);
        }
    }
}

/// The path of a directory's inode within its subvolume, ending in a slash unless it is the root.
pub(super) fn path_of(subvolume: BorrowedFd<'_>, dir: u64) -> io::Result<Vec<u8>> {
    let mut args = Box::new(InoLookupArgs { treeid: 0, objectid: dir, name: [0; 4080] });
    // SAFETY: this request reads and writes a `btrfs_ioctl_ino_lookup_args`.
    unsafe { call(subvolume, INO_LOOKUP, &raw mut *args) }?;
    Ok(args.name.split(|&b| b == 0).next().unwrap_or_default().to_vec())
}

/// Commits the running transaction of the file system and waits for it. Data that is still dirty in memory is not
/// part of it.
pub(super) fn commit(file_system: BorrowedFd<'_>) -> io::Result<()> {
    let mut transaction: u64 = 0;
    // SAFETY: this request writes a `u64`.
    unsafe { call(file_system, START_SYNC, &raw mut transaction) }?;
    // SAFETY: this request reads a `u64`.
    unsafe { call(file_system, WAIT_SYNC, &raw mut transaction) }
}

/// Syncs the file system, and has it begin to free what was deleted, which it would do within half a minute by itself.
pub(super) fn sync_and_clean(file_system: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: this request takes no argument.
    unsafe { call(file_system, SYNC, std::ptr::null_mut::<u8>()) }
}

/// The numbers of the subvolumes, whoever had them, that were deleted and are not freed yet. Needs root.
pub(super) fn being_freed(at: BorrowedFd<'_>) -> io::Result<Vec<u64>> {
    let mut orphans = Vec::new();
    search(at, ROOT_TREE, (ORPHAN_ITEM, (ORPHANS, 0), 0), |item| {
        if item.objectid == ORPHANS {
            orphans.push(item.offset);
        }
        Ok(true)
    })?;
    let mut subvolumes = Vec::new();
    for number in orphans {
        search(at, ROOT_TREE, (ROOT_ITEM, (number, 0), 0), |item| {
            if item.objectid == number {
                subvolumes.push(number);
            }
            Ok(false)
        })?;
    }
    Ok(subvolumes)
}

/// Makes `to`, an empty file, share all of the content of `from`.
pub(super) fn clone_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are borrowed and so open; the argument is a number, no memory is touched.
    let rc = unsafe { libc::ioctl(to.as_raw_fd(), FICLONE, from.as_raw_fd()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The inode flags of `chattr`.
pub(super) fn inode_flags(file: BorrowedFd<'_>) -> io::Result<i32> {
    // The kernel writes an `int`, whatever the request's own name says; a `long` has room for either.
    let mut flags: [i32; 2] = [0; 2];
    // SAFETY: at most a long is written into `flags`.
    unsafe { call(file, libc::FS_IOC_GETFLAGS, flags.as_mut_ptr()) }?;
    Ok(flags[0])
}

/// Sets the inode flags of `chattr`.
pub(super) fn set_inode_flags(file: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    let mut flags: [i32; 2] = [flags, 0];
    // SAFETY: the kernel only reads `flags`.
    unsafe { call(file, libc::FS_IOC_SETFLAGS, flags.as_mut_ptr()) }
}

/// Items of one type in a tree, in the order of their keys, whose block was written in transaction `since` or later.
/// `tree` 0 is that of the subvolume that the descriptor is in. Needs root.
pub(super) fn search(
    at: BorrowedFd<'_>,
    tree: u64,
    (kind, first, since): (u32, (u64, u64), u64),
    mut each: impl FnMut(Item<'_>) -> io::Result<bool>,
) -> io::Result<()> {
    let mut args = Box::new(SearchArgs {
        tree_id: tree,
        min_objectid: first.0,
        max_objectid: u64::MAX,
        min_offset: first.1,
        max_offset: u64::MAX,
        min_transid: since,
        max_transid: u64::MAX,
        min_type: kind,
        max_type: kind,
        nr_items: u32::MAX,
        unused: 0,
        unused_more: [0; 4],
        buf_size: ITEMS as u64,
        buf: [0; ITEMS],
    });
    loop {
        args.nr_items = u32::MAX;
        // SAFETY: this request reads and writes a `btrfs_ioctl_search_args_v2`, which ends with `buf_size` bytes.
        unsafe { call(at, TREE_SEARCH_V2, &raw mut *args) }?;
        if args.nr_items == 0 {
            return Ok(());
        }
        let (mut rest, mut last) = (&args.buf[..], (0, 0, 0));
        for _ in 0..args.nr_items {
            let header = rest.get(..32).ok_or(io::ErrorKind::InvalidData)?;
            let word = |at: usize| u64::from_ne_bytes(header[at..at + 8].try_into().expect("eight bytes"));
            let half = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four bytes"));
            let (objectid, offset, item_kind, len) = (word(8), word(16), half(24), half(28) as usize);
            let bytes = rest.get(32..32 + len).ok_or(io::ErrorKind::InvalidData)?;
            rest = &rest[32 + len..];
            last = (objectid, item_kind, offset);
            // The types between the first and the last key come along.
            if item_kind == kind && !each(Item { objectid, offset, bytes })? {
                return Ok(());
            }
        }
        // The next key after the last one.
        match (last.2.checked_add(1), last.1.cmp(&kind)) {
            (Some(offset), std::cmp::Ordering::Equal) => {
                (args.min_objectid, args.min_offset) = (last.0, offset);
            }
            (_, std::cmp::Ordering::Less) => (args.min_objectid, args.min_offset) = (last.0, 0),
            _ => match last.0.checked_add(1) {
                Some(next) => (args.min_objectid, args.min_offset) = (next, 0),
                None => return Ok(()),
            },
        }
        args.min_type = kind;
    }
}
