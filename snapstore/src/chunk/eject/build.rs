//! Building a plain tree from the head's rows and layers.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat};
use roaring::RoaringBitmap;

use super::{FILES, TREE};
use crate::backend::Seek;
use crate::chunk::adopt::journal::RootAttrs;
use crate::chunk::adopt::stop;
use crate::chunk::adopt::take::is_root;
use crate::chunk::adopt::walk::{Cursor, exists, set_times};
use crate::chunk::checked::damaged;
use crate::chunk::core::{Core, Scope};
use crate::chunk::rows::InodeRow;
use crate::chunk::tree::Lookup;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::sys::{get_xattr, list_xattr, remove_xattr, set_xattr, stat_at};
use crate::types::{CHUNK_SIZE, DirEntry, FileKind, Ino, Timestamp};

/// Makes the head's tree in `ejecting/`. Returns what the root gets in the end.
pub(super) fn build(
    core: &std::sync::Arc<Core>,
    store: BorrowedFd<'_>,
    path: &Path,
    progress: &dyn Progress,
) -> Result<RootAttrs> {
    let head = core.head();
    let lookup = Lookup { core, lineage: &head.lineage };
    for dir in [TREE, FILES] {
        mkdirat(store, dir, Mode::from_bits_truncate(0o700))
            .map_err(|e| Error::io("create", path.join(dir))(e.into()))?;
    }
    let build = Build { core, lookup, store, path };
    build.tree(progress)
}

struct Build<'a> {
    core: &'a std::sync::Arc<Core>,
    lookup: Lookup<'a>,
    store: BorrowedFd<'a>,
    path: &'a Path,
}

struct Frame {
    ino: Ino,
    row: InodeRow,
    entries: std::vec::IntoIter<DirEntry>,
}

