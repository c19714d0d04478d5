//! The places that the conformance tests run on: one for each backend.
//!
//! | place | what is below |
//! |---|---|
//! | `Chunk` | a directory of the test's own |
//! | `Btrfs` | a subvolume on a Btrfs in a loop device |
//! | `Zfs` | a dataset of a pool, by zfs-fuse |
//! | `External` | a directory of the test's own, and a script over plain copies |
//!
//! zfs-fuse is one daemon for a whole machine, with one socket. So a test on it runs again, alone, in a mount namespace
//! in which the directory of that socket is its own, with a daemon of its own: nobody else's pools are seen, and all of
//! it goes with the process. Where `TMFS_ZFS_DISK` names a disk, a pool is made on that instead, with the ZFS that is
//! there: `scripts/zfsvm-test` runs the tests so in a machine that is made for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::mount::{Mount, Work, mounts_below};
use crate::{program, skip};

/// Says that this process is the one in the namespace.
const INSIDE: &str = "TMFS_ZFS_INSIDE";
/// A disk to make a pool on.
const DISK: &str = "TMFS_ZFS_DISK";
/// Where zfs-fuse has its socket, its lock, and where it notes its pools.
const PRIVATE: [&str; 3] = ["/run/zfs", "/run/lock/zfs", "/var/lib/zfs"];

/// A backend, with what is below it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Place {
    Chunk,
    Btrfs,
    Zfs,
    External,
}

/// Makes one test for each place out of each function, in a module named as the place.
#[macro_export]
macro_rules! in_every_place {
    ($($test:ident),* $(,)?) => {
        $crate::in_places!(chunk Chunk: $($test),*);
        $crate::in_native_places!($($test),*);
    };
}

/// The same without the chunk backend.
#[macro_export]
macro_rules! in_native_places {
    ($($test:ident),* $(,)?) => {
        $crate::in_places!(btrfs Btrfs: $($test),*);
        $crate::in_places!(zfs Zfs: $($test),*);
        $crate::in_places!(external External: $($test),*);
    };
}

/// The same for one place.
#[macro_export]
macro_rules! in_places {
    ($module:ident $place:ident: $($test:ident),* $(,)?) => {
        mod $module {
            $(
                #[test]
                fn $test() {
                    let name = concat!(stringify!($module), "::", stringify!($test));
                    $crate::place::Place::$place.run(name, super::$test);
                }
            )*
        }
    };
}

impl Place {
    /// Runs a test here, or notes why not. `name`: that of the test, as the test program knows it.
    pub fn run(self, name: &str, test: fn(Place)) {
        match self.missing() {
            Some(reason) => skip::note(&format!("{self:?}"), &reason),
            None if self == Place::Zfs
                && [INSIDE, DISK].iter().all(|name| std::env::var_os(name).is_none()) =>
            {
                in_namespace(name)
            }
            None => test(self),
        }
    }

    /// Why tests cannot run here.
    fn missing(self) -> Option<String> {
        let programs: &[&str] = match self {
            Place::Chunk | Place::External => &[],
            Place::Btrfs => &["mkfs.btrfs"],
            Place::Zfs if std::env::var_os(DISK).is_some() => &["zpool", "zfs"],
            Place::Zfs => &["zfs-fuse", "zpool", "zfs", "unshare"],
        };
        if !programs.is_empty() && !nix::unistd::geteuid().is_root() {
            return Some("needs root".into());
        }
        let absent = programs.iter().find(|name| program::in_path(name).is_none());
        absent.map(|name| format!("the program {name} is not installed"))
    }

    /// Notes that databases are not tried here, where zfs-fuse is below: now and then it fails by itself under their load
    /// on a busy machine (EIO for its own mount point, or ENOTCONN since it has ended). They run on OpenZFS in the guest.
    pub fn fails_under_databases(self) -> bool {
        let fuse = self == Place::Zfs && std::env::var_os(DISK).is_none();
        if fuse {
            skip::note("databases", "zfs-fuse fails by itself under their load now and then");
        }
        fuse
    }

    /// Its name on the command line.
    pub fn backend(self) -> &'static str {
        match self {
            Place::Chunk => "chunk",
            Place::Btrfs => "btrfs",
            Place::Zfs => "zfs",
            Place::External => "external",
        }
    }

    /// Mounts over an empty directory.
    pub fn empty(self) -> Mount {
        self.adopting(|_| {})
    }

    /// Mounts over what `fill` puts into a directory.
    pub fn adopting(self, fill: impl FnOnce(&Path)) -> Mount {
        let mount = self.unmounted(fill);
        mount.mount();
        assert_eq!(mount.status()["backend"], self.backend());
        mount
    }

    /// A plain directory that is not mounted yet.
    pub fn unmounted(self, fill: impl FnOnce(&Path)) -> Mount {
        match self {
            Place::Chunk => Mount::unmounted(&["--backend", "chunk"], fill),
            Place::External => external(fill),
            Place::Btrfs => below(Below::btrfs(), "btrfs", fill),
            Place::Zfs => below(Below::zfs(), "zfs", fill),
        }
    }
}

/// A file system that was made for one test.
pub struct Below {
    work: Work,
    /// Where it is mounted.
    root: PathBuf,
    /// The data dir.
    dir: PathBuf,
    daemon: Option<Child>,
    /// Whether it is a ZFS pool.
    pool: bool,
}

fn below((work, below): (Work, Below), backend: &str, fill: impl FnOnce(&Path)) -> Mount {
    fill(&below.dir);
    let dir = below.dir.clone();
    Mount::over(work, dir).with(&["--backend", backend]).on(below)
}

