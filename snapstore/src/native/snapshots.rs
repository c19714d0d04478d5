//! Snapshots: taking, holding and deleting them, and waiting until they are durable.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::catalog::EpochRow;
use super::core::{Core, Verb};
use super::engine::{Facts, Space};
use crate::backend::{DeleteReport, Gate, HeightQuery, SnapshotInfo, SnapshotOptions};
use crate::error::{Error, Result};
use crate::heights::{self, SnapshotRow};
use crate::types::{EpochId, Height};

impl Core {
    /// Makes the cut and names it, if the gate lets it pass.
    pub(crate) fn snapshot(
        self: &Arc<Core>,
        height: Height,
        options: &SnapshotOptions,
        gate: &dyn Gate,
    ) -> Result<Option<SnapshotInfo>> {
        heights::check_options(options)?;
        let mut verb = self.verb()?;
        let head = self.head();
        let (visible, base) = {
            let control = self.control.lock();
            let base = control.catalog.heads.get(&control.catalog.live).and_then(|row| row.base);
            (control.visible.clone(), base)
        };
        let unchanged =
            |newest| Ok(base == Some(newest) && !self.engine.changed_since(head.instance.head, newest)?);
        if let Some(epoch) = heights::check_new(&visible, height, unchanged)? {
            if *options != SnapshotOptions::default() {
                verb.commit(|c| c.snapshot_mut(epoch).map(|row| row.add(options)))?;
            }
            return self.info(epoch).ok_or(Error::NoSnapshots).map(Some);
        }
        let epoch = verb.reserve()?;
        let mut made = None;
        gate.pass(&mut || {
            let _still = head.instance.still();
            let row = SnapshotRow::new(height, options);
            let facts = Facts { height, time: row.time, hash: row.hash.clone() };
            made = Some(self.engine.snapshot(head.instance.head, epoch, &facts).map(|()| row));
        });
        let Some(made) = made else { return Ok(None) };
        verb.used();
        let row = match made {
            Ok(row) => row,
            Err(error) => {
                self.give_up_making(&mut verb);
                return Err(error);
            }
        };
        verb.commit(|c| {
            c.making.epochs.remove(&epoch);
            c.epochs.insert(epoch, EpochRow { parent: base, snapshot: Some(row) });
            c.head().base = Some(epoch);
        })?;
        self.poke();
        self.info(epoch).ok_or(Error::NoSnapshots).map(Some)
    }

    /// What an engine failed to make may be there in part: it is to be removed.
    pub(crate) fn give_up_making(&self, verb: &mut Verb<'_>) {
        verb.used();
        match verb.commit(|c| c.doom_making()) {
            Ok(()) => self.poke(),
            Err(error) => {
                tracing::error!(%error, "what could not be made is removed when the store is opened again")
            }
        }
    }

    /// Waits until the snapshot of an epoch survives a power cut.
    pub(crate) fn wait_durable(&self, epoch: EpochId) -> Result<()> {
        loop {
            if self.control.lock().catalog.snapshot(epoch).is_none_or(|row| row.durable) {
                return Ok(());
            }
            self.check()?;
            if self.no_background.load(Ordering::Acquire) {
                self.make_durable()?;
                continue;
            }
            let mut work = self.work.lock();
            if let Some(error) = work.last_error.clone() {
                return Err(Error::PreviousFailure { first: error });
            }
            self.done.wait_for(&mut work, Duration::from_millis(100));
        }
    }

    /// Protects a snapshot, or no longer.
    pub(crate) fn set_held(&self, height: Height, held: bool) -> Result<SnapshotInfo> {
        let verb = self.verb()?;
        let epoch = self.find(HeightQuery::Exact(height))?;
        verb.commit(|c| c.snapshot_mut(epoch).map(|row| row.held = held))?;
        self.info(epoch).ok_or(Error::NoSnapshots)
    }

