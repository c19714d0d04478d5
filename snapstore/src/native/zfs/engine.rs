//! [`ZfsEngine`]: the trait, in terms of the modules beside it.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use super::command::Zfs;
use super::family::{EPOCH, HASH, HEIGHT, Part, STORE, TIME, snapshot_name};
use super::pool::Pool;
use super::{heads, listing, mounts, views};
use crate::backend::BackendKind;
use crate::error::{Error, Result};
use crate::native::engine::{Abilities, Engine, Facts, HeadId, Kept, Space, Totals};
use crate::native::site::Site;
use crate::sync::{Mutex, RwLock};
use crate::types::EpochId;

/// A store's snapshots in its pool.
pub(crate) struct ZfsEngine {
    pool: Pool,
    /// Heads that were mounted and opened. A leaf lock.
    open_heads: Mutex<BTreeSet<HeadId>>,
    /// Views that are reachable. A leaf lock.
    open_views: Mutex<BTreeSet<EpochId>>,
    /// The live head, while it could not be promoted: OpenZFS moves no snapshot that is mounted. A leaf lock.
    unpromoted: Mutex<Option<HeadId>>,
    /// Snapshots move between datasets while this is held exclusively. Order: before every other lock here.
    moving: RwLock<()>,
}

impl ZfsEngine {
    /// Opens the engine of a store, whose lock the caller holds, and clears away views that a crash has left.
    pub(crate) fn open(site: &Site, zfs: Zfs) -> Result<ZfsEngine> {
        let pool = Pool::open(site, zfs)?;
        pool.found()?;
        let cleaned = views::clean(&pool)?;
        heads::sweep(&pool);
        if cleaned > 0 {
            tracing::info!(views = cleaned, "cleared away views that were left open");
        }
        Ok(ZfsEngine {
            pool,
            open_heads: Mutex::default(),
            open_views: Mutex::default(),
            unpromoted: Mutex::default(),
            moving: RwLock::new(()),
        })
    }

    /// Promotes the live head, now or when a view is closed. It is live and whole without it: only the deletion of others
    /// needs it.
    fn promote(&self, live: HeadId) {
        let promoted = heads::promote(&self.pool, live);
        if let Err(error) = &promoted {
            tracing::info!(head = live.0, %error, "the live head is still a clone of another; tried again later");
        }
        *self.unpromoted.lock() = promoted.err().map(|_| live);
    }

    /// Writes back what programs have changed through mappings: a snapshot takes what ZFS knows, not what only the
    /// kernel's page cache holds.
    fn write_back(&self, head: HeadId) -> Result<()> {
        if !self.pool.in_kernel {
            return Ok(());
        }
        let place = self.pool.head_place(head);
        for at in mounts::below(&mounts::all()?, &place) {
            let dir = mounts::open_dir(&at)?;
            nix::unistd::syncfs(&dir).map_err(|error| Error::Io {
                op: "sync",
                path: at.clone(),
                source: error.into(),
            })?;
        }
        Ok(())
    }
}

/// Sums up a number of each.
fn sum<'a, T: 'a>(all: impl IntoIterator<Item = &'a T>, of: impl Fn(&T) -> u64) -> u64 {
    all.into_iter().map(of).fold(0, u64::saturating_add)
}

impl Engine for ZfsEngine {
    fn kind(&self) -> BackendKind {
        BackendKind::Zfs
    }

    fn abilities(&self) -> Abilities {
        let mut limits = Vec::new();
        if !self.pool.in_kernel {
            limits.push("zfs-fuse: every open view is a clone in the pool until it is closed".to_owned());
        }
        // zfs-fuse is itself behind the kernel's cache, which has no barrier: a cut would miss what is only mapped.
        Abilities { keeps_heads: true, passthrough: self.pool.in_kernel, space: true, history: true, limits }
    }

    fn kept(&self) -> Result<Kept> {
        let family = self.pool.found()?;
        Ok(Kept {
            epochs: family.snapshots.keys().copied().collect(),
            heads: family.heads.keys().filter(|head| !family.doomed.contains(head)).copied().collect(),
        })
    }

    fn open_head(&self, head: HeadId) -> Result<OwnedFd> {
        heads::mount(&self.pool, head)?;
        let root = mounts::open_root(&self.pool.head_place(head), &self.pool.root_of(head)?)?;
        self.open_heads.lock().insert(head);
        Ok(root)
    }

