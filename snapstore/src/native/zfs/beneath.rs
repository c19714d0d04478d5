//! The directory beneath a mount: what a program finds at the data dir when nothing is mounted there.
//!
//! The marker has to lie there before the dataset goes, or there would be a moment, and after a crash a long one, in which
//! the data dir looks like an empty directory. A copy of the mount of the directory above, without what is mounted in it,
//! shows it (`open_tree`). It is nobody's but this process's, and goes with its descriptor.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::chunk::adopt::{marker, walk};
use crate::error::{Error, Result};

/// What the directory's mode is when it is plain again.
const PLAIN: Mode = Mode::from_bits_truncate(0o755);

/// A directory, without what is mounted on it.
pub(crate) struct Beneath {
    dir: OwnedFd,
    path: PathBuf,
}

impl Beneath {
    /// The directory at this path. It is made if it is not there: `zfs` removes mount points that it made.
    pub(crate) fn open(data_dir: &Path) -> Result<Beneath> {
        let (Some(above), Some(name)) = (data_dir.parent(), data_dir.file_name()) else {
            return Err(crate::chunk::adopt::refuse(data_dir, "the root directory cannot be a data dir"));
        };
        let uncovered =
            crate::sys::tree_without_mounts(above).map_err(Error::io("look beneath", data_dir))?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let open = || openat(&uncovered, name, flags, Mode::empty());
        let dir = match open() {
            Err(nix::Error::ENOENT) => mkdirat(&uncovered, name, PLAIN).and_then(|()| open()),
            other => other,
        };
        let dir = dir.map_err(|error| Error::Io {
            op: "open beneath",
            path: data_dir.into(),
            source: error.into(),
        })?;
        Ok(Beneath { dir, path: data_dir.into() })
    }

    fn io(&self, op: &'static str) -> impl FnOnce(io::Error) -> Error {
        Error::io(op, self.path.clone())
    }

    /// A name in it that is not the marker's.
    pub(crate) fn stranger(&self) -> Result<Option<OsString>> {
        let names = walk::names_in(self.dir.as_fd()).map_err(self.io("list"))?;
        Ok(names.into_iter().find(|name| name != marker::NAME && *name != *format!("{}.new", marker::NAME)))
    }

    /// Makes it one that no program takes for an empty directory.
    pub(crate) fn mark(&self, data_dir: &Path, store: &Path) -> Result<()> {
        marker::open(self.dir.as_fd()).map_err(self.io("open"))?;
        marker::write(self.dir.as_fd(), data_dir, store).map_err(self.io("write the marker in"))?;
        marker::close(self.dir.as_fd()).map_err(self.io("close"))
    }

    /// Makes it plain and empty again, if it was marked.
    pub(crate) fn unmark(&self) -> Result<()> {
        let marked = marker::read(self.dir.as_fd()).map_err(self.io("read the marker in"))?.is_some();
        marker::open(self.dir.as_fd()).map_err(self.io("open"))?;
        for name in [marker::NAME.to_owned(), format!("{}.new", marker::NAME)] {
            match unlinkat(&self.dir, name.as_str(), UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(nix::Error::ENOENT) => {}
                Err(error) => return Err(self.io("remove the marker in")(error.into())),
            }
        }
        if marked {
            fchmod(&self.dir, PLAIN).map_err(|error| self.io("change the mode of")(error.into()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_is_mounted_on_a_directory_does_not_hide_it() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP: needs root");
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().canonicalize().unwrap().join("a b");
        std::fs::create_dir(&dir).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&dir).status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("SKIP: cannot mount");
            return;
        }
        std::fs::write(dir.join("above"), "x").unwrap();
        let result = std::panic::catch_unwind(|| {
            let beneath = Beneath::open(&dir).unwrap();
            assert_eq!(beneath.stranger().unwrap(), None);
            beneath.mark(&dir, Path::new("/st")).unwrap();
            beneath.mark(&dir, Path::new("/st")).unwrap();
            assert!(!dir.join(marker::NAME).exists(), "covered");
            assert_eq!(beneath.stranger().unwrap(), None);
        });
        assert!(Command::new("umount").arg(&dir).status().unwrap().success());
        result.unwrap();
        assert!(dir.join(marker::NAME).exists());
        assert!(!dir.join("above").exists());
        Beneath::open(&dir).unwrap().unmark().unwrap();
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        std::fs::write(dir.join("stranger"), "x").unwrap();
        assert_eq!(Beneath::open(&dir).unwrap().stranger().unwrap().unwrap(), "stranger");
    }
}
