//! Adopting: a directory becomes a tmfs data dir, by rename, however much it holds.
//!
//! Steps, each of which a crash may interrupt:
//!
//! 1. The store's directory is made, and a journal in it ([`Journal`]) says that something is under way.
//! 2. **Plan**: names, attributes and sizes are read and written as rows of epoch 1 ([`scan`]); the data dir is not
//!    touched. Everything is synced: the files' own data, the rows, the marker.
//! 3. **Take**: the data dir and the marker change places ([`take`]). This is the moment that decides.
//! 4. **Link**: each regular file gets a second name, that of the base layer of its inode ([`link`]). If that cannot be
//!    done, everything is put back ([`undo`]), and the directory is plain again.
//!    **Settle**: the first names go, and with them the tree ([`layers`]).
//! 5. `FORMAT` is written: only now is there a store that can be opened. The journal goes.
//!
//! Interrupted before 3, the directory is as it was, and the next attempt throws the plan away: it may be out of date.
//! Interrupted after 3, the next attempt goes on. Epoch 1 is final from the start, and has no name: the head is
//! epoch 2, its child. So no write ever changes an adopted file in place.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::lineage::EpochRow;
use super::lock::StoreLock;
use super::meta::Meta;
use super::rows::Key;
use super::snapshots::{HeadRow, epoch_row, json};
use super::{eject, format, open};
use crate::backend::BackendKind;
use crate::disk::{DatabaseFile, Disk, RealDisk};
use crate::error::{Error, Result};
use crate::locate::{self, Located};
use crate::progress::Progress;
use crate::types::EpochId;

mod copy;
pub(crate) mod journal;
mod layers;
mod link;
pub(crate) mod marker;
pub(crate) mod place;
#[cfg(test)]
pub(crate) mod sample;
mod scan;
pub(crate) mod stop;
pub(crate) mod strays;
pub(crate) mod take;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod tests_undo;
mod undo;
pub(crate) mod walk;

use journal::{Journal, Way};
use place::{Place, There};
use walk::{exists, remove_tree};

/// The epoch of what was there.
const BASE: EpochId = EpochId(1);
/// The head's first epoch.
const HEAD: EpochId = EpochId(2);
/// The name of a store within a data dir.
pub(crate) const HIDDEN: &str = ".tmfs";
/// A directory that belongs to the file system, in its root.
pub(crate) const LOST_AND_FOUND: &str = "lost+found";

/// An [`Error::CannotAdopt`].
pub(crate) fn refuse(path: &Path, reason: impl Into<String>) -> Error {
    Error::CannotAdopt { path: path.into(), reason: reason.into() }
}

/// See [`crate::chunk::adopt`].
pub(crate) fn adopt(data_dir: &Path, store: Option<&Path>, progress: &dyn Progress) -> Result<Located> {
    put_back(data_dir, store)?;
    let data_dir = place::canonical(data_dir)?;
    loop {
        if let Some(located) = locate::find(&data_dir, store)? {
            confirm(&located)?;
            return Ok(located);
        }
        let leftover = locate::unfinished(&data_dir, store)?;
        let place = Place::of(&data_dir, leftover.as_deref().or(store))?;
        match place::examine(&place.store)? {
            There::Nothing => begin(&place, progress)?,
            There::Unfinished => go_on(&place, progress)?,
            There::Store(of) => {
                let reason = format!(
                    "holds a store already, that of {}; mount that, or name another place with --store",
                    of.display()
                );
                return Err(refuse(&place.store, reason));
            }
            There::Foreign => {
                return Err(refuse(
                    &place.store,
                    "exists and is no tmfs store; name a directory that does not exist yet with --store",
                ));
            }
        }
    }
}

