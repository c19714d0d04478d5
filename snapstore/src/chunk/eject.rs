//! Ejecting: a data dir becomes a plain directory again, as its live head is, by hard links and renames.
//!
//! Steps, each of which a crash may interrupt:
//!
//! 1. What would be in the way is looked for; nothing is changed yet.
//! 2. History is dropped, so that each file has one layer left, and the head is at rest.
//! 3. **Build** ([`build`]): the tree is made in `ejecting/`. A file is a hard link to its layer, which so becomes the
//!    file that it once was; only what is not one whole layer is copied. The store is alive meanwhile.
//! 4. Everything is synced, and the tree takes the marker's place ([`give`]). This is the moment that decides.
//! 5. The store is removed; its layers live on under their other names.
//!
//! Interrupted before 4, the store is whole: `tmfs mount` clears the half-built tree away. Interrupted after it, the
//! next command removes what is left of the store.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::adopt::journal::{self, Journal, RootAttrs, Way};
use super::adopt::place::{self, Place};
use super::adopt::{self, marker, stop, strays, take, walk};
use super::core::Core;
use super::lock::StoreLock;
use super::rows::{InodeRow, Key, KeyKind, Row};
use super::tree::Lookup;
use super::{OpenOptions, format, open};
use crate::backend::Backend;
use crate::disk::{Disk, RealDisk};
use crate::error::{Error, Result};
use crate::locate;
use crate::progress::Progress;
use crate::types::{FileKind, Ino};

mod build;
mod give;
#[cfg(test)]
mod tests;

pub(crate) use build::follow_xattrs;
pub(crate) use give::{give_up, go_on, is_given};

/// The tree that is being built; after the exchange, what was the marker.
pub(crate) const TREE: &str = "ejecting";
/// Files with several names that are no layers, until they have all their names.
const FILES: &str = "ejecting-files";

fn refuse(path: &Path, reason: impl Into<String>) -> Error {
    Error::CannotEject { path: path.into(), reason: reason.into() }
}

/// See [`crate::chunk::eject`].
pub(crate) fn eject(data_dir: &Path, store: Option<&Path>, progress: &dyn Progress) -> Result<PathBuf> {
    adopt::put_back(data_dir, store)?;
    let data_dir = place::canonical(data_dir)?;
    if let Some(path) = locate::unfinished(&data_dir, store)? {
        let place = Place::of(&data_dir, Some(&path))?;
        let dir = open::open_dir(&path)?;
        let lock = StoreLock::take(&dir, &path)?;
        match journal::read(dir.as_fd())? {
            Some(Journal::EjectReady(way, root)) if given(way, &dir, &path)? => {
                go_on(&place, &dir, way, &root, progress)?;
                return Ok(data_dir);
            }
            Some(Journal::EjectBuilding | Journal::EjectReady(..)) | None => drop(lock),
            Some(_) => {
                return Err(refuse(
                    &data_dir,
                    "its adoption was interrupted; complete it with `tmfs mount` first",
                ));
            }
        }
    }
    let located =
        locate::find(&data_dir, store)?.ok_or_else(|| Error::NotAStore { path: data_dir.clone() })?;
    let place = Place::of(&data_dir, Some(&located.store))?;
    let dir = open::open_dir(&place.store)?;
    format::check(&dir, &place.store)?;
    let _lock = StoreLock::take(&dir, &place.store)?;
    if journal::read(dir.as_fd())?.is_some() {
        give_up(&dir, &place.store)?;
    }
    let root = build_tree(&place, &dir, progress)?;
    stop::here();
    journal::write(dir.as_fd(), &Journal::EjectReady(place.way, root.clone()))?;
    stop::here();
    go_on(&place, &dir, place.way, &root, progress)?;
    Ok(data_dir)
}

fn given(way: Way, store: &OwnedFd, path: &Path) -> Result<bool> {
    Ok(way == Way::Entries || is_given(store.as_fd()).map_err(Error::io("stat", path))?)
}

