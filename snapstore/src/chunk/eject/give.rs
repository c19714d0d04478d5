//! The moment at which a data dir becomes a plain directory, and what follows.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::renameat;
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fsync, unlinkat};

use super::build::follow_xattrs;
use super::{FILES, TREE, refuse};
use crate::chunk::adopt::journal::{self, Journal, RootAttrs, Way};
use crate::chunk::adopt::place::Place;
use crate::chunk::adopt::take::{is_empty_dir, is_root, open_below};
use crate::chunk::adopt::walk::{exchange, exists, names_in, remove_tree, rename_new, set_times};
use crate::chunk::adopt::{LOST_AND_FOUND, marker, stop};
use crate::error::{Error, Result};
use crate::progress::Progress;

/// The marker's directory, where the file system cannot exchange two directories.
const OLD: &str = "old-marker";

/// Whether the tree has taken the marker's place, as far as one can see from a store whose journal says `EjectReady`.
pub(crate) fn is_given(store: BorrowedFd<'_>) -> io::Result<bool> {
    match open_below(store, TREE) {
        Ok(dir) => Ok(marker::read(dir.as_fd())?.is_some()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e),
    }
}

/// Everything from the moment that decides on. Can be done again from any point.
pub(crate) fn go_on(
    place: &Place,
    store: &OwnedFd,
    way: Way,
    root: &RootAttrs,
    progress: &dyn Progress,
) -> Result<()> {
    let io = |op: &'static str| Error::io(op, &place.data_dir);
    match way {
        Way::Swap => swap(place, store.as_fd(), root).map_err(io("give back"))?,
        Way::Entries => entries(place, store.as_fd())?,
    }
    stop::here();
    let dir = open_below(place.parent.as_fd(), &place.name).map_err(io("open"))?;
    for (name, mode) in &root.closed {
        let mode = Mode::from_bits_truncate(*mode);
        fchmodat(&dir, OsStr::from_bytes(name), mode, FchmodatFlags::FollowSymlink)
            .map_err(|e| io("set the modes in")(e.into()))?;
    }
    owner_and_mode(&dir, root).map_err(io("set the attributes of"))?;
    // Once now, should this be stopped; and once more when a store inside is gone.
    set_times(place.parent.as_fd(), &place.name, root.times()).map_err(io("set the times of"))?;
    progress.step("removing the store", None);
    remove_store(place, store).map_err(Error::io("remove", &place.store))?;
    set_times(place.parent.as_fd(), &place.name, root.times()).map_err(io("set the times of"))?;
    fsync(&place.parent).map_err(|e| io("sync")(e.into()))
}

fn swap(place: &Place, store: BorrowedFd<'_>, root: &RootAttrs) -> io::Result<()> {
    if is_given(store)? {
        return Ok(());
    }
    let (parent, name) = (place.parent.as_fd(), place.name.as_os_str());
    let tree = open_below(store, TREE)?;
    if is_root() {
        owner_and_mode(&tree, root)?;
    }
    marker::open(place.data.as_fd())?;
    stop::here();
    if !exchange((parent, name), (store, OsStr::new(TREE)))? {
        renameat(parent, name, store, OLD)?;
        stop::here();
        renameat(store, TREE, parent, name)?;
    }
    stop::here();
    fsync(parent)?;
    Ok(fsync(store)?)
}

fn entries(place: &Place, store: BorrowedFd<'_>) -> Result<()> {
    let io = |op: &'static str, name: &OsStr| Error::io(op, place.data_dir.join(name));
    let dir = place.data.as_fd();
    marker::open(dir).map_err(io("open", OsStr::new("")))?;
    stop::here();
    if let Ok(tree) = open_below(store, TREE) {
        follow_xattrs((tree.as_fd(), OsStr::new("")), (dir, OsStr::new("")))
            .map_err(io("set the attributes of", OsStr::new("")))?;
        for name in names_in(tree.as_fd()).map_err(Error::io("list", place.store.join(TREE)))? {
            match rename_new((tree.as_fd(), &name), (dir, &name)) {
                // The file system's own, which has stayed.
                Err(e)
                    if e.raw_os_error() == Some(libc::EEXIST)
                        && name == LOST_AND_FOUND
                        && is_empty_dir(dir, &name).map_err(io("stat", &name))? =>
                {
                    renameat(&tree, name.as_os_str(), dir, name.as_os_str())
                        .map_err(|e| io("give back", &name)(e.into()))?;
                }
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                    return Err(refuse(
                        &place.data_dir.join(&name),
                        "was written while the data dir was being given back; move it elsewhere, and eject again",
                    ));
                }
                moved => moved.map_err(io("give back", &name))?,
            }
            stop::here();
        }
    }
    let end = || -> io::Result<()> {
        fsync(dir)?;
        match unlinkat(dir, marker::NAME, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(nix::Error::ENOENT) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(fsync(dir)?)
    };
    end().map_err(io("remove the marker in", OsStr::new("")))
}

/// The journal goes last, so that what is left is known for what it is.
fn remove_store(place: &Place, store: &OwnedFd) -> io::Result<()> {
    let at = store.as_fd();
    remove_tree(at, OsStr::new("FORMAT"))?;
    fsync(store)?;
    stop::here();
    for name in names_in(at)? {
        if name != journal::NAME && name != "lock" {
            remove_tree(at, &name)?;
            stop::here();
        }
    }
    fsync(store)?;
    remove_tree(at, OsStr::new(journal::NAME))?;
    stop::here();
    remove_tree(at, OsStr::new("lock"))?;
    std::fs::remove_dir(&place.store)
}

/// Clears away what an eject that never came to its decisive moment has left.
pub(crate) fn give_up(store: &OwnedFd, path: &Path) -> Result<()> {
    let io = |op: &'static str| Error::io(op, path);
    if let Some(Journal::EjectReady(way, _)) = journal::read(store.as_fd())? {
        let given = way == Way::Entries || is_given(store.as_fd()).map_err(io("stat"))?;
        assert!(!given, "a tree that was given back is not cleared away");
    }
    for name in [TREE, FILES] {
        remove_tree(store.as_fd(), OsStr::new(name)).map_err(io("clear"))?;
    }
    if !is_root() {
        layers_writable(store.as_fd()).map_err(io("chmod the layers in"))?;
    }
    journal::clear(store.as_fd())
}

/// A file's mode is its layer's too, once they are linked; the layer has to be written.
fn layers_writable(store: BorrowedFd<'_>) -> io::Result<()> {
    if !exists(store, "layers")? {
        return Ok(());
    }
    let layers = open_below(store, "layers")?;
    for dir in names_in(layers.as_fd())? {
        let dir = open_below(layers.as_fd(), &dir)?;
        for name in names_in(dir.as_fd())? {
            let mode = crate::sys::stat_at(dir.as_fd(), &name)?.mode;
            if mode & 0o600 != 0o600 {
                let mode = Mode::from_bits_truncate(mode & 0o777 | 0o600);
                fchmodat(&dir, name.as_os_str(), mode, FchmodatFlags::FollowSymlink)?;
            }
        }
    }
    Ok(())
}

fn owner_and_mode(dir: &OwnedFd, root: &RootAttrs) -> io::Result<()> {
    let now = crate::sys::stat_at(dir.as_fd(), OsStr::new(""))?;
    if (now.uid, now.gid) != (root.uid, root.gid) {
        fchown(dir, Some(Uid::from_raw(root.uid)), Some(Gid::from_raw(root.gid)))?;
    }
    Ok(fchmod(dir, Mode::from_bits_truncate(root.mode))?)
}
