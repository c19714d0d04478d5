//! Trees in memory, compared.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::types::StatFs;

/// A node of a [`Memory`] tree.
#[derive(Clone)]
struct Node {
    attr: Attr,
    content: Vec<u8>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    entries: BTreeMap<OsString, Ino>,
}

/// A tree in memory.
#[derive(Clone)]
struct Memory {
    nodes: BTreeMap<Ino, Node>,
    /// Entries that the listing shows and that are gone when looked at.
    vanished: BTreeSet<Ino>,
    read: Arc<AtomicU64>,
}

const ROOT_TIME: Timestamp = Timestamp { secs: 1_000, nanos: 0 };

impl Memory {
    fn new() -> Memory {
        let mut tree = Memory { nodes: BTreeMap::new(), vanished: BTreeSet::new(), read: Arc::default() };
        tree.node(Ino::ROOT, FileKind::Directory, b"");
        tree
    }

    fn node(&mut self, ino: Ino, kind: FileKind, content: &[u8]) {
        let time = ROOT_TIME;
        let attr = Attr {
            ino,
            kind,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: content.len() as u64,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
        };
        let (xattrs, entries) = (BTreeMap::new(), BTreeMap::new());
        self.nodes.insert(ino, Node { attr, content: content.to_vec(), xattrs, entries });
    }

    /// Adds something at a path whose directories exist; gives its inode number.
    fn add(&mut self, path: impl AsRef<Path>, kind: FileKind, content: &[u8]) -> Ino {
        let path = path.as_ref();
        let ino = Ino(self.nodes.keys().next_back().unwrap().0 + 1);
        self.node(ino, kind, content);
        let parent = self.at(path.parent().unwrap()).attr.ino;
        self.nodes.get_mut(&parent).unwrap().entries.insert(path.file_name().unwrap().to_owned(), ino);
        ino
    }

    fn file(&mut self, path: &str, content: &[u8]) -> Ino {
        self.add(path, FileKind::Regular, content)
    }

    fn dir(&mut self, path: &str) -> Ino {
        self.add(path, FileKind::Directory, b"")
    }

    fn at(&mut self, path: impl AsRef<Path>) -> &mut Node {
        let (_, names) = components(path.as_ref()).unwrap();
        let ino = resolve(self, &names).unwrap().unwrap().ino;
        self.nodes.get_mut(&ino).unwrap()
    }

    fn remove(&mut self, path: &str) {
        let path = Path::new(path);
        self.at(path.parent().unwrap()).entries.remove(path.file_name().unwrap());
    }

    fn get(&self, ino: Ino) -> Result<&Node> {
        self.nodes.get(&ino).filter(|_| !self.vanished.contains(&ino)).ok_or(Error::NoEntry)
    }
}

impl Tree for Memory {
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        let parent = self.get(parent)?;
        if parent.attr.kind != FileKind::Directory {
            return Err(Error::NotDirectory);
        }
        self.get_attr(*parent.entries.get(name).ok_or(Error::NoEntry)?)
    }
    fn get_attr(&self, ino: Ino) -> Result<Attr> {
        Ok(self.get(ino)?.attr)
    }
    fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        Ok(self.get(ino)?.content.clone())
    }
    fn read_dir(&self, dir: Ino) -> Result<Vec<DirEntry>> {
        let entries = self.get(dir)?.entries.iter();
        Ok(entries
            .map(|(name, ino)| DirEntry { name: name.clone(), ino: *ino, kind: self.nodes[ino].attr.kind })
            .collect())
    }
    fn parent(&self, _dir: Ino) -> Result<Ino> {
        unreachable!("a walk goes down only")
    }
    fn get_xattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        self.get(ino)?.xattrs.get(name).cloned().ok_or(Error::NoXattr)
    }
    fn list_xattr(&self, ino: Ino) -> Result<Vec<OsString>> {
        Ok(self.get(ino)?.xattrs.keys().cloned().collect())
    }
    fn open(&self, ino: Ino) -> Result<Arc<dyn FileRead>> {
        Ok(Arc::new(Content { bytes: self.get(ino)?.content.clone(), read: self.read.clone() }))
    }
    fn stat_fs(&self) -> Result<StatFs> {
        Ok(StatFs::default())
    }
}

/// A file of a [`Memory`] tree: blocks of 4096 zero bytes are holes.
struct Content {
    bytes: Vec<u8>,
    read: Arc<AtomicU64>,
}

impl FileRead for Content {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let rest = self.bytes.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buf.len()).min(5000); // short reads are legal to survive
        buf[..len].copy_from_slice(&rest[..len]);
        self.read.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }
    fn len(&self) -> Result<u64> {
        Ok(self.bytes.len() as u64)
    }
    fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        assert_eq!(what, Seek::Data);
        let mut at = offset as usize;
        while let Some(block) = self.bytes.get(at..self.bytes.len().min((at / 4096 + 1) * 4096)) {
            if block.is_empty() {
                break;
            }
            if block.iter().any(|byte| *byte != 0) {
                return Ok(at as u64);
            }
            at += block.len();
        }
        Err(Error::NoData)
    }
}

fn changes(a: &Memory, b: &Memory, below: Option<&str>) -> Vec<String> {
    let changes = between(a, b, below.map(Path::new)).unwrap();
    changes
        .iter()
        .map(|change| {
            let sign = match change.kind {
                ChangeKind::Added => '+',
                ChangeKind::Removed => '-',
                ChangeKind::Modified => 'M',
                ChangeKind::Attributes => 'A',
                ChangeKind::Replaced => 'R',
            };
            format!("{sign} {}", change.path.display())
        })
        .collect()
}

