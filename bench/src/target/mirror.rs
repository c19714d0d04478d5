//! The plain mirror, served by a process of its own ([`crate::mirror`]).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::mount::{MntFlags, umount2};

use super::{Target, beside};
use crate::sys;
use crate::work::{Place, mounts_below};

const PATIENCE: Duration = Duration::from_secs(10);

/// A mounted mirror.
pub struct MirrorTarget {
    point: PathBuf,
    daemon: Child,
    place: Place,
}

impl MirrorTarget {
    /// Mounts one over an empty directory.
    pub fn start(place: Place) -> anyhow::Result<MirrorTarget> {
        let (source, point) = (beside(&place, "source"), beside(&place, "mirror"));
        fs::create_dir(&source)?;
        fs::create_dir(&point)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("mirror").arg(&source).arg(&point).stdin(Stdio::null()).stdout(Stdio::null());
        let mut daemon = sys::unmasked(&mut command).spawn().context("starting the mirror")?;
        let started = Instant::now();
        while !mounts_below(&point).contains(&point) {
            if let Some(status) = daemon.try_wait()? {
                bail!("the mirror ended with {status} before it was mounted");
            }
            if started.elapsed() > PATIENCE {
                let _ = daemon.kill();
                bail!("the mirror is not mounted after {PATIENCE:?}");
            }
            thread::sleep(Duration::from_millis(5));
        }
        lift(&point);
        Ok(MirrorTarget { point, daemon, place })
    }
}

/// Lifts the kernel's write throttle and read-ahead, as tmfs does (`fs/src/bdi.rs`); without root they stay small for
/// both.
fn lift(point: &Path) {
    let Ok(meta) = fs::metadata(point) else { return };
    let (major, minor) = (nix::sys::stat::major(meta.dev()), nix::sys::stat::minor(meta.dev()));
    let dir = PathBuf::from(format!("/sys/class/bdi/{major}:{minor}"));
    for (name, value) in [("strict_limit", "0"), ("max_ratio", "100"), ("read_ahead_kb", "512")] {
        let _ = fs::write(dir.join(name), value);
    }
}

impl Target for MirrorTarget {
    fn dir(&self) -> &Path {
        &self.point
    }

    fn ground(&self) -> &Path {
        self.place.path()
    }

    fn daemon(&self) -> Option<u32> {
        Some(self.daemon.id())
    }
}

impl Drop for MirrorTarget {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.point, MntFlags::empty()) {
            eprintln!("bench: {}: {error}; detaching", self.point.display());
            let _ = umount2(&self.point, MntFlags::MNT_DETACH);
        }
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if !matches!(self.daemon.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
