//! A pool for each test: zfs-fuse here, OpenZFS in the guest of `scripts/zfsvm`.
//!
//! zfs-fuse is one daemon for a whole machine, with one socket. A test that needs it runs again in a process of its own,
//! in a mount namespace in which the socket's directory is another, with a daemon of its own: nobody else's pools are
//! seen, nothing that it mounts is seen by others, and all of it goes with the process. With `TMFS_ZFS_DISK=/dev/…` a pool
//! is made on that disk with the ZFS that is there, which is for machines that exist for this only.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};

use super::command::Zfs;
use super::engine::ZfsEngine;
use super::mounts;
use super::takeover::ZfsTakeover;
use crate::native::site::Site;
use crate::native::takeover::Takeover;
use crate::progress::Silent;

/// Says that this process is the one in the namespace.
const INSIDE: &str = "TMFS_ZFS_RIG";
/// A disk to make pools on.
pub(crate) const DISK: &str = "TMFS_ZFS_DISK";
/// Where zfs-fuse has its socket and its lock, and where it notes its pools.
const PRIVATE: [&str; 3] = ["/run/zfs", "/run/lock/zfs", "/var/lib/zfs"];

/// A test that gets a [`Rig`].
macro_rules! pool_test {
    ($name:ident, $test:expr) => {
        #[test]
        fn $name() {
            $crate::native::zfs::rig::run(concat!(module_path!(), "::", stringify!($name)), $test);
        }
    };
}
pub(crate) use pool_test;

/// Runs a test where there is a pool, or notes why not.
pub(crate) fn run(name: &str, test: impl FnOnce(&Rig)) {
    if std::env::var_os(INSIDE).is_some() || std::env::var_os(DISK).is_some() {
        return test(&Rig::new());
    }
    let name = name.split_once("::").map_or(name, |(_, name)| name);
    if let Err(reason) = usable() {
        return skip(name, &reason);
    }
    let exe = std::env::current_exe().unwrap();
    let status = Command::new("unshare")
        .args(["--mount", "--fork", "--kill-child=KILL"])
        .arg(exe)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed in its namespace: see above");
}

/// Why there can be no zfs-fuse here.
fn usable() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root".into());
    }
    for program in ["zfs-fuse", "zfs", "zpool", "unshare"] {
        if crate::native::command::find(program.as_ref()).is_none() {
            return Err(format!("the program {program} is not installed"));
        }
    }
    if !Path::new("/dev/fuse").exists() {
        return Err("no /dev/fuse".into());
    }
    let tried = Command::new("unshare").args(["--mount", "true"]).status();
    if tried.is_ok_and(|status| status.success()) {
        Ok(())
    } else {
        Err("no mount namespace can be made".into())
    }
}

/// A skipped test is counted: `scripts/test` shows what is in the file that `TMFS_SKIPS` names.
fn skip(name: &str, reason: &str) {
    let line = format!("SKIP {name}: zfs: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("TMFS_SKIPS") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).unwrap();
    }
}

/// A pool, and a directory for mount points.
pub(crate) struct Rig {
    pub(crate) zfs: Zfs,
    pub(crate) pool: String,
    pub(crate) dir: PathBuf,
    temp: Option<tempfile::TempDir>,
    daemon: Option<Child>,
}

impl Rig {
    fn new() -> Rig {
        let base = std::env::var_os("TMFS_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let temp = tempfile::Builder::new().prefix("tmfs-zfs-").tempdir_in(base).unwrap();
        let dir = temp.path().canonicalize().unwrap();
        let pool = format!("tmfs{}", std::process::id());
        let (daemon, disk) = match std::env::var_os(DISK) {
            Some(disk) => (None, PathBuf::from(disk)),
            None => {
                let daemon = start_daemon();
                let disk = dir.join("disk");
                std::fs::File::create(&disk).unwrap().set_len(200 << 20).unwrap();
                (Some(daemon), disk)
            }
        };
        let rig = Rig { zfs: Zfs::find().unwrap(), pool, dir, temp: Some(temp), daemon };
        program("zpool", &["create", "-f", "-m", "none", &rig.pool, disk.to_str().unwrap()]);
        rig
    }

    /// A dataset of the pool, mounted at a directory of the same name, with a file system in it and a file in each.
    pub(crate) fn dataset(&self, name: &str) -> PathBuf {
        let at = self.dir.join(name);
        let dataset = self.name(name);
        self.zfs(&["create", "-o", &format!("mountpoint={}", at.display()), &dataset]);
        self.zfs(&["create", &format!("{dataset}/kid")]);
        write(&at, "file", "base");
        write(&at, "kid/file", "base below");
        at
    }

    /// The full name of a dataset.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.pool)
    }

