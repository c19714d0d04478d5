//! Each test is a failure that was found, made small.

use snapstore::backend::*;
use snapstore::{Height, Ino};

use super::fixture::{Place, make, snap};

const K4: usize = 4096;

fn write(head: &dyn Head, ino: Ino, at: u64, byte: u8, len: usize) {
    let file = head.open_write(ino, Times::Touch).expect("open");
    file.write_at(&vec![byte; len], at).expect("write");
}

fn sync(head: &dyn Head, ino: Ino) {
    head.open_write(ino, Times::Touch).expect("open").sync(true).expect("sync");
}

fn truncate(head: &dyn Head, ino: Ino, size: u64) {
    head.set_attr(ino, &SetAttr { size: Some(size), ..SetAttr::default() }).expect("truncate");
}

fn content(tree: &dyn Tree, ino: Ino) -> Vec<u8> {
    let file = tree.open(ino).expect("open");
    let mut buf = vec![0; file.len().expect("len") as usize];
    assert_eq!(file.read_at(&mut buf, 0).expect("read"), buf.len());
    buf
}

/// A store with one file of three chunks in a durable snapshot of height 1.
fn with_history() -> (Place, std::sync::Arc<dyn Backend>, std::sync::Arc<dyn Head>, Ino) {
    let place = Place::new();
    let (store, _) = place.open(false);
    let head = store.head();
    let ino = make(&*head, "f");
    write(&*head, ino, 0, 1, 3 * K4);
    snap(&*store, 1);
    store.wait_durable(store.find(HeightQuery::Exact(Height(1))).unwrap().epoch).expect("durable");
    (place, store, head, ino)
}

/// Another's commit had put the layer's row off; the fsync then found nothing new to commit.
#[test]
fn regression_fsync_after_a_commit_that_deferred_the_layer() {
    let (place, _store, head, ino) = with_history();
    write(&*head, ino, 0, 2, K4);
    head.sync_names().expect("sync_names");
    sync(&*head, ino);
    let image = place.crash_image();
    let (store, _) = image.open(false);
    assert_eq!(content(&*store.head(), ino)[..K4], [2; K4]);
}

/// An empty layer has no file to sync, so its row was put off for ever.
#[test]
fn regression_fsync_of_a_file_that_was_emptied() {
    let (place, _store, head, ino) = with_history();
    truncate(&*head, ino, 0);
    sync(&*head, ino);
    let image = place.crash_image();
    let (store, _) = image.open(false);
    assert!(content(&*store.head(), ino).is_empty());
}

#[test]
fn regression_durable_snapshot_of_a_file_that_was_emptied() {
    let (place, store, head, ino) = with_history();
    truncate(&*head, ino, 0);
    snap(&*store, 2);
    store.wait_durable(store.find(HeightQuery::Exact(Height(2))).unwrap().epoch).expect("durable");
    let image = place.crash_image();
    let (store, _) = image.open(false);
    let view = store.view(HeightQuery::Exact(Height(2))).expect("view");
    assert!(content(&*view.tree, ino).is_empty());
    assert_eq!(content(&*store.view(HeightQuery::Exact(Height(1))).expect("view").tree, ino), [1; 3 * K4]);
}

/// The file of a layer that was replaced went although the replacement's row had been put off: the disk's row then
/// led nowhere, and the store could not be opened any more.
#[test]
fn regression_a_replaced_layer_file_stays_while_a_row_leads_to_it() {
    let place = Place::new();
    let (store, _) = place.open(true);
    let head = store.head();
    let ino = make(&*head, "f");
    write(&*head, ino, 0, 1, 3 * K4);
    snap(&*store, 1);
    store.wait_durable(store.find(HeightQuery::Exact(Height(1))).unwrap().epoch).expect("durable");
    write(&*head, ino, 0, 2, K4);
    sync(&*head, ino);
    truncate(&*head, ino, 0);
    head.sync_names().expect("sync_names");
    // Time for the background to do wrong; without it the test would prove nothing, but not fail either.
    std::thread::sleep(std::time::Duration::from_millis(200));
    let image = place.crash_image();
    let (store, _) = image.open(false);
    let now = content(&*store.head(), ino);
    assert!(now.is_empty() || now[..K4] == [2; K4], "one or the other: {} bytes", now.len());
}

