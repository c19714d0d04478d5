//! The tmfs program over a directory, used as anybody uses it: by its command line and its client.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use snapstore::control::client::Client;

use super::beside;
use crate::process;
use crate::work::{Place, mounts_below};

/// A data dir with its store, mounted or not.
pub struct Tmfs {
    program: PathBuf,
    dir: PathBuf,
    store: PathBuf,
    backend: &'static str,
    place: Place,
}

impl Tmfs {
    /// An empty data dir, not yet mounted.
    pub fn new(place: Place, program: &Path) -> anyhow::Result<Tmfs> {
        let (dir, store) = (beside(&place, "data"), beside(&place, "store"));
        fs::create_dir(&dir)?;
        Ok(Tmfs { program: program.to_owned(), dir, store, backend: "chunk", place })
    }

    /// The same in a subvolume of its own, with the backend btrfs, in a place that lies on Btrfs.
    pub fn on_btrfs(place: Place, program: &Path) -> anyhow::Result<Tmfs> {
        let (dir, store) = (beside(&place, "data"), beside(&place, "store"));
        process::run(Command::new("btrfs").args(["subvolume", "create"]).arg(&dir))?;
        Ok(Tmfs { program: program.to_owned(), dir, store, backend: "btrfs", place })
    }

    /// The data dir.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory that holds all of it.
    pub fn ground(&self) -> &Path {
        self.place.path()
    }

    /// `tmfs mount`; the first time it adopts what is there. Gives back how long the command took.
    pub fn mount(&self) -> anyhow::Result<Duration> {
        let mut command = self.command(&["mount"]);
        command.arg(&self.dir).arg("--store").arg(&self.store).args(["--backend", self.backend]);
        Ok(process::run(&mut command)?.1)
    }

    /// `tmfs unmount`. Gives back how long the command took.
    pub fn unmount(&self) -> anyhow::Result<Duration> {
        Ok(process::run(self.command(&["unmount"]).arg(&self.dir))?.1)
    }

    /// `tmfs eject`: back to a plain directory. Gives back how long the command took.
    pub fn eject(&self) -> anyhow::Result<Duration> {
        Ok(process::run(self.command(&["eject", "--yes"]).arg(&self.dir))?.1)
    }

    /// `tmfs -p DIR ARGS`. Gives back what it printed and how long it took.
    pub fn verb<S: AsRef<OsStr>>(&self, args: &[S]) -> anyhow::Result<(String, Duration)> {
        let mut command = self.command(&["-p"]);
        process::run(command.arg(&self.dir).args(args))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).env_remove("TMFS_PATH");
        command
    }

    /// A client of the mounted data dir.
    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.dir)?)
    }
}

impl Drop for Tmfs {
    fn drop(&mut self) {
        if !mounts_below(&self.dir).contains(&self.dir) {
            return;
        }
        if let Err(error) = self.unmount() {
            eprintln!("bench: {error}; detaching");
            let _ = umount2(&self.dir, MntFlags::MNT_DETACH);
        }
    }
}