    /// Runs `zfs`, which must succeed.
    pub(crate) fn zfs(&self, args: &[&str]) -> String {
        let mut said = String::new();
        // zfs-fuse goes on with what it has unmounted for a moment.
        let run = || self.zfs.look(args).map(|text| said = text);
        mounts::patient(run).unwrap();
        said
    }

    /// Every dataset and snapshot below a name, and the properties of tmfs's that are set on each.
    pub(crate) fn all(&self) -> Vec<String> {
        let list = self.zfs(&["list", "-H", "-r", "-t", "filesystem,snapshot", "-o", "name", &self.pool]);
        list.lines()
            .map(|name| name[self.pool.len()..].trim_start_matches('/').to_owned())
            .filter(|n| !n.is_empty())
            .collect()
    }

    /// The site of a data dir whose store lies beside it.
    pub(crate) fn site(&self, data_dir: &Path) -> Site {
        let store = ZfsTakeover::with(self.zfs.clone()).usual_store(data_dir).unwrap();
        std::fs::create_dir_all(&store).unwrap();
        let dir: OwnedFd = mounts::open_dir(&store).unwrap();
        Site { data_dir: data_dir.into(), store, dir }
    }

    /// Adopts a data dir.
    pub(crate) fn adopt(&self, data_dir: &Path) -> Site {
        let takeover = ZfsTakeover::with(self.zfs.clone());
        let store = takeover.usual_store(data_dir).unwrap();
        takeover.check(data_dir, &store).unwrap();
        let site = self.site(data_dir);
        takeover.prepare(&site, &Silent).unwrap();
        assert!(!takeover.is_taken(&site).unwrap());
        takeover.take(&site, &Silent).unwrap();
        assert!(takeover.is_taken(&site).unwrap());
        site
    }

    /// The engine of a store.
    pub(crate) fn engine(&self, site: &Site) -> ZfsEngine {
        ZfsEngine::open(site, self.zfs.clone()).unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let seen = mounts::all().unwrap_or_default();
        for at in mounts::below(&seen, &self.dir).iter().filter(|at| **at != self.dir) {
            let _ = mounts::unmount(at);
        }
        if let Some(daemon) = &mut self.daemon {
            // Its pool goes with its file.
            let _ = daemon.kill();
            let _ = daemon.wait();
        } else {
            let destroyed = Command::new("zpool").args(["destroy", "-f", &self.pool]).status();
            let gone = destroyed.is_ok_and(|status| status.success());
            assert!(gone || std::thread::panicking(), "the pool stays");
        }
        // Marked directories are immutable.
        let _ = Command::new("chattr").args(["-R", "-f", "-i"]).arg(&self.dir).stderr(Stdio::null()).status();
        drop(self.temp.take());
    }
}

/// Starts zfs-fuse in this namespace.
fn start_daemon() -> Child {
    for dir in PRIVATE {
        std::fs::create_dir_all(dir).unwrap();
        mount(Some("none"), dir, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    }
    let program = crate::native::command::find("zfs-fuse".as_ref()).unwrap();
    let daemon = Command::new(program)
        .args(["--no-daemon", "--no-kstat-mount", "--pidfile", "/run/zfs/pid"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create("/run/zfs/log").unwrap())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !Path::new("/run/zfs/zfs_socket").exists() {
        let log = || std::fs::read_to_string("/run/zfs/log").unwrap();
        assert!(begun.elapsed() < Duration::from_secs(60), "zfs-fuse does not answer: {}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon
}

fn program(name: &str, args: &[&str]) {
    let path = crate::native::command::find(name.as_ref()).unwrap();
    let out = Command::new(path).args(args).output().unwrap();
    assert!(out.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Writes a file.
pub(crate) fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

/// A file's text.
pub(crate) fn read(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
