//! A data dir, its store and its daemon, made for one test and taken away after it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::place::Below;
use crate::program::{self, Outcome};
use crate::sys;
use crate::tree::Tree;

/// A directory for one test, on a disk: below `TMFS_TEST_DIR`, else below the system's place for temporary files, or
/// `/var/tmp` when that is kept in memory.
pub struct Work {
    dir: Option<tempfile::TempDir>,
}

impl Work {
    /// A new empty one, which other users may look into.
    pub fn new() -> Work {
        let base = std::env::var_os("TMFS_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let base = if program::on_a_disk(&base) { base } else { PathBuf::from("/var/tmp") };
        let dir = tempfile::Builder::new().prefix("tmfs-test-").tempdir_in(&base);
        let dir = dir.unwrap_or_else(|error| panic!("{}: {error}", base.display()));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("the test's own directory");
        Work { dir: Some(dir) }
    }

    /// Where it is, free of symlinks.
    pub fn path(&self) -> PathBuf {
        let dir = self.dir.as_ref().expect("not yet dropped").path();
        dir.canonicalize().expect("the test's own directory")
    }
}

impl Default for Work {
    fn default() -> Work {
        Work::new()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let dir = self.dir.take().expect("dropped once");
        if std::thread::panicking() && std::env::var_os("TMFS_KEEP").is_some() {
            eprintln!("kept: {}", dir.keep().display());
            return;
        }
        for mount in mounts_below(dir.path()).into_iter().rev() {
            eprintln!("{}: still mounted, detached", mount.display());
            let _ = Command::new("umount").arg("-l").arg(&mount).status();
        }
        let _ = Command::new("chattr").args(["-R", "-f", "-i"]).arg(dir.path()).output();
        if let Err(error) = force_remove(dir.path()) {
            eprintln!("{}: {error}", dir.path().display());
        }
    }
}

/// Removes a tree whose directories may lack write permission.
pub fn force_remove(dir: &Path) -> io::Result<()> {
    if fs::remove_dir_all(dir).is_ok() {
        return Ok(());
    }
    Command::new("chmod").args(["-R", "u+rwX"]).arg(dir).output()?;
    fs::remove_dir_all(dir)
}

/// The mount points at or below `dir`, in the order they were mounted.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    mount_table().into_iter().map(|(_, point)| point).filter(|point| point.starts_with(dir)).collect()
}

/// Source and mount point of every mount.
pub fn mount_table() -> Vec<(String, PathBuf)> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    table
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let point = left.split(' ').nth(4)?.replace("\\040", " ").replace("\\012", "\n");
            Some((right.split(' ').nth(1)?.to_owned(), PathBuf::from(point)))
        })
        .collect()
}

/// Whether tmfs is mounted on `dir`.
pub fn is_mounted(dir: &Path) -> bool {
    mount_table().iter().any(|(source, point)| source == "tmfs" && point == dir)
}

/// A data dir with its store and, most of the time, its daemon.
pub struct Mount {
    /// A file system that goes with the test. Before `work`, which holds its disk.
    below: Option<Below>,
    /// What else the test needs lies beside the data dir.
    pub work: Work,
    /// The data dir.
    pub dir: PathBuf,
    /// The store.
    pub store: PathBuf,
    options: Vec<String>,
    default_store: bool,
}

impl Mount {
    /// Mounts over an empty directory.
    pub fn empty() -> Mount {
        Mount::adopting(|_| {})
    }

    /// Mounts over what `fill` puts into a directory.
    pub fn adopting(fill: impl FnOnce(&Path)) -> Mount {
        Mount::with_options(&[], fill)
    }

    /// Mounts with options of `tmfs mount`, the same ones at each remount.
    pub fn with_options(options: &[&str], fill: impl FnOnce(&Path)) -> Mount {
        let mount = Mount::unmounted(options, fill);
        mount.mount();
        mount
    }

    /// A plain directory that is not mounted yet.
    pub fn unmounted(options: &[&str], fill: impl FnOnce(&Path)) -> Mount {
        let work = Work::new();
        let dir = work.path().join("data");
        let store = work.path().join("store");
        fs::create_dir(&dir).expect("the data dir");
        fill(&dir);
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Mount { below: None, work, dir, store, options, default_store: false }
    }

