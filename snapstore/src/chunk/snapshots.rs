//! Snapshots, rollbacks, and which of them can be seen.
//!
//! A snapshot is a name for an epoch that is frozen. Only snapshots on the head's own path answer to a height: those
//! of a head that a rollback left are kept with it, out of sight, until it is brought back or dropped.
//!
//! Freezing an epoch, for a snapshot as for a rollback, is one step ([`Core::begin`]): under the lock that every
//! change of metadata takes, a new epoch becomes the head's. What that takes does not depend on how much there is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::core::{Core, HeadInstance, HeadState};
use super::lineage::{EpochRow, EpochTree, Lineage};
use super::meta::{Batch, ControlBatch};
use super::preserve;
use crate::backend::{Gate, HeightQuery, SnapshotInfo, SnapshotOptions, SwitchReport};
use crate::error::{Error, Result};
use crate::heights;
pub(crate) use crate::heights::SnapshotRow;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::types::{EpochId, Height, Ino};

/// So many epochs may wait for sealing before the next snapshot does.
const UNSEALED_MOST: usize = 16;
/// So many may wait for their hashes.
const UNHASHED_MOST: usize = 64;
/// That holds a snapshot back for so long at most: hashing itself may have to wait for a fold.
const FOR_HASHES: std::time::Duration = std::time::Duration::from_secs(1);

/// Where the head is, on the disk.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct HeadRow {
    pub epoch: EpochId,
    pub serial: u64,
}

/// A head that a switch left.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct AbandonedRow {
    /// The epoch it ended in.
    pub epoch: EpochId,
    /// It was left by an undo, not by a rollback.
    pub by_undo: bool,
}

/// What `control` guards: everything about epochs and snapshots.
pub(crate) struct Control {
    pub tree: EpochTree,
    /// All snapshots, those out of sight too.
    pub snapshots: BTreeMap<EpochId, SnapshotRow>,
    /// The snapshots on the head's path.
    pub visible: BTreeMap<Height, EpochId>,
    /// Heads that switches left, oldest first, by the serial of the switch.
    pub abandoned: BTreeMap<u64, AbandonedRow>,
    pub next_epoch: EpochId,
    /// Epochs whose sealing is on its way to the disk: sealed in the tree, not yet for those who wait.
    pub sealing: std::collections::BTreeSet<EpochId>,
}

impl Control {
    /// Whether an epoch is sealed, and the disk has it so. One that is gone was.
    pub(crate) fn is_sealed(&self, epoch: EpochId) -> bool {
        self.tree.get(epoch).is_none_or(|e| e.sealed) && !self.sealing.contains(&epoch)
    }

    /// A snapshot's row as the disk is to have it: durable from the commit on that seals its epoch, though who waits for
    /// that is told when it is done.
    pub(crate) fn stored(&self, epoch: EpochId) -> Option<(String, Option<Vec<u8>>)> {
        let mut row = self.snapshots.get(&epoch)?.clone();
        row.durable |= self.sealing.contains(&epoch);
        Some((snapshot_row(epoch), Some(json(&row))))
    }

    /// Works out which snapshots the head's path has.
    pub(crate) fn refresh_visible(&mut self, head: &Lineage) {
        let on_path = self.snapshots.iter().filter(|(e, _)| head.contains(**e));
        self.visible = on_path.map(|(&e, s)| (s.height, e)).collect();
    }

    /// The epoch a query means.
    pub(crate) fn find(&self, query: HeightQuery) -> Result<EpochId> {
        heights::find(&self.visible, query)
    }

    /// What `tmfs list` shows of a snapshot, without the byte counts.
    pub(crate) fn info(&self, epoch: EpochId) -> Option<SnapshotInfo> {
        let row = self.snapshots.get(&epoch)?;
        let chunks = self.tree.get(epoch).map_or(0, |e| e.chunks);
        Some(row.info(epoch, chunks * crate::types::CHUNK_SIZE))
    }

    /// The epochs that somebody sees.
    pub(crate) fn tips(&self, head: EpochId) -> std::collections::BTreeSet<EpochId> {
        let snapshots = self.snapshots.keys().copied();
        let abandoned = self.abandoned.values().map(|a| a.epoch);
        snapshots.chain(abandoned).chain([head]).collect()
    }

