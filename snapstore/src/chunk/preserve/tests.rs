//! Carrying over, through the backend: what is carried, what is replaced, and that the count of links is right.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backend::{Backend, Head, HeightQuery, NewInode, SnapshotOptions, Times, Tree, XattrMode};
use crate::chunk::adopt::sample::{Tree_, assert_same, noise, read_tree};
use crate::chunk::{OpenOptions, create_empty, open};
use crate::error::Error;
use crate::types::{FileKind, Height, Ino};

struct Store {
    temp: tempfile::TempDir,
    backend: Arc<dyn Backend>,
}

impl Store {
    fn new() -> Store {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("store");
        create_empty(&path, temp.path()).unwrap();
        let backend = open(&path, &OpenOptions { no_background: true }).unwrap().0;
        Store { temp, backend }
    }

    fn head(&self) -> Arc<dyn Head> {
        self.backend.head()
    }

    fn find(&self, path: &str) -> Ino {
        let head = self.head();
        path.split('/').fold(Ino::ROOT, |dir, name| head.lookup(dir, name.as_ref()).unwrap().ino)
    }

    fn make(&self, path: &str, kind: FileKind) -> Ino {
        let (dir, name) = match path.rsplit_once('/') {
            Some((dir, name)) => (self.find(dir), name),
            None => (Ino::ROOT, path),
        };
        let target: &[u8] = if kind == FileKind::Symlink { b"target" } else { b"" };
        let new = NewInode { kind, mode: 0o640, umask: 0, uid: 7, gid: 8, rdev: 0, target };
        self.head().create(dir, name.as_ref(), &new).unwrap().ino
    }

    fn write(&self, path: &str, data: &[u8], offset: u64) -> Ino {
        let ino = self.make(path, FileKind::Regular);
        self.head().open_write(ino, Times::Touch).unwrap().write_at(data, offset).unwrap();
        ino
    }

    fn link(&self, from: &str, to: &str) {
        let (dir, name) = to.rsplit_once('/').map_or((Ino::ROOT, to), |(d, n)| (self.find(d), n));
        self.head().link(self.find(from), dir, name.as_ref()).unwrap();
    }

    fn snapshot(&self, height: u64) {
        self.backend.snapshot(Height(height), &SnapshotOptions::default()).unwrap();
        self.backend.settle().unwrap();
    }

    fn rollback(&self, height: u64, paths: &[&str]) -> Vec<Ino> {
        let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
        self.backend.rollback(HeightQuery::Exact(Height(height)), &paths, false).unwrap().changed
    }

    fn live(&self) -> Tree_ {
        read_tree(&*self.head() as &dyn Tree)
    }

    fn view(&self, height: u64) -> Tree_ {
        read_tree(&*self.backend.view(HeightQuery::Exact(Height(height))).unwrap().tree)
    }

    /// The store after closing and opening it again.
    fn reopened(mut self) -> Store {
        self.backend.close().unwrap();
        self.backend = open(&self.temp.path().join("store"), &OpenOptions { no_background: true }).unwrap().0;
        self
    }

    /// The store as it would be found after a power cut at this moment, taken from a copy.
    fn after_a_crash(&self) -> Store {
        let temp = tempfile::tempdir().unwrap();
        let (from, to) = (self.temp.path().join("store"), temp.path().join("store"));
        let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(&to).status().unwrap();
        assert!(copied.success());
        let (backend, recovery) = open(&to, &OpenOptions { no_background: true }).unwrap();
        assert!(!recovery.clean);
        Store { temp, backend }
    }
}

/// Only what is at or below `path`.
fn below(tree: &Tree_, path: &str) -> Tree_ {
    tree.iter().filter(|(p, _)| p.starts_with(path)).map(|(p, n)| (p.clone(), n.clone())).collect()
}

/// Every count of links is what the names say.
fn check_links(tree: &Tree_) {
    let mut names: BTreeMap<&Path, u32> = BTreeMap::new();
    for (path, node) in tree {
        match node.kind {
            FileKind::Directory => {
                *names.entry(path).or_default() += 2;
                let parent = path.parent().filter(|_| path != Path::new(""));
                parent.into_iter().for_each(|p| *names.entry(p).or_default() += 1);
            }
            _ => *names.entry(&node.same_as).or_default() += 1,
        }
    }
    for (path, node) in tree {
        let at = if node.kind == FileKind::Directory { path } else { &node.same_as };
        assert_eq!(node.nlink, names[at.as_path()], "links of {path:?}");
    }
}

fn sample() -> Store {
    let s = Store::new();
    s.make("keys", FileKind::Directory);
    s.write("keys/a", b"old a", 0);
    s.link("keys/a", "a outside");
    s.make("was a directory", FileKind::Directory);
    s.make("was a directory/inner", FileKind::Directory);
    s.write("was a directory/inner/file", b"gone", 0);
    s.write("file", b"old content", 0);
    s.write("stays", b"stays as it was", 0);
    s.snapshot(1);
    s
}

