use std::time::{Duration, Instant};

use super::{HASHED_AT_CLOSE, HASHED_AT_ONCE, Hashing, PIECE, Pace};
use crate::backend::{Backend, HeightQuery, NewInode, SnapshotOptions, Times};
use crate::chunk::open;
use crate::chunk::rows::{Key, LayerRow, Row};
use crate::chunk::store::ChunkStore;
use crate::chunk::twins::{Store, open_store, read, with_file};
use crate::chunk::{OpenOptions, create_empty};
use crate::disk::Disk;
use crate::disk::twin::MemDisk;
use crate::progress::Silent;
use crate::sync::atomic::Ordering;
use crate::types::{CHUNK_SIZE, EpochId, FileKind, Height, Ino};

const NEW: NewInode<'static> =
    NewInode { kind: FileKind::Regular, mode: 0o600, umask: 0, uid: 0, gid: 0, rdev: 0, target: b"" };
const CHUNK: usize = CHUNK_SIZE as usize;
/// More than is hashed at once.
const MUCH: usize = 20 * CHUNK;

/// Takes a snapshot and seals it: it is durable, and not hashed.
fn sealed(store: &Store, height: u64) -> EpochId {
    store.snapshot(Height(height), &SnapshotOptions::default()).unwrap();
    let epoch = store.core.work.lock().seal.pop_front().unwrap();
    store.core.seal(epoch).unwrap();
    assert!(store.core.control.lock().snapshots[&epoch].durable);
    epoch
}

fn row(store: &ChunkStore, ino: Ino, epoch: EpochId) -> LayerRow {
    LayerRow::decode(&store.core.meta.row_at(&Key::layer(ino), epoch).unwrap().unwrap().unwrap()).unwrap()
}

fn write(store: &Store, ino: Ino, byte: u8, len: usize) {
    store.head().open_write(ino, Times::Touch).unwrap().write_at(&vec![byte; len], 0).unwrap();
}

/// Bytes that are verified against a hash, and those that have none.
fn verified(store: &ChunkStore) -> (u64, u64) {
    let report = store.verify(None, &Silent).unwrap();
    assert!(report.damaged.is_empty());
    (report.bytes, report.unhashed_bytes)
}

#[test]
fn a_snapshot_is_durable_before_it_is_hashed_and_a_crash_does_not_forget_that() {
    assert!((MUCH / CHUNK) as u64 > HASHED_AT_ONCE);
    let (disk, store, ino) = with_file(&[7; MUCH]);
    let epoch = sealed(&store, 1);
    assert!(!row(&store, ino, epoch).summed);
    // The power is cut here; everything that was not synced is lost.
    let media = disk.media().all_dropped();
    drop(store);
    let (store, recovery) = open_store(&MemDisk::new(media)).unwrap();
    assert_eq!(recovery.dropped, []);
    assert!(!row(&store, ino, epoch).summed);
    assert_eq!(store.core.work.lock().hash, [epoch]);
    assert!(store.core.hash_next().unwrap());
    assert!(row(&store, ino, epoch).summed);
    assert!(!store.core.hash_next().unwrap(), "there is no more to do");
    assert_eq!(store.core.control.lock().unhashed().count(), 0);
    assert_eq!(verified(&store), (MUCH as u64, 0));
    assert_eq!(read(&store, ino, MUCH), [7; MUCH]);
}

#[test]
fn what_is_asked_to_be_verified_is_hashed_first() {
    let (_disk, store, ino) = with_file(&[7; MUCH]);
    let epoch = sealed(&store, 1);
    assert_eq!(verified(&store), (MUCH as u64, 0));
    assert!(row(&store, ino, epoch).summed);
}

#[test]
fn a_file_in_use_is_compared_from_then_on() {
    let (disk, store, ino) = with_file(&[7; MUCH]);
    // A hole has no hash: only that the layer is summed says that it must read zeros.
    let hole = MUCH as u64 + CHUNK_SIZE;
    let writing = store.head().open_write(ino, Times::Touch).unwrap();
    writing.write_at(&[7; CHUNK], hole + CHUNK_SIZE).unwrap();
    let epoch = sealed(&store, 1);
    let file = store.head().open(ino).unwrap();
    assert_eq!(read(&store, ino, CHUNK), [7; CHUNK]);
    let damage = |at| {
        let path = row(&store, ino, epoch).file.path(ino);
        disk.open(&path).unwrap().write_at(&[8; 1], at).unwrap();
    };
    assert!(store.core.hash_next().unwrap());
    // The hole first: what finds damage looks at the rows again.
    for at in [hole, 3 * CHUNK_SIZE] {
        damage(at);
        let error = file.read_at(&mut [0; CHUNK], at).unwrap_err();
        assert!(matches!(error, crate::Error::Damaged { .. }), "{error}");
    }
    assert_eq!(read(&store, ino, CHUNK), [7; CHUNK]);
}

