//! The suite: each test gets a plain, empty data dir.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use snapstore::backend::*;
use snapstore::{Error, FileKind, Height, Ino};

use crate::place::Place;

// --- What the tests do.

fn owner() -> (u32, u32) {
    (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
}

fn new(kind: FileKind) -> NewInode<'static> {
    let (uid, gid) = owner();
    NewInode { kind, mode: 0o755, umask: 0, uid, gid, rdev: 0, target: b"a target" }
}

/// The inode at a path with `/`.
pub fn find(tree: &dyn Tree, path: impl AsRef<OsStr>) -> Result<Ino, Error> {
    let mut at = Ino::ROOT;
    for name in Path::new(path.as_ref()) {
        at = tree.lookup(at, name)?.ino;
    }
    Ok(at)
}

/// Puts content at a path, making what is missing on the way.
pub fn write(head: &dyn Head, path: impl AsRef<OsStr>, content: impl AsRef<[u8]>) {
    let (path, content) = (Path::new(path.as_ref()), content.as_ref());
    let mut at = Ino::ROOT;
    for dir in path.parent().expect("a parent") {
        at = match head.lookup(at, dir) {
            Ok(attr) => attr.ino,
            Err(_) => head.create(at, dir, &new(FileKind::Directory)).expect("mkdir").ino,
        };
    }
    let name = path.file_name().expect("a name");
    let ino = match head.lookup(at, name) {
        Ok(attr) => attr.ino,
        Err(_) => head.create(at, name, &new(FileKind::Regular)).expect("create").ino,
    };
    head.set_attr(ino, &SetAttr { size: Some(0), ..SetAttr::default() }).expect("truncate");
    let file = head.open_write(ino, Times::Touch).expect("open");
    file.write_at(content, 0).expect("write");
    file.sync(true).expect("sync");
}

pub fn read(tree: &dyn Tree, path: impl AsRef<OsStr>) -> String {
    let file = tree.open(find(tree, path).expect("look up")).expect("open");
    let mut buf = vec![0; file.len().expect("length") as usize];
    assert_eq!(file.read_at(&mut buf, 0).expect("read"), buf.len());
    String::from_utf8(buf).expect("UTF-8")
}

pub fn snap(store: &dyn Backend, height: u64) {
    let taken = store.snapshot(Height(height), &SnapshotOptions::default()).expect("snapshot");
    assert_eq!(taken.height, Height(height));
}

fn heights(store: &dyn Backend) -> Vec<u64> {
    store.heights().into_iter().map(|height| height.0).collect()
}

fn view(store: &dyn Backend, height: u64) -> View {
    store.view(HeightQuery::Exact(Height(height))).unwrap_or_else(|e| panic!("view of {height}: {e}"))
}

/// What a tree holds: kind, mode, link target or content of each path.
type Contents = BTreeMap<PathBuf, (FileKind, u32, Vec<u8>)>;

fn contents(tree: &dyn Tree) -> Contents {
    let mut all = Contents::new();
    let mut pending = vec![(Ino::ROOT, PathBuf::new())];
    while let Some((dir, path)) = pending.pop() {
        for entry in tree.read_dir(dir).expect("list") {
            let attr = tree.get_attr(entry.ino).expect("attributes");
            assert_eq!(attr.kind, entry.kind);
            assert!(attr.ino.0 < 1 << Ino::BITS);
            assert_eq!(tree.lookup(dir, &entry.name).expect("look up").ino, entry.ino);
            let path = path.join(&entry.name);
            let data = match attr.kind {
                FileKind::Regular => {
                    let file = tree.open(entry.ino).expect("open");
                    let mut buf = vec![0; attr.size as usize];
                    assert_eq!(file.read_at(&mut buf, 0).expect("read"), buf.len());
                    buf
                }
                FileKind::Symlink => tree.read_link(entry.ino).expect("read the link"),
                FileKind::Directory => {
                    assert_eq!(tree.parent(entry.ino).expect("parent"), dir);
                    pending.push((entry.ino, path.clone()));
                    Vec::new()
                }
                _ => Vec::new(),
            };
            all.insert(path, (attr.kind, attr.mode, data));
        }
    }
    all
}

