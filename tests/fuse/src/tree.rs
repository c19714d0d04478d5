//! Reads a whole tree and compares two of them fully: names, kinds, permissions, owners, times to the nanosecond,
//! sizes, contents, extended attributes (ACLs among them), link structure.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::sys;

/// Content is compared in blocks of this size; blocks of zeros count as holes.
const BLOCK: usize = 4096;
/// Up to this size a file is read whole; above, by SEEK_DATA.
const READ_WHOLE: u64 = 64 << 20;
/// Contents up to this size are kept as they are, so that a difference can be shown.
const KEEP: usize = 1 << 20;

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs)]
pub enum Kind {
    Dir,
    File,
    Symlink,
    Fifo,
    Socket,
    Char,
    Block,
}

/// The content of a file or the target of a symlink.
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    /// Neither file nor symlink.
    None,
    /// All bytes.
    Bytes(Vec<u8>),
    /// A hash of the blocks that are not zero, with their places.
    Hash(u64),
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Content::None => f.write_str("none"),
            Content::Bytes(bytes) if bytes.len() <= 64 => write!(f, "{:?}", String::from_utf8_lossy(bytes)),
            Content::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Content::Hash(hash) => write!(f, "hash {hash:016x}"),
        }
    }
}

/// Seconds and nanoseconds.
pub type Time = (i64, i64);

/// One name of a tree and what it leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // stat's names.
pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// 0 for a directory, whose link count is the file system's own business.
    pub nlink: u64,
    /// 0 unless it is a file or a symlink.
    pub size: u64,
    pub rdev: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub content: Content,
    /// The first name (in byte order) of the same inode in the tree.
    pub same_as: PathBuf,
    /// The inode's number. Never compared.
    pub ino: u64,
}

/// A whole tree: every path, relative to the root; the root itself is the empty path.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// The names.
    pub nodes: BTreeMap<PathBuf, Node>,
}

/// What a comparison looks at beyond names, kinds, permissions, owners, sizes, contents, xattrs and links.
#[derive(Clone, Copy, Debug)]
pub struct With {
    /// Modification times.
    pub mtime: bool,
    /// Modification times of directories too.
    pub dir_mtime: bool,
    /// Change times.
    pub ctime: bool,
}

impl With {
    /// Every time but atime: a view against the live tree it was taken of.
    pub const ALL: With = With { mtime: true, dir_mtime: true, ctime: true };
    /// Modification times: what a copy or an eject keeps.
    pub const MTIME: With = With { mtime: true, dir_mtime: true, ctime: false };
    /// No times.
    pub const NO_TIMES: With = With { mtime: false, dir_mtime: false, ctime: false };
}

impl Tree {
    /// Reads all of `root`, not following symlinks.
    #[track_caller]
    pub fn read(root: &Path) -> Tree {
        let mut tree = Tree::default();
        let mut seen = BTreeMap::new();
        tree.walk(root, PathBuf::new(), &mut seen);
        tree
    }

    #[track_caller]
    fn walk(&mut self, root: &Path, path: PathBuf, seen: &mut BTreeMap<(u64, u64), PathBuf>) {
        let full = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(&path) };
        let node = read_node(&full, &path, seen);
        let is_dir = node.kind == Kind::Dir;
        self.nodes.insert(path.clone(), node);
        if !is_dir {
            return;
        }
        let entries =
            fs::read_dir(&full).unwrap_or_else(|error| panic!("readdir {}: {error}", full.display()));
        let mut names: Vec<_> = entries
            .map(|entry| {
                entry.unwrap_or_else(|error| panic!("readdir {}: {error}", full.display())).file_name()
            })
            .collect();
        names.sort_unstable();
        assert!(names.is_sorted_by(|a, b| a != b), "a name twice in {}: {names:?}", full.display());
        for name in names {
            self.walk(root, path.join(name), seen);
        }
    }

    /// What differs, in words; empty when nothing does.
    pub fn differences(&self, other: &Tree, with: With) -> Vec<String> {
        let mut found = Vec::new();
        for (path, node) in &self.nodes {
            match other.nodes.get(path) {
                None => found.push(format!("only in the first: {path:?} ({:?})", node.kind)),
                Some(twin) => compare(path, node, twin, with, &mut found),
            }
        }
        let missing = other.nodes.iter().filter(|(path, _)| !self.nodes.contains_key(*path));
        found.extend(missing.map(|(path, node)| format!("only in the second: {path:?} ({:?})", node.kind)));
        found
    }

    /// Panics with what differs from `other`.
    #[track_caller]
    pub fn assert_same(&self, other: &Tree, with: With, what: &str) {
        let found = self.differences(other, with);
        assert!(found.is_empty(), "{what}: {} differences:\n  {}", found.len(), summary(&found));
    }
}

fn summary(found: &[String]) -> String {
    found.iter().take(30).map(String::as_str).collect::<Vec<_>>().join("\n  ")
}

