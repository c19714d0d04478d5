//! Reading a directory tree into rows: what is adopted, as metadata.
//!
//! Nothing is changed here, and no content is read: what a file holds is asked of its size and of the file system's
//! count of blocks, and of its holes only where it has some. Memory is bounded by the names along one path, the names
//! of hard links, and one batch of rows.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::Mode;
use nix::unistd::Whence;

use super::place::NESTED;
use super::walk::Cursor;
use super::{BASE, HIDDEN, marker, refuse};
use crate::chunk::meta::Meta;
use crate::chunk::rows::{DentryRow, InodeRow, Key, LayerFile, LayerRow, Row};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::sys::{Stat, get_xattr, list_xattr};
use crate::types::{CHUNK_SIZE, FileKind, Ino, MAX_FILE_SIZE};

/// Rows that one commit takes.
const BATCH: usize = 20_000;

/// What the mounted tree shows at its root, and would hide.
const RESERVED: [&str; 4] = ["@height", "@time", HIDDEN, marker::NAME];

/// What a scan found.
pub(crate) struct Scanned {
    pub next_ino: u64,
    /// Chunks with data.
    pub chunks: u64,
}

/// A directory that is being read.
struct Frame {
    ino: Ino,
    parent: Ino,
    stat: Stat,
    names: std::vec::IntoIter<OsString>,
    subdirs: u32,
}

struct Scan<'a> {
    meta: &'a Meta,
    rows: Vec<(Key, Vec<u8>)>,
    next_ino: u64,
    chunks: u64,
    device: u64,
    uid: Option<u32>,
    /// Files with several names: their inode, how many names were found, and the first of them.
    links: HashMap<(u64, u64), Links>,
}

struct Links {
    ino: Ino,
    found: u32,
    wanted: u32,
    path: PathBuf,
}

/// Writes the rows of the tree at `data_dir` into `meta`. The directory with the id `skip` (a store within the tree)
/// is left out.
pub(crate) fn scan(
    dir: &impl AsFd,
    data_dir: &Path,
    skip: Option<(u64, u64)>,
    meta: &Meta,
    progress: &dyn Progress,
) -> Result<Scanned> {
    let mut cursor =
        Cursor::open(dir.as_fd(), OsStr::new("."), data_dir).map_err(Error::io("open", data_dir))?;
    let root = cursor.stat(OsStr::new("")).map_err(Error::io("stat", data_dir))?;
    let euid = nix::unistd::geteuid();
    let mut scan = Scan {
        meta,
        rows: Vec::new(),
        next_ino: Ino::ROOT.0 + 1,
        chunks: 0,
        device: root.id.0,
        uid: (!euid.is_root()).then(|| euid.as_raw()),
        links: HashMap::new(),
    };
    scan.check(&root, data_dir, true)?;
    scan.xattrs(&cursor, OsStr::new(""), Ino::ROOT)?;
    let mut frames = vec![scan.frame(&cursor, Ino::ROOT, Ino::ROOT, root)?];
    while let Some(frame) = frames.last_mut() {
        let Some(name) = frame.names.next() else {
            scan.directory(frame)?;
            frames.pop();
            if !frames.is_empty() {
                cursor.leave().map_err(Error::io("leave", cursor.path(OsStr::new(""))))?;
            }
            continue;
        };
        let path = || cursor.path(&name);
        if cursor.depth() == 0 && RESERVED.iter().any(|r| name == *r) {
            let stat = cursor.stat(&name).map_err(|e| Error::io("stat", path())(e))?;
            if skip == Some(stat.id) {
                continue;
            }
            return Err(refuse(
                &path(),
                "tmfs uses this name in a data dir itself, and would hide it; rename it first",
            ));
        }
        let stat = cursor.stat(&name).map_err(|e| Error::io("stat", path())(e))?;
        if cursor.depth() == 0 && skip == Some(stat.id) {
            continue;
        }
        scan.check(&stat, &path(), false)?;
        let kind = stat.kind.ok_or_else(|| refuse(&path(), "neither a file nor anything else known"))?;
        let parent = frame.ino;
        let (ino, new) = scan.inode_of(&stat, kind, &path())?;
        scan.put(Key::dentry(parent, name.as_bytes()), DentryRow { ino, kind }.encode())?;
        progress.advance(1);
        if !new {
            continue;
        }
        scan.xattrs(&cursor, &name, ino)?;
        if kind == FileKind::Directory {
            frame.subdirs += 1;
            let path = path();
            cursor.enter(&name).map_err(|e| match e.raw_os_error() {
                Some(libc::EACCES) => refuse(&path, "this user may not read the directory"),
                _ => Error::io("open", &path)(e),
            })?;
            let below = scan.frame(&cursor, ino, parent, stat)?;
            frames.push(below);
        } else {
            scan.file(&cursor, &name, ino, kind, &stat)?;
        }
    }
    scan.flush()?;
    if let Some(links) = scan.links.values().find(|l| l.found != l.wanted) {
        return Err(refuse(
            &links.path,
            format!(
                "has {} names of which {} lie outside of the data dir: whoever writes there would change history; \
                 remove those names, or replace the file by a copy",
                links.wanted,
                links.wanted.saturating_sub(links.found)
            ),
        ));
    }
    Ok(Scanned { next_ino: scan.next_ino, chunks: scan.chunks })
}

