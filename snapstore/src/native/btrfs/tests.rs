//! The engine on a real Btrfs.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::volume::{Volume, must};
use super::{BtrfsEngine, subvolume, sys};
use crate::chunk::adopt::place::open_dir;
use crate::error::Error;
use crate::native::engine::{Engine, Facts, HeadId, Space};
use crate::types::{EpochId, Height};

fn facts(height: u64) -> Facts {
    Facts { height: Height(height), time: jiff::Timestamp::now(), hash: None }
}

/// A store with the head 1.
struct Store {
    engine: BtrfsEngine,
    path: PathBuf,
}

impl Store {
    fn new(volume: &Volume) -> Store {
        let path = volume.root().join("store");
        fs::create_dir(&path).unwrap();
        let engine = BtrfsEngine::open(open_dir(&path).unwrap().as_fd(), &path).unwrap();
        sys::create(open_dir(&path.join("heads")).unwrap().as_fd(), "1".as_ref()).unwrap();
        Store { engine, path }
    }

    fn head(&self, n: u64) -> PathBuf {
        self.path.join("heads").join(n.to_string())
    }

    fn frozen(&self, n: u64) -> PathBuf {
        self.path.join("snapshots").join(n.to_string())
    }

    fn snapshot(&self, head: u64, epoch: u64) {
        self.engine.snapshot(HeadId(head), EpochId(epoch), &facts(epoch)).unwrap();
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

fn numbers(store: &Store) -> (Vec<u64>, Vec<u64>) {
    let mut kept = store.engine.kept().unwrap();
    kept.epochs.sort();
    kept.heads.sort();
    (kept.epochs.iter().map(|e| e.0).collect(), kept.heads.iter().map(|h| h.0).collect())
}

#[test]
fn a_snapshot_stays_a_branch_goes_its_own_way_and_each_is_deleted_alone() {
    let Some(volume) = Volume::new() else { return };
    let store = Store::new(&volume);
    fs::write(store.head(1).join("file"), "one").unwrap();
    store.snapshot(1, 2);
    fs::write(store.head(1).join("file"), "two").unwrap();
    store.snapshot(1, 3);
    assert_eq!(read(&store.frozen(2).join("file")), "one");
    assert_eq!(read(&store.frozen(3).join("file")), "two");
    store.engine.branch(EpochId(2), HeadId(2)).unwrap();
    store.engine.switch(Some(EpochId(2)), HeadId(2)).unwrap();
    fs::write(store.head(2).join("file"), "three").unwrap();
    assert_eq!(read(&store.head(1).join("file")), "two", "the head that is left is not touched");
    assert_eq!(numbers(&store), (vec![2, 3], vec![1, 2]));
    store.engine.delete_snapshot(EpochId(2)).unwrap();
    store.engine.delete_head(HeadId(1)).unwrap();
    assert_eq!(numbers(&store), (vec![3], vec![2]));
    assert_eq!(read(&store.head(2).join("file")), "three");
    assert_eq!(read(&store.frozen(3).join("file")), "two");
    // Called again, as after a crash.
    store.engine.delete_snapshot(EpochId(2)).unwrap();
    store.engine.delete_head(HeadId(1)).unwrap();
    store.engine.sync().unwrap();
}

#[test]
fn what_was_deleted_is_waited_for_also_after_a_restart() {
    let Some(volume) = Volume::new() else { return };
    let store = Store::new(&volume);
    let at = open_dir(&store.path).unwrap();
    assert!(
        store.engine.wait_freed(Duration::ZERO).unwrap(),
        "nothing was deleted: there is nothing to wait for"
    );
    fs::write(store.head(1).join("file"), vec![7; 64 << 20]).unwrap();
    store.snapshot(1, 2);
    fs::remove_file(store.head(1).join("file")).unwrap();
    store.engine.sync().unwrap();
    let free = || {
        let stat = nix::sys::statvfs::fstatvfs(&at).unwrap();
        stat.blocks_available() * stat.fragment_size()
    };
    let before = free();
    store.engine.delete_snapshot(EpochId(2)).unwrap();
    assert_eq!(sys::being_freed(at.as_fd()).unwrap().len(), 1);
    // Another engine, as after a restart.
    let again = BtrfsEngine::open(at.as_fd(), &store.path).unwrap();
    assert!(again.wait_freed(Duration::from_secs(60)).unwrap());
    assert_eq!(sys::being_freed(at.as_fd()).unwrap(), [0; 0]);
    assert!(free() >= before + (60 << 20), "{} before, {} after", before, free());
}

#[test]
fn defect_11_a_snapshot_is_read_only_for_root_too() {
    let Some(volume) = Volume::new() else { return };
    let store = Store::new(&volume);
    fs::write(store.head(1).join("file"), "one").unwrap();
    store.snapshot(1, 2);
    for failed in [
        fs::write(store.frozen(2).join("file"), "changed").unwrap_err(),
        fs::remove_file(store.frozen(2).join("file")).unwrap_err(),
        fs::create_dir(store.frozen(2).join("dir")).unwrap_err(),
    ] {
        assert_eq!(failed.raw_os_error(), Some(libc::EROFS));
    }
    let view = store.engine.open_view(EpochId(2)).unwrap();
    assert!(sys::is_read_only(view.as_fd()).unwrap());
    assert!(!sys::is_read_only(store.engine.open_head(HeadId(1)).unwrap().as_fd()).unwrap());
    store.engine.close_view(EpochId(2)).unwrap();
    assert_eq!(read(&store.frozen(2).join("file")), "one");
}

#[test]
fn calls_that_are_repeated_complete_and_never_take_something_else_for_their_own() {
    let Some(volume) = Volume::new() else { return };
    let store = Store::new(&volume);
    fs::write(store.head(1).join("file"), "one").unwrap();
    store.snapshot(1, 2);
    store.snapshot(1, 2);
    store.engine.branch(EpochId(2), HeadId(2)).unwrap();
    store.engine.branch(EpochId(2), HeadId(2)).unwrap();
    store.snapshot(2, 3);
    // Another subvolume under the name: no success.
    let error = store.engine.snapshot(HeadId(1), EpochId(3), &facts(3)).unwrap_err();
    assert!(matches!(error, Error::Io { op: "snapshot", .. }), "{error}");
    fs::create_dir(store.frozen(4)).unwrap();
    assert!(store.engine.snapshot(HeadId(1), EpochId(4), &facts(4)).is_err(), "a plain directory");
    assert!(store.engine.branch(EpochId(9), HeadId(3)).is_err(), "a snapshot that is not there");
    assert!(store.engine.switch(Some(EpochId(2)), HeadId(3)).is_err(), "a head that is not there");
    assert!(store.engine.open_head(HeadId(3)).is_err());
    assert!(store.engine.open_view(EpochId(4)).is_err());
}

#[test]
fn defect_9_only_what_tmfs_made_is_listed() {
    let Some(volume) = Volume::new() else { return };
    let store = Store::new(&volume);
    store.snapshot(1, 2);
    let beside = |dir: &str, name: &str| {
        let dir = open_dir(&store.path.join(dir)).unwrap();
        sys::create(dir.as_fd(), name.as_ref()).unwrap();
    };
    for name in ["03", "+4", "five", "1.bak", "18446744073709551616"] {
        beside("heads", name);
        beside("snapshots", name);
    }
    fs::create_dir(store.frozen(7)).unwrap();
    fs::write(store.head(8), "a file").unwrap();
    std::os::unix::fs::symlink(store.frozen(2), store.frozen(9)).unwrap();
    // Another volume's, as the ancestor names them.
    sys::create(open_dir(volume.root()).unwrap().as_fd(), "store@5".as_ref()).unwrap();
    assert_eq!(numbers(&store), (vec![2], vec![1]));
}

#[test]
fn defect_8_a_nested_subvolume_is_named_and_nothing_is_frozen_without_it() {
    let Some(volume) = Volume::new() else { return };
    let store = Store::new(&volume);
    let deep = store.head(1).join("a b/\u{e9}");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "x").unwrap();
    store.snapshot(1, 2);
    sys::create(open_dir(&deep).unwrap().as_fd(), "inner".as_ref()).unwrap();
    fs::write(deep.join("inner/file"), "precious").unwrap();
    let error = store.engine.snapshot(HeadId(1), EpochId(3), &facts(3)).unwrap_err();
    match &error {
        Error::NestedSubvolume { path } => assert_eq!(path, Path::new("a b/\u{e9}/inner")),
        other => panic!("{other}"),
    }
    assert_eq!(numbers(&store), (vec![2], vec![1]), "nothing was frozen");
    // Nor is a head deleted with it.
    let error = store.engine.delete_head(HeadId(1)).unwrap_err();
    assert!(error.to_string().contains("a b/\u{e9}/inner: is a subvolume within"), "{error}");
    assert_eq!(read(&deep.join("inner/file")), "precious");
    let dir = open_dir(&deep).unwrap();
    assert_eq!(subvolume::nested_below(dir.as_fd()).unwrap(), [Path::new("inner")]);
    let head = open_dir(&store.head(1)).unwrap();
    assert_eq!(subvolume::nested_below(head.as_fd()).unwrap(), [Path::new("a b/\u{e9}/inner")]);
    subvolume::destroy(dir.as_fd(), "inner".as_ref()).unwrap();
    assert_eq!(subvolume::nested_below(head.as_fd()).unwrap(), [] as [PathBuf; 0]);
    store.snapshot(1, 3);
}

#[test]
fn many_nested_subvolumes_are_all_found() {
    let Some(volume) = Volume::new() else { return };
    let store = Store::new(&volume);
    let head = open_dir(&store.head(1)).unwrap();
    for n in 0..300 {
        sys::create(head.as_fd(), format!("inner{n:03}").as_ref()).unwrap();
    }
    assert_eq!(sys::children(head.as_fd()).unwrap().len(), 300, "more than fit into one answer");
    assert_eq!(subvolume::nested(head.as_fd()).unwrap().len(), 300);
}

#[test]
fn whether_a_head_has_changed_is_known() {
    let Some(volume) = Volume::new() else { return };
    let store = Store::new(&volume);
    let file = store.head(1).join("file");
    fs::write(&file, "one").unwrap();
    store.snapshot(1, 2);
    let changed = |epoch| store.engine.changed_since(HeadId(1), EpochId(epoch)).unwrap();
    assert!(!changed(2), "nothing since");
    fs::write(volume.root().join("elsewhere"), "x").unwrap();
    nix::unistd::syncfs(open_dir(volume.root()).unwrap()).unwrap();
    assert!(!changed(2), "nothing in this head");
    // In place, in the same moment, through a mapping or a plain write: whatever is only in memory counts.
    let open = fs::File::options().write(true).open(&file).unwrap();
    std::os::unix::fs::FileExt::write_at(&open, b"t", 0).unwrap();
    assert!(changed(2));
    store.snapshot(1, 3);
    assert!(!changed(3));
    assert!(changed(2));
    fs::rename(&file, store.head(1).join("other")).unwrap();
    assert!(changed(3));
    store.snapshot(1, 4);
    std::os::unix::fs::chown(store.head(1).join("other"), Some(7), None).unwrap();
    assert!(changed(4));
    // A snapshot of another head says nothing about this one.
    store.engine.branch(EpochId(4), HeadId(2)).unwrap();
    store.snapshot(2, 5);
    assert!(changed(5));
}

#[test]
fn a_write_that_moves_no_time_is_a_change_too() {
    let Some(volume) = Volume::new() else { return };
    let store = Store::new(&volume);
    let file = store.head(1).join("file");
    fs::write(&file, vec![b'a'; 8192]).unwrap();
    let open = fs::File::options().write(true).open(&file).unwrap();
    for epoch in 2..12 {
        std::os::unix::fs::FileExt::write_at(&open, &[epoch as u8; 10], 100).unwrap();
        store.snapshot(1, epoch);
        assert!(!store.engine.changed_since(HeadId(1), EpochId(epoch)).unwrap());
        // Twice at once: the second finds the times as they are to be.
        std::os::unix::fs::FileExt::write_at(&open, b"x", 0).unwrap();
        std::os::unix::fs::FileExt::write_at(&open, b"y", 0).unwrap();
        assert!(store.engine.changed_since(HeadId(1), EpochId(epoch)).unwrap(), "epoch {epoch}");
    }
}

#[test]
fn sizes_are_what_quotas_count_and_said_to_be_unknown_without() {
    let Some(volume) = Volume::new() else { return };
    let store = Store::new(&volume);
    fs::write(store.head(1).join("file"), vec![7; 4 << 20]).unwrap();
    store.snapshot(1, 2);
    assert!(!store.engine.abilities().space);
    assert_eq!(store.engine.abilities().limits.len(), 1);
    assert_eq!(store.engine.space(&[EpochId(2)]).unwrap(), [Space::default()]);
    must("btrfs", &["quota".as_ref(), "enable".as_ref(), volume.root().as_os_str()]);
    must("btrfs", &["quota".as_ref(), "rescan".as_ref(), "-w".as_ref(), volume.root().as_os_str()]);
    assert!(store.engine.abilities().space);
    assert_eq!(store.engine.abilities().limits, [] as [String; 0]);
    fs::write(store.head(1).join("file"), vec![8; 4 << 20]).unwrap();
    store.snapshot(1, 3);
    let root: OwnedFd = open_dir(volume.root()).unwrap();
    nix::unistd::syncfs(&root).unwrap();
    let space = store.engine.space(&[EpochId(2), EpochId(3)]).unwrap();
    let about = |bytes: u64| (4 << 20..5 << 20).contains(&bytes);
    assert!(about(space[0].referenced) && about(space[0].exclusive), "{space:?}");
    assert!(about(space[1].referenced) && space[1].exclusive < 1 << 20, "shared with the head: {space:?}");
}

#[test]
fn a_subvolume_can_be_made_writable_and_read_only() {
    let Some(volume) = Volume::new() else { return };
    let root = open_dir(volume.root()).unwrap();
    assert_eq!(sys::info(root.as_fd()).unwrap().id, sys::TOP_LEVEL);
    sys::create(root.as_fd(), "sub".as_ref()).unwrap();
    let sub = subvolume::open(root.as_fd(), "sub".as_ref()).unwrap().unwrap();
    let info = sys::info(sub.as_fd()).unwrap();
    assert!(info.parent_id == sys::TOP_LEVEL && info.made_at.0 > 0 && info.generation > 0, "{info:?}");
    sys::set_read_only(sub.as_fd(), true).unwrap();
    assert!(fs::write(volume.root().join("sub/file"), "x").is_err());
    sys::set_read_only(sub.as_fd(), false).unwrap();
    fs::write(volume.root().join("sub/file"), "x").unwrap();
    assert!(sys::create(root.as_fd(), "a/b".as_ref()).is_err(), "no path");
    assert!(subvolume::open(root.as_fd(), "none".as_ref()).unwrap().is_none());
    subvolume::destroy(root.as_fd(), "none".as_ref()).unwrap();
}
