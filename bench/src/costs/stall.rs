//! How long a writer waits, at worst, because a snapshot is taken while it writes.
//!
//! Three writers work at once, each as databases do: pages overwritten at random places, a log appended to and synced,
//! files made and removed. They are watched for a while without snapshots, then for a while with two in each second,
//! and both are done again for each run. The worst call of a while is one value. The same writers in a plain
//! directory show what the disk and the scheduler do by themselves.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use snapstore::Height;
use snapstore::backend::SnapshotOptions;
use snapstore::control::client::Client;

use super::Bench;
use super::snapshot::next_height;
use crate::live::fill;
use crate::report::Unit;
use crate::rng::Rng;
use crate::stats::percentile;
use crate::target::tmfs::Tmfs;

const PAGE: usize = 4096;
/// Size of the file whose pages are overwritten.
const PAGES: u64 = (64 << 20) / PAGE as u64;
/// Between two snapshots.
const EVERY: Duration = Duration::from_millis(500);

/// The writers: a name, and what one call of it does.
const WRITERS: [(&str, &str); 3] = [
    ("pwrite", "pwrite of 4 KiB at a random place of 64 MiB, buffered"),
    ("commit", "append of 4 KiB and fdatasync"),
    ("names", "create and unlink of an empty file"),
];

/// When a call began and how long it took, in seconds since the watching began.
#[derive(Clone, Copy)]
struct Call {
    begin: f64,
    took: f64,
}

impl Call {
    fn overlaps(&self, other: &Call) -> bool {
        self.begin < other.begin + other.took && other.begin < self.begin + self.took
    }
}

/// Watches the writers in a plain directory.
pub fn native(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let place = bench.work.place()?;
    for _ in 0..bench.args.common.runs {
        watch(bench, place.path(), None, "native")?;
    }
    Ok(())
}

/// Watches them on tmfs, without snapshots and with.
pub fn measure(bench: &mut Bench<'_>, tmfs: &Tmfs, case: &str) -> anyhow::Result<()> {
    let client = tmfs.client()?;
    let dir = tmfs.dir().join("watched");
    for _ in 0..bench.args.common.runs {
        watch(bench, &dir, None, &format!("{case}; no snapshots"))?;
        client.settle()?;
        watch(bench, &dir, Some(tmfs), &format!("{case}; snapshots"))?;
        client.settle()?;
    }
    fs::remove_dir_all(dir)?;
    Ok(())
}

fn watch(bench: &mut Bench<'_>, dir: &Path, snapshots: Option<&Tmfs>, case: &str) -> anyhow::Result<()> {
    fs::create_dir_all(dir)?;
    let pages = dir.join("pages");
    if !pages.exists() {
        fill(&pages, PAGES * PAGE as u64)?;
    }
    bench.work.sync()?;
    let first = snapshots.map(next_height).transpose()?;
    let client = snapshots.map(Tmfs::client).transpose()?;
    let window = Duration::from_secs_f64(bench.args.window);
    let pace = Duration::from_micros(bench.args.pace);

    let (stop, started) = (AtomicBool::new(false), Instant::now());
    let (stop, clock) = (&stop, &started);
    let (taken, calls) = thread::scope(|scope| -> anyhow::Result<_> {
        let writers = [
            scope.spawn(move || overwrite(&pages, pace, stop, clock)),
            scope.spawn(move || commit(&dir.join("log"), stop, clock)),
            scope.spawn(move || names(&dir.join("name"), stop, clock)),
        ];
        let taken = match client.zip(first) {
            Some((client, first)) => take(&client, first, window, clock),
            None => {
                thread::sleep(window);
                Ok(Vec::new())
            }
        };
        stop.store(true, Ordering::Relaxed);
        let calls = writers.map(|writer| writer.join().map_err(|_| anyhow!("a writer has panicked"))?);
        Ok((taken?, calls.into_iter().collect::<anyhow::Result<Vec<_>>>()?))
    })?;

    for ((name, what), calls) in WRITERS.iter().zip(&calls) {
        let mut times: Vec<f64> = calls.iter().map(|call| call.took).collect();
        times.sort_by(f64::total_cmp);
        let worst = times.last().copied().unwrap_or(0.0);
        bench.add(
            &format!("{name}: worst"),
            &format!("the slowest {what}, of a window"),
            Unit::Time,
            case,
            worst,
        );
        let row = format!("{name}: p99.9");
        bench.add(
            &row,
            &format!("999 of 1000 were not slower: {what}"),
            Unit::Time,
            case,
            percentile(&times, 0.999),
        );
        let row = format!("{name}: rate");
        let rate = calls.len() as f64 / window.as_secs_f64();
        bench.add(&row, &format!("calls in a second: {what}"), Unit::Rate, case, rate);
        for (snapshot, _) in &taken {
            let during = calls.iter().filter(|call| call.overlaps(snapshot)).map(|call| call.took);
            let worst = during.fold(0.0, f64::max);
            let what = format!("for each snapshot, the slowest {what} that ran while it was asked for");
            bench.add(&format!("{name}: worst during a snapshot"), &what, Unit::Time, case, worst);
        }
    }
    for (snapshot, wait) in taken {
        let (row, what) = match wait {
            false => ("snapshot under load, not waiting", "by the client, beside the writers"),
            true => ("snapshot under load, durable", "the same, waiting until it would survive a power cut"),
        };
        bench.add(row, what, Unit::Time, case, snapshot.took);
    }
    Ok(())
}

