//! The tree without a kernel.

#[path = "common/mem/mod.rs"]
#[allow(dead_code)]
mod mem;

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use mem::Mem;
use snapstore::backend::{Backend, HeightQuery, Open, RenameMode, SnapshotOptions};
use snapstore::{FileKind, Height};
use tmfs_fs::errno::Errno;
use tmfs_fs::node::{NodeId, Tag, Virtual};
use tmfs_fs::tree::{Caller, Entered, Entry, Found, Make, MountTree, TreeOptions};

const NOBODY: Caller = Caller { uid: 0, gid: 0, pid: 0 };

fn tree() -> (Mem, MountTree) {
    let mem = Mem::new();
    let tree = MountTree::new(Arc::new(mem.clone()), TreeOptions::default());
    (mem, tree)
}

fn find(tree: &Entered<'_>, dir: NodeId, name: &str) -> Result<Entry, Errno> {
    match tree.lookup(NOBODY, dir, OsStr::new(name))? {
        Found::Entry(entry) => Ok(entry),
        Found::Nothing(_) => Err(Errno(libc::ENOENT)),
    }
}

fn walk(tree: &Entered<'_>, path: &str) -> Result<Entry, Errno> {
    let mut names = path.split('/');
    let mut entry = find(tree, NodeId::ROOT, names.next().unwrap())?;
    for name in names {
        entry = find(tree, entry.id, name)?;
    }
    Ok(entry)
}

fn write(tree: &MountTree, name: &str, text: &[u8]) -> (Entry, u64) {
    let (entry, opened) =
        tree.enter().create(NOBODY, NodeId::ROOT, OsStr::new(name), (0o644, 0o022)).unwrap();
    tree.write(opened.fh, text, 0, false).unwrap();
    (entry, opened.fh)
}

fn read(tree: &MountTree, id: NodeId) -> Result<Vec<u8>, Errno> {
    let fh = tree.enter().open(NOBODY, id, libc::O_RDONLY)?.fh;
    let mut buf = vec![0; 100];
    let len = tree.read(fh, &mut buf, 0)?;
    tree.release(fh);
    buf.truncate(len);
    Ok(buf)
}

fn cut(mem: &Mem, height: u64) {
    mem.snapshot(Height(height), &SnapshotOptions::default()).unwrap();
}

fn err<T>(result: Result<T, Errno>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(Errno(errno)) => errno,
    }
}

#[test]
fn a_views_tag_is_free_when_the_kernel_has_forgotten_it() {
    let (mem, tree) = tree();
    write(&tree, "f", b"one");
    cut(&mem, 1);
    let (root, file) = {
        let entered = tree.enter();
        (walk(&entered, "@height/1").unwrap().id, walk(&entered, "@height/1/f").unwrap().id)
    };
    assert_eq!(root.tag(), file.tag());
    assert_eq!(read(&tree, file).unwrap(), b"one");
    // Told: the root twice, the file once.
    tree.forget(root, 2);
    assert_eq!(read(&tree, file).unwrap(), b"one");
    tree.forget(file, 1);
    assert_eq!(err(read(&tree, file)), libc::ESTALE);
    let again = walk(&tree.enter(), "@height/1/f").unwrap().id;
    assert_ne!(again.tag(), file.tag(), "not the same tag at once");
}

#[test]
fn one_epoch_under_two_names_is_two_directories() {
    let (mem, tree) = tree();
    cut(&mem, 5);
    let tree = tree.enter();
    let ids: Vec<NodeId> = ["@height/5", "@height/latest", "@height/~7", "@time/2999-01-01"]
        .iter()
        .map(|path| walk(&tree, path).unwrap().id)
        .collect();
    for (n, id) in ids.iter().enumerate() {
        assert!(!ids[..n].contains(id), "{ids:?}");
    }
    assert_eq!(walk(&tree, "@height/5").unwrap().id, ids[0], "one name stays one directory");
    let kept = |path| walk(&tree, path).unwrap().entry_ttl;
    assert_eq!(kept("@height/5"), Duration::from_secs(1));
    for moving in ["@height/latest", "@height/~7", "@time/2999-01-01"] {
        assert!(kept(moving).is_zero(), "{moving} means something else after a snapshot");
    }
    assert!(walk(&tree, "@height/6").is_err(), "and what is not there is not remembered");
}