#[track_caller]
fn read_node(full: &Path, path: &Path, seen: &mut BTreeMap<(u64, u64), PathBuf>) -> Node {
    let fail =
        |what: &str, error: &dyn std::fmt::Display| -> ! { panic!("{what} {}: {error}", full.display()) };
    let data = fs::symlink_metadata(full).unwrap_or_else(|error| fail("stat", &error));
    let file_type = data.file_type();
    let (kind, content) = if file_type.is_dir() {
        (Kind::Dir, Content::None)
    } else if file_type.is_file() {
        (Kind::File, read_content(full).unwrap_or_else(|error| fail("read", &error)))
    } else if file_type.is_symlink() {
        let target = fs::read_link(full).unwrap_or_else(|error| fail("readlink", &error));
        (Kind::Symlink, Content::Bytes(target.as_os_str().as_bytes().to_vec()))
    } else if file_type.is_fifo() {
        (Kind::Fifo, Content::None)
    } else if file_type.is_socket() {
        (Kind::Socket, Content::None)
    } else if file_type.is_char_device() {
        (Kind::Char, Content::None)
    } else {
        (Kind::Block, Content::None)
    };
    let sized = matches!(kind, Kind::File | Kind::Symlink);
    if let Content::Bytes(bytes) = &content {
        assert_eq!(bytes.len() as u64, data.size(), "bytes read against st_size of {}", full.display());
    }
    let mut xattrs = BTreeMap::new();
    let names = match xattr::list(full) {
        Ok(names) => names.collect(),
        // A plain directory on a file system that has none, such as zfs-fuse.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Vec::new(),
        Err(error) => fail("listxattr", &error),
    };
    for name in names {
        let value = xattr::get(full, &name).unwrap_or_else(|error| fail("getxattr", &error));
        xattrs.insert(
            name.as_bytes().to_vec(),
            value.unwrap_or_else(|| fail("getxattr", &"listed, not there")),
        );
    }
    let same_as = match kind {
        Kind::Dir => path.to_owned(),
        _ => seen.entry((data.dev(), data.ino())).or_insert_with(|| path.to_owned()).clone(),
    };
    Node {
        kind,
        mode: data.mode() & 0o7777,
        uid: data.uid(),
        gid: data.gid(),
        nlink: if kind == Kind::Dir { 0 } else { data.nlink() },
        size: if sized { data.size() } else { 0 },
        rdev: data.rdev(),
        atime: (data.atime(), data.atime_nsec()),
        mtime: (data.mtime(), data.mtime_nsec()),
        ctime: (data.ctime(), data.ctime_nsec()),
        xattrs,
        content,
        same_as,
        ino: data.ino(),
    }
}

/// Reads a file's content, as [`Tree::read`] keeps it.
pub fn read_content(path: &Path) -> std::io::Result<Content> {
    let file = File::open(path)?;
    let size = file.metadata()?.size();
    if size <= KEEP as u64 {
        let mut bytes = vec![0; size as usize + 1];
        let mut filled = 0;
        loop {
            let count = file.read_at(&mut bytes[filled..], filled as u64)?;
            filled += count;
            if count == 0 || filled == bytes.len() {
                break;
            }
        }
        bytes.truncate(filled);
        return Ok(Content::Bytes(bytes));
    }
    let mut hasher = DefaultHasher::new();
    size.hash(&mut hasher);
    let (mut at, mut buffer) = (0, vec![0; 1 << 20]);
    while at < size {
        let data = if size <= READ_WHOLE { Ok(at) } else { sys::seek(&file, at, libc::SEEK_DATA) };
        let Ok(data) = data else { break };
        let end = if size <= READ_WHOLE { size } else { sys::seek(&file, data, libc::SEEK_HOLE)? };
        at = data - data % BLOCK as u64;
        while at < end {
            let want = buffer.len().min((size - at) as usize);
            file.read_exact_at(&mut buffer[..want], at)?;
            for (index, block) in buffer[..want].chunks(BLOCK).enumerate() {
                if block.iter().any(|&byte| byte != 0) {
                    (at / BLOCK as u64 + index as u64, block).hash(&mut hasher);
                }
            }
            at += want as u64;
        }
    }
    Ok(Content::Hash(hasher.finish()))
}

fn compare(path: &Path, a: &Node, b: &Node, with: With, found: &mut Vec<String>) {
    let mut say = |what: &str, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| {
        found.push(format!("{path:?}: {what} {a:?} against {b:?}"));
    };
    if a.kind != b.kind {
        return say("kind", &a.kind, &b.kind);
    }
    if a.mode != b.mode {
        say("mode", &format!("{:o}", a.mode), &format!("{:o}", b.mode));
    }
    if (a.uid, a.gid) != (b.uid, b.gid) {
        say("owner", &(a.uid, a.gid), &(b.uid, b.gid));
    }
    if a.nlink != b.nlink {
        say("nlink", &a.nlink, &b.nlink);
    }
    if a.size != b.size {
        say("size", &a.size, &b.size);
    }
    if a.rdev != b.rdev {
        say("rdev", &a.rdev, &b.rdev);
    }
    if a.same_as != b.same_as {
        say("links", &a.same_as, &b.same_as);
    }
    if a.xattrs != b.xattrs {
        say("xattrs", &a.xattrs, &b.xattrs);
    }
    if a.content != b.content {
        say("content", &first_difference(&a.content, &b.content), &b.content);
    }
    let dir = a.kind == Kind::Dir;
    if with.mtime && (!dir || with.dir_mtime) && a.mtime != b.mtime {
        say("mtime", &a.mtime, &b.mtime);
    }
    if with.ctime && a.ctime != b.ctime {
        say("ctime", &a.ctime, &b.ctime);
    }
}

fn first_difference(a: &Content, b: &Content) -> String {
    let mut said = format!("{a:?}");
    if let (Content::Bytes(a), Content::Bytes(b)) = (a, b) {
        let at = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
        let differing = a.iter().zip(b).filter(|(a, b)| a != b).count();
        let byte = |bytes: &[u8]| bytes.get(at).copied();
        let _ = write!(said, " (first at {at}: {:?}/{:?}, {differing} bytes differ)", byte(a), byte(b));
    }
    said
}
