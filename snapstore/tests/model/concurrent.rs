//! Writers on several threads while snapshots are taken.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use snapstore::backend::*;
use snapstore::{Error, Height, Ino};

use super::fixture::{Place, make, snap};

fn counter(tree: &dyn Tree, ino: Ino) -> u64 {
    let mut buf = [0; 8];
    let file = tree.open(ino).expect("open");
    match file.read_at(&mut buf, 4090).expect("read") {
        0 => 0,
        got => {
            assert_eq!(got, 8, "a write is in a view whole or not at all");
            u64::from_le_bytes(buf)
        }
    }
}

fn put(file: &dyn FileWrite, n: u64) {
    // Across a chunk border: a torn write would show.
    file.write_at(&n.to_le_bytes(), 4090).expect("write");
}

/// Each thread writes n to A, then n to B, then says that n is done. So in every view B ≤ A ≤ B + 1, and B is at least
/// what was done before the snapshot was asked for, and A at most one more than was done after it returned.
#[test]
fn snapshots_under_writers_are_cuts() {
    const PAIRS: usize = 4;
    let heights = if super::long() { 1000 } else { 60 };
    let place = Place::new();
    let (store, _) = place.open(true);
    let head = store.head();
    let pairs: Vec<(Ino, Ino)> =
        (0..PAIRS).map(|i| (make(&*head, &format!("a{i}")), make(&*head, &format!("b{i}")))).collect();
    let done: Vec<AtomicU64> = (0..PAIRS).map(|_| AtomicU64::new(0)).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (i, &(a, b)) in pairs.iter().enumerate() {
            let (done, stop, head) = (&done[i], &stop, Arc::clone(&head));
            scope.spawn(move || {
                let mut files = (
                    head.open_write(a, Times::Touch).expect("open"),
                    head.open_write(b, Times::Touch).expect("open"),
                );
                for n in 1.. {
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                    put(&*files.0, n);
                    put(&*files.1, n);
                    done.store(n, Ordering::Release);
                    if n % 50 == 0 {
                        files.0.sync(true).expect("sync");
                    }
                    if n % 7 == 0 {
                        drop(files);
                        files = (
                            head.open_write(a, Times::Touch).expect("open"),
                            head.open_write(b, Times::Touch).expect("open"),
                        );
                    }
                }
            });
        }
        let mut seen: Vec<(View, Vec<(u64, u64)>)> = Vec::new();
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for height in 1..=heights {
                let before: Vec<_> = done.iter().map(|d| d.load(Ordering::Acquire)).collect();
                snap(&*store, height);
                let after: Vec<_> = done.iter().map(|d| d.load(Ordering::Acquire)).collect();
                let view = store.view(HeightQuery::Exact(Height(height))).expect("view");
                let mut found = Vec::new();
                for (i, &(a, b)) in pairs.iter().enumerate() {
                    let (a, b) = (counter(&*view.tree, a), counter(&*view.tree, b));
                    assert!(b <= a && a <= b + 1, "height {height}: A {a}, B {b}");
                    assert!(
                        b >= before[i],
                        "height {height}: {b} is less than the {} done before",
                        before[i]
                    );
                    assert!(
                        a <= after[i] + 1,
                        "height {height}: {a} is more than the {} done after",
                        after[i]
                    );
                    found.push((a, b));
                }
                seen.push((view, found));
                if seen.len() >= 8 {
                    let (view, found) = &seen[height as usize % seen.len()];
                    recheck(view, &pairs, found);
                }
                std::thread::sleep(std::time::Duration::from_millis(height % 4));
            }
        }));
        stop.store(true, Ordering::Release);
        if let Err(cause) = failed {
            std::panic::resume_unwind(cause);
        }
        store.settle().expect("settle");
        for (view, found) in &seen {
            recheck(view, &pairs, found);
        }
    });
    assert_eq!(store.last_error(), None);
}

fn recheck(view: &View, pairs: &[(Ino, Ino)], found: &[(u64, u64)]) {
    for (&(a, b), &want) in pairs.iter().zip(found) {
        assert_eq!(
            (counter(&*view.tree, a), counter(&*view.tree, b)),
            want,
            "height {} changed",
            view.height
        );
    }
}

