//! What differs between two trees.
//!
//! Both trees are walked side by side in byte order of their names, so that memory holds one listing for each level
//! of the path that is being looked at, however many files there are. The walk keeps its own stack: a tree may be
//! deeper than a thread's.
//!
//! What counts as a difference:
//!
//! * **Content** decides for files, found by reading both where attributes leave a doubt. The same inode with the same
//!   size, mtime and ctime has not been written in between: ctime cannot be set, so a program that puts the old mtime
//!   back is found out. But ctime moves in ticks of the kernel's clock: a write just after the cut can leave it as it
//!   was. So ctime is trusted only when it lies well before the older tree's cut ([`between_cuts`]).
//! * **Attributes** are mode, owner, mtime, atime (which reading does not move) and extended attributes; ctime and
//!   birth are not, since nobody can set them.
//! * A **directory's** times move with its entries, which are listed themselves: they count only when its entries are
//!   the same on both sides.

use std::cmp::Ordering;
use std::path::{Component, Path, PathBuf};
use std::vec;

use serde::{Deserialize, Serialize};

use crate::backend::{FileRead, Seek, Tree};
use crate::control::wire_path;
use crate::error::{Error, Result};
use crate::types::{Attr, DirEntry, FileKind, Ino, Timestamp};

#[cfg(test)]
mod tests;

/// One difference.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// Relative to the data dir (empty for the data dir itself). In JSON a string, or `{"bytes": "<hex>"}` when it is
    /// not UTF-8.
    #[serde(with = "wire_path")]
    pub path: PathBuf,
    /// What happened to it on the way from the first tree to the second.
    pub kind: ChangeKind,
}

/// What happened to a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Only in the second tree.
    Added,
    /// Only in the first tree.
    Removed,
    /// In both, with other content, target or device number.
    Modified,
    /// In both, with the same content, but other permissions, owner, times or extended attributes.
    Attributes,
    /// In both, as different kinds of inode.
    Replaced,
}

/// How long before a cut a ctime must lie to be trusted: far more than any kernel's tick, and than what a clock that
/// is being slewed makes of it.
const SETTLED_SECS: i64 = 2;

/// How much content is compared at a time.
const PIECE: usize = 128 << 10;

/// What happened on the way from `a` to `b`, at and below the path `below` (relative to the data dir), parents before
/// children, otherwise in byte order of the names. An added or removed directory is listed with everything below it.
///
/// The same inode with equal size, mtime and ctime is taken for unchanged, which is exact only if no write came
/// within a clock's tick of a cut: see [`between_cuts`].
///
/// [`Error::NoEntry`] when neither tree has `below`; [`Error::InvalidArgument`] when it leads out of the data dir.
pub fn between(a: &dyn Tree, b: &dyn Tree, below: Option<&Path>) -> Result<Vec<Change>> {
    Walk::new(a, b, None).run(below)
}

/// As [`between`], for trees of which the older was cut at `older`: exact also for writes right after the cut.
pub fn between_cuts(
    a: &dyn Tree,
    b: &dyn Tree,
    below: Option<&Path>,
    older: Timestamp,
) -> Result<Vec<Change>> {
    let settled = Timestamp { secs: older.secs.saturating_sub(SETTLED_SECS), nanos: older.nanos };
    Walk::new(a, b, Some(settled)).run(below)
}

/// A walk of two trees.
struct Walk<'a> {
    a: &'a dyn Tree,
    b: &'a dyn Tree,
    /// Up to when a ctime can be trusted; `None` for always.
    settled: Option<Timestamp>,
    stack: Vec<Level>,
    changes: Vec<Change>,
    buffers: (Vec<u8>, Vec<u8>),
}

/// A directory being walked: what is left of its entries on both sides.
struct Level {
    path: PathBuf,
    a: vec::IntoIter<DirEntry>,
    b: vec::IntoIter<DirEntry>,
}