impl Below {
    fn btrfs() -> (Work, Below) {
        let work = Work::new();
        let (image, root) = (work.path().join("image"), work.path().join("btrfs"));
        fs::create_dir(&root).expect("a mount point");
        fs::File::create(&image).and_then(|file| file.set_len(4 << 30)).expect("a sparse file");
        let make = program::in_path("mkfs.btrfs").expect("the caller has looked");
        program::run(Command::new(make).arg("-q").arg(&image)).ok();
        // mount's loop device goes away with the mount.
        let mount = ["-t".as_ref(), "btrfs".as_ref(), "-o".as_ref(), "loop".as_ref(), image.as_os_str()];
        program::run(Command::new("mount").args(mount).arg(&root)).ok();
        let dir = root.join("data");
        program::run(Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(&dir)).ok();
        (Work::new(), Below { work, root, dir, daemon: None, pool: false })
    }

    fn zfs() -> (Work, Below) {
        let work = Work::new();
        let root = work.path().join("pool");
        let dir = root.join("data");
        let mut options = Vec::new();
        let (daemon, disk) = match std::env::var_os(DISK) {
            Some(disk) => {
                // OpenZFS has POSIX ACLs only where it is told to; zfs-fuse has none.
                options.extend(["-O", "acltype=posixacl"]);
                (None, PathBuf::from(disk))
            }
            None => {
                let disk = work.path().join("disk");
                fs::File::create(&disk).and_then(|file| file.set_len(2 << 30)).expect("a sparse file");
                (Some(start_zfs_fuse()), disk)
            }
        };
        let pool = pool();
        let paths = [root.as_os_str(), pool.as_ref(), disk.as_os_str()];
        program::run(Command::new("zpool").args(["create", "-f"]).args(options).arg("-m").args(paths)).ok();
        program::run(Command::new("zfs").arg("create").arg(format!("{pool}/data"))).ok();
        (Work::new(), Below { work, root, dir, daemon, pool: true })
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        // What a test that failed has left, tmfs's own mounts too.
        for point in mounts_below(&self.root).into_iter().rev().filter(|point| *point != self.root) {
            let _ = Command::new("umount").arg("-l").arg(point).stderr(Stdio::null()).status();
        }
        if self.pool {
            let _ = Command::new("zpool").args(["destroy", "-f", &pool()]).status();
        } else {
            let _ = Command::new("chattr").args(["-R", "-f", "-i"]).arg(&self.root).output();
            let _ = Command::new("umount").arg(&self.root).status();
        }
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let _ = &self.work;
    }
}

/// The dataset of [`Place::Zfs`].
pub fn dataset() -> String {
    format!("{}/data", pool())
}

fn pool() -> String {
    format!("tmfs{}", std::process::id())
}

/// Runs the running test again in a mount namespace of its own.
fn in_namespace(name: &str) {
    let exe = std::env::current_exe().expect("the test's own executable");
    let status = Command::new("unshare")
        .args(["--mount", "--fork", "--kill-child=KILL"])
        .arg(exe)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .status()
        .expect("unshare");
    assert!(status.success(), "{name} failed in its namespace: see above");
}

/// Starts zfs-fuse in this namespace.
fn start_zfs_fuse() -> Child {
    assert!(std::env::var_os(INSIDE).is_some(), "in a namespace of its own");
    for dir in PRIVATE {
        fs::create_dir_all(dir).expect("a directory of zfs-fuse");
        program::must("mount", &["-t", "tmpfs", "none", dir]);
    }
    let daemon = program::in_path("zfs-fuse").expect("the caller has looked");
    let daemon = Command::new(daemon)
        .args(["--no-daemon", "--no-kstat-mount", "--pidfile", "/run/zfs/pid"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("zfs-fuse");
    program::wait_until("zfs-fuse", || Path::new("/run/zfs/zfs_socket").exists());
    daemon
}

/// What an administrator might write: a snapshot is a copy.
const SCRIPT: &str = r#"#!/bin/sh
set -eu
kept=$1 verb=$2
shift 2
case $verb in
create) rm -rf "$kept/.part"; cp -a "$1" "$kept/.part"; mv -T "$kept/.part" "$kept/$2" ;;
list) ls "$kept" ;;
delete) rm -rf "$kept/$1" ;;
rollback) find "$1" -mindepth 1 -delete; cp -a "$kept/$2/." "$1" ;;
view) echo "$kept/$1" ;;
esac
"#;

fn external(fill: impl FnOnce(&Path)) -> Mount {
    let mount = Mount::unmounted(&[], fill);
    let (script, kept) = (mount.work.path().join("script"), mount.work.path().join("kept"));
    fs::create_dir(&kept).expect("a directory for the copies");
    fs::write(&script, SCRIPT).expect("the script");
    let template = |key: &str, words: &[&str]| {
        let fixed =
            ["/bin/sh", script.to_str().expect("a plain path"), kept.to_str().expect("a plain path"), key];
        let words: Vec<String> = fixed.iter().chain(words).map(|word| format!("{word:?}")).collect();
        words.join(", ")
    };
    let config = format!(
        "[external]\ncreate = [{}]\nlist = [{}]\ndelete = [{}]\nrollback = [{}]\nmount-view = [{}]\n",
        template("create", &["{live}", "{name}"]),
        template("list", &[]),
        template("delete", &["{name}"]),
        template("rollback", &["{live}", "{name}"]),
        template("view", &["{name}"]),
    );
    let file = mount.work.path().join("config");
    fs::write(&file, config).expect("the configuration");
    let config = file.to_str().expect("a plain path").to_owned();
    mount.with(&["--backend", "external", "--config", &config])
}
