//! The zfs backend: heads are datasets, snapshots are ZFS's own.
//!
//! Everything is done through the `zfs` command, which is the only interface that OpenZFS and zfs-fuse share. What lies
//! where, for a data dir that was the mount point of `tank/node`:
//!
//! | | |
//! |---|---|
//! | `tank/node` | head 1: the dataset that was adopted, mounted at `<store>/heads/1` now |
//! | `tank/node@tmfs-<epoch>` | a snapshot, in whichever head it is now, and in each file system below that |
//! | `tank/node.tmfs` | the container: never mounted, holds what tmfs makes |
//! | `tank/node.tmfs/head-<n>` | a head that a rollback made, a clone, mounted at `<store>/heads/<n>` |
//! | `tank/node.tmfs/view-<epoch>` | a read-only clone, while a view is open, only where snapshots cannot be mounted |
//! | `<store>/zfs.json` | the store's id and the names above, as they were when it was adopted |
//!
//! What is hard about it:
//!
//! * **What is ours** is said by properties that were set by tmfs, with the store's id ([`family`]). Nothing else is
//!   listed, shown or destroyed; no command here has `-R`, and `-r` only takes snapshots.
//! * **A rollback** must not destroy what is newer, as `zfs rollback -r` does. A new head is cloned from the snapshot
//!   beside the live one, and promoted when it is live: it then owns the snapshots of its own past, the head that was
//!   left becomes its clone, and both go on. Promoting moves snapshots from dataset to dataset, so they are found by
//!   their marks and never by where they were. See [`heads`].
//! * **File systems below** the dataset are cut with it in one transaction (`snapshot -r`), cloned one by one, and
//!   mounted below the head and the view, so that the tree is seen whole.
//! * **Views** of OpenZFS are the snapshots themselves, mounted in the store: `.zfs/snapshot` would show none of the
//!   file systems below, needs its dataset mounted, and unmounts itself after a while. zfs-fuse can do neither; there a
//!   view is a clone. Either is taken away when the view is closed, and, after a crash, when the store is next opened.
//!   See [`views`].
//! * **Booting**: heads have `canmount=noauto`, so that `zfs mount -a` leaves them alone.

mod beneath;
pub(crate) mod command;
mod config;
mod engine;
pub(crate) mod family;
mod fits;
mod heads;
pub(crate) mod import;
mod listing;
mod mounts;
mod pool;
#[cfg(test)]
mod rig;
mod takeover;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_crash;
mod views;

use std::path::Path;

use super::engine::Engine;
use super::site::Site;
use super::takeover::Takeover;
use crate::error::Result;

/// Opens the engine of a store whose backend is zfs.
pub(crate) fn open(site: &Site) -> Result<Box<dyn Engine>> {
    Ok(Box::new(engine::ZfsEngine::open(site, pool::program(&site.store)?)?))
}

/// Taking over and giving back.
pub(crate) fn takeover(at: &Path) -> Result<Box<dyn Takeover>> {
    Ok(Box::new(takeover::ZfsTakeover::new(at)?))
}

/// The ancestor's snapshots of the dataset of a store.
pub(crate) fn ancestor(site: &Site) -> Result<Box<dyn super::import::Ancestor>> {
    Ok(Box::new(import::OfPool(pool::Pool::open(site, pool::program(&site.store)?)?)))
}

/// Why `auto` takes zfs for a directory; `None`: it does not.
pub(crate) fn fits(data_dir: &Path) -> Result<Option<String>> {
    fits::fits(data_dir)
}
