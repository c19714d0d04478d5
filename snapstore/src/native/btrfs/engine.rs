//! The engine: heads and snapshots as subvolumes of the store.
//!
//! | in the store | is |
//! |---|---|
//! | `heads/<n>` | a head: a writable subvolume |
//! | `snapshots/<epoch>` | what was frozen: a read-only snapshot of a head |
//!
//! Each is made and removed by one transaction of the file system, so there is nothing half-made in these directories;
//! what the catalog does not know is whole, and left over. Snapshots are durable when they are there: making one ends
//! a transaction, and writes back the dirty data of its head, of nothing else.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::stat::{Mode, mkdirat};

use super::{space, subvolume, sys};
use crate::backend::BackendKind;
use crate::error::{Error, Result};
use crate::native::engine::{Abilities, Engine, Facts, HeadId, Kept, Space, Totals};
use crate::types::EpochId;

/// Where heads lie in the store.
pub(crate) const HEADS: &str = "heads";
/// Where snapshots lie in the store.
pub(crate) const SNAPSHOTS: &str = "snapshots";

/// A store on Btrfs.
pub struct BtrfsEngine {
    /// For messages.
    path: PathBuf,
    store: OwnedFd,
    heads: OwnedFd,
    snapshots: OwnedFd,
}

impl BtrfsEngine {
    /// The engine of the store in this directory. `path` is what messages call it.
    pub fn open(store: BorrowedFd<'_>, path: &Path) -> Result<BtrfsEngine> {
        let io = Error::io("open", path);
        let opened = || {
            let store = subvolume::open_below(store, ".")?;
            for name in [HEADS, SNAPSHOTS] {
                match mkdirat(&store, name, Mode::from_bits_truncate(0o700)) {
                    Ok(()) | Err(nix::Error::EEXIST) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            let heads = subvolume::open_below(store.as_fd(), HEADS)?;
            let snapshots = subvolume::open_below(store.as_fd(), SNAPSHOTS)?;
            Ok(BtrfsEngine { path: path.into(), store, heads, snapshots })
        };
        let engine = opened().map_err(io)?;
        if !subvolume::is_on_btrfs(engine.store.as_fd()).map_err(Error::io("stat", path))? {
            let reason =
                "a store of the btrfs backend, which is not on Btrfs here; mount the volume it belongs to";
            return Err(Error::io("open", path)(std::io::Error::other(reason)));
        }
        Ok(engine)
    }

    fn head_path(&self, head: HeadId) -> PathBuf {
        self.path.join(HEADS).join(name_of(head.0))
    }

    fn epoch_path(&self, epoch: EpochId) -> PathBuf {
        self.path.join(SNAPSHOTS).join(name_of(epoch.0))
    }

    fn head(&self, head: HeadId) -> Result<OwnedFd> {
        get(self.heads.as_fd(), head.0, || self.head_path(head))
    }

    fn frozen(&self, epoch: EpochId) -> Result<OwnedFd> {
        get(self.snapshots.as_fd(), epoch.0, || self.epoch_path(epoch))
    }

    /// A snapshot of `of` as `number` in `dir`. One that is there already is right if it is of the same subvolume.
    fn freeze(
        &self,
        of: &OwnedFd,
        (dir, number): (BorrowedFd<'_>, u64),
        read_only: bool,
        path: PathBuf,
    ) -> Result<()> {
        let name = name_of(number);
        match sys::snapshot(of.as_fd(), dir, &name, read_only) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                let same = || {
                    let Some(there) = subvolume::open(dir, &name)? else { return Ok(false) };
                    let there = there.as_fd();
                    let fits = sys::info(there)?.parent_uuid == sys::info(of.as_fd())?.uuid;
                    Ok::<_, std::io::Error>(fits && sys::is_read_only(there)? == read_only)
                };
                match same().map_err(Error::io("stat", &path))? {
                    true => Ok(()),
                    false => Err(Error::io("snapshot", &path)(e)),
                }
            }
            done => done.map_err(Error::io("snapshot", &path)),
        }
    }

    fn delete(&self, dir: BorrowedFd<'_>, number: u64, path: PathBuf) -> Result<()> {
        let name = name_of(number);
        match subvolume::destroy(dir, &name) {
            Err(e) if e.raw_os_error() == Some(libc::ENOTEMPTY) => {
                let inside = subvolume::open(dir, &name).and_then(|fd| match fd {
                    Some(fd) => subvolume::nested(fd.as_fd()),
                    None => Ok(Vec::new()),
                });
                match inside.map_err(Error::io("look into", &path))?.into_iter().next() {
                    Some(inner) => Err(Error::NestedSubvolume { path: path.join(inner) }),
                    None => Err(Error::io("delete", &path)(e)),
                }
            }
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                let reason =
                    "is it the default subvolume? Make another one that, with `btrfs subvolume set-default`";
                Err(Error::io("delete", &path)(std::io::Error::new(e.kind(), format!("{e}; {reason}"))))
            }
            done => done.map_err(Error::io("delete", &path)),
        }
    }
}

/// The name of a head, or of a snapshot.
pub(crate) fn name_of(number: u64) -> OsString {
    number.to_string().into()
}