// --- The tests.

pub fn adopts_what_is_there_and_gives_it_back(place: &Place) {
    let dir = place.data_dir();
    fs::create_dir_all(dir.join("sub/deeper")).unwrap();
    fs::write(dir.join("sub/file"), "content").unwrap();
    fs::hard_link(dir.join("sub/file"), dir.join("other name")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.join("link")).unwrap();
    let store = place.open();
    let head = store.head();
    assert_eq!(read(&*head, "sub/file"), "content");
    assert_eq!(find(&*head, "sub/file").unwrap(), find(&*head, "other name").unwrap());
    assert_eq!(head.read_link(find(&*head, "link").unwrap()).unwrap(), b"nowhere");
    let names: Vec<OsString> = head.read_dir(Ino::ROOT).unwrap().into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["link", "other name", "sub"], "and nothing of ours");
    write(&*head, "sub/file", "changed");
    snap(&*store, 5);
    write(&*head, "new", "later");
    store.close().unwrap();
    drop((head, store));
    place.eject();
    assert_eq!(fs::read_to_string(dir.join("other name")).unwrap(), "changed");
    assert_eq!(fs::read_to_string(dir.join("new")).unwrap(), "later");
    assert!(dir.join("sub/deeper").is_dir());
    let mut names: Vec<OsString> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["link", "new", "other name", "sub"]);
    // And again.
    let store = place.open();
    assert_eq!((heights(&*store), read(&*store.head(), "new")), (vec![], "later".into()));
    store.close().unwrap();
}

pub fn snapshots_and_views(place: &Place) {
    let store = place.open();
    let head = store.head();
    write(&*head, "dir/a", "one");
    head.create(Ino::ROOT, OsStr::new("link"), &new(FileKind::Symlink)).unwrap();
    let options = SnapshotOptions {
        hash: Some("00ff".into()),
        labels: BTreeMap::from([("who".into(), "me".into())]),
        hold: false,
    };
    let first = store.snapshot(Height(10), &options).unwrap();
    let at_ten = contents(&*head);
    write(&*head, "dir/a", "two, and longer");
    head.unlink(Ino::ROOT, OsStr::new("link")).unwrap();
    write(&*head, "dir/b", "new");
    snap(&*store, 20);
    let at_twenty = contents(&*head);
    store.wait_durable(first.epoch).unwrap();
    let list = store.snapshots(true).unwrap();
    assert_eq!(list.iter().map(|s| s.height.0).collect::<Vec<_>>(), [10, 20]);
    assert_eq!((list[0].hash.as_deref(), list[0].labels["who"].as_str()), (Some("00ff"), "me"));
    assert!(list[0].durable && list[0].time <= list[1].time);
    let (ten, twenty) = (view(&*store, 10), view(&*store, 20));
    assert_eq!((contents(&*ten.tree), contents(&*twenty.tree)), (at_ten.clone(), at_twenty));
    assert_eq!((ten.epoch, ten.height), (first.epoch, Height(10)));
    let open = ten.tree.open(find(&*ten.tree, "dir/a").unwrap()).unwrap();
    write(&*head, "dir/a", "three");
    assert_eq!(contents(&*ten.tree), at_ten);
    assert_eq!(open.len().unwrap(), 3);
    assert_eq!(store.view(HeightQuery::AtOrBelow(Height(19))).unwrap().height, Height(10));
    assert_eq!(store.view_at(list[1].time).unwrap().height, Height(20));
    assert!(matches!(
        store.view_at(list[0].time - jiff::SignedDuration::from_secs(1)),
        Err(Error::NoSnapshotAt { .. })
    ));
    assert_eq!(store.root_hash(Height(10)).unwrap(), store.root_hash(Height(10)).unwrap());
    assert_ne!(store.root_hash(Height(10)).unwrap(), store.root_hash(Height(20)).unwrap());
    let report = store.verify(None, &snapstore::progress::Silent).unwrap();
    assert_eq!((report.heights, report.damaged.len()), (2, 0));
    drop((ten, twenty, open));
    store.close().unwrap();
}

