//! The suite on the btrfs backend: each test has a Btrfs of its own, on a loop device.

use std::path::PathBuf;
use std::process::Command;

use snapstore::progress::Silent;
use snapstore::store::{self, Choice};

use crate::place::{Factory, Made};

struct Btrfs {
    /// The data dir is a subvolume; else a plain directory.
    subvolume: bool,
}

struct Volume(tempfile::TempDir);

fn run(program: &str, args: &[&std::ffi::OsStr]) -> Result<(), String> {
    let done = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    match done.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&done.stderr).trim())),
    }
}

impl Volume {
    fn root(&self) -> PathBuf {
        self.0.path().canonicalize().expect("a path").join("root")
    }
}

impl Factory for Btrfs {
    fn name(&self) -> &'static str {
        "btrfs"
    }

    fn make(&self) -> Result<Box<dyn Made>, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("needs root for a loop device".into());
        }
        let temp = tempfile::tempdir().map_err(|e| e.to_string())?;
        let image = temp.path().join("image");
        std::fs::File::create(&image)
            .and_then(|image| image.set_len(512 << 20))
            .map_err(|e| e.to_string())?;
        std::fs::create_dir(temp.path().join("root")).map_err(|e| e.to_string())?;
        if Command::new("mkfs.btrfs").arg("--version").output().is_err() {
            return Err("the program mkfs.btrfs is not installed".into());
        }
        run("mkfs.btrfs", &["-q".as_ref(), image.as_os_str()])?;
        let volume = Volume(temp);
        // mount's loop device goes away with the mount.
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), volume.root().as_os_str()])?;
        match self.subvolume {
            true => run("btrfs", &["subvolume".as_ref(), "create".as_ref(), volume.data_dir().as_os_str()])?,
            false => std::fs::create_dir(volume.data_dir()).map_err(|e| e.to_string())?,
        }
        Ok(Box::new(volume))
    }
}

impl Made for Volume {
    fn data_dir(&self) -> PathBuf {
        self.root().join("data")
    }

    fn choice(&self) -> Choice {
        Choice::Btrfs
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = store::eject(&self.data_dir(), None, &Silent);
        let _ = run("umount", &[self.root().as_os_str()]);
    }
}

mod of_a_subvolume {
    crate::all_of_the_suite!(super::Btrfs { subvolume: true });
}

mod of_a_plain_directory {
    crate::all_of_the_suite!(super::Btrfs { subvolume: false });
}