#[test]
fn epochs_are_merged_when_both_have_their_hashes() {
    let (_disk, store, ino) = with_file(&[7; MUCH]);
    let lower = sealed(&store, 1);
    write(&store, ino, 8, MUCH / 2);
    let upper = sealed(&store, 2);
    store.delete(&[Height(1)], false).unwrap();
    // The rows of the upper one are fewer: they have moved down.
    let merged = || store.core.meta.touched(upper, None, 1).unwrap().is_empty();
    for _ in 0..2 {
        store.core.reclaim(|| false).unwrap();
        assert!(!merged(), "one of them is not hashed");
        assert!(!store.core.work.lock().awaited.is_empty(), "and it waits");
        assert!(store.core.hash_next().unwrap());
    }
    store.core.reclaim(|| false).unwrap();
    assert!(merged());
    assert!(store.core.work.lock().awaited.is_empty());
    assert!(row(&store, ino, lower).summed);
    assert_eq!(verified(&store), (MUCH as u64, 0));
}

#[test]
fn where_the_disk_is_full_merging_has_nothing_to_wait_for() {
    let much = 3 * PIECE as usize * CHUNK;
    let (disk, store, ino) = with_file(&vec![7; much]);
    let lower = sealed(&store, 1);
    write(&store, ino, 8, MUCH / 2);
    let upper = sealed(&store, 2);
    store.delete(&[Height(1)], false).unwrap();
    let mut pieces = 0;
    let done = store.core.hash_epoch(lower, &mut |_| {
        pieces += 1;
        disk.set_capacity(Some(disk.used()));
        true
    });
    assert_eq!((done.unwrap(), pieces), (Hashing::NoRoom, 1));
    store.core.work_off().unwrap();
    assert!(store.core.meta.touched(upper, None, 1).unwrap().is_empty(), "its rows have moved down");
    assert!(!row(&store, ino, lower).summed);
    disk.set_capacity(None);
    // The scrub makes up for it.
    store.core.scrub(&Silent).unwrap();
    assert!(row(&store, ino, lower).summed);
    assert_eq!(verified(&store), (much as u64, 0));
}

#[test]
fn what_is_deleted_meanwhile_leaves_no_hashes() {
    let (_disk, store, ino) = with_file(&[7; CHUNK]);
    let other = store.head().create(Ino::ROOT, "g".as_ref(), &NEW).unwrap().ino;
    sealed(&store, 1);
    write(&store, ino, 8, MUCH);
    write(&store, other, 9, MUCH);
    let epoch = sealed(&store, 2);
    let files = [ino, other].map(|ino| (ino, row(&store, ino, epoch).file));
    store.rollback(HeightQuery::Exact(Height(1)), &[], false).unwrap();
    let left = store.core.work.lock().seal.pop_front().unwrap();
    store.core.seal(left).unwrap();
    let mut asked = 0;
    let done = store.core.hash_epoch(epoch, &mut |chunks| {
        asked += chunks;
        // All of the first file has its hashes, but for the row that says so.
        if asked < 2 * (MUCH / CHUNK) as u64 {
            return true;
        }
        store.drop_abandoned(false).unwrap();
        store.core.reclaim(|| false).unwrap();
        assert!(store.core.control.lock().tree.get(epoch).is_none(), "it is gone");
        true
    });
    assert_eq!((done.unwrap(), asked), (Hashing::Done, 2 * (MUCH / CHUNK) as u64));
    for (ino, file) in files {
        assert_eq!(store.core.meta.next_data_sum(ino, file, 0).unwrap(), None);
        assert!(store.core.meta.row_at(&Key::layer(ino), epoch).unwrap().is_none());
    }
    assert!(store.core.hash_next().unwrap(), "it was still queued");
    assert!(!store.core.hash_next().unwrap());
    store.settle().unwrap();
    assert_eq!(read(&store, ino, CHUNK), [7; CHUNK]);
}

/// One layer that cannot be read must not keep the others from being hashed, nor epochs from being merged.
#[test]
fn a_layer_that_is_gone_is_left_out() {
    let (disk, store, ino) = with_file(&[7; MUCH]);
    let other = store.head().create(Ino::ROOT, "g".as_ref(), &NEW).unwrap().ino;
    write(&store, other, 9, MUCH);
    let epoch = sealed(&store, 1);
    disk.remove(&row(&store, ino, epoch).file.path(ino)).unwrap();
    assert!(store.core.hash_next().unwrap());
    assert!(!row(&store, ino, epoch).summed);
    assert!(row(&store, other, epoch).summed);
    assert!(!store.core.hash_next().unwrap());
}

