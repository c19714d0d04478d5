//! For tests: a Btrfs of its own on a loop device.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};

/// A mounted Btrfs. Dropping it unmounts it; its loop device goes with the mount.
pub(crate) struct Volume {
    temp: tempfile::TempDir,
    root: PathBuf,
}

impl Volume {
    /// A new one; `None` where there cannot be one: this is then noted as skipped.
    pub fn new() -> Option<Volume> {
        if !nix::unistd::geteuid().is_root() {
            return skip("needs root for a loop device");
        }
        let places = ["/sbin", "/usr/sbin", "/bin", "/usr/bin"];
        if !places.iter().any(|dir| Path::new(dir).join("mkfs.btrfs").exists()) {
            return skip("the program mkfs.btrfs is not installed");
        }
        let at = std::env::var_os("TMFS_TEST_DIR");
        let temp = match at {
            Some(dir) => tempfile::tempdir_in(dir),
            None => tempfile::tempdir(),
        };
        let temp = temp.unwrap();
        let (image, root) = (temp.path().join("image"), temp.path().canonicalize().unwrap().join("root"));
        std::fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
        std::fs::create_dir(&root).unwrap();
        must("mkfs.btrfs", &["-q".as_ref(), image.as_os_str()]);
        must("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), root.as_os_str()]);
        Some(Volume { temp, root })
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Mounts one of its subvolumes, or a directory of it, elsewhere too.
    pub fn mount_at(&self, name: &str, options: &str, source: Option<&Path>) -> Mounted {
        let point = self.temp.path().canonicalize().unwrap().join(name);
        std::fs::create_dir_all(&point).unwrap();
        let device = match source {
            Some(path) => path.to_owned(),
            None => {
                let mount = crate::mountinfo::at(&self.root).unwrap().unwrap();
                PathBuf::from(mount.source)
            }
        };
        must("mount", &["-o".as_ref(), options.as_ref(), device.as_os_str(), point.as_os_str()]);
        Mounted(point)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.root, MntFlags::empty()) {
            eprintln!("{}: {error}; detaching", self.root.display());
            let _ = umount2(&self.root, MntFlags::MNT_DETACH);
        }
    }
}

/// A further mount. Dropping it unmounts it.
pub(crate) struct Mounted(pub PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if umount2(&self.0, MntFlags::empty()).is_err() {
            let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        }
    }
}

/// Runs a program, which must succeed.
pub(crate) fn must(program: &str, args: &[&OsStr]) -> String {
    let done = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

fn skip<T>(reason: &str) -> Option<T> {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let line = format!("SKIP {test}: Btrfs: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("TMFS_SKIPS") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the file of skips is written");
    }
    None
}
