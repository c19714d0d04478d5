//! How long a snapshot takes for the one who asks.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use snapstore::Height;
use snapstore::backend::SnapshotOptions;

use super::Bench;
use crate::disk::{FileSystem, Images};
use crate::report::Unit;
use crate::rng::Rng;
use crate::target::Target;
use crate::target::btrfs::Btrfs;
use crate::target::tmfs::Tmfs;

const PAGE: usize = 4096;
/// Files that change between two snapshots, and pages in each of them.
const FILES: u64 = 16;
const PAGES: u64 = 4;

/// Who asks, and for what.
#[derive(Clone, Copy)]
enum Way {
    Client { wait: bool },
    Program { wait: bool },
}

impl Way {
    fn row(self) -> &'static str {
        match self {
            Way::Client { wait: false } => "snapshot, not waiting",
            Way::Client { wait: true } => "snapshot, durable",
            Way::Program { wait: false } => "`tmfs snapshot --no-wait`",
            Way::Program { wait: true } => "`tmfs snapshot`",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Way::Client { wait: false } => {
                "by the client, after 64 pages in 16 files have changed, at rest otherwise"
            }
            Way::Client { wait: true } => "the same, waiting until it would survive a power cut",
            Way::Program { wait: false } => "by the program, the start of its process included",
            Way::Program { wait: true } => "the same, waiting until it would survive a power cut",
        }
    }
}

/// Takes them in turn.
pub fn measure(bench: &mut Bench<'_>, tmfs: &Tmfs, case: &str) -> anyhow::Result<()> {
    let client = tmfs.client()?;
    let mut height = next_height(tmfs)?;
    for round in 0..bench.args.snapshots {
        for way in [false, true].into_iter().flat_map(|wait| [Way::Client { wait }, Way::Program { wait }]) {
            change(tmfs.dir(), round)?;
            // Each from rest: the sealing of the one before is no part of it.
            client.settle()?;
            let took = match way {
                Way::Client { wait } => {
                    let started = Instant::now();
                    client.snapshot_with(Height(height), SnapshotOptions::default(), wait)?;
                    started.elapsed()
                }
                Way::Program { wait } => {
                    let height = height.to_string();
                    let args = ["snapshot", &height, "--no-wait"];
                    tmfs.verb(if wait { &args[..2] } else { &args[..] })?.1
                }
            };
            bench.add(way.row(), way.what(), Unit::Time, case, took.as_secs_f64());
            height += 1;
        }
    }
    Ok(())
}

/// The same on Btrfs, by its own program; it returns when the snapshot is on the disk.
pub fn btrfs(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let images = Images { size: 2 << 30, flush: None };
    let place = bench.work.place_on(Some((images, FileSystem::Btrfs)))?;
    let btrfs = Btrfs::new(place, None)?;
    for round in 0..bench.args.snapshots {
        change(btrfs.dir(), round)?;
        let took = btrfs.snapshot(round)?.as_secs_f64();
        let what = "by the program on a loop image, after 64 pages in 16 files have changed";
        bench.add("`btrfs subvolume snapshot`", what, Unit::Time, "btrfs", took);
    }
    Ok(())
}

/// The height for the next snapshot.
pub fn next_height(tmfs: &Tmfs) -> anyhow::Result<u64> {
    Ok(tmfs.client()?.status()?.newest_height.map_or(0, |newest| newest.0) + 1)
}

/// Changes some pages of some files; which ones is decided by `seed`.
pub fn change(dir: &Path, seed: u64) -> anyhow::Result<()> {
    let hot = dir.join("hot");
    fs::create_dir_all(&hot)?;
    let mut rng = Rng::new(seed);
    let page = rng.bytes(PAGE);
    for nth in 0..FILES {
        let path = hot.join(nth.to_string());
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        for _ in 0..PAGES {
            file.write_all_at(&page, rng.below(256) * PAGE as u64)?;
        }
    }
    Ok(())
}
