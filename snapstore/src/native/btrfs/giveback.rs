//! Giving a data dir back: the live head becomes the data dir again, all other subvolumes of the store go.
//!
//! Where the data dir and the marker can change places, the head itself is what is given back: a subvolume, in one step,
//! whatever the data dir once was. Into a mount point, in whose root directory nothing but entries can be put, the
//! entries of a clone of the head are moved ([`super::clone`]; content is shared, not copied).
//!
//! | in the store | means |
//! |---|---|
//! | `heads/<live>` is a subvolume (by exchange) | nothing is given back yet |
//! | `heads/<live>` is none | they have changed places |
//! | no `ejecting/`, no `given` (into a mount point) | nothing is given back yet |
//! | `ejecting/` | a complete and durable clone, whose entries are being moved |
//! | `given` | all of them are moved, durably |
//!
//! Whether the marker is in the data dir decides nothing: somebody may have removed it, and no head is removed before
//! there is proof that it was given back.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, fsync, syncfs, unlinkat};

use super::clone::{self, Clone};
use super::engine::{HEADS, SNAPSHOTS, name_of};
use super::takeover::{LINKS, commit, is_marker};
use super::{place, subvolume};
use crate::chunk::adopt::journal::{Way, replace_file};
use crate::chunk::adopt::place::Place;
use crate::chunk::adopt::walk::{self, exists, names_in, remove_tree, rename_new};
use crate::chunk::adopt::{marker, stop, strays, take};
use crate::error::{Error, Result};
use crate::native::engine::HeadId;
use crate::native::site::Site;
use crate::progress::Progress;
use crate::sys::stat_at;

/// The clone whose entries are given back.
const TREE: &str = "ejecting";
/// The same before it is complete.
const FRESH: &str = "ejecting.new";
/// Says that all entries are in the data dir.
const GIVEN: &str = "given";

fn refuse(path: &Path, reason: impl Into<String>) -> Error {
    Error::CannotEject { path: path.into(), reason: reason.into() }
}

struct Giving<'a> {
    site: &'a Site,
    place: Place,
    live: HeadId,
}

/// Refuses what could not be given back.
pub(super) fn check(site: &Site, live: HeadId) -> Result<()> {
    let giving = Giving { site, place: place::of(&site.data_dir, Some(&site.store))?, live };
    let kept = site.path(strays::STRAYS);
    if kept.exists() {
        return Err(refuse(
            &kept,
            "holds files that turned up in the data dir while it was adopted; move them elsewhere first",
        ));
    }
    let place = &giving.place;
    for name in names_in(place.data.as_fd()).map_err(Error::io("list", &place.data_dir))? {
        if !take::stays(place, &name).map_err(Error::io("stat", place.data_dir.join(&name)))? {
            return Err(refuse(
                &place.data_dir.join(&name),
                "lies in the unmounted data dir, where it does not belong; move it elsewhere first",
            ));
        }
    }
    let heads = giving.dir(HEADS)?;
    for number in subvolume::numbers(heads.as_fd()).map_err(Error::io("list", site.path(HEADS)))? {
        // The head that is given back as it is may hold what it likes.
        if number == live.0 && place.way == Way::Swap {
            continue;
        }
        let path = site.path(HEADS).join(name_of(number));
        let nested = subvolume::open(heads.as_fd(), &name_of(number)).and_then(|head| match head {
            Some(head) => subvolume::nested(head.as_fd()),
            None => Ok(Vec::new()),
        });
        if let Some(inner) = nested.map_err(Error::io("look into", &path))?.first() {
            return Err(refuse(
                &path.join(inner),
                "is a subvolume that tmfs has not made, in a head that would be removed; move it elsewhere first",
            ));
        }
    }
    if place.way == Way::Entries {
        let head = giving.head()?;
        for name in [OsStr::new(marker::NAME), place.store.file_name().unwrap_or_default()] {
            if exists(head.as_fd(), name).map_err(Error::io("stat", &place.data_dir))? {
                return Err(refuse(
                    &place.data_dir.join(name),
                    "has a name that tmfs needs itself while it ejects; mount, rename it, and eject then",
                ));
            }
        }
    }
    Ok(())
}

