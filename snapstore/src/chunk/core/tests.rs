use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use crate::backend::{Backend, HeightQuery, NewInode, SnapshotOptions, Times};
use crate::chunk::lineage::Lineage;
use crate::chunk::rows::Key;
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