pub fn heights_follow_the_rules(place: &Place) {
    let store = place.open();
    assert!(matches!(store.view(HeightQuery::Newest), Err(Error::NoSnapshots)));
    assert!(matches!(store.rollback(HeightQuery::Newest, &[], false), Err(Error::NoSnapshots)));
    write(&*store.head(), "a", "1");
    snap(&*store, 10);
    write(&*store.head(), "a", "2");
    let take = |height| store.snapshot(Height(height), &SnapshotOptions::default()).map(|s| s.height.0);
    assert!(matches!(take(10), Err(Error::HeightExists { .. })));
    assert!(matches!(take(9), Err(Error::HeightNotNewer { .. })));
    let bad = SnapshotOptions { hash: Some("xyz".into()), ..SnapshotOptions::default() };
    assert!(matches!(store.snapshot(Height(11), &bad), Err(Error::BadSnapshotOption { .. })));
    assert_eq!(take(11).unwrap(), 11);
    match store.find(HeightQuery::Exact(Height(12))) {
        Err(Error::NoSuchHeight { nearest, .. }) => assert_eq!(nearest, Some(Height(11))),
        other => panic!("{other:?}"),
    }
    match store.find(HeightQuery::AtOrBelow(Height(9))) {
        Err(Error::NothingBelow { oldest, .. }) => assert_eq!(oldest, Some(Height(10))),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.find(HeightQuery::Newest).unwrap().height, Height(11));
    // A closed gate: nothing is done.
    struct Shut;
    impl Gate for Shut {
        fn pass(&self, _cut: &mut dyn FnMut()) -> bool {
            false
        }
    }
    for _ in 0..3 {
        assert!(store.cut(Height(12), &SnapshotOptions::default(), &Shut).unwrap().is_none());
    }
    assert_eq!(heights(&*store), [10, 11]);
    assert_eq!(take(u64::MAX).unwrap(), u64::MAX);
    store.close().unwrap();
}

pub fn rollback_exact_and_nearest(place: &Place) {
    let store = place.open();
    for height in [10, 20, 30] {
        write(&*store.head(), "a", format!("at {height}"));
        write(&*store.head(), format!("only/{height}"), "");
        snap(&*store, height);
    }
    write(&*store.head(), "a", "live");
    let at_twenty = contents(&*view(&*store, 20).tree);
    let (old, serial) = (store.head(), store.head_serial());
    let handle = old.open_write(find(&*old, "a").unwrap(), Times::Touch).unwrap();
    let live = contents(&*old);
    let dry = store.rollback(HeightQuery::AtOrBelow(Height(29)), &[], true).unwrap();
    assert_eq!((dry.height, dry.hidden_heights.clone()), (Some(Height(20)), vec![Height(30)]));
    assert_eq!((contents(&*store.head()), store.head_serial()), (live, serial), "a dry run");
    assert!(matches!(
        store.rollback(HeightQuery::Exact(Height(29)), &[], false),
        Err(Error::NoSuchHeight { .. })
    ));
    assert_eq!(store.rollback(HeightQuery::AtOrBelow(Height(29)), &[], false).unwrap(), dry);
    assert_eq!(contents(&*store.head()), at_twenty);
    assert_eq!((heights(&*store), store.head_serial() > serial), (vec![10, 20], true));
    assert!(matches!(old.get_attr(Ino::ROOT), Err(Error::Stale)));
    assert!(matches!(handle.write_at(b"late", 0), Err(Error::Stale)));
    drop((handle, old));
    write(&*store.head(), "a", "again");
    store.rollback(HeightQuery::Newest, &[], false).unwrap();
    assert_eq!(contents(&*store.head()), at_twenty);
    store.rollback(HeightQuery::Exact(Height(10)), &[], false).unwrap();
    assert_eq!((read(&*store.head(), "a"), heights(&*store)), ("at 10".into(), vec![10]));
    store.close().unwrap();
}

