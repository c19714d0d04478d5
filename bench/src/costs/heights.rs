//! Many heights: taking them, listing them, mounting with them.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use anyhow::ensure;
use snapstore::Height;
use snapstore::backend::SnapshotOptions;
use snapstore::control::Selection;

use super::{Bench, life};
use crate::report::Unit;
use crate::rng::Rng;
use crate::target::tmfs::Tmfs;

/// The files of which one changes before each snapshot: each gets one layer in so many heights.
const FILES: u64 = 100;
const PAGE: usize = 4096;

/// Takes them and looks at them, then mounts again and looks once more.
pub fn measure(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let heights = bench.args.heights;
    let tmfs = bench.data_dir()?;
    tmfs.mount()?;
    few(bench, &tmfs)?;
    take(bench, &tmfs, heights)?;
    let case = format!("{heights} heights");
    lists(bench, &tmfs, &case, heights)?;
    life::remount(bench, &tmfs, "heights", &case)?;
    lists(bench, &tmfs, &format!("{case}, remounted"), heights)?;
    delete(bench, &tmfs, &case, heights)
}

/// Deletes some of them, one at a time, from all over.
fn delete(bench: &mut Bench<'_>, tmfs: &Tmfs, case: &str, heights: u64) -> anyhow::Result<()> {
    let (client, many) = (tmfs.client()?, 20.min(heights.saturating_sub(1)));
    for nth in 0..many {
        let started = Instant::now();
        client.delete(Selection::Heights(vec![Height(heights * nth / many)]))?;
        let took = started.elapsed().as_secs_f64();
        let what = "by the client, one height that holds one page alone";
        bench.add("delete one", what, Unit::Time, case, took);
    }
    Ok(())
}

/// What the same costs with nothing to list.
fn few(bench: &mut Bench<'_>, tmfs: &Tmfs) -> anyhow::Result<()> {
    tmfs.client()?.snapshot_with(Height(0), SnapshotOptions::default(), true)?;
    lists(bench, tmfs, "1 height", 1)?;
    life::remount(bench, tmfs, "heights", "1 height")
}

fn take(bench: &mut Bench<'_>, tmfs: &Tmfs, heights: u64) -> anyhow::Result<()> {
    let (client, page) = (tmfs.client()?, Rng::new(7).bytes(PAGE));
    let mut files = Vec::new();
    for nth in 0..FILES {
        files.push(
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .open(tmfs.dir().join(nth.to_string()))?,
        );
    }
    // The first one was taken with nothing in it.
    let tenth = (heights / 10).max(1);
    for height in 1..heights {
        files[(height % FILES) as usize].write_all_at(&page, height / FILES % 256 * PAGE as u64)?;
        let started = Instant::now();
        client.snapshot_with(Height(height), SnapshotOptions::default(), false)?;
        let took = started.elapsed().as_secs_f64();
        let case = match height {
            _ if height < tenth => "the first tenth of the heights",
            _ if height >= heights - tenth => "the last tenth of the heights",
            _ => continue,
        };
        let what = "by the client, after one page has changed, one right after the other";
        bench.add("snapshot, one after the other", what, Unit::Time, case, took);
    }
    drop(files);
    let started = Instant::now();
    client.settle()?;
    let what = "until all of these are durable and the background is at rest";
    bench.add("settle", what, Unit::Time, &format!("{heights} heights"), started.elapsed().as_secs_f64());
    Ok(())
}

fn lists(bench: &mut Bench<'_>, tmfs: &Tmfs, case: &str, heights: u64) -> anyhow::Result<()> {
    let client = tmfs.client()?;
    for run in 0..u64::from(bench.args.common.runs) {
        let (printed, took) = tmfs.verb(&["list"])?;
        ensure!(printed.lines().count() as u64 >= heights, "`tmfs list` does not show {heights} heights");
        bench.add("`tmfs list`", "the program, its table to a file", Unit::Time, case, took.as_secs_f64());
        let (_, took) = tmfs.verb(&["list", "--json"])?;
        bench.add("`tmfs list --json`", "the program", Unit::Time, case, took.as_secs_f64());
        let started = Instant::now();
        client.list()?;
        bench.add(
            "list by the client",
            "the same without a process",
            Unit::Time,
            case,
            started.elapsed().as_secs_f64(),
        );
        let (_, took) = tmfs.verb(&["status"])?;
        bench.add("`tmfs status`", "the program", Unit::Time, case, took.as_secs_f64());

        let started = Instant::now();
        let shown = fs::read_dir(tmfs.dir().join("@height"))?.count() as u64;
        bench.add(
            "`ls @height`",
            "the directory of all heights, read once",
            Unit::Time,
            case,
            started.elapsed().as_secs_f64(),
        );
        ensure!(shown >= heights, "@height shows {shown} of {heights} heights");
        let height = (heights - 1) * (run + 1) / u64::from(bench.args.common.runs);
        let started = Instant::now();
        let entries = fs::read_dir(tmfs.dir().join("@height").join(height.to_string()))?.count();
        bench.add(
            "`ls @height/N`",
            "a view, opened for the first time",
            Unit::Time,
            case,
            started.elapsed().as_secs_f64(),
        );
        ensure!(height == 0 || entries as u64 == FILES, "@height/{height} shows {entries} files");
    }
    life::memory(bench, tmfs, case, "memory, after lists", "resident memory of the daemon")
}
