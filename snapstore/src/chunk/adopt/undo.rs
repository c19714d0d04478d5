//! Puts everything back, after the moment that decides and before anything has left its place in the tree.
//!
//! The journal says so first ([`Journal::AdoptUndoing`]); each step can be done again. Afterwards the directory is plain,
//! and there is no store.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::renameat;
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat};
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use super::journal::{self, Journal, Way};
use super::place::Place;
use super::strays::STRAYS;
use super::take::{MARKER, TREE, open_below};
use super::walk::{self, exists, names_in, rename_new};
use super::{BASE, discard, marker, refuse, stop};
use crate::chunk::meta::Meta;
use crate::chunk::rows::{DentryRow, InodeRow, Key, Row};
use crate::error::{Error, Result};
use crate::sys::stat_at;
use crate::types::{FileKind, Ino};

/// Puts everything back. The store's directory is gone afterwards.
pub(super) fn undo(place: &Place, store: &OwnedFd, meta: Meta, way: Way) -> Result<()> {
    let failed = |e| Error::io("put back", &place.data_dir)(e);
    journal::write(store.as_fd(), &Journal::AdoptUndoing(way))?;
    stop::here();
    let root = inode(&meta, Ino::ROOT)?;
    match way {
        Way::Swap => {
            meta.close();
            drop(meta);
            exchange_back(place, store.as_fd())?;
        }
        Way::Entries => {
            entries_back(place, store.as_fd(), &meta)?;
            meta.close();
            drop(meta);
            let dir = place.data.as_fd();
            let unmark = || -> io::Result<()> {
                match unlinkat(dir, marker::NAME, UnlinkatFlags::NoRemoveDir) {
                    Ok(()) | Err(nix::Error::ENOENT) => {}
                    Err(e) => return Err(e.into()),
                }
                if let Some(root) = &root {
                    fchmod(dir, Mode::from_bits_truncate(root.mode))?;
                    walk::set_times(dir, OsStr::new("."), (root.atime, root.mtime))?;
                }
                Ok(fsync(dir)?)
            };
            unmark().map_err(failed)?;
        }
    }
    stop::here();
    // The rest is to throw the plan away, for which no metadata is needed.
    journal::write(store.as_fd(), &Journal::AdoptPlanning)?;
    stop::here();
    discard(place, store, true)?;
    // A store inside was an entry, which its removal shows in the directory's times.
    if let (Way::Entries, Some(root)) = (way, root) {
        walk::set_times(place.data.as_fd(), OsStr::new("."), (root.atime, root.mtime)).map_err(failed)?;
    }
    Ok(())
}

fn inode(meta: &Meta, ino: Ino) -> Result<Option<InodeRow>> {
    meta.row_at(&Key::inode(ino), BASE)?.flatten().map(|row| InodeRow::decode(&row)).transpose()
}

/// The data dir and the marker change places again.
fn exchange_back(place: &Place, store: BorrowedFd<'_>) -> Result<()> {
    let (parent, name) = (place.parent.as_fd(), place.name.as_os_str());
    let is_marker = |dir: &OwnedFd| Ok::<_, io::Error>(marker::read(dir.as_fd())?.is_some());
    let back = || -> io::Result<bool> {
        if exists(store, TREE)? && !is_marker(&open_below(store, TREE)?)? {
            if exists(parent, name)? {
                let there = open_below(parent, name)?;
                if !is_marker(&there)? {
                    return Ok(false);
                }
                marker::open(there.as_fd())?;
                stop::here();
                if !walk::exchange((parent, name), (store, OsStr::new(TREE)))? {
                    rename_new((parent, name), (store, OsStr::new(MARKER)))?;
                    stop::here();
                    rename_new((store, OsStr::new(TREE)), (parent, name))?;
                }
            } else {
                rename_new((store, OsStr::new(TREE)), (parent, name))?;
            }
            stop::here();
        }
        if exists(store, TREE)? {
            renameat(store, TREE, store, MARKER)?;
        }
        fsync(parent)?;
        fsync(store)?;
        Ok(true)
    };
    match back().map_err(Error::io("put back", &place.data_dir))? {
        true => Ok(()),
        false => Err(refuse(
            &place.data_dir,
            format!("something else lies in its place; what was there is kept in {}", place.store.display()),
        )),
    }
}

/// The entries go back to the data dir, and so do those that were put aside.
fn entries_back(place: &Place, store: BorrowedFd<'_>, meta: &Meta) -> Result<()> {
    let dir = place.data.as_fd();
    let io = |name: &OsStr| Error::io("put back", place.data_dir.join(name));
    let nothing = OsStr::new("");
    marker::open(dir).map_err(io(nothing))?;
    if exists(store, TREE).map_err(io(nothing))? {
        let tree = open_below(store, TREE).map_err(io(nothing))?;
        for name in names_in(tree.as_fd()).map_err(io(nothing))? {
            rename_new((tree.as_fd(), &name), (dir, &name)).map_err(io(&name))?;
            stop::here();
        }
        let end = || -> io::Result<()> {
            fsync(&tree)?;
            fsync(dir)?;
            unlinkat(store, TREE, UnlinkatFlags::RemoveDir)?;
            Ok(fsync(store)?)
        };
        end().map_err(io(nothing))?;
    }
    // Whoever is not root had to let himself write directories in order to move them.
    for name in names_in(dir).map_err(io(nothing))? {
        let row = meta.row_at(&Key::dentry(Ino::ROOT, name.as_encoded_bytes()), BASE)?.flatten();
        let entry = row.map(|row| DentryRow::decode(&row)).transpose()?;
        let Some(entry) = entry.filter(|entry| entry.kind == FileKind::Directory) else { continue };
        let Some(wanted) = inode(meta, entry.ino)? else { continue };
        let stat = stat_at(dir, &name).map_err(io(&name))?;
        if stat.kind == Some(FileKind::Directory)
            && stat.mode == wanted.mode | 0o700
            && stat.mode != wanted.mode
        {
            let mode = Mode::from_bits_truncate(wanted.mode);
            fchmodat(dir, name.as_os_str(), mode, FchmodatFlags::FollowSymlink)
                .map_err(|e| io(&name)(e.into()))?;
        }
    }
    strays_back(dir, store).map_err(io(nothing))
}

fn strays_back(dir: BorrowedFd<'_>, store: BorrowedFd<'_>) -> io::Result<()> {
    if !exists(store, STRAYS)? {
        return Ok(());
    }
    let strays = open_below(store, STRAYS)?;
    for batch in names_in(strays.as_fd())? {
        let numbers = open_below(strays.as_fd(), &batch)?;
        for number in names_in(numbers.as_fd())? {
            let one = open_below(numbers.as_fd(), &number)?;
            for name in names_in(one.as_fd())? {
                rename_new((one.as_fd(), &name), (dir, &name))?;
            }
            unlinkat(&numbers, number.as_os_str(), UnlinkatFlags::RemoveDir)?;
        }
        unlinkat(&strays, batch.as_os_str(), UnlinkatFlags::RemoveDir)?;
    }
    fsync(dir)?;
    Ok(unlinkat(store, STRAYS, UnlinkatFlags::RemoveDir)?)
}
