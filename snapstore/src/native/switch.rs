//! Switching the head: rollback and undo.
//!
//! Where the engine **keeps heads**, the new one is made beside the live one and gets what is carried over; the commit
//! of the catalog decides; then the engine makes it the live one. A head that is brought back stays as it is until the
//! commit: what is carried over into it is put aside in the store before, and put in after. A crash before the commit leaves a head that nobody
//! was told of, which is removed; after it, opening the store has the engine complete the switch.
//!
//! Where it does **not**, there is one tree, which the switch overwrites. So it is frozen first, as an epoch without a
//! height (the `tail` of the head that is left), durably; what is carried over is put aside in the store. The commit
//! decides, the engine rolls back, what was put aside is put in. A crash anywhere after the commit does all of it again.
//! Undoing is a switch to the tail.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};

use super::catalog::{AbandonedRow, Catalog, EpochRow, HeadRow};
use super::core::{Core, Verb, open_live};
use super::engine::{Engine, Facts, HeadId};
use super::preserve;
use super::site::Site;
use super::tree::LiveHead;
use crate::backend::{HeightQuery, SwitchReport, Tree};
use crate::chunk::adopt::walk::remove_tree;
use crate::error::{Error, Result};
use crate::heights;
use crate::types::{EpochId, Height, Ino};

/// Where what is carried over lies meanwhile, in the store.
pub(crate) const CARRY: &str = "carry";

/// Where a switch leads.
enum Onto {
    /// A new head from an epoch, standing on `base`; it takes back the switch `undone`.
    Epoch { from: EpochId, base: Option<EpochId>, undone: Option<u64> },
    /// A head that is kept, left by the switch `undone`.
    Head { head: HeadId, undone: u64 },
}

impl Core {
    /// Makes a snapshot's state the live head.
    pub(crate) fn rollback(
        self: &Arc<Core>,
        to: HeightQuery,
        preserve: &[PathBuf],
        dry_run: bool,
    ) -> Result<SwitchReport> {
        let epoch = self.find(to)?;
        // What the new head stands on must be on the disk.
        self.wait_durable(epoch)?;
        let mut verb = self.verb()?;
        if self.find(to)? != epoch {
            return Err(Error::NoSnapshots);
        }
        let (height, hidden_heights) = {
            let control = self.control.lock();
            let height = control.catalog.snapshot(epoch).map(|row| row.height);
            (height, heights::above(&control.visible, height.unwrap_or(Height(0))))
        };
        let wanted = preserve::check(self.head().table.root()?.as_fd(), preserve)?;
        let mut report =
            SwitchReport { height, hidden_heights, preserved: preserve.to_vec(), changed: Vec::new() };
        if !dry_run {
            let onto = Onto::Epoch { from: epoch, base: Some(epoch), undone: None };
            self.switch(&mut verb, &onto, &wanted)?;
            report.changed = carried(&self.head(), preserve);
        }
        Ok(report)
    }

    /// Brings back the head that the latest switch left.
    pub(crate) fn undo(self: &Arc<Core>, preserve: &[PathBuf], dry_run: bool) -> Result<SwitchReport> {
        let mut verb = self.verb()?;
        let catalog = self.catalog();
        let left = catalog.abandoned.iter().map(|(&serial, row)| (serial, row.by_undo));
        let undone = heights::undoable(left).ok_or(Error::NothingToUndo)?;
        let head = catalog.abandoned.get(&undone).ok_or(Error::NothingToUndo)?.head;
        let row = catalog.heads.get(&head).ok_or(Error::NothingToUndo)?;
        let (now, then) = (catalog.visible(catalog.live), catalog.visible(head));
        let wanted = preserve::check(self.head().table.root()?.as_fd(), preserve)?;
        let mut report = SwitchReport {
            height: then.last_key_value().map(|(&height, _)| height),
            hidden_heights: now.iter().filter(|(h, e)| then.get(h) != Some(e)).map(|(&h, _)| h).collect(),
            preserved: preserve.to_vec(),
            changed: Vec::new(),
        };
        if !dry_run {
            let onto = match self.abilities.keeps_heads {
                true => Onto::Head { head, undone },
                false => {
                    let from = row.tail.ok_or(Error::NothingToUndo)?;
                    Onto::Epoch { from, base: row.base, undone: Some(undone) }
                }
            };
            self.switch(&mut verb, &onto, &wanted)?;
            report.changed = carried(&self.head(), preserve);
        }
        Ok(report)
    }

    fn switch(self: &Arc<Core>, verb: &mut Verb<'_>, onto: &Onto, carry: &[PathBuf]) -> Result<()> {
        let old = self.head();
        // From here on the old head stands still: its handles fail, and what was under way has ended.
        {
            let _still = old.instance.still();
            old.instance.retire(true);
        }
        match self.prepare(verb, &old, onto, carry) {
            Ok(()) => {}
            Err(error) => {
                if self.check().is_ok() {
                    self.give_up_making(verb);
                    old.instance.retire(false);
                }
                return Err(error);
            }
        }
        // It is decided. If what follows fails, the next opening goes on with it.
        self.complete(verb, &old).inspect_err(|error| self.fail(error))
    }

