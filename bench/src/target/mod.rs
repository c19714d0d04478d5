//! What is compared: each target gives a directory to work in, on the same disk.
//!
//! A target is made anew for each measurement, so that none inherits the caches, the history or the tired daemon of
//! another. To add one, implement [`Target`] and name it in [`Kind`].

pub mod btrfs;
mod mirror;
mod snapper;
pub mod tmfs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use snapstore::Height;
use snapstore::backend::SnapshotOptions;

use crate::disk::{FileSystem, Images};
use crate::work::{Place, Work};
use btrfs::Btrfs;
use mirror::MirrorTarget;
use snapper::Snapper;
use tmfs::Tmfs;

/// How far apart the snapshots of [`Kind::TmfsSnap`] are.
const EVERY: Duration = Duration::from_secs(1);

/// The targets there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Kind {
    /// A plain directory.
    Native,
    /// The same through the plain mirror.
    Mirror,
    /// tmfs, without a snapshot.
    Tmfs,
    /// tmfs, with a snapshot every second while the row runs.
    #[value(name = "tmfs+snap")]
    TmfsSnap,
    /// Native Btrfs, with a snapshot of its own every second; only on a loop image.
    Btrfs,
    /// Native Btrfs, without a snapshot; only on a loop image.
    #[value(name = "native-btrfs")]
    NativeBtrfs,
    /// tmfs with the backend btrfs, without a snapshot; only on a loop image.
    #[value(name = "tmfs-btrfs")]
    TmfsBtrfs,
    /// The same, with a snapshot every second while the row runs.
    #[value(name = "tmfs-btrfs+snap")]
    TmfsBtrfsSnap,
}

impl Kind {
    /// Whether it lies on Btrfs.
    pub fn on_btrfs(self) -> bool {
        matches!(self, Kind::Btrfs | Kind::NativeBtrfs | Kind::TmfsBtrfs | Kind::TmfsBtrfsSnap)
    }

    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Native => "native",
            Kind::Mirror => "mirror",
            Kind::Tmfs => "tmfs",
            Kind::TmfsSnap => "tmfs+snap",
            Kind::Btrfs => "btrfs",
            Kind::NativeBtrfs => "native-btrfs",
            Kind::TmfsBtrfs => "tmfs-btrfs",
            Kind::TmfsBtrfsSnap => "tmfs-btrfs+snap",
        }
    }
}

/// A directory to work in, and whoever serves it. Dropping it takes all of it away.
pub trait Target {
    /// Where to work.
    fn dir(&self) -> &Path;
    /// A directory on the file system that all of it lies on.
    fn ground(&self) -> &Path;
    /// The process that serves it, if there is one.
    fn daemon(&self) -> Option<u32> {
        None
    }
    /// FUSE requests so far by kind, where they are counted.
    fn requests(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        Ok(BTreeMap::new())
    }
    /// Waits until nothing goes on in the background.
    fn settle(&self) -> anyhow::Result<()> {
        Ok(())
    }
    /// What happens beside the measured work begins.
    fn begin(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
    /// It ends. Gives back how many snapshots were taken, where some are.
    fn end(&mut self) -> anyhow::Result<Option<u64>> {
        Ok(None)
    }
}

/// Makes a target, ready to work in.
pub fn start(
    kind: Kind,
    work: &Work,
    images: Option<Images>,
    tmfs: &Path,
) -> anyhow::Result<Box<dyn Target>> {
    let below = if kind.on_btrfs() { FileSystem::Btrfs } else { FileSystem::Ext4 };
    if kind.on_btrfs() {
        images.context("Btrfs is measured on a loop image: --on loop")?;
    }
    let place = work.place_on(images.map(|images| (images, below)))?;
    Ok(match kind {
        Kind::Native => Box::new(Native::new(place)?),
        Kind::Mirror => Box::new(MirrorTarget::start(place)?),
        Kind::Tmfs => Box::new(Mounted::new(Tmfs::new(place, tmfs)?, None)?),
        Kind::TmfsSnap => Box::new(Mounted::new(Tmfs::new(place, tmfs)?, Some(EVERY))?),
        Kind::TmfsBtrfs => Box::new(Mounted::new(Tmfs::on_btrfs(place, tmfs)?, None)?),
        Kind::TmfsBtrfsSnap => Box::new(Mounted::new(Tmfs::on_btrfs(place, tmfs)?, Some(EVERY))?),
        Kind::Btrfs => Box::new(Btrfs::new(place, Some(EVERY))?),
        Kind::NativeBtrfs => Box::new(Btrfs::new(place, None)?),
    })
}

/// A plain directory.
pub fn native(place: Place) -> anyhow::Result<impl Target> {
    Native::new(place)
}

struct Native {
    dir: PathBuf,
    place: Place,
}

impl Native {
    /// A new image has a directory of its own: lost+found is no part of the work.
    fn new(place: Place) -> anyhow::Result<Native> {
        let dir = beside(&place, "data");
        std::fs::create_dir(&dir)?;
        Ok(Native { dir, place })
    }
}

impl Target for Native {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn ground(&self) -> &Path {
        self.place.path()
    }
}

struct Mounted {
    tmfs: Tmfs,
    pid: u32,
    every: Option<Duration>,
    snapper: Option<Snapper>,
}

impl Mounted {
    fn new(tmfs: Tmfs, every: Option<Duration>) -> anyhow::Result<Mounted> {
        tmfs.mount()?;
        let pid = tmfs.client()?.daemon_pid()?;
        Ok(Mounted { tmfs, pid, every, snapper: None })
    }
}

impl Target for Mounted {
    fn dir(&self) -> &Path {
        self.tmfs.dir()
    }

    fn ground(&self) -> &Path {
        self.tmfs.ground()
    }

    fn daemon(&self) -> Option<u32> {
        Some(self.pid)
    }

    fn requests(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        Ok(self.tmfs.client()?.status()?.requests)
    }

    fn settle(&self) -> anyhow::Result<()> {
        Ok(self.tmfs.client()?.settle()?)
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        if let Some(every) = self.every {
            let client = self.tmfs.client()?;
            let first = client.list()?.last().map_or(0, |last| last.height.0) + 1;
            self.snapper = Some(Snapper::start(every, move |nth| {
                client.snapshot_with(Height(first + nth), SnapshotOptions::default(), false)?;
                Ok(())
            })?);
        }
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<Option<u64>> {
        self.snapper.take().map(Snapper::stop).transpose()
    }
}

/// A directory beside another, for what a target keeps out of sight.
fn beside(place: &Place, name: &str) -> PathBuf {
    place.path().join(name)
}