/// Gives the head back, and removes all other subvolumes. Can be done again from any point.
pub(super) fn give_back(site: &Site, live: HeadId, progress: &dyn Progress) -> Result<()> {
    let giving = Giving { site, place: place::of(&site.data_dir, Some(&site.store))?, live };
    match giving.place.way {
        Way::Swap => giving.swap()?,
        Way::Entries => giving.entries(progress)?,
    }
    stop::here();
    giving.clear(progress)
}

impl Giving<'_> {
    fn dir(&self, name: &str) -> Result<OwnedFd> {
        take::open_below(self.site.dir(), name).map_err(Error::io("open", self.site.path(name)))
    }

    fn head_path(&self) -> PathBuf {
        self.site.path(HEADS).join(name_of(self.live.0))
    }

    fn head(&self) -> Result<OwnedFd> {
        let heads = self.dir(HEADS)?;
        let head = subvolume::open(heads.as_fd(), &name_of(self.live.0));
        match head.map_err(Error::io("open", self.head_path()))? {
            Some(head) => Ok(head),
            None => Err(Error::io("open", self.head_path())(io::ErrorKind::NotFound.into())),
        }
    }

    /// Whether the live head is still in the store.
    fn has_head(&self) -> Result<bool> {
        let heads = match take::open_below(self.site.dir(), HEADS) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            heads => heads.map_err(Error::io("open", self.site.path(HEADS)))?,
        };
        let head = subvolume::open(heads.as_fd(), &name_of(self.live.0));
        Ok(head.map_err(Error::io("open", self.head_path()))?.is_some())
    }

    fn swap(&self) -> Result<()> {
        let io = |op: &'static str| Error::io(op, &self.place.data_dir);
        if !self.has_head()? {
            return Ok(());
        }
        // What lies in the data dir's place is thrown away.
        let marked = is_marker(self.place.data.as_fd()).map_err(io("read the marker in"))?;
        let names = names_in(self.place.data.as_fd()).map_err(io("list"))?;
        if !marked && !names.is_empty() {
            return Err(refuse(
                &self.place.data_dir,
                "is not what tmfs has left in its place; move what is there elsewhere, and leave an empty directory",
            ));
        }
        let head = self.head()?;
        syncfs(&head).map_err(|e| Error::io("sync", self.head_path())(e.into()))?;
        drop(head);
        let heads = self.dir(HEADS)?;
        let (parent, name) = (self.place.parent.as_fd(), self.place.name.as_os_str());
        let exchanged = || -> io::Result<bool> {
            marker::open(self.place.data.as_fd())?;
            stop::here();
            walk::exchange((parent, name), (heads.as_fd(), &name_of(self.live.0)))
        };
        match exchanged() {
            Ok(true) => {}
            Ok(false) => {
                return Err(refuse(
                    &self.place.data_dir,
                    "this kernel cannot exchange two directories on Btrfs",
                ));
            }
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                let reason =
                    "does not lie in the same subvolume as its store; move the store beside it first";
                return Err(refuse(&self.place.data_dir, reason));
            }
            Err(e) => return Err(io("give back")(e)),
        }
        stop::here();
        commit(self.site)
    }

    fn entries(&self, progress: &dyn Progress) -> Result<()> {
        let io = |op: &'static str| Error::io(op, &self.place.data_dir);
        let (store, dir) = (self.site.dir(), self.place.data.as_fd());
        let there = |name: &str| exists(store, name).map_err(io("look at the store of"));
        if !there(TREE)? {
            if there(GIVEN)? {
                return Ok(());
            }
            self.build(progress)?;
        }
        stop::here();
        self.move_all()?;
        let end = || -> io::Result<()> {
            let here = OsStr::new("");
            let tree = take::open_below(store, TREE)?;
            clone::attributes((tree.as_fd(), here), (dir, here))?;
            fsync(dir)?;
            replace_file(store, GIVEN, b"", 0o600)?;
            stop::here();
            match unlinkat(dir, marker::NAME, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(nix::Error::ENOENT) => {}
                Err(e) => return Err(e.into()),
            }
            let stat = stat_at(tree.as_fd(), here)?;
            walk::set_times(dir, OsStr::new("."), (stat.atime, stat.mtime))?;
            fsync(dir)?;
            stop::here();
            Ok(unlinkat(store, TREE, UnlinkatFlags::RemoveDir)?)
        };
        end().map_err(io("give back"))?;
        stop::here();
        commit(self.site)
    }

    /// Makes `ejecting/`, durably.
    fn build(&self, progress: &dyn Progress) -> Result<()> {
        let io = |op: &'static str| Error::io(op, &self.place.store);
        let store = self.site.dir();
        let head = self.head()?;
        remove_tree(store, OsStr::new(FRESH)).map_err(io("clear"))?;
        mkdirat(store, FRESH, Mode::from_bits_truncate(0o700)).map_err(|e| io("write in")(e.into()))?;
        stop::here();
        progress.step("sharing files with the directory", None);
        let fresh = self.dir(FRESH)?;
        let (from, to) = (head.as_fd(), fresh.as_fd());
        Clone { from, path: &self.place.data_dir, to, links: (store, OsStr::new(LINKS)) }.run(progress)?;
        stop::here();
        progress.step("making the data durable", None);
        syncfs(&fresh).map_err(|e| io("sync")(e.into()))?;
        rename_new((store, OsStr::new(FRESH)), (store, OsStr::new(TREE))).map_err(io("write in"))?;
        commit(self.site)
    }

    fn move_all(&self) -> Result<()> {
        let dir = self.place.data.as_fd();
        let io = |name: &OsStr| Error::io("give back", self.place.data_dir.join(name));
        marker::open(dir).map_err(io(OsStr::new("")))?;
        let tree = self.dir(TREE)?;
        let attributes = stat_at(tree.as_fd(), OsStr::new("")).map_err(io(OsStr::new("")))?;
        for name in names_in(tree.as_fd()).map_err(io(OsStr::new("")))? {
            match rename_new((tree.as_fd(), &name), (dir, &name)) {
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                    return Err(refuse(
                        &self.place.data_dir.join(&name),
                        "was written while the data dir was being given back; move it elsewhere, and eject again",
                    ));
                }
                moved => moved.map_err(io(&name))?,
            }
            stop::here();
        }
        // The directory's own times are those of the data dir.
        let times = (attributes.atime, attributes.mtime);
        walk::set_times(tree.as_fd(), OsStr::new("."), times).map_err(io(OsStr::new("")))
    }

    /// Removes what is left of the engine's. The data dir is given back, and durable.
    fn clear(&self, progress: &dyn Progress) -> Result<()> {
        progress.step("removing snapshots", None);
        for name in [SNAPSHOTS, HEADS] {
            let path = self.site.path(name);
            let dir = match take::open_below(self.site.dir(), name) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                dir => dir.map_err(Error::io("open", &path))?,
            };
            let numbers = subvolume::numbers(dir.as_fd()).map_err(Error::io("list", &path))?;
            for number in numbers {
                let one = name_of(number);
                if name == HEADS && number == self.live.0 && self.place.way == Way::Swap {
                    return Err(refuse(&self.head_path(), "was not given back, and is not removed"));
                }
                subvolume::destroy(dir.as_fd(), &one).map_err(Error::io("delete", path.join(one)))?;
                stop::here();
            }
            // The marker, if it has changed places with the head.
            if name == HEADS {
                let one = name_of(self.live.0);
                remove_tree(dir.as_fd(), &one).map_err(Error::io("delete", path.join(one)))?;
            }
            match unlinkat(self.site.dir(), name, UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(nix::Error::ENOENT) => {}
                Err(e) => return Err(Error::io("remove", &path)(e.into())),
            }
            stop::here();
        }
        for name in [FRESH, GIVEN] {
            remove_tree(self.site.dir(), OsStr::new(name)).map_err(Error::io("clear", &self.place.store))?;
        }
        commit(self.site)
    }
}
