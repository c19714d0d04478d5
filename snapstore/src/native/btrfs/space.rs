//! How much space a snapshot takes: what the file system's quotas count, where they are on.
//!
//! Without quotas nothing in the file system knows: to find out would be to read all metadata of all snapshots.

use std::io;
use std::os::fd::BorrowedFd;

use super::sys;
use crate::native::engine::Space;

/// `BTRFS_QGROUP_STATUS_KEY`.
const STATUS: u32 = 240;
/// Quotas are on, every extent is counted for all who share it, and the counts are right.
const ON: u64 = 1;
const FLAGS: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 3;

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at * 8..at * 8 + 8)?.try_into().ok()?))
}

/// Whether the file system counts the space of each subvolume now.
pub(super) fn is_known(store: BorrowedFd<'_>) -> bool {
    let mut on = false;
    let asked = sys::search(store, sys::QUOTA_TREE, (STATUS, (0, 0), 0), |item| {
        on = word(item.bytes, 2).is_some_and(|flags| flags & FLAGS == ON);
        Ok(false)
    });
    asked.is_ok() && on
}

/// The space of a subvolume; zeros where nobody counts.
pub(super) fn of(subvolume: BorrowedFd<'_>) -> io::Result<Space> {
    if !is_known(subvolume) {
        return Ok(Space::default());
    }
    let id = sys::info(subvolume)?.id;
    let mut space = Space::default();
    sys::search(subvolume, sys::QUOTA_TREE, (sys::QGROUP_INFO, (0, id), 0), |item| {
        if let (0, true) = (item.objectid, item.offset == id)
            && let (Some(referenced), Some(exclusive)) = (word(item.bytes, 1), word(item.bytes, 3))
        {
            space = Space { referenced, exclusive };
        }
        Ok(false)
    })?;
    Ok(space)
}