/// An adoption from the beginning.
fn begin(place: &Place, progress: &dyn Progress) -> Result<()> {
    place.check()?;
    let io = |op: &'static str| Error::io(op, &place.store);
    let made = match std::fs::create_dir(&place.store) {
        Ok(()) => true,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => false,
        Err(e) => {
            let reason = format!("the store cannot be made there: {e}; name another place with --store");
            return Err(refuse(&place.store, reason));
        }
    };
    let store = open::open_new_dir(&place.store).map_err(|e| match e {
        Error::NotAStore { path } => refuse(&path, "is no directory; name another place with --store"),
        e => e,
    })?;
    let _lock = StoreLock::take(&store, &place.store)?;
    // Somebody else may have been quicker between the look and the lock.
    if journal::read(store.as_fd())?.is_some() || !matches!(place::examine(&place.store)?, There::Nothing) {
        return Ok(());
    }
    fchmodat(&store, ".", Mode::from_bits_truncate(0o700), FchmodatFlags::FollowSymlink)
        .map_err(|e| io("chmod")(e.into()))?;
    keep_times(place);
    sync_above(&place.store)?;
    journal::write(store.as_fd(), &Journal::AdoptPlanning)?;
    stop::here();
    let taken = plan(place, &store, progress).and_then(|()| take(place, &store));
    if let Err(e) = taken {
        if !take::is_taken(store.as_fd()).unwrap_or(true) && !entries_begun(place, &store)? {
            discard(place, &store, made)?;
        }
        return Err(e);
    }
    settle(place, &store, progress)
}

/// Writes all metadata; the data dir is not touched.
fn plan(place: &Place, store: &OwnedFd, progress: &dyn Progress) -> Result<()> {
    let io = |op: &'static str| Error::io(op, &place.store);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(store.try_clone().map_err(io("open"))?));
    let meta = open::create_database(&disk)?;
    progress.step("reading names and attributes", None);
    let own = crate::sys::stat_at(store.as_fd(), OsStr::new("")).map_err(io("stat"))?.id;
    let scanned = scan::scan(&place.data, &place.data_dir, Some(own), &meta, progress)?;
    meta.rewrite(|w| {
        w.control(&epoch_row(BASE), Some(&json(&layers::base_row(scanned.chunks))))?;
        let head = EpochRow::begun(Some(BASE), Some(scanned.chunks));
        w.control(&epoch_row(HEAD), Some(&json(&head)))?;
        w.control("head", Some(&json(&HeadRow { epoch: HEAD, serial: 1 })))?;
        w.control("next_epoch", Some(&json(&EpochId(HEAD.0 + 1))))?;
        w.control("next_ino", Some(scanned.next_ino.to_string().as_bytes()))?;
        w.control("clean", Some(b"1"))
    })?;
    meta.close();
    drop(meta);
    stop::here();
    disk.sync_dir("meta").map_err(io("sync"))?;
    if place.way == Way::Swap {
        take::prepare_marker(place, store.as_fd())?;
    }
    stop::here();
    progress.step("making the data durable", None);
    // Epoch 1 counts as sealed: its files' data is on the disk, whoever wrote it.
    disk.sync_all().map_err(io("sync the file system of"))?;
    journal::write(store.as_fd(), &Journal::AdoptPlanned(place.way))?;
    stop::here();
    Ok(())
}

/// The moment that decides.
fn take(place: &Place, store: &OwnedFd) -> Result<()> {
    // The scan may have taken minutes: whoever began to write meanwhile would go on writing beside the mount.
    if let Some(open) = crate::procs::open_files(&place.data_dir, true).first() {
        let reason = format!("is open for writing in process {} ({}); stop it first", open.pid, open.process);
        return Err(refuse(&open.path, reason));
    }
    match place.way {
        Way::Swap => take::exchange(place, store.as_fd())
            .map_err(|e| refuse(&place.data_dir, format!("cannot be renamed into the store: {e}"))),
        Way::Entries => take::mark_entries(place).map_err(Error::io("write the marker in", &place.data_dir)),
    }
}

