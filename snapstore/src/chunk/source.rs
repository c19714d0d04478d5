//! What a commit asks of the layers that its rows refer to.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::core::Core;
use super::meta::{LayerCommit, Source};
use super::rows::{LayerRow, Row};
use crate::error::Result;
use crate::types::{EpochId, Ino};

impl Source for Core {
    fn begin_commit(&self) {
        // Before the memtables are closed: a file is discarded only after the change that replaced it was applied.
        let discarded = std::mem::take(&mut *self.discarded.lock());
        self.doomed.lock().extend(discarded);
    }

    fn before_commit(
        &self,
        ino: Ino,
        epoch: EpochId,
        row: &[u8],
        full: bool,
        put_off: &HashSet<(Ino, EpochId)>,
    ) -> Result<LayerCommit> {
        let Some(layer) = self.pinned_layer(ino, epoch) else {
            // Its inode was removed after the memtables were closed: the next commit says so, and nobody vouches
            // for the file meanwhile. Rows that were never in memory as layers hide nothing and go as they are.
            let row = LayerRow::decode(row)?;
            return Ok(if row.limit > 0 && !row.sealed { LayerCommit::Skip } else { LayerCommit::AsIs });
        };
        // What it inherits from may have become durable a moment after its own turn: on the disk this one would inherit
        // from what that one replaces.
        let inherits =
            !put_off.is_empty() && layer.inherits_from(|ino, epoch| put_off.contains(&(ino, epoch)));
        if inherits || layer.barrier && !layer.anchored.load(Ordering::Acquire) {
            if inherits || !full {
                // The disk's row still leads to what this layer replaced.
                let mut doomed = self.doomed.lock();
                let kept = doomed.extract_if(.., |(i, file)| *i == ino && file.epoch == epoch);
                self.discarded.lock().extend(kept);
                return Ok(LayerCommit::Defer);
            }
            if let Err(e) = self.sync_layer(&layer) {
                // One file's trouble is not everybody's: its row waits, its own fsync fails.
                tracing::error!("a layer cannot be synced: {e}");
                return Ok(LayerCommit::Defer);
            }
        }
        let with_chunks = !self.holes_exact || self.closing.load(Ordering::Acquire);
        let row = self.take_row(&layer, with_chunks);
        if with_chunks {
            // The map in the row must not promise a chunk that is not on the disk.
            self.sync_layer(&layer)?;
        }
        self.encoded.lock().push(layer);
        Ok(LayerCommit::Write(row))
    }

    fn sync_promised(&self) -> Result<()> {
        let promised = std::mem::take(&mut *self.promised.lock());
        self.sync_layers(&promised)
    }

    fn after_commit(&self) {
        // These very layers: one that has replaced another since then is not on the disk yet.
        let encoded = std::mem::take(&mut *self.encoded.lock());
        {
            let mut pinned = self.pinned.lock();
            for layer in &encoded {
                layer.row_on_disk.store(true, Ordering::Release);
                let key = (layer.ino, layer.epoch);
                if !layer.in_memtable.load(Ordering::Acquire)
                    && pinned.get(&key).is_some_and(|p| Arc::ptr_eq(p, layer))
                {
                    pinned.remove(&key);
                }
            }
        }
        let doomed = std::mem::take(&mut *self.doomed.lock());
        if !doomed.is_empty() {
            self.work.lock().remove.extend(doomed);
            self.wake.notify_all();
        }
    }
}