/// Opening, writing and closing one file from many threads at once: no write may get lost between two loads of the
/// file's stack of layers.
#[test]
fn one_file_opened_and_closed_by_many_threads() {
    const THREADS: u64 = 4;
    let rounds = if super::long() { 20_000 } else { 1500 };
    let place = Place::new();
    let (store, _) = place.open(true);
    let head = store.head();
    let ino = make(&*head, "f");
    let left = AtomicU64::new(THREADS);
    std::thread::scope(|scope| {
        for t in 0..THREADS {
            let (head, left) = (Arc::clone(&head), &left);
            scope.spawn(move || {
                // Counts down even when it panics, so that the other side ends.
                struct Done<'a>(&'a AtomicU64);
                impl Drop for Done<'_> {
                    fn drop(&mut self) {
                        self.0.fetch_sub(1, Ordering::AcqRel);
                    }
                }
                let _done = Done(left);
                for n in 1..=rounds {
                    let (at, bytes) = (t * 8, (n as u64).to_le_bytes());
                    let file = head.open_write(ino, Times::Touch).expect("open");
                    file.write_at(&bytes, at).expect("write");
                    drop(file);
                    let mut buf = [0; 8];
                    let got = head.open(ino).expect("open").read_at(&mut buf, at).expect("read");
                    assert_eq!((got, buf), (8, bytes), "thread {t}, round {n}");
                }
            });
        }
        let mut height = 0;
        while left.load(Ordering::Acquire) > 0 {
            // Sealing is slower than this loop: without a bound each file gets thousands of layers.
            if height < 200 {
                height += 1;
                snap(&*store, height);
            }
            std::thread::sleep(std::time::Duration::from_micros(300));
        }
    });
    assert_eq!(store.last_error(), None);
}

/// What is read at a height, as it was when the height was made.
struct Kept {
    height: u64,
    contents: Vec<Vec<u8>>,
}

const CHUNKS: usize = 24;

/// Reads a file whole, by way of its length, in two pieces.
fn whole(file: &dyn FileRead) -> Result<Vec<u8>, Error> {
    let mut buf = vec![0xee; file.len()? as usize];
    let half = buf.len() / 3;
    let first = file.read_at(&mut buf[..half], 0)?;
    let rest = file.read_at(&mut buf[half..], half as u64)?;
    assert_eq!(first + rest, buf.len(), "a read ends where the file does");
    Ok(buf)
}

fn is_gone(e: &Error) -> bool {
    matches!(e, Error::Stale | Error::NoSuchHeight { .. } | Error::NoSnapshots)
}

