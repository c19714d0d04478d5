//! The store under many interleavings of its threads, on the twin of a disk: `scripts/interleavings`.
//!
//! Each test begins with a store that an earlier run has left behind, so that what is interleaved is only the work of
//! its few threads. What they note for each other goes through ordinary atomics and locks, which are no place to switch
//! at: noting something and doing it is one step.

mod cuts;
mod durable;
mod folding;

use std::sync::Arc;

use super::twins::{Store, new_disk, open_store};
use crate::backend::{Backend, FileRead, HeightQuery, NewInode, SnapshotOptions, Times};
use crate::disk::twin::{Media, MemDisk};
use crate::sync::explore::{explore, prepare};
use crate::types::{FileKind, Height, Ino};

/// The file that every test works on.
const FILE: &str = "f";

const NEW: NewInode<'static> =
    NewInode { kind: FileKind::Regular, mode: 0o600, umask: 0, uid: 0, gid: 0, rdev: 0, target: b"" };

/// A disk with a store that `fill` has filled, all of it sealed.
fn disk_with(fill: impl Fn(&Store) + Send + Sync + 'static) -> Media {
    prepare(move || {
        let disk = new_disk();
        let (store, _) = open_store(&disk).expect("open");
        store.head().create(Ino::ROOT, FILE.as_ref(), &NEW).expect("create");
        fill(&store);
        store.settle().expect("settle");
        store.close().expect("close");
        disk.media()
    })
}

/// The store on a copy of a disk.
fn opened(media: &Media) -> (Arc<MemDisk>, Arc<Store>) {
    let disk = MemDisk::new(media.clone());
    let (store, _) = open_store(&disk).expect("open");
    store.core.work_off().expect("nothing to do");
    (disk, Arc::new(store))
}

fn ino(store: &Store) -> Ino {
    store.head().lookup(Ino::ROOT, FILE.as_ref()).expect("the file").ino
}

fn write(store: &Store, byte: u8, offset: u64, len: usize) {
    let file = store.head().open_write(ino(store), Times::Touch).expect("open");
    file.write_at(&vec![byte; len], offset).expect("write");
}

fn all_of(file: &dyn FileRead) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 16];
    let got = file.read_at(&mut bytes, 0).expect("read");
    bytes.truncate(got);
    bytes
}

/// The file as the head has it.
fn live(store: &Store) -> Vec<u8> {
    all_of(&*store.head().open(ino(store)).expect("open"))
}

/// The file as a height has it.
fn at(store: &Store, height: u64) -> Vec<u8> {
    let view = store.view(HeightQuery::Exact(Height(height))).expect("the height");
    let ino = view.tree.lookup(Ino::ROOT, FILE.as_ref()).expect("the file").ino;
    all_of(&*view.tree.open(ino).expect("open"))
}

/// Whether a height has a name in its root.
fn has(store: &Store, height: u64, name: &str) -> bool {
    let view = store.view(HeightQuery::Exact(Height(height))).expect("the height");
    view.tree.lookup(Ino::ROOT, name.as_ref()).is_ok()
}

fn snapshot(store: &Store, height: u64) {
    store.snapshot(Height(height), &SnapshotOptions::default()).expect("snapshot");
}
