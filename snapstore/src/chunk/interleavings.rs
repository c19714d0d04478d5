//! The store's threads in many orders, chosen by shuttle: the gate of a cut, the folder, commits and seals.
//!
//! `scripts/interleavings` runs these. A failure prints the order that replays it (`shuttle::replay`).

use std::sync::Arc;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;

use super::store::ChunkStore;
use super::{OpenOptions, open};
use crate::backend::{Backend, FileRead, FileWrite, HeightQuery, NewInode, SnapshotOptions, Times, Tree};
use crate::disk::Disk;
use crate::disk::twin::{Media, MemDisk};
use crate::error::Error;
use crate::types::{CHUNK_SIZE, FileKind, Height, Ino};

const CHUNK: usize = CHUNK_SIZE as usize;

/// Runs a body in many orders of its threads.
fn explore(body: fn()) {
    let orders = std::env::var("TMFS_ORDERS").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let mut config = shuttle::Config::new();
    // The database wants more than shuttle's threads have.
    config.stack_size = 2 << 20;
    config.max_steps = shuttle::MaxSteps::FailAfter(2_000_000);
    for depth in [2, 4] {
        shuttle::Runner::new(PctScheduler::new_from_seed(11, depth, orders), config.clone()).run(body);
    }
    shuttle::Runner::new(RandomScheduler::new_from_seed(12, orders), config).run(body);
}

/// An open store; going is a crash.
struct Opened(Arc<ChunkStore>);

impl Drop for Opened {
    fn drop(&mut self) {
        *self.0.closed.lock() = true;
    }
}

fn new_disk() -> Arc<MemDisk> {
    let disk = MemDisk::new(Media::default());
    let door: Arc<dyn Disk> = Arc::<MemDisk>::clone(&disk);
    open::initialize(&door, open::root_row(0o755, 0, 0)).expect("a new store");
    disk.sync_all().expect("sync");
    disk
}

fn open_store(disk: &Arc<MemDisk>) -> Opened {
    let disk: Arc<dyn Disk> = Arc::<MemDisk>::clone(disk);
    let (core, _) = open::open_on(disk, std::path::Path::new("shuttled")).expect("open");
    Opened(open::finish(core, None, &OpenOptions { no_background: true }).expect("open"))
}

impl Opened {
    fn file(&self, name: &str) -> Ino {
        let kind = FileKind::Regular;
        let new = NewInode { kind, mode: 0o600, umask: 0, uid: 0, gid: 0, rdev: 0, target: b"" };
        self.0.head().create(Ino::ROOT, name.as_ref(), &new).expect("create").ino
    }

    fn open(&self, ino: Ino) -> Arc<dyn FileWrite> {
        self.0.head().open_write(ino, Times::Touch).expect("open")
    }

    fn snapshot(&self, height: u64) {
        self.0.snapshot(Height(height), &SnapshotOptions::default()).expect("snapshot");
    }

    fn view(&self, height: u64) -> Arc<dyn Tree> {
        self.0.view(HeightQuery::Exact(Height(height))).expect("a view").tree
    }
}

/// The bytes of which each chunk of a file consists; a chunk that is not of one byte is torn.
fn chunks(file: &dyn FileRead) -> Vec<u8> {
    let mut content = vec![0; file.len().expect("length") as usize];
    let got = file.read_at(&mut content, 0).expect("read");
    assert_eq!(got, content.len());
    let whole = |chunk: &[u8]| {
        assert!(chunk.iter().all(|byte| *byte == chunk[0]), "a torn chunk");
        chunk[0]
    };
    content.chunks(CHUNK).map(whole).collect()
}

fn shown(tree: &dyn Tree, ino: Ino) -> Vec<u8> {
    chunks(&*tree.open(ino).expect("open"))
}

