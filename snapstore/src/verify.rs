//! Reading everything back: what is damaged, by path, height and byte range.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

use crate::backend::{FileRead, Seek, Tree};
use crate::control::wire_path;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::types::{CHUNK_SIZE, FileKind, Height, Ino};

/// What a verification has found.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Snapshots that were looked at.
    pub heights: u64,
    /// Bytes of data that were read and compared with their hashes.
    pub bytes: u64,
    /// Bytes that could be read, but have no hash yet: of an adopted directory, before the first scrub.
    pub unhashed_bytes: u64,
    /// What is damaged, in order of heights and paths. Empty: nothing.
    pub damaged: Vec<Damage>,
}

/// The last scrub, as `tmfs status` shows it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ScrubResult {
    /// When it ended.
    pub time: jiff::Timestamp,
    /// Bytes that it read and compared.
    pub bytes: u64,
    /// Damaged parts of files that it found.
    pub damaged: u64,
}

/// How far a verification is that is going on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Activity {
    /// Bytes that were read.
    pub done: u64,
    /// Bytes there are, about.
    pub total: u64,
}

/// A damaged part of a file, or of what is known about it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Damage {
    /// Where it is seen; `None`: in the live head.
    pub height: Option<Height>,
    /// Relative to the data dir; empty for metadata that belongs to no path.
    #[serde(with = "wire_path")]
    pub path: PathBuf,
    /// The first damaged byte.
    pub offset: u64,
    /// How many bytes; 0: not the content, but the names or attributes.
    pub length: u64,
    /// What is wrong, in words.
    pub detail: String,
}

/// Reads a whole tree, or of its files only those in `only`, on so many threads. What is damaged is noted in no
/// particular order.
pub fn tree(
    tree: &dyn Tree,
    height: Option<Height>,
    only: Option<&BTreeSet<Ino>>,
    threads: usize,
    progress: &dyn Progress,
    report: &mut VerifyReport,
) -> Result<()> {
    let reader = Reader { tree, height, progress, bytes: 0, damaged: Vec::new() };
    let mut walk = Walk { reader, only, threads, seen: BTreeSet::new(), files: Vec::new() };
    let walked = walk.dir(Ino::ROOT, Path::new(""), 0).and_then(|()| walk.read_files());
    report.bytes += walk.reader.bytes;
    report.damaged.append(&mut walk.reader.damaged);
    walked
}

/// So many files are found before they are read: enough for all threads.
const FILES: usize = 4096;

/// Goes through the names and attributes, and lists the files to be read.
struct Walk<'a> {
    reader: Reader<'a>,
    only: Option<&'a BTreeSet<Ino>>,
    threads: usize,
    seen: BTreeSet<Ino>,
    files: Vec<(Ino, PathBuf)>,
}

/// Reads, and notes what is damaged.
struct Reader<'a> {
    tree: &'a dyn Tree,
    height: Option<Height>,
    progress: &'a dyn Progress,
    bytes: u64,
    damaged: Vec<Damage>,
}