#[test]
fn numbers_and_handles_of_a_head_that_was_left_are_refused() {
    let (mem, tree) = tree();
    let (old, fh) = write(&tree, "f", b"one");
    assert_eq!(old.id.tag(), Tag::FIRST);
    cut(&mem, 1);
    tree.write(fh, b"two", 0, false).unwrap();
    let listing = tree.enter().open_dir(NOBODY, NodeId::ROOT).unwrap().0;
    let mut names = Vec::new();
    tree.enter()
        .read_dir(listing, 0, |item| {
            names.push(item.name.to_owned());
            names.len() == 2
        })
        .unwrap();
    tree.switch(&Open, || mem.rollback(HeightQuery::Newest, &[], false)).unwrap();

    assert_eq!(err(tree.write(fh, b"x", 0, false)), libc::EIO);
    assert_eq!(err(tree.read(fh, &mut [0], 0)), libc::EIO);
    assert_eq!(err(tree.sync(fh, true)), libc::EIO);
    assert_eq!(err(tree.enter().get_attr(old.id)), libc::ESTALE);
    assert_eq!(err(read(&tree, old.id)), libc::ESTALE);
    assert_eq!(err(tree.enter().read_dir(listing, 2, |_| false)), libc::EIO, "half of each head's names");
    tree.enter().read_dir(listing, 0, |_| false).unwrap();

    let new = walk(&tree.enter(), "f").unwrap();
    assert_ne!(new.id, old.id);
    assert_eq!(new.id.ino(), old.id.ino());
    assert_eq!(read(&tree, new.id).unwrap(), b"one");
    tree.release(fh);
}

#[test]
fn nameless_inodes_go_when_nobody_can_reach_them() {
    let (mem, tree) = tree();
    let (entry, fh) = write(&tree, "f", b"one");
    let (_, other) = write(&tree, "g", b"two");
    tree.release(other);
    assert_eq!(mem.inodes(), 3);
    tree.enter().unlink(NodeId::ROOT, OsStr::new("f")).unwrap();
    assert_eq!(mem.inodes(), 3);
    tree.forget(entry.id, 1);
    assert_eq!(mem.inodes(), 3, "it is still open");
    tree.release(fh);
    assert_eq!(mem.inodes(), 2);
    // Replaced by a rename while nothing but the kernel's cache knew it.
    let (h, fh) = write(&tree, "h", b"three");
    tree.release(fh);
    tree.enter()
        .rename((NodeId::ROOT, OsStr::new("g")), (NodeId::ROOT, OsStr::new("h")), RenameMode::Replace)
        .unwrap();
    tree.forget(h.id, 1);
    assert_eq!(mem.inodes(), 2);
}

#[test]
fn inodes_by_number_are_for_our_own_threads_only() {
    let (_, tree) = tree();
    let (entry, _) = write(&tree, "f", b"one");
    let tree = tree.enter();
    assert_eq!(err(walk(&tree, "@ino")), libc::ENOENT);
    assert_eq!(err(find(&tree, Virtual::Inodes.id(), &entry.id.0.to_string())), libc::ENOENT);
}

#[test]
fn a_name_that_is_not_there_may_be_remembered_only_where_nobody_else_makes_names() {
    let (mem, tree) = tree();
    cut(&mem, 1);
    let tree = tree.enter();
    let nothing =
        |dir, name: &str| matches!(tree.lookup(NOBODY, dir, OsStr::new(name)), Ok(Found::Nothing(_)));
    assert!(nothing(NodeId::ROOT, "absent"));
    assert!(nothing(walk(&tree, "@height/1").unwrap().id, "absent"));
    assert!(!nothing(Virtual::Heights.id(), "2"));
    assert!(!nothing(Virtual::Times.id(), "2001-01-01"));
}

#[test]
fn by_handle_a_node_and_its_parent_are_found() {
    let (mem, tree) = tree();
    let what = Make { kind: FileKind::Directory, mode: 0o755, umask: 0, rdev: 0, target: &[] };
    let dir = tree.enter().make(NOBODY, NodeId::ROOT, OsStr::new("d"), &what).unwrap();
    cut(&mem, 1);
    let tree = tree.enter();
    assert_eq!(find(&tree, dir.id, ".").unwrap().id, dir.id);
    assert_eq!(find(&tree, dir.id, "..").unwrap().id, NodeId::ROOT);
    let view = walk(&tree, "@height/1").unwrap().id;
    let below = walk(&tree, "@height/1/d").unwrap().id;
    assert_eq!(find(&tree, below, "..").unwrap().id, view);
    assert_eq!(find(&tree, view, "..").unwrap().id, Virtual::Heights.id());
}