/// A snapshot holds what had ended before it was asked for, and nothing that began after it returned; each write
/// wholly or not at all.
#[test]
fn a_cut_among_writers() {
    explore(|| {
        let store = Arc::new(open_store(&new_disk()));
        let writers: Vec<_> = ["a", "b"]
            .into_iter()
            .map(|name| {
                let (begun, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
                let ino = store.file(name);
                let thread = thread::spawn({
                    let (store, begun, ended) = (Arc::clone(&store), Arc::clone(&begun), Arc::clone(&ended));
                    move || {
                        let file = store.open(ino);
                        for n in 1..=4 {
                            begun.store(n, Ordering::SeqCst);
                            file.write_at(&[n as u8; 2 * CHUNK], 0).expect("write");
                            ended.store(n, Ordering::SeqCst);
                        }
                    }
                });
                (ino, begun, ended, thread)
            })
            .collect();
        for height in 1..=2 {
            let before: Vec<u64> = writers.iter().map(|w| w.2.load(Ordering::SeqCst)).collect();
            store.snapshot(height);
            let view = store.view(height);
            for ((ino, begun, ..), before) in writers.iter().zip(before) {
                let found = shown(&*view, *ino);
                let number = found.first().copied().unwrap_or(0);
                assert!(found.iter().all(|byte| *byte == number), "a write in part: {found:?}");
                let last = begun.load(Ordering::SeqCst);
                assert!((before..=last).contains(&u64::from(number)), "{number} is not in {before}..={last}");
            }
            let again: Vec<_> = writers.iter().map(|w| shown(&*view, w.0)).collect();
            store.0.settle().expect("settle");
            let view = store.view(height);
            assert_eq!(again, writers.iter().map(|w| shown(&*view, w.0)).collect::<Vec<_>>());
        }
        for (_, _, _, thread) in writers {
            thread.join().expect("a writer");
        }
    });
}

/// Folding changes nothing that a reader sees, while the live file is written.
#[test]
fn the_folder_among_readers_and_writers() {
    explore(|| {
        let store = Arc::new(open_store(&new_disk()));
        let ino = store.file("file");
        for height in 1..=4_u64 {
            let file = store.open(ino);
            file.write_at(&[height as u8; 2 * CHUNK], (height - 1) * CHUNK_SIZE).expect("write");
            store.snapshot(height);
            store.0.settle().expect("settle");
        }
        let wanted: Vec<_> = [1, 4].map(|height| shown(&*store.view(height), ino)).into();
        store.0.delete(&[Height(2), Height(3)], false).expect("delete");
        let folder = thread::spawn({
            let store = Arc::clone(&store);
            move || store.0.settle().expect("settle")
        });
        let reader = thread::spawn({
            let (store, wanted) = (Arc::clone(&store), wanted.clone());
            move || {
                for _ in 0..2 {
                    for (height, wanted) in [1, 4].into_iter().zip(&wanted) {
                        assert_eq!(shown(&*store.view(height), ino), *wanted, "height {height}");
                    }
                }
            }
        });
        let file = store.open(ino);
        for n in 0..3_u8 {
            file.write_at(&[100 + n; CHUNK], u64::from(n) * CHUNK_SIZE).expect("write");
            assert_eq!(chunks(&*file)[n as usize], 100 + n, "what was written is read");
        }
        drop(file);
        for thread in [folder, reader] {
            thread.join().expect("no panic");
        }
        store.0.settle().expect("settle");
        assert_eq!(shown(&*store.0.head(), ino), [100, 101, 102, 4, 4]);
        for (height, wanted) in [1, 4].into_iter().zip(&wanted) {
            assert_eq!(shown(&*store.view(height), ino), *wanted, "height {height}, at last");
        }
    });
}

/// Whoever has synced finds it after a power cut, whatever commits, cuts and seals meanwhile.
#[test]
fn syncs_among_commits_and_seals() {
    explore(|| {
        let disk = new_disk();
        let store = Arc::new(open_store(&disk));
        let writers: Vec<_> = ["a", "b"]
            .into_iter()
            .map(|name| {
                let store = Arc::clone(&store);
                thread::spawn(move || {
                    let ino = store.file(name);
                    let file = store.open(ino);
                    for n in 1..=2 {
                        file.write_at(&[n; 2 * CHUNK], 0).expect("write");
                        file.sync(true).expect("fsync");
                    }
                    ino
                })
            })
            .collect();
        let commits = thread::spawn({
            let store = Arc::clone(&store);
            move || store.0.core.commit(true).expect("commit")
        });
        let info = store.0.snapshot(Height(1), &SnapshotOptions::default()).expect("snapshot");
        store.0.wait_durable(info.epoch).expect("durable");
        let inos: Vec<Ino> = writers.into_iter().map(|w| w.join().expect("a writer")).collect();
        commits.join().expect("commits");
        let cut = MemDisk::new(disk.media().all_dropped());
        let after = open_store(&cut);
        assert_eq!(after.0.heights(), [Height(1)]);
        for (name, ino) in ["a", "b"].into_iter().zip(inos) {
            let found = after.0.head().lookup(Ino::ROOT, name.as_ref()).expect("it is there");
            assert_eq!(found.ino, ino);
            assert_eq!(shown(&*after.0.head(), ino), [2, 2]);
        }
    });
}

/// What a writer was told is written is in the head that a rollback leaves; from then on he is refused.
#[test]
fn a_rollback_among_writers() {
    explore(|| {
        let store = Arc::new(open_store(&new_disk()));
        let ino = store.file("file");
        store.open(ino).write_at(&[1; CHUNK], 0).expect("write");
        store.snapshot(1);
        store.0.settle().expect("settle");
        let writer = thread::spawn({
            let store = Arc::clone(&store);
            let file = store.open(ino);
            move || {
                let mut last = 1;
                for n in 2..=5 {
                    match file.write_at(&[n; CHUNK], 0) {
                        Ok(()) => last = n,
                        Err(Error::Stale) => break,
                        Err(other) => panic!("{other}"),
                    }
                }
                drop(store);
                last
            }
        });
        store.0.rollback(HeightQuery::Exact(Height(1)), &[], false).expect("rollback");
        assert_eq!(shown(&*store.0.head(), ino), [1]);
        let last = writer.join().expect("the writer");
        assert_eq!(shown(&*store.0.head(), ino), [1], "nothing came through afterwards");
        store.0.undo_rollback(false).expect("undo");
        // Of the write that was refused the content may have been in time, and not the times.
        let found = shown(&*store.0.head(), ino);
        assert!(found == [last] || found == [last + 1], "{found:?}, {last} was acknowledged");
    });
}
