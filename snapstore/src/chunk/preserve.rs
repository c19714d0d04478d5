//! Carrying files over from the head that a rollback leaves: what must not go back in time.
//!
//! Everything is prepared before the switch, in the epoch that is about to begin: the files are copied into layers of
//! their own and synced, their rows are part of the commit that switches. So a crash leaves the old head, or the new
//! one with the carried files in it (and, before the commit, layer files that no row knows, which recovery removes).
//!
//! A carried file is a new inode: its number in the target tree may be taken by what the snapshot has there, and the
//! kernel must not mistake one for the other. [`Target`] is the tree that the switch will make: the snapshot's rows,
//! and above them those that are being put together.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::core::{Core, HeadState, Scope};
use super::layer;
use super::lineage::Lineage;
use super::meta::{Batch, Value};
use super::rows::{DentryRow, InodeRow, Key, LayerFile, LayerRow, Row};
use super::tree::Lookup;
use crate::backend::Seek;
use crate::error::{Error, Result};
use crate::types::{EpochId, FileKind, Ino, Timestamp};

/// What is carried over: rows of the new epoch.
#[derive(Default)]
pub(crate) struct Carried {
    pub rows: Batch,
    /// The inodes at the carried paths.
    pub changed: Vec<Ino>,
}

/// Refuses paths that cannot be carried over from the live head.
pub(crate) fn check(core: &Arc<Core>, paths: &[PathBuf]) -> Result<()> {
    let head = core.head();
    let lookup = Lookup { core, lineage: &head.lineage };
    paths.iter().try_for_each(|path| find(&lookup, path, &names(path)?).map(|_| ()))
}

/// Copies the paths from the `old` head into rows and layers of `epoch`, above the tree of `onto`.
pub(crate) fn carry(
    core: &Arc<Core>,
    old: &HeadState,
    onto: &Lineage,
    epoch: EpochId,
    paths: &[PathBuf],
) -> Result<Carried> {
    let mut wanted: Vec<(Vec<OsString>, &Path)> =
        paths.iter().map(|p| Ok((names(p)?, p.as_path()))).collect::<Result<_>>()?;
    if wanted.is_empty() {
        return Ok(Carried::default());
    }
    // A path below another one comes along with that; sorted, it follows it.
    wanted.sort();
    wanted.dedup_by(|next, kept| next.0.starts_with(&kept.0));
    let mut carry = Carry {
        old: Lookup { core, lineage: &old.lineage },
        scope: Scope::Head(Arc::clone(&old.instance)),
        target: Target { below: Lookup { core, lineage: onto }, rows: BTreeMap::new() },
        core,
        epoch,
        now: Timestamp::now(),
        inodes: HashMap::new(),
        carried: BTreeSet::new(),
        files: Files { core, made: Vec::new() },
    };
    for (names, path) in &wanted {
        carry.path(path, names)?;
    }
    carry.files.sync()?;
    Ok(Carried {
        rows: carry.target.rows.into_iter().collect(),
        changed: carry.carried.into_iter().collect(),
    })
}

/// The names that a path consists of.
fn names(path: &Path) -> Result<Vec<OsString>> {
    let impossible = |reason| Error::PreserveImpossible { path: path.into(), reason };
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::CurDir => {}
            Component::ParentDir => return Err(impossible("it must not contain `..`")),
            _ => return Err(impossible("it must be relative to the data dir")),
        }
    }
    if names.is_empty() { Err(impossible("it is the whole data dir")) } else { Ok(names) }
}

/// The entries along a path, the last one what it leads to.
fn find(lookup: &Lookup<'_>, path: &Path, names: &[OsString]) -> Result<Vec<DentryRow>> {
    let missing = || Error::PreserveMissing { path: path.into() };
    let mut at = DentryRow { ino: Ino::ROOT, kind: FileKind::Directory };
    let mut entries = Vec::new();
    for name in names {
        if at.kind != FileKind::Directory {
            return Err(missing());
        }
        at = lookup.dentry(at.ino, name)?.ok_or_else(missing)?;
        entries.push(at);
    }
    Ok(entries)
}

/// Layer files that are being made. Dropped before they are synced, it removes them again.
struct Files<'a> {
    core: &'a Core,
    made: Vec<(Ino, LayerFile)>,
}

impl Files<'_> {
    fn sync(&mut self) -> Result<()> {
        let mut dirs: Vec<String> = self.made.iter().map(|&(ino, _)| LayerFile::dir(ino)).collect();
        dirs.dedup();
        for dir in dirs {
            self.core.disk.sync_dir(&dir).map_err(Error::io("sync", &dir))?;
        }
        self.made.clear();
        Ok(())
    }
}