/// The metadata that [`plan`] wrote.
fn open_planned(place: &Place, store: &OwnedFd) -> Result<(Arc<dyn Disk>, Meta)> {
    let io = |op: &'static str| Error::io(op, &place.store);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(store.try_clone().map_err(io("open"))?));
    let file = disk.open(open::DATABASE).map_err(io("open the metadata in"))?;
    let meta = Meta::open(DatabaseFile::new(Arc::clone(&disk), file).map_err(io("open the metadata in"))?)?;
    Ok((disk, meta))
}

/// Everything after that moment. Can be done again from any point.
fn settle(place: &Place, store: &OwnedFd, progress: &dyn Progress) -> Result<()> {
    let journal = journal::read(store.as_fd())?;
    let (disk, meta) = open_planned(place, store)?;
    if journal == Some(Journal::AdoptPlanned(Way::Swap)) {
        take::after_exchange(place.parent.as_fd(), &place.name, store.as_fd())
            .map_err(Error::io("complete the exchange with", &place.store))?;
        journal::write(store.as_fd(), &Journal::AdoptLinking(Way::Swap))?;
    }
    stop::here();
    if let Some(Journal::AdoptPlanned(way) | Journal::AdoptLinking(way)) = journal {
        let move_first = journal == Some(Journal::AdoptPlanned(Way::Entries));
        if let Err(e) = link_all(place, store, (&*disk, &meta), move_first) {
            return Err(put_all_back(place, store, meta, way, e));
        }
        journal::write(store.as_fd(), &Journal::AdoptTaken(way))?;
    }
    stop::here();
    layers::settle(&*disk, &meta, store.as_fd(), &place.store, progress)?;
    meta.close();
    drop(meta);
    stop::here();
    format::write(store, &place.store, &place.data_dir, BackendKind::Chunk)?;
    stop::here();
    journal::clear(store.as_fd())
}

/// The part of [`settle`] that can be undone. Durable when it returns.
fn link_all(
    place: &Place,
    store: &OwnedFd,
    (disk, meta): (&dyn Disk, &Meta),
    move_first: bool,
) -> Result<()> {
    if move_first {
        take::move_entries(place, store.as_fd(), |name| {
            let key = Key::dentry(crate::types::Ino::ROOT, name.as_encoded_bytes());
            Ok(meta.row_at(&key, BASE)?.flatten().is_some())
        })?;
        journal::write(store.as_fd(), &Journal::AdoptLinking(Way::Entries))?;
        stop::here();
    }
    link::link(place, disk, meta, store.as_fd())?;
    disk.sync_all().map_err(Error::io("sync the file system of", &place.store))
}

/// Undoes what failed with this error. Returns what there is to say.
fn put_all_back(place: &Place, store: &OwnedFd, meta: Meta, way: Way, cause: Error) -> Error {
    match undo::undo(place, store, meta, way) {
        Ok(()) => match cause {
            Error::CannotAdopt { .. } => cause,
            cause => refuse(&place.data_dir, format!("cannot be taken over: {cause}")),
        },
        Err(e) => {
            tracing::error!("{}: cannot be taken over: {cause}", place.data_dir.display());
            e
        }
    }
}

/// Goes on with what was interrupted, or clears it away.
fn go_on(place: &Place, progress: &dyn Progress) -> Result<()> {
    let store = open::open_dir(&place.store)?;
    let _lock = StoreLock::take(&store, &place.store)?;
    let stat = |e| Error::io("stat", &place.store)(e);
    match journal::read(store.as_fd())? {
        None => Ok(()),
        Some(Journal::AdoptPlanning) => discard(place, &store, true),
        Some(Journal::AdoptPlanned(Way::Swap)) => match take::is_taken(store.as_fd()).map_err(stat)? {
            true => settle(place, &store, progress),
            false => discard(place, &store, true),
        },
        Some(Journal::AdoptPlanned(Way::Entries)) => match entries_begun(place, &store)? {
            true => {
                take::mark_entries(place).map_err(Error::io("write the marker in", &place.data_dir))?;
                settle(place, &store, progress)
            }
            false => discard(place, &store, true),
        },
        Some(Journal::AdoptLinking(_) | Journal::AdoptTaken(_)) => settle(place, &store, progress),
        Some(Journal::AdoptUndoing(way)) => {
            let (_, meta) = open_planned(place, &store)?;
            undo::undo(place, &store, meta, way)
        }
        Some(Journal::NativeAdopting(kind) | Journal::NativeEjecting(kind, _)) => {
            let reason = format!(
                "an adoption or an eject of the backend {kind} was interrupted here; go on with that"
            );
            Err(refuse(&place.store, reason))
        }
        Some(Journal::EjectBuilding) => {
            let reason = "holds the store of another data dir; name another place with --store";
            Err(refuse(&place.store, reason))
        }
        Some(Journal::EjectReady(way, root)) => eject::go_on(place, &store, way, &root, progress),
    }
}

