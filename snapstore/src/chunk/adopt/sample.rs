//! A directory with everything in it that adopting and ejecting could lose, and ways to look at one.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;

use super::walk::{Cursor, names_in};
use crate::backend::{Seek, Tree};
use crate::error::Error;
use crate::sys::{get_xattr, list_xattr, set_xattr, stat_at};
use crate::types::{FileKind, Ino, Timestamp};

/// What one path is.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Node {
    pub kind: FileKind,
    pub mode: u32,
    pub nlink: u32,
    pub owner: (u32, u32),
    pub rdev: u32,
    pub size: u64,
    pub mtime: Timestamp,
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// The chunks that are not zeros, by offset.
    pub content: BTreeMap<u64, Vec<u8>>,
    /// The first path of the same inode.
    pub same_as: PathBuf,
}

pub(crate) type Tree_ = BTreeMap<PathBuf, Node>;

fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Bytes that look like nothing.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Fills `dir`.
pub(crate) fn fill(dir: &Path) {
    fs::create_dir_all(dir.join("sub/deeper")).unwrap();
    fs::create_dir(dir.join("empty dir")).unwrap();
    fs::write(dir.join("empty file"), b"").unwrap();
    fs::write(dir.join("small"), b"small").unwrap();
    fs::write(dir.join("large"), noise(1, 300_001)).unwrap();
    fs::write(dir.join("sub/program"), noise(2, 5000)).unwrap();
    fs::hard_link(dir.join("small"), dir.join("sub/small again")).unwrap();
    fs::hard_link(dir.join("small"), dir.join("sub/deeper/small too")).unwrap();
    symlink("small", dir.join("to small")).unwrap();
    fs::hard_link(dir.join("to small"), dir.join("to small too")).unwrap();
    symlink("../nowhere", dir.join("sub/dangling")).unwrap();
    let sparse = File::create(dir.join("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    sparse.write_all_at(b"in the middle", 600 << 20).unwrap();
    mknod(&dir.join("fifo"), SFlag::S_IFIFO, Mode::from_bits_truncate(0o640), 0).unwrap();
    mknod(&dir.join("sub/socket"), SFlag::S_IFSOCK, Mode::from_bits_truncate(0o600), 0).unwrap();
    for name in [&b"\xff\xfe not utf-8"[..], b"new\nline", b" ", b"-rf", b"\\040"] {
        fs::write(dir.join(OsStr::from_bytes(name)), name).unwrap();
    }
    fs::write(dir.join("n".repeat(255)), b"255").unwrap();
    fs::write(dir.join("sub/@height"), b"a program's own").unwrap();
    let mut deep = dir.join("deep");
    for level in 0..12 {
        deep.push(format!("{level}{}", "d".repeat(200)));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), b"deep down").unwrap();
    let fd = File::open(dir).unwrap();
    set_xattr(fd.as_fd(), "small".as_ref(), "user.note".as_ref(), b"a note").unwrap();
    set_xattr(fd.as_fd(), "sub".as_ref(), "user.binary".as_ref(), &[0, 255, 10]).unwrap();
    set_xattr(fd.as_fd(), "".as_ref(), "user.root".as_ref(), b"").unwrap();
    // u::rwx u:1:r-x g::r-x m::r-x o::---
    let acl = [
        &2u32.to_le_bytes()[..],
        &entry(1, 7, u32::MAX),
        &entry(2, 5, 1),
        &entry(4, 5, u32::MAX),
        &entry(0x10, 5, u32::MAX),
        &entry(0x20, 0, u32::MAX),
    ]
    .concat();
    for (name, key) in [
        ("sub/program", "system.posix_acl_access"),
        ("sub/deeper", "system.posix_acl_access"),
        ("sub/deeper", "system.posix_acl_default"),
    ] {
        set_xattr(fd.as_fd(), name.as_ref(), key.as_ref(), &acl).unwrap();
    }
    if root() {
        mknod(
            &dir.join("device"),
            SFlag::S_IFCHR,
            Mode::from_bits_truncate(0o600),
            libc::makedev(300, 70_000),
        )
        .unwrap();
        std::os::unix::fs::chown(dir.join("large"), Some(1234), Some(5678)).unwrap();
        std::os::unix::fs::lchown(dir.join("sub/dangling"), Some(4), Some(5)).unwrap();
        std::os::unix::fs::chown(dir.join("empty dir"), Some(1234), Some(5678)).unwrap();
        set_xattr(fd.as_fd(), "large".as_ref(), "trusted.secret".as_ref(), b"t").unwrap();
    }
    mode(&dir.join("sub/program"), 0o4751);
    mode(&dir.join("sub/deeper"), 0o3750);
    mode(&dir.join("empty dir"), 0o500);
    fs::write(dir.join("unreadable"), b"secret").unwrap();
    mode(&dir.join("unreadable"), if root() { 0o000 } else { 0o400 });
    for (name, secs) in [
        ("small", -1),
        ("large", 1),
        ("to small", 1_600_000_000),
        ("sub", 4_000_000_000),
        ("sparse", 2_000_000_000),
        ("fifo", 77),
        ("", 1_500_000_000),
    ] {
        let (atime, mtime) = (TimeSpec::new(secs, 1), TimeSpec::new(secs, 999_999_999));
        utimensat(nix::fcntl::AT_FDCWD, &dir.join(name), &atime, &mtime, UtimensatFlags::NoFollowSymlink)
            .unwrap();
    }
}

fn entry(tag: u16, perm: u16, id: u32) -> [u8; 8] {
    let mut out = [0; 8];
    out[..2].copy_from_slice(&tag.to_le_bytes());
    out[2..4].copy_from_slice(&perm.to_le_bytes());
    out[4..].copy_from_slice(&id.to_le_bytes());
    out
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A directory of the machine as it is.
pub(crate) fn read_dir(dir: &Path) -> Tree_ {
    let mut out = Tree_::new();
    let mut first: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let top = File::open(dir).unwrap();
    let mut cursor = Cursor::open(top.as_fd(), OsStr::new("."), Path::new("")).unwrap();
    let mut take = |cursor: &Cursor, name: &OsStr, path: PathBuf| -> FileKind {
        let stat = stat_at(cursor.dir(), name).unwrap();
        let kind = stat.kind.unwrap();
        let same_as = first.entry(stat.id).or_insert(path.clone()).clone();
        let mut node = Node {
            kind,
            mode: stat.mode,
            nlink: stat.nlink,
            owner: (stat.uid, stat.gid),
            rdev: stat.rdev,
            size: if kind == FileKind::Directory { 0 } else { stat.size },
            mtime: stat.mtime,
            target: Vec::new(),
            xattrs: BTreeMap::new(),
            content: BTreeMap::new(),
            same_as,
        };
        for key in list_xattr(cursor.dir(), name).unwrap() {
            node.xattrs.insert(key.clone(), get_xattr(cursor.dir(), name, &key).unwrap().unwrap());
        }
        match kind {
            FileKind::Symlink => {
                node.target = nix::fcntl::readlinkat(cursor.dir(), name).unwrap().as_bytes().to_vec();
            }
            FileKind::Regular if stat.mode & 0o400 != 0 || root() => {
                let path = PathBuf::from(format!("/proc/self/fd/{}", {
                    use std::os::fd::AsRawFd;
                    cursor.dir().as_raw_fd()
                }))
                .join(name);
                let file = File::options().read(true).custom_flags(libc::O_NOATIME).open(path).unwrap();
                node.content = chunks(
                    stat.size,
                    |at, what| {
                        let whence = match what {
                            Seek::Data => nix::unistd::Whence::SeekData,
                            Seek::Hole => nix::unistd::Whence::SeekHole,
                        };
                        nix::unistd::lseek64(&file, at as i64, whence).ok().map(|n| n as u64)
                    },
                    |buf, at| file.read_at(buf, at).unwrap(),
                );
            }
            _ => {}
        }
        out.insert(path, node);
        kind
    };
    take(&cursor, OsStr::new(""), PathBuf::new());
    let mut frames = vec![cursor.names().unwrap()];
    while let Some(names) = frames.last_mut() {
        let Some(name) = names.pop() else {
            frames.pop();
            if !frames.is_empty() {
                cursor.leave().unwrap();
            }
            continue;
        };
        let path = cursor.path(&name);
        let path = path.strip_prefix(".").unwrap_or(&path).to_owned();
        if take(&cursor, &name, path) == FileKind::Directory {
            cursor.enter(&name).unwrap();
            frames.push(cursor.names().unwrap());
        }
    }
    regroup(out)
}

/// A tree of a store.
pub(crate) fn read_tree(tree: &dyn Tree) -> Tree_ {
    let mut out = Tree_::new();
    let mut first: BTreeMap<Ino, PathBuf> = BTreeMap::new();
    let mut pending = vec![(PathBuf::new(), Ino::ROOT)];
    while let Some((path, ino)) = pending.pop() {
        let attr = tree.get_attr(ino).unwrap();
        let mut node = Node {
            kind: attr.kind,
            mode: attr.mode,
            nlink: attr.nlink,
            owner: (attr.uid, attr.gid),
            rdev: attr.rdev,
            size: if attr.kind == FileKind::Directory { 0 } else { attr.size },
            mtime: attr.mtime,
            target: Vec::new(),
            xattrs: BTreeMap::new(),
            content: BTreeMap::new(),
            same_as: first.entry(ino).or_insert(path.clone()).clone(),
        };
        for key in tree.list_xattr(ino).unwrap() {
            node.xattrs.insert(key.clone(), tree.get_xattr(ino, &key).unwrap());
        }
        match attr.kind {
            FileKind::Symlink => node.target = tree.read_link(ino).unwrap(),
            FileKind::Directory => {
                for entry in tree.read_dir(ino).unwrap() {
                    pending.push((path.join(&entry.name), entry.ino));
                }
            }
            FileKind::Regular => {
                let file = tree.open(ino).unwrap();
                let seek = |at, what| match file.seek(at, what) {
                    Err(Error::NoData) => None,
                    found => Some(found.unwrap()),
                };
                node.content = chunks(attr.size, seek, |buf, at| file.read_at(buf, at).unwrap());
            }
            _ => {}
        }
        out.insert(path, node);
    }
    regroup(out)
}

/// Names the inodes of several names by the first name in order.
fn regroup(tree: Tree_) -> Tree_ {
    let mut first: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for (path, node) in &tree {
        first.entry(node.same_as.clone()).or_insert(path.clone());
    }
    tree.into_iter().map(|(p, n)| (p, Node { same_as: first[&n.same_as].clone(), ..n })).collect()
}

fn chunks(
    size: u64,
    seek: impl Fn(u64, Seek) -> Option<u64>,
    read: impl Fn(&mut [u8], u64) -> usize,
) -> BTreeMap<u64, Vec<u8>> {
    let mut out = BTreeMap::new();
    let mut at = 0;
    while at < size {
        let Some(data) = seek(at, Seek::Data) else { break };
        let hole = seek(data, Seek::Hole).unwrap_or(size);
        let mut from = data / 4096 * 4096;
        while from < hole {
            let mut buf = vec![0; 4096.min(size - from) as usize];
            assert_eq!(read(&mut buf, from), buf.len());
            if buf.iter().any(|&b| b != 0) {
                out.insert(from, buf);
            }
            from += 4096;
        }
        at = hole;
    }
    out
}

/// Compares, and says what differs without printing contents.
#[track_caller]
pub(crate) fn assert_same(found: &Tree_, wanted: &Tree_, what: &str) {
    for (path, node) in wanted {
        let Some(other) = found.get(path) else { panic!("{what}: {path:?} is missing") };
        if node != other {
            let brief = |n: &Node| Node {
                content: n.content.keys().map(|&k| (k, Vec::new())).take(4).collect(),
                ..n.clone()
            };
            panic!("{what}: {path:?}\n found {:?}\nwanted {:?}", brief(other), brief(node));
        }
    }
    let extra: Vec<_> = found.keys().filter(|p| !wanted.contains_key(*p)).collect();
    assert!(extra.is_empty(), "{what}: too much: {extra:?}");
}

/// The names in a directory.
pub(crate) fn names(dir: &Path) -> Vec<OsString> {
    names_in(File::open(dir).unwrap().as_fd()).unwrap()
}

/// Whether a directory can be read as text at all: for messages.
pub(crate) fn text(path: &Path) -> String {
    let mut text = String::new();
    let _ = File::open(path).and_then(|mut f| f.read_to_string(&mut text));
    text
}
