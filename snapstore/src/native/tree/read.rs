//! Reading a tree: the same for the live head and for a view.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use nix::dir::{Dir, Type};
use nix::fcntl::{OFlag, readlinkat};
use parking_lot::Mutex;

use super::errors::failed;
use super::file::{NativeFile, open_file};
use super::table::{Table, reopen};
use crate::backend::{FileRead, Times, Tree};
use crate::chunk::tree::check_name;
use crate::error::{Error, Result};
use crate::sys::{OpenXattrs, stat_at};
use crate::types::{Attr, DirEntry, FileKind, Ino, StatFs};

impl Table {
    /// [`Tree::lookup`].
    pub(crate) fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        check_name(name)?;
        Ok(self.child(parent, name)?.1)
    }

    /// [`Tree::read_link`].
    pub(crate) fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        let fd = self.fd(ino)?;
        match readlinkat(&*fd, "") {
            Ok(target) => Ok(target.into_vec()),
            // What is no symlink.
            Err(nix::Error::ENOENT | nix::Error::EINVAL) => Err(Error::InvalidArgument),
            Err(e) => Err(failed("read the symlink", ino)(e)),
        }
    }

    /// [`Tree::read_dir`].
    pub(crate) fn read_dir(&self, dir: Ino) -> Result<Vec<DirEntry>> {
        let at = self.fd(dir)?;
        let device = stat_at(at.as_fd(), OsStr::new("")).map_err(failed("stat", dir))?.id.0;
        let open = reopen(at.as_fd(), OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(failed("open", dir))?;
        let mut listing = Dir::from_fd(open).map_err(failed("list", dir))?;
        let mut entries = Vec::new();
        for entry in listing.iter() {
            let entry = entry.map_err(failed("list", dir))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let (id, kind) = match entry.file_type().map(kind_of) {
                // A directory's number in its parent is not its own where something is mounted on it, or a subvolume.
                Some(kind) if kind != FileKind::Directory => ((device, entry.ino()), kind),
                _ => match stat_at(at.as_fd(), name) {
                    Ok(stat) => (stat.id, stat.kind.ok_or(Error::Unsupported)?),
                    // Gone since it was listed.
                    Err(e) if e.raw_os_error() == Some(libc::ENOENT) => continue,
                    Err(e) => return Err(failed("stat", dir)(e)),
                },
            };
            entries.push(DirEntry { name: name.to_owned(), ino: self.listed(dir, name, id, kind), kind });
        }
        entries.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
        Ok(entries)
    }

    /// [`Tree::get_xattr`].
    pub(crate) fn get_xattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        let fd = self.fd(ino)?;
        let value = OpenXattrs::of(fd.as_fd()).and_then(|xattrs| xattrs.get(name));
        value.map_err(|e| match e.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Error::NoXattr,
            _ => failed("read an attribute of", ino)(e),
        })
    }

    /// [`Tree::list_xattr`].
    pub(crate) fn list_xattr(&self, ino: Ino) -> Result<Vec<OsString>> {
        let fd = self.fd(ino)?;
        match OpenXattrs::of(fd.as_fd()).and_then(|xattrs| xattrs.list()) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
            names => names.map_err(failed("list the attributes of", ino)),
        }
    }

    /// [`Tree::stat_fs`].
    pub(crate) fn stat_fs(&self) -> Result<StatFs> {
        let root = self.root()?;
        let v = nix::sys::statvfs::fstatvfs(&*root).map_err(failed("statfs", Ino::ROOT))?;
        Ok(StatFs {
            block_size: v.fragment_size() as u32,
            blocks: v.blocks(),
            blocks_free: v.blocks_free(),
            blocks_available: v.blocks_available(),
            files: v.files(),
            files_free: v.files_free(),
        })
    }
}

fn kind_of(kind: Type) -> FileKind {
    match kind {
        Type::Fifo => FileKind::Fifo,
        Type::CharacterDevice => FileKind::CharDevice,
        Type::Directory => FileKind::Directory,
        Type::BlockDevice => FileKind::BlockDevice,
        Type::File => FileKind::Regular,
        Type::Symlink => FileKind::Symlink,
        Type::Socket => FileKind::Socket,
    }
}

/// A view: a snapshot's files, kept reachable as long as this (until it is ended), or a file that was opened in it, is
/// there.
pub(crate) struct ViewTree {
    table: Arc<Table>,
    passthrough: bool,
    keep: Mutex<Option<Arc<dyn Send + Sync>>>,
}

impl ViewTree {
    /// The view of these files. `passthrough`: the kernel may get their descriptors; `keep`: what keeps them reachable.
    pub(crate) fn new(table: Arc<Table>, passthrough: bool, keep: Arc<dyn Send + Sync>) -> ViewTree {
        ViewTree { table, passthrough, keep: Mutex::new(Some(keep)) }
    }

    /// The snapshot was deleted: this keeps nothing reachable any more. Files that are open do; when the last of them is
    /// closed, everything here fails.
    pub(crate) fn end(&self) {
        let keep = self.keep.lock().take();
        drop(keep);
    }
}

impl Tree for ViewTree {
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        self.table.lookup(parent, name)
    }

    fn get_attr(&self, ino: Ino) -> Result<Attr> {
        self.table.attr(ino)
    }

    fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        self.table.read_link(ino)
    }

    fn read_dir(&self, dir: Ino) -> Result<Vec<DirEntry>> {
        self.table.read_dir(dir)
    }

    fn parent(&self, dir: Ino) -> Result<Ino> {
        self.table.parent(dir)
    }

    fn get_xattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        self.table.get_xattr(ino, name)
    }

    fn list_xattr(&self, ino: Ino) -> Result<Vec<OsString>> {
        self.table.list_xattr(ino)
    }

    fn open(&self, ino: Ino) -> Result<Arc<dyn FileRead>> {
        let _keep = Some(self.keep.lock().clone().ok_or(Error::Stale)?);
        let (node, file) = open_file(&self.table, ino, false, self.passthrough)?;
        Ok(Arc::new(NativeFile { ino, file, node, head: None, times: Times::Keep, _keep }))
    }

    fn stat_fs(&self) -> Result<StatFs> {
        self.table.stat_fs()
    }
}
