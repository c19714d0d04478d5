//! The chunk store as a [`Backend`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::core::Core;
use super::head::ChunkHead;
use super::lineage::Lineage;
use super::tree::ViewTree;
use super::worker::Workers;
use crate::backend::{
    Backend, BackendKind, DeleteReport, Gate, Head, HeightQuery, SnapshotInfo, SnapshotOptions, SwitchReport,
    Usage, View,
};
use crate::error::{Error, Result};
use crate::merkle::Hash;
use crate::progress::Progress;
use crate::sync::Mutex;
use crate::types::{EpochId, Height};
use crate::verify::{Activity, ScrubResult, VerifyReport};

/// A store that is open.
pub(crate) struct ChunkStore {
    pub core: Arc<Core>,
    pub workers: Mutex<Option<Workers>>,
    /// Holds the store's lock until the store is dropped.
    pub lock: Mutex<Option<super::lock::StoreLock>>,
    pub closed: Mutex<bool>,
}

impl ChunkStore {
    fn view_of(&self, epoch: EpochId) -> Result<View> {
        let c = self.core.control.lock();
        let row = c.snapshots.get(&epoch).ok_or(Error::NoSnapshots)?;
        let (height, time) = (row.height, row.time);
        let lineage = Lineage::new(&c.tree, epoch);
        let tree = Arc::new(ViewTree::new(&self.core, lineage));
        Ok(View { epoch, height, time, tree })
    }
}

impl Backend for ChunkStore {
    fn kind(&self) -> BackendKind {
        BackendKind::Chunk
    }

    fn head(&self) -> Arc<dyn Head> {
        let instance = Arc::clone(&self.core.head().instance);
        Arc::new(ChunkHead { core: Arc::clone(&self.core), instance })
    }

    fn head_serial(&self) -> u64 {
        self.core.head().instance.serial
    }

    fn cut(
        &self,
        height: Height,
        options: &SnapshotOptions,
        gate: &dyn Gate,
    ) -> Result<Option<SnapshotInfo>> {
        self.core.snapshot(height, options, gate)
    }

    fn wait_durable(&self, epoch: EpochId) -> Result<()> {
        self.core.wait_sealed(epoch)
    }

    fn snapshots(&self, space: bool) -> Result<Vec<SnapshotInfo>> {
        let mut infos: Vec<_> = {
            let c = self.core.control.lock();
            c.visible.values().filter_map(|&e| c.info(e)).collect()
        };
        if space {
            let epochs: Vec<_> = infos.iter().map(|info| info.epoch).collect();
            for (info, bytes) in infos.iter_mut().zip(self.core.exclusive_bytes(&epochs)?) {
                info.exclusive_bytes = bytes;
            }
        }
        Ok(infos)
    }

    fn heights(&self) -> Vec<Height> {
        self.core.control.lock().visible.keys().copied().collect()
    }

    fn find(&self, query: HeightQuery) -> Result<SnapshotInfo> {
        let mut info = {
            let c = self.core.control.lock();
            let epoch = c.find(query)?;
            c.info(epoch).ok_or(Error::NoSnapshots)?
        };
        info.exclusive_bytes = self.core.exclusive_bytes(&[info.epoch])?.iter().sum();
        Ok(info)
    }

    fn view(&self, query: HeightQuery) -> Result<View> {
        let epoch = self.core.control.lock().find(query)?;
        self.view_of(epoch)
    }

    fn view_at(&self, time: jiff::Timestamp) -> Result<View> {
        let epoch = {
            let c = self.core.control.lock();
            let before = c.visible.values().filter_map(|e| Some((c.snapshots.get(e)?.time, *e)));
            before.filter(|(t, _)| *t <= time).max().ok_or(Error::NoSnapshotAt { time })?.1
        };
        self.view_of(epoch)
    }

    fn rollback(&self, to: HeightQuery, preserve: &[PathBuf], dry_run: bool) -> Result<SwitchReport> {
        self.core.rollback(to, preserve, dry_run)
    }

    fn undo_rollback(&self, dry_run: bool) -> Result<SwitchReport> {
        self.core.undo(&[], dry_run)
    }

    fn undo_rollback_preserving(&self, preserve: &[PathBuf], dry_run: bool) -> Result<SwitchReport> {
        self.core.undo(preserve, dry_run)
    }

    fn delete(&self, heights: &[Height], dry_run: bool) -> Result<DeleteReport> {
        self.core.delete(heights, dry_run)
    }

    fn drop_abandoned(&self, dry_run: bool) -> Result<DeleteReport> {
        self.core.drop_abandoned(dry_run)
    }

    fn set_held(&self, height: Height, held: bool) -> Result<SnapshotInfo> {
        self.core.set_held(height, held)
    }

    fn add_labels(
        &self,
        height: Height,
        epoch: EpochId,
        labels: &BTreeMap<String, String>,
    ) -> Result<SnapshotInfo> {
        self.core.add_labels(height, epoch, labels)
    }

    fn usage(&self) -> Result<Usage> {
        self.core.usage()
    }

    fn settle(&self) -> Result<()> {
        self.core.settle()
    }

    fn verify(&self, height: Option<Height>, progress: &dyn Progress) -> Result<VerifyReport> {
        self.core.wait_hashed()?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        super::verify::verify(&self.core, height, threads, progress)
    }

    fn activity(&self) -> Option<Activity> {
        *self.core.activity.lock()
    }

    fn last_scrub(&self) -> Option<ScrubResult> {
        self.core.last_scrub()
    }

    fn root_hash(&self, height: Height) -> Result<Hash> {
        super::verify::root_hash(&self.core, height)
    }

    fn last_error(&self) -> Option<String> {
        self.core.work.lock().last_error.clone()
    }

    fn close(&self) -> Result<()> {
        let mut closed = self.closed.lock();
        if *closed {
            return Ok(());
        }
        let done = super::database::guarded(|| super::open::close(&self.core));
        if let Some(mut workers) = self.workers.lock().take() {
            workers.stop();
        }
        self.core.meta.close();
        *self.lock.lock() = None;
        *closed = true;
        done
    }
}

impl Drop for ChunkStore {
    fn drop(&mut self) {
        if let Err(e) = self.close() {
            tracing::error!("closing the store: {e}");
        }
    }
}