    /// The epochs that nobody sees, newest first. There are few of them, mostly none, however many snapshots there are:
    /// this runs after each.
    pub(crate) fn unseen(&self, head: EpochId) -> Vec<EpochId> {
        let abandoned = self.abandoned.values().map(|a| a.epoch);
        let others: std::collections::BTreeSet<EpochId> =
            abandoned.chain([head]).filter(|e| !self.snapshots.contains_key(e)).collect();
        let seen = self.snapshots.len() + others.len();
        if self.tree.len() == seen {
            return Vec::new();
        }
        let mut snapshots = self.snapshots.keys().rev().peekable();
        let mut unseen = Vec::with_capacity(self.tree.len().saturating_sub(seen));
        for (epoch, _) in self.tree.iter().rev() {
            while snapshots.next_if(|at| **at > epoch).is_some() {}
            if snapshots.peek() != Some(&&epoch) && !others.contains(&epoch) {
                unseen.push(epoch);
            }
        }
        unseen
    }

    /// The latest switch that can be undone. Undoing goes back switch by switch; when none is left, it takes back
    /// the latest undo.
    fn undoable(&self) -> Option<(u64, AbandonedRow)> {
        let serial = heights::undoable(self.abandoned.iter().map(|(&serial, row)| (serial, row.by_undo)))?;
        Some((serial, self.abandoned.get(&serial)?.clone()))
    }
}

/// A control row's bytes.
pub(crate) fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("control rows have string keys and no maps that fail")
}

pub(crate) fn epoch_row(epoch: EpochId) -> String {
    format!("epoch/{:020}", epoch.0)
}

pub(crate) fn snapshot_row(epoch: EpochId) -> String {
    format!("snapshot/{:020}", epoch.0)
}

pub(crate) fn abandoned_row(serial: u64) -> String {
    format!("abandoned/{serial:020}")
}

impl Core {
    /// Freezes the head's epoch and goes on in a new one, a child of `parent` (of the frozen one for a snapshot).
    /// `rows` and `control` belong to the step. A `serial` makes it another head: handles of the old one fail
    /// from here on. Returns the frozen epoch, with no operation in it any more.
    pub(crate) fn begin(
        &self,
        c: &mut Control,
        parent: Option<EpochId>,
        serial: Option<u64>,
        rows: Batch,
        control: ControlBatch,
    ) -> EpochId {
        let frozen = self.step(c, parent, serial, rows, control);
        self.settle_step(frozen);
        frozen
    }

    /// The step of [`Core::begin`], of microseconds. The epoch that it froze may still have operations in it.
    fn step(
        &self,
        c: &mut Control,
        parent: Option<EpochId>,
        serial: Option<u64>,
        rows: Batch,
        mut control: ControlBatch,
    ) -> EpochId {
        let head = self.head();
        let frozen = head.epoch;
        let epoch = c.next_epoch;
        let parent = parent.unwrap_or(frozen);
        c.next_epoch = EpochId(epoch.0 + 1);
        let base = c.tree.get(parent).filter(|p| p.sealed).map(|p| p.chunks);
        let row = EpochRow::begun(Some(parent), base);
        c.tree.insert(epoch, row);
        let lineage = match parent == frozen {
            true => head.lineage.extended(&c.tree, epoch),
            false => Lineage::new(&c.tree, epoch),
        };
        let instance = match serial {
            None => Arc::clone(&head.instance),
            Some(serial) => Arc::new(HeadInstance { serial, retired: AtomicBool::new(false) }),
        };
        let head_row = HeadRow { epoch, serial: instance.serial };
        control.push((epoch_row(epoch), Some(json(&row))));
        control.push(("head".into(), Some(json(&head_row))));
        control.push(("next_epoch".into(), Some(json(&c.next_epoch))));
        let state = HeadState { epoch, lineage, instance };
        self.meta.begin_epoch(epoch, rows, control, || self.set_head(state));
        frozen
    }

    /// What comes after the step: the frozen epoch's operations end, and it can be sealed.
    fn settle_step(&self, frozen: EpochId) {
        self.drain(frozen);
        self.work.lock().seal.push_back(frozen);
        self.wake.notify_all();
    }