pub fn undo_goes_back_switch_by_switch(place: &Place) {
    let store = place.open();
    assert!(matches!(store.undo_rollback(false), Err(Error::NothingToUndo)));
    for height in [10, 20] {
        write(&*store.head(), "a", format!("at {height}"));
        snap(&*store, height);
    }
    write(&*store.head(), "a", "first");
    let first = contents(&*store.head());
    store.rollback(HeightQuery::Exact(Height(20)), &[], false).unwrap();
    write(&*store.head(), "b", "second");
    let second = contents(&*store.head());
    store.rollback(HeightQuery::Exact(Height(10)), &[], false).unwrap();
    write(&*store.head(), "c", "third");
    let third = contents(&*store.head());
    assert_eq!(store.usage().unwrap().undo_depth, 2);
    let dry = store.undo_rollback(true).unwrap();
    assert_eq!((dry.height, contents(&*store.head())), (Some(Height(20)), third.clone()));
    assert_eq!(store.undo_rollback(false).unwrap(), dry);
    assert_eq!((contents(&*store.head()), heights(&*store)), (second, vec![10, 20]));
    store.undo_rollback(false).unwrap();
    assert_eq!(contents(&*store.head()), first);
    // What the undos left comes back as well: the latest first.
    store.undo_rollback(false).unwrap();
    store.settle().unwrap();
    assert_eq!(read(&*store.head(), "b"), "second");
    store.undo_rollback(false).unwrap();
    assert_eq!(contents(&*store.head()), first);
    store.close().unwrap();
}

pub fn a_height_executed_again_is_another(place: &Place) {
    let store = place.open();
    for height in [10, 11, 12] {
        write(&*store.head(), "a", format!("first {height}"));
        snap(&*store, height);
    }
    let old = view(&*store, 11);
    store.rollback(HeightQuery::Exact(Height(10)), &[], false).unwrap();
    write(&*store.head(), "a", "second 11");
    snap(&*store, 11);
    let new = view(&*store, 11);
    assert_ne!(old.epoch, new.epoch);
    assert_eq!((read(&*old.tree, "a"), read(&*new.tree, "a")), ("first 11".into(), "second 11".into()));
    assert_eq!(heights(&*store), [10, 11]);
    // Without a height: to the newest of this chain, never to the one that was abandoned.
    write(&*store.head(), "a", "live");
    assert_eq!(store.rollback(HeightQuery::Newest, &[], false).unwrap().height, Some(Height(11)));
    assert_eq!(read(&*store.head(), "a"), "second 11");
    drop((old, new));
    store.undo_rollback(false).unwrap();
    store.undo_rollback(false).unwrap();
    assert_eq!((heights(&*store), read(&*store.head(), "a")), (vec![10, 11, 12], "first 12".into()));
    assert_eq!(read(&*view(&*store, 11).tree, "a"), "first 11");
    store.close().unwrap();
}

pub fn held_snapshots_stay_and_deletion_is_all_or_none(place: &Place) {
    let store = place.open();
    for height in 1..=5 {
        write(&*store.head(), "a", format!("at {height}"));
        snap(&*store, height);
    }
    assert!(store.set_held(Height(3), true).unwrap().held);
    let delete = |heights: &[u64], dry| {
        let heights: Vec<Height> = heights.iter().map(|&h| Height(h)).collect();
        store.delete(&heights, dry).map(|report| report.heights.into_iter().map(|h| h.0).collect::<Vec<_>>())
    };
    assert!(matches!(delete(&[2, 3], false), Err(Error::Held { height: Height(3) })));
    assert!(matches!(delete(&[2, 7], false), Err(Error::NoSuchHeight { .. })));
    assert_eq!(delete(&[4, 2, 4], true).unwrap(), [2, 4]);
    assert_eq!(heights(&*store), [1, 2, 3, 4, 5]);
    assert_eq!(delete(&[4, 2], false).unwrap(), [2, 4]);
    assert_eq!(heights(&*store), [1, 3, 5]);
    store.settle().unwrap();
    for height in [1, 3, 5] {
        assert_eq!(read(&*view(&*store, height).tree, "a"), format!("at {height}"));
    }
    assert!(!store.set_held(Height(3), false).unwrap().held);
    assert_eq!(delete(&[3, 5, 1], false).unwrap(), [1, 3, 5]);
    store.settle().unwrap();
    assert_eq!(read(&*store.head(), "a"), "at 5");
    snap(&*store, 2);
    assert_eq!(heights(&*store), [2]);
    store.close().unwrap();
}

