//! Databases that write while snapshots are taken; what the copy of each height must hold.
//!
//! A writer commits transactions numbered from 1 and tells after each one that it was acknowledged. Another thread
//! reads that number, then asks for a snapshot: the copy of that height must open, pass the engine's own check, and
//! hold at least that many transactions, without a gap.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::mount::Mount;
use crate::program;

/// Between two snapshots.
pub const EVERY: Duration = Duration::from_millis(50);

/// How many transactions have been acknowledged, and whether the writer is to end.
pub struct Progress {
    acknowledged: AtomicU64,
    ended: AtomicBool,
    most: u64,
    report: Option<File>,
}

impl Default for Progress {
    fn default() -> Progress {
        Progress::up_to(u64::MAX)
    }
}

impl Progress {
    /// The writer ends by itself after `most` transactions.
    pub fn up_to(most: u64) -> Progress {
        Progress { acknowledged: AtomicU64::new(0), ended: AtomicBool::new(false), most, report: None }
    }

    /// Each number is written to `report` as well, for another process to read.
    pub fn reported_to(report: File) -> Progress {
        Progress { report: Some(report), ..Progress::default() }
    }

    /// Says that transaction `number` was committed.
    pub fn acknowledge(&self, number: u64) {
        if let Some(report) = &self.report {
            report.write_all_at(&number.to_le_bytes(), 0).expect("a file that nobody takes away");
        }
        self.acknowledged.store(number, Ordering::SeqCst);
    }

    /// Whether the writer is to go on.
    pub fn go_on(&self) -> bool {
        !self.ended.load(Ordering::SeqCst) && self.acknowledged() < self.most
    }

    /// The writer ends when what is returned is dropped, in a panic too.
    pub fn ends(&self) -> EndOnDrop<'_> {
        EndOnDrop(self)
    }

    /// Transactions acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }
}

/// A height, and how many transactions had been acknowledged before it was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// The snapshot's height.
    pub height: u64,
    /// The least that its copy must hold.
    pub at_least: u64,
}

/// Runs `write` on a thread of its own while `count` snapshots are taken; returns the cuts. The first comes when at
/// least one transaction has been acknowledged.
pub fn snapshots_while(mount: &Mount, count: u64, write: impl FnOnce(&Progress) + Send) -> Vec<Cut> {
    let progress = Progress::default();
    let cuts = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            // Also when the writer panics, the snapshots end.
            let ended = progress.ends();
            write(&progress);
            drop(ended);
        });
        program::wait_until("the first transaction", || progress.acknowledged() > 0 || writer.is_finished());
        let mut cuts = Vec::new();
        for height in 1..=count {
            let at_least = progress.acknowledged();
            // Both ways to ask, in turn; neither waits for the data to be on the disk.
            if height % 2 == 0 {
                std::fs::create_dir(mount.view(height)).expect("mkdir @height/N");
            } else {
                mount.ok(&["snapshot", &height.to_string(), "--no-wait"]);
            }
            cuts.push(Cut { height, at_least });
            std::thread::sleep(EVERY);
        }
        progress.ended.store(true, Ordering::SeqCst);
        writer.join().expect("the writer");
        cuts
    });
    let (first, last) = (cuts[0].at_least, cuts[cuts.len() - 1].at_least);
    assert!(last > first, "the writer made no progress between the snapshots: {first} to {last}");
    cuts
}

/// Ends a writer when it is dropped.
pub struct EndOnDrop<'a>(&'a Progress);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::SeqCst);
    }
}

/// Copies `path` out of each cut's view with `cp -a` and lets `count` check the copy and say how many transactions
/// it holds.
pub fn check_copies(mount: &Mount, cuts: &[Cut], path: &str, count: impl Fn(&Path) -> u64) {
    let copies = mount.work.path().join("copies");
    std::fs::create_dir_all(&copies).expect("a directory for the copies");
    let mut before = 0;
    for cut in cuts {
        let copy = copies.join(format!("{}-{}", path.replace('/', "_"), cut.height));
        program::run(Command::new("cp").arg("-a").arg(mount.view(cut.height).join(path)).arg(&copy)).ok();
        let held = count(&copy);
        assert!(
            held >= cut.at_least,
            "height {} holds {held} transactions, {} were acknowledged",
            cut.height,
            cut.at_least
        );
        assert!(held >= before, "height {} holds {held} transactions, an older one {before}", cut.height);
        before = held;
        std::fs::remove_dir_all(&copy).or_else(|_| std::fs::remove_file(&copy)).expect("the copy is removed");
    }
}

/// The value that belongs to a key: several sizes, all of it decided by the key.
pub fn value_of(key: u64) -> Vec<u8> {
    crate::rng::Rng::new(key).bytes(20 + (key % 7) as usize * 60)
}