/// Takes snapshots for a while, waiting for every other one to be durable. Gives back their calls, and whether they
/// waited.
fn take(client: &Client, first: u64, window: Duration, clock: &Instant) -> anyhow::Result<Vec<(Call, bool)>> {
    let mut taken: Vec<(Call, bool)> = Vec::new();
    let mut next = EVERY / 2;
    while next < window {
        thread::sleep(next.saturating_sub(clock.elapsed()));
        let (nth, begin) = (taken.len() as u64, clock.elapsed());
        let wait = nth % 2 == 1;
        client.snapshot_with(Height(first + nth), SnapshotOptions::default(), wait)?;
        let took = (clock.elapsed() - begin).as_secs_f64();
        taken.push((Call { begin: begin.as_secs_f64(), took }, wait));
        next = (next + EVERY).max(clock.elapsed());
    }
    thread::sleep(window.saturating_sub(clock.elapsed()));
    Ok(taken)
}

/// Calls `once` until it is stopped, with its clock.
fn until(
    stop: &AtomicBool,
    clock: &Instant,
    mut once: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Call>> {
    let mut calls = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begin = clock.elapsed();
        once()?;
        let took = (clock.elapsed() - begin).as_secs_f64();
        calls.push(Call { begin: begin.as_secs_f64(), took });
    }
    Ok(calls)
}

fn overwrite(path: &Path, pace: Duration, stop: &AtomicBool, clock: &Instant) -> anyhow::Result<Vec<Call>> {
    let (file, mut rng) = (OpenOptions::new().write(true).open(path)?, Rng::new(5));
    let page = rng.bytes(PAGE);
    let mut calls = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begin = clock.elapsed();
        file.write_all_at(&page, rng.below(PAGES) * PAGE as u64)?;
        let took = (clock.elapsed() - begin).as_secs_f64();
        calls.push(Call { begin: begin.as_secs_f64(), took });
        if !pace.is_zero() {
            thread::sleep(pace);
        }
    }
    Ok(calls)
}

fn commit(path: &Path, stop: &AtomicBool, clock: &Instant) -> anyhow::Result<Vec<Call>> {
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    let page = Rng::new(6).bytes(PAGE);
    until(stop, clock, || {
        file.write_all(&page)?;
        Ok(file.sync_data()?)
    })
}

fn names(path: &Path, stop: &AtomicBool, clock: &Instant) -> anyhow::Result<Vec<Call>> {
    until(stop, clock, || {
        drop(File::create(path)?);
        thread::yield_now();
        Ok(fs::remove_file(path)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_at_the_same_time() {
        let call = |begin, took| Call { begin, took };
        assert!(call(1.0, 2.0).overlaps(&call(2.0, 0.1)));
        assert!(call(2.0, 0.1).overlaps(&call(1.0, 2.0)));
        assert!(call(1.0, 2.0).overlaps(&call(2.5, 2.0)));
        assert!(!call(1.0, 0.5).overlaps(&call(2.0, 1.0)) && !call(2.0, 1.0).overlaps(&call(1.0, 0.5)));
    }
}
