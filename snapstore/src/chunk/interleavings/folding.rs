//! Reclaim and folding, while others read and write.

use shuttle::thread;

use super::*;
use crate::backend::SetAttr;
use crate::chunk::lineage::Lineage;
use crate::chunk::rows::{Key, KeyKind, LayerRow, Row};

const CHUNK: usize = 4096;

/// A store with three heights; deleting the second has its layer folded with the third's. `more` is what the third
/// writes, beside its first chunk.
fn three(more: impl Fn(&Store) + Send + Sync + 'static) -> Media {
    disk_with(move |store| {
        write(store, 1, 0, 4 * CHUNK);
        snapshot(store, 1);
        store.settle().expect("settle");
        write(store, 2, CHUNK as u64, 2 * CHUNK);
        snapshot(store, 2);
        store.settle().expect("settle");
        write(store, 3, 0, CHUNK);
        more(store);
        snapshot(store, 3);
    })
}

fn layers_at(store: &Store, height: u64) -> usize {
    let view = store.view(HeightQuery::Exact(Height(height))).expect("the height");
    let lineage = Lineage::new(&store.core.control.lock().tree, view.epoch);
    store.core.load_stack(&lineage, ino(store)).expect("the stack").len()
}

/// Everybody sees the same bytes, whatever is folded below.
fn nobody_sees_it(media: Media) {
    explore(move || {
        let (_disk, store) = opened(&media);
        assert_eq!(layers_at(&store, 3), 3);
        let (one, three) = (at(&store, 1), at(&store, 3));
        let reclaiming = {
            let store = store.clone();
            thread::spawn(move || {
                store.delete(&[Height(2)], false).expect("delete");
                store.core.work_off().expect("reclaim");
            })
        };
        let reading = {
            let (store, one, three) = (store.clone(), one.clone(), three.clone());
            // Opened before, so that its stack is the old one.
            let view = store.view(HeightQuery::Exact(Height(3))).expect("the height");
            let open = view.tree.open(ino(&store)).expect("open");
            thread::spawn(move || {
                assert_eq!(all_of(&*open), three, "through an open file");
                assert_eq!(at(&store, 3), three, "opened anew");
                assert_eq!(at(&store, 1), one);
                assert_eq!(all_of(&*open), three, "through an open file, again");
            })
        };
        let writing = {
            let store = store.clone();
            let mut expected = three.clone();
            thread::spawn(move || {
                assert_eq!(live(&store), expected);
                let file = store.head().open_write(ino(&store), Times::Touch).expect("open");
                file.write_at(&[7; 100], CHUNK as u64 + 50).expect("write");
                expected[CHUNK + 50..CHUNK + 150].fill(7);
                assert_eq!(all_of(&*file), expected, "through the file that wrote");
                assert_eq!(live(&store), expected, "opened anew");
                expected
            })
        };
        reclaiming.join().expect("reclaiming");
        reading.join().expect("reading");
        let expected = writing.join().expect("writing");
        store.settle().expect("settle");
        assert_eq!(layers_at(&store, 3), 2, "two of three were folded");
        assert_eq!((at(&store, 1), at(&store, 3), live(&store)), (one, three, expected));
    });
}

#[test]
fn folding_upwards() {
    nobody_sees_it(three(|store| write(store, 3, 3 * CHUNK as u64, CHUNK)));
}

/// Less is written above than shows of what is below, and there are more rows below: all goes down.
#[test]
fn folding_downwards() {
    nobody_sees_it(disk_with(|store| {
        write(store, 1, 0, 4 * CHUNK);
        snapshot(store, 1);
        store.settle().expect("settle");
        write(store, 2, 0, 4 * CHUNK);
        for name in ["a", "b", "c"] {
            store.head().create(Ino::ROOT, name.as_ref(), &NEW).expect("create");
        }
        snapshot(store, 2);
        store.settle().expect("settle");
        write(store, 3, CHUNK as u64, CHUNK);
        snapshot(store, 3);
    }));
}

/// The upper layer's limit cuts a chunk of the lower in two.
#[test]
fn folding_where_a_file_was_cut() {
    nobody_sees_it(three(|store| {
        let size = Some(2 * CHUNK as u64 + 500);
        store.head().set_attr(ino(store), &SetAttr { size, ..SetAttr::default() }).expect("truncate");
    }));
}

/// What sealing left is hashed while its neighbours are merged, its snapshot is deleted, and all of it is read.
#[test]
fn hashing_beside_a_merge() {
    let media = three(|store| write(store, 3, 3 * CHUNK as u64, CHUNK));
    explore(move || {
        let (_disk, store) = opened(&media);
        let (one, three) = (at(&store, 1), at(&store, 3));
        write(&store, 4, 0, 2 * CHUNK);
        snapshot(&store, 4);
        let epoch = store.core.work.lock().seal.pop_front().expect("an epoch to seal");
        store.core.seal(epoch).expect("seal");
        let four = at(&store, 4);
        let hashing = {
            let store = store.clone();
            thread::spawn(move || {
                assert!(store.core.hash_next().expect("hash"));
            })
        };
        let reclaiming = {
            let store = store.clone();
            thread::spawn(move || {
                store.delete(&[Height(2)], false).expect("delete");
                store.core.reclaim(|| false).expect("reclaim");
                store.delete(&[Height(3)], false).expect("delete");
                store.core.reclaim(|| false).expect("reclaim");
            })
        };
        let reading = {
            let (store, four) = (store.clone(), four.clone());
            thread::spawn(move || {
                assert_eq!(live(&store), four);
                assert_eq!(at(&store, 4), four);
            })
        };
        for thread in [hashing, reclaiming, reading] {
            thread.join().expect("a thread");
        }
        store.settle().expect("settle");
        assert_eq!(layers_at(&store, 4), 2, "two snapshots are left");
        assert_eq!((at(&store, 1), at(&store, 4), live(&store)), (one, four.clone(), four));
        assert!(three != at(&store, 4));
        let mut layers = 0;
        let each = |key: &Key, _, value: Option<&[u8]>| {
            if let (KeyKind::Layer(_), Some(bytes)) = (key.kind(), value) {
                layers += 1;
                assert!(LayerRow::decode(bytes)?.summed, "each has its hashes");
            }
            Ok(())
        };
        store.core.meta.for_each_row(each).expect("the rows");
        assert!(layers >= 2);
    });
}