#[test]
fn closing_hashes_for_so_long_and_the_next_time_goes_on() {
    let len = (HASHED_AT_CLOSE as usize + 600) * CHUNK;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    create_empty(&path, std::path::Path::new("/data")).unwrap();
    let options = OpenOptions { no_background: true };
    let (store, _) = open::open(&path, &options).unwrap();
    let ino = store.head().create(Ino::ROOT, "f".as_ref(), &NEW).unwrap().ino;
    store.head().open_write(ino, Times::Touch).unwrap().write_at(&vec![3; len], 0).unwrap();
    store.close().unwrap();
    drop(store);
    let (store, recovery) = open::open(&path, &options).unwrap();
    assert!(recovery.clean);
    let epoch = *store.core.work.lock().hash.front().expect("it waits");
    let file = row(&store, ino, epoch).file;
    let has = |chunk| store.core.meta.next_data_sum(ino, file, chunk).unwrap() == Some(chunk);
    assert!(has(HASHED_AT_CLOSE as u32 - 1) && !has((len / CHUNK) as u32 - 1), "a part was hashed");
    // Who has only looked does not wait for the rest.
    store.close().unwrap();
    drop(store);
    let (store, _) = open::open(&path, &options).unwrap();
    assert_eq!(store.core.work.lock().hash, [epoch]);
    assert!(!row(&store, ino, epoch).summed);
    store.settle().unwrap();
    assert_eq!(verified(&store), (len as u64, 0));
    let mut found = vec![0; len];
    store.head().open(ino).unwrap().read_at(&mut found, 0).unwrap();
    assert!(found.iter().all(|&byte| byte == 3));
}

/// What is on the way when it ends is kept, and not done again.
#[test]
fn a_hash_that_is_there_is_kept() {
    let (disk, store, ino) = with_file(&vec![7; 600 * CHUNK]);
    let epoch = sealed(&store, 1);
    let mut pieces = 0;
    let done = store.core.hash_epoch(epoch, &mut |_| {
        pieces += 1;
        pieces < 2
    });
    assert_eq!(done.unwrap(), Hashing::Stopped);
    // From here on this is damage, and gets no hash of its own.
    let path = row(&store, ino, epoch).file.path(ino);
    disk.open(&path).unwrap().write_at(&[8; 1], CHUNK_SIZE * 3).unwrap();
    assert!(store.core.hash_next().unwrap());
    assert!(row(&store, ino, epoch).summed);
    let report = store.verify(None, &Silent).unwrap();
    assert_eq!(report.damaged.len(), 2, "at the height and in the head: {:?}", report.damaged);
}

#[test]
fn the_background_hashes_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    create_empty(&path, std::path::Path::new("/data")).unwrap();
    let (store, _) = open::open(&path, &OpenOptions::default()).unwrap();
    let ino = store.head().create(Ino::ROOT, "f".as_ref(), &NEW).unwrap().ino;
    store.head().open_write(ino, Times::Touch).unwrap().write_at(&[3; MUCH], 0).unwrap();
    let epoch = store.snapshot(Height(1), &SnapshotOptions::default()).unwrap().epoch;
    store.wait_durable(epoch).unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while !row(&store, ino, epoch).summed {
        assert!(Instant::now() < patience, "not hashed");
        std::thread::sleep(Duration::from_millis(1));
    }
    store.close().unwrap();
}

