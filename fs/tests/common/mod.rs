//! A mount of the backend in memory, for tests: taken away when dropped, lazily if need be.
#![allow(dead_code)]

pub mod mem;
pub mod sys;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapstore::Height;
use snapstore::backend::{HeightQuery, SnapshotOptions};
use snapstore::control::{CONTROL_XATTR, Failure, Reply, Request, Verbs};
use tmfs_fs::{Cache, MountOptions, Mounted};

use mem::Mem;

/// A mounted file system in a directory of its own.
pub struct Mount {
    pub mounted: Arc<Mounted>,
    pub mem: Mem,
    pub root: PathBuf,
    _dir: tempfile::TempDir,
}

impl Mount {
    /// With writeback cache.
    pub fn new() -> Mount {
        Mount::with(|_| {})
    }

    /// With other options.
    pub fn with(change: impl FnOnce(&mut MountOptions)) -> Mount {
        Mount::of(Mem::new(), change)
    }

    /// With files that the kernel may have.
    pub fn passing_through() -> Mount {
        let m = Mount::of(Mem::on_disk(), |_| {});
        let Reply::Status(status) = m.call(Request::Status).unwrap() else { panic!("no status") };
        assert_eq!(status.cache.as_deref(), Some("passthrough"), "{:?}", status.limits);
        m
    }

    fn of(mem: Mem, change: impl FnOnce(&mut MountOptions)) -> Mount {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap().join("data");
        fs::create_dir(&root).unwrap();
        let mut options = MountOptions {
            mountpoint: root.clone(),
            cache: Cache::Writeback,
            passthrough: true,
            show_heights: false,
            control_path: "the/control.sock".into(),
            data_dir: root.clone(),
            store: dir.path().join("store"),
            threads: None,
            owner_snapshots: false,
            slow_request: tmfs_fs::SLOW_REQUEST,
        };
        change(&mut options);
        let mounted = tmfs_fs::mount(Arc::new(mem.clone()), options).unwrap();
        Mount { mounted, mem, root, _dir: dir }
    }

    /// A path in the mount.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// A path in a snapshot.
    pub fn at(&self, height: u64, path: &str) -> PathBuf {
        self.root.join(format!("@height/{height}")).join(path)
    }

    pub fn call(&self, request: Request) -> Result<Reply, Failure> {
        self.mounted.call(request)
    }

    pub fn snapshot(&self, height: u64) {
        let options = SnapshotOptions::default();
        self.call(Request::Snapshot { height: Height(height), options, wait: true }).unwrap();
    }

    pub fn rollback(&self, height: u64, force: bool) -> Result<Reply, Failure> {
        let to = HeightQuery::Exact(Height(height));
        self.call(Request::Rollback { to, preserve: vec![], only: false, force, dry_run: false })
    }

    /// The names in a directory, in byte order.
    pub fn names(&self, path: impl AsRef<Path>) -> Vec<OsString> {
        let mut names: Vec<_> =
            fs::read_dir(self.path(path)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    pub fn control_xattr() -> &'static str {
        CONTROL_XATTR
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(failure) = self.mounted.call(Request::Unmount) {
            eprintln!("unmounting lazily: {failure}");
            let _ = nix::mount::umount2(&self.root, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// The errno of a failed call.
pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}
