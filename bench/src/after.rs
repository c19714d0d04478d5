//! The group `after`: overwriting what a snapshot holds, for the first time since.
//!
//! Each value has a file and a file system of its own: its pages are overwritten in random order, none twice, with a
//! snapshot just before or without one. Beside it Btrfs with its own snapshot, and ext4 itself, overwriting in place and
//! writing into holes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use snapstore::Height;
use snapstore::backend::SnapshotOptions;

use crate::disk::{Disks, FileSystem, Images, On};
use crate::live::fill;
use crate::machine::Machine;
use crate::options::Common;
use crate::report::{Bound, Report, Unit};
use crate::rng::Rng;
use crate::target::btrfs::Btrfs;
use crate::target::tmfs::Tmfs;
use crate::target::{Target, native};
use crate::work::{self, Work};

const PAGE: usize = 4096;
/// Between two syncs.
const TOGETHER: [usize; 2] = [64, 1];

/// Options of the group.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    disks: Disks,
    /// Size of the file that is overwritten
    #[arg(long, default_value = "1G", value_parser = crate::options::size)]
    size: u64,
    /// At most so long each time, in seconds
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
}

/// In the order of the table's columns.
const CASES: [&str; 6] =
    ["tmfs, no snapshot", "tmfs", "btrfs, no snapshot", "btrfs", "ext4, overwriting", "ext4, allocating"];

/// Measures, and prints the report.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let tmfs = args.common.tmfs()?;
    let work = args.common.work()?;
    let images = args.disks.images(&work)?;
    let mut machine = Machine::now(work.path(), &tmfs, "as writing the file has left them");
    machine.on(args.disks.describe(images));
    let mut report = Report::new("After a snapshot: the first overwrite", machine, true);
    let what = format!("pages of 4 KiB of a file of {} MiB in random order, none twice", args.size >> 20);
    let row = |many| format!("overwrite, fdatasync per {many}");
    for many in TOGETHER.into_iter().filter(|many| args.common.wants(&row(*many))) {
        let least = if many == 1 { 0.5 } else { 0.85 };
        report.goal(&row(many), "tmfs", Bound::AtLeast { least, of: CASES[0].to_owned() });
        report.goal(&row(many), "tmfs", Bound::AtLeast { least: 1.0, of: "btrfs".to_owned() });
        for run in 0..args.common.runs as usize {
            for nth in 0..CASES.len() {
                // The first run makes the columns, in their order.
                let case = CASES[if run == 0 { nth } else { (nth + run) % CASES.len() }];
                if case.starts_with("btrfs") && args.disks.on == On::Dir {
                    continue;
                }
                eprintln!("bench: run {} of {}: {}, {case}", run + 1, args.common.runs, row(many));
                let measured = measure(args, case, many, &work, images, &tmfs);
                let series = report.series(&row(many), &what, Unit::Rate, case);
                match measured {
                    Ok(value) => series.values.push(value),
                    Err(error) => series.failure = Some(format!("{error:#}")),
                }
            }
        }
    }
    args.common.publish(&report)
}

fn measure(
    args: &Args,
    case: &str,
    many: usize,
    work: &Work,
    images: Option<Images>,
    program: &Path,
) -> anyhow::Result<f64> {
    let snapshot = matches!(case, "tmfs" | "btrfs");
    let ready = |dir: &Path| -> anyhow::Result<()> {
        let file = dir.join("file");
        match case {
            "ext4, allocating" => File::create(file)?.set_len(args.size)?,
            _ => fill(&file, args.size)?,
        }
        work::sync(dir)?;
        work.sync()
    };
    let pages = |dir: &Path| overwrite(&dir.join("file"), args, many);
    let on = |kind| work.place_on(images.map(|images| (images, kind)));
    if case.starts_with("tmfs") {
        let tmfs = Tmfs::new(on(FileSystem::Ext4)?, program)?;
        tmfs.mount()?;
        ready(tmfs.dir())?;
        let client = tmfs.client()?;
        if snapshot {
            client.snapshot_with(Height(1), SnapshotOptions::default(), true)?;
        }
        client.settle()?;
        pages(tmfs.dir())
    } else if case.starts_with("btrfs") {
        let btrfs = Btrfs::new(on(FileSystem::Btrfs)?, None)?;
        ready(btrfs.dir())?;
        if snapshot {
            btrfs.snapshot(1)?;
        }
        work::sync(btrfs.dir())?;
        pages(btrfs.dir())
    } else {
        let native = native(on(FileSystem::Ext4)?)?;
        ready(native.dir())?;
        pages(native.dir())
    }
}

/// Gives back the pages in a second.
fn overwrite(path: &Path, args: &Args, many: usize) -> anyhow::Result<f64> {
    let (file, mut rng) = (OpenOptions::new().write(true).open(path)?, Rng::new(4));
    let page = rng.bytes(PAGE);
    let mut order: Vec<u64> = (0..args.size / PAGE as u64).collect();
    for at in (1..order.len()).rev() {
        order.swap(at, rng.below(at as u64 + 1) as usize);
    }
    let (started, mut written) = (Instant::now(), 0);
    for pages in order.chunks(many) {
        for &nth in pages {
            file.write_all_at(&page, nth * PAGE as u64)?;
        }
        file.sync_data()?;
        written += pages.len();
        if started.elapsed().as_secs_f64() > args.seconds {
            break;
        }
    }
    Ok(written as f64 / started.elapsed().as_secs_f64())
}
