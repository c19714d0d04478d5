use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::backend::{Backend, HeightQuery, NewInode, SetAttr, SnapshotOptions, Times};
use crate::chunk::lineage::Lineage;
use crate::chunk::rows::Key;
use crate::chunk::snapshots::{SnapshotRow, snapshot_row};
use crate::chunk::store::ChunkStore;
use crate::chunk::{OpenOptions, create_empty, open};
use crate::types::{FileKind, Height, Ino};

/// Between the commit of a folded layer's row and the end of what was in its place, whoever asks for the size gets the
/// file's, not that of the layer that was there. (A program then read a file cut short: lost data to it.)
#[test]
fn regression_a_layer_that_folding_has_just_replaced_tells_neither_size_nor_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    create_empty(&path, Path::new("/data")).unwrap();
    let (store, _) = open::open(&path, &OpenOptions { no_background: true }).unwrap();
    let core = &store.core;
    let head = store.head();
    let new =
        NewInode { kind: FileKind::Regular, mode: 0o600, umask: 0, uid: 0, gid: 0, rdev: 0, target: b"" };
    let ino = head.create(Ino::ROOT, OsStr::new("f"), &new).unwrap().ino;
    // Rows that make it cheaper to move the second epoch's into the first.
    for name in ["a", "b", "c", "d"] {
        head.create(Ino::ROOT, OsStr::new(name), &new).unwrap();
    }
    let file = head.open_write(ino, Times::Touch).unwrap();
    let snap = |height| {
        store.snapshot(Height(height), &SnapshotOptions::default()).unwrap();
        store.settle().unwrap();
    };
    file.write_at(&[1; 2 * 4096], 0).unwrap();
    snap(1);
    file.write_at(&[2; 4096], 5 * 4096).unwrap();
    snap(2);
    drop(file);
    let stack = core.load_stack(&core.head().lineage, ino).unwrap();
    assert_eq!(stack.len(), 2, "a layer for each epoch");
    store.delete(&[Height(1)], false).unwrap();
    store.settle().unwrap();
    let folded = core.load_stack(&core.head().lineage, ino).unwrap();
    assert_eq!(folded.len(), 1, "the two were folded");
    for layer in &stack {
        core.live.lock().insert((ino, layer.epoch), Arc::downgrade(layer));
    }
    assert_eq!(head.get_attr(ino).unwrap().size, 6 * 4096);
    let view = store.view(HeightQuery::Exact(Height(2))).unwrap();
    assert_eq!(view.tree.get_attr(ino).unwrap().size, 6 * 4096);
    let lineage: Lineage = core.head().lineage.clone();
    assert_eq!(core.chunks_in(&lineage, ino, lineage.tip()).unwrap(), 3);
    let (epoch, row) = core.meta.newest(&lineage, &Key::layer(ino)).unwrap().unwrap();
    let found = core.layer(ino, epoch, &row.unwrap()).unwrap();
    assert_eq!(found.state.read().size, 6 * 4096);
}

/// A store with three heights and a file; with the second deleted, its layer of the file is to be folded with the third's.
fn three_heights(dir: &Path) -> (Arc<ChunkStore>, Ino) {
    let path = dir.join("store");
    create_empty(&path, Path::new("/data")).unwrap();
    let (store, _) = open::open(&path, &OpenOptions { no_background: true }).unwrap();
    let head = store.head();
    let new =
        NewInode { kind: FileKind::Regular, mode: 0o600, umask: 0, uid: 0, gid: 0, rdev: 0, target: b"" };
    let ino = head.create(Ino::ROOT, OsStr::new("f"), &new).unwrap().ino;
    let file = head.open_write(ino, Times::Touch).unwrap();
    for (height, offset, len) in [(1, 0, 4 * 4096), (2, 4096, 2 * 4096), (3, 0, 4096)] {
        file.write_at(&vec![height as u8; len], offset).unwrap();
        store.snapshot(Height(height), &SnapshotOptions::default()).unwrap();
        store.settle().unwrap();
    }
    (store, ino)
}

/// Between the commit of a fold and the moment when open files take their stacks anew, a write that completes a chunk
/// from below does not fail because what was below has moved. (A program's write was answered with EIO.)
#[test]
fn regression_a_write_completes_a_chunk_from_what_was_just_folded() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ino) = three_heights(dir.path());
    let core = &store.core;
    let file = store.head().open_write(ino, Times::Touch).unwrap();
    let layers = || core.load_stack(&core.head().lineage, ino).unwrap().len();
    assert_eq!(layers(), 3);
    store.delete(&[Height(2)], false).unwrap();
    std::thread::scope(|scope| {
        // Here the fold waits, committed, before it tells the open file.
        let replacing = core.replacing.lock();
        let reclaiming = scope.spawn(|| core.work_off().unwrap());
        while layers() == 3 {
            std::thread::yield_now();
        }
        file.write_at(&[7; 100], 50).unwrap();
        drop(replacing);
        reclaiming.join().unwrap();
    });
    let mut expected = [[3; 4096], [2; 4096], [2; 4096], [1; 4096]].concat();
    expected[50..150].fill(7);
    let mut found = vec![0; 4 * 4096];
    file.read_at(&mut found, 0).unwrap();
    assert!(found == expected);
}

