//! BTM's snapshots of a subvolume `V`: the subvolumes `V@N` beside it.
//!
//! They are writable. What is taken over is a read-only snapshot of each, so that nobody changes a height any more.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::engine::{SNAPSHOTS, name_of};
use super::{subvolume, sys};
use crate::chunk::adopt::place::open_dir;
use crate::chunk::adopt::walk::names_in;
use crate::error::{Error, Result};
use crate::native::import::{Ancestor, Ancestral};
use crate::native::site::Site;
use crate::types::{EpochId, Height};

/// The ancestor's snapshots beside a data dir.
pub struct BtmSubvolumes {
    beside: PathBuf,
    dir: OwnedFd,
    /// The volume's name and an `@`.
    prefix: OsString,
    store: PathBuf,
    snapshots: OwnedFd,
}

impl BtmSubvolumes {
    /// Those of the data dir of a store.
    pub fn of(site: &Site) -> Result<BtmSubvolumes> {
        let (Some(beside), Some(name)) = (site.data_dir.parent(), site.data_dir.file_name()) else {
            return Err(Error::NotAStore { path: site.data_dir.clone() });
        };
        let dir = open_dir(beside).map_err(Error::io("open", beside))?;
        let snapshots =
            subvolume::open_below(site.dir(), SNAPSHOTS).map_err(Error::io("open", site.path(SNAPSHOTS)))?;
        let prefix = OsString::from_vec([name.as_bytes(), b"@"].concat());
        Ok(BtmSubvolumes { beside: beside.into(), dir, prefix, store: site.store.clone(), snapshots })
    }

    fn name(&self, height: Height) -> OsString {
        OsString::from_vec([self.prefix.as_bytes(), height.to_string().as_bytes()].concat())
    }

    fn path(&self, height: Height) -> PathBuf {
        self.beside.join(self.name(height))
    }

    fn open(&self, height: Height) -> Result<OwnedFd> {
        let path = || self.path(height);
        match subvolume::open(self.dir.as_fd(), &self.name(height)).map_err(Error::io("open", path()))? {
            Some(subvolume) => Ok(subvolume),
            None => Err(Error::io("open", path())(io::ErrorKind::NotFound.into())),
        }
    }
}

impl Ancestor for BtmSubvolumes {
    fn list(&self) -> Result<Vec<Ancestral>> {
        let names = names_in(self.dir.as_fd()).map_err(Error::io("list", &self.beside))?;
        let mut found = Vec::new();
        for name in names {
            let Some(digits) = name.as_bytes().strip_prefix(self.prefix.as_bytes()) else { continue };
            let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse::<u64>().ok());
            let Some(height) = number.map(Height).filter(|&height| self.name(height) == name) else {
                continue;
            };
            let path = self.beside.join(&name);
            let Some(subvolume) =
                subvolume::open(self.dir.as_fd(), &name).map_err(Error::io("open", &path))?
            else {
                continue;
            };
            let info = sys::info(subvolume.as_fd()).map_err(Error::io("stat", &path))?;
            let (secs, nanos) = info.made_at;
            let time = jiff::Timestamp::new(secs as i64, nanos as i32);
            found.push(Ancestral {
                name: path.display().to_string(),
                height,
                time: time.unwrap_or(jiff::Timestamp::UNIX_EPOCH),
            });
        }
        Ok(found)
    }

    fn take(&self, one: &Ancestral, epoch: EpochId) -> Result<()> {
        let (of, name) = (self.open(one.height)?, name_of(epoch.0));
        let path = || self.store.join(SNAPSHOTS).join(&name);
        let nested = subvolume::nested(of.as_fd()).map_err(Error::io("look into", self.path(one.height)))?;
        if let Some(inner) = nested.into_iter().next() {
            return Err(Error::NestedSubvolume { path: self.path(one.height).join(inner) });
        }
        match sys::snapshot(of.as_fd(), self.snapshots.as_fd(), &name, true) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let there =
                    subvolume::open(self.snapshots.as_fd(), &name).map_err(Error::io("open", path()))?;
                let same = |fd: OwnedFd| {
                    Ok::<_, io::Error>(sys::info(fd.as_fd())?.parent_uuid == sys::info(of.as_fd())?.uuid)
                };
                match there.map(same).transpose().map_err(Error::io("stat", path()))? {
                    Some(true) => Ok(()),
                    _ => Err(Error::io("snapshot", path())(e)),
                }
            }
            done => done.map_err(Error::io("snapshot", path())),
        }
    }

    fn remove(&self, one: &Ancestral) -> Result<()> {
        subvolume::destroy(self.dir.as_fd(), &self.name(one.height))
            .map_err(Error::io("delete", self.path(one.height)))
    }
}
