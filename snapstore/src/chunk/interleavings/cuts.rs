//! Cuts and switches, while others write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use shuttle::thread;

use super::*;
use crate::error::Error;

/// What is written: parts of two chunks.
const OFFSET: u64 = 1000;
const LEN: usize = 6000;
/// What was there before.
const OLD: u8 = 9;

fn filled() -> Media {
    disk_with(|store| {
        write(store, OLD, 0, 8192);
        snapshot(store, 1);
    })
}

/// The byte that the whole write has left; panics when it is there in part.
fn byte_of(content: &[u8]) -> u8 {
    let (from, to) = (OFFSET as usize, OFFSET as usize + LEN);
    assert_eq!(content.len(), 8192);
    assert!(content[..from].iter().chain(&content[to..]).all(|b| *b == OLD), "bytes beside what was written");
    let byte = content[from];
    assert!(content[from..to].iter().all(|b| *b == byte), "a write in part");
    byte
}

/// A snapshot has a write and a change of names wholly or not at all, has what ended before it was asked for, has not
/// what began when it was there, and stays as it was first seen.
#[test]
fn a_cut_among_writers() {
    const WRITERS: usize = 2;
    let media = filled();
    explore(move || {
        let (_disk, store) = opened(&media);
        let ended: Arc<[AtomicBool; WRITERS]> = Arc::default();
        let late: Arc<[AtomicBool; WRITERS]> = Arc::default();
        let cut = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..WRITERS)
            .map(|n| {
                let (store, ended, late, cut) = (store.clone(), ended.clone(), late.clone(), cut.clone());
                thread::spawn(move || {
                    late[n].store(cut.load(Ordering::SeqCst), Ordering::SeqCst);
                    store.head().create(Ino::ROOT, format!("n{n}").as_ref(), &NEW).expect("create");
                    write(&store, n as u8, OFFSET, LEN);
                    ended[n].store(true, Ordering::SeqCst);
                })
            })
            .collect();
        let cutter = {
            let (store, ended, cut) = (store.clone(), ended.clone(), cut.clone());
            thread::spawn(move || {
                let before: Vec<_> = ended.iter().map(|e| e.load(Ordering::SeqCst)).collect();
                snapshot(&store, 2);
                cut.store(true, Ordering::SeqCst);
                let look = || {
                    let names: Vec<_> = (0..WRITERS).map(|n| has(&store, 2, &format!("n{n}"))).collect();
                    (at(&store, 2), names)
                };
                let seen = look();
                store.core.work_off().expect("seal");
                assert_eq!(look(), seen, "sealed, it is another");
                (before, seen)
            })
        };
        writers.into_iter().for_each(|writer| writer.join().expect("writer"));
        let (before, (content, names)) = cutter.join().expect("cutter");
        assert_eq!(at(&store, 2), content, "it does not stay as it was");
        let byte = byte_of(&content);
        for n in 0..WRITERS {
            assert!(!before[n] || names[n], "a name that was made before is missing");
            assert!(
                !(late[n].load(Ordering::SeqCst) && (names[n] || byte == n as u8)),
                "it has what came later"
            );
            assert!(names[n] || byte != n as u8, "a write without the name that was made before it");
        }
        assert!(byte != OLD || !before.contains(&true), "a write that had ended is missing");
        assert_ne!(byte_of(&live(&store)), OLD);
        assert_eq!(at(&store, 1), vec![OLD; 8192]);
    });
}

/// Of two cuts in a row, each has what the one before it has.
#[test]
fn cuts_in_a_row() {
    let media = filled();
    explore(move || {
        let (_disk, store) = opened(&media);
        let writer = {
            let store = store.clone();
            thread::spawn(move || (1..4).for_each(|byte| write(&store, byte, OFFSET, LEN)))
        };
        let sealer = {
            let store = store.clone();
            thread::spawn(move || store.core.work_off().expect("seal"))
        };
        let mut seen = Vec::new();
        for height in 2..4 {
            snapshot(&store, height);
            seen.push(at(&store, height));
        }
        writer.join().expect("writer");
        sealer.join().expect("sealer");
        store.settle().expect("settle");
        let bytes: Vec<_> = seen.iter().map(|content| byte_of(content) % OLD).collect();
        assert!(bytes.is_sorted(), "{bytes:?}");
        for (height, seen) in (2..4).zip(seen) {
            assert_eq!(at(&store, height), seen);
        }
        assert_eq!(byte_of(&live(&store)), 3);
    });
}

/// A write into the head that a rollback leaves is in that head wholly, or has failed, and then wholly or not at all;
/// the new head has none of it.
#[test]
fn a_rollback_among_writers() {
    let media = filled();
    explore(move || {
        let (_disk, store) = opened(&media);
        let writers: Vec<_> = (1..3)
            .map(|byte: u8| {
                let file = store.head().open_write(ino(&store), Times::Touch).expect("open");
                thread::spawn(move || match file.write_at(&[byte; LEN], OFFSET) {
                    Ok(()) => Some(byte),
                    Err(Error::Stale) => None,
                    Err(error) => panic!("{error}"),
                })
            })
            .collect();
        store.rollback(HeightQuery::Exact(Height(1)), &[], false).expect("rollback");
        assert_eq!(live(&store), vec![OLD; 8192]);
        let written: Vec<_> =
            writers.into_iter().filter_map(|writer| writer.join().expect("writer")).collect();
        assert_eq!(live(&store), vec![OLD; 8192], "the new head has a write of the old");
        store.undo_rollback(false).expect("undo");
        let byte = byte_of(&live(&store));
        assert!(byte != OLD || written.is_empty(), "{written:?} is missing");
    });
}
