//! Native Btrfs with its own snapshots: what people would use instead of tmfs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::snapper::Snapper;
use super::{Target, beside};
use crate::process;
use crate::work::Place;

/// A subvolume of a Btrfs image, and its snapshots.
pub struct Btrfs {
    live: PathBuf,
    snapshots: PathBuf,
    every: Option<Duration>,
    snapper: Option<Snapper>,
    place: Place,
}

impl Btrfs {
    /// An empty subvolume in a place that lies on Btrfs, with a snapshot so often while a row runs, or none.
    pub fn new(place: Place, every: Option<Duration>) -> anyhow::Result<Btrfs> {
        let (live, snapshots) = (beside(&place, "live"), beside(&place, "snapshots"));
        process::run(Command::new("btrfs").args(["subvolume", "create"]).arg(&live))?;
        fs::create_dir(&snapshots)?;
        Ok(Btrfs { live, snapshots, every, snapper: None, place })
    }

    /// Takes the nth snapshot. Gives back how long the program took.
    pub fn snapshot(&self, nth: u64) -> anyhow::Result<Duration> {
        snapshot(&self.live, &self.snapshots, nth)
    }
}

fn snapshot(live: &Path, snapshots: &Path, nth: u64) -> anyhow::Result<Duration> {
    let mut command = Command::new("btrfs");
    command.args(["subvolume", "snapshot", "-r"]).arg(live).arg(snapshots.join(nth.to_string()));
    Ok(process::run(&mut command)?.1)
}

impl Target for Btrfs {
    fn dir(&self) -> &Path {
        &self.live
    }

    fn ground(&self) -> &Path {
        self.place.path()
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        let Some(every) = self.every else { return Ok(()) };
        let (live, snapshots) = (self.live.clone(), self.snapshots.clone());
        let take = move |nth| snapshot(&live, &snapshots, nth).map(drop);
        self.snapper = Some(Snapper::start(every, take)?);
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<Option<u64>> {
        self.snapper.take().map(Snapper::stop).transpose()
    }
}
