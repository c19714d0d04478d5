//! The chunk store on the twin of a disk: power cuts, failing operations, a full disk.
//!
//! [`run`] applies operations from a seed to a store on a [`MemDisk`](crate::disk::twin::MemDisk) and to a reference
//! model ([`model`]), which also keeps what the store has *promised*: which heights are durable, how far the namespace
//! is, which content each file has at least. [`check`] opens a disk as a power cut left it and compares it with the
//! promises.
//!
//! `TMFS_SEED=n` replays one run, `TMFS_STEPS=n` says how long it is, `TMFS_LONG=1` runs many more.

mod carried;
mod check;
mod crash;
mod failing;
mod full;
mod model;
mod promises;
mod run;

// The reference model of one tree, shared with the tests of the public interface.
#[path = "../../../tests/model/bytes.rs"]
#[allow(dead_code)]
mod bytes;
#[path = "../../../tests/model/ops.rs"]
#[allow(dead_code)]
mod ops;
#[path = "../../../tests/model/state.rs"]
#[allow(dead_code)]
mod state;

use std::path::Path;
use std::sync::Arc;

use self::state::os;
use super::store::ChunkStore;
use super::{OpenOptions, Recovery, open};
use crate::backend::{Backend, NewInode, Times};
use crate::disk::Disk;
use crate::disk::twin::{Media, MemDisk};
use crate::error::Result;
use crate::types::{FileKind, Ino};

fn long() -> bool {
    std::env::var_os("TMFS_LONG").is_some()
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A new store, all of it on the disk.
pub(super) fn new_disk() -> Arc<MemDisk> {
    let disk = MemDisk::new(Media::default());
    let door: Arc<dyn Disk> = Arc::<MemDisk>::clone(&disk);
    open::initialize(&door, open::root_row(0o755, 0, 0)).expect("a new store");
    disk.sync_all().expect("sync");
    disk
}

/// Opens the store on a disk, recovering it if need be; without a background.
pub(super) fn open_store(disk: &Arc<MemDisk>) -> Result<(Store, Recovery)> {
    let disk: Arc<dyn Disk> = Arc::<MemDisk>::clone(disk);
    let (core, recovery) = open::open_on(disk, Path::new("twin"))?;
    let store = open::finish(core, None, &OpenOptions { no_background: true })?;
    Ok((Store(store), recovery))
}

/// An open store. Dropping it is a crash: nothing is closed.
pub(super) struct Store(Arc<ChunkStore>);

impl std::ops::Deref for Store {
    type Target = Arc<ChunkStore>;

    fn deref(&self) -> &Arc<ChunkStore> {
        &self.0
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        *self.0.closed.lock() = true;
    }
}

/// A store with a file that holds `content`.
pub(super) fn with_file(content: &[u8]) -> (Arc<MemDisk>, Store, Ino) {
    let disk = new_disk();
    let (store, _) = open_store(&disk).expect("open");
    let new =
        NewInode { kind: FileKind::Regular, mode: 0o600, umask: 0, uid: 0, gid: 0, rdev: 0, target: b"" };
    let ino = store.head().create(Ino::ROOT, os("f"), &new).expect("create").ino;
    store.head().open_write(ino, Times::Touch).expect("open").write_at(content, 0).expect("write");
    (disk, store, ino)
}

/// The first bytes of a live file.
pub(super) fn read(store: &Store, ino: Ino, len: usize) -> Vec<u8> {
    let mut found = vec![0; len];
    assert_eq!(store.head().open(ino).expect("open").read_at(&mut found, 0).expect("read"), len);
    found
}