impl Drop for Files<'_> {
    fn drop(&mut self) {
        for (ino, file) in self.made.drain(..) {
            let path = file.path(ino);
            if let Err(e) = self.core.disk.remove(&path) {
                tracing::warn!("{path}: not removed after a rollback that failed: {e}");
            }
        }
    }
}

/// The tree that the switch will make.
struct Target<'a> {
    below: Lookup<'a>,
    rows: BTreeMap<Key, Value>,
}

impl Target<'_> {
    fn get<R: Row>(&self, key: &Key) -> Result<Option<R>> {
        match self.rows.get(key) {
            Some(value) => value.as_deref().map(R::decode).transpose(),
            None => self.below.core.meta.get(self.below.lineage, key),
        }
    }

    fn put(&mut self, key: Key, row: &impl Row) {
        self.rows.insert(key, Some(row.encode().into()));
    }

    fn inode(&self, ino: Ino) -> Result<InodeRow> {
        self.get(&Key::inode(ino))?.ok_or(Error::NoEntry)
    }

    fn dentry(&self, dir: Ino, name: &OsStr) -> Result<Option<DentryRow>> {
        self.get(&Key::dentry(dir, name.as_bytes()))
    }

    /// The names in a directory, those that this batch has removed left out.
    fn names(&self, dir: Ino) -> Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in self.below.read_dir(dir)? {
            if self.dentry(dir, &entry.name)?.is_some() {
                names.push(entry.name);
            }
        }
        Ok(names)
    }

    /// Takes a name away, with all that only it leads to. Its directory's attributes are left to the caller.
    fn remove(&mut self, dir: Ino, name: &OsStr, now: Timestamp) -> Result<()> {
        let mut pending = vec![(dir, name.to_owned())];
        while let Some((dir, name)) = pending.pop() {
            let Some(entry) = self.dentry(dir, &name)? else { continue };
            self.rows.insert(Key::dentry(dir, name.as_bytes()), None);
            let mut row = self.inode(entry.ino)?;
            if entry.kind == FileKind::Directory {
                pending.extend(self.names(entry.ino)?.into_iter().map(|name| (entry.ino, name)));
            } else if row.nlink > 1 {
                row.nlink -= 1;
                row.ctime = now;
                self.put(Key::inode(entry.ino), &row);
                continue;
            }
            self.rows.insert(Key::inode(entry.ino), None);
            for name in self.below.xattr_names(entry.ino)? {
                self.rows.insert(Key::xattr(entry.ino, name.as_bytes()), None);
            }
            if row.kind == FileKind::Regular {
                self.rows.insert(Key::layer(entry.ino), None);
            }
        }
        Ok(())
    }
}

struct Carry<'a> {
    core: &'a Arc<Core>,
    old: Lookup<'a>,
    scope: Scope,
    target: Target<'a>,
    epoch: EpochId,
    now: Timestamp,
    /// New numbers of inodes that have several names.
    inodes: HashMap<Ino, Ino>,
    carried: BTreeSet<Ino>,
    files: Files<'a>,
}

