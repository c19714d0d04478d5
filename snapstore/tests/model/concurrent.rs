//! Writers on several threads while snapshots are taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use snapstore::backend::*;
use snapstore::{Height, Ino};

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
    file.write_at(&n.to_le_bytes(), 4090, WriteOrigin::PageCache).expect("write");
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
                let mut files = (head.open_write(a).expect("open"), head.open_write(b).expect("open"));
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
                        files = (head.open_write(a).expect("open"), head.open_write(b).expect("open"));
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
                    let file = head.open_write(ino).expect("open");
                    file.write_at(&bytes, at, WriteOrigin::PageCache).expect("write");
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