fn get(dir: BorrowedFd<'_>, number: u64, path: impl Fn() -> PathBuf) -> Result<OwnedFd> {
    match subvolume::open(dir, &name_of(number)).map_err(|e| Error::io("open", path())(e))? {
        Some(subvolume) => Ok(subvolume),
        None => Err(Error::io("open", path())(std::io::ErrorKind::NotFound.into())),
    }
}

impl Engine for BtrfsEngine {
    fn kind(&self) -> BackendKind {
        BackendKind::Btrfs
    }

    fn abilities(&self) -> Abilities {
        let known = space::is_known(self.store.as_fd());
        let unknown = "the sizes of snapshots are not known: Btrfs counts them only while quotas are on (`btrfs \
                       quota enable`)";
        Abilities {
            keeps_heads: true,
            passthrough: true,
            space: known,
            // It is more than the sum of what is exclusive to each snapshot.
            history: false,
            limits: if known { Vec::new() } else { vec![unknown.into()] },
        }
    }

    fn kept(&self) -> Result<Kept> {
        let list = |dir: &OwnedFd, name: &str| {
            subvolume::numbers(dir.as_fd()).map_err(Error::io("list", self.path.join(name)))
        };
        Ok(Kept {
            epochs: list(&self.snapshots, SNAPSHOTS)?.into_iter().map(EpochId).collect(),
            heads: list(&self.heads, HEADS)?.into_iter().map(HeadId).collect(),
        })
    }

    fn open_head(&self, head: HeadId) -> Result<OwnedFd> {
        self.head(head)
    }

    fn snapshot(&self, head: HeadId, epoch: EpochId, _facts: &Facts) -> Result<()> {
        let of = self.head(head)?;
        // A subvolume within would be an empty directory in the snapshot.
        let inside = subvolume::nested(of.as_fd()).map_err(Error::io("look into", self.head_path(head)))?;
        if let Some(inner) = inside.into_iter().next() {
            return Err(Error::NestedSubvolume { path: inner });
        }
        self.freeze(&of, (self.snapshots.as_fd(), epoch.0), true, self.epoch_path(epoch))
    }

    fn changed_since(&self, head: HeadId, epoch: EpochId) -> Result<bool> {
        let (live, frozen) = (self.head(head)?, self.frozen(epoch)?);
        let of = |fd: &OwnedFd, path: PathBuf| sys::info(fd.as_fd()).map_err(Error::io("stat", path));
        let (path, snapshot) = (self.head_path(head), of(&frozen, self.epoch_path(epoch))?);
        let now = of(&live, path.clone())?;
        if snapshot.parent_uuid != now.uuid || now.changed_in > snapshot.made_in {
            return Ok(true);
        }
        // What was written a moment ago may still be in memory only, and in no transaction.
        nix::unistd::syncfs(&live).map_err(|e| Error::io("sync", &path)(e.into()))?;
        Ok(of(&live, path)?.changed_in > snapshot.made_in)
    }

    fn sync(&self) -> Result<()> {
        sys::commit(self.store.as_fd()).map_err(Error::io("sync", &self.path))
    }

    fn open_view(&self, epoch: EpochId) -> Result<OwnedFd> {
        self.frozen(epoch)
    }

    fn close_view(&self, _epoch: EpochId) -> Result<()> {
        Ok(())
    }

    fn branch(&self, from: EpochId, new: HeadId) -> Result<()> {
        let of = self.frozen(from)?;
        self.freeze(&of, (self.heads.as_fd(), new.0), false, self.head_path(new))
    }

    fn switch(&self, _from: Option<EpochId>, new: HeadId) -> Result<()> {
        // Which head is live, the catalog says alone.
        self.head(new).map(drop)
    }

    fn delete_snapshot(&self, epoch: EpochId) -> Result<()> {
        self.delete(self.snapshots.as_fd(), epoch.0, self.epoch_path(epoch))
    }

    fn delete_head(&self, head: HeadId) -> Result<()> {
        self.delete(self.heads.as_fd(), head.0, self.head_path(head))
    }

    fn totals(&self, live: HeadId) -> Result<Totals> {
        let head = self.head(live)?;
        let space = space::of(head.as_fd()).map_err(Error::io("measure", self.head_path(live)))?;
        // What only history sees is more than the sum of what is exclusive in it: that is not known.
        Ok(Totals { live: space.referenced, history: 0 })
    }

    fn wait_freed(&self, time: Duration) -> Result<bool> {
        let at = self.store.as_fd();
        let left = || sys::being_freed(at).map_err(Error::io("look into", &self.path));
        if left()?.is_empty() {
            return Ok(true);
        }
        let until = Instant::now() + time;
        sys::sync_and_clean(at).map_err(Error::io("sync", &self.path))?;
        while !left()?.is_empty() {
            if Instant::now() > until {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(10));
        }
        // The last of it is given back with the next transaction.
        sys::commit(at).map_err(Error::io("sync", &self.path))?;
        Ok(true)
    }

    fn close(&self) -> Result<()> {
        // What was written into the live head, by way of the kernel too, survives from here on.
        nix::unistd::syncfs(&self.store).map_err(|e| Error::io("sync", &self.path)(e.into()))
    }

    fn space(&self, epochs: &[EpochId]) -> Result<Vec<Space>> {
        let one = |&epoch: &EpochId| {
            let frozen = self.frozen(epoch)?;
            space::of(frozen.as_fd()).map_err(Error::io("measure", self.epoch_path(epoch)))
        };
        epochs.iter().map(one).collect()
    }
}