/// A hold that comes while a snapshot's sealing is on its way to the disk does not write there that the snapshot is not
/// durable. (After a power cut a snapshot that was called durable was gone.)
#[test]
fn regression_a_hold_during_sealing_leaves_a_snapshot_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = three_heights(dir.path());
    let core = &store.core;
    let epoch = store.snapshot(Height(4), &SnapshotOptions::default()).unwrap().epoch;
    core.control.lock().sealing.insert(epoch);
    store.set_held(Height(4), true).unwrap();
    let rows = core.meta.control(&snapshot_row(epoch)).unwrap();
    let row: SnapshotRow = serde_json::from_slice(&rows[0].1).unwrap();
    assert!(row.held && row.durable, "{row:?}");
    assert!(!core.control.lock().snapshots[&epoch].durable, "nobody is told yet");
    core.control.lock().sealing.remove(&epoch);
}

/// Labels that come after the cut are there after a restart, and never go to another snapshot of that height.
#[test]
fn labels_are_added_to_the_snapshot_that_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let (store, path) = three_heights(dir.path());
    let labels = |pairs: &[(&str, &str)]| -> std::collections::BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let options = SnapshotOptions { labels: labels(&[("a", "1"), ("b", "1")]), ..SnapshotOptions::default() };
    let epoch = store.snapshot(Height(4), &options).unwrap().epoch;
    let added = store.add_labels(Height(4), epoch, &labels(&[("b", "2"), ("c", "2")])).unwrap();
    assert_eq!(added.labels, labels(&[("a", "1"), ("b", "2"), ("c", "2")]));
    let other = store.find(HeightQuery::Exact(Height(3))).unwrap().epoch;
    assert!(store.add_labels(Height(4), other, &labels(&[("x", "")])).is_err());
    assert!(store.add_labels(Height(5), epoch, &labels(&[("x", "")])).is_err());
    assert!(store.add_labels(Height(4), epoch, &labels(&[("x=", "")])).is_err(), "as for any label");
    store.close().unwrap();
    drop(store);
    let (store, _) = open::open(&path, &OpenOptions { no_background: true }).unwrap();
    assert_eq!(store.find(HeightQuery::Exact(Height(4))).unwrap().labels, added.labels);
}

/// A layer that was synced a moment after a commit had put it off, and the layer above it that this commit then took for
/// durable: on the disk the upper one inherited from what the lower one had replaced. (Found by a power cut on ext4: a
/// file of 8192 bytes that no program had written.)
#[test]
fn regression_what_inherits_from_a_layer_that_is_put_off_is_put_off_too() {
    let dir = tempfile::tempdir().unwrap();
    let (path, crashed) = (dir.path().join("store"), dir.path().join("crashed"));
    create_empty(&path, Path::new("/data")).unwrap();
    let options = OpenOptions { no_background: true };
    let (store, _) = open::open(&path, &options).unwrap();
    let (core, head) = (&store.core, store.head());
    let new =
        NewInode { kind: FileKind::Regular, mode: 0o600, umask: 0, uid: 0, gid: 0, rdev: 0, target: b"" };
    let ino = head.create(Ino::ROOT, OsStr::new("f"), &new).unwrap().ino;
    let file = head.open_write(ino, Times::Touch).unwrap();
    file.write_at(&[1; 6804], 0).unwrap();
    file.sync(true).unwrap();
    // Emptied and written anew, not synced; then a cut, and more of it.
    head.set_attr(ino, &SetAttr { size: Some(0), ..SetAttr::default() }).unwrap();
    file.write_at(&[2; 8192], 0).unwrap();
    store.snapshot(Height(1), &SnapshotOptions::default()).unwrap();
    file.write_at(&[2; 1964], 8192).unwrap();
    let stack = core.load_stack(&core.head().lineage, ino).unwrap();
    let [upper, lower] = stack.as_slice() else { panic!("a layer for each epoch") };
    assert!(upper.state.read().limit > 0 && lower.barrier);
    core.sync_layer(upper).unwrap();
    core.commit(false).unwrap();
    let copy = |to: &Path| Command::new("cp").arg("-a").args([&path, to]).status().unwrap().success();
    assert!(copy(&crashed));
    let content = |store: &ChunkStore| {
        let mut found = vec![9; 20_000];
        let got = store.head().open(ino).unwrap().read_at(&mut found, 0).unwrap();
        found.truncate(got);
        found
    };
    let (recovered, _) = open::open(&crashed, &options).unwrap();
    assert!(content(&recovered) == [1; 6804], "the old content whole");
    drop(recovered);
    std::fs::remove_dir_all(&crashed).unwrap();
    // Once the lower one is durable too, both are.
    file.sync(true).unwrap();
    assert!(copy(&crashed));
    let (recovered, _) = open::open(&crashed, &options).unwrap();
    assert!(content(&recovered) == [2; 10_156], "the new content whole");
}
