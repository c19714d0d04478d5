//! From the taken tree to the store: each file becomes the base layer of its inode, by rename.
//!
//! The rows say what there must be, so that this can be done again from any point: a file that is in its place
//! already is passed over, another name of it is removed, and what no row speaks of is put aside. Should a program
//! have written to a file, or removed one, between the reading of its attributes and the exchange, the rows follow
//! what is there.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::scan::layer_row;
use super::strays::Strays;
use super::take::{TREE, is_root};
use super::walk::{Cursor, exists, rename_new};
use super::{BASE, HEAD, copy, stop};
use crate::chunk::lineage::EpochRow;
use crate::chunk::meta::Meta;
use crate::chunk::rows::{DentryRow, InodeRow, Key, KeyKind, LayerFile, LayerRow, Row};
use crate::chunk::snapshots::{epoch_row, json};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::sys::{Stat, stat_at};
use crate::types::{EpochId, FileKind, Ino};

/// Moves everything from `adopting/` to where it belongs. Afterwards the store is complete but for its `FORMAT`.
pub(crate) fn settle(
    disk: &dyn Disk,
    meta: &Meta,
    store: BorrowedFd<'_>,
    path: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    let total = meta.count_touched(BASE, u64::MAX)?;
    progress.step("moving the files", Some(total));
    if exists(store, TREE).map_err(Error::io("stat", path.join(TREE)))? {
        let work = Work { disk, meta, store, progress };
        work.tree(path)?;
    }
    let dirs = disk.list("layers").map_err(Error::io("list", path.join("layers")))?;
    for dir in dirs {
        let dir = format!("layers/{dir}");
        disk.sync_dir(&dir).map_err(Error::io("sync", path.join(&dir)))?;
    }
    disk.sync_dir("layers").map_err(Error::io("sync", path.join("layers")))?;
    disk.sync_dir("").map_err(Error::io("sync", path))?;
    verify(disk, meta)
}

struct Work<'a> {
    disk: &'a dyn Disk,
    meta: &'a Meta,
    store: BorrowedFd<'a>,
    progress: &'a dyn Progress,
}

impl Work<'_> {
    fn tree(&self, path: &Path) -> Result<()> {
        let mut strays = Strays::new(self.store, path);
        let open = Error::io("open", path.join(TREE));
        let mut cursor = Cursor::open(self.store, OsStr::new("."), path).map_err(open)?;
        let io = |op: &'static str, c: &Cursor, name: &OsStr| Error::io(op, c.path(name));
        let tree = OsStr::new(TREE);
        cursor.enter_ours(tree).map_err(|e| io("open", &cursor, tree)(e))?;
        let names = cursor.names().map_err(|e| io("list", &cursor, OsStr::new(""))(e))?;
        let mut frames: Vec<(Ino, std::vec::IntoIter<OsString>)> = vec![(Ino::ROOT, names.into_iter())];
        while let Some((dir, names)) = frames.last_mut() {
            let Some(name) = names.next() else {
                frames.pop();
                let done = cursor.leave().map_err(|e| io("leave", &cursor, OsStr::new(""))(e))?;
                unlinkat(cursor.dir(), done.as_os_str(), UnlinkatFlags::RemoveDir)
                    .map_err(|e| io("remove", &cursor, &done)(e.into()))?;
                stop::here();
                continue;
            };
            let row = self.meta.row_at(&Key::dentry(*dir, name.as_encoded_bytes()), BASE)?.flatten();
            let entry = row.map(|r| DentryRow::decode(&r)).transpose()?;
            let stat = cursor.stat(&name).map_err(|e| io("stat", &cursor, &name)(e))?;
            match entry.filter(|e| stat.kind == Some(e.kind)) {
                None => {
                    let was = cursor.path(&name);
                    strays.take(cursor.dir(), &name, was.strip_prefix(path).unwrap_or(&was))?;
                }
                Some(entry) if entry.kind == FileKind::Directory => {
                    cursor.enter_ours(&name).map_err(|e| io("open", &cursor, &name)(e))?;
                    let names = cursor.names().map_err(|e| io("list", &cursor, OsStr::new(""))(e))?;
                    frames.push((entry.ino, names.into_iter()));
                }
                Some(entry) if entry.kind == FileKind::Regular => {
                    if !self.file(&cursor, &name, entry.ino, &stat)? {
                        strays.take(cursor.dir(), &name, &cursor.path(&name))?;
                    }
                }
                Some(_) => remove(&cursor, &name)?,
            }
            self.progress.advance(1);
            stop::here();
        }
        Ok(())
    }

    /// Moves one file to its layer. False when another file is there already.
    fn file(&self, cursor: &Cursor, name: &OsStr, ino: Ino, stat: &Stat) -> Result<bool> {
        let path = LayerFile { epoch: BASE, turn: 0 }.path(ino);
        let io = |op: &'static str| Error::io(op, cursor.path(name));
        let there = match stat_at(self.store, path.as_ref()) {
            Ok(there) => Some(there),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::io("stat", path)(e)),
        };
        if there.is_some_and(|there| there.id != stat.id) {
            // Another file: a copy of this one, which is not needed any more, or something that does not belong here.
            if !copy::is_copied(cursor, name, self.disk, &path).map_err(io("compare"))? {
                return Ok(false);
            }
            remove(cursor, name)?;
            return Ok(true);
        }
        let row = self.meta.row_at(&Key::layer(ino), BASE)?.flatten();
        let row = row.map(|r| LayerRow::decode(&r)).transpose()?;
        if row.as_ref().map_or(0, |r| r.size) != stat.size {
            self.follow(cursor, name, ino, stat)?;
        }
        if stat.size == 0 {
            if there.is_some() {
                self.disk.remove(&path).map_err(Error::io("remove", &path))?;
            }
            remove(cursor, name)?;
            return Ok(true);
        }
        if !is_root() && stat.mode & 0o600 != 0o600 {
            // The mode is in the metadata; the layer has to be written.
            let mode = Mode::from_bits_truncate(stat.mode & 0o777 | 0o600);
            fchmodat(cursor.dir(), name, mode, FchmodatFlags::FollowSymlink)
                .map_err(|e| io("chmod")(e.into()))?;
        }
        if there.is_some() {
            remove(cursor, name)?;
            return Ok(true);
        }
        let take = || match stop::can_rename() {
            true => rename_new((cursor.dir(), name), (self.store, OsStr::new(&path))),
            false => Err(io::ErrorKind::CrossesDevices.into()),
        };
        let dir = LayerFile::dir(ino);
        let taken = match take() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.disk.create_dir(&dir).map_err(Error::io("create", &dir))?;
                take()
            }
            done => done,
        };
        match taken {
            // The file belongs to another project than the store, say. There is no way back, so it is copied.
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                if self.disk.stat(&dir).map_err(Error::io("stat", &dir))?.is_none() {
                    self.disk.create_dir(&dir).map_err(Error::io("create", &dir))?;
                }
                copy::copy(cursor, name, (self.store, self.disk), &path)
                    .map_err(io("copy into the store"))?;
                stop::here();
                remove(cursor, name)?;
            }
            done => done.map_err(io("move"))?,
        }
        Ok(true)
    }

    /// A file was written after its attributes were read: the rows say what it is now.
    fn follow(&self, cursor: &Cursor, name: &OsStr, ino: Ino, stat: &Stat) -> Result<()> {
        tracing::warn!("{}: written while it was being adopted", cursor.path(name).display());
        let inode = self.meta.row_at(&Key::inode(ino), BASE)?.flatten();
        let inode = inode.map(|r| InodeRow::decode(&r)).transpose()?;
        let layer = layer_row(cursor, name, stat);
        self.meta.rewrite(|w| {
            if let Some(row) = inode {
                let row = InodeRow { mtime: stat.mtime, ctime: stat.ctime, ..row };
                w.put(&Key::inode(ino), BASE, Some(&row.encode()))?;
            }
            match stat.size {
                0 => w.remove(&Key::layer(ino), BASE),
                _ => w.put(&Key::layer(ino), BASE, Some(&layer.encode())),
            }
        })
    }
}

