//! The one door to stores of every kind: opening, adopting, ejecting.
//!
//! A store's `FORMAT` says which backend keeps it; whoever opens one need not know. Only adopting has a choice.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backend::{Backend, BackendKind};
use crate::chunk::adopt::place;
use crate::chunk::{self, format};
pub use crate::chunk::{OpenOptions, Recovery};
use crate::error::{Error, Result};
use crate::locate::{self, Located};
use crate::native::takeover::Takeover;
use crate::native::{engines, external, frame};
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
    External(Box<external::Config>),
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
        if let Some(why) = engines::fits(choice.kind(), data_dir)? {
            return Ok((choice, why));
        }
    }
    Ok((Choice::Chunk, "it works on any file system".into()))
}

/// Which backend keeps a store.
pub fn kind(store: &Path) -> Result<BackendKind> {
    Ok(format::check(&chunk::open::open_dir(store)?, store)?.backend)
}

/// Opens a store: takes its lock, recovers it if need be. The path is that of the store itself.
pub fn open(store: &Path, options: &OpenOptions) -> Result<(Arc<dyn Backend>, Recovery)> {
    match kind(store)? {
        BackendKind::Chunk => chunk::open(store, options),
        BackendKind::Btrfs | BackendKind::Zfs | BackendKind::External => {
            let (store, recovery) = frame::open(store, options)?;
            Ok((store, recovery))
        }
    }
}

/// Makes `data_dir` a tmfs data dir with the chosen backend (`None`: [`choose`]); goes on with an adoption that was
/// interrupted; returns at once for one that is complete, if its backend is the chosen one. `store` is where to keep
/// everything, if not at the backend's usual place.
pub fn adopt(
    data_dir: &Path,
    store: Option<&Path>,
    choice: Option<&Choice>,
    progress: &dyn Progress,
) -> Result<Located> {
    put_back(data_dir, store)?;
    let data_dir = place::canonical(data_dir)?;
    loop {
        if let Some(located) = locate::find(&data_dir, store)? {
            return confirm(located, store, choice, progress);
        }
        let leftover = locate::unfinished(&data_dir, store)?;
        let begun = leftover.as_deref().map(frame::under_way).transpose()?.flatten();
        let chosen = choice.cloned().map_or_else(|| choose(&data_dir).map(|(choice, _)| choice), Ok);
        let takeover: Box<dyn Takeover> = match (begun, &chosen) {
            // What a crash has left is completed, or cleared away, by its own kind.
            (Some(BackendKind::External), Ok(Choice::External(config))) => {
                Box::new(external::Taking::with(config)?)
            }
            (Some(kind), _) => engines::takeover(kind, leftover.as_deref().unwrap_or(&data_dir))?,
            (None, Ok(Choice::External(config))) => Box::new(external::Taking::with(config)?),
            (None, Ok(Choice::Btrfs | Choice::Zfs)) if leftover.is_none() => {
                engines::takeover(chosen?.kind(), &data_dir)?
            }
            (None, _) => {
                let wanted = chosen?.kind();
                if leftover.is_some() && choice.is_some() && wanted != BackendKind::Chunk {
                    let store = leftover.unwrap_or_default();
                    return Err(Error::OtherBackend { store, found: BackendKind::Chunk, wanted });
                }
                return chunk::adopt(&data_dir, store, progress);
            }
        };
        frame::adopt(&data_dir, leftover.as_deref().or(store), &*takeover, progress)?;
    }
}

/// A store that is complete, found where `store` says, if it does.
fn confirm(
    located: Located,
    store: Option<&Path>,
    choice: Option<&Choice>,
    progress: &dyn Progress,
) -> Result<Located> {
    let found = kind(&located.store)?;
    if let Some(wanted) = choice.map(Choice::kind)
        && wanted != found
    {
        return Err(Error::OtherBackend { store: located.store, found, wanted });
    }
    match (found, choice) {
        (BackendKind::Chunk, _) => return chunk::adopt(&located.data_dir, store, progress),
        (BackendKind::External, Some(Choice::External(config))) => external::replace(&located, config)?,
        (BackendKind::External, _) => external::confirm(&located)?,
        (BackendKind::Btrfs | BackendKind::Zfs, _) => chunk::adopt::confirm(&located)?,
    }
    Ok(located)
}

/// Where an interrupted adoption or eject has left no data dir, puts it back. Does nothing when `data_dir` is there.
pub fn put_back(data_dir: &Path, store: Option<&Path>) -> Result<()> {
    chunk::put_back(data_dir, store)?;
    let Ok(path) = std::path::absolute(data_dir) else { return Ok(()) };
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    let named = store.map(place::store_path).transpose()?;
    for store in [named, place::beside(&path)].into_iter().flatten() {
        if let Some(kind) = frame::under_way(&store)? {
            engines::takeover(kind, &store)?.put_back(&path, &store)?;
        }
    }
    Ok(())
}

/// Makes `data_dir` a plain directory again, as its live head is; history is dropped. It must not be mounted.
pub fn eject(data_dir: &Path, store: Option<&Path>, progress: &dyn Progress) -> Result<PathBuf> {
    put_back(data_dir, store)?;
    let canonical = place::canonical(data_dir)?;
    if let Some(begun) = locate::unfinished(&canonical, store)?
        && frame::under_way(&begun)?.is_some()
    {
        return frame::eject(&canonical, &begun, progress);
    }
    match locate::find(&canonical, store)? {
        Some(located) if kind(&located.store)? != BackendKind::Chunk => {
            frame::eject(&canonical, &located.store, progress)
        }
        _ => chunk::eject(data_dir, store, progress),
    }
}