#[test]
fn it_gives_way_to_programs_that_read_unless_somebody_waits() {
    let (disk, store, ino) = with_file(&[7; MUCH]);
    store.core.work.lock().by_callers = false;
    let before =
        |store: &Store| Pace { since: Instant::now(), reads: store.core.reads.load(Ordering::Relaxed) };
    // Nobody reads: it goes on at once, though it would be slow for a year.
    assert!(store.core.give_way(&mut before(&store), 1 << 40));
    let mut pace = before(&store);
    read(&store, ino, CHUNK);
    let hurry = store.core.hurry();
    assert!(store.core.give_way(&mut pace, 1 << 40), "somebody waits");
    drop(hurry);
    let mut pace = before(&store);
    read(&store, ino, CHUNK);
    let since = pace.since;
    assert!(store.core.give_way(&mut pace, 256));
    assert!(since.elapsed() >= Duration::from_millis(15), "a MiB at 64 MiB a second");
    store.core.work.lock().hash.extend((100..120).map(EpochId));
    let mut pace = before(&store);
    read(&store, ino, CHUNK);
    assert!(store.core.give_way(&mut pace, 1 << 40), "too many wait");
    store.core.work.lock().hash.clear();
    store.core.work.lock().awaited.insert(EpochId(100));
    let mut pace = before(&store);
    read(&store, ino, CHUNK);
    disk.set_capacity(Some(disk.used() + 10));
    assert!(store.core.give_way(&mut pace, 1 << 40), "a merge waits, and space is short");
    disk.set_capacity(None);
    let mut pace = before(&store);
    let since = pace.since;
    read(&store, ino, CHUNK);
    assert!(store.core.give_way(&mut pace, 256));
    assert!(since.elapsed() >= Duration::from_millis(15), "it is not");
    store.core.work.lock().awaited.clear();
    let mut pace = before(&store);
    read(&store, ino, CHUNK);
    store.core.stopping.store(true, Ordering::Release);
    assert!(!store.core.give_way(&mut pace, 1 << 40), "the store is closing");
    store.core.stopping.store(false, Ordering::Release);
}

/// What one has begun, another ends, in whatever order the hashes of a group come.
#[test]
fn the_scrub_and_the_background_share_a_layer() {
    let (disk, store, ino) = with_file(&vec![7; 700 * CHUNK]);
    // With a hole, so that a piece ends within a group.
    let file = store.head().open_write(ino, Times::Touch).unwrap();
    file.allocate(crate::backend::Allocate::PunchHole, 10 * CHUNK_SIZE, CHUNK_SIZE).unwrap();
    let epoch = sealed(&store, 1);
    let done = store.core.hash_layers(epoch, [ino], &mut |_| false).unwrap();
    assert_eq!(done, Hashing::Stopped);
    assert!(store.core.hash_next().unwrap());
    store.core.commit(true).unwrap();
    let (store, _) = open_store(&MemDisk::new(disk.media().all_dropped())).unwrap();
    assert!(row(&store, ino, epoch).summed);
    assert_eq!(verified(&store).1, 0);
    let mut found = vec![0; 700 * CHUNK];
    store.head().open(ino).unwrap().read_at(&mut found, 0).unwrap();
    assert!(found.iter().enumerate().all(|(n, &byte)| byte == if n / CHUNK == 10 { 0 } else { 7 }));
}

/// A layer is not said to have all its hashes in a commit before them.
#[test]
fn regression_hashes_are_on_the_disk_with_the_row_that_relies_on_them() {
    let (disk, store, ino) = with_file(&[7; MUCH]);
    let epoch = sealed(&store, 1);
    // Nothing else waits for a commit.
    store.core.commit(true).unwrap();
    store.core.sum_adopted(&Silent).unwrap();
    let (store, _) = open_store(&MemDisk::new(disk.media().all_dropped())).unwrap();
    assert!(row(&store, ino, epoch).summed);
    assert_eq!(read(&store, ino, MUCH), [7; MUCH]);
}

/// A power cut may leave hashes of a layer whose freezing it has undone: what is written then is not compared with them.
#[test]
fn regression_hashes_of_a_sealing_that_a_crash_has_undone() {
    let (disk, store, ino) = with_file(&[7; MUCH]);
    store.head().open_write(ino, Times::Touch).unwrap().sync(false).unwrap();
    let epoch = store.core.head().epoch;
    let name = row(&store, ino, epoch).file;
    let file = disk.open(&name.path(ino)).unwrap();
    let chunks = (0..20).collect();
    store.core.sum_file(ino, name, &*file, &chunks, crate::chunk::seal::Known::Replace).unwrap();
    store.core.commit(false).unwrap();
    let (store, _) = open_store(&MemDisk::new(disk.media().all_dropped())).unwrap();
    write(&store, ino, 8, MUCH);
    assert_eq!(sealed(&store, 1), epoch, "the same layer");
    assert_eq!(read(&store, ino, MUCH), [8; MUCH]);
    store.settle().unwrap();
    assert_eq!(read(&store, ino, MUCH), [8; MUCH]);
    assert_eq!(verified(&store), (MUCH as u64, 0));
}

/// What the file has lost does not become zeros that have a hash.
#[test]
fn a_file_that_was_cut_is_not_hashed() {
    let (disk, store, ino) = with_file(&[7; MUCH]);
    let epoch = sealed(&store, 1);
    disk.open(&row(&store, ino, epoch).file.path(ino)).unwrap().set_len(CHUNK_SIZE * 5).unwrap();
    assert!(store.core.hash_next().unwrap());
    assert!(!row(&store, ino, epoch).summed);
    let file = store.head().open(ino).unwrap();
    assert!(matches!(file.read_at(&mut [0; CHUNK], CHUNK_SIZE * 6), Err(crate::Error::Damaged { .. })));
}

