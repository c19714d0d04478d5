//! How long a snapshot keeps a busy database waiting: the gate, as the daemon measures it.
//!
//! RocksDB overwrites at random for the whole time, and ten snapshots are taken in each second. Each one's pause is a
//! value.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use snapstore::Height;
use snapstore::backend::SnapshotOptions;

use super::snapshot::next_height;
use super::{Bench, busy};
use crate::report::Unit;
use crate::target::tmfs::Tmfs;

/// Between two snapshots.
const EVERY: Duration = Duration::from_millis(100);

/// Takes snapshots beside `db_bench` for twice the window.
pub fn measure(bench: &mut Bench<'_>, tmfs: &Tmfs, case: &str) -> anyhow::Result<()> {
    let client = tmfs.client()?;
    let window = Duration::from_secs_f64(2.0 * bench.args.window);
    let mut load = busy::overwrites(tmfs.dir(), window)?;
    let mut height = next_height(tmfs)?;
    let what = "under RocksDB's overwrites, how long names and writes were held back by a snapshot";
    let (mut each, mut longest) = (true, 0);
    let started = Instant::now();
    while started.elapsed() < window {
        let asked = Instant::now();
        client.snapshot_with(Height(height), SnapshotOptions::default(), false)?;
        let took = asked.elapsed();
        let asked = Instant::now();
        if each {
            let pauses = client.status()?.pauses.context("no pause was measured")?;
            bench.add("gate", what, Unit::Time, case, pauses.newest_us as f64 / 1e6);
            longest = pauses.longest_us;
            // With very many files a status is a load of its own.
            each = asked.elapsed() < EVERY / 2;
        }
        let what = "by the client, not waiting, under RocksDB's overwrites";
        bench.add("snapshot under RocksDB", what, Unit::Time, case, took.as_secs_f64());
        height += 1;
        thread::sleep(EVERY.saturating_sub(took));
    }
    ensure!(load.try_wait()?.is_none(), "db_bench ended before the snapshots did");
    // Of those that were not asked for one by one, the longest.
    let pauses = client.status()?.pauses.context("no pause was measured")?;
    if !each && pauses.longest_us > longest {
        bench.add("gate", what, Unit::Time, case, pauses.longest_us as f64 / 1e6);
    }
    let ended = load.wait()?;
    ensure!(ended.success(), "db_bench: {ended}");
    client.settle()?;
    Ok(())
}
