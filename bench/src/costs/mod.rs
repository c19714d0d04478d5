//! The group `costs`: what tmfs's own operations take, over more and more files, bytes and heights.
//!
//! Most of them should be flat: a snapshot or a rollback of a million files takes no longer than one of a thousand.
//! Adopting is linear in files. For each shape there is one data dir, which goes through its life: adopted, walked
//! through, snapshotted, rolled back, mounted again. A part that fails leaves its reason in the table, and the next one
//! is tried.

mod aged;
mod busy;
mod gate;
mod heights;
mod life;
mod rollback;
mod shape;
mod snapshot;
mod stall;

use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;

use crate::machine::Machine;
use crate::options::Common;
use crate::report::{Bound, Report, Unit};
use crate::target::tmfs::Tmfs;
use crate::work::Work;
use crate::{process, sys};
use shape::Shape;
pub use shape::find;

/// Options of the group.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// FILESxBYTES: so many small files, and large sparse ones of together so many bytes; may be given again (default:
    /// 1000x1G 1000x100G 100000x1G)
    #[arg(long)]
    shape: Vec<Shape>,
    /// The shape of 1,000,000 files too (takes some minutes, and 5 GB of disk)
    #[arg(long)]
    full: bool,
    /// What to measure (default: all)
    #[arg(long, value_enum, value_delimiter = ',')]
    parts: Vec<Part>,
    /// Snapshots of each kind
    #[arg(long, default_value_t = 20)]
    snapshots: u64,
    /// Rollbacks, each with its undoing
    #[arg(long, default_value_t = 20)]
    rollbacks: u64,
    /// How long writers are watched, without snapshots and with, in seconds; two snapshots in each
    #[arg(long, default_value_t = 10.0)]
    window: f64,
    /// How long a writer of pages waits between two writes, in microseconds (0: not at all, which measures a machine
    /// at its limit rather than a pause)
    #[arg(long, default_value_t = 100)]
    pace: u64,
    /// How many heights there are when lists and remounts are measured
    #[arg(long, default_value_t = 10_000)]
    heights: u64,
    /// Mount over an empty directory and fill it through the mount, instead of adopting what is there
    #[arg(long)]
    through_mount: bool,
    /// Drop caches before each mount (needs root)
    #[arg(long)]
    cold: bool,
}

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    /// First mount, find, memory, unmount and remount
    Life,
    /// How long a snapshot takes
    Snapshot,
    /// How long writers wait because of one
    Stall,
    /// How long one keeps RocksDB waiting
    Gate,
    /// How long a durable one takes beside RocksDB, and one of Btrfs (needs root)
    Busy,
    /// How long a rollback and its undoing take
    Rollback,
    /// Lists and remounts with many heights
    Heights,
    /// Speed after many snapshots, space, commits beside deletions
    Aged,
}

/// What all parts work with.
struct Bench<'a> {
    args: &'a Args,
    work: Work,
    tmfs: PathBuf,
    report: Report,
}

/// Measures, and prints the report.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let tmfs = args.common.tmfs()?;
    let work = args.common.work()?;
    let caches = if args.cold { "dropped before each mount, warm otherwise" } else { "warm" };
    let report = Report::new(
        "Costs: what tmfs's own operations take",
        Machine::now(work.path(), &tmfs, caches),
        false,
    );
    let mut bench = Bench { args, work, tmfs, report };
    if args.wants(Part::Stall) {
        bench.try_to("watching writers, native", "stall", "native", stall::native);
    }
    if args.wants(Part::Snapshot) && nix::unistd::geteuid().is_root() && process::installed("mkfs.btrfs") {
        bench.try_to("snapshots of Btrfs", "`btrfs subvolume snapshot`", "btrfs", snapshot::btrfs);
    }
    if args.wants(Part::Busy) && nix::unistd::geteuid().is_root() && process::installed("mkfs.btrfs") {
        bench.try_to(
            "durable snapshots under RocksDB",
            "snapshot beside RocksDB, waiting",
            "all",
            busy::measure,
        );
    }
    for shape in args.shapes() {
        let case = shape.to_string();
        bench.try_to("the life of a data dir", "life", &case, |bench| life::measure(bench, shape));
    }
    if args.wants(Part::Heights) {
        let case = format!("{} heights", args.heights);
        bench.try_to("many heights", "heights", &case, heights::measure);
    }
    if args.wants(Part::Aged) {
        let case = format!("{} snapshots", args.heights.max(1000));
        bench.try_to("aging", "aged", &case, aged::measure);
    }
    args.common.publish(&bench.report)
}

impl Args {
    fn wants(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    fn shapes(&self) -> Vec<Shape> {
        let parts = [Part::Life, Part::Snapshot, Part::Stall, Part::Gate, Part::Rollback];
        if !parts.into_iter().any(|part| self.wants(part)) {
            return Vec::new();
        }
        let mut shapes = self.shape.clone();
        if shapes.is_empty() {
            shapes = [(1000, 1), (1000, 100), (100_000, 1)]
                .map(|(files, gib)| Shape { files, bytes: gib << 30 })
                .into();
        }
        if self.full {
            shapes.push(Shape { files: 1_000_000, bytes: 1 << 30 });
        }
        shapes
    }
}

impl Bench<'_> {
    /// Does a part; a failure goes into the report under this row and case.
    fn try_to(
        &mut self,
        words: &str,
        row: &str,
        case: &str,
        part: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> bool {
        eprintln!("bench: {words} ({case})");
        let Err(error) = part(self) else { return true };
        eprintln!("bench: failed: {error:#}");
        self.report.series(row, words, Unit::Time, case).failure = Some(format!("{error:#}"));
        false
    }

    /// Adds a value to a row.
    fn add(&mut self, row: &str, what: &str, unit: Unit, case: &str, value: f64) {
        if self.args.common.wants(row) {
            self.report.series(row, what, unit, case).values.push(value);
            // (row, the part of all values, the limit); what is native has none.
            let limits = [
                ("pwrite: worst during a snapshot", 0.99, 0.001),
                ("snapshot under load, not waiting", 0.95, 0.020),
                ("gate", 0.99, 0.001),
                ("snapshot under RocksDB", 0.95, 0.020),
                ("rollback", 1.0, 0.050),
                ("remount, by heights", 1.0, 2.0),
                ("remount, by shape", 1.0, 2.0),
                ("memory, remounted, by heights", 1.0, f64::from(300 << 20)),
                ("memory, remounted, by shape", 1.0, f64::from(300 << 20)),
                ("`tmfs list`", 1.0, 0.050),
                ("`ls @height`", 1.0, 0.050),
                ("space per changed page", 1.0, 4096.0 * 1.05),
            ];
            for (_, part, most) in limits.into_iter().filter(|(of, ..)| *of == row && case != "native") {
                self.report.goal(row, case, Bound::AtMost { part, most });
            }
        }
    }

    /// An empty data dir that is not mounted.
    fn data_dir(&self) -> anyhow::Result<Tmfs> {
        Tmfs::new(self.work.place()?, &self.tmfs)
    }

    /// Everything to the disk, and with `--cold` nothing in the caches: what comes before a mount.
    fn before_mount(&self) -> anyhow::Result<()> {
        self.work.sync()?;
        if self.args.cold {
            sys::drop_caches().context("dropping caches")?;
        }
        Ok(())
    }
}