/// A writer that reads back, readers of views, and one that deletes and settles, all at once: a view shows what it
/// showed when it was made, or ends with its snapshot; a file open in it can be read on; the head reads what was
/// written.
#[test]
fn deleting_under_writers_and_readers() {
    const FILES: usize = 3;
    let rounds = if super::long() { 1500 } else { 120 };
    let place = Place::new();
    let (store, _) = place.open(true);
    let head = store.head();
    let inos: Vec<Ino> = (0..FILES).map(|i| make(&*head, &format!("f{i}"))).collect();
    let kept: Mutex<Vec<Arc<Kept>>> = Mutex::default();
    let stop = AtomicBool::new(false);
    // Ends the others even when a thread panics.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    std::thread::scope(|scope| {
        let (store, kept, stop, inos) = (&*store, &kept, &stop, &inos);
        for seed in 1..=2 {
            scope.spawn(move || {
                let (_stop, mut lcg) = (Stop(stop), super::ops::Lcg(seed));
                while !stop.load(Ordering::Acquire) {
                    let some = {
                        let kept = kept.lock().unwrap();
                        if kept.is_empty() {
                            continue;
                        }
                        Arc::clone(&kept[lcg.next() as usize % kept.len()])
                    };
                    let view = match store.view(HeightQuery::Exact(Height(some.height))) {
                        Ok(view) => view,
                        Err(e) if is_gone(&e) => continue,
                        Err(e) => panic!("height {}: {e}", some.height),
                    };
                    for (&ino, want) in inos.iter().zip(&some.contents) {
                        match view.tree.get_attr(ino) {
                            Ok(attr) => assert_eq!(attr.size, want.len() as u64, "height {}", some.height),
                            Err(e) => assert!(is_gone(&e), "height {}: {e}", some.height),
                        }
                        let file = match view.tree.open(ino) {
                            Ok(file) => file,
                            Err(e) if is_gone(&e) => continue,
                            Err(e) => panic!("height {}: {e}", some.height),
                        };
                        // Once open, it reads on whatever happens to the snapshot.
                        for _ in 0..1 + lcg.next() % 20 {
                            let got = whole(&*file).unwrap_or_else(|e| panic!("height {}: {e}", some.height));
                            assert!(got == *want, "height {}, inode {ino} changed", some.height);
                        }
                        super::bytes::data_ranges(&*file);
                    }
                }
            });
        }
        scope.spawn(move || {
            let (_stop, mut lcg) = (Stop(stop), super::ops::Lcg(99));
            while !stop.load(Ordering::Acquire) {
                let gone: Vec<Height> = {
                    let mut kept = kept.lock().unwrap();
                    let many = kept.len();
                    match lcg.next() % 4 {
                        // Now and then all there are: the head's own epoch is frozen without a name.
                        0 if lcg.next() % 8 == 0 => kept.drain(..).map(|k| Height(k.height)).collect(),
                        _ if many < 6 => Vec::new(),
                        _ => {
                            let first = lcg.next() as usize % (many - 2);
                            kept.drain(first..first + 2).map(|k| Height(k.height)).collect()
                        }
                    }
                };
                if !gone.is_empty() {
                    if lcg.next() % 2 == 0 {
                        store.delete(&gone, true).expect("dry run");
                    }
                    store.delete(&gone, false).expect("delete");
                }
                if lcg.next() % 3 == 0 {
                    store.settle().expect("settle");
                    store.usage().expect("usage");
                    store.snapshots(true).expect("list");
                }
                std::thread::sleep(std::time::Duration::from_micros(u64::from(lcg.next() % 2000)));
            }
        });
        let (_stop, mut lcg) = (Stop(stop), super::ops::Lcg(7));
        let mut now: Vec<Vec<u8>> = vec![Vec::new(); FILES];
        let mut files: Vec<_> =
            inos.iter().map(|&i| head.open_write(i, Times::Touch).expect("open")).collect();
        for height in 1..=rounds {
            for _ in 0..lcg.next() % 12 {
                let i = lcg.next() as usize % FILES;
                let (file, model) = (&files[i], &mut now[i]);
                let at = lcg.next() as usize % (CHUNKS * 4096);
                let at = if lcg.next() % 2 == 0 { at / 4096 * 4096 } else { at };
                match lcg.next() % 10 {
                    0 => {
                        let size = if lcg.next() % 4 == 0 { 0 } else { at };
                        let set = SetAttr { size: Some(size as u64), ..SetAttr::default() };
                        head.set_attr(inos[i], &set).expect("truncate");
                        model.resize(size, 0);
                    }
                    1 => {
                        let end = (at + 9000).min(model.len());
                        file.allocate(Allocate::PunchHole, at as u64, 9000).expect("punch");
                        model.get_mut(at..end).unwrap_or_default().fill(0);
                    }
                    _ => {
                        let len = 1 + lcg.next() as usize % 12_000;
                        let data = vec![1 + (lcg.next() % 250) as u8; len];
                        file.write_at(&data, at as u64).expect("write");
                        model.resize(model.len().max(at + len), 0);
                        model[at..at + len].copy_from_slice(&data);
                    }
                }
                let got = whole(&**file).expect("read");
                assert!(got == *model, "live file {i} before height {height}");
                if lcg.next() % 5 == 0 {
                    files[i] = head.open_write(inos[i], Times::Touch).expect("open");
                    assert!(whole(&*files[i]).expect("read") == *model, "live file {i}, opened anew");
                }
            }
            snap(store, height);
            kept.lock().unwrap().push(Arc::new(Kept { height, contents: now.clone() }));
            if lcg.next() % 8 == 0 {
                files[0].sync(true).expect("sync");
            }
        }
    });
    store.settle().expect("settle");
    for some in kept.into_inner().unwrap() {
        let view = store.view(HeightQuery::Exact(Height(some.height))).expect("view");
        for (&ino, want) in inos.iter().zip(&some.contents) {
            assert!(whole(&*view.tree.open(ino).expect("open")).expect("read") == *want);
        }
    }
    assert_eq!(store.last_error(), None);
}
