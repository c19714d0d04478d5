//! Reclaim: giving back what nobody sees any more.
//!
//! Deleting a snapshot drops its name. Then its epoch is no tip any more, and in the background, for each such epoch:
//! * with no child, nobody sees it: its rows and layers go;
//! * with one child, it is seen only through the child: the two are **merged**. Of each row both have, the child's
//!   counts; layers are folded. The rows of the epoch with fewer of them move to the other, so that the cost follows
//!   what changed, never what there is;
//! * with more children, it stays until there are fewer.
//!
//! That an epoch is no tip and has at most one child can only become true, never false again: nothing can be begun
//! from an epoch without a name. So the work needs no lock against snapshots and rollbacks, and can stop anywhere:
//! each row moves in a commit of its own batch, and at every point all tips see what they saw.

use super::core::Core;
use super::database::RowWriter;
use super::fold::{Folded, fold, lift};
use super::lineage::Lineage;
use super::meta::ControlBatch;
use super::rows::{Key, KeyKind, LayerFile, LayerRow, Row};
use super::snapshots::{Control, abandoned_row, epoch_row, json, snapshot_row};
use crate::backend::{DeleteReport, HeightQuery};
use crate::error::{Error, Result};
use crate::types::{EpochId, Height, Ino};

/// Rows that one commit moves.
const BATCH: usize = 1024;

enum Step {
    Drop(EpochId),
    Merge { lower: EpochId, upper: EpochId },
}

impl Step {
    fn epoch(&self) -> EpochId {
        match *self {
            Step::Drop(epoch) | Step::Merge { lower: epoch, .. } => epoch,
        }
    }
}

/// What a batch did to layers.
#[derive(Default)]
struct Effects {
    gone: Vec<(Ino, LayerFile)>,
    replaced: Vec<Ino>,
}

impl Core {
    /// Deletes snapshots by name. The space comes back in the background.
    pub(crate) fn delete(&self, heights: &[Height], dry_run: bool) -> Result<DeleteReport> {
        let (epochs, census) = {
            let c = self.control.lock();
            (deletable(&c, heights)?, self.census(&c))
        };
        // Counted without holding up cuts and look-ups.
        let gone: Vec<EpochId> = epochs.iter().map(|&(_, e)| e).collect();
        let freed_bytes = self.freed_bytes(&census, &gone)?;
        let report = DeleteReport { heights: epochs.iter().map(|&(h, _)| h).collect(), freed_bytes };
        if dry_run || epochs.is_empty() {
            return Ok(report);
        }
        self.meta.check()?;
        let mut c = self.control.lock();
        if deletable(&c, heights)? != epochs {
            return Err(Error::NoSnapshots);
        }
        let newest_goes = c.visible.last_key_value().is_some_and(|(_, e)| gone.contains(e));
        let rows = gone.iter().map(|&e| (snapshot_row(e), None)).collect();
        self.forget_tips(&mut c, newest_goes, rows);
        for (height, epoch) in epochs {
            c.snapshots.remove(&epoch);
            c.visible.remove(&height);
        }
        self.ended.write().extend(gone);
        drop(c);
        self.commit(false)?;
        self.wake_reclaim();
        Ok(report)
    }

    /// Drops the heads that switches left, with the snapshots that only they see.
    pub(crate) fn drop_abandoned(&self, dry_run: bool) -> Result<DeleteReport> {
        let mut c = self.control.lock();
        let head = self.head();
        let off_path: Vec<(Height, EpochId)> = {
            let off = c.snapshots.iter().filter(|(e, _)| !head.lineage.contains(**e));
            off.map(|(&e, s)| (s.height, e)).collect()
        };
        if let Some((height, _)) = off_path.iter().find(|(_, e)| c.snapshots.get(e).is_some_and(|s| s.held)) {
            return Err(Error::Held { height: *height });
        }
        let left: Vec<(u64, EpochId)> = c.abandoned.iter().map(|(&s, a)| (s, a.epoch)).collect();
        let mut gone: Vec<EpochId> = off_path.iter().map(|&(_, e)| e).collect();
        gone.extend(left.iter().map(|&(_, e)| e).filter(|e| !c.visible.values().any(|v| v == e)));
        let census = self.census(&c);
        let freed_bytes = self.freed_bytes(&census, &gone)?;
        let mut heights: Vec<_> = off_path.iter().map(|&(h, _)| h).collect();
        heights.sort_unstable();
        if dry_run {
            return Ok(DeleteReport { heights, freed_bytes });
        }
        let snapshots = off_path.iter().map(|&(_, e)| (snapshot_row(e), None));
        let heads = left.iter().map(|&(s, _)| (abandoned_row(s), None));
        let rows = snapshots.chain(heads).collect();
        // A fork whose other branch goes may be the head's alone from here on.
        let gains = self.head_gains(&census, &gone);
        self.forget_tips(&mut c, gains, rows);
        for &(_, epoch) in &off_path {
            c.snapshots.remove(&epoch);
        }
        self.ended.write().extend(off_path.iter().map(|&(_, e)| e));
        c.abandoned.clear();
        drop(c);
        self.commit(false)?;
        self.wake_reclaim();
        Ok(DeleteReport { heights, freed_bytes })
    }