#[test]
fn each_kind_of_change() {
    let mut a = Memory::new();
    a.dir("d");
    a.file("d/same", b"1");
    a.file("d/gone", b"2");
    a.file("d/grown", b"3");
    a.file("mode", b"4");
    a.file("d/kind", b"5");
    a.add("link", FileKind::Symlink, b"to");
    a.file("xattr", b"6");
    let mut b = a.clone();
    b.remove("d/gone");
    b.at("d/grown").content = b"33".to_vec();
    b.at("d/grown").attr.size = 2;
    b.at("mode").attr.mode = 0o600;
    b.at("d/kind").attr.kind = FileKind::Fifo;
    b.at("link").content = b"no".to_vec();
    b.at("xattr").xattrs.insert("user.x".into(), vec![]);
    b.file("d/more", b"7");
    assert_eq!(
        changes(&a, &b, None),
        ["- d/gone", "M d/grown", "R d/kind", "+ d/more", "M link", "A mode", "A xattr"]
    );
    assert_eq!(changes(&a, &a.clone(), None), [""; 0]);
    assert_eq!(changes(&a, &b, Some("./d/more")), ["+ d/more"]);
    assert_eq!(changes(&a, &b, Some("mode")), ["A mode"]);
    assert!(matches!(between(&a, &b, Some(Path::new("nowhere"))), Err(Error::NoEntry)));
    assert!(matches!(between(&a, &b, Some(Path::new("mode/x"))), Err(Error::NoEntry)));
    assert!(matches!(between(&a, &b, Some(Path::new("d/../mode"))), Err(Error::InvalidArgument)));
}

#[test]
fn a_directory_that_comes_or_goes_brings_everything_below_it() {
    let mut a = Memory::new();
    a.file("swap", b"");
    let mut b = Memory::new();
    b.dir("new");
    b.dir("new/deep");
    b.file("new/deep/file", b"");
    b.file("new-er", b"");
    b.dir("swap");
    b.file("swap/in", b"");
    let to = ["+ new", "+ new/deep", "+ new/deep/file", "+ new-er", "R swap", "+ swap/in"];
    assert_eq!(changes(&a, &b, None), to);
    let back = ["- new", "- new/deep", "- new/deep/file", "- new-er", "R swap", "- swap/in"];
    assert_eq!(changes(&b, &a, None), back);
}

#[test]
fn content_is_found_whatever_the_times_say() {
    let mut a = Memory::new();
    a.file("f", &[7; 20_000]);
    let mut b = a.clone();
    b.at("f").content[19_999] = 8;
    b.at("f").attr.ctime.secs += 1; // mtime was put back; ctime cannot be
    assert_eq!(changes(&a, &b, None), ["M f"]);
    b.at("f").content[19_999] = 7;
    assert_eq!(changes(&a, &b, None), [""; 0], "written with what was there");
    b.at("f").attr.mtime.nanos += 1;
    assert_eq!(changes(&a, &b, None), ["A f"]);
}

#[test]
fn a_write_in_the_tick_of_the_cut_is_found() {
    let mut a = Memory::new();
    a.file("f", b"old");
    let mut b = a.clone();
    b.at("f").content = b"new".to_vec();
    let cut = |secs| between_cuts(&a, &b, None, Timestamp { secs, nanos: 0 }).unwrap().len();
    assert_eq!(cut(ROOT_TIME.secs), 1);
    assert_eq!(cut(ROOT_TIME.secs + SETTLED_SECS), 1);
    assert_eq!(cut(ROOT_TIME.secs + SETTLED_SECS + 1), 0, "long before the cut ctime is proof");
}

#[test]
fn what_was_not_touched_and_what_is_a_hole_is_not_read() {
    let mut a = Memory::new();
    a.file("untouched", &[1; 9000]);
    a.file("sparse", &vec![0; 4 << 20]);
    a.at("sparse").content[3 << 20] = 1;
    let mut b = a.clone();
    b.at("sparse").attr.ctime.secs += 1;
    assert_eq!(changes(&a, &b, None), [""; 0]);
    let read = a.read.load(Ordering::Relaxed);
    assert!(read > 0 && read <= 4 * PIECE as u64, "{read} bytes read");
    b.at("sparse").content[0] = 1;
    assert_eq!(changes(&a, &b, None), ["M sparse"]);
}

#[test]
fn a_directorys_times_count_only_on_their_own() {
    let mut a = Memory::new();
    a.dir("d");
    let mut b = a.clone();
    b.at("d").attr.mtime.secs += 1;
    assert_eq!(changes(&a, &b, None), ["A d"]);
    b.file("d/new", b"");
    assert_eq!(changes(&a, &b, None), ["+ d/new"]);
}

#[test]
fn an_entry_that_vanishes_under_the_walk_is_absent() {
    let mut a = Memory::new();
    let ino = a.file("f", b"");
    let mut b = a.clone();
    b.vanished.insert(ino);
    assert_eq!(changes(&a, &b, None), ["- f"]);
}

#[test]
fn names_are_bytes_and_depth_does_not_matter() {
    let mut a = Memory::new();
    let mut b = Memory::new();
    let odd = PathBuf::from(OsStr::from_bytes(b"\xff\n"));
    b.add(&odd, FileKind::Regular, b"");
    assert_eq!(between(&a, &b, None).unwrap(), [Change { path: odd, kind: ChangeKind::Added }]);

    // Built from below: a path of thousands of names would take long to walk again and again.
    a = Memory::new();
    let mut parent = Ino::ROOT;
    for _ in 0..2_000 {
        let ino = Ino(parent.0 + 1);
        a.node(ino, FileKind::Directory, b"");
        a.nodes.get_mut(&parent).unwrap().entries.insert("d".into(), ino);
        parent = ino;
    }
    assert_eq!(between(&a, &Memory::new(), None).unwrap().len(), 2_000);
}