impl Carry<'_> {
    fn path(&mut self, path: &Path, names: &[OsString]) -> Result<()> {
        let entries = find(&self.old, path, names)?;
        let Some((last, above)) = names.split_last().map(|(last, above)| (last, above.iter().zip(&entries)))
        else {
            return Ok(());
        };
        let mut dir = Ino::ROOT;
        for (name, entry) in above {
            dir = match self.target.dentry(dir, name)? {
                Some(there) if there.kind == FileKind::Directory => there.ino,
                there => {
                    self.clear(dir, name, there)?;
                    let (ino, _) = self.inode(entry.ino, dir)?;
                    self.add(dir, name, DentryRow { ino, kind: FileKind::Directory })?;
                    ino
                }
            };
        }
        let there = self.target.dentry(dir, last)?;
        self.clear(dir, last, there)?;
        let Some(source) = entries.last() else { return Ok(()) };
        let mut pending = vec![(*source, dir, last.clone())];
        while let Some((entry, dir, name)) = pending.pop() {
            let (ino, new) = self.inode(entry.ino, dir)?;
            self.add(dir, &name, DentryRow { ino, kind: entry.kind })?;
            match entry.kind {
                FileKind::Directory => {
                    let below = self.old.read_dir(entry.ino)?.into_iter();
                    pending.extend(below.map(|e| (DentryRow { ino: e.ino, kind: e.kind }, ino, e.name)));
                }
                FileKind::Regular if new => self.content(entry.ino, ino)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what the target has at a name.
    fn clear(&mut self, dir: Ino, name: &OsStr, there: Option<DentryRow>) -> Result<()> {
        let Some(there) = there else { return Ok(()) };
        self.target.remove(dir, name, self.now)?;
        let mut row = self.target.inode(dir)?;
        row.nlink = row.nlink.saturating_sub(u32::from(there.kind == FileKind::Directory));
        (row.mtime, row.ctime) = (self.now, self.now);
        self.target.put(Key::inode(dir), &row);
        Ok(())
    }

    /// Puts a name into a directory.
    fn add(&mut self, dir: Ino, name: &OsStr, entry: DentryRow) -> Result<()> {
        let mut row = self.target.inode(dir)?;
        row.nlink += u32::from(entry.kind == FileKind::Directory);
        // A directory that was carried over keeps the times that it had.
        if !self.carried.contains(&dir) {
            (row.mtime, row.ctime) = (self.now, self.now);
        }
        self.target.put(Key::inode(dir), &row);
        self.target.put(Key::dentry(dir, name.as_bytes()), &entry);
        Ok(())
    }

    /// The inode in the target that stands for one of the old head, in the directory `dir`; whether it is new. A new
    /// one has its row and extended attributes, and a link for this name.
    fn inode(&mut self, source: Ino, dir: Ino) -> Result<(Ino, bool)> {
        if let Some(&ino) = self.inodes.get(&source) {
            let mut row = self.target.inode(ino)?;
            row.nlink += 1;
            self.target.put(Key::inode(ino), &row);
            return Ok((ino, false));
        }
        let ino = self.core.new_ino()?;
        let row = self.old.inode(source)?;
        // Writes that came from the page cache count, too.
        let seen = self.old.attr_of(source, &row)?;
        let is_dir = row.kind == FileKind::Directory;
        if row.nlink > 1 && !is_dir {
            self.inodes.insert(source, ino);
        }
        let copy = InodeRow {
            nlink: if is_dir { 2 } else { 1 },
            parent: if is_dir { dir } else { Ino(0) },
            mtime: seen.mtime,
            ctime: seen.ctime,
            ..row
        };
        self.target.put(Key::inode(ino), &copy);
        for name in self.old.xattr_names(source)? {
            if let Some(value) = self.old.xattr(source, name.as_bytes())? {
                self.target.rows.insert(Key::xattr(ino, name.as_bytes()), Some(value));
            }
        }
        self.carried.insert(ino);
        Ok((ino, true))
    }

    /// Copies a file's content into a layer of its own, the holes left out.
    fn content(&mut self, source: Ino, ino: Ino) -> Result<()> {
        const STEP: u64 = 1 << 20;
        let content = self.core.content(&self.scope, source)?;
        let size = content.len();
        if size == 0 {
            return Ok(());
        }
        let file = LayerFile { epoch: self.epoch, turn: 0 };
        let path = file.path(ino);
        let disk = &*self.core.disk;
        let to = layer::create(disk, &file, ino).map_err(Error::io("create", &path))?;
        self.files.made.push((ino, file));
        to.set_len(size).map_err(Error::io("extend", &path))?;
        let mut buf = Vec::new();
        let mut end = 0;
        while end < size {
            let mut at = match content.seek(self.core, end, Seek::Data) {
                Ok(data) => data,
                Err(Error::NoData) => break,
                Err(e) => return Err(e),
            };
            end = content.seek(self.core, at, Seek::Hole)?;
            while at < end {
                buf.resize(STEP.min(end - at) as usize, 0);
                let got = content.read_at(self.core, &mut buf, at)?;
                to.write_at(&buf[..got], at).map_err(Error::io("write", &path))?;
                at += got as u64;
            }
        }
        to.sync_data().map_err(Error::io("sync", &path))?;
        let blocks = to.stat().map_err(Error::io("stat", &path))?.blocks;
        let row = LayerRow {
            file,
            size,
            limit: 0,
            blocks,
            visible: 0,
            sealed: false,
            summed: false,
            zeroed: Default::default(),
            chunks: None,
        };
        self.target.put(Key::layer(ino), &row);
        // After a crash, a layer that was written after its file's ctime counts as a write that nobody committed.
        let mut inode = self.target.inode(ino)?;
        inode.ctime = Timestamp::now();
        self.target.put(Key::inode(ino), &inode);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