impl<'a> Walk<'a> {
    fn new(a: &'a dyn Tree, b: &'a dyn Tree, settled: Option<Timestamp>) -> Walk<'a> {
        let (stack, changes) = (Vec::new(), Vec::new());
        Walk { a, b, settled, stack, changes, buffers: (vec![0; PIECE], vec![0; PIECE]) }
    }

    fn run(mut self, below: Option<&Path>) -> Result<Vec<Change>> {
        let (path, names) = components(below.unwrap_or(Path::new("")))?;
        let (a, b) = (resolve(self.a, &names)?, resolve(self.b, &names)?);
        if a.is_none() && b.is_none() {
            return Err(Error::NoEntry);
        }
        self.node(path, a, b)?;
        while let Some(level) = self.stack.last_mut() {
            let (a, b) = level.next();
            let Some(name) = a.as_ref().or(b.as_ref()).map(|entry| &entry.name) else {
                self.stack.pop();
                continue;
            };
            let path = level.path.join(name);
            // A live tree may lose an entry between the listing and the look at it.
            let a = present(a.map(|entry| self.a.get_attr(entry.ino)))?;
            let b = present(b.map(|entry| self.b.get_attr(entry.ino)))?;
            self.node(path, a, b)?;
        }
        Ok(self.changes)
    }

    /// Compares what is at `path`, and puts the entries of directories on the stack.
    fn node(&mut self, path: PathBuf, a: Option<Attr>, b: Option<Attr>) -> Result<()> {
        let directory = |attr: &Option<Attr>| attr.filter(|attr| attr.kind == FileKind::Directory);
        let list = |tree: &dyn Tree, attr: Option<Attr>| -> Result<Vec<DirEntry>> {
            Ok(present(attr.map(|attr| tree.read_dir(attr.ino)))?.unwrap_or_default())
        };
        let (in_a, in_b) = (list(self.a, directory(&a))?, list(self.b, directory(&b))?);
        let kind = match (&a, &b) {
            (None, None) => return Ok(()),
            (None, Some(_)) => Some(ChangeKind::Added),
            (Some(_), None) => Some(ChangeKind::Removed),
            (Some(a), Some(b)) if a.kind != b.kind => Some(ChangeKind::Replaced),
            (Some(a), Some(b)) => {
                let with_times = a.kind != FileKind::Directory || in_a == in_b;
                match self.compare(a, b, with_times) {
                    // Something of it vanished from a live tree meanwhile: it is being changed.
                    Err(Error::NoEntry | Error::NoXattr) => Some(ChangeKind::Modified),
                    compared => compared?,
                }
            }
        };
        if let Some(kind) = kind {
            self.changes.push(Change { path: path.clone(), kind });
        }
        if !in_a.is_empty() || !in_b.is_empty() {
            self.stack.push(Level { path, a: in_a.into_iter(), b: in_b.into_iter() });
        }
        Ok(())
    }

    /// Compares two inodes of one kind.
    fn compare(&mut self, a: &Attr, b: &Attr, with_times: bool) -> Result<Option<ChangeKind>> {
        Ok(if !self.same_content(a, b)? {
            Some(ChangeKind::Modified)
        } else if !self.same_attributes(a, b, with_times)? {
            Some(ChangeKind::Attributes)
        } else {
            None
        })
    }

    fn same_content(&mut self, a: &Attr, b: &Attr) -> Result<bool> {
        Ok(match a.kind {
            FileKind::Directory | FileKind::Fifo | FileKind::Socket => true,
            FileKind::CharDevice | FileKind::BlockDevice => a.rdev == b.rdev,
            FileKind::Symlink => self.a.read_link(a.ino)? == self.b.read_link(b.ino)?,
            FileKind::Regular if a.size != b.size => false,
            FileKind::Regular if self.is_untouched(a, b)? => true,
            FileKind::Regular => {
                let (a, b) = (self.a.open(a.ino)?, self.b.open(b.ino)?);
                same_bytes(&*a, &*b, &mut self.buffers)?
            }
        })
    }

    /// Whether it is certain without reading that the file was not written between the two trees.
    fn is_untouched(&self, a: &Attr, b: &Attr) -> Result<bool> {
        if a.ino != b.ino {
            return Ok(false);
        }
        if let (Some(a), Some(b)) = (self.a.content_mark(a.ino)?, self.b.content_mark(b.ino)?) {
            return Ok(a == b);
        }
        let settled = self.settled.is_none_or(|settled| a.ctime < settled);
        Ok(settled && (a.mtime, a.ctime) == (b.mtime, b.ctime))
    }

    fn same_attributes(&self, a: &Attr, b: &Attr, with_times: bool) -> Result<bool> {
        if (a.mode, a.uid, a.gid) != (b.mode, b.uid, b.gid)
            || with_times && (a.mtime, a.atime) != (b.mtime, b.atime)
        {
            return Ok(false);
        }
        let names = |tree: &dyn Tree, ino: Ino| {
            tree.list_xattr(ino).map(|mut names| {
                names.sort();
                names
            })
        };
        let in_a = names(self.a, a.ino)?;
        if in_a != names(self.b, b.ino)? {
            return Ok(false);
        }
        for name in &in_a {
            if self.a.get_xattr(a.ino, name)? != self.b.get_xattr(b.ino, name)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Level {
    /// The next name's entries: on both sides, or on the one that has it.
    fn next(&mut self) -> (Option<DirEntry>, Option<DirEntry>) {
        let order = match (self.a.as_slice().first(), self.b.as_slice().first()) {
            (Some(a), Some(b)) => a.name.cmp(&b.name),
            (Some(_), None) => Ordering::Less,
            _ => Ordering::Greater,
        };
        match order {
            Ordering::Less => (self.a.next(), None),
            Ordering::Equal => (self.a.next(), self.b.next()),
            Ordering::Greater => (None, self.b.next()),
        }
    }
}

/// The names that lead from the root to `path`, and the path made of them.
fn components(path: &Path) -> Result<(PathBuf, Vec<&std::ffi::OsStr>)> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => names.push(name),
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::InvalidArgument);
            }
        }
    }
    Ok((names.iter().collect(), names))
}