    /// Adds labels to the snapshot of an epoch, as long as its height stands for it.
    pub(crate) fn add_labels(
        &self,
        height: Height,
        epoch: EpochId,
        labels: &BTreeMap<String, String>,
    ) -> Result<SnapshotInfo> {
        let verb = self.verb()?;
        if self.find(HeightQuery::Exact(height))? != epoch {
            return Err(Error::NoSuchHeight { height, nearest: None });
        }
        let there = self.control.lock().catalog.snapshot(epoch).map(|row| row.labels.clone());
        let mut options = SnapshotOptions { labels: there.unwrap_or_default(), ..SnapshotOptions::default() };
        options.labels.extend(labels.clone());
        heights::check_options(&options)?;
        verb.commit(|c| c.snapshot_mut(epoch).map(|row| row.labels = options.labels))?;
        self.info(epoch).ok_or(Error::NoSnapshots)
    }

    /// The epoch a query means.
    pub(crate) fn find(&self, query: HeightQuery) -> Result<EpochId> {
        heights::find(&self.control.lock().visible, query)
    }

    /// Deletes snapshots by name: all of them or none.
    pub(crate) fn delete(&self, heights: &[Height], dry_run: bool) -> Result<DeleteReport> {
        let verb = self.verb()?;
        let mut heights = heights.to_vec();
        heights.sort_unstable();
        heights.dedup();
        let epochs: Vec<EpochId> =
            heights.iter().map(|&height| self.find(HeightQuery::Exact(height))).collect::<Result<_>>()?;
        {
            let control = self.control.lock();
            let held = |epoch: &&EpochId| control.catalog.snapshot(**epoch).is_some_and(|row| row.held);
            if let Some(row) = epochs.iter().find(held).and_then(|&epoch| control.catalog.snapshot(epoch)) {
                return Err(Error::Held { height: row.height });
            }
        }
        let report = DeleteReport { heights, freed_bytes: self.exclusive(&epochs)? };
        if !dry_run && !epochs.is_empty() {
            verb.commit(|c| epochs.iter().for_each(|&epoch| c.doom_epoch(epoch)))?;
            self.end_views(&epochs);
            self.poke();
        }
        Ok(report)
    }

    /// Drops the heads that switches left, and what only they see.
    pub(crate) fn drop_abandoned(&self, dry_run: bool) -> Result<DeleteReport> {
        let verb = self.verb()?;
        let catalog = self.catalog();
        let base = catalog.heads.get(&catalog.live).and_then(|row| row.base);
        let seen: Vec<EpochId> = catalog.path(base).collect();
        let gone: Vec<EpochId> =
            catalog.epochs.keys().filter(|epoch| !seen.contains(epoch)).copied().collect();
        let rows = || gone.iter().filter_map(|&epoch| catalog.snapshot(epoch));
        if let Some(row) = rows().find(|row| row.held) {
            return Err(Error::Held { height: row.height });
        }
        let mut heights: Vec<Height> = rows().map(|row| row.height).collect();
        heights.sort_unstable();
        let report = DeleteReport { heights, freed_bytes: self.exclusive(&gone)? };
        if !dry_run {
            verb.commit(|c| {
                gone.iter().for_each(|&epoch| c.doom_epoch(epoch));
                for left in std::mem::take(&mut c.abandoned).into_values() {
                    c.heads.remove(&left.head);
                    if self.abilities.keeps_heads {
                        c.doomed.heads.insert(left.head);
                    }
                }
            })?;
            self.end_views(&gone);
            self.poke();
        }
        Ok(report)
    }

    /// What deleting each of these alone would free, together: what several of them share is not in it.
    fn exclusive(&self, epochs: &[EpochId]) -> Result<u64> {
        Ok(self.space(epochs)?.iter().map(|space| space.exclusive).sum())
    }

    /// Space of snapshots, as far as the engine knows it.
    pub(crate) fn space(&self, epochs: &[EpochId]) -> Result<Vec<Space>> {
        match self.abilities.space {
            true => self.engine.space(epochs),
            false => Ok(vec![Space::default(); epochs.len()]),
        }
    }
}
