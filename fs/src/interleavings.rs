//! The mount's threads in many orders, chosen by shuttle: the handle table, and the order of changes around a cut.
//!
//! `scripts/interleavings` runs these.

use std::sync::Arc;
use std::time::Duration;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;
use snapstore::backend::{Allocate, FileRead, FileWrite, Gate, Seek};
use snapstore::{Ino, Result};

use crate::handles::{Handle, Handles, LiveWrite};
use crate::node::Tag;
use crate::order::Order;

fn explore(body: fn()) {
    let orders = std::env::var("TMFS_ORDERS").ok().and_then(|n| n.parse().ok()).unwrap_or(2000);
    for depth in [2, 3] {
        shuttle::Runner::new(PctScheduler::new_from_seed(21, depth, orders), shuttle::Config::new())
            .run(body);
    }
    shuttle::Runner::new(RandomScheduler::new_from_seed(22, orders), shuttle::Config::new()).run(body);
}

/// A file that nothing is done with.
struct Nothing;

impl FileRead for Nothing {
    fn read_at(&self, _: &mut [u8], _: u64) -> Result<usize> {
        Ok(0)
    }

    fn len(&self) -> Result<u64> {
        Ok(0)
    }

    fn seek(&self, offset: u64, _: Seek) -> Result<u64> {
        Ok(offset)
    }
}

impl FileWrite for Nothing {
    fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
        Ok(())
    }

    fn allocate(&self, _: Allocate, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn copy_from(&self, _: &dyn FileRead, _: u64, _: u64, _: u64) -> Result<u64> {
        Ok(0)
    }

    fn sync(&self, _: bool) -> Result<()> {
        Ok(())
    }
}

/// Whoever holds a file open for writing is among the writers; numbers are given once; at the end nothing is left.
#[test]
fn the_handle_table() {
    explore(|| {
        let handles = Arc::new(Handles::default());
        let open = |handles: &Handles, ino: u64, pid| {
            let (ino, id) = (Ino(ino), Tag::FIRST.node(Ino(ino)));
            (
                handles.insert(
                    Handle::LiveWrite(LiveWrite { ino, id, serial: 1, file: Arc::new(Nothing) }),
                    pid,
                ),
                id,
            )
        };
        let threads: Vec<_> = (0..3)
            .map(|n| {
                let handles = Arc::clone(&handles);
                thread::spawn(move || {
                    let mut seen = Vec::new();
                    for _ in 0..2 {
                        // Two of the three share an inode.
                        let (fh, id) = open(&handles, 5 + n / 2, n as u32);
                        seen.push(fh);
                        assert!(handles.is_writer(id));
                        assert!(handles.writers(Tag::FIRST).iter().any(|writer| writer.id == id));
                        assert!(handles.get(fh).is_some());
                        assert!(handles.counts().1 >= 1);
                        assert!(handles.remove(fh).is_some());
                        assert!(handles.get(fh).is_none() && handles.remove(fh).is_none());
                    }
                    seen
                })
            })
            .collect();
        let mut seen: Vec<u64> = threads.into_iter().flat_map(|t| t.join().expect("no panic")).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 6, "a number was given twice");
        assert_eq!(handles.counts(), (0, 0));
        assert_eq!(handles.writers(Tag::FIRST), []);
    });
}

/// No cut shows a change without what its program had written before it, though the kernel keeps the one and not the
/// other; and nobody waits for ever.
#[test]
fn changes_around_a_cut() {
    explore(|| {
        let order = Arc::new(Order::new(4));
        // Of each program: written (the kernel has it), flushed (the daemon has it), changed.
        let programs: Arc<Vec<[AtomicU64; 3]>> = Arc::new((0..2).map(|_| Default::default()).collect());
        let threads: Vec<_> = (0..2)
            .map(|n| {
                let (order, programs) = (Arc::clone(&order), Arc::clone(&programs));
                thread::spawn(move || {
                    for step in 1..=2 {
                        programs[n][0].store(step, Ordering::SeqCst);
                        order.wait();
                        order.change();
                        programs[n][2].store(step, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        let flush = || {
            for program in programs.iter() {
                program[1].store(program[0].load(Ordering::SeqCst), Ordering::SeqCst);
            }
        };
        let mut passed = false;
        for round in 0..4 {
            let held = (round >= 1).then(|| order.hold(Duration::from_secs(1)));
            let gate = order.unchanged();
            flush();
            passed = gate.pass(&mut || {
                for program in programs.iter() {
                    let [_, flushed, changed] = program.each_ref().map(|at| at.load(Ordering::SeqCst));
                    assert!(changed <= flushed, "a change without what was written before it");
                }
            });
            drop(held);
            if passed {
                break;
            }
        }
        for thread in threads {
            thread.join().expect("no panic");
        }
        if !passed {
            let gate = order.unchanged();
            flush();
            assert!(gate.pass(&mut || {}), "nothing changes any more");
        }
    });
}
