//! Where the store of a data dir goes on Btrfs, and what cannot be taken over.
//!
//! A subvolume can be renamed as any directory, only not into another subvolume's... nor can anything else: the store
//! must lie where the data dir lies (in the same subvolume as the data dir's parent), or, where the data dir is a mount
//! point, inside it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::{subvolume, sys};
use crate::chunk::adopt::journal::Way;
use crate::chunk::adopt::place::{NESTED, Place, beside, inside, open_dir};
use crate::chunk::adopt::walk::{Cursor, exists};
use crate::chunk::adopt::{HIDDEN, marker, refuse};
use crate::error::{Error, Result};
use crate::mountinfo;
use crate::sys::stat_at;
use crate::types::FileKind;

/// The place of a data dir (absolute, without symlinks). Nothing is changed.
pub(super) fn of(data_dir: &Path, store: Option<&Path>) -> Result<Place> {
    let Some(above) = data_dir.parent() else {
        return Err(refuse(data_dir, "the root directory cannot be a data dir"));
    };
    let data = open_dir(data_dir).map_err(Error::io("open", data_dir))?;
    let stat = stat_at(data.as_fd(), OsStr::new("")).map_err(Error::io("stat", data_dir))?;
    let parent = open_dir(above).map_err(Error::io("open", above))?;
    let outer = stat_at(parent.as_fd(), OsStr::new("")).map_err(Error::io("stat", above))?;
    let fixed = stat.mount_root || stat.mount != outer.mount;
    let usual = match fixed {
        true => inside(data_dir),
        false => beside(data_dir).unwrap_or_else(|| inside(data_dir)),
    };
    let mut place = Place::of(data_dir, Some(store.unwrap_or(&usual)))?;
    let within = place.store.parent() == Some(data_dir);
    place.way = if fixed || within { Way::Entries } else { Way::Swap };
    Ok(place)
}

/// Why `auto` takes this backend for a directory.
pub fn fits(data_dir: &Path) -> Result<Option<String>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let dir = open_dir(data_dir).map_err(Error::io("open", data_dir))?;
    let looked =
        || -> io::Result<bool> { Ok(subvolume::is_root(dir.as_fd())? && !sys::is_read_only(dir.as_fd())?) };
    let fits = looked().map_err(Error::io("stat", data_dir))?;
    Ok(fits.then(|| "it is a Btrfs subvolume".to_owned()))
}

/// Refuses what cannot be taken over, naming what is in the way.
pub(super) fn check(place: &Place) -> Result<()> {
    let (dir, data) = (&place.data_dir, place.data.as_fd());
    if !nix::unistd::geteuid().is_root() {
        return Err(refuse(dir, "only root can use the btrfs backend; use --backend chunk"));
    }
    let io = || Error::io("stat", dir);
    if !subvolume::is_on_btrfs(data).map_err(io())? {
        return Err(refuse(dir, "is not on Btrfs; use --backend chunk, which works on any file system"));
    }
    if sys::is_read_only(data).map_err(io())? {
        return Err(refuse(dir, "lies in a read-only subvolume; make it writable, or use another directory"));
    }
    if place.stat.pinned {
        return Err(refuse(dir, "has the immutable or the append-only flag; clear it with `chattr -ia`"));
    }
    place.check_surroundings()?;
    check_reach(place)?;
    let is_root = subvolume::is_root(data).map_err(io())?;
    check_mounts(place)?;
    if let Some(inner) = subvolume::nested_below(data).map_err(io())?.first() {
        return Err(refuse(
            &dir.join(inner),
            "is a subvolume of its own, which no snapshot of the data dir would contain; make it a plain directory \
             (`cp -a --reflink` into a new one), or move it elsewhere",
        ));
    }
    for name in [marker::NAME, HIDDEN] {
        if place.way == Way::Entries && exists(data, name).map_err(io())? && dir.join(name) != place.store {
            return Err(refuse(&dir.join(name), "has a name that tmfs needs itself; rename it first"));
        }
    }
    // Renamed, a subvolume comes along whatever is in it.
    if is_root && place.way == Way::Swap { Ok(()) } else { scan(place) }
}

/// The store must be where the data can be renamed to.
fn check_reach(place: &Place) -> Result<()> {
    let above = place.store.parent().unwrap_or(Path::new("/"));
    let stat = |fd, path: &Path| stat_at(fd, OsStr::new("")).map_err(Error::io("stat", path));
    let outer = open_dir(above).map_err(Error::io("open", above))?;
    let outer = stat(outer.as_fd(), above)?;
    let own = match place.way {
        Way::Swap => stat(place.parent.as_fd(), &place.data_dir)?,
        Way::Entries => place.stat,
    };
    if (outer.id.0, outer.mount) != (own.id.0, own.mount) {
        return Err(refuse(
            &place.store,
            "not in the same subvolume (and mount) as the directory that the data dir lies in, so nothing can be \
             renamed to there; name another place with --store",
        ));
    }
    Ok(())
}

/// Another mount that shows the data dir would go on to show it, and to change it, once it is in the store.
fn check_mounts(place: &Place) -> Result<()> {
    let mounts = mountinfo::read().map_err(Error::io("read", "/proc/self/mountinfo"))?;
    let Some(own) = mountinfo::holding(&mounts, &place.data_dir) else { return Ok(()) };
    let below = place.data_dir.strip_prefix(&own.point).unwrap_or(Path::new(""));
    // A path that ends in nothing would end in a slash.
    let site: PathBuf = own.root.join(below).components().collect();
    let other = mounts.iter().find(|mount| {
        mount.device == own.device && mount.point != own.point && mount.root.starts_with(&site)
    });
    match other {
        Some(mount) => Err(refuse(
            &place.data_dir,
            format!("is also mounted at {}; unmount it there first", mount.point.display()),
        )),
        None => Ok(()),
    }
}

/// Refuses, by looking at every name, what could not be moved or removed.
fn scan(place: &Place) -> Result<()> {
    let io = |op: &'static str, c: &Cursor, name: &OsStr| Error::io(op, c.path(name));
    let here = OsStr::new("");
    let mut cursor = Cursor::open(place.data.as_fd(), OsStr::new("."), &place.data_dir)
        .map_err(Error::io("open", &place.data_dir))?;
    let names = |c: &Cursor| c.names().map_err(|e| io("list", c, here)(e));
    let mut frames: Vec<std::vec::IntoIter<OsString>> = vec![names(&cursor)?.into_iter()];
    while let Some(frame) = frames.last_mut() {
        let Some(name) = frame.next() else {
            frames.pop();
            if !frames.is_empty() {
                cursor.leave().map_err(|e| io("leave", &cursor, here)(e))?;
            }
            continue;
        };
        let stat = cursor.stat(&name).map_err(|e| io("stat", &cursor, &name)(e))?;
        let path = || cursor.path(&name);
        if stat.mount_root {
            return Err(refuse(&path(), NESTED));
        }
        if stat.pinned {
            return Err(refuse(
                &path(),
                "has the immutable or the append-only flag; clear it with `chattr -ia`",
            ));
        }
        match stat.kind {
            None => return Err(refuse(&path(), "neither a file nor anything else known")),
            Some(FileKind::Directory) => {
                // An interrupted attempt's store, which is looked at again later.
                if frames.len() == 1 && path() == place.store {
                    continue;
                }
                cursor.enter(&name).map_err(|e| io("open", &cursor, &name)(e))?;
                frames.push(names(&cursor)?.into_iter());
            }
            Some(_) => {}
        }
    }
    Ok(())
}