/// A fold brings chunks that had no hashes to where the scrub has been already, and leaves the row as it was.
#[test]
fn a_layer_that_others_are_folded_into_meanwhile() {
    let much = 3 * PIECE as usize * CHUNK;
    let (_disk, store, ino) = with_file(&vec![7; much]);
    let lower = sealed(&store, 1);
    write(&store, ino, 8, MUCH);
    let upper = sealed(&store, 2);
    // As after a full disk: nobody is going to hash them but the scrub.
    store.core.work.lock().hash.clear();
    store.delete(&[Height(1)], false).unwrap();
    let seen = row(&store, ino, lower);
    let go_on = &mut |_| {
        store.core.reclaim(|| false).unwrap();
        true
    };
    assert_eq!(store.core.hash_layers(lower, [ino], go_on).unwrap(), Hashing::Done);
    assert!(store.core.meta.touched(upper, None, 1).unwrap().is_empty(), "its rows have moved down");
    assert_eq!(row(&store, ino, lower), LayerRow { summed: true, ..seen });
    assert_eq!(verified(&store), (much as u64, 0));
    assert_eq!(read(&store, ino, MUCH + 1), [&[8; MUCH][..], &[7]].concat());
}

#[test]
fn a_snapshot_waits_while_too_many_are_not_hashed() {
    let (_disk, store, ino) = with_file(&[7; CHUNK]);
    write(&store, ino, 8, CHUNK);
    {
        let mut work = store.core.work.lock();
        work.by_callers = false;
        work.hash.extend((100..165).map(EpochId));
    }
    std::thread::scope(|scope| {
        let snapshot = scope.spawn(|| store.snapshot(Height(1), &SnapshotOptions::default()).unwrap());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!snapshot.is_finished());
        store.core.work.lock().hash.pop_back();
        store.core.done.notify_all();
        snapshot.join().unwrap();
    });
    store.core.work.lock().by_callers = true;
}

/// The same where the layer's row was not on the disk, so that recovery knows nothing of it.
#[test]
fn regression_hashes_that_are_older_than_the_layer() {
    for len in [2 * CHUNK, MUCH] {
        let (disk, store, ino) = with_file(&vec![7; len]);
        store.head().open_write(ino, Times::Touch).unwrap().sync(false).unwrap();
        let epoch = store.core.head().epoch;
        let name = row(&store, ino, epoch).file;
        let file = disk.open(&name.path(ino)).unwrap();
        let chunks = (0..(len / CHUNK) as u32).collect();
        store.core.sum_file(ino, name, &*file, &chunks, crate::chunk::seal::Known::Replace).unwrap();
        store.core.meta.rewrite(|_| Ok(())).unwrap();
        assert!(store.core.meta.has_sums(ino, name).unwrap());
        // Another content, with a hole where there was data.
        let file = store.head().open_write(ino, Times::Touch).unwrap();
        file.write_at(&vec![8; len], 0).unwrap();
        file.allocate(crate::backend::Allocate::PunchHole, CHUNK_SIZE, CHUNK_SIZE).unwrap();
        sealed(&store, 1);
        let wanted = [&[8; CHUNK][..], &[0; CHUNK], &vec![8; len - 2 * CHUNK]].concat();
        assert_eq!(read(&store, ino, len), wanted);
        store.settle().unwrap();
        assert_eq!(read(&store, ino, len), wanted);
        assert!(row(&store, ino, epoch).summed);
        assert!(store.verify(None, &Silent).unwrap().damaged.is_empty());
    }
}

/// Layers that are done already say so another time.
#[test]
fn a_full_disk_gets_no_rows_either() {
    let (disk, store, ino) = with_file(&[7; MUCH]);
    let other = store.head().create(Ino::ROOT, "g".as_ref(), &NEW).unwrap().ino;
    write(&store, other, 9, MUCH);
    let epoch = sealed(&store, 1);
    let done = store.core.hash_epoch(epoch, &mut |_| {
        disk.set_capacity(Some(disk.used()));
        true
    });
    assert_eq!(done.unwrap(), Hashing::NoRoom);
    assert!(!row(&store, ino, epoch).summed && !row(&store, other, epoch).summed);
    disk.set_capacity(None);
    assert!(store.core.hash_next().unwrap());
    assert!(row(&store, ino, epoch).summed && row(&store, other, epoch).summed);
}
