//! Where a data dir's store goes, and what cannot be adopted at all.
//!
//! The store must be where the data can be renamed to: on the same file system, the same subvolume and the same
//! mount. Beside the data dir is best, for then the data dir is taken over in one step ([`Way::Swap`]). A data dir
//! that cannot itself be renamed (a mount point, a subvolume, a parent that is not ours) keeps its store inside, and
//! its entries are moved ([`Way::Entries`]).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, faccessat};

use super::journal::{self, Way};
use super::walk::names_in;
use super::{HIDDEN, refuse};
use crate::chunk::format;
use crate::error::{Error, Result};
use crate::sys::{Stat, stat_at};
use crate::types::FileKind;

/// A data dir, and where its store is or will be.
pub(crate) struct Place {
    pub data_dir: PathBuf,
    pub data: OwnedFd,
    pub stat: Stat,
    /// The directory that the data dir lies in, and its name there.
    pub parent: OwnedFd,
    pub name: OsString,
    pub store: PathBuf,
    pub way: Way,
}

/// What is at the path of a store.
pub(crate) enum There {
    /// Nothing, or an empty directory.
    Nothing,
    /// An adoption or an eject that was interrupted.
    Unfinished,
    /// A store, and the data dir it says it belongs to.
    Store(PathBuf),
    /// Something else.
    Foreign,
}

/// Opens a directory by path.
pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// The absolute path of a data dir, without symlinks.
pub(crate) fn canonical(data_dir: &Path) -> Result<PathBuf> {
    let path = data_dir.canonicalize().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => refuse(data_dir, "no such directory"),
        _ => Error::Io { op: "open", path: data_dir.into(), source: e },
    })?;
    if !path.is_dir() {
        return Err(refuse(data_dir, "not a directory"));
    }
    Ok(path)
}

/// The absolute path of a store that was named, without symlinks above its own name. It need not be there.
pub(crate) fn store_path(store: &Path) -> Result<PathBuf> {
    if let Ok(path) = store.canonicalize() {
        return Ok(path);
    }
    let absolute = std::path::absolute(store).map_err(Error::io("find", store))?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => match parent.canonicalize() {
            Ok(parent) => Ok(parent.join(name)),
            Err(e) => Err(refuse(store, format!("its parent directory cannot be used for a store: {e}"))),
        },
        _ => Err(refuse(store, "not a path for a store; name a directory that does not exist yet")),
    }
}

/// The hidden place beside a data dir.
pub(crate) fn beside(data_dir: &Path) -> Option<PathBuf> {
    let name = [b".", data_dir.file_name()?.as_bytes(), b".tmfs"].concat();
    Some(data_dir.parent()?.join(OsString::from_vec(name)))
}

/// The hidden place inside a data dir.
pub(crate) fn inside(data_dir: &Path) -> PathBuf {
    data_dir.join(HIDDEN)
}

/// What is at `store`.
pub(crate) fn examine(store: &Path) -> Result<There> {
    let dir = match open_dir(store) {
        Ok(dir) => dir,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(There::Nothing),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => return Ok(There::Foreign),
        Err(e) => return Err(Error::Io { op: "open", path: store.into(), source: e }),
    };
    if journal::read(dir.as_fd())?.is_some() {
        return Ok(There::Unfinished);
    }
    match format::check(&dir, store) {
        Ok(format) => Ok(There::Store(format.data_dir)),
        Err(Error::NotAStore { .. }) => {
            let names = names_in(dir.as_fd()).map_err(Error::io("list", store))?;
            let first = format!("{}.new", journal::NAME);
            let ours = |name: &OsString| name == "lock" || name.as_bytes() == first.as_bytes();
            Ok(if names.iter().all(ours) { There::Nothing } else { There::Foreign })
        }
        Err(e) => Err(e),
    }
}

