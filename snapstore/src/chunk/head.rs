//! The writable head: names and attributes.
//!
//! Each change looks at what is there, decides, and applies its rows as one batch, all under `names`: so changes of
//! names happen one after the other, and a commit or a cut has each of them wholly or not at all. They are short and
//! wait for the disk only where a row is not in memory.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::acl::{self, Acl};
use super::core::{Core, HeadInstance, Scope};
use super::file::HeadFile;
use super::meta::Batch;
use super::rows::{DentryRow, InodeRow, Key, Row};
use super::tree::{Lookup, check_name, tree_by_lookup};
use crate::backend::{FileRead, FileWrite, Head, NewInode, RenameMode, SetAttr, Times, Tree, XattrMode};
use crate::error::{Error, Result};
use crate::types::{Attr, DirEntry, EpochId, FileKind, Ino, NAME_MAX, StatFs, Timestamp};

const S_ISUID: u32 = 0o4000;
const S_ISGID: u32 = 0o2000;
const S_IXGRP: u32 = 0o010;
/// The largest extended attribute the kernel passes on.
const XATTR_MAX: usize = 65536;
/// As many names as an inode may have.
const LINK_MAX: u32 = 1 << 30;

/// The head, as long as no rollback replaces it.
pub(crate) struct ChunkHead {
    pub core: Arc<Core>,
    pub instance: Arc<HeadInstance>,
}

