//! Taking a directory over: it becomes the subvolume `heads/1` of the store, and no data is copied.
//!
//! | the data dir is | it becomes a head by |
//! |---|---|
//! | a subvolume | renaming it |
//! | a plain directory | a new subvolume, whose files share their content with the originals ([`super::clone`]) |
//! | a mount point of a subvolume | a snapshot of that subvolume, in which its entries are moved to the root |
//! | a mount point of a plain directory | as a plain directory |
//!
//! What cannot be renamed (a mount point) keeps its store inside, and its entries are moved; else the data dir and the
//! marker change places in one step. Either way the originals are first put where no program finds them, and stay there
//! whole until the head is complete and durable:
//!
//! | in the store | means |
//! |---|---|
//! | no `root` (what the data dir itself was like), no `heads/1` | nothing has happened yet |
//! | `marker/` with the marker file | nothing has happened yet |
//! | `marker/` without it, or `adopting/` | taken (or, entry by entry, being taken): it holds the data |
//! | `adopting/` with the marker file | it was put back |
//! | `building` | a head that is not complete: thrown away |
//! | `heads/1` | complete; what is left of the originals goes |
//!
//! If the head cannot be made (the disk is full), everything is put back before the error is told.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{UnlinkatFlags, fsync, syncfs, unlinkat};

use super::clone::{self, Clone};
use super::engine::{HEADS, SNAPSHOTS, name_of};
use super::{giveback, place, subvolume, sys};
use crate::backend::BackendKind;
use crate::chunk::adopt::journal::{RootAttrs, Way, read_file, replace_file};
use crate::chunk::adopt::place::Place;
use crate::chunk::adopt::take::{self, MARKER, TREE, move_entries};
use crate::chunk::adopt::walk::{self, exists, names_in, remove_tree, rename_new, set_times};
use crate::chunk::adopt::{marker, refuse, stop};
use crate::error::{Error, Result};
use crate::native::engine::HeadId;
use crate::native::site::Site;
use crate::native::takeover::{FIRST_HEAD, Takeover};
use crate::progress::Progress;
use crate::sys::{set_immutable, stat_at};

/// A head that is not complete.
pub(super) const BUILDING: &str = "building";
/// What the data dir itself was like.
const ROOT: &str = "root";
/// Hard links, while a tree is cloned.
pub(super) const LINKS: &str = ".tmfs-links";
const HERE: &str = "";

/// Takes directories over for the btrfs backend, and gives them back.
pub struct BtrfsTakeover;

impl Takeover for BtrfsTakeover {
    fn kind(&self) -> BackendKind {
        BackendKind::Btrfs
    }

    fn usual_store(&self, data_dir: &Path) -> Result<PathBuf> {
        Ok(place::of(data_dir, None)?.store)
    }

    fn check(&self, data_dir: &Path, store: &Path) -> Result<()> {
        place::check(&place::of(data_dir, Some(store))?)
    }

    fn prepare(&self, site: &Site, _progress: &dyn Progress) -> Result<()> {
        let place = place::of(&site.data_dir, Some(&site.store))?;
        let io = |op: &'static str| Error::io(op, &site.store);
        for name in [HEADS, SNAPSHOTS] {
            nix::sys::stat::mkdirat(site.dir(), name, Mode::from_bits_truncate(0o700))
                .map_err(|e| io("make a directory in")(e.into()))?;
        }
        stop::here();
        if place.way == Way::Swap {
            take::prepare_marker(&place, site.dir())?;
        }
        stop::here();
        // Last: it says that the marker is complete.
        let stat = &place.stat;
        let root = RootAttrs {
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            atime: (stat.atime.secs, stat.atime.nanos),
            mtime: (stat.mtime.secs, stat.mtime.nanos),
            closed: Vec::new(),
        };
        let text = serde_json::to_vec(&root).expect("no map and no float in it");
        replace_file(site.dir(), ROOT, &text, 0o600).map_err(io("write in"))?;
        commit(site)
    }