    /// The same, over a directory that is there already, with the store wherever tmfs puts it.
    pub fn over(work: Work, dir: PathBuf) -> Mount {
        Mount { below: None, work, dir, store: PathBuf::new(), options: Vec::new(), default_store: true }
    }

    /// The same, mounted with options of `tmfs mount`.
    pub fn with(mut self, options: &[&str]) -> Mount {
        self.options = options.iter().map(|&option| option.to_owned()).collect();
        self
    }

    /// The same, with the file system that it is on.
    pub fn on(mut self, below: Below) -> Mount {
        self.below = Some(below);
        self
    }

    /// `tmfs mount DIR`, whatever comes of it.
    pub fn try_mount(&self) -> Outcome {
        program::run(&mut self.mount_command())
    }

    /// The same with more options.
    pub fn try_mount_with(&self, options: &[&str]) -> Outcome {
        program::run(self.mount_command().args(options))
    }

    /// The command that [`Mount::try_mount`] runs.
    pub fn mount_command(&self) -> Command {
        let mut command = Command::new(program::tmfs());
        command.arg("mount").arg(&self.dir).args(&self.options);
        if !self.default_store {
            command.arg("--store").arg(&self.store);
        }
        command
    }

    /// Mounts; must succeed, and be there when the command returns.
    #[track_caller]
    pub fn mount(&self) {
        let outcome = self.try_mount().ok();
        assert!(is_mounted(&self.dir), "not in the mount table after {outcome}");
    }

    /// `tmfs unmount DIR`; must succeed.
    #[track_caller]
    pub fn unmount(&self) {
        program::run(Command::new(program::tmfs()).arg("unmount").arg(&self.dir)).ok();
        assert!(!is_mounted(&self.dir), "{} is mounted after unmount", self.dir.display());
    }

    /// Unmounts and mounts again.
    #[track_caller]
    pub fn remount(&self) {
        self.unmount();
        self.mount();
    }

    /// Kills the daemon with SIGKILL and waits until it is gone. The dead mount stays.
    #[track_caller]
    pub fn kill(&self) {
        let pid = self.pid();
        kill_pid(pid);
    }

    /// Kills the daemon and mounts again over the dead mount, without any help.
    #[track_caller]
    pub fn kill_and_mount(&self) -> Outcome {
        self.kill();
        let outcome = self.try_mount().ok();
        assert!(is_mounted(&self.dir), "not in the mount table after {outcome}");
        outcome
    }