/// Whether the marker was written into a data dir whose entries are to be moved.
fn entries_begun(place: &Place, store: &OwnedFd) -> Result<bool> {
    if !matches!(journal::read(store.as_fd())?, Some(Journal::AdoptPlanned(Way::Entries))) {
        return Ok(false);
    }
    let marked =
        marker::read(place.data.as_fd()).map_err(Error::io("read the marker in", &place.data_dir))?;
    let begun = exists(store.as_fd(), take::TREE).map_err(Error::io("stat", &place.store))?;
    match marked {
        Some(named) if named == place.store => Ok(true),
        None if !begun => Ok(false),
        _ => Err(refuse(
            &place.data_dir,
            format!("its marker does not lead to the interrupted adoption in {}", place.store.display()),
        )),
    }
}

/// Throws a plan away: nothing of the data dir is in the store. The store's directory goes too, if `whole`.
fn discard(place: &Place, store: &OwnedFd, whole: bool) -> Result<()> {
    let path = &place.store;
    let cleared = || -> std::io::Result<()> {
        assert!(!exists(store.as_fd(), take::TREE)?, "a store with data in it is never thrown away");
        for name in ["marker", "meta", "layers", "copying", "probe", "FORMAT.new", "UNFINISHED.new"] {
            remove_tree(store.as_fd(), OsStr::new(name))?;
        }
        Ok(())
    };
    cleared().map_err(Error::io("clear", path))?;
    journal::clear(store.as_fd())?;
    if whole {
        unlinkat(store, "lock", UnlinkatFlags::NoRemoveDir)
            .map_err(|e| Error::io("clear", path)(e.into()))?;
        std::fs::remove_dir(path).map_err(Error::io("remove", path))?;
        keep_times(place);
        sync_above(path)?;
    }
    Ok(())
}

/// That a store was made, or removed, inside the data dir is not to show in the data dir's times.
fn keep_times(place: &Place) {
    if place.store.parent() == Some(&place.data_dir) {
        let times = (place.stat.atime, place.stat.mtime);
        if let Err(e) = walk::set_times(place.data.as_fd(), OsStr::new("."), times) {
            tracing::debug!("{}: its times are not kept: {e}", place.data_dir.display());
        }
    }
}

pub(crate) fn sync_above(path: &Path) -> Result<()> {
    let above = path.parent().unwrap_or(Path::new("/"));
    let dir = place::open_dir(above).map_err(Error::io("open", above))?;
    nix::unistd::fsync(&dir).map_err(|e| Error::io("sync", above)(e.into()))
}