    fn take(&self, site: &Site, progress: &dyn Progress) -> Result<()> {
        let place = place::of(&site.data_dir, Some(&site.store))?;
        let taking = Taking { site, place: &place };
        if !taking.has_head()? {
            taking.hide()?;
            stop::here();
            if let Err(cause) = taking.build(progress) {
                return Err(taking.put_back(cause));
            }
        }
        stop::here();
        taking.clear(progress)
    }

    fn is_taken(&self, site: &Site) -> Result<bool> {
        let place = place::of(&site.data_dir, Some(&site.store))?;
        Taking { site, place: &place }.is_taken()
    }

    fn discard(&self, site: &Site) -> Result<()> {
        let io = |op: &'static str| Error::io(op, &site.store);
        assert!(!self.is_taken(site)?, "a store with data in it is never thrown away");
        let cleared = || -> io::Result<()> {
            drop_building(site.dir())?;
            for name in [TREE, MARKER] {
                if exists(site.dir(), name)? {
                    set_immutable(take::open_below(site.dir(), name)?.as_fd(), false)?;
                    remove_tree(site.dir(), OsStr::new(name))?;
                }
            }
            for name in [HEADS, SNAPSHOTS] {
                match unlinkat(site.dir(), name, UnlinkatFlags::RemoveDir) {
                    Ok(()) | Err(nix::Error::ENOENT) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            for name in [ROOT, "root.new"] {
                remove_tree(site.dir(), OsStr::new(name))?;
            }
            Ok(())
        };
        cleared().map_err(io("clear"))
    }

    fn check_give_back(&self, site: &Site, live: HeadId) -> Result<()> {
        giveback::check(site, live)
    }

    fn give_back(&self, site: &Site, live: HeadId, progress: &dyn Progress) -> Result<()> {
        giveback::give_back(site, live, progress)
    }
}

/// Whether this directory is what lies in the place of a data dir that is not mounted.
pub(super) fn is_marker(dir: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(marker::read(dir)?.is_some())
}

/// Throws away a head that is not complete. As a snapshot of a marked data dir it may be immutable, as that one is.
fn drop_building(store: BorrowedFd<'_>) -> io::Result<()> {
    let name = OsStr::new(BUILDING);
    if let Some(building) = subvolume::open(store, name)? {
        set_immutable(building.as_fd(), false)?;
    }
    subvolume::destroy(store, name)
}

/// Makes everything that was done in the store durable.
pub(super) fn commit(site: &Site) -> Result<()> {
    sys::commit(site.dir()).map_err(Error::io("sync", &site.store))
}

struct Taking<'a> {
    site: &'a Site,
    place: &'a Place,
}

impl Taking<'_> {
    fn io(&self, op: &'static str) -> impl FnOnce(io::Error) -> Error {
        Error::io(op, &self.place.data_dir)
    }