    /// Everything up to the commit that decides.
    fn prepare(&self, verb: &mut Verb<'_>, old: &LiveHead, onto: &Onto, carry: &[PathBuf]) -> Result<()> {
        let keeps = self.abilities.keeps_heads;
        let root = old.table.root()?;
        let (new, tail) = match onto {
            Onto::Head { head, .. } => {
                // It is somebody's to bring back until the commit: nothing is put into it before.
                put_aside(&self.site, root.as_fd(), carry)?;
                (*head, None)
            }
            Onto::Epoch { from, .. } if keeps => {
                let new = verb.commit(|c| c.begin_head(true))?;
                self.engine.branch(*from, new)?;
                let made = self.engine.open_head(new)?;
                preserve::carry(root.as_fd(), made.as_fd(), carry)?;
                (new, None)
            }
            Onto::Epoch { .. } => {
                let tail = verb.reserve()?;
                verb.used();
                let newest = self.control.lock().visible.last_key_value().map_or(Height(0), |(&h, _)| h);
                let facts = Facts { height: newest, time: heights::now(), hash: None };
                self.engine.snapshot(old.instance.head, tail, &facts)?;
                put_aside(&self.site, root.as_fd(), carry)?;
                (verb.commit(|c| c.begin_head(false))?, Some(tail))
            }
        };
        self.engine.sync()?;
        verb.commit(|c| {
            let left = c.live;
            if let Some(tail) = tail {
                let parent = c.head().base;
                c.making.epochs.remove(&tail);
                c.epochs.insert(tail, EpochRow { parent, snapshot: None });
                c.head().tail = Some(tail);
            }
            c.making.heads.remove(&new);
            let undone = match onto {
                Onto::Head { head, undone } => {
                    if let Some(row) = c.heads.get_mut(head) {
                        row.carry = carry.to_vec();
                    }
                    Some(*undone)
                }
                Onto::Epoch { from, base, undone } => {
                    let mut row = HeadRow { base: *base, from: Some(*from), ..HeadRow::default() };
                    if !keeps {
                        row.carry = carry.to_vec();
                        row.spent = undone.map(|_| *from);
                    }
                    c.heads.insert(new, row);
                    *undone
                }
            };
            if let Some(back) = undone.and_then(|serial| c.abandoned.remove(&serial))
                && back.head != new
            {
                c.heads.remove(&back.head);
            }
            c.serial += 1;
            c.abandoned.insert(c.serial, AbandonedRow { head: left, by_undo: undone.is_some() });
            c.live = new;
        })
    }

    /// Everything after it.
    fn complete(&self, verb: &Verb<'_>, old: &LiveHead) -> Result<()> {
        if !self.abilities.keeps_heads {
            // The engine may have to unmount what the old head lay on.
            old.table.let_go();
        }
        let mut catalog = self.catalog();
        finish(&*self.engine, &self.site, &mut catalog)?;
        let live = open_live(&*self.engine, &catalog)?;
        *self.live.write() = live;
        verb.commit(|c| *c = catalog)?;
        clear_aside(&self.site)?;
        self.poke();
        Ok(())
    }
}

/// Has the engine make the live head what the catalog says, and completes what belongs to it. Can be done again, until
/// the changed catalog is on the disk; only then may what was put aside go ([`clear_aside`]).
pub(crate) fn finish(engine: &dyn Engine, site: &Site, catalog: &mut Catalog) -> Result<()> {
    let live = catalog.live;
    let row = catalog.heads.get(&live).cloned().unwrap_or_default();
    engine.switch(row.from, live)?;
    if !row.carry.is_empty() {
        let aside = open_below(site, CARRY)?;
        let root = engine.open_head(live)?;
        preserve::carry(aside.as_fd(), root.as_fd(), &row.carry)?;
    }
    if row.from.is_some() || !row.carry.is_empty() {
        // What was carried over is durable before it is gone from where it was put aside.
        engine.sync()?;
    }
    let head = catalog.head();
    head.from = None;
    head.carry.clear();
    if let Some(spent) = head.spent.take() {
        catalog.doom_epoch(spent);
    }
    Ok(())
}

/// Removes what was put aside, once the catalog says that it is where it belongs: not before, or a crash in between would
/// have it looked for in vain.
pub(crate) fn clear_aside(site: &Site) -> Result<()> {
    remove_tree(site.dir(), OsStr::new(CARRY)).map_err(Error::io("remove", site.path(CARRY)))
}

/// Copies what is to be carried over into the store.
fn put_aside(site: &Site, from: std::os::fd::BorrowedFd<'_>, paths: &[PathBuf]) -> Result<()> {
    clear_aside(site)?;
    if paths.is_empty() {
        return Ok(());
    }
    mkdirat(site.dir(), CARRY, Mode::from_bits_truncate(0o700))
        .map_err(|e| Error::io("create", site.path(CARRY))(e.into()))?;
    preserve::carry(from, open_below(site, CARRY)?.as_fd(), paths)?;
    nix::unistd::syncfs(site.dir()).map_err(|e| Error::io("sync", &site.store)(e.into()))
}

fn open_below(site: &Site, name: &str) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    openat(site.dir(), name, flags, Mode::empty()).map_err(|e| Error::io("open", site.path(name))(e.into()))
}

/// The inodes at the carried paths, for callers that cache.
fn carried(head: &LiveHead, paths: &[PathBuf]) -> Vec<Ino> {
    let find = |path: &Path| {
        let names = path.components().filter(|part| matches!(part, std::path::Component::Normal(_)));
        let mut at = Ino::ROOT;
        for name in names {
            at = head.lookup(at, name.as_os_str()).ok()?.ino;
        }
        Some(at)
    };
    paths.iter().filter_map(|path| find(path)).collect()
}
