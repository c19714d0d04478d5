//! Commits, syncs and sealing at the same time: what was promised to be on the disk is.

use std::sync::Arc;
use std::sync::Mutex;

use shuttle::thread;

use super::*;

const LEN: usize = 5000;

/// What the disk is certain to have, and the promise that was made just before.
type Promises = Arc<Mutex<Vec<(Media, Promise)>>>;

#[derive(Debug)]
enum Promise {
    /// The file has this byte.
    Content(u8),
    /// There is this name.
    Name(String),
    /// There is this height, with this content.
    Height(u64, Vec<u8>),
}

fn check(media: Media, promise: &Promise) {
    let (store, _) = open_store(&MemDisk::new(media)).expect("open after a power cut");
    match promise {
        Promise::Content(byte) => assert_eq!(live(&store), vec![*byte; LEN], "{promise:?}"),
        Promise::Name(name) => {
            store.head().lookup(Ino::ROOT, name.as_ref()).unwrap_or_else(|e| panic!("{promise:?}: {e}"));
        }
        Promise::Height(height, content) => assert_eq!(&at(&store, *height), content, "{promise:?}"),
    }
}

#[test]
fn fsync_commit_and_seal() {
    let media = disk_with(|store| {
        write(store, 9, 0, LEN);
        snapshot(store, 1);
    });
    explore(move || {
        let (disk, store) = opened(&media);
        let promises = Promises::default();
        let promise = {
            let (promises, disk) = (promises.clone(), disk.clone());
            move |promise| promises.lock().expect("no panic").push((disk.media().all_dropped(), promise))
        };
        let writing = {
            let (store, promise) = (store.clone(), promise.clone());
            thread::spawn(move || {
                let file = store.head().open_write(ino(&store), Times::Touch).expect("open");
                for byte in 1..3 {
                    file.write_at(&[byte; LEN], 0).expect("write");
                    file.sync(false).expect("sync");
                    promise(Promise::Content(byte));
                }
            })
        };
        let naming = {
            let (store, promise) = (store.clone(), promise.clone());
            thread::spawn(move || {
                let head = store.head();
                head.create(Ino::ROOT, "new".as_ref(), &NEW).expect("create");
                head.sync_names().expect("sync");
                promise(Promise::Name("new".into()));
            })
        };
        let committing = {
            let store = store.clone();
            thread::spawn(move || {
                store.core.sync_waiting().expect("sync");
                store.core.commit(true).expect("commit");
            })
        };
        let epoch = store.snapshot(Height(2), &SnapshotOptions::default()).expect("snapshot").epoch;
        store.wait_durable(epoch).expect("seal");
        promise(Promise::Height(2, at(&store, 2)));
        for thread in [writing, naming, committing] {
            thread.join().expect("a thread");
        }
        for (media, promise) in promises.lock().expect("no panic").drain(..) {
            check(media, &promise);
        }
    });
}

/// Two who sync the same file: neither takes the other's sync, still under way, for done.
#[test]
fn two_syncs_of_a_file() {
    let media = disk_with(|store| write(store, 9, 0, LEN));
    explore(move || {
        let (disk, store) = opened(&media);
        let file = store.head().open_write(ino(&store), Times::Touch).expect("open");
        file.write_at(&[1; LEN], 0).expect("write");
        // Its name is durable: from here on a layer that has nothing new needs no sync.
        file.sync(true).expect("sync");
        let other = {
            let file = Arc::clone(&file);
            thread::spawn(move || file.sync(true).expect("sync"))
        };
        file.write_at(&[2; LEN], 0).expect("write");
        file.sync(true).expect("sync");
        let image = disk.media().all_dropped();
        other.join().expect("the other");
        check(image, &Promise::Content(2));
    });
}

/// What is said of a snapshot while it is sealed does not make it less durable.
#[test]
fn a_snapshot_is_held_while_it_is_sealed() {
    let media = disk_with(|store| write(store, 9, 0, LEN));
    explore(move || {
        let (disk, store) = opened(&media);
        let epoch = store.snapshot(Height(2), &SnapshotOptions::default()).expect("snapshot").epoch;
        let holding = {
            let store = store.clone();
            thread::spawn(move || store.set_held(Height(2), true).expect("hold"))
        };
        store.wait_durable(epoch).expect("seal");
        holding.join().expect("holding");
        let (store, recovery) = open_store(&MemDisk::new(disk.media().all_dropped())).expect("open");
        assert_eq!(recovery.dropped, []);
        assert!(store.find(HeightQuery::Exact(Height(2))).expect("the height").held);
    });
}