impl Walk<'_> {
    fn dir(&mut self, dir: Ino, path: &Path, depth: usize) -> Result<()> {
        if depth > 4096 {
            return self.reader.note(
                path,
                0,
                0,
                &Error::Damaged { what: "directory tree", detail: "a cycle".into() },
            );
        }
        let entries = match self.reader.tree.read_dir(dir) {
            Ok(entries) => entries,
            Err(error) => return self.reader.note(path, 0, 0, &error),
        };
        for entry in entries {
            let path = path.join(&entry.name);
            if let Err(error) = self.reader.attributes(entry.ino, entry.kind) {
                self.reader.note(&path, 0, 0, &error)?;
            }
            match entry.kind {
                FileKind::Directory => self.dir(entry.ino, &path, depth + 1)?,
                FileKind::Regular if self.is_wanted(entry.ino) => {
                    self.files.push((entry.ino, path));
                    if self.files.len() == FILES {
                        self.read_files()?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A file with several names is read once; one that is asked for, by each name.
    fn is_wanted(&mut self, ino: Ino) -> bool {
        match self.only {
            Some(only) => only.contains(&ino),
            None => self.seen.insert(ino),
        }
    }

    /// Reads the files that were listed.
    fn read_files(&mut self) -> Result<()> {
        let files = std::mem::take(&mut self.files);
        let next = AtomicUsize::new(0);
        let Reader { tree, height, progress, .. } = self.reader;
        let read = || {
            let mut reader = Reader { tree, height, progress, bytes: 0, damaged: Vec::new() };
            let mut done = Ok(());
            while done.is_ok()
                && let Some((ino, path)) = files.get(next.fetch_add(1, Ordering::Relaxed))
            {
                done = reader.file(*ino, path);
            }
            (reader.bytes, reader.damaged, done)
        };
        let threads = self.threads.clamp(1, files.len().max(1));
        let found: Vec<_> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(read)).collect();
            let own = read();
            let others = others.into_iter().map(|other| match other.join() {
                Ok(found) => found,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            others.chain([own]).collect()
        });
        let mut all = Ok(());
        for (bytes, mut damaged, done) in found {
            self.reader.bytes += bytes;
            self.reader.damaged.append(&mut damaged);
            all = all.and(done);
        }
        all
    }
}

impl Reader<'_> {
    fn attributes(&self, ino: Ino, kind: FileKind) -> Result<()> {
        let attr = self.tree.get_attr(ino)?;
        if attr.kind != kind {
            return Err(Error::Damaged { what: "inode", detail: format!("{ino} is not what its name says") });
        }
        for name in self.tree.list_xattr(ino)? {
            self.tree.get_xattr(ino, &name)?;
        }
        if kind == FileKind::Symlink {
            self.tree.read_link(ino)?;
        }
        Ok(())
    }

    fn file(&mut self, ino: Ino, path: &Path) -> Result<()> {
        match self.tree.open(ino).and_then(|file| self.content(&*file, path)) {
            Ok(()) => Ok(()),
            Err(error) => self.note(path, 0, 0, &error),
        }
    }

    fn content(&mut self, file: &dyn FileRead, path: &Path) -> Result<()> {
        const STEP: u64 = 1 << 20;
        let mut buf = vec![0; STEP as usize];
        let mut at = 0;
        loop {
            at = match file.seek(at, Seek::Data) {
                Ok(data) => data - data % CHUNK_SIZE,
                Err(Error::NoData) => return Ok(()),
                Err(error) => return Err(error),
            };
            match file.read_at(&mut buf, at) {
                Ok(0) => return Ok(()),
                Ok(got) => {
                    self.advance(got as u64);
                    at += got as u64;
                }
                Err(error) if is_end(&error) => return Err(error),
                Err(_) => {
                    self.pieces(file, path, at, STEP)?;
                    at += STEP;
                }
            }
        }
    }

    /// Chunk by chunk where a larger piece could not be read.
    fn pieces(&mut self, file: &dyn FileRead, path: &Path, from: u64, len: u64) -> Result<()> {
        let mut buf = vec![0; CHUNK_SIZE as usize];
        let mut at = from;
        while at < from + len {
            match file.read_at(&mut buf, at) {
                Ok(0) => break,
                Ok(got) => self.advance(got as u64),
                Err(error) if is_end(&error) => return Err(error),
                Err(error) => {
                    let left = file.len()?.saturating_sub(at).min(CHUNK_SIZE);
                    self.note(path, at, left, &error)?;
                }
            }
            at += CHUNK_SIZE;
        }
        Ok(())
    }

    fn advance(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.progress.advance(bytes);
    }

    /// Notes damage. What is no damage ends the walk: the store was closed, or the snapshot was deleted meanwhile.
    fn note(&mut self, path: &Path, offset: u64, length: u64, error: &Error) -> Result<()> {
        if is_end(error) {
            return Err(if matches!(error, Error::Closed) { Error::Closed } else { Error::Stale });
        }
        let known = &mut self.damaged;
        // Neighbouring chunks are one range.
        if let Some(last) = known.last_mut()
            && last.height == self.height
            && last.path == path
            && length > 0
            && last.offset + last.length == offset
        {
            last.length += length;
            return Ok(());
        }
        let (height, path, detail) = (self.height, path.to_owned(), error.to_string());
        known.push(Damage { height, path, offset, length, detail });
        Ok(())
    }
}

fn is_end(error: &Error) -> bool {
    matches!(error, Error::Closed | Error::Stale)
}
