//! What the targets lie on: directories of one disk, or loop images that the harness makes, each new and of one kind.
//!
//! A slowed device is a file of a small FUSE file system ([`crate::slow`]) below the loop device: its flush takes as
//! long as is asked for.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use nix::mount::{MntFlags, umount2};

use crate::stats::Summary;
use crate::work::{Work, mounts_below};
use crate::{process, slow, sys};

const PATIENCE: Duration = Duration::from_secs(20);
/// A flush for counting.
const SLOW: Duration = Duration::from_millis(25);
const MOMENT: Duration = Duration::from_millis(20);

/// Options that say what to measure on.
#[derive(clap::Args, Clone, Debug)]
pub struct Disks {
    /// What the targets lie on
    #[arg(long, value_enum, default_value = "dir")]
    pub on: On,
    /// Slow the loop devices down until one fdatasync of appended data takes so many milliseconds (needs --on loop)
    #[arg(long, value_name = "MS")]
    pub slow_sync: Option<f64>,
    /// Size of a loop image; it takes only what is written
    #[arg(long, default_value = "8G", value_parser = crate::options::size)]
    pub image: u64,
}

/// What the targets lie on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum On {
    /// A directory of the disk itself; no Btrfs.
    Dir,
    /// A new loop image for each target, ext4 or Btrfs (needs root).
    Loop,
}

/// A file system that an image can hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileSystem {
    /// The store's own.
    Ext4,
    /// What tmfs is compared with.
    Btrfs,
}

/// How images are made; the delay is that of one flush.
#[derive(Clone, Copy, Debug)]
pub struct Images {
    /// Bytes in each.
    pub size: u64,
    /// What a flush takes, if it is slowed.
    pub flush: Option<Duration>,
}

impl Disks {
    /// How to make the images; `None` without them. Finds out how slow a flush must be.
    pub fn images(&self, work: &Work) -> anyhow::Result<Option<Images>> {
        let slow = self.slow_sync.map(|ms| Duration::try_from_secs_f64(ms / 1e3)).transpose()?;
        match self.on {
            On::Dir => {
                ensure!(slow.is_none(), "--slow-sync needs --on loop");
                Ok(None)
            }
            On::Loop => {
                ensure!(nix::unistd::geteuid().is_root(), "--on loop needs root");
                let mut images = Images { size: self.image, flush: slow };
                if let Some(wanted) = slow {
                    // A commit of ext4's journal may flush twice. Counted with a flush beside which nothing else counts.
                    images.flush = Some(SLOW);
                    let flushes = (sync_time(work, images)? / SLOW.as_secs_f64()).floor().clamp(1.0, 4.0);
                    images.flush = Some(wanted.div_f64(flushes));
                    let then = sync_time(work, images)?;
                    eprintln!(
                        "bench: a flush of {:?} makes an fdatasync of ext4 take {:.2} ms",
                        images.flush.unwrap_or_default(),
                        then * 1e3
                    );
                }
                Ok(Some(images))
            }
        }
    }

    /// In words, for the report.
    pub fn describe(&self, images: Option<Images>) -> String {
        match (images, self.slow_sync) {
            (None, _) => "directories of this file system".to_owned(),
            (Some(_), None) => format!("loop images of {} MiB on this file system", self.image >> 20),
            (Some(images), Some(ms)) => format!(
                "loop images of {} MiB on a slowed device: {:.2} ms a flush, for {ms} ms an fdatasync",
                self.image >> 20,
                images.flush.unwrap_or_default().as_secs_f64() * 1e3
            ),
        }
    }
}

/// The median time of an append of a page and an fdatasync on such an image.
fn sync_time(work: &Work, images: Images) -> anyhow::Result<f64> {
    let place = work.place_on(Some((images, FileSystem::Ext4)))?;
    let mut file = File::create(place.path().join("log"))?;
    let mut times = Vec::new();
    for _ in 0..60 {
        file.write_all(&[1; 4096])?;
        let started = Instant::now();
        file.sync_data()?;
        times.push(started.elapsed().as_secs_f64());
    }
    Ok(Summary::of(&times).context("no times")?.median)
}

/// A mounted image. Dropping it unmounts it; its loop device goes with the mount.
pub struct Volume {
    root: PathBuf,
    slowed: Option<(PathBuf, Child)>,
}

impl Volume {
    /// Makes an image in `dir` and mounts it there.
    pub fn mount(dir: &Path, images: Images, kind: FileSystem) -> anyhow::Result<Volume> {
        let (image, root) = (dir.join("image"), dir.join("root"));
        File::create(&image)?.set_len(images.size)?;
        fs::create_dir(&root)?;
        let mut make = match kind {
            FileSystem::Ext4 => Command::new("mkfs.ext4"),
            FileSystem::Btrfs => Command::new("mkfs.btrfs"),
        };
        match kind {
            // Nothing is left for later: it would be written while a row runs.
            FileSystem::Ext4 => {
                make.args(["-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
            }
            FileSystem::Btrfs => make.args(["-q", "-f"]),
        };
        process::run(make.arg(&image))?;
        let mut volume = Volume { root, slowed: None };
        let device = match images.flush {
            None => image,
            Some(flush) => {
                let served = dir.join("served");
                fs::create_dir(&served)?;
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("slow-disk").arg(&image).arg(&served).arg(flush.as_micros().to_string());
                command.stdin(Stdio::null()).stdout(Stdio::null());
                let child = sys::unmasked(&mut command).spawn().context("starting the slowed disk")?;
                let child = &mut volume.slowed.insert((served.clone(), child)).1;
                wait_for_mount(&served, child)?;
                served.join(slow::NAME)
            }
        };
        process::run(Command::new("mount").args(["-o", "loop"]).arg(device).arg(&volume.root))?;
        Ok(volume)
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

fn wait_for_mount(point: &Path, server: &mut Child) -> anyhow::Result<()> {
    let started = Instant::now();
    while !mounts_below(point).iter().any(|mounted| mounted == point) {
        if let Some(status) = server.try_wait()? {
            bail!("the slowed disk ended with {status} before it was mounted");
        }
        ensure!(started.elapsed() < PATIENCE, "the slowed disk is not mounted after {PATIENCE:?}");
        thread::sleep(MOMENT);
    }
    Ok(())
}

/// Whoever has just ended may still have a file open.
fn unmount(point: &Path) {
    let started = Instant::now();
    while mounts_below(point).iter().any(|mounted| mounted == point) {
        let Err(error) = umount2(point, MntFlags::empty()) else { return };
        if started.elapsed() > PATIENCE {
            eprintln!("bench: {}: {error}; detaching", point.display());
            let _ = umount2(point, MntFlags::MNT_DETACH);
            return;
        }
        thread::sleep(MOMENT);
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // What is mounted on it (by somebody who failed) first.
        mounts_below(&self.root).iter().rev().for_each(|point| unmount(point));
        let Some((served, mut child)) = self.slowed.take() else { return };
        unmount(&served);
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(MOMENT);
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}
