//! What history costs the one who writes: speed after many snapshots of which a hundred are kept, space, and how long a
//! commit waits while a height among many is deleted.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use snapstore::Height;
use snapstore::backend::SnapshotOptions;
use snapstore::control::Selection;
use snapstore::control::client::Client;

use super::Bench;
use crate::live::fill;
use crate::report::{Bound, Unit};
use crate::rng::Rng;
use crate::target::tmfs::Tmfs;

const PAGE: usize = 4096;
/// Size of the file that is written and read.
const PAGES: u64 = (256 << 20) / PAGE as u64;
/// Heights that are kept.
const KEPT: u64 = 100;
/// Pages that change between two snapshots.
const CHANGED: u64 = 16;
/// How long each rate is measured.
const WINDOW: Duration = Duration::from_secs(3);

/// Measures speed young, and after more and more snapshots; then space, then deletions.
pub fn measure(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let tmfs = bench.data_dir()?;
    tmfs.mount()?;
    let (client, file) = (tmfs.client()?, tmfs.dir().join("pages"));
    fill(&file, PAGES * PAGE as u64)?;
    client.snapshot_with(Height(0), SnapshotOptions::default(), true)?;
    // Young: the same file, one snapshot old, overwritten once so that no row is about the first overwrite.
    touch_all(&file)?;
    client.settle()?;
    rates(bench, &file, "0 snapshots")?;
    let mut taken = 0;
    for goal in [1000, bench.args.heights.max(1000)] {
        while taken < goal {
            taken += 1;
            age(&client, &file, taken)?;
        }
        client.settle()?;
        touch_all(&file)?;
        client.settle()?;
        rates(bench, &file, &format!("{goal} snapshots"))?;
    }
    space(bench, &tmfs, &client, &file, taken)?;
    deletions(bench, &tmfs, &client, taken + KEPT)
}

/// Changes some pages, takes a snapshot, lets the oldest go.
fn age(client: &Client, file: &Path, height: u64) -> anyhow::Result<()> {
    let (file, mut rng) = (OpenOptions::new().write(true).open(file)?, Rng::new(height));
    let page = rng.bytes(PAGE);
    for _ in 0..CHANGED {
        file.write_all_at(&page, rng.below(PAGES) * PAGE as u64)?;
    }
    client.snapshot_with(Height(height), SnapshotOptions::default(), false)?;
    if let Some(gone) = height.checked_sub(KEPT) {
        client.delete(Selection::Heights(vec![Height(gone)]))?;
    }
    Ok(())
}

fn touch_all(file: &Path) -> anyhow::Result<()> {
    let (file, page) = (OpenOptions::new().write(true).open(file)?, Rng::new(9).bytes(PAGE));
    for nth in 0..PAGES {
        file.write_all_at(&page, nth * PAGE as u64)?;
    }
    Ok(file.sync_data()?)
}

/// Reads and writes at random places, for a while each.
fn rates(bench: &mut Bench<'_>, path: &Path, case: &str) -> anyhow::Result<()> {
    for _ in 0..bench.args.common.runs {
        let (file, mut rng) = (OpenOptions::new().read(true).write(true).open(path)?, Rng::new(3));
        let mut page = rng.bytes(PAGE);
        let write = rate(|n| {
            file.write_all_at(&page, rng.below(PAGES) * PAGE as u64)?;
            if n % 64 == 63 { Ok(file.sync_data()?) } else { Ok(()) }
        })?;
        let what = "random overwrites of 4 KiB in 256 MiB, an fdatasync per 64; 100 heights are kept";
        aged(bench, "aged: write", what, case, write);
        let read = rate(|_| Ok(file.read_exact_at(&mut page, rng.below(PAGES) * PAGE as u64)?))?;
        let what = "random reads of 4 KiB in the same file, as the caches are; 100 heights are kept";
        aged(bench, "aged: read", what, case, read);
    }
    Ok(())
}

