//! The group `live`: what programs see of the file system they run on.
//!
//! Rows are the outer loop and targets the inner one, and the whole is gone through once for each run: what disturbs the
//! machine for a while disturbs all targets of a row. The order of the targets changes from run to run.

mod files;
mod lmdb;
mod names;
mod programs;
pub mod row;
mod trees;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueEnum;

use crate::disk::{Disks, Images, On};
use crate::machine::Machine;
use crate::options::Common;
use crate::process;
use crate::report::{Daemon, Report, Unit};
use crate::sys;
use crate::target::{self, Kind};
use crate::work::{self, Work};
pub use files::fill;
use row::{Caches, Row, Sizes};

/// Options of the group.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    sizes: Sizes,
    #[command(flatten)]
    disks: Disks,
    /// What to compare, the first one being what the others are compared with (default: all that --on allows)
    #[arg(long, value_enum, value_delimiter = ',')]
    targets: Vec<Kind>,
    /// Leave out the rows that run db_bench, sqlite3, fio, monerod, git and tar
    #[arg(long)]
    no_programs: bool,
    /// Only print the names of the rows
    #[arg(long)]
    list: bool,
}

/// Measures, and prints the report.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let common = &args.common;
    let mut rows = files::rows(&args.sizes);
    rows.extend(names::rows(&args.sizes));
    rows.extend(lmdb::rows(&args.sizes));
    if !args.no_programs {
        rows.push(lmdb::node());
        rows.extend(trees::rows(&args.sizes));
        rows.extend(programs::rows(&args.sizes));
    }
    rows.retain(|row| common.wants(&row.name()));
    if args.list {
        rows.iter().for_each(|row| println!("{}: {}", row.name(), row.what()));
        return Ok(());
    }
    let tmfs = common.tmfs()?;
    let work = common.work()?;
    let caches =
        "warm, unless a row says cold: then dropped for the disk and for FUSE before the clock starts";
    let images = args.disks.images(&work)?;
    let mut machine = Machine::now(work.path(), &tmfs, caches);
    machine.on(args.disks.describe(images));
    let mut report = Report::new("Live: what programs see", machine, true);
    rows.retain(|row| possible(row.as_ref(), &mut report));

    let mut kinds = args.targets.clone();
    if kinds.is_empty() {
        kinds = Kind::value_variants().to_vec();
        kinds.retain(|kind| !kind.on_btrfs() || args.disks.on == On::Loop);
    }
    for row in &rows {
        for kind in &kinds {
            // In this order they stand in the report.
            report.series(&row.name(), &row.what(), row.unit(), kind.name());
        }
        let slow = args.disks.slow_sync.is_some_and(|ms| ms >= 1.0);
        row.goals().add(&mut report, &row.name(), slow);
    }
    for run in 0..common.runs {
        for row in &rows {
            let mut order = kinds.to_vec();
            let len = order.len();
            order.rotate_left(run as usize % len);
            for kind in order {
                eprintln!("bench: run {} of {}: {}, {}", run + 1, common.runs, row.name(), kind.name());
                let measured = measure(row.as_ref(), kind, &work, images, &tmfs);
                let series = report.series(&row.name(), &row.what(), row.unit(), kind.name());
                match measured {
                    Ok((value, daemon)) => {
                        series.values.push(value);
                        series.daemon.extend(daemon);
                    }
                    Err(error) => {
                        eprintln!("bench: failed: {error:#}");
                        series.failure = Some(format!("{error:#}"));
                    }
                }
            }
        }
    }
    common.publish(&report)
}

/// Whether a row can run here; if not, the report says why.
fn possible(row: &dyn Row, report: &mut Report) -> bool {
    if let Some(program) = row.program()
        && !process::installed(program)
    {
        report.warn(format!("left out: {}: {program} is not installed", row.name()));
        return false;
    }
    if row.caches() == Caches::Cold && !nix::unistd::geteuid().is_root() {
        report.warn(format!("left out: {}: dropping caches needs root", row.name()));
        return false;
    }
    true
}

/// Runs a row once on a target of its own.
fn measure(
    row: &dyn Row,
    kind: Kind,
    work: &Work,
    images: Option<Images>,
    tmfs: &Path,
) -> anyhow::Result<(f64, Option<Daemon>)> {
    let mut target = target::start(kind, work, images, tmfs).context("setting up")?;
    row.prepare(target.dir()).context("preparing")?;
    work::sync(target.ground())?;
    target.settle().context("settling")?;
    work::sync(target.ground())?;
    // An image lies on the disk below.
    work.sync()?;
    if row.caches() == Caches::Cold {
        sys::drop_caches().context("dropping caches")?;
    }
    let requests = target.requests()?;
    let before = target.daemon().and_then(process::cpu);
    target.begin()?;
    let started = Instant::now();
    let value = row.run(target.dir());
    let took = started.elapsed();
    let snapshots = target.end();
    let used = target.daemon().and_then(|pid| {
        let cpu = process::cpu(pid)?.saturating_sub(before?);
        Some((cpu, process::memory(pid)?.peak))
    });
    let (value, snapshots) = (value?, snapshots?);
    let mut counts = target.requests()?;
    counts.iter_mut().for_each(|(kind, count)| *count -= requests.get(kind).copied().unwrap_or(0));
    counts.retain(|_, count| *count > 0);
    let operations = (row.unit() == Unit::Rate).then_some(value * took.as_secs_f64());
    if took < Duration::from_millis(100) {
        eprintln!("bench: {} took only {took:?}: make it larger", row.name());
    }
    let daemon = |(cpu, peak): (Duration, u64)| Daemon {
        cpu: cpu.as_secs_f64(),
        peak,
        snapshots,
        requests: counts,
        operations,
    };
    Ok((value, used.map(daemon)))
}