/// Between two renames the data dir is not there: puts the marker in its place, if that is how things are.
pub(crate) fn put_back(data_dir: &Path, store: Option<&Path>) -> Result<()> {
    let absolute = std::path::absolute(data_dir).map_err(Error::io("find", data_dir))?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else { return Ok(()) };
    match absolute.symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        _ => return Ok(()),
    }
    let Ok(parent) = parent.canonicalize() else { return Ok(()) };
    let path = parent.join(name);
    let candidates = [store.map(place::store_path).transpose()?, place::beside(&path)];
    for store in candidates.into_iter().flatten() {
        let Ok(dir) = open::open_new_dir(&store) else { continue };
        let above = place::open_dir(&parent).map_err(Error::io("open", &parent))?;
        if !matches!(journal::read(dir.as_fd()), Ok(Some(_))) {
            continue;
        }
        let _lock = StoreLock::take(&dir, &store)?;
        // What is put back must be this path's.
        let from = match journal::read(dir.as_fd())? {
            Some(Journal::AdoptPlanned(Way::Swap)) if take::is_taken(dir.as_fd()).unwrap_or(false) => {
                let marker = place::open_dir(&store.join(take::MARKER));
                match marker.and_then(|marker| marker::read(marker.as_fd())) {
                    Ok(Some(named)) if named == store => take::MARKER,
                    _ => continue,
                }
            }
            Some(Journal::AdoptUndoing(Way::Swap)) => {
                let marker = place::open_dir(&store.join(take::MARKER));
                match marker.and_then(|marker| marker::read(marker.as_fd())) {
                    Ok(Some(named)) if named == store => take::TREE,
                    _ => continue,
                }
            }
            Some(Journal::EjectReady(Way::Swap, _)) => match format::check(&dir, &store) {
                Ok(format) if format.data_dir == path => eject::TREE,
                _ => continue,
            },
            _ => continue,
        };
        walk::rename_new((dir.as_fd(), OsStr::new(from)), (above.as_fd(), name))
            .map_err(Error::io("put back", &path))?;
        return sync_above(&path);
    }
    Ok(())
}

/// A complete store: what an interrupted eject left is removed, and the marker is as it should be.
pub(crate) fn confirm(located: &Located) -> Result<()> {
    let dir = place::open_dir(&located.data_dir).map_err(Error::io("open", &located.data_dir))?;
    let store = open::open_dir(&located.store)?;
    let named = marker::read(dir.as_fd()).map_err(Error::io("read the marker in", &located.data_dir))?;
    let format = format::check(&store, &located.store)?;
    let moved = format.data_dir != located.data_dir;
    let began_eject = journal::read(store.as_fd())?.is_some();
    // What somebody wrote here while nothing was mounted would be hidden by the mount.
    let place = Place::of(&located.data_dir, Some(&located.store))?;
    for name in walk::names_in(dir.as_fd()).map_err(Error::io("list", &located.data_dir))? {
        if !take::stays(&place, &name).map_err(Error::io("stat", located.data_dir.join(&name)))? {
            let reason = "lies in the unmounted data dir, where it would be hidden; move it elsewhere first";
            return Err(refuse(&located.data_dir.join(&name), reason));
        }
    }
    let right = named.as_ref() == Some(&located.store) && !moved && !began_eject;
    if right && crate::sys::stat_at(dir.as_fd(), OsStr::new("")).is_ok_and(|s| s.mode == 0o555 && s.pinned) {
        return Ok(());
    }
    let _lock = StoreLock::take(&store, &located.store)?;
    if began_eject {
        eject::give_up(&store, &located.store)?;
    }
    if moved {
        format::write(&store, &located.store, &located.data_dir, format.backend)?;
    }
    let marked = || -> std::io::Result<()> {
        if named.as_ref() != Some(&located.store) {
            marker::open(dir.as_fd())?;
            marker::write(dir.as_fd(), &located.data_dir, &located.store)?;
        }
        marker::close(dir.as_fd())
    };
    marked().map_err(Error::io("write the marker in", &located.data_dir))
}

/// What a store's directory says: the data dir it belongs to, while it is complete and alive.
pub(crate) fn alive(store: &Path) -> Result<Option<PathBuf>> {
    let Ok(dir) = place::open_dir(store) else { return Ok(None) };
    let alive = match journal::read(dir.as_fd())? {
        None | Some(Journal::EjectBuilding) => true,
        Some(Journal::EjectReady(Way::Swap, _)) => {
            !eject::is_given(dir.as_fd()).map_err(Error::io("stat", store))?
        }
        Some(_) => false,
    };
    if !alive {
        return Ok(None);
    }
    match format::check(&dir, store) {
        Ok(format) => Ok(Some(format.data_dir)),
        Err(Error::NotAStore { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}