    fn store(&self) -> BorrowedFd<'_> {
        self.site.dir()
    }

    fn heads(&self) -> Result<OwnedFd> {
        take::open_below(self.store(), HEADS).map_err(Error::io("open", self.site.path(HEADS)))
    }

    fn has_head(&self) -> Result<bool> {
        let heads = match take::open_below(self.store(), HEADS) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            heads => heads.map_err(Error::io("open", self.site.path(HEADS)))?,
        };
        let head = subvolume::open(heads.as_fd(), &name_of(FIRST_HEAD.0));
        Ok(head.map_err(Error::io("open", self.site.path(HEADS)))?.is_some())
    }

    fn is_taken(&self) -> Result<bool> {
        if self.has_head()? {
            return Ok(true);
        }
        let looked = || -> io::Result<bool> {
            if !exists(self.store(), ROOT)? {
                return Ok(false);
            }
            for name in [TREE, MARKER] {
                match take::open_below(self.store(), name) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    // Entry by entry, it may still be empty.
                    dir => return Ok(!is_marker(dir?.as_fd())?),
                }
            }
            Ok(self.place.way == Way::Entries
                && marker::read(self.place.data.as_fd())?.as_ref() == Some(&self.place.store))
        };
        looked().map_err(self.io("look at"))
    }

    /// Puts the data where no program finds it: `adopting/`.
    fn hide(&self) -> Result<()> {
        let place = self.place;
        if !self.is_taken()? {
            // The checks may be long ago: whoever began to write meanwhile would go on writing beside the mount.
            if let Some(open) = crate::procs::open_files(&place.data_dir, true).first() {
                let reason =
                    format!("is open for writing in process {} ({}); stop it first", open.pid, open.process);
                return Err(refuse(&open.path, reason));
            }
            match place.way {
                Way::Swap => self.exchange()?,
                Way::Entries => take::mark_entries(place).map_err(self.io("write the marker in"))?,
            }
        }
        stop::here();
        match place.way {
            Way::Swap => take::after_exchange(place.parent.as_fd(), &place.name, self.store())
                .map_err(self.io("complete the exchange of"))?,
            Way::Entries => move_entries(place, self.store(), |_| Ok(true))?,
        }
        commit(self.site)
    }

    fn exchange(&self) -> Result<()> {
        let (parent, name) = (self.place.parent.as_fd(), self.place.name.as_os_str());
        let exchanged = || -> io::Result<()> {
            if stat_at(parent, name)?.id != self.place.stat.id {
                return Err(io::Error::other("the directory was replaced by another meanwhile"));
            }
            match walk::exchange((parent, name), (self.store(), OsStr::new(MARKER)))? {
                true => Ok(()),
                false => Err(io::Error::other("this kernel cannot exchange two directories on Btrfs")),
            }
        };
        exchanged()
            .map_err(|e| refuse(&self.place.data_dir, format!("cannot be renamed into the store: {e}")))
    }

    /// Makes the head from `adopting/`.
    fn build(&self, progress: &dyn Progress) -> Result<()> {
        let (store, io) = (self.store(), || self.io("make a head of"));
        let (heads, first) = (self.heads()?, name_of(FIRST_HEAD.0));
        let tree = take::open_below(store, TREE).map_err(io())?;
        if self.place.way == Way::Swap && subvolume::is_root(tree.as_fd()).map_err(io())? {
            drop(tree);
            rename_new((store, OsStr::new(TREE)), (heads.as_fd(), &first)).map_err(io())?;
            return commit(self.site);
        }
        drop_building(store).map_err(io())?;
        stop::here();
        let whole = self.place.way == Way::Entries
            && subvolume::is_root(self.place.data.as_fd()).map_err(io())?
            && self.place.store.parent() == Some(&self.place.data_dir);
        if whole {
            self.snapshot().map_err(io())?;
        } else {
            self.clone(&tree, progress)?;
        }
        stop::here();
        progress.step("making the data durable", None);
        let building = take::open_below(store, BUILDING).map_err(io())?;
        syncfs(&building).map_err(|e| io()(e.into()))?;
        drop(building);
        stop::here();
        rename_new((store, OsStr::new(BUILDING)), (heads.as_fd(), &first)).map_err(io())?;
        commit(self.site)
    }

    fn clone(&self, tree: &OwnedFd, progress: &dyn Progress) -> Result<()> {
        progress.step("sharing files with the new subvolume", None);
        sys::create(self.store(), OsStr::new(BUILDING)).map_err(self.io("make a subvolume for"))?;
        stop::here();
        let building = take::open_below(self.store(), BUILDING).map_err(self.io("make a subvolume for"))?;
        let links = (building.as_fd(), OsStr::new(LINKS));
        let path = &self.place.data_dir;
        Clone { from: tree.as_fd(), path, to: building.as_fd(), links }.run(progress)?;
        if self.place.way == Way::Entries {
            // The directory that its entries were moved to is not what they were in.
            let here = OsStr::new(HERE);
            clone::attributes((self.place.data.as_fd(), here), (building.as_fd(), here))
                .and_then(|()| self.root_attributes(building.as_fd()))
                .map_err(self.io("take over"))?;
        }
        Ok(())
    }

    /// A snapshot of the data dir has all, but not at its place.
    fn snapshot(&self) -> io::Result<()> {
        let store_name = self.place.store.file_name().unwrap_or_default();
        stop::link_error().map_or(Ok(()), Err)?;
        sys::snapshot(self.place.data.as_fd(), self.store(), OsStr::new(BUILDING), false)?;
        stop::here();
        let building = take::open_below(self.store(), BUILDING)?;
        let root = building.as_fd();
        marker::open(root)?;
        let inner = take::open_below(root, store_name)?;
        for name in names_in(inner.as_fd())? {
            if name != TREE {
                remove_tree(inner.as_fd(), &name)?;
            }
        }
        remove_tree(root, OsStr::new(marker::NAME))?;
        // The store's own name is free for an entry only when it is gone.
        let tree = take::open_below(inner.as_fd(), TREE)?;
        for name in names_in(tree.as_fd())? {
            rename_new((tree.as_fd(), &name), (root, &name))?;
        }
        unlinkat(&inner, TREE, UnlinkatFlags::RemoveDir)?;
        unlinkat(root, store_name, UnlinkatFlags::RemoveDir)?;
        self.root_attributes(root)
    }

    /// Gives a directory the mode and the times that the data dir had.
    fn root_attributes(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
        if let Some(text) = read_file(self.store(), ROOT)? {
            let root: RootAttrs = serde_json::from_slice(&text)?;
            fchmod(dir, Mode::from_bits_truncate(root.mode))?;
            set_times(dir, OsStr::new("."), root.times())?;
        }
        Ok(())
    }

    /// Removes the originals; the head is complete and durable.
    fn clear(&self, progress: &dyn Progress) -> Result<()> {
        let store = self.store();
        progress.step("removing the original names", None);
        let cleared = || -> io::Result<()> {
            for name in [TREE, ROOT] {
                remove_tree(store, OsStr::new(name))?;
                stop::here();
            }
            drop_building(store)
        };
        cleared().map_err(self.io("remove the original names of"))?;
        commit(self.site)
    }

    /// Undoes what failed with this error. Returns what there is to say.
    fn put_back(&self, cause: Error) -> Error {
        let undone = || -> io::Result<()> {
            let store = self.store();
            drop_building(store)?;
            stop::here();
            match self.place.way {
                Way::Swap => self.exchange_back()?,
                Way::Entries => self.entries_back()?,
            }
            stop::here();
            sys::commit(store)
        };
        match undone() {
            Ok(()) => match cause {
                Error::CannotAdopt { .. } => cause,
                cause => refuse(&self.place.data_dir, format!("cannot be taken over: {cause}")),
            },
            Err(e) => {
                tracing::error!("{}: cannot be taken over: {cause}", self.place.data_dir.display());
                self.io("put back")(e)
            }
        }
    }

    fn exchange_back(&self) -> io::Result<()> {
        let (parent, name) = (self.place.parent.as_fd(), self.place.name.as_os_str());
        let there = take::open_below(parent, name)?;
        if !is_marker(there.as_fd())? {
            return Err(io::Error::other("something else lies in its place"));
        }
        marker::open(there.as_fd())?;
        stop::here();
        match walk::exchange((parent, name), (self.store(), OsStr::new(TREE)))? {
            true => Ok(()),
            false => Err(io::Error::other("this kernel cannot exchange two directories on Btrfs")),
        }
    }

    fn entries_back(&self) -> io::Result<()> {
        let dir = self.place.data.as_fd();
        marker::open(dir)?;
        let tree = take::open_below(self.store(), TREE)?;
        for name in names_in(tree.as_fd())? {
            rename_new((tree.as_fd(), &name), (dir, &name))?;
            stop::here();
        }
        fsync(&tree)?;
        fsync(dir)?;
        unlinkat(self.store(), TREE, UnlinkatFlags::RemoveDir)?;
        stop::here();
        match unlinkat(dir, marker::NAME, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(nix::Error::ENOENT) => {}
            Err(e) => return Err(e.into()),
        }
        self.root_attributes(dir)?;
        let dir: File = take::open_below(dir, ".")?.into();
        dir.sync_all()
    }
}
