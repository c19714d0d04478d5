//! The group `views`: reading a height, beside the same read live.
//!
//! One data dir, in which one file has a layer for each of many heights. The first column is the live data, the second
//! the newest height, which holds the same. Before each read caches are dropped if that is asked for.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Context;
use snapstore::Height;
use snapstore::backend::SnapshotOptions;

use crate::costs::find;
use crate::live::fill;
use crate::machine::Machine;
use crate::options::Common;
use crate::report::{Bound, Report, Unit};
use crate::rng::Rng;
use crate::target::tmfs::Tmfs;
use crate::{process, sys};

const PAGE: usize = 4096;

/// Options of the group.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Size of the file with many layers
    #[arg(long, default_value = "256M", value_parser = crate::options::size)]
    size: u64,
    /// Its layers
    #[arg(long, default_value_t = 50)]
    layers: u64,
    /// Small files, for `cp -a` and `find`
    #[arg(long, default_value_t = 20_000)]
    files: u64,
    /// Random reads
    #[arg(long, default_value_t = 50_000)]
    reads: u64,
    /// Drop caches before each read (needs root)
    #[arg(long)]
    cold: bool,
}

/// The reads: a row, and what it is.
const READS: [(&str, &str); 4] = [
    ("cat", "the file of many layers, read as `cat` does, to /dev/null"),
    ("cp -a", "the small files, to the disk below, by the program"),
    ("find", "everything listed and looked at"),
    ("random read 4 KiB", "in the file of many layers"),
];

/// Measures, and prints the report.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let program = args.common.tmfs()?;
    let work = args.common.work()?;
    let caches = if args.cold { "dropped before each read" } else { "warm: each read was done once before" };
    let mut report =
        Report::new("Views: a height beside live", Machine::now(work.path(), &program, caches), true);
    let tmfs = Tmfs::new(work.place()?, &program)?;
    tmfs.mount()?;
    let newest = prepare(args, &tmfs)?;
    let view = tmfs.dir().join("@height").join(newest.to_string());
    let copies = work.place()?;
    for run in 0..=args.common.runs {
        for (row, what) in READS.into_iter().filter(|(row, _)| args.common.wants(row)) {
            report.goal(row, "height", Bound::AtLeast { least: 0.8, of: "live".to_owned() });
            let mut cases = [("live", tmfs.dir()), ("height", view.as_path())];
            if run % 2 == 1 && run > 1 {
                cases.reverse();
            }
            for (case, dir) in cases {
                work.sync()?;
                if args.cold {
                    sys::drop_caches().context("dropping caches")?;
                }
                let took = read(args, row, dir, &copies.path().join("copy"))?;
                // The first run only warms the caches.
                if run > 0 {
                    report.series(row, what, Unit::Rate, case).values.push(1.0 / took);
                }
            }
        }
    }
    args.common.publish(&report)
}

/// Makes the files and the heights. Gives back the newest height.
fn prepare(args: &Args, tmfs: &Tmfs) -> anyhow::Result<u64> {
    let (many, client) = (tmfs.dir().join("many"), tmfs.client()?);
    fs::create_dir(&many)?;
    for nth in 0..args.files {
        let parent = many.join((nth / 1000).to_string());
        fs::create_dir_all(&parent)?;
        fs::write(parent.join(nth.to_string()), [b'x'; 100])?;
    }
    fill(&layered(tmfs.dir()), args.size)?;
    let file = OpenOptions::new().write(true).open(layered(tmfs.dir()))?;
    let (mut rng, pages) = (Rng::new(8), (args.size / PAGE as u64).max(1));
    let page = rng.bytes(PAGE);
    for height in 1..=args.layers {
        client.snapshot_with(Height(height), SnapshotOptions::default(), true)?;
        for _ in 0..(pages / args.layers.max(1)).max(1) {
            file.write_all_at(&page, rng.below(pages) * PAGE as u64)?;
        }
        file.sync_data()?;
    }
    client.snapshot_with(Height(args.layers + 1), SnapshotOptions::default(), true)?;
    client.settle()?;
    Ok(args.layers + 1)
}

fn layered(dir: &Path) -> PathBuf {
    dir.join("layered")
}

/// Does one of the reads. Gives back how many seconds it took.
fn read(args: &Args, row: &str, dir: &Path, copy: &Path) -> anyhow::Result<f64> {
    let started = Instant::now();
    match row {
        // `cat` to /dev/null, with blocks of its size: the harness would catch what `cat` prints.
        "cat" => {
            drop(process::run(Command::new("dd").args(["of=/dev/null", "bs=128k", "status=none"]).arg({
                let mut input = std::ffi::OsString::from("if=");
                input.push(layered(dir));
                input
            }))?)
        }
        "cp -a" => {
            process::run(Command::new("cp").arg("-a").arg(dir.join("many")).arg(copy))?;
            let took = started.elapsed().as_secs_f64();
            fs::remove_dir_all(copy)?;
            return Ok(took);
        }
        "find" => drop(find(&dir.join("many"))?),
        _ => {
            let (file, mut rng, mut page) = (File::open(layered(dir))?, Rng::new(2), [0; PAGE]);
            let pages = (args.size / PAGE as u64).max(1);
            for _ in 0..args.reads {
                file.read_exact_at(&mut page, rng.below(pages) * PAGE as u64)?;
            }
        }
    }
    Ok(started.elapsed().as_secs_f64())
}