fn remove(cursor: &Cursor, name: &OsStr) -> Result<()> {
    unlinkat(cursor.dir(), name, UnlinkatFlags::NoRemoveDir)
        .map_err(|e| Error::io("remove", cursor.path(name))(e.into()))
}

/// Sees to it that each layer has its file, and that the count of chunks is right.
fn verify(disk: &dyn Disk, meta: &Meta) -> Result<()> {
    let (mut chunks, mut missing) = (0, HashSet::new());
    meta.for_each_row(|key, _, value| {
        if let (KeyKind::Layer(ino), Some(bytes)) = (key.kind(), value) {
            let row = LayerRow::decode(bytes)?;
            let path = row.file.path(ino);
            match disk.stat(&path).map_err(Error::io("stat", &path))? {
                Some(_) => chunks += row.visible,
                None => {
                    missing.insert(ino);
                }
            }
        }
        Ok(())
    })?;
    let gone = if missing.is_empty() { Vec::new() } else { rows_of(meta, &missing)? };
    meta.rewrite(|w| {
        for (key, epoch) in &gone {
            w.remove(key, *epoch)?;
        }
        w.control(&epoch_row(BASE), Some(&json(&base_row(chunks))))?;
        w.control(&epoch_row(HEAD), Some(&json(&EpochRow::begun(Some(BASE), Some(chunks)))))
    })
}

/// The epoch of what was adopted: final from the start.
pub(crate) fn base_row(chunks: u64) -> EpochRow {
    EpochRow { sealed: true, chunks, ..EpochRow::begun(None, Some(0)) }
}

/// The rows of files that were removed while they were being adopted.
fn rows_of(meta: &Meta, inos: &HashSet<Ino>) -> Result<Vec<(Key, EpochId)>> {
    let mut rows = Vec::new();
    meta.for_each_row(|key, epoch, value| {
        let ino = match key.kind() {
            KeyKind::Inode(ino) | KeyKind::Layer(ino) | KeyKind::Xattr(ino, _) => ino,
            KeyKind::Dentry(_, name) => {
                let ino = value.map(DentryRow::decode).transpose()?.map_or(Ino(0), |row| row.ino);
                if inos.contains(&ino) {
                    let name = super::walk::shown(OsStr::from_encoded(name));
                    tracing::warn!("{name}: removed by somebody while it was being adopted");
                }
                ino
            }
        };
        if inos.contains(&ino) {
            rows.push((key.clone(), epoch));
        }
        Ok(())
    })?;
    Ok(rows)
}

trait FromEncoded {
    fn from_encoded(bytes: &[u8]) -> &OsStr;
}

impl FromEncoded for OsStr {
    fn from_encoded(bytes: &[u8]) -> &OsStr {
        std::os::unix::ffi::OsStrExt::from_bytes(bytes)
    }
}