impl Build<'_> {
    fn tree(&self, progress: &dyn Progress) -> Result<RootAttrs> {
        let mut cursor = Cursor::open(self.store, OsStr::new(TREE), &self.path.join(TREE))
            .map_err(Error::io("open", self.path.join(TREE)))?;
        let mut frames = vec![self.frame(Ino::ROOT)?];
        let mut closed = Vec::new();
        while let Some(frame) = frames.last_mut() {
            let Some(entry) = frame.entries.next() else {
                let Some(done) = frames.pop() else { break };
                if frames.is_empty() {
                    self.xattrs(cursor.dir(), OsStr::new(""), Ino::ROOT)
                        .map_err(at(&cursor, OsStr::new("")))?;
                    let pair = |t: Timestamp| (t.secs, t.nanos);
                    let InodeRow { mode, uid, gid, atime, mtime, .. } = done.row;
                    return Ok(RootAttrs { mode, uid, gid, atime: pair(atime), mtime: pair(mtime), closed });
                }
                let name = cursor.leave().map_err(at(&cursor, OsStr::new("")))?;
                let mut row = done.row;
                if cursor.depth() == 0 && !is_root() && row.mode & 0o700 != 0o700 {
                    closed.push((name.as_bytes().to_vec(), row.mode));
                    row.mode |= 0o700;
                }
                self.attributes(cursor.dir(), &name, done.ino, &row).map_err(at(&cursor, &name))?;
                continue;
            };
            let name = entry.name.as_os_str();
            if entry.kind == FileKind::Directory {
                mkdirat(cursor.dir(), name, Mode::from_bits_truncate(0o700))
                    .map_err(|e| at(&cursor, name)(e.into()))?;
                let entered = cursor.enter(name);
                entered.map_err(at(&cursor, name))?;
                let below = self.frame(entry.ino)?;
                frames.push(below);
            } else {
                self.entry(&cursor, name, &entry)?;
            }
            progress.advance(1);
            stop::here();
        }
        unreachable!("the root's frame returns")
    }

    fn frame(&self, ino: Ino) -> Result<Frame> {
        Ok(Frame { ino, row: self.lookup.inode(ino)?, entries: self.lookup.read_dir(ino)?.into_iter() })
    }

    /// Makes anything but a directory.
    fn entry(&self, cursor: &Cursor, name: &OsStr, entry: &DirEntry) -> Result<()> {
        let row = self.lookup.inode(entry.ino)?;
        if row.kind == FileKind::Regular && self.link_layer(cursor, name, entry.ino)? {
            return self.attributes(cursor.dir(), name, entry.ino, &row).map_err(at(cursor, name));
        }
        if row.nlink < 2 {
            return self.make(cursor.dir(), name, entry.ino, &row).map_err(within(cursor, name));
        }
        // One of several names: made once, then linked to each.
        let made = OsString::from(format!("{FILES}/{}", entry.ino));
        if !exists(self.store, &made).map_err(at(cursor, name))? {
            self.make(self.store, &made, entry.ino, &row).map_err(within(cursor, name))?;
        }
        linkat(self.store, made.as_os_str(), cursor.dir(), name, AtFlags::empty())
            .map_err(|e| at(cursor, name)(e.into()))
    }

    /// Gives the file that is a layer its name. False when the content is not one whole layer.
    fn link_layer(&self, cursor: &Cursor, name: &OsStr, ino: Ino) -> Result<bool> {
        let stack = self.core.load_stack(self.lookup.lineage, ino)?;
        let [only] = stack.as_slice() else { return Ok(false) };
        let (file, size, chunks) = {
            let s = only.state.read();
            if !s.sealed || s.limit > 0 || !s.created {
                return Ok(false);
            }
            (s.file, s.size, s.chunks.clone())
        };
        if size == 0 {
            return Ok(false);
        }
        only.existing(&*self.core.disk)?;
        if let Some(lost) = only.lost(0) {
            return Err(damaged(ino, file, lost as u32));
        }
        let path = file.path(ino);
        self.exact(&path, size, chunks.as_ref()).map_err(Error::io("prepare", &path))?;
        match linkat(self.store, path.as_str(), cursor.dir(), name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            // No hard links here, or too many: a copy does as well.
            Err(nix::Error::EPERM | nix::Error::EOPNOTSUPP | nix::Error::EMLINK) => Ok(false),
            Err(e) => Err(at(cursor, name)(e.into())),
        }
    }

    /// Has a layer's file hold exactly what its row says: nobody sees the rest.
    fn exact(&self, path: &str, size: u64, chunks: Option<&RoaringBitmap>) -> io::Result<()> {
        let stat = self.core.disk.stat(path)?.ok_or(io::ErrorKind::NotFound)?;
        if stat.size == size && chunks.is_none() {
            return Ok(());
        }
        let file = self.core.disk.open(path)?;
        if stat.size != size {
            file.set_len(size)?;
        }
        let Some(chunks) = chunks else { return Ok(()) };
        let mut at = 0;
        while let Some(data) = file.seek_data(at)?.filter(|&d| d < size) {
            let hole = file.seek_hole(data)?.unwrap_or(size).min(size);
            let (mut chunk, end) = (data / CHUNK_SIZE, hole.div_ceil(CHUNK_SIZE));
            while chunk < end {
                if chunks.contains(chunk as u32) {
                    chunk += 1;
                    continue;
                }
                let known = chunks.range(chunk as u32..).next().map_or(end, u64::from).min(end);
                file.punch(chunk * CHUNK_SIZE, (known - chunk) * CHUNK_SIZE)?;
                chunk = known;
            }
            at = hole.max(data + 1);
        }
        Ok(())
    }

    /// Makes an inode that is no directory anew, with its attributes.
    fn make(&self, dir: BorrowedFd<'_>, name: &OsStr, ino: Ino, row: &InodeRow) -> Result<(), Cause> {
        let private = Mode::from_bits_truncate(0o600);
        let node = |kind: SFlag| {
            let (major, minor) = (row.rdev >> 8 & 0xfff, row.rdev & 0xff | row.rdev >> 12 & 0xf_ff00);
            mknodat(dir, name, kind, private, libc::makedev(major, minor))
        };
        match row.kind {
            FileKind::Regular => self.copy(dir, name, ino)?,
            FileKind::Symlink => symlinkat(OsStr::from_bytes(&row.target), dir, name)?,
            FileKind::Fifo => node(SFlag::S_IFIFO)?,
            FileKind::Socket => node(SFlag::S_IFSOCK)?,
            FileKind::CharDevice => node(SFlag::S_IFCHR)?,
            FileKind::BlockDevice => node(SFlag::S_IFBLK)?,
            FileKind::Directory => return Err(Cause::Store(Error::IsDirectory)),
        }
        Ok(self.attributes(dir, name, ino, row)?)
    }

    /// Writes a file's content into a new file, the holes left out.
    fn copy(&self, dir: BorrowedFd<'_>, name: &OsStr, ino: Ino) -> Result<(), Cause> {
        const STEP: u64 = 1 << 20;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = File::from(openat(dir, name, flags, Mode::from_bits_truncate(0o600))?);
        let head = self.core.head();
        let content = self.core.content(&Scope::Head(std::sync::Arc::clone(&head.instance)), ino)?;
        let size = content.len();
        file.set_len(size)?;
        let mut buf = Vec::new();
        let mut end = 0;
        while end < size {
            let mut at = match content.seek(self.core, end, Seek::Data) {
                Ok(data) => data,
                Err(Error::NoData) => break,
                Err(e) => return Err(e.into()),
            };
            end = content.seek(self.core, at, Seek::Hole)?;
            while at < end {
                buf.resize(STEP.min(end - at) as usize, 0);
                let got = content.read_at(self.core, &mut buf, at)?;
                file.write_all_at(&buf[..got], at)?;
                at += got as u64;
            }
        }
        Ok(())
    }

    /// Sets owner, extended attributes, mode and times, in the order in which none of them undoes another.
    fn attributes(&self, dir: BorrowedFd<'_>, name: &OsStr, ino: Ino, row: &InodeRow) -> io::Result<()> {
        let now = stat_at(dir, name)?;
        if (now.uid, now.gid) != (row.uid, row.gid) {
            let (uid, gid) = (Uid::from_raw(row.uid), Gid::from_raw(row.gid));
            fchownat(dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        if !is_root() && row.kind != FileKind::Symlink && now.mode & 0o600 != 0o600 {
            // A name of a file that has its attributes already; they are set once more.
            let mode = Mode::from_bits_truncate(now.mode & 0o777 | 0o600);
            fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)?;
        }
        self.xattrs(dir, name, ino)?;
        if row.kind != FileKind::Symlink {
            fchmodat(dir, name, Mode::from_bits_truncate(row.mode), FchmodatFlags::FollowSymlink)?;
        }
        set_times(dir, name, (row.atime, row.mtime))
    }

    fn xattrs(&self, dir: BorrowedFd<'_>, name: &OsStr, ino: Ino) -> io::Result<()> {
        let other = |e: Error| io::Error::other(e.to_string());
        let mut wanted = Vec::new();
        for key in self.lookup.xattr_names(ino).map_err(other)? {
            if let Some(value) = self.lookup.xattr(ino, key.as_bytes()).map_err(other)? {
                wanted.push((key, value.to_vec()));
            }
        }
        set_all(dir, name, &wanted)
    }
}

