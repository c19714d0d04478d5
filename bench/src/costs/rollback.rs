//! How long a rollback takes, and its undoing, whatever the kernel has cached.

use std::fs;
use std::time::Instant;

use anyhow::ensure;
use snapstore::Height;
use snapstore::backend::SnapshotOptions;

use super::Bench;
use super::snapshot::{change, next_height};
use crate::report::Unit;
use crate::target::tmfs::Tmfs;

/// Files that are made and lost again.
const MADE: u64 = 100;

/// Rolls back and undoes it, again and again.
pub fn measure(bench: &mut Bench<'_>, tmfs: &Tmfs, case: &str) -> anyhow::Result<()> {
    let client = tmfs.client()?;
    let first = next_height(tmfs)?;
    let dir = tmfs.dir().join("made");
    for round in 0..bench.args.rollbacks {
        let height = first + round;
        client.snapshot_with(Height(height), SnapshotOptions::default(), true)?;
        change(tmfs.dir(), 1000 + round)?;
        fs::create_dir_all(&dir)?;
        for nth in 0..MADE {
            fs::write(dir.join(format!("{round}-{nth}")), b"made after the snapshot")?;
        }
        client.settle()?;
        let made = dir.join(format!("{round}-0"));

        let started = Instant::now();
        client.rollback(Some(Height(height)), true)?;
        let took = started.elapsed().as_secs_f64();
        let what = "by the client, to the newest snapshot, after 64 pages in 16 files have changed and 100 files are new";
        bench.add("rollback", what, Unit::Time, case, took);
        let started = Instant::now();
        let there = made.exists();
        let took = started.elapsed().as_secs_f64();
        bench.add(
            "first look-up after it",
            "of a file that is gone with the rollback",
            Unit::Time,
            case,
            took,
        );
        ensure!(!there, "{} is there after the rollback", made.display());

        let (row, what) = match round % 2 {
            0 => ("rollback --undo, at once", "by the client, right after it"),
            _ => ("rollback --undo, later", "by the client, when the background is at rest again"),
        };
        if round % 2 == 1 {
            client.settle()?;
        }
        let started = Instant::now();
        client.undo_rollback()?;
        bench.add(row, what, Unit::Time, case, started.elapsed().as_secs_f64());
        ensure!(made.exists(), "{} is not there after the undoing", made.display());
    }
    Ok(())
}