impl ChunkHead {
    fn with<T>(&self, f: impl FnOnce(&Lookup<'_>) -> Result<T>) -> Result<T> {
        let head = self.core.head();
        if head.instance.serial != self.instance.serial {
            return Err(Error::Stale);
        }
        f(&Lookup { core: &self.core, lineage: &head.lineage })
    }

    /// Runs a change of names or attributes: nobody else changes any meanwhile.
    pub(super) fn change<T>(&self, f: impl FnOnce(&Lookup<'_>) -> Result<T>) -> Result<T> {
        let _names = self.core.names.lock();
        self.core.meta.check()?;
        if self.instance.retired.load(Ordering::Acquire) {
            return Err(Error::Stale);
        }
        self.with(f)
    }

    /// Sets mtime and ctime to now.
    pub(crate) fn touch_times(&self, ino: Ino) -> Result<()> {
        self.change(|l| {
            let mut row = l.inode(ino)?;
            row.mtime = Timestamp::now();
            row.ctime = row.mtime;
            self.core.meta.apply(vec![(Key::inode(ino), Some(row.encode().into()))], &[]);
            Ok(())
        })
    }

    pub(super) fn entry(&self, l: &Lookup<'_>, parent: Ino, name: &OsStr) -> Result<DentryRow> {
        l.dentry(parent, name)?.ok_or(Error::NoEntry)
    }

    /// Takes one name from an inode. With the last one gone it is an orphan until the kernel forgets it.
    pub(super) fn drop_link(&self, edit: &mut Edit<'_, '_>, ino: Ino) -> Result<InodeRow> {
        let now = edit.now;
        let row = edit.inode(ino)?;
        row.nlink = if row.kind == FileKind::Directory { 0 } else { row.nlink.saturating_sub(1) };
        row.ctime = now;
        let row = row.clone();
        if row.nlink == 0 {
            self.core.orphans.lock().insert(ino);
            edit.control.push((orphan_row(ino), Some(Vec::new())));
        }
        Ok(row)
    }
}

/// The control row of an inode without a name.
pub(crate) fn orphan_row(ino: Ino) -> String {
    format!("orphan/{ino}")
}

/// Changes that are being put together: inode rows are looked up once and written once.
pub(super) struct Edit<'l, 'c> {
    pub(super) lookup: &'l Lookup<'c>,
    pub(super) now: Timestamp,
    pub(super) inodes: Vec<(Ino, InodeRow)>,
    batch: Batch,
    control: super::meta::ControlBatch,
    needed: Vec<Ino>,
}

impl<'l, 'c> Edit<'l, 'c> {
    pub(super) fn new(lookup: &'l Lookup<'c>) -> Edit<'l, 'c> {
        let now = Timestamp::now();
        Edit { lookup, now, inodes: Vec::new(), batch: Vec::new(), control: Vec::new(), needed: Vec::new() }
    }

    pub(super) fn inode(&mut self, ino: Ino) -> Result<&mut InodeRow> {
        let i = match self.inodes.iter().position(|(i, _)| *i == ino) {
            Some(i) => i,
            None => {
                let row = self.lookup.inode(ino)?;
                self.needed.push(ino);
                self.inodes.push((ino, row));
                self.inodes.len() - 1
            }
        };
        Ok(&mut self.inodes[i].1)
    }

    /// A directory whose entries change: its times move.
    pub(super) fn changed_dir(&mut self, dir: Ino, more_links: i32) -> Result<()> {
        let now = self.now;
        let row = self.inode(dir)?;
        row.mtime = now;
        row.ctime = now;
        row.nlink = row.nlink.saturating_add_signed(more_links);
        Ok(())
    }

    pub(super) fn put_entry(&mut self, parent: Ino, name: &OsStr, entry: DentryRow) {
        self.batch.push((Key::dentry(parent, name.as_bytes()), Some(entry.encode().into())));
    }

    pub(super) fn drop_entry(&mut self, parent: Ino, name: &OsStr) {
        self.batch.push((Key::dentry(parent, name.as_bytes()), None));
    }

    fn put_xattr(&mut self, ino: Ino, name: &[u8], value: Option<&[u8]>) {
        self.batch.push((Key::xattr(ino, name), value.map(Into::into)));
    }

    pub(super) fn apply(mut self, core: &Core) {
        for (ino, row) in self.inodes {
            self.batch.push((Key::inode(ino), Some(row.encode().into())));
        }
        core.meta.apply_with_control(self.batch, self.control, &self.needed);
    }
}

/// The directory a change of names happens in: it must be there and not itself removed.
pub(super) fn live_dir(l: &Lookup<'_>, dir: Ino) -> Result<InodeRow> {
    let row = l.directory(dir)?;
    if row.nlink == 0 { Err(Error::NoEntry) } else { Ok(row) }
}

impl Tree for ChunkHead {
    tree_by_lookup!(with);

    fn open(&self, ino: Ino) -> Result<Arc<dyn FileRead>> {
        Ok(Arc::new(self.open_file(ino, Times::Keep)?))
    }

    fn stat_fs(&self) -> Result<StatFs> {
        self.core.disk.stat_fs().map_err(Error::io("statfs", "the store"))
    }
}

impl ChunkHead {
    fn open_file(&self, ino: Ino, times: Times) -> Result<HeadFile> {
        match self.with(|l| l.inode(ino))?.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Error::IsDirectory),
            _ => return Err(Error::InvalidArgument),
        }
        let content = self.core.content(&Scope::Head(Arc::clone(&self.instance)), ino)?;
        Ok(HeadFile { head: self.again(), content, times })
    }

    fn again(&self) -> ChunkHead {
        ChunkHead { core: Arc::clone(&self.core), instance: Arc::clone(&self.instance) }
    }

    fn resize(&self, ino: Ino, size: u64) -> Result<()> {
        match self.with(|l| l.inode(ino))?.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Error::IsDirectory),
            _ => return Err(Error::InvalidArgument),
        }
        self.core.content(&Scope::Head(Arc::clone(&self.instance)), ino)?.truncate(&self.core, size)
    }

    /// Follows a change of mode in the access ACL, if there is one.
    fn follow_mode(&self, edit: &mut Edit<'_, '_>, ino: Ino, mode: u32) -> Result<()> {
        if let Some(bytes) = edit.lookup.xattr(ino, acl::ACCESS)? {
            let mut acl = Acl::parse(&bytes)?;
            acl.set_mode(mode);
            edit.put_xattr(ino, acl::ACCESS, Some(&acl.encode()));
        }
        Ok(())
    }
}

