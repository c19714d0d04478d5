//! The one door to stores of every kind: opening, adopting, ejecting.
//!
//! A store's `FORMAT` says which backend keeps it; whoever opens one need not know. Only adopting has a choice.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backend::{Backend, BackendKind};
use crate::chunk;
pub use crate::chunk::{OpenOptions, Recovery};
use crate::error::Result;
use crate::locate::Located;
use crate::native;
use crate::progress::Progress;

/// Which backend a data dir is to have.
#[derive(Clone, PartialEq, Debug)]
pub enum Choice {
    /// Layers on any file system.
    Chunk,
    /// A Btrfs subvolume and its snapshots.
    Btrfs,
    /// A ZFS dataset and its snapshots.
    Zfs,
    /// Whatever these commands do. For a data dir that has it already they replace those of before.
    External(Box<native::external::Config>),
}

impl Choice {
    /// Its kind.
    pub fn kind(&self) -> BackendKind {
        match self {
            Choice::Chunk => BackendKind::Chunk,
            Choice::Btrfs => BackendKind::Btrfs,
            Choice::Zfs => BackendKind::Zfs,
            Choice::External(_) => BackendKind::External,
        }
    }
}

/// The backend for a directory that is not adopted yet, if nobody chose one; and why, as a sentence's second half.
pub fn choose(data_dir: &Path) -> Result<(Choice, String)> {
    for choice in [Choice::Btrfs, Choice::Zfs] {
        if let Some(why) = native::engines::fits(choice.kind(), data_dir)? {
            return Ok((choice, why));
        }
    }
    Ok((Choice::Chunk, "it works on any file system".into()))
}

/// Opens a store: takes its lock, recovers it if need be. The path is that of the store itself.
pub fn open(store: &Path, options: &OpenOptions) -> Result<(Arc<dyn Backend>, Recovery)> {
    chunk::open(store, options)
}

/// Makes `data_dir` a tmfs data dir; goes on with an adoption that was interrupted; returns at once for one that is
/// complete, if its backend is the chosen one. See [`chunk::adopt`].
pub fn adopt(
    data_dir: &Path,
    store: Option<&Path>,
    _choice: Option<&Choice>,
    progress: &dyn Progress,
) -> Result<Located> {
    chunk::adopt(data_dir, store, progress)
}

/// Where an interrupted adoption or eject has left no data dir, puts it back. See [`chunk::put_back`].
pub fn put_back(data_dir: &Path, store: Option<&Path>) -> Result<()> {
    chunk::put_back(data_dir, store)
}

/// Makes `data_dir` a plain directory again, as its live head is; history is dropped. It must not be mounted.
pub fn eject(data_dir: &Path, store: Option<&Path>, progress: &dyn Progress) -> Result<PathBuf> {
    chunk::eject(data_dir, store, progress)
}
