//! Reading a tree: the same for the head and for a view, which differ in their lineage only.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use super::content::Content;
use super::core::{Core, Scope, ViewScope};
use super::lineage::Lineage;
use super::rows::{DentryRow, InodeRow, Key, KeyKind, LayerRow, Row};
use crate::backend::{FileRead, Seek, Tree};
use crate::error::{Error, Result};
use crate::types::{Attr, CHUNK_SIZE, DirEntry, FileKind, Ino, NAME_MAX, StatFs};

/// Looks rows up in a lineage.
pub(crate) struct Lookup<'a> {
    pub core: &'a Core,
    pub lineage: &'a Lineage,
}

impl Lookup<'_> {
    pub(crate) fn inode(&self, ino: Ino) -> Result<InodeRow> {
        self.core.meta.get(self.lineage, &Key::inode(ino))?.ok_or(Error::NoEntry)
    }

    pub(crate) fn directory(&self, ino: Ino) -> Result<InodeRow> {
        let row = self.inode(ino)?;
        if row.kind == FileKind::Directory { Ok(row) } else { Err(Error::NotDirectory) }
    }

    pub(crate) fn dentry(&self, parent: Ino, name: &OsStr) -> Result<Option<DentryRow>> {
        check_name(name)?;
        self.core.meta.get(self.lineage, &Key::dentry(parent, name.as_bytes()))
    }

    pub(crate) fn attr(&self, ino: Ino) -> Result<Attr> {
        let row = self.inode(ino)?;
        self.attr_of(ino, &row)
    }

    /// What `stat` tells, from an inode's row and its newest layer.
    pub(crate) fn attr_of(&self, ino: Ino, row: &InodeRow) -> Result<Attr> {
        let (size, blocks) = match row.kind {
            FileKind::Regular => {
                let extent = self.extent(ino)?;
                (extent.size, extent.blocks)
            }
            FileKind::Symlink => (row.target.len() as u64, 0),
            FileKind::Directory => (4096, 8),
            _ => (0, 0),
        };
        Ok(Attr {
            ino,
            kind: row.kind,
            mode: row.mode,
            nlink: row.nlink,
            uid: row.uid,
            gid: row.gid,
            rdev: row.rdev,
            size,
            blocks,
            atime: row.atime,
            mtime: row.mtime,
            ctime: row.ctime,
            btime: row.btime,
        })
    }

    /// The epoch of a file's newest layer: none of an older one is ever written. 0: it has none.
    pub(crate) fn newest_layer(&self, ino: Ino) -> Result<Option<u64>> {
        let mut newest = 0;
        self.core.meta.versions(self.lineage, &Key::layer(ino), |epoch, _| {
            newest = epoch.0;
            Ok(true)
        })?;
        Ok(Some(newest))
    }

    /// Size, space and last write of a regular file.
    fn extent(&self, ino: Ino) -> Result<Extent> {
        let mut extent = Extent::default();
        let mut first = true;
        self.core.meta.versions(self.lineage, &Key::layer(ino), |epoch, value| {
            let Some(bytes) = value else { return Ok(true) };
            let (size, limit, sealed, visible, blocks) =
                match self.core.live_layer(ino, epoch, &LayerRow::decode(bytes)?) {
                    Some(layer) => {
                        let (size, limit, sealed, visible, blocks) = {
                            let s = layer.state.read();
                            (s.size, s.limit, s.sealed, s.visible, s.blocks)
                        };
                        let now = if sealed { blocks } else { layer.blocks(&*self.core.disk)? };
                        (size, limit, sealed, visible, now)
                    }
                    None => {
                        let row = self.core.row_of_gone(ino, epoch, bytes)?;
                        (row.size, row.limit, row.sealed, row.visible, row.blocks)
                    }
                };
            // A sealed layer knows what is seen through it: a file may have one for each height there is.
            let known = sealed && limit != 0 && visible > 0;
            let blocks = if known { visible * (CHUNK_SIZE / 512) } else { blocks };
            if first {
                extent.size = size;
                extent.blocks = blocks;
            } else {
                // Layers overlap: no more than the whole file counts.
                extent.blocks = (extent.blocks + blocks).min(extent.size.div_ceil(4096) * 8);
            }
            first = false;
            Ok(known || limit == 0)
        })?;
        Ok(extent)
    }

    pub(crate) fn read_dir(&self, dir: Ino) -> Result<Vec<DirEntry>> {
        self.directory(dir)?;
        let mut entries = Vec::new();
        self.core.meta.scan(self.lineage, &Key::dentries_of(dir), |key, value| {
            let row = DentryRow::decode(value)?;
            if let KeyKind::Dentry(_, name) = KeyKind::of(key)? {
                entries.push(DirEntry {
                    name: OsString::from_vec(name.to_vec()),
                    ino: row.ino,
                    kind: row.kind,
                });
            }
            Ok(true)
        })?;
        Ok(entries)
    }

    pub(crate) fn is_empty_dir(&self, dir: Ino) -> Result<bool> {
        let mut empty = true;
        self.core.meta.scan(self.lineage, &Key::dentries_of(dir), |_, _| {
            empty = false;
            Ok(false)
        })?;
        Ok(empty)
    }

    pub(crate) fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Option<Arc<[u8]>>> {
        Ok(self.core.meta.newest(self.lineage, &Key::xattr(ino, name))?.and_then(|(_, value)| value))
    }

    pub(crate) fn xattr_names(&self, ino: Ino) -> Result<Vec<OsString>> {
        let mut names = Vec::new();
        self.core.meta.scan(self.lineage, &Key::xattrs_of(ino), |key, _| {
            if let KeyKind::Xattr(_, name) = KeyKind::of(key)? {
                names.push(OsString::from_vec(name.to_vec()));
            }
            Ok(true)
        })?;
        Ok(names)
    }
}

