//! A place to work in that leaves nothing behind: no mount, no file, whether the run ends well, fails or is interrupted.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{fs, io, thread};

use anyhow::{Context, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use crate::disk::{FileSystem, Images, Volume};

/// A new directory on a disk.
pub struct Work {
    dir: PathBuf,
    places: AtomicU32,
}

impl Work {
    /// Makes one in `base`, which must not be kept in memory. There is one in a process.
    pub fn new(base: &Path) -> anyhow::Result<Work> {
        let context = || base.display().to_string();
        let base = base.canonicalize().with_context(context)?;
        if statfs(&base).with_context(context)?.filesystem_type() == TMPFS_MAGIC {
            bail!("{}: is kept in memory; name a directory on a disk with --dir", base.display());
        }
        let dir = tempfile::Builder::new().prefix("tmfs-bench-").tempdir_in(&base).with_context(context)?;
        let dir = dir.keep();
        clean_up_when_interrupted(dir.clone())?;
        Ok(Work { dir, places: AtomicU32::new(0) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// A new empty directory in it.
    pub fn place(&self) -> anyhow::Result<Place> {
        let dir = self.dir.join(self.places.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        Ok(Place { volume: None, dir })
    }

    /// The same on a new image of its own, where one is asked for.
    pub fn place_on(&self, image: Option<(Images, FileSystem)>) -> anyhow::Result<Place> {
        let mut place = self.place()?;
        if let Some((images, kind)) = image {
            place.volume = Some(Volume::mount(&place.dir, images, kind).context("making a loop image")?);
        }
        Ok(place)
    }

    /// Waits until everything that was written there is on the disk.
    pub fn sync(&self) -> anyhow::Result<()> {
        sync(&self.dir)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        clean_up(&self.dir);
    }
}

/// So much may stay of each place until all measurements are done.
const LITTLE: u64 = 64 << 20;

/// One directory of a [`Work`], removed when it is not needed any more: at once if there is much in it, else with the
/// whole. ext4 passes over inodes that were freed within the last minute, one by one, so removing thousands of small
/// files makes whoever creates files next ten times slower, natively as well as here.
pub struct Place {
    volume: Option<Volume>,
    dir: PathBuf,
}

impl Place {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.volume.as_ref().map_or(&self.dir, Volume::root)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.volume.take());
        if unmount(&self.dir) && space(&self.dir).is_ok_and(|space| space < LITTLE) {
            return;
        }
        clean_up(&self.dir);
    }
}

/// Waits until everything on the file system of `dir` is on the disk.
pub fn sync(dir: &Path) -> anyhow::Result<()> {
    nix::unistd::syncfs(fs::File::open(dir)?).context("syncfs")
}

/// The space that everything below `dir` takes.
fn space(dir: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum += meta.blocks() * 512;
        if meta.is_dir() {
            sum += space(&entry.path())?;
        }
    }
    Ok(sum)
}

/// Unmounts and removes everything at and below `dir`.
fn clean_up(dir: &Path) {
    unmount(dir);
    // A daemon that has just lost its mount may be writing its last.
    for attempt in 0..20 {
        let error = match fs::remove_dir_all(dir) {
            Ok(()) => return,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => error,
        };
        if attempt == 19 {
            eprintln!("bench: {} could not be removed: {error}", dir.display());
            return;
        }
        // A data dir that is not mounted is kept from being changed.
        let _ = Command::new("chattr").args(["-R", "-f", "-i"]).arg(dir).output();
        let _ = Command::new("chmod").args(["-R", "u+rwX"]).arg(dir).output();
        thread::sleep(Duration::from_millis(100));
    }
}

/// Unmounts everything at and below `dir`; `false`: something is still there.
fn unmount(dir: &Path) -> bool {
    for point in mounts_below(dir).into_iter().rev() {
        eprintln!("bench: {} is still mounted: unmounting", point.display());
        if umount2(&point, MntFlags::empty()).is_err()
            && let Err(error) = umount2(&point, MntFlags::MNT_DETACH)
        {
            eprintln!("bench: {}: {error}", point.display());
        }
    }
    mounts_below(dir).is_empty()
}

/// From here on an interrupt takes away what was made before it ends the process. To be called before there are other
/// threads: they inherit that signals are held back.
fn clean_up_when_interrupted(dir: PathBuf) -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let signal = signals.wait().map_or(Signal::SIGTERM as i32, |signal| signal as i32);
        eprintln!("bench: interrupted; cleaning up");
        clean_up(&dir);
        std::process::exit(128 + signal);
    })?;
    Ok(())
}

/// A line of the mount table.
pub struct Mounted {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Its type, as `mount` shows it.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Options of the file system.
    pub options: String,
}

/// The mount table, in the order of mounting.
pub fn mount_table() -> Vec<Mounted> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let mut part = || right.next().map(str::to_owned);
        let (kind, source, options) = (part()?, part()?, part()?);
        Some(Mounted { point: unescape(left.split(' ').nth(4)?), kind, source, options })
    };
    table.lines().filter_map(line).collect()
}

/// The mount points at and below `dir`, in the order of mounting.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    mount_table().into_iter().map(|mount| mount.point).filter(|point| point.starts_with(dir)).collect()
}

/// Blanks and the like stand there as a backslash and three octal digits.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let (bytes, mut plain, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let code = (bytes[at] == b'\\')
            .then(|| text.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok()))
            .flatten();
        plain.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 4 } else { 1 };
    }
    std::ffi::OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_blanks() {
        assert_eq!(unescape(r"/a\040b\134c"), Path::new(r"/a b\c"));
        assert_eq!(unescape(r"/a\x"), Path::new(r"/a\x"));
        assert!(mount_table().iter().any(|mount| mount.point == Path::new("/")));
    }
}