    fn snapshot(&self, head: HeadId, epoch: EpochId, facts: &Facts) -> Result<()> {
        self.write_back(head)?;
        let name = format!("{}@{}", self.pool.root_of(head)?, snapshot_name(epoch));
        let mut args: Vec<String> = ["snapshot", "-r"].map(Into::into).into();
        let mut set =
            |property: &str, value: &str| args.extend(["-o".to_owned(), format!("{property}={value}")]);
        set(STORE, &self.pool.config.id);
        set(EPOCH, &epoch.0.to_string());
        set(HEIGHT, &facts.height.0.to_string());
        set(TIME, &facts.time.to_string());
        if let Some(hash) = &facts.hash {
            set(HASH, hash);
        }
        args.push(name);
        self.pool.zfs.change(&args).or_else(|error| {
            // Made by an earlier call, or after its time was up.
            if self.pool.family()?.snapshots.contains_key(&epoch) { Ok(()) } else { Err(error) }
        })
    }

    fn changed_since(&self, head: HeadId, epoch: EpochId) -> Result<bool> {
        if !self.pool.in_kernel {
            return Ok(true);
        }
        self.write_back(head)?;
        let family = self.pool.found()?;
        let parts = heads::parts(&family, head)?;
        let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
        // What has changed is counted when it is written out, and not before.
        self.pool.zfs.sync_pool(Pool::pool_of(names[0]))?;
        let Some(cut) = family.snapshots.get(&epoch).and_then(|cuts| cuts.first()) else { return Ok(true) };
        let written = format!("written@{}", cut.name);
        // A part that has no such snapshot answers with no number, or not at all.
        let Ok(entries) = listing::get(&self.pool.zfs, &[&written], &names, false) else { return Ok(true) };
        let same = entries.iter().filter(|entry| entry.value(&written) == Some("0")).count();
        Ok(same != parts.len())
    }

    fn sync(&self) -> Result<()> {
        // What the command does is on the disks when it ends; what programs wrote may not be.
        let heads: Vec<HeadId> = self.open_heads.lock().iter().copied().collect();
        heads.into_iter().try_for_each(|head| self.write_back(head))
    }

    fn open_view(&self, epoch: EpochId) -> Result<OwnedFd> {
        let _stay = self.moving.read();
        let root = views::open(&self.pool, epoch)?;
        self.open_views.lock().insert(epoch);
        Ok(root)
    }

    fn close_view(&self, epoch: EpochId) -> Result<()> {
        {
            let _stay = self.moving.read();
            views::close(&self.pool, epoch)?;
            self.open_views.lock().remove(&epoch);
        }
        let waiting = *self.unpromoted.lock();
        if let Some(live) = waiting {
            let _move = self.moving.write();
            self.promote(live);
            heads::sweep(&self.pool);
        }
        Ok(())
    }

    fn branch(&self, from: EpochId, new: HeadId) -> Result<()> {
        heads::branch(&self.pool, from, new)
    }

    fn switch(&self, _from: Option<EpochId>, new: HeadId) -> Result<()> {
        let _move = self.moving.write();
        self.promote(new);
        Ok(())
    }

    fn delete_snapshot(&self, epoch: EpochId) -> Result<()> {
        let _move = self.moving.write();
        heads::delete_snapshot(&self.pool, epoch)
    }

    fn delete_head(&self, head: HeadId) -> Result<()> {
        let _move = self.moving.write();
        self.open_heads.lock().remove(&head);
        heads::delete(&self.pool, head)
    }

    fn space(&self, epochs: &[EpochId]) -> Result<Vec<Space>> {
        let family = self.pool.found()?;
        let space = |epoch: &EpochId| {
            let cuts = family.snapshots.get(epoch).map(Vec::as_slice).unwrap_or_default();
            Space { referenced: sum(cuts, |cut| cut.referenced), exclusive: sum(cuts, |cut| cut.used) }
        };
        Ok(epochs.iter().map(space).collect())
    }

    fn totals(&self, live: HeadId) -> Result<Totals> {
        let family = self.pool.found()?;
        let live = sum(heads::parts(&family, live)?, |part| part.referenced);
        // A root's figure has everything below it in it, snapshots too.
        let roots: Vec<&Part> = family.heads.values().filter_map(|parts| parts.first()).collect();
        let all = sum(roots.iter().copied(), |part| part.used);
        Ok(Totals { live, history: all.saturating_sub(live) })
    }

    fn wait_freed(&self, time: Duration) -> Result<bool> {
        if !self.pool.in_kernel {
            // It frees what it deletes before the command ends.
            return Ok(true);
        }
        let family = self.pool.found()?;
        let Some(part) = family.heads.values().flatten().next() else { return Ok(true) };
        let pool = Pool::pool_of(&part.name);
        let until = Instant::now() + time;
        while self.pool.zfs.freeing(pool) > 0 {
            if Instant::now() > until {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(50));
        }
        self.pool.zfs.sync_pool(pool)?;
        Ok(true)
    }

    fn close(&self) -> Result<()> {
        let open: Vec<EpochId> = self.open_views.lock().iter().copied().collect();
        open.into_iter().try_for_each(|epoch| self.close_view(epoch))
    }
}
