//! A native store as a [`Backend`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::core::Core;
use super::worker::{self, Worker};
use crate::backend::{
    Backend, BackendKind, DeleteReport, Gate, Head, HeightQuery, SnapshotInfo, SnapshotOptions, SwitchReport,
    Usage, View,
};
use crate::chunk::lock::StoreLock;
use crate::chunk::{OpenOptions, Recovery};
use crate::error::{Error, Result};
use crate::merkle::{self, Hash};
use crate::progress::Progress;
use crate::types::{EpochId, Height};
use crate::verify::{self, Activity, VerifyReport};

/// How long the file system below may take to give back what was deleted, before somebody who waits for it goes on.
const FREEING: Duration = Duration::from_secs(60);

/// A store that is open.
pub(crate) struct NativeStore {
    pub core: Arc<Core>,
    worker: Mutex<Option<Worker>>,
    /// Holds the store's lock until the store is dropped.
    lock: Mutex<Option<StoreLock>>,
    closed: Mutex<bool>,
}

impl NativeStore {
    /// Starts the background of a store that has been opened and recovered.
    pub(crate) fn start(
        (core, recovery): (Arc<Core>, Recovery),
        lock: Option<StoreLock>,
        options: &OpenOptions,
    ) -> Result<(Arc<NativeStore>, Recovery)> {
        core.no_background.store(options.no_background, Ordering::Release);
        let worker = if options.no_background { None } else { Some(Worker::start(&core)?) };
        let store = NativeStore {
            core,
            worker: Mutex::new(worker),
            lock: Mutex::new(lock),
            closed: Mutex::new(false),
        };
        Ok((Arc::new(store), recovery))
    }

    fn shut(&self) -> Result<()> {
        let core = &self.core;
        if core.check().is_err() {
            return core.check();
        }
        {
            let head = core.head();
            let _still = head.instance.still();
            head.instance.retire(true);
        }
        core.engine.sync()?;
        core.make_durable()?;
        if let Err(error) = core.reclaim() {
            // The next opening goes on with it.
            tracing::warn!(%error, "what was deleted is not removed yet");
        }
        core.engine.close()?;
        core.verb()?.commit(|c| c.clean = true)
    }
}

impl Backend for NativeStore {
    fn kind(&self) -> BackendKind {
        self.core.engine.kind()
    }

    fn head(&self) -> Arc<dyn Head> {
        self.core.head()
    }

    fn head_serial(&self) -> u64 {
        self.core.control.lock().catalog.serial
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
        self.core.wait_durable(epoch)
    }

    fn snapshots(&self, space: bool) -> Result<Vec<SnapshotInfo>> {
        let mut infos: Vec<SnapshotInfo> = {
            let control = self.core.control.lock();
            let rows = control.visible.values();
            rows.filter_map(|&epoch| Some(control.catalog.snapshot(epoch)?.info(epoch, 0))).collect()
        };
        if space {
            let epochs: Vec<EpochId> = infos.iter().map(|info| info.epoch).collect();
            for (info, space) in infos.iter_mut().zip(self.core.space(&epochs)?) {
                (info.referenced_bytes, info.exclusive_bytes) = (space.referenced, space.exclusive);
            }
        }
        Ok(infos)
    }

    fn heights(&self) -> Vec<Height> {
        self.core.control.lock().visible.keys().copied().collect()
    }

    fn find(&self, query: HeightQuery) -> Result<SnapshotInfo> {
        let epoch = self.core.find(query)?;
        let mut info = self.core.info(epoch).ok_or(Error::NoSnapshots)?;
        if let Some(space) = self.core.space(&[epoch])?.first() {
            (info.referenced_bytes, info.exclusive_bytes) = (space.referenced, space.exclusive);
        }
        Ok(info)
    }

    fn view(&self, query: HeightQuery) -> Result<View> {
        self.core.view(self.core.find(query)?)
    }