/// Steps 1 to 3: afterwards the tree is ready and durable, and the store is closed.
fn build_tree(place: &Place, dir: &OwnedFd, progress: &dyn Progress) -> Result<RootAttrs> {
    let io = |op: &'static str| Error::io(op, &place.store);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(dir.try_clone().map_err(io("open"))?));
    let (core, _) = open::open_on(Arc::clone(&disk), &place.store)?;
    let store = open::finish(core, None, &OpenOptions { no_background: true })?;
    let core = &store.core;
    check(core, place)?;
    progress.step("dropping history", None);
    forget_history(core)?;
    stop::here();
    journal::write(dir.as_fd(), &Journal::EjectBuilding)?;
    stop::here();
    progress.step("building the directory", None);
    let root = build::build(core, dir.as_fd(), &place.store, progress)?;
    store.close()?;
    stop::here();
    progress.step("making the data durable", None);
    disk.sync_all().map_err(io("sync the file system of"))?;
    Ok(root)
}

/// Refuses what could not be given back.
fn check(core: &Core, place: &Place) -> Result<()> {
    let kept = place.store.join(strays::STRAYS);
    if kept.exists() {
        return Err(refuse(
            &kept,
            "holds files that turned up in the data dir while it was adopted; move them elsewhere first",
        ));
    }
    for name in walk::names_in(place.data.as_fd()).map_err(Error::io("list", &place.data_dir))? {
        if !take::stays(place, &name).map_err(Error::io("stat", place.data_dir.join(&name)))? {
            return Err(refuse(
                &place.data_dir.join(&name),
                "lies in the unmounted data dir, where it does not belong; move it elsewhere first",
            ));
        }
    }
    let head = core.head();
    let lookup = Lookup { core, lineage: &head.lineage };
    let own = place.store.file_name().filter(|_| place.way == Way::Entries);
    for name in [Some(std::ffi::OsStr::new(marker::NAME)), own].into_iter().flatten() {
        if lookup.dentry(Ino::ROOT, name)?.is_some() {
            return Err(refuse(
                &place.data_dir.join(name),
                "has a name that tmfs needs itself while it ejects; mount, rename it, and eject then",
            ));
        }
    }
    if !take::is_root() {
        only_own(core)?;
    }
    Ok(())
}

/// Refuses inodes that only root can give back.
fn only_own(core: &Core) -> Result<()> {
    let uid = nix::unistd::geteuid().as_raw();
    let head = core.head();
    let all = Key::inode(Ino(0));
    core.meta.scan(&head.lineage, &all.as_bytes()[..1], |key, value| {
        let row = InodeRow::decode(value)?;
        let device = matches!(row.kind, FileKind::CharDevice | FileKind::BlockDevice);
        match KeyKind::of(key)? {
            KeyKind::Inode(ino) if row.uid != uid || (device && row.rdev != 0) => {
                let what = format!("inode {ino}");
                let reason = "belongs to another user or is a device node; only root can give it back";
                Err(refuse(Path::new(&what), reason))
            }
            _ => Ok(true),
        }
    })
}

/// Drops all that only history sees, and brings the head to rest.
fn forget_history(core: &Arc<Core>) -> Result<()> {
    let heights: Vec<_> = {
        let mut c = core.control.lock();
        let held: Vec<_> = c.snapshots.iter().filter(|(_, row)| row.held).map(|(&epoch, _)| epoch).collect();
        c.snapshots.values_mut().for_each(|row| row.held = false);
        let rows = held.into_iter().filter_map(|epoch| c.stored(epoch)).collect();
        core.meta.apply_control(rows);
        c.visible.keys().copied().collect()
    };
    core.delete(&heights, false)?;
    core.drop_abandoned(false)?;
    if core.meta.head_touched() {
        let mut c = core.control.lock();
        core.begin(&mut c, None, None, Vec::new(), Vec::new());
    }
    {
        // Nobody will compare what is given back.
        let mut work = core.work.lock();
        work.hash.clear();
        work.awaited.clear();
        work.reclaim = true;
    }
    core.settle()?;
    // What was sealed just now may be merged only after that.
    core.work.lock().reclaim = true;
    core.settle()
}
