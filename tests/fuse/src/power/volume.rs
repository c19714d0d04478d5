//! A file system on a [`Disk`], through a loop device, and a tmfs mount on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use super::disk::{Disk, Remains};
use super::image::Image;
use super::serve::{NAME, Server};
use crate::mount::{Mount, Work};
use crate::program;
use crate::rng::Rng;

/// The file system below tmfs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Below {
    Ext4,
    Xfs,
    /// The data dir is a subvolume.
    Btrfs,
}

impl Below {
    fn name(self) -> &'static str {
        match self {
            Below::Ext4 => "ext4",
            Below::Xfs => "xfs",
            Below::Btrfs => "btrfs",
        }
    }

    /// How it is mounted.
    fn options(self) -> &'static str {
        match self {
            Below::Ext4 | Below::Btrfs => "loop",
            // The copies of one disk have the same name.
            Below::Xfs => "loop,nouuid",
        }
    }

    /// The program that makes one.
    pub fn maker(self) -> String {
        format!("mkfs.{}", self.name())
    }

    /// A disk with an empty file system.
    pub fn fresh(self) -> Image {
        let work = Work::new();
        let file = work.path().join("image");
        // mkfs.xfs takes no less than 300 MiB.
        let size = 512 << 20;
        fs::File::create(&file).and_then(|file| file.set_len(size)).expect("a sparse file");
        let make = program::in_path(&self.maker()).expect("the caller has looked");
        let options: &[&str] = match self {
            Below::Ext4 => &["-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
            // With sectors of 512 bytes, which is what the disk writes at once. Told of larger ones, XFS may drop the last
            // whole record of its log when the record after it is torn within one.
            Below::Xfs => &["-q", "-K", "-s", "size=512"],
            Below::Btrfs => &["-q", "-K"],
        };
        program::run(Command::new(make).args(options).arg(&file)).ok();
        Image::load(&file).expect("the image is read")
    }
}

/// A mounted file system on a disk of its own.
struct Volume {
    work: Work,
    disk: Arc<Disk>,
    server: Option<Server>,
}

impl Volume {
    /// Attaches a disk that holds `image`, and mounts the file system on it, which recovers if it has to.
    fn mount(below: Below, image: Image) -> Volume {
        let work = Work::new();
        let disk = Arc::new(match below {
            Below::Ext4 => Disk::new(image),
            // A page of its metadata that is torn within can keep it from being mounted again, whoever writes to it.
            Below::Xfs | Below::Btrfs => Disk::of_pages(image),
        });
        for dir in [served(&work), root(&work)] {
            fs::create_dir(dir).expect("a mount point");
        }
        let server = Server::mount(disk.clone(), &served(&work)).expect("the disk is served");
        let volume = Volume { work, disk, server: Some(server) };
        // mount's loop device goes away with the mount.
        program::run(
            Command::new("mount")
                .args(["-t", below.name(), "-o", below.options()])
                .arg(served(&volume.work).join(NAME))
                .arg(root(&volume.work)),
        )
        .ok();
        volume
    }

    fn root(&self) -> PathBuf {
        root(&self.work)
    }
}

fn served(work: &Work) -> PathBuf {
    work.path().join("served")
}

fn root(work: &Work) -> PathBuf {
    work.path().join("root")
}

/// Unmounts as soon as nobody uses it any more; says so when that does not come.
fn unmount(dir: &Path) {
    let mut last = None;
    for _ in 0..200 {
        let outcome = program::run(Command::new("umount").arg(dir));
        if outcome.status.success() || outcome.stderr.contains("not mounted") {
            return;
        }
        last = Some(outcome);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    eprintln!("{}: detached, since {}", dir.display(), last.expect("it was tried"));
    let _ = Command::new("umount").arg("-l").arg(dir).status();
}

impl Drop for Volume {
    fn drop(&mut self) {
        unmount(&self.root());
        unmount(&served(&self.work));
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

/// A machine with one disk: a file system, and a tmfs mount on it.
pub struct Machine {
    // Dropped in this order.
    mount: Mount,
    volume: Volume,
}

impl Machine {
    /// Starts with what a disk holds; an empty disk gets a data dir that `fill` fills. tmfs is not mounted yet.
    pub fn start(below: Below, image: Image, fill: impl FnOnce(&Path)) -> Machine {
        let volume = Volume::mount(below, image);
        let dir = volume.root().join("data");
        if !dir.exists() {
            match below {
                Below::Btrfs => {
                    program::run(Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(&dir)).ok();
                }
                Below::Ext4 | Below::Xfs => fs::create_dir(&dir).expect("the data dir"),
            }
            fill(&dir);
            let root = fs::File::open(volume.root()).expect("the mount point");
            nix::unistd::syncfs(&root).expect("what was filled in is on the disk");
        }
        Machine { mount: Mount::over(Work::new(), dir), volume }
    }

    /// Starts, and mounts tmfs.
    pub fn mounted(below: Below, image: Image) -> Machine {
        let machine = Machine::start(below, image, |_| {});
        machine.mount.mount();
        machine
    }

    /// The tmfs mount.
    pub fn mount(&self) -> &Mount {
        &self.mount
    }

    /// Its disk.
    pub fn disk(&self) -> &Disk {
        &self.volume.disk
    }

    /// What a power cut at this moment leaves. The machine itself runs on.
    pub fn cut(&self, rng: &mut Rng) -> Remains {
        self.volume.disk.cut(rng)
    }
}