#[derive(Default)]
struct Extent {
    size: u64,
    blocks: u64,
}

/// A name that a directory can hold.
pub(crate) fn check_name(name: &OsStr) -> Result<()> {
    match name.as_bytes() {
        [] | b"." | b".." => Err(Error::InvalidArgument),
        bytes if bytes.len() > NAME_MAX => Err(Error::NameTooLong),
        bytes if bytes.contains(&b'/') || bytes.contains(&0) => Err(Error::InvalidArgument),
        _ => Ok(()),
    }
}

/// A view of a snapshot.
pub(crate) struct ViewTree {
    core: Arc<Core>,
    lineage: Lineage,
}

impl ViewTree {
    /// The tree of a lineage's tip. It answers until the snapshot is deleted; a file that is open then can be read to
    /// its end, since its data is not reclaimed meanwhile.
    pub(crate) fn new(core: &Arc<Core>, lineage: Lineage) -> ViewTree {
        ViewTree { core: Arc::clone(core), lineage }
    }
}

/// [`Tree`]'s methods by way of a [`Lookup`], for both kinds of tree.
macro_rules! tree_by_lookup {
    ($with:ident) => {
        fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
            self.$with(|l| {
                let Some(entry) = l.dentry(parent, name)? else { return Err(Error::NoEntry) };
                l.attr(entry.ino)
            })
        }

        fn get_attr(&self, ino: Ino) -> Result<Attr> {
            self.$with(|l| l.attr(ino))
        }

        fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
            self.$with(|l| match l.inode(ino)? {
                row if row.kind == FileKind::Symlink => Ok(row.target.into()),
                _ => Err(Error::InvalidArgument),
            })
        }

        fn read_dir(&self, dir: Ino) -> Result<Vec<DirEntry>> {
            self.$with(|l| l.read_dir(dir))
        }

        fn parent(&self, dir: Ino) -> Result<Ino> {
            self.$with(|l| Ok(l.directory(dir)?.parent))
        }

        fn get_xattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
            self.$with(|l| l.xattr(ino, name.as_bytes())?.map(|v| v.to_vec()).ok_or(Error::NoXattr))
        }

        fn list_xattr(&self, ino: Ino) -> Result<Vec<OsString>> {
            self.$with(|l| l.xattr_names(ino))
        }

        fn content_mark(&self, ino: Ino) -> Result<Option<u64>> {
            self.$with(|l| l.newest_layer(ino))
        }
    };
}
pub(crate) use tree_by_lookup;

impl ViewTree {
    fn with<T>(&self, f: impl FnOnce(&Lookup<'_>) -> Result<T>) -> Result<T> {
        let ended = self.core.ended.read();
        if ended.contains(&self.lineage.tip()) {
            return Err(Error::Stale);
        }
        f(&Lookup { core: &self.core, lineage: &self.lineage })
    }
}

impl Tree for ViewTree {
    tree_by_lookup!(with);

    fn open(&self, ino: Ino) -> Result<Arc<dyn FileRead>> {
        self.with(|l| {
            match l.inode(ino)?.kind {
                FileKind::Regular => {}
                FileKind::Directory => return Err(Error::IsDirectory),
                _ => return Err(Error::InvalidArgument),
            }
            let scope = Scope::View(Arc::new(ViewScope::new(&self.core, self.lineage.clone())));
            let content = self.core.content(&scope, ino)?;
            Ok(Arc::new(ViewFile { core: Arc::clone(&self.core), content }) as Arc<dyn FileRead>)
        })
    }

    fn stat_fs(&self) -> Result<StatFs> {
        self.core.disk.stat_fs().map_err(Error::io("statfs", "the store"))
    }
}

/// An open file of a view.
struct ViewFile {
    core: Arc<Core>,
    content: Arc<Content>,
}

impl FileRead for ViewFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.content.read_at(&self.core, buf, offset)
    }

    fn len(&self) -> Result<u64> {
        Ok(self.content.len())
    }

    fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        self.content.seek(&self.core, offset, what)
    }

    fn chunk_hash(&self, chunk: u32) -> Result<Option<[u8; 32]>> {
        self.content.chunk_hash(&self.core, chunk)
    }
}