    /// Makes the cut and names it, if the gate lets it pass.
    pub(crate) fn snapshot(
        &self,
        height: Height,
        options: &SnapshotOptions,
        gate: &dyn Gate,
    ) -> Result<Option<SnapshotInfo>> {
        heights::check_options(options)?;
        self.meta.check()?;
        self.check_space()?;
        self.await_sealing();
        let mut c = self.control.lock();
        let unchanged =
            |epoch| Ok(!self.meta.head_touched() && c.tree.parent(self.head().epoch) == Some(epoch));
        if let Some(epoch) = heights::check_new(&c.visible, height, unchanged)? {
            self.add_options(&mut c, epoch, options)?;
            return c.info(epoch).ok_or(Error::NoSnapshots).map(Some);
        }
        let row = SnapshotRow::new(height, options);
        let epoch = self.head().epoch;
        let passed = gate.pass(&mut || {
            self.step(&mut c, None, None, Vec::new(), vec![(snapshot_row(epoch), Some(json(&row)))]);
        });
        if !passed {
            return Ok(None);
        }
        self.settle_step(epoch);
        c.snapshots.insert(epoch, row);
        c.visible.insert(height, epoch);
        c.info(epoch).ok_or(Error::NoSnapshots).map(Some)
    }

    /// What is asked for with a snapshot that exists already is added to it, durably: nobody would wait for that.
    fn add_options(&self, c: &mut Control, epoch: EpochId, options: &SnapshotOptions) -> Result<()> {
        let Some(row) = c.snapshots.get_mut(&epoch).filter(|_| *options != SnapshotOptions::default()) else {
            return Ok(());
        };
        row.add(options);
        self.meta.apply_control(c.stored(epoch).into_iter().collect());
        self.commit(false)
    }

    /// Holds a snapshot back while more than [`UNSEALED_MOST`] epochs wait for sealing: each makes every look-up dearer.
    /// While more than [`UNHASHED_MOST`] wait for their hashes too: else those that are deleted could be merged ever later.
    fn await_sealing(&self) {
        if self.background_off() {
            return;
        }
        let since = std::time::Instant::now();
        let mut work = self.work.lock();
        while (work.seal.len() > UNSEALED_MOST
            || work.hash.len() > UNHASHED_MOST && since.elapsed() < FOR_HASHES)
            && work.seal_failed.is_none()
            && !work.stop
        {
            self.done.wait_for(&mut work, std::time::Duration::from_millis(100));
        }
    }

    /// Waits until an epoch is sealed.
    pub(crate) fn wait_sealed(&self, epoch: EpochId) -> Result<()> {
        loop {
            if self.control.lock().is_sealed(epoch) {
                return Ok(());
            }
            self.meta.check()?;
            if self.background_off() {
                self.work_off()?;
                continue;
            }
            let mut work = self.work.lock();
            if work.stop {
                return Err(Error::Closed);
            }
            if let Some(error) = work.seal_failed.clone() {
                return Err(Error::PreviousFailure { first: error });
            }
            self.done.wait_for(&mut work, std::time::Duration::from_millis(200));
        }
    }

    /// Protects a snapshot, or no longer.
    pub(crate) fn set_held(&self, height: Height, held: bool) -> Result<SnapshotInfo> {
        let mut c = self.control.lock();
        let epoch = c.find(HeightQuery::Exact(height))?;
        if let Some(row) = c.snapshots.get_mut(&epoch) {
            row.held = held;
            self.meta.apply_control(c.stored(epoch).into_iter().collect());
        }
        self.commit(false)?;
        c.info(epoch).ok_or(Error::NoSnapshots)
    }

    /// Adds labels to the snapshot of an epoch, as long as its height stands for it.
    pub(crate) fn add_labels(
        &self,
        height: Height,
        epoch: EpochId,
        labels: &BTreeMap<String, String>,
    ) -> Result<SnapshotInfo> {
        let mut c = self.control.lock();
        if c.find(HeightQuery::Exact(height))? != epoch {
            return Err(Error::NoSuchHeight { height, nearest: None });
        }
        if let Some(row) = c.snapshots.get_mut(&epoch) {
            let mut all = row.labels.clone();
            all.extend(labels.iter().map(|(key, value)| (key.clone(), value.clone())));
            let checked = SnapshotOptions { labels: all, ..SnapshotOptions::default() };
            crate::heights::check_options(&checked)?;
            row.labels = checked.labels;
            self.meta.apply_control(c.stored(epoch).into_iter().collect());
        }
        c.info(epoch).ok_or(Error::NoSnapshots)
    }