    /// Applies the rows that take tips away. If the head gains by it, what it has written since its epoch began hides
    /// some of what it gains: freezing it without a name lets that be given back now, not only after the next
    /// snapshot.
    fn forget_tips(&self, c: &mut Control, head_gains: bool, rows: ControlBatch) {
        if head_gains && self.meta.head_touched() {
            self.begin(c, None, None, Vec::new(), rows);
        } else {
            self.meta.apply_control(rows);
        }
    }

    fn wake_reclaim(&self) {
        self.work.lock().reclaim = true;
        self.wake.notify_all();
    }

    /// Does what there is to reclaim, until `stop` says so. A step that fails is left for the next time; the others
    /// go on.
    pub(crate) fn reclaim(&self, stop: impl Fn() -> bool) -> Result<()> {
        let mut failed = std::collections::HashSet::new();
        let mut first_error = None;
        loop {
            let mut steps = self.reclaimable()?;
            steps.retain(|step| !failed.contains(&step.epoch()));
            if steps.is_empty() {
                return first_error.map_or(Ok(()), Err);
            }
            // That a tip is gone is on the disk before anything that it saw is touched.
            if let Err(e) = self.commit(false) {
                // What failed first is what the caller is to know.
                return Err(first_error.unwrap_or(e));
            }
            for step in steps {
                if stop() || self.stopping.load(std::sync::atomic::Ordering::Acquire) {
                    return Ok(());
                }
                let _one = self.folding.lock();
                let done = match step {
                    Step::Drop(epoch) => self.drop_epoch(epoch),
                    Step::Merge { lower, upper } => self.merge(lower, upper),
                };
                if let Err(error) = done {
                    failed.insert(step.epoch());
                    first_error.get_or_insert(error);
                }
            }
        }
    }

    /// Epochs that can be dropped or merged now, newest first. The steps of one answer do not depend on each other's
    /// outcome being seen: an epoch is in at most one of them.
    fn reclaimable(&self) -> Result<Vec<Step>> {
        let candidates: Vec<(EpochId, Option<EpochId>)> = {
            let c = self.control.lock();
            let pinned = self.pinned_epochs();
            let idle = c.unseen(self.head().epoch).into_iter();
            let idle = idle.filter(|e| c.is_sealed(*e) && !pinned.contains(e));
            idle.filter_map(|e| match c.tree.children(e) {
                [] => Some((e, None)),
                [child] => Some((e, Some(*child))),
                _ => None,
            })
            .collect()
        };
        let mut steps = Vec::new();
        let mut used = std::collections::HashSet::new();
        for (epoch, child) in candidates {
            let Some(upper) = child else {
                steps.push(Step::Drop(epoch));
                continue;
            };
            // Empty ones go at once; of two with rows, both have to be final and to have their hashes.
            let empty = self.meta.touched(epoch, None, 1)?.is_empty();
            let sealed = self.control.lock().is_sealed(upper);
            let ready = empty || (sealed && !self.meta.touched(upper, None, 1)?.is_empty());
            // One that is only not hashed yet is in a step all the same: an earlier try may have changed bytes of it that
            // nobody sees, and a merge with what is below would.
            if ready
                && !used.contains(&upper)
                && used.insert(epoch)
                && (empty || self.are_hashed([epoch, upper]))
            {
                steps.push(Step::Merge { lower: epoch, upper });
            }
        }
        Ok(steps)
    }

    /// Removes everything an epoch has that nobody sees.
    fn drop_epoch(&self, epoch: EpochId) -> Result<()> {
        loop {
            let keys = self.meta.touched(epoch, None, BATCH)?;
            if keys.is_empty() {
                break;
            }
            let mut effects = Effects::default();
            self.layers_changing();
            self.meta.rewrite(|w| {
                for key in &keys {
                    if let (KeyKind::Layer(ino), Some(Some(bytes))) = (key.kind(), w.get(key, epoch)?) {
                        let file = LayerRow::decode(&bytes)?.file;
                        w.remove_sums(ino, file)?;
                        effects.gone.push((ino, file));
                        effects.replaced.push(ino);
                    }
                    w.remove(key, epoch)?;
                }
                Ok(())
            })?;
            self.take_effect(effects, &[epoch])?;
        }
        self.forget_epoch(epoch)
    }