    fn view_at(&self, time: jiff::Timestamp) -> Result<View> {
        let epoch = {
            let control = self.core.control.lock();
            let taken =
                control.visible.values().filter_map(|&e| Some((control.catalog.snapshot(e)?.time, e)));
            taken.filter(|(t, _)| *t <= time).max().ok_or(Error::NoSnapshotAt { time })?.1
        };
        self.core.view(epoch)
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

    /// What snapshots share with each other is freed with the last of them, which no file system tells beforehand.
    fn tells_what_is_freed(&self) -> bool {
        false
    }

    fn tells_history(&self) -> bool {
        self.core.abilities.history
    }

    fn wait_freed(&self) -> Result<bool> {
        self.settle()?;
        let given_back = self.core.engine.wait_freed(FREEING)?;
        // What is deleted while a view of it is open goes with that.
        Ok(given_back && self.core.control.lock().catalog.doomed.epochs.is_empty())
    }

    fn usage(&self) -> Result<Usage> {
        let (live, metadata_bytes, undo_depth) = {
            let control = self.core.control.lock();
            let catalog = &control.catalog;
            (catalog.live, catalog.bytes()?.len() as u64, catalog.abandoned.len() as u64)
        };
        let totals = self.core.engine.totals(live)?;
        Ok(Usage {
            live_bytes: totals.live,
            history_bytes: totals.history,
            metadata_bytes,
            undo_depth,
            ..Usage::default()
        })
    }

    fn settle(&self) -> Result<()> {
        worker::settle(&self.core)
    }

    /// The file system below has its own checksums, or has none: what can be said is what cannot be read.
    fn verify(&self, height: Option<Height>, progress: &dyn Progress) -> Result<VerifyReport> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let heights = height.map_or_else(|| self.heights(), |height| vec![height]);
        let mut report = VerifyReport::default();
        let noted = Noted { core: &self.core, progress, done: AtomicU64::new(0) };
        *self.core.activity.lock() = Some(Activity::default());
        let mut read = || -> Result<()> {
            for &at in &heights {
                progress.step(&format!("reading height {at}"), None);
                let view = match self.view(HeightQuery::Exact(at)) {
                    // Deleted meanwhile.
                    Err(Error::NoSuchHeight { .. } | Error::NoSnapshots) if height.is_none() => continue,
                    view => view?,
                };
                verify::tree(&*view.tree, Some(at), None, threads, &noted, &mut report)?;
                report.heights += 1;
            }
            if height.is_none() {
                progress.step("reading the live head", None);
                match verify::tree(&*self.core.head(), None, None, threads, &noted, &mut report) {
                    // Rolled back meanwhile.
                    Err(Error::Stale) => {}
                    done => done?,
                }
            }
            Ok(())
        };
        let done = read();
        *self.core.activity.lock() = None;
        done?;
        // Nothing was compared with a hash of ours.
        report.unhashed_bytes = std::mem::take(&mut report.bytes);
        report.damaged.sort();
        Ok(report)
    }

    fn activity(&self) -> Option<Activity> {
        *self.core.activity.lock()
    }

    fn root_hash(&self, height: Height) -> Result<Hash> {
        let epoch = self.core.find(HeightQuery::Exact(height))?;
        let known = self.core.control.lock().catalog.snapshot(epoch).and_then(|row| row.root);
        if let Some(root) = known {
            return Ok(root);
        }
        let root = merkle::root(&*self.core.view(epoch)?.tree)?;
        let verb = self.core.verb()?;
        verb.commit(|c| c.snapshot_mut(epoch).map(|row| row.root = Some(root)))?;
        Ok(root)
    }

    fn passthrough(&self) -> bool {
        self.core.abilities.passthrough
    }

    fn limits(&self) -> Vec<String> {
        let mut limits = self.core.abilities.limits.clone();
        limits.extend(self.core.findings.lock().iter().cloned());
        limits
    }

    fn last_error(&self) -> Option<String> {
        let work = self.core.work.lock();
        work.failed.clone().or_else(|| work.last_error.clone())
    }

    fn close(&self) -> Result<()> {
        let mut closed = self.closed.lock();
        if *closed {
            return Ok(());
        }
        if let Some(worker) = self.worker.lock().take() {
            worker.stop(&self.core);
        }
        let done = self.shut();
        self.core.work.lock().closed = true;
        self.core.done.notify_all();
        *self.lock.lock() = None;
        *closed = true;
        done
    }
}

impl Drop for NativeStore {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "closing the store failed");
        }
    }
}

/// Passes progress on, and notes it for whoever asks.
struct Noted<'a> {
    core: &'a Core,
    progress: &'a dyn Progress,
    done: AtomicU64,
}

impl Progress for Noted<'_> {
    fn step(&self, name: &str, total: Option<u64>) {
        self.progress.step(name, total);
    }

    fn advance(&self, units: u64) {
        let done = self.done.fetch_add(units, Ordering::Relaxed) + units;
        if let Some(activity) = &mut *self.core.activity.lock() {
            *activity = Activity { done, total: done };
        }
        self.progress.advance(units);
    }
}