impl Head for ChunkHead {
    fn create(&self, parent: Ino, name: &OsStr, new: &NewInode<'_>) -> Result<Attr> {
        check_name(name)?;
        self.core.check_space()?;
        self.change(|l| {
            let dir = live_dir(l, parent)?;
            if l.dentry(parent, name)?.is_some() {
                return Err(Error::Exists);
            }
            let mut edit = Edit::new(l);
            let ino = self.core.new_ino()?;
            let is_dir = new.kind == FileKind::Directory;
            let mut mode = new.mode & 0o7777;
            let mut gid = new.gid;
            if dir.mode & S_ISGID != 0 {
                gid = dir.gid;
                mode |= if is_dir { S_ISGID } else { 0 };
            }
            let default = match new.kind {
                FileKind::Symlink => None,
                _ => l.xattr(parent, acl::DEFAULT)?,
            };
            match (new.kind, default) {
                (FileKind::Symlink, _) => mode = 0o777,
                (_, None) => mode &= !new.umask,
                (_, Some(bytes)) => {
                    let (access, inherited) = Acl::parse(&bytes)?.inherit(mode);
                    mode = inherited;
                    if !access.is_minimal() {
                        edit.put_xattr(ino, acl::ACCESS, Some(&access.encode()));
                    }
                    if is_dir {
                        edit.put_xattr(ino, acl::DEFAULT, Some(&bytes));
                    }
                }
            }
            let row = InodeRow {
                kind: new.kind,
                mode,
                uid: new.uid,
                gid,
                nlink: if is_dir { 2 } else { 1 },
                rdev: new.rdev,
                parent: if is_dir { parent } else { Ino(0) },
                atime: edit.now,
                mtime: edit.now,
                ctime: edit.now,
                btime: edit.now,
                target: new.target.into(),
            };
            let attr = l.attr_of(ino, &row)?;
            edit.inodes.push((ino, row));
            edit.needed.push(ino);
            edit.changed_dir(parent, is_dir.into())?;
            edit.put_entry(parent, name, DentryRow { ino, kind: new.kind });
            edit.apply(&self.core);
            Ok(attr)
        })
    }

    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attr> {
        check_name(name)?;
        self.core.check_space()?;
        self.change(|l| {
            live_dir(l, parent)?;
            let mut edit = Edit::new(l);
            let now = edit.now;
            let row = edit.inode(ino)?;
            match row.kind {
                FileKind::Directory => return Err(Error::NotPermitted),
                _ if row.nlink == 0 => return Err(Error::NoEntry),
                _ if row.nlink >= LINK_MAX => return Err(Error::TooManyLinks),
                _ => {}
            }
            row.nlink += 1;
            row.ctime = now;
            let row = row.clone();
            if l.dentry(parent, name)?.is_some() {
                return Err(Error::Exists);
            }
            edit.changed_dir(parent, 0)?;
            edit.put_entry(parent, name, DentryRow { ino, kind: row.kind });
            edit.apply(&self.core);
            l.attr_of(ino, &row)
        })
    }

    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        self.change(|l| {
            let entry = self.entry(l, parent, name)?;
            if entry.kind == FileKind::Directory {
                return Err(Error::IsDirectory);
            }
            let mut edit = Edit::new(l);
            let row = self.drop_link(&mut edit, entry.ino)?;
            edit.changed_dir(parent, 0)?;
            edit.drop_entry(parent, name);
            edit.apply(&self.core);
            l.attr_of(entry.ino, &row)
        })
    }

    fn remove_dir(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        self.change(|l| {
            let entry = self.entry(l, parent, name)?;
            if entry.kind != FileKind::Directory {
                return Err(Error::NotDirectory);
            }
            if !l.is_empty_dir(entry.ino)? {
                return Err(Error::NotEmpty);
            }
            let mut edit = Edit::new(l);
            let row = self.drop_link(&mut edit, entry.ino)?;
            edit.changed_dir(parent, -1)?;
            edit.drop_entry(parent, name);
            edit.apply(&self.core);
            l.attr_of(entry.ino, &row)
        })
    }

    fn rename(&self, from: (Ino, &OsStr), to: (Ino, &OsStr), mode: RenameMode) -> Result<Option<Attr>> {
        self.move_entry(from, to, mode)
    }

    fn set_attr(&self, ino: Ino, set: &SetAttr) -> Result<Attr> {
        if let Some(size) = set.size {
            self.resize(ino, size)?;
        }
        self.change(|l| {
            let mut edit = Edit::new(l);
            let now = edit.now;
            let row = edit.inode(ino)?;
            let lasting = set.mode.is_some() || set.uid.is_some() || set.gid.is_some();
            let touch = set.times == Times::Touch;
            let mut mode = set.mode.map_or(row.mode, |m| m & 0o7777);
            if set.drop_privileges && row.kind != FileKind::Directory {
                mode = without_privileges(mode);
            }
            let chmod = mode != row.mode;
            row.mode = mode;
            row.uid = set.uid.unwrap_or(row.uid);
            row.gid = set.gid.unwrap_or(row.gid);
            row.atime = set.atime.unwrap_or(row.atime);
            if set.size.is_some() && touch {
                row.mtime = now;
            }
            row.mtime = set.mtime.unwrap_or(row.mtime);
            let size_only = set.size.is_some() && !lasting;
            row.ctime = set.ctime.unwrap_or(if size_only && !touch { row.ctime } else { now });
            let row = row.clone();
            if chmod {
                self.follow_mode(&mut edit, ino, mode)?;
            }
            if set.drop_privileges {
                drop_capability(&mut edit, ino)?;
            }
            if !lasting && !chmod {
                edit.needed.clear();
            }
            edit.apply(&self.core);
            l.attr_of(ino, &row)
        })
    }

    fn set_xattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        let name = name.as_bytes();
        if name.is_empty() || name.len() > NAME_MAX || name.contains(&0) {
            return Err(Error::InvalidArgument);
        }
        if value.len() > XATTR_MAX {
            return Err(Error::TooBig);
        }
        check_xattr_name(name)?;
        self.core.check_space()?;
        self.change(|l| {
            let exists = l.xattr(ino, name)?.is_some();
            match mode {
                XattrMode::Create if exists => return Err(Error::Exists),
                XattrMode::Replace if !exists => return Err(Error::NoXattr),
                _ => {}
            }
            let mut edit = Edit::new(l);
            let now = edit.now;
            let row = edit.inode(ino)?;
            row.ctime = now;
            match name {
                acl::ACCESS => {
                    let acl = Acl::parse(value)?;
                    row.mode = row.mode & !0o777 | acl.mode();
                    edit.put_xattr(ino, name, (!acl.is_minimal()).then_some(value));
                }
                acl::DEFAULT if row.kind != FileKind::Directory => return Err(Error::AccessDenied),
                acl::DEFAULT => {
                    Acl::parse(value)?;
                    edit.put_xattr(ino, name, Some(value));
                }
                _ => edit.put_xattr(ino, name, Some(value)),
            }
            edit.apply(&self.core);
            Ok(())
        })
    }

    fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        self.change(|l| {
            if l.xattr(ino, name.as_bytes())?.is_none() {
                return Err(Error::NoXattr);
            }
            let mut edit = Edit::new(l);
            edit.inode(ino)?.ctime = Timestamp::now();
            edit.put_xattr(ino, name.as_bytes(), None);
            edit.apply(&self.core);
            Ok(())
        })
    }

    fn open_write(&self, ino: Ino, times: Times) -> Result<Arc<dyn FileWrite>> {
        Ok(Arc::new(self.open_file(ino, times)?))
    }

    fn drop_privileges(&self, ino: Ino) -> Result<()> {
        self.change(|l| {
            let mut edit = Edit::new(l);
            let row = edit.inode(ino)?;
            let mode = without_privileges(row.mode);
            let changed = mode != row.mode;
            row.mode = mode;
            if drop_capability(&mut edit, ino)? || changed {
                edit.apply(&self.core);
            }
            Ok(())
        })
    }

    fn sync_names(&self) -> Result<()> {
        self.with(|_| Ok(()))?;
        self.core.commit(false)
    }

    fn forget(&self, ino: Ino) -> Result<()> {
        if !self.core.orphans.lock().contains(&ino) {
            return Ok(());
        }
        {
            let _hand = self.core.replacing.lock();
            if self.core.open_content(&self.instance, ino).is_some() {
                return Ok(());
            }
        }
        self.change(|l| {
            // Registered with its epoch: what is removed is that epoch's, and a cut waits for it.
            let op = self.core.enter(&Scope::Head(Arc::clone(&self.instance)))?;
            purge(&self.core, l, ino, op.epoch())
        })
    }
}