    /// The daemon's process.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.status()["pid"].as_u64().expect("a mounted store has a pid") as u32
    }

    /// Runs a verb: `tmfs -p DIR ARGS`.
    pub fn tmfs<S: AsRef<OsStr>>(&self, args: &[S]) -> Outcome {
        program::run(Command::new(program::tmfs()).arg("-p").arg(&self.dir).args(args))
    }

    /// Runs a verb that must succeed; returns its standard output.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        self.tmfs(args).ok().text()
    }

    /// Runs a verb with `--json`, which must succeed; returns what it printed.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let outcome = self.tmfs(&[args, &["--json"]].concat()).ok();
        serde_json::from_slice(&outcome.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {outcome}"))
    }

    /// `tmfs snapshot HEIGHT`.
    #[track_caller]
    pub fn snapshot(&self, height: u64) {
        self.ok(&["snapshot", &height.to_string()]);
    }

    /// `tmfs rollback HEIGHT --exact`.
    #[track_caller]
    pub fn rollback(&self, height: u64) {
        self.ok(&["rollback", &height.to_string(), "--exact"]);
    }

    /// `tmfs status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.json(&["status"])
    }

    /// `tmfs list --json`, each entry under its height.
    #[track_caller]
    pub fn list(&self) -> BTreeMap<u64, Value> {
        let list = self.json(&["list"]);
        let entries = list.as_array().expect("a JSON array").iter();
        let listed: Vec<(u64, Value)> =
            entries.map(|entry| (entry["height"].as_u64().expect("a height"), entry.clone())).collect();
        assert!(listed.is_sorted_by(|a, b| a.0 < b.0), "ascending, each once: {list}");
        listed.into_iter().collect()
    }

    /// The heights of `tmfs list`.
    #[track_caller]
    pub fn heights(&self) -> Vec<u64> {
        self.list().into_keys().collect()
    }

    /// The heights that `@height` shows, ascending.
    #[track_caller]
    pub fn heights_by_directory(&self) -> Vec<u64> {
        let entries = fs::read_dir(self.dir.join("@height")).expect("@height can be listed");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("digits"));
        let mut heights: Vec<u64> = names.filter_map(|name| name.parse().ok()).collect();
        heights.sort_unstable();
        heights
    }

    /// The directory of a view.
    pub fn view(&self, height: u64) -> PathBuf {
        self.dir.join("@height").join(height.to_string())
    }

    /// A path in the live head.
    pub fn live(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.join(path)
    }

    /// The whole live tree.
    #[track_caller]
    pub fn tree(&self) -> Tree {
        Tree::read(&self.dir)
    }

    /// The whole tree of a view.
    #[track_caller]
    pub fn view_tree(&self, height: u64) -> Tree {
        Tree::read(&self.view(height))
    }

    /// The layer files of the store: path, inode, epoch, allocated bytes.
    pub fn layers(&self) -> Vec<Layer> {
        let mut layers = Vec::new();
        for shard in read_dir(&self.store.join("layers")) {
            for path in read_dir(&shard) {
                let name = path.file_name().and_then(OsStr::to_str).expect("a layer's name");
                let Some((ino, epoch)) = name.split_once('.') else { continue };
                let (Ok(ino), Ok(epoch)) = (ino.parse(), epoch.parse()) else { continue };
                let Ok(data) = path.metadata() else { continue };
                let allocated = data_bytes(&path);
                let _ = data;
                layers.push(Layer { path, ino, epoch, allocated });
            }
        }
        layers
    }

    /// Bytes that the layer files occupy on the disk.
    pub fn allocated(&self) -> u64 {
        self.layers().iter().map(|layer| layer.allocated).sum()
    }

    /// Waits until the background has given back what deletions freed.
    #[track_caller]
    pub fn wait_reclaimed(&self) {
        program::wait_until("the background reclaim", || {
            self.status()["reclaimable_bytes"].as_u64() == Some(0)
        });
    }
}

/// A layer file of the store.
#[derive(Debug)]
pub struct Layer {
    /// Where it is.
    pub path: PathBuf,
    /// The inode it belongs to.
    pub ino: u64,
    /// The epoch it belongs to.
    pub epoch: u64,
    /// Bytes of the 4 KiB chunks that hold data (`st_blocks` would count extent blocks too).
    pub allocated: u64,
}

fn read_dir(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(Result::ok).map(|entry| entry.path()).collect()
}

/// Ends a process with SIGKILL and waits until it is gone.
#[track_caller]
pub fn kill_pid(pid: u32) {
    let target = nix::unistd::Pid::from_raw(pid as i32);
    nix::sys::signal::kill(target, nix::sys::signal::Signal::SIGKILL).expect("the process to kill is there");
    program::wait_until("a killed process to be gone", || !sys::alive(pid));
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !is_mounted(&self.dir) {
            return;
        }
        let pid = self.tmfs(&["status", "--json"]);
        let pid = serde_json::from_slice::<Value>(&pid.stdout).ok().and_then(|status| status["pid"].as_u64());
        let unmounted = program::run(Command::new(program::tmfs()).arg("unmount").arg(&self.dir));
        if unmounted.status.success() && !is_mounted(&self.dir) {
            return;
        }
        eprintln!("unmounting by force, since {unmounted}");
        if let Some(pid) = pid.filter(|&pid| sys::alive(pid as u32)) {
            let target = nix::unistd::Pid::from_raw(pid as i32);
            let _ = nix::sys::signal::kill(target, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

fn data_bytes(path: &Path) -> u64 {
    use nix::unistd::{Whence, lseek};
    // A layer that went away meanwhile occupies nothing.
    let Ok(file) = std::fs::File::open(path) else { return 0 };
    let (mut at, mut bytes) = (0, 0);
    while let Ok(data) = lseek(&file, at, Whence::SeekData) {
        at = lseek(&file, data, Whence::SeekHole).expect("a hole follows data");
        bytes += (at as u64).next_multiple_of(4096) - data as u64;
    }
    bytes
}