/// Marks of zeroed chunks are metadata: fdatasync must not leave them out.
#[test]
fn regression_fsync_after_punching_what_an_older_layer_has() {
    let (place, _store, head, ino) = with_history();
    write(&*head, ino, 0, 2, K4);
    sync(&*head, ino);
    let file = head.open_write(ino, Times::Touch).expect("open");
    file.allocate(Allocate::PunchHole, K4 as u64, K4 as u64).expect("punch");
    file.sync(true).expect("sync");
    let image = place.crash_image();
    let (store, _) = image.open(false);
    assert_eq!(content(&*store.head(), ino)[K4..2 * K4], [0; K4]);
}

/// An empty file of a sealed epoch has no layer file: reading it after a restart is not an error.
#[test]
fn regression_reading_an_emptied_file_after_a_restart() {
    let (place, store, head, ino) = with_history();
    truncate(&*head, ino, 0);
    snap(&*store, 2);
    store.close().expect("close");
    let (store, _) = place.open(false);
    let file = store.head().open(ino).expect("open");
    assert_eq!(file.read_at(&mut [0; 10], 0).expect("read"), 0);
    truncate(&*store.head(), ino, 100);
    assert_eq!(content(&*store.head(), ino), [0; 100]);
}

/// Sealing writes a row of the frozen epoch into memory when the disk already has the next epoch's: that one counts.
#[test]
fn regression_the_row_of_an_epoch_being_sealed_hides_no_later_one() {
    let place = Place::new();
    let (store, _) = place.open(true);
    let head = store.head();
    let ino = make(&*head, "f");
    for n in 1..200 {
        write(&*head, ino, 0, n, K4);
        sync(&*head, ino);
        snap(&*store, n.into());
        // Opened, written, committed, closed and opened again, while the background seals the epoch before.
        for byte in [100, n] {
            write(&*head, ino, 0, byte, K4);
            sync(&*head, ino);
            assert_eq!((content(&*head, ino)[0], content(&*head, ino).len()), (byte, K4));
        }
    }
}

/// A lookup took a row from memory, which is older than its layer; then the commit ended and let go of the layer.
#[test]
fn regression_a_view_opened_while_its_layers_are_being_committed() {
    let place = Place::new();
    let (store, _) = place.open(true);
    let head = store.head();
    let inos: Vec<Ino> = (0..24).map(|i| make(&*head, &format!("f{i}"))).collect();
    let rounds = if super::long() { 500 } else { 12 };
    for n in 1..rounds {
        for &ino in &inos {
            write(&*head, ino, 0, 7, 3 * K4);
            truncate(&*head, ino, n % 5000);
        }
        snap(&*store, n);
        let view = store.view(HeightQuery::Newest).expect("view");
        let info = || store.find(HeightQuery::Newest).expect("find");
        std::thread::scope(|scope| {
            for _ in 0..1 {
                scope.spawn(|| {
                    while !info().durable {
                        for &ino in &inos {
                            assert_eq!(view.tree.get_attr(ino).expect("stat").size, n % 5000, "height {n}");
                            let len = view.tree.open(ino).expect("open").len().expect("len");
                            assert_eq!(len, n % 5000, "height {n}");
                        }
                    }
                });
            }
        });
    }
}

/// Without a background nobody looked again after an epoch was sealed: what had waited for that was never merged.
#[test]
fn regression_what_a_seal_makes_mergeable_is_merged_without_a_background() {
    let (place, store, head, ino) = with_history();
    write(&*head, ino, 0, 2, K4);
    store.rollback(HeightQuery::Newest, &[], false).expect("rollback");
    store.undo_rollback(false).expect("undo");
    let head = store.head();
    write(&*head, ino, 0, 3, K4);
    snap(&*store, 2);
    store.settle().expect("settle");
    // Height 1 has three chunks, height 2 one more; what was written between is hidden.
    assert_eq!(place.layer_bytes(), 4 * K4 as u64);
}

/// What the other branch of a fork had seen was called freed, but stayed until the head was frozen.
#[test]
fn regression_dropping_heads_frees_what_only_the_head_hides() {
    let (place, store, head, ino) = with_history();
    store.rollback(HeightQuery::Newest, &[], false).expect("rollback");
    store.undo_rollback(false).expect("undo");
    store.delete(&[Height(1)], false).expect("delete");
    drop(head);
    write(&*store.head(), ino, 0, 2, K4);
    store.settle().expect("settle");
    let before = place.layer_bytes();
    let freed = store.drop_abandoned(false).expect("drop").freed_bytes;
    store.settle().expect("settle");
    assert_eq!((before - place.layer_bytes(), freed), (K4 as u64, K4 as u64));
    assert_eq!(content(&*store.head(), ino), [vec![2; K4], vec![1; 2 * K4]].concat());
}
