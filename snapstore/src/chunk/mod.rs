//! The chunk backend: redirect-on-write layers on any file system.

mod account;
mod acl;
pub(crate) mod adopt;
mod checked;
mod compare;
mod content;
mod core;
mod database;
pub(crate) mod eject;
mod file;
mod fold;
pub(crate) mod format;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod head;
#[cfg(all(test, shuttle))]
mod interleavings;
mod layer;
mod lineage;
pub(crate) mod lock;
mod meta;
pub(crate) mod open;
mod preserve;
mod reclaim;
mod rename;
mod rows;
mod seal;
mod seek;
mod snapshots;
mod source;
mod space;
mod store;
mod sums;
mod syncing;
pub(crate) mod tree;
#[cfg(test)]
mod twins;
mod unhashed;
mod verify;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backend::Backend;
use crate::error::Result;
use crate::locate::Located;
use crate::progress::Progress;
use crate::types::Height;

/// How a store is opened.
#[derive(Clone, Default, Debug)]
pub struct OpenOptions {
    /// No background threads of its own (sealing and reclaim then run in [`Backend::settle`] and on close).
    pub no_background: bool,
}

/// What opening a store that was not closed cleanly found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Recovery {
    /// Whether the store had been closed cleanly.
    pub clean: bool,
    /// Snapshots that were not yet durable when the power or the daemon went, and are gone.
    pub dropped: Vec<Height>,
    /// Layer files that no committed metadata referred to.
    pub orphan_layers: u64,
}

/// Opens a store: takes its lock, recovers it if need be. The path is that of the store itself.
pub fn open(store: &Path, options: &OpenOptions) -> Result<(Arc<dyn Backend>, Recovery)> {
    let (store, recovery) = open::open(store, options)?;
    Ok((store, recovery))
}

/// Makes a store with nothing in it at `store`, a directory that does not exist yet, without taking over any
/// data dir: for tests, and for programs that bring their own tree. `data_dir` is only noted.
pub fn create_empty(store: &Path, data_dir: &Path) -> Result<()> {
    std::fs::create_dir(store).map_err(crate::Error::io("create", store))?;
    let dir = open::open_dir(store)?;
    let disk = crate::disk::RealDisk::new(dir.try_clone().map_err(crate::Error::io("open", store))?);
    let disk: Arc<dyn crate::disk::Disk> = Arc::new(disk);
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    open::initialize(&disk, open::root_row(0o755, uid, gid))?;
    format::write(&dir, store, data_dir, crate::backend::BackendKind::Chunk)
}

/// Makes `data_dir` a tmfs data dir: its files become the base layers, by rename. Goes on with an adoption that was
/// interrupted; returns at once for one that is complete. `store` is where to keep everything (default: a hidden
/// directory beside `data_dir`, or inside it when it is a mount point).
pub fn adopt(data_dir: &Path, store: Option<&Path>, progress: &dyn Progress) -> Result<Located> {
    adopt::adopt(data_dir, store, progress)
}

/// Where a file system cannot exchange two directories, adopting and ejecting take two renames, and a crash between
/// them leaves no data dir: puts it back, to be gone on with. Does nothing when `data_dir` is there.
pub fn put_back(data_dir: &Path, store: Option<&Path>) -> Result<()> {
    adopt::put_back(data_dir, store)
}

/// Makes `data_dir` a plain directory again, as its live head is; history is dropped. It must not be mounted.
pub fn eject(data_dir: &Path, store: Option<&Path>, progress: &dyn Progress) -> Result<PathBuf> {
    eject::eject(data_dir, store, progress)
}