impl Scan<'_> {
    fn frame(&mut self, cursor: &Cursor, ino: Ino, parent: Ino, stat: Stat) -> Result<Frame> {
        let names = cursor.names().map_err(Error::io("list", cursor.path(OsStr::new(""))))?;
        Ok(Frame { ino, parent, stat, names: names.into_iter(), subdirs: 0 })
    }

    /// Refuses what could not be renamed, or not be written afterwards.
    fn check(&self, stat: &Stat, path: &Path, root: bool) -> Result<()> {
        if stat.id.0 != self.device || (stat.mount_root && !root) {
            return Err(refuse(path, NESTED));
        }
        if stat.pinned {
            return Err(refuse(
                path,
                "has the immutable or the append-only flag, so it cannot be renamed; clear it with `chattr -ia`",
            ));
        }
        let Some(uid) = self.uid else { return Ok(()) };
        if stat.uid != uid {
            let hint = format!("belongs to user {}; only root can take it over", stat.uid);
            return Err(refuse(path, hint));
        }
        if matches!(stat.kind, Some(FileKind::CharDevice | FileKind::BlockDevice)) {
            return Err(refuse(path, "a device node; only root can take it over"));
        }
        Ok(())
    }

    /// The inode number of what was found, and whether it is new: a hard link has one already.
    fn inode_of(&mut self, stat: &Stat, kind: FileKind, path: &Path) -> Result<(Ino, bool)> {
        if stat.size > MAX_FILE_SIZE && kind == FileKind::Regular {
            return Err(refuse(path, "larger than 16 TiB"));
        }
        if stat.nlink > 1 && kind != FileKind::Directory {
            if let Some(links) = self.links.get_mut(&stat.id) {
                links.found += 1;
                return Ok((links.ino, false));
            }
            let links = Links { ino: Ino(self.next_ino), found: 1, wanted: stat.nlink, path: path.into() };
            self.links.insert(stat.id, links);
        }
        let ino = Ino(self.next_ino);
        self.next_ino += 1;
        Ok((ino, true))
    }

    fn put(&mut self, key: Key, row: Vec<u8>) -> Result<()> {
        self.rows.push((key, row));
        if self.rows.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let mut rows = std::mem::take(&mut self.rows);
        rows.sort_unstable();
        self.meta.rewrite(|w| rows.iter().try_for_each(|(key, row)| w.put(key, BASE, Some(row))))
    }

    fn xattrs(&mut self, cursor: &Cursor, name: &OsStr, ino: Ino) -> Result<()> {
        let io = |e| Error::io("read the extended attributes of", cursor.path(name))(e);
        for key in list_xattr(cursor.dir(), name).map_err(io)? {
            if let Some(value) = get_xattr(cursor.dir(), name, &key).map_err(io)? {
                self.put(Key::xattr(ino, key.as_bytes()), value)?;
            }
        }
        Ok(())
    }

    /// The row of a directory, when all in it has been seen.
    fn directory(&mut self, frame: &Frame) -> Result<()> {
        let row = InodeRow {
            nlink: frame.subdirs + 2,
            parent: frame.parent,
            ..inode_row(&frame.stat, FileKind::Directory)
        };
        self.put(Key::inode(frame.ino), row.encode())
    }

    /// The rows of anything else.
    fn file(&mut self, cursor: &Cursor, name: &OsStr, ino: Ino, kind: FileKind, stat: &Stat) -> Result<()> {
        let mut row = inode_row(stat, kind);
        if kind == FileKind::Symlink {
            let target = readlinkat(cursor.dir(), name)
                .map_err(|e| Error::io("read the symlink", cursor.path(name))(e.into()))?;
            row.target = target.as_bytes().into();
        }
        self.put(Key::inode(ino), row.encode())?;
        if kind == FileKind::Regular && stat.size > 0 {
            let layer = layer_row(cursor, name, stat);
            self.chunks += layer.visible;
            self.put(Key::layer(ino), layer.encode())?;
        }
        Ok(())
    }
}