    /// Makes a snapshot's state the live head.
    pub(crate) fn rollback(
        self: &Arc<Self>,
        to: HeightQuery,
        preserve: &[PathBuf],
        dry_run: bool,
    ) -> Result<SwitchReport> {
        let epoch = self.control.lock().find(to)?;
        // What the new head stands on must be on the disk, or a power cut could take it from under the head.
        // (A dry run waits too: whoever tries dry first has nothing left to wait for when it counts.)
        self.wait_sealed(epoch)?;
        let mut c = self.control.lock();
        if c.find(to)? != epoch {
            return Err(Error::NoSnapshots);
        }
        let height = c.snapshots.get(&epoch).map(|s| s.height);
        let mut report = SwitchReport {
            height,
            hidden_heights: heights::above(&c.visible, height.unwrap_or(Height(0))),
            preserved: preserve.to_vec(),
            changed: Vec::new(),
        };
        preserve::check(self, preserve)?;
        if !dry_run {
            report.changed = self.switch(&mut c, epoch, None, preserve)?;
        }
        Ok(report)
    }

    /// Brings back the head that the latest switch left.
    pub(crate) fn undo(self: &Arc<Self>, preserve: &[PathBuf], dry_run: bool) -> Result<SwitchReport> {
        let c = self.control.lock();
        let (serial, left) = c.undoable().ok_or(Error::NothingToUndo)?;
        let back = Lineage::new(&c.tree, left.epoch);
        let there = |e: &EpochId| back.contains(*e);
        let newest = c.snapshots.iter().filter(|(e, _)| there(e)).map(|(_, s)| s.height).max();
        let hidden = c.visible.iter().filter(|(_, e)| !there(e)).map(|(&h, _)| h).collect();
        let mut report = SwitchReport {
            height: newest,
            hidden_heights: hidden,
            preserved: preserve.to_vec(),
            changed: Vec::new(),
        };
        drop(c);
        self.wait_sealed(left.epoch)?;
        preserve::check(self, preserve)?;
        if !dry_run {
            let mut c = self.control.lock();
            if c.undoable().is_none_or(|(s, _)| s != serial) {
                return Err(Error::NothingToUndo);
            }
            report.changed = self.switch(&mut c, left.epoch, Some(serial), preserve)?;
        }
        Ok(report)
    }

    /// The switch: a new head on top of `onto`; the old one is kept. One commit decides.
    fn switch(
        self: &Arc<Self>,
        c: &mut Control,
        onto: EpochId,
        undone: Option<u64>,
        preserve: &[PathBuf],
    ) -> Result<Vec<Ino>> {
        let _names = self.names.lock();
        self.meta.check()?;
        let old = self.head();
        // From here on the old head stands still: its handles fail, and what was under way has ended.
        old.instance.retired.store(true, Ordering::Release);
        self.drain(old.epoch);
        // What nobody holds any more goes last, when nothing else can fail.
        let path = Lineage::new(&c.tree, onto);
        let prepared = preserve::carry(self, &old, &path, c.next_epoch, preserve)
            .and_then(|carried| self.purge_orphans().map(|()| carried));
        let carried = prepared.inspect_err(|_| old.instance.retired.store(false, Ordering::Release))?;
        let serial = old.instance.serial + 1;
        let left = AbandonedRow { epoch: old.epoch, by_undo: undone.is_some() };
        let mut control: ControlBatch = vec![(abandoned_row(serial), Some(json(&left)))];
        if let Some(undone) = undone {
            control.push((abandoned_row(undone), None));
            c.abandoned.remove(&undone);
        }
        c.abandoned.insert(serial, left);
        self.begin(c, Some(onto), Some(serial), carried.rows, control);
        c.refresh_visible(&self.head().lineage);
        self.commit(false)?;
        Ok(carried.changed)
    }

    /// Removes the inodes that have no name any more. Callers hold `names`.
    pub(crate) fn purge_orphans(&self) -> Result<()> {
        let orphans: Vec<_> = self.orphans.lock().iter().copied().collect();
        let head = self.head();
        let lookup = super::tree::Lookup { core: self, lineage: &head.lineage };
        for ino in orphans {
            // A row of an older run may name an inode that has long been found a name or been removed.
            match lookup.inode(ino) {
                Ok(row) if row.nlink == 0 => super::head::purge(self, &lookup, ino, head.epoch)?,
                Ok(_) | Err(Error::NoEntry) => {
                    self.orphans.lock().remove(&ino);
                    self.meta.apply_control(vec![(super::head::orphan_row(ino), None)]);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