/// Only what other file systems take as well, so that a tree can be copied anywhere.
fn check_xattr_name(name: &[u8]) -> Result<()> {
    if name == acl::ACCESS || name == acl::DEFAULT {
        return Ok(());
    }
    for space in [&b"user."[..], b"trusted.", b"security."] {
        match name.strip_prefix(space) {
            Some([]) => return Err(Error::InvalidArgument),
            Some(_) => return Ok(()),
            None => {}
        }
    }
    Err(Error::Unsupported)
}

/// Removes an inode without a name, in `epoch`: its attributes, and its layer of that epoch. Older layers stay while a
/// snapshot sees them. The caller sees to it that the epoch is not frozen meanwhile.
pub(crate) fn purge(core: &Core, l: &Lookup<'_>, ino: Ino, epoch: EpochId) -> Result<()> {
    let mut batch: Batch = vec![(Key::inode(ino), None)];
    for name in l.xattr_names(ino)? {
        batch.push((Key::xattr(ino, name.as_bytes()), None));
    }
    let mut file = None;
    if let Some((newest, Some(bytes))) = core.meta.newest(l.lineage, &Key::layer(ino))? {
        batch.push((Key::layer(ino), None));
        if newest == epoch {
            // What is in memory knows best which file it is.
            file = Some(match core.pinned_layer(ino, epoch) {
                Some(layer) => layer.state.read().file,
                None => core.row_of_gone(ino, epoch, &bytes)?.file,
            });
        }
    }
    core.drop_layer(ino, epoch);
    core.meta.apply_at(epoch, batch, &[]);
    core.meta.apply_control(vec![(orphan_row(ino), None)]);
    core.orphans.lock().remove(&ino);
    if let Some(file) = file {
        core.discard_file(ino, file);
    }
    Ok(())
}

/// The mode that is left when someone unprivileged writes: no set-user-id, no set-group-id where the group may
/// execute (without that bit it once meant mandatory locking).
fn without_privileges(mode: u32) -> u32 {
    match mode & (S_ISGID | S_IXGRP) {
        bits if bits == S_ISGID | S_IXGRP => mode & !(S_ISUID | S_ISGID),
        _ => mode & !S_ISUID,
    }
}

fn drop_capability(edit: &mut Edit<'_, '_>, ino: Ino) -> Result<bool> {
    const CAPABILITY: &[u8] = b"security.capability";
    let set = edit.lookup.xattr(ino, CAPABILITY)?.is_some();
    if set {
        edit.put_xattr(ino, CAPABILITY, None);
    }
    Ok(set)
}