/// Gives `to` the extended attributes of `from`.
pub(crate) fn follow_xattrs(from: (BorrowedFd<'_>, &OsStr), to: (BorrowedFd<'_>, &OsStr)) -> io::Result<()> {
    let mut wanted = Vec::new();
    for key in list_xattr(from.0, from.1)? {
        if let Some(value) = get_xattr(from.0, from.1, &key)? {
            wanted.push((key, value));
        }
    }
    set_all(to.0, to.1, &wanted)
}

/// Leaves exactly these extended attributes, and what a security module of the kernel has set on its own.
fn set_all(dir: BorrowedFd<'_>, name: &OsStr, wanted: &[(OsString, Vec<u8>)]) -> io::Result<()> {
    let present = list_xattr(dir, name)?;
    for key in &present {
        let kernels = key.as_bytes().starts_with(b"security.") && key != "security.capability";
        if !kernels && !wanted.iter().any(|(k, _)| k == key) {
            remove_xattr(dir, name, key)?;
        }
    }
    for (key, value) in wanted {
        if !present.contains(key) || get_xattr(dir, name, key)?.as_ref() != Some(value) {
            set_xattr(dir, name, key, value)?;
        }
    }
    Ok(())
}

/// Why something could not be made.
enum Cause {
    Disk(io::Error),
    Store(Error),
}

impl From<io::Error> for Cause {
    fn from(e: io::Error) -> Cause {
        Cause::Disk(e)
    }
}

impl From<nix::Error> for Cause {
    fn from(e: nix::Error) -> Cause {
        Cause::Disk(e.into())
    }
}

impl From<Error> for Cause {
    fn from(e: Error) -> Cause {
        Cause::Store(e)
    }
}

fn at(cursor: &Cursor, name: &OsStr) -> impl FnOnce(io::Error) -> Error {
    Error::io("make", cursor.path(name))
}

fn within(cursor: &Cursor, name: &OsStr) -> impl FnOnce(Cause) -> Error {
    let path = cursor.path(name);
    move |cause| match cause {
        Cause::Disk(e) => Error::io("make", path)(e),
        Cause::Store(e) => e,
    }
}