impl Place {
    /// The place of a data dir (as [`canonical`] gives it). Nothing is changed.
    pub(crate) fn of(data_dir: &Path, store: Option<&Path>) -> Result<Place> {
        let io = |op: &'static str| move |e: io::Error| Error::Io { op, path: data_dir.into(), source: e };
        let (Some(above), Some(name)) = (data_dir.parent(), data_dir.file_name()) else {
            return Err(refuse(data_dir, "the root directory cannot be a data dir"));
        };
        let data = open_dir(data_dir).map_err(io("open"))?;
        let parent = open_dir(above).map_err(Error::io("open", above))?;
        let stat = stat_at(data.as_fd(), OsStr::new("")).map_err(io("stat"))?;
        let outer = stat_at(parent.as_fd(), OsStr::new("")).map_err(Error::io("stat", above))?;
        let fixed = stat.mount_root || stat.id.0 != outer.id.0 || !can_write(&parent);
        let store = match store {
            Some(store) => store_path(store)?,
            None if fixed => inside(data_dir),
            None => beside(data_dir).unwrap_or_else(|| inside(data_dir)),
        };
        let within = store.parent() == Some(data_dir);
        if !within && store.starts_with(data_dir) {
            let hint = format!("must not lie in a subdirectory of the data dir {}", data_dir.display());
            return Err(refuse(&store, hint));
        }
        let way = if fixed || within { Way::Entries } else { Way::Swap };
        Ok(Place { data_dir: data_dir.into(), data, stat, parent, name: name.into(), store, way })
    }

    /// Refuses what cannot be adopted, as far as that can be told without looking at every file.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_surroundings()?;
        let above = self.store.parent().unwrap_or(Path::new("/"));
        let outer = open_dir(above).map_err(Error::io("open", above))?;
        let outer = stat_at(outer.as_fd(), OsStr::new("")).map_err(Error::io("stat", above))?;
        if outer.id.0 != self.stat.id.0 || outer.mount != self.stat.mount {
            return Err(refuse(
                &self.store,
                "not on the file system (or subvolume, or mount) of the data dir, so nothing can be renamed to \
                 there; name another place with --store",
            ));
        }
        Ok(())
    }

    /// Refuses what other mounts and other stores are in the way of.
    pub(crate) fn check_surroundings(&self) -> Result<()> {
        let dir = &self.data_dir;
        for mount in mounts().map_err(Error::io("read", "/proc/self/mountinfo"))? {
            if mount.point == *dir && mount.source == "tmfs" {
                return Err(refuse(dir, "a tmfs is mounted here already"));
            }
            if mount.point != *dir && mount.point.starts_with(dir) {
                return Err(refuse(&mount.point, NESTED));
            }
        }
        for (what, path) in [("the data dir", dir.as_path()), ("the store", &self.store)] {
            let first = usize::from(what == "the store");
            if let Some(store) = path.ancestors().skip(first).find(|a| is_store(a)) {
                return Err(refuse(path, format!("{what} lies in a tmfs store, {}", store.display())));
            }
        }
        Ok(())
    }
}

/// Why a mount point within a data dir is in the way.
pub(crate) const NESTED: &str =
    "a file system is mounted within the data dir; unmount it first, or move it elsewhere";

fn can_write(dir: &OwnedFd) -> bool {
    let wanted = AccessFlags::W_OK | AccessFlags::X_OK;
    faccessat(dir, ".", wanted, AtFlags::AT_EACCESS).is_ok()
}

fn is_store(dir: &Path) -> bool {
    open_dir(dir).is_ok_and(|fd| {
        let begun = journal::read_file(fd.as_fd(), journal::NAME).is_ok_and(|f| f.is_some());
        let named = !matches!(format::check(&fd, dir), Err(Error::NotAStore { .. } | Error::Io { .. }));
        (begun && fd_has_layers(&fd)) || named
    })
}

fn fd_has_layers(fd: &OwnedFd) -> bool {
    stat_at(fd.as_fd(), OsStr::new("layers")).is_ok_and(|s| s.kind == Some(FileKind::Directory))
}

struct MountPoint {
    point: PathBuf,
    source: String,
}

/// The mounts that this process sees.
fn mounts() -> io::Result<Vec<MountPoint>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    let lines = text.split(|&b| b == b'\n');
    Ok(lines.filter_map(mount_of).collect())
}

/// A line of mountinfo: `id parent dev root POINT options... - type SOURCE options`.
fn mount_of(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|&b| b == b' ');
    let point = unescaped(fields.nth(4)?);
    let source = fields.skip_while(|f| *f != b"-").nth(2)?;
    Some(MountPoint {
        point: OsString::from_vec(point).into(),
        source: String::from_utf8_lossy(source).into_owned(),
    })
}

/// Blanks and backslashes stand as three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|d| byte == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match digits {
            Some(d) => {
                out.push(d.iter().fold(0u8, |n, b| n.wrapping_mul(8).wrapping_add(b - b'0')));
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let mount =
            mount_of(b"36 35 98:0 / /mnt/a\\040b\\134c rw,noatime master:1 - fuse.x tmfs rw").unwrap();
        assert_eq!(mount.point, Path::new("/mnt/a b\\c"));
        assert_eq!(mount.source, "tmfs");
        assert!(mount_of(b"").is_none());
    }
}