fn aged(bench: &mut Bench<'_>, row: &str, what: &str, case: &str, value: f64) {
    bench.add(row, what, Unit::Rate, case, value);
    if !case.starts_with("0 ") && bench.args.common.wants(row) {
        bench.report.goal(row, case, Bound::AtLeast { least: 0.95, of: "0 snapshots".to_owned() });
    }
}

fn rate(mut once: impl FnMut(u64) -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let (started, mut calls) = (Instant::now(), 0);
    while started.elapsed() < WINDOW {
        once(calls)?;
        calls += 1;
    }
    Ok(calls as f64 / started.elapsed().as_secs_f64())
}

/// What the store takes for a snapshot more than the pages that changed.
fn space(
    bench: &mut Bench<'_>,
    tmfs: &Tmfs,
    client: &Client,
    file: &Path,
    newest: u64,
) -> anyhow::Result<()> {
    const SNAPSHOTS: u64 = 100;
    const EACH: u64 = 1000;
    let (file, page) = (OpenOptions::new().write(true).open(file)?, Rng::new(8).bytes(PAGE));
    client.settle()?;
    let before = allocated(tmfs.ground())?;
    for nth in 0..SNAPSHOTS {
        for one in 0..EACH {
            // None twice in one snapshot, so that what has changed is known.
            file.write_all_at(&page, (one * (PAGES / EACH) + nth % (PAGES / EACH)) * PAGE as u64)?;
        }
        client.snapshot_with(Height(newest + 1 + nth), SnapshotOptions::default(), true)?;
    }
    client.settle()?;
    let grown = allocated(tmfs.ground())?.saturating_sub(before) as f64;
    let changed = (SNAPSHOTS * EACH * PAGE as u64) as f64;
    let what = "what the store has grown by, for each 4 KiB page that changed between two of 100 snapshots";
    bench.add("space per changed page", what, Unit::Bytes, "100 snapshots", grown / changed * PAGE as f64);
    Ok(())
}

/// Space that everything below a directory takes, in bytes.
fn allocated(dir: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        // Not into the mount: it lies on another device.
        if meta.is_dir() && meta.dev() == fs::metadata(dir)?.dev() {
            bytes += allocated(&entry.path())?;
        }
        bytes += meta.blocks() * 512;
    }
    Ok(bytes)
}

/// How long a commit takes at worst while heights go, one each 100 ms, beside how long it takes without.
fn deletions(bench: &mut Bench<'_>, tmfs: &Tmfs, client: &Client, newest: u64) -> anyhow::Result<()> {
    let log = tmfs.dir().join("log");
    let runs = u64::from(bench.args.common.runs);
    for run in 0..runs {
        for delete in [false, true] {
            client.settle()?;
            let stop = AtomicBool::new(false);
            let worst = thread::scope(|scope| -> anyhow::Result<f64> {
                let writer = scope.spawn(|| commits(&log, &stop));
                for nth in 0..10 {
                    thread::sleep(Duration::from_millis(100));
                    if delete {
                        // Those of the last part: each holds a thousand pages alone.
                        let height = newest - 1 - run * 10 - nth;
                        client.delete(Selection::Heights(vec![Height(height)]))?;
                    }
                }
                thread::sleep(Duration::from_millis(300));
                stop.store(true, Ordering::Relaxed);
                writer.join().map_err(|_| anyhow!("a writer has panicked"))?
            })?;
            let case = if delete { "while heights are deleted" } else { "undisturbed" };
            let what = "the slowest append of 4 KiB with fdatasync in 1.3 s; ten heights of 1000 pages each are deleted";
            bench.add("commit beside deletions: worst", what, Unit::Time, case, worst);
        }
    }
    Ok(())
}

/// Appends and syncs until it is stopped; the slowest call.
fn commits(path: &Path, stop: &AtomicBool) -> anyhow::Result<f64> {
    let mut file: File = OpenOptions::new().append(true).create(true).open(path)?;
    let page = Rng::new(6).bytes(PAGE);
    let mut worst = 0f64;
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        file.write_all(&page)?;
        file.sync_data()?;
        worst = worst.max(started.elapsed().as_secs_f64());
    }
    Ok(worst)
}