pub fn everything_is_there_after_a_restart(place: &Place) {
    let store = place.open();
    write(&*store.head(), "a", "1");
    let options = SnapshotOptions { hash: Some("ab".into()), hold: true, ..SnapshotOptions::default() };
    store.snapshot(Height(1), &options).unwrap();
    write(&*store.head(), "a", "2");
    snap(&*store, 2);
    store.rollback(HeightQuery::Exact(Height(1)), &[], false).unwrap();
    write(&*store.head(), "b", "live");
    let (serial, live) = (store.head_serial(), contents(&*store.head()));
    store.close().unwrap();
    drop(store);
    let (store, recovery) = place.open_with(true);
    assert!(recovery.clean && recovery.dropped.is_empty());
    assert_eq!((heights(&*store), store.head_serial(), contents(&*store.head())), (vec![1], serial, live));
    let info = store.find(HeightQuery::Newest).unwrap();
    assert_eq!((info.held, info.hash.as_deref(), info.durable), (true, Some("ab"), true));
    store.undo_rollback(false).unwrap();
    assert_eq!((heights(&*store), read(&*store.head(), "a")), (vec![1, 2], "2".into()));
    store.close().unwrap();
    drop(store);
    let store = place.open();
    assert!(store.head_serial() > serial);
    assert_eq!(read(&*view(&*store, 1).tree, "a"), "1");
    store.close().unwrap();
}

pub fn preserved_paths_are_carried_over(place: &Place) {
    let store = place.open();
    write(&*store.head(), "state/signer", "old");
    write(&*store.head(), "data", "old");
    snap(&*store, 1);
    write(&*store.head(), "state/signer", "new");
    write(&*store.head(), "state/deep/er", "new");
    write(&*store.head(), "data", "new");
    write(&*store.head(), "gone", "new");
    let before = contents(&*store.head());
    let missing = store.rollback(HeightQuery::Newest, &["state/signer".into(), "no".into()], false);
    assert!(matches!(missing, Err(Error::PreserveMissing { .. })));
    let outside = store.rollback(HeightQuery::Newest, &["../x".into()], false);
    assert!(matches!(outside, Err(Error::PreserveImpossible { .. })));
    assert_eq!(contents(&*store.head()), before, "nothing was changed");
    let paths = [PathBuf::from("state/signer"), PathBuf::from("state/deep")];
    let report = store.rollback(HeightQuery::Newest, &paths, false).unwrap();
    assert_eq!(report.preserved, paths);
    let head = store.head();
    for (path, content) in [("state/signer", "new"), ("state/deep/er", "new"), ("data", "old")] {
        assert_eq!(read(&*head, path), content, "{path}");
    }
    assert!(matches!(find(&*head, "gone"), Err(Error::NoEntry)));
    assert_eq!(read(&*view(&*store, 1).tree, "state/signer"), "old", "the snapshot is as it was");
    store.undo_rollback(false).unwrap();
    assert_eq!(contents(&*store.head()), before);
    store.close().unwrap();
}

pub fn hostile_names(place: &Place) {
    let store = place.open();
    let names: [&[u8]; 9] = [
        b" leading and trailing ",
        b"new\nline",
        b"quotes '\"` and $(touch x) ; rm -rf . #",
        b"-rf",
        b"--",
        b"back\\slash\t\x01",
        b"\xff\xfe not UTF-8",
        b"{name} {live} %s *",
        &[b'x'; 255],
    ];
    for name in names {
        write(&*store.head(), OsStr::from_bytes(name), name);
        write(
            &*store.head(),
            Path::new(OsStr::from_bytes(&[b"dir ", &name[..name.len().min(200)]].concat())).join("in"),
            "x",
        );
    }
    let all = contents(&*store.head());
    assert_eq!(all.len(), names.len() * 3);
    snap(&*store, 1);
    for name in names {
        store.head().unlink(Ino::ROOT, OsStr::from_bytes(name)).unwrap();
    }
    assert_eq!(contents(&*view(&*store, 1).tree), all);
    store.rollback(HeightQuery::Newest, &[PathBuf::from("-rf/../x")], true).unwrap_err();
    store.rollback(HeightQuery::Newest, &[], false).unwrap();
    assert_eq!(contents(&*store.head()), all);
    store.close().unwrap();
}

