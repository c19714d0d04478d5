//! The moment at which a data dir becomes a tmfs data dir.
//!
//! **By exchange** (`Way::Swap`): the marker directory lies ready in the store, and one `renameat2` puts it in the
//! place of the data dir, which is then `adopting/` in the store. Where the file system cannot exchange, two renames
//! do it; between them the data dir is not there, and the next `tmfs mount` puts the marker in its place.
//!
//! **Entry by entry** (`Way::Entries`): the marker file is written into the data dir, which decides; then the
//! entries are renamed to `adopting/`. An interrupted move goes on with the next `tmfs mount`, whatever else has
//! been written there meanwhile is put aside.
//!
//! | in the store | means |
//! |---|---|
//! | `marker/` with the marker file | nothing has happened yet |
//! | `marker/` without it | exchanged: it is the data |
//! | `adopting/` | taken (or, entry by entry, being taken) |

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{Gid, Uid, fchown, fsync};

use super::place::Place;
use super::strays::Strays;
use super::walk::{self, exists, names_in, rename_new};
use super::{HIDDEN, LOST_AND_FOUND, marker, stop};
use crate::error::{Error, Result};
use crate::sys::stat_at;
use crate::types::FileKind;

/// The marker directory, before the exchange.
pub(crate) const MARKER: &str = "marker";
/// The data, after it.
pub(crate) const TREE: &str = "adopting";

/// Opens a directory below another.
pub(crate) fn open_below(dir: BorrowedFd<'_>, name: impl AsRef<OsStr>) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    Ok(openat(dir, name.as_ref(), flags, Mode::empty())?)
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Makes the directory that will take the data dir's place.
pub(crate) fn prepare_marker(place: &Place, store: BorrowedFd<'_>) -> Result<()> {
    let made = || -> io::Result<()> {
        mkdirat(store, MARKER, Mode::from_bits_truncate(0o700))?;
        let dir = open_below(store, MARKER)?;
        marker::write(dir.as_fd(), &place.data_dir, &place.store)?;
        if is_root() {
            let (uid, gid) = (Uid::from_raw(place.stat.uid), Gid::from_raw(place.stat.gid));
            fchown(&dir, Some(uid), Some(gid))?;
        }
        // Whoever is not root needs to be able to write a directory in order to move it elsewhere.
        fchmod(&dir, Mode::from_bits_truncate(if is_root() { 0o555 } else { 0o755 }))?;
        fsync(&dir)?;
        Ok(fsync(store)?)
    };
    made().map_err(Error::io("make the marker in", &place.store))
}

/// Whether the exchange has happened, as far as one can see from the store.
pub(crate) fn is_taken(store: BorrowedFd<'_>) -> io::Result<bool> {
    if exists(store, TREE)? {
        return Ok(true);
    }
    match open_below(store, MARKER) {
        Ok(dir) => Ok(marker::read(dir.as_fd())?.is_none()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Puts the marker in the data dir's place. An error leaves everything as it was.
pub(crate) fn exchange(place: &Place, store: BorrowedFd<'_>) -> io::Result<()> {
    let (parent, name) = (place.parent.as_fd(), place.name.as_os_str());
    if stat_at(parent, name)?.id != place.stat.id {
        return Err(io::Error::other("the directory was replaced by another meanwhile"));
    }
    if !walk::exchange((parent, name), (store, OsStr::new(MARKER)))? {
        renameat(parent, name, store, TREE)?;
        stop::here();
        if let Err(e) = renameat(store, MARKER, parent, name) {
            renameat(store, TREE, parent, name)?;
            return Err(e.into());
        }
    }
    Ok(())
}

/// Completes an exchange that has happened, or its first half.
pub(crate) fn after_exchange(parent: BorrowedFd<'_>, name: &OsStr, store: BorrowedFd<'_>) -> io::Result<()> {
    stop::here();
    if exists(store, TREE)? {
        if exists(store, MARKER)? && !exists(parent, name)? {
            renameat(store, MARKER, parent, name)?;
        }
    } else {
        renameat(store, MARKER, store, TREE)?;
    }
    stop::here();
    let dir = open_below(parent, name)?;
    if marker::read(dir.as_fd())?.is_some() {
        marker::close(dir.as_fd())?;
    }
    fsync(parent)?;
    Ok(fsync(store)?)
}

/// Begins to take the entries: an interrupted adoption goes on from here.
pub(crate) fn mark_entries(place: &Place) -> io::Result<()> {
    let dir = place.data.as_fd();
    marker::write(dir, &place.data_dir, &place.store)?;
    stop::here();
    fchmod(dir, Mode::from_bits_truncate(if is_root() { 0o555 } else { 0o700 }))?;
    Ok(fsync(dir)?)
}

/// Moves the entries of the data dir into the store. `known` says whether a name is one of them.
pub(crate) fn move_entries(
    place: &Place,
    store: BorrowedFd<'_>,
    known: impl Fn(&OsStr) -> Result<bool>,
) -> Result<()> {
    let io = |op: &'static str, name: &OsStr| Error::io(op, place.data_dir.join(name));
    let dir = place.data.as_fd();
    match mkdirat(store, TREE, Mode::from_bits_truncate(0o700)) {
        Ok(()) | Err(nix::Error::EEXIST) => {}
        Err(e) => return Err(Error::io("create", place.store.join(TREE))(e.into())),
    }
    let tree = open_below(store, TREE).map_err(Error::io("open", place.store.join(TREE)))?;
    let mut strays = Strays::new(store, &place.store);
    for name in names_in(dir).map_err(Error::io("list", &place.data_dir))? {
        if stays(place, &name).map_err(io("stat", &name))? {
            continue;
        }
        if known(&name)? && !exists(tree.as_fd(), &name).map_err(io("stat", &name))? {
            movable(dir, &name).map_err(io("move", &name))?;
            rename_new((dir, &name), (tree.as_fd(), &name)).map_err(io("move", &name))?;
        } else {
            strays.take(dir, &name, &place.data_dir.join(&name))?;
        }
        stop::here();
    }
    let end = || -> io::Result<()> {
        fsync(&tree)?;
        fsync(dir)?;
        marker::close(dir)?;
        Ok(fsync(dir)?)
    };
    end().map_err(Error::io("close", &place.data_dir))
}

/// A directory that its owner may not write cannot be moved by him.
pub(crate) fn movable(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    use nix::sys::stat::{FchmodatFlags, fchmodat};
    if is_root() {
        return Ok(());
    }
    let stat = stat_at(dir, name)?;
    if stat.kind == Some(FileKind::Directory) && stat.mode & 0o700 != 0o700 {
        let mode = Mode::from_bits_truncate(stat.mode | 0o700);
        fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    Ok(())
}

/// What stays in a data dir whose entries are moved: the marker, the store, and the file system's own `lost+found`.
pub(crate) fn stays(place: &Place, name: &OsStr) -> io::Result<bool> {
    if name == marker::NAME || name.as_encoded_bytes().starts_with(b"THIS-IS-A-TMFS-DATA-DIR.txt.new") {
        return Ok(true);
    }
    if place.data_dir.join(name) == place.store || name == HIDDEN {
        return Ok(true);
    }
    Ok(name == LOST_AND_FOUND && is_empty_dir(place.data.as_fd(), name)?)
}

pub(crate) fn is_empty_dir(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
    if stat_at(dir, name)?.kind != Some(FileKind::Directory) {
        return Ok(false);
    }
    let names: Vec<OsString> = match open_below(dir, name) {
        Ok(inner) => names_in(inner.as_fd())?,
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(false),
        Err(e) => return Err(e),
    };
    Ok(names.is_empty())
}