/// An inode's row, as it is on the disk.
pub(crate) fn inode_row(stat: &Stat, kind: FileKind) -> InodeRow {
    let oldest = stat.mtime.min(stat.ctime);
    InodeRow {
        kind,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        nlink: stat.nlink,
        rdev: if matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) { stat.rdev } else { 0 },
        parent: Ino(0),
        atime: stat.atime,
        mtime: stat.mtime,
        ctime: stat.ctime,
        btime: stat.btime.unwrap_or(oldest),
        target: Box::default(),
    }
}

/// The layer that a file becomes: sealed, and all of it.
pub(crate) fn layer_row(cursor: &Cursor, name: &OsStr, stat: &Stat) -> LayerRow {
    let whole = stat.size.div_ceil(CHUNK_SIZE);
    let visible = match stat.blocks * 512 >= stat.size {
        true => whole,
        // Without permission to look, the blocks are the best guess. It is a count for people only.
        false => data_chunks(cursor, name, stat.size).unwrap_or(stat.blocks.div_ceil(8).min(whole)),
    };
    LayerRow {
        file: LayerFile { epoch: BASE, turn: 0 },
        size: stat.size,
        limit: 0,
        blocks: stat.blocks,
        visible,
        sealed: true,
        // Adopting reads no data.
        summed: false,
        zeroed: Default::default(),
        chunks: None,
    }
}

/// How many chunks of a sparse file hold data.
fn data_chunks(cursor: &Cursor, name: &OsStr, size: u64) -> Option<u64> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file: File = openat(cursor.dir(), name, flags, Mode::empty()).ok()?.into();
    let seek = |at: u64, whence| nix::unistd::lseek64(&file, at as i64, whence);
    let (mut count, mut at, mut counted) = (0, 0, 0);
    while at < size {
        let data = match seek(at, Whence::SeekData) {
            Ok(data) => data as u64,
            Err(nix::Error::ENXIO) => break,
            Err(_) => return None,
        };
        let hole = (seek(data, Whence::SeekHole).ok()? as u64).min(size);
        let (first, end) = ((data / CHUNK_SIZE).max(counted), hole.div_ceil(CHUNK_SIZE));
        count += end.saturating_sub(first);
        counted = counted.max(end);
        at = hole.max(data + 1);
    }
    Some(count)
}
