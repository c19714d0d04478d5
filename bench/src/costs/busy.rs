//! How long the program that takes a snapshot takes beside a busy database, tmfs and Btrfs in turns.
//!
//! RocksDB overwrites at random for the whole time, and one snapshot is taken in each second. Both return when the
//! snapshot would survive a power cut. Both lie on loop images of one kind.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::Bench;
use crate::disk::{FileSystem, Images};
use crate::report::{Bound, Unit};
use crate::target::Target;
use crate::target::btrfs::Btrfs;
use crate::target::tmfs::Tmfs;

/// Between two snapshots.
const EVERY: Duration = Duration::from_secs(1);
/// Each file system is made anew so often.
const ROUNDS: usize = 4;

/// `db_bench` overwriting in a directory for a while, from its second second on.
pub fn overwrites(dir: &Path, window: Duration) -> anyhow::Result<Child> {
    let load = Command::new("db_bench")
        .arg(format!("--db={}", dir.join("rocksdb").display()))
        .args(["--benchmarks=overwrite", "--num=10000000", "--value_size=400", "--compression_type=none"])
        .arg(format!("--duration={}", window.as_secs() + 5))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("db_bench")?;
    // Its first second makes the database.
    thread::sleep(Duration::from_secs(1));
    Ok(load)
}

/// Takes them in turns: some of tmfs, some of Btrfs, each on a new image.
pub fn measure(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let row = "snapshot beside RocksDB, waiting";
    bench.report.goal(row, "tmfs", Bound::Sooner { of: "btrfs".to_owned() });
    let images = Images { size: 8 << 30, flush: None };
    for _ in 0..ROUNDS {
        let place = bench.work.place_on(Some((images, FileSystem::Ext4)))?;
        let tmfs = Tmfs::new(place, &bench.tmfs)?;
        tmfs.mount()?;
        let what =
            "beside RocksDB's overwrites, on a loop image, by the program, waiting until it is durable";
        round(bench, row, "tmfs", what, tmfs.dir(), |nth| Ok(tmfs.verb(&["snapshot", &nth.to_string()])?.1))?;
        tmfs.unmount()?;
        drop(tmfs);
        let btrfs = Btrfs::new(bench.work.place_on(Some((images, FileSystem::Btrfs)))?, None)?;
        round(bench, row, "btrfs", what, btrfs.dir(), |nth| btrfs.snapshot(nth))?;
    }
    Ok(())
}

/// Some snapshots beside the load.
fn round(
    bench: &mut Bench<'_>,
    row: &str,
    case: &str,
    what: &str,
    dir: &Path,
    take: impl Fn(u64) -> anyhow::Result<Duration>,
) -> anyhow::Result<()> {
    let window = Duration::from_secs_f64(bench.args.window);
    let mut load = overwrites(dir, window)?;
    let started = Instant::now();
    let mut nth = 1;
    while started.elapsed() < window {
        let took = take(nth)?;
        bench.add(row, what, Unit::Time, case, took.as_secs_f64());
        nth += 1;
        thread::sleep(EVERY.saturating_sub(took));
    }
    ensure!(load.try_wait()?.is_none(), "db_bench ended before the snapshots did");
    let ended = load.wait()?;
    ensure!(ended.success(), "db_bench: {ended}");
    Ok(())
}