pub fn an_abandoned_head_can_be_dropped(place: &Place) {
    let store = place.open();
    for height in 1..=3 {
        write(&*store.head(), "a", format!("at {height}"));
        snap(&*store, height);
    }
    store.set_held(Height(3), true).unwrap();
    store.rollback(HeightQuery::Exact(Height(1)), &[], false).unwrap();
    assert!(matches!(store.drop_abandoned(false), Err(Error::Held { height: Height(3) })));
    store.undo_rollback(false).unwrap();
    store.set_held(Height(3), false).unwrap();
    store.rollback(HeightQuery::Exact(Height(1)), &[], false).unwrap();
    let dry = store.drop_abandoned(true).unwrap();
    assert_eq!(dry.heights, [Height(2), Height(3)]);
    assert_eq!(store.drop_abandoned(false).unwrap().heights, dry.heights);
    store.settle().unwrap();
    assert!(matches!(store.undo_rollback(false), Err(Error::NothingToUndo)));
    assert_eq!((heights(&*store), read(&*store.head(), "a")), (vec![1], "at 1".into()));
    store.close().unwrap();
    drop(store);
    let store = place.open();
    assert_eq!((heights(&*store), store.usage().unwrap().undo_depth), (vec![1], 0));
    store.close().unwrap();
}

/// Random changes of names and contents, compared with what they were at each height.
pub fn many_changes_between_heights(place: &Place) {
    let store = place.open();
    let mut seed = 7u64;
    let mut next = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut known: BTreeMap<u64, Contents> = BTreeMap::new();
    for height in 1..=12 {
        for _ in 0..25 {
            let (dir, name) = (format!("d{}", next(3)), format!("f{}", next(6)));
            let path = format!("{dir}/{name}");
            let head = store.head();
            match (next(6), find(&*head, &dir), find(&*head, &path)) {
                (0, Ok(dir), Ok(_)) => drop(head.unlink(dir, OsStr::new(&name)).unwrap()),
                (1, Ok(dir), Ok(ino)) => drop(head.link(ino, dir, OsStr::new(&format!("l{}", next(9))))),
                (2, Ok(dir), Ok(_)) => {
                    let to = format!("f{}", next(6));
                    head.rename((dir, OsStr::new(&name)), (dir, OsStr::new(&to)), RenameMode::Replace)
                        .unwrap();
                }
                (3, _, Ok(ino)) => {
                    let size = Some(next(20_000));
                    head.set_attr(ino, &SetAttr { size, ..SetAttr::default() }).unwrap();
                }
                (4, _, Ok(ino)) => {
                    let file = head.open_write(ino, Times::Touch).unwrap();
                    file.write_at(&vec![next(256) as u8; next(9000) as usize + 1], next(30_000)).unwrap();
                }
                _ => write(&*head, &path, format!("{height} {}", next(1000))),
            }
        }
        snap(&*store, height);
        known.insert(height, contents(&*store.head()));
        if height % 4 == 0 {
            let to = height - next(3);
            store.rollback(HeightQuery::Exact(Height(to)), &[], false).unwrap();
            known.retain(|&known, _| known <= to);
            assert_eq!(contents(&*store.head()), known[&to]);
            if next(2) == 0 {
                let deleted = *known.keys().next().unwrap();
                store.delete(&[Height(deleted)], false).unwrap();
                known.remove(&deleted);
            }
            // The chain goes on above, whatever was hidden.
        }
        for (&height, wanted) in &known {
            assert_eq!(contents(&*view(&*store, height).tree), *wanted, "height {height}");
        }
    }
    store.settle().unwrap();
    store.close().unwrap();
    drop(store);
    let store = place.open();
    assert_eq!(heights(&*store), known.keys().copied().collect::<Vec<_>>());
    for (&height, wanted) in &known {
        assert_eq!(contents(&*view(&*store, height).tree), *wanted, "height {height}, after a restart");
    }
    store.close().unwrap();
}