    /// Merges an epoch with its only child.
    fn merge(&self, lower: EpochId, upper: EpochId) -> Result<()> {
        let (fewer_below, lineage) = {
            let below = self.meta.count_touched(lower, u64::MAX)?;
            let above = self.meta.count_touched(upper, below + 1)?;
            (below <= above, Lineage::new(&self.control.lock().tree, lower))
        };
        let from = if fewer_below { lower } else { upper };
        loop {
            let keys = self.meta.touched(from, None, BATCH)?;
            if keys.is_empty() {
                break;
            }
            let mut folded = Vec::new();
            for key in &keys {
                folded.push(self.fold_rows(key, lower, upper)?);
            }
            let mut effects = Effects::default();
            self.layers_changing();
            self.meta.rewrite(|w| {
                for (key, folded) in keys.iter().zip(folded) {
                    let older = self.meta.newest_below(&lineage, key, lower)?.is_some();
                    let move_ = Move { lower, upper, into_upper: fewer_below, older };
                    move_.row(w, key, folded, &mut effects)?;
                }
                Ok(())
            })?;
            self.take_effect(effects, &[lower, upper])?;
        }
        if self.meta.touched(lower, None, 1)?.is_empty() { self.forget_epoch(lower) } else { Ok(()) }
    }

    /// Folds the layers that both epochs have for a key, if it is a layer's.
    fn fold_rows(&self, key: &Key, lower: EpochId, upper: EpochId) -> Result<Option<Folded>> {
        let KeyKind::Layer(ino) = key.kind() else { return Ok(None) };
        let (Some(Some(below)), Some(Some(above))) =
            (self.meta.row_at(key, lower)?, self.meta.row_at(key, upper)?)
        else {
            return Ok(None);
        };
        let (below, mut above) = (LayerRow::decode(&below)?, LayerRow::decode(&above)?);
        if let Some((lifted, sums)) = lift(self, ino, &below, &above)? {
            self.layers_changing();
            self.meta.rewrite(|w| {
                w.edit_sums(ino, lifted.file, &sums)?;
                w.put(key, upper, Some(&lifted.encode()))
            })?;
            self.layers_replaced(ino, &[upper])?;
            above = lifted;
        }
        fold(self, ino, &below, &above).map(Some)
    }

    /// After the commit: open files let go of the old layers, then their files go.
    fn take_effect(&self, effects: Effects, epochs: &[EpochId]) -> Result<()> {
        let mut done = Ok(());
        for ino in effects.replaced {
            done = done.and(self.layers_replaced(ino, epochs));
        }
        // A file whose reader could not be told stays until the next mount sweeps it up.
        if done.is_ok() && !effects.gone.is_empty() {
            self.work.lock().remove.extend(effects.gone);
            self.wake.notify_all();
        }
        done
    }

    /// Takes an epoch without rows out of the tree.
    fn forget_epoch(&self, epoch: EpochId) -> Result<()> {
        let mut c = self.control.lock();
        let children = c.tree.remove(epoch);
        let mut rows = vec![(epoch_row(epoch), None)];
        for child in children {
            rows.extend(c.tree.get(child).map(|row| (epoch_row(child), Some(json(row)))));
        }
        self.meta.apply_control(rows);
        Ok(())
    }
}

/// The snapshots of these heights, each once: they must exist and not be held.
fn deletable(c: &Control, heights: &[Height]) -> Result<Vec<(Height, EpochId)>> {
    let mut epochs = Vec::new();
    for &height in heights {
        let epoch = c.find(HeightQuery::Exact(height))?;
        if c.snapshots.get(&epoch).is_some_and(|s| s.held) {
            return Err(Error::Held { height });
        }
        epochs.push((height, epoch));
    }
    epochs.sort_unstable();
    epochs.dedup();
    Ok(epochs)
}

/// How the rows of two epochs become one's.
struct Move {
    lower: EpochId,
    upper: EpochId,
    /// Into which of the two the rows go.
    into_upper: bool,
    /// There are versions older than both.
    older: bool,
}

impl Move {
    fn row(
        &self,
        w: &mut RowWriter<'_>,
        key: &Key,
        folded: Option<Folded>,
        effects: &mut Effects,
    ) -> Result<()> {
        let below = w.get(key, self.lower)?;
        let above = w.get(key, self.upper)?;
        let result = match (&folded, &above) {
            (Some(folded), _) => Some(folded.row.encode()),
            (None, Some(above)) => above.clone(),
            (None, None) => below.clone().flatten(),
        };
        if let KeyKind::Layer(ino) = key.kind() {
            effects.replaced.push(ino);
            match (folded, &above, &below) {
                (Some(folded), _, _) => {
                    w.edit_sums(ino, folded.row.file, &folded.sums)?;
                    w.remove_sums(ino, folded.gone)?;
                    effects.gone.push((ino, folded.gone));
                }
                // Removed above: nothing shows of what is below.
                (None, Some(None), Some(Some(bytes))) => {
                    let file = LayerRow::decode(bytes)?.file;
                    w.remove_sums(ino, file)?;
                    effects.gone.push((ino, file));
                }
                _ => {}
            }
        }
        let (into, from) = if self.into_upper { (self.upper, self.lower) } else { (self.lower, self.upper) };
        w.remove(key, from)?;
        match result {
            // Nothing left to hide: the tombstone goes too.
            None if !self.older => w.remove(key, into),
            result => w.put(key, into, result.as_deref()),
        }
    }
}
