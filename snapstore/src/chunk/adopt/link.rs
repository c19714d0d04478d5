//! Before anything leaves its place: each file gets a second name, that of its layer.
//!
//! Whatever fails here (an immutable file, a full disk, one that cannot be read) leaves the tree as it was, so that
//! everything can be put back ([`super::undo`]). When all files have their names, removing the old ones is all that is
//! left.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::BorrowedFd;

use nix::fcntl::AtFlags;
use nix::unistd::linkat;

use super::place::{NESTED, Place};
use super::take::TREE;
use super::walk::{Cursor, exists};
use super::{BASE, copy, refuse, stop};
use crate::chunk::meta::Meta;
use crate::chunk::rows::{DentryRow, Key, LayerFile, Row};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::sys::Stat;
use crate::types::{FileKind, Ino};

/// Gives each file of `adopting/` the name of its layer. Can be done again from any point.
pub(super) fn link(place: &Place, disk: &dyn Disk, meta: &Meta, store: BorrowedFd<'_>) -> Result<()> {
    let io = |op: &'static str, c: &Cursor, name: &OsStr| Error::io(op, c.path(name));
    let here = OsStr::new("");
    let mut cursor = Cursor::open(store, OsStr::new(TREE), &place.data_dir)
        .map_err(Error::io("open", place.store.join(TREE)))?;
    let root = cursor.stat(here).map_err(|e| io("stat", &cursor, here)(e))?;
    check(&cursor, here, &root, root.id.0)?;
    let names = cursor.names().map_err(|e| io("list", &cursor, here)(e))?;
    let mut frames: Vec<(Ino, std::vec::IntoIter<OsString>)> = vec![(Ino::ROOT, names.into_iter())];
    while let Some((dir, names)) = frames.last_mut() {
        let Some(name) = names.next() else {
            frames.pop();
            if !frames.is_empty() {
                cursor.leave().map_err(|e| io("leave", &cursor, here)(e))?;
            }
            continue;
        };
        let stat = cursor.stat(&name).map_err(|e| io("stat", &cursor, &name)(e))?;
        check(&cursor, &name, &stat, root.id.0)?;
        let row = meta.row_at(&Key::dentry(*dir, name.as_encoded_bytes()), BASE)?.flatten();
        let entry = row.map(|r| DentryRow::decode(&r)).transpose()?;
        // What is in no row is put aside later.
        let Some(entry) = entry.filter(|e| stat.kind == Some(e.kind)) else { continue };
        if entry.kind == FileKind::Directory {
            cursor.enter(&name).map_err(|e| io("open", &cursor, &name)(e))?;
            let names = cursor.names().map_err(|e| io("list", &cursor, here)(e))?;
            frames.push((entry.ino, names.into_iter()));
        } else if entry.kind == FileKind::Regular && stat.size > 0 {
            file(&cursor, &name, entry.ino, (store, disk))?;
            stop::here();
        }
    }
    Ok(())
}

/// Refuses what could not be removed from its place afterwards.
fn check(cursor: &Cursor, name: &OsStr, stat: &Stat, device: u64) -> Result<()> {
    if stat.pinned {
        return Err(refuse(
            &cursor.path(name),
            "was given the immutable or the append-only flag while it was being adopted; clear it with `chattr -ia`",
        ));
    }
    if stat.mount_root || stat.id.0 != device {
        return Err(refuse(&cursor.path(name), NESTED));
    }
    Ok(())
}

fn file(cursor: &Cursor, name: &OsStr, ino: Ino, (store, disk): (BorrowedFd<'_>, &dyn Disk)) -> Result<()> {
    let io = |op: &'static str| Error::io(op, cursor.path(name));
    let path = LayerFile { epoch: BASE, turn: 0 }.path(ino);
    // Another name of it was met before, or this was interrupted.
    if exists(store, &path).map_err(Error::io("stat", &path))? {
        return Ok(());
    }
    let dir = LayerFile::dir(ino);
    if disk.stat(&dir).map_err(Error::io("stat", &dir))?.is_none() {
        disk.create_dir(&dir).map_err(Error::io("create", &dir))?;
    }
    let linked = match stop::link_error() {
        Some(e) => Err(e),
        None => linkat(cursor.dir(), name, store, path.as_str(), AtFlags::empty()).map_err(io::Error::from),
    };
    match linked {
        // The file belongs to another project than the store, say.
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            copy::copy(cursor, name, (store, disk), &path).map_err(io("copy into the store"))
        }
        // The file has all the names that it can have, or no file here can have two: it will be renamed.
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::EMLINK | libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS)
            ) =>
        {
            Ok(())
        }
        done => done.map_err(io("link into the store")),
    }
}