#[test]
fn files_directories_and_links_are_carried() {
    let s = sample();
    let head = s.head();
    let a = s.find("keys/a");
    head.open_write(a, Times::Touch).unwrap().write_at(b"new a, and longer", 0).unwrap();
    s.write("keys/sparse", &noise(1, 10_000), 100 << 20);
    s.make("keys/deep", FileKind::Directory);
    s.write("keys/deep/twice", b"twice", 0);
    s.link("keys/deep/twice", "keys/again");
    s.make("keys/symlink", FileKind::Symlink);
    s.make("keys/fifo", FileKind::Fifo);
    s.make("keys/empty", FileKind::Regular);
    head.set_xattr(s.find("keys"), "user.k".as_ref(), b"v", XattrMode::Set).unwrap();
    head.set_xattr(a, "user.a".as_ref(), b"w", XattrMode::Set).unwrap();
    head.open_write(s.find("stays"), Times::Touch).unwrap().write_at(b"changed", 0).unwrap();
    s.make("new dir", FileKind::Directory);
    s.make("new dir/sub", FileKind::Directory);
    s.write("new dir/sub/config", b"configured", 0);
    s.write("new dir/other", b"not asked for", 0);
    let before = s.live();
    let old = s.view(1);

    let changed = s.rollback(1, &["keys", "new dir/sub/config", "./keys/a"]);
    let now = s.live();
    check_links(&now);
    // What was carried is as it was, but for the names outside that a link count speaks of.
    let mut wanted = below(&before, "keys");
    let a = wanted.get_mut(Path::new("keys/a")).unwrap();
    (a.nlink, a.same_as) = (1, "keys/a".into());
    assert_same(&below(&now, "keys"), &wanted, "carried");
    assert_same(&below(&now, "stays"), &below(&old, "stays"), "not carried");
    assert_eq!(now[Path::new("a outside")].content[&0], b"old a");
    assert_eq!(now[Path::new("a outside")].nlink, 1);
    let config = Path::new("new dir/sub/config");
    assert_eq!(now[config].content, before[config].content);
    assert_eq!(now[Path::new("new dir/sub")].owner, (7, 8));
    assert!(!now.contains_key(Path::new("new dir/other")));
    assert!(changed.contains(&s.find("keys/a")) && changed.contains(&s.find("new dir/sub/config")));
    assert_same(&s.view(1), &old, "the snapshot");

    // The same after a power cut, and after sealing.
    let crashed = s.after_a_crash();
    assert_same(&crashed.live(), &now, "after a crash");
    s.snapshot(2);
    s.backend.settle().unwrap();
    let s = s.reopened();
    assert_same(&s.view(2), &now, "sealed and opened again");
    let data: usize = now.iter().filter(|(p, n)| n.same_as == **p).map(|(_, n)| n.content.len()).sum();
    let info = s.backend.find(HeightQuery::Exact(Height(2))).unwrap();
    assert_eq!(info.referenced_bytes, data as u64 * 4096);
    s.backend.undo_rollback(false).unwrap();
    assert_same(&s.live(), &before, "undone");
}

#[test]
fn what_is_there_is_replaced_whatever_it_is() {
    let s = sample();
    let head = s.head();
    head.unlink(Ino::ROOT, "file".as_ref()).unwrap();
    s.make("file", FileKind::Directory);
    s.write("file/below", b"a directory now", 0);
    let dir = s.find("was a directory");
    let inner = s.find("was a directory/inner");
    head.unlink(inner, "file".as_ref()).unwrap();
    head.remove_dir(dir, "inner".as_ref()).unwrap();
    head.remove_dir(Ino::ROOT, "was a directory".as_ref()).unwrap();
    s.write("was a directory", b"a file now", 0);
    let before = s.live();
    s.rollback(1, &["file/below", "was a directory"]);
    let now = s.live();
    check_links(&now);
    assert_eq!(now[Path::new("file/below")].content, before[Path::new("file/below")].content);
    assert_eq!(now[Path::new("was a directory")].content[&0], b"a file now");
    assert!(!now.keys().any(|p| p.starts_with("was a directory/inner")));
    let crashed = s.after_a_crash();
    assert_same(&crashed.live(), &now, "after a crash");
}

#[test]
fn paths_that_cannot_be_carried_are_refused_before_anything_happens() {
    let s = sample();
    let before = s.live();
    let roll = |path: &str, dry: bool| {
        s.backend.rollback(HeightQuery::Exact(Height(1)), &[PathBuf::from(path)], dry).unwrap_err()
    };
    for dry in [false, true] {
        assert!(matches!(roll("missing", dry), Error::PreserveMissing { .. }));
        assert!(matches!(roll("file/below", dry), Error::PreserveMissing { .. }));
        for path in ["/file", "../file", "keys/../file", "", "."] {
            assert!(matches!(roll(path, dry), Error::PreserveImpossible { .. }), "{path}");
        }
    }
    assert_same(&s.live(), &before, "after the refusals");
}