/// What the names lead to, symlinks not followed; `None` when it is not there.
fn resolve(tree: &dyn Tree, names: &[&std::ffi::OsStr]) -> Result<Option<Attr>> {
    let mut attr = tree.get_attr(Ino::ROOT)?;
    for name in names {
        match tree.lookup(attr.ino, name) {
            Ok(found) => attr = found,
            Err(Error::NoEntry | Error::NotDirectory) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(attr))
}

/// Turns "it is not there (any more)" into `None`.
fn present<T>(found: Option<Result<T>>) -> Result<Option<T>> {
    match found {
        None | Some(Err(Error::NoEntry)) => Ok(None),
        Some(Ok(found)) => Ok(Some(found)),
        Some(Err(error)) => Err(error),
    }
}

/// Whether two files hold the same bytes. What is a hole in both is not read.
fn same_bytes(a: &dyn FileRead, b: &dyn FileRead, buffers: &mut (Vec<u8>, Vec<u8>)) -> Result<bool> {
    let mut at = 0;
    loop {
        at = match (next_data(a, at)?, next_data(b, at)?) {
            (Some(a), Some(b)) => a.min(b),
            (Some(at), None) | (None, Some(at)) => at,
            (None, None) => return Ok(a.len()? == b.len()?),
        };
        let (in_a, in_b) = (read_full(a, &mut buffers.0, at)?, read_full(b, &mut buffers.1, at)?);
        if buffers.0[..in_a] != buffers.1[..in_b] {
            return Ok(false);
        }
        if in_a == 0 {
            return Ok(true);
        }
        at += in_a as u64;
    }
}

/// Where the next data at or after `at` begins. A file that cannot tell counts as all data.
fn next_data(file: &dyn FileRead, at: u64) -> Result<Option<u64>> {
    match file.seek(at, Seek::Data) {
        Ok(data) => Ok(Some(data)),
        Err(Error::NoData) => Ok(None),
        Err(Error::Unsupported) => Ok(Some(at)),
        Err(error) => Err(error),
    }
}

/// Fills `buf`; fewer bytes only at the file's end.
fn read_full(file: &dyn FileRead, buf: &mut [u8], offset: u64) -> Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64)? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}
