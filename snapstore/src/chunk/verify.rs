//! Verifying a chunk store, and the scrub, which does it unasked.
//!
//! Each layer is read once, however many heights see it, and compared with its hashes. What does not fit is only
//! suspected then: folding leaves bytes behind that nobody sees, and may go on meanwhile. So the files concerned are
//! read again as each height shows them, which tells what is damaged where, by name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::compare::{compare, push_parts};
use super::core::Core;
use super::head::ChunkHead;
use super::lineage::Lineage;
use super::rows::{DentryRow, InodeRow, Key, KeyKind, LayerRow, Row};
use super::snapshots::json;
use super::tree::ViewTree;
use super::unhashed::Hashing;
use crate::backend::HeightQuery;
use crate::error::{Error, Result};
use crate::merkle::{self, Hash};
use crate::progress::Progress;
use crate::types::{CHUNK_SIZE, EpochId, Height, Ino};
use crate::verify::{self, Activity, Damage, ScrubResult, VerifyReport};

/// A scrub reads so many bytes a second at most.
const SCRUB_RATE: u64 = 64 << 20;
/// From one scrub to the next.
const SCRUB_EVERY: jiff::SignedDuration = jiff::SignedDuration::from_hours(7 * 24);
/// A store that was just opened is left alone for so long.
pub(super) const SCRUB_AFTER: Duration = Duration::from_secs(120);

/// Reads everything, or what one height shows, on so many threads.
pub(crate) fn verify(
    core: &Arc<Core>,
    height: Option<Height>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let _activity = core.begin_activity();
    let progress = &Noted { core, progress };
    if let Some(height) = height {
        let (view, bytes) = view(core, height)?;
        report.heights = 1;
        progress.step("reading", Some(bytes));
        verify::tree(&view, Some(height), None, threads, progress, &mut report)?;
        report.damaged.sort();
        return Ok(report);
    }
    let suspects = core.check_layers(threads, progress, &mut report)?;
    let heights: Vec<Height> = core.control.lock().visible.keys().copied().collect();
    report.heights = heights.len() as u64;
    if !suspects.is_empty() {
        progress.step("finding out where", None);
        let mut again = VerifyReport::default();
        for height in heights {
            let looked = view(core, height).and_then(|(view, _)| {
                verify::tree(&view, Some(height), Some(&suspects), threads, progress, &mut again)
            });
            match looked {
                // Deleted meanwhile.
                Err(Error::Stale | Error::NoSuchHeight { .. }) => {}
                done => done?,
            }
        }
        let head = ChunkHead { core: Arc::clone(core), instance: Arc::clone(&core.head().instance) };
        match verify::tree(&head, None, Some(&suspects), threads, progress, &mut again) {
            // Rolled back meanwhile: the next time finds it.
            Err(Error::Stale) => {}
            done => done?,
        }
        report.damaged.append(&mut again.damaged);
    }
    report.damaged.sort();
    Ok(report)
}

/// What a height shows, and how many bytes that are.
fn view(core: &Arc<Core>, height: Height) -> Result<(ViewTree, u64)> {
    let c = core.control.lock();
    let epoch = c.find(HeightQuery::Exact(height))?;
    let bytes = c.info(epoch).map_or(0, |info| info.referenced_bytes);
    Ok((ViewTree::new(core, Lineage::new(&c.tree, epoch)), bytes))
}

/// The root hash of a snapshot's tree, from what is kept of it, or worked out now.
pub(crate) fn root_hash(core: &Arc<Core>, height: Height) -> Result<Hash> {
    let (epoch, known) = {
        let c = core.control.lock();
        let epoch = c.find(HeightQuery::Exact(height))?;
        (epoch, c.snapshots.get(&epoch).and_then(|row| row.root))
    };
    if let Some(root) = known {
        return Ok(root);
    }
    // An unsealed epoch is final too, but its hashes are not there yet.
    core.wait_sealed(epoch)?;
    let root = merkle::root(&view(core, height)?.0)?;
    let mut c = core.control.lock();
    if let Some(row) = c.snapshots.get_mut(&epoch) {
        row.root = Some(root);
        core.meta.apply_control(c.stored(epoch).into_iter().collect());
    }
    Ok(root)
}

/// Passes progress on, and notes it for whoever asks.
struct Noted<'a> {
    core: &'a Core,
    progress: &'a dyn Progress,
}

impl Progress for Noted<'_> {
    fn step(&self, name: &str, total: Option<u64>) {
        if let (Some(total), Some(activity)) = (total, &mut *self.core.activity.lock()) {
            *activity = Activity { done: 0, total };
        }
        self.progress.step(name, total);
    }

    fn advance(&self, units: u64) {
        if let Some(activity) = &mut *self.core.activity.lock() {
            activity.done += units;
        }
        self.progress.advance(units);
    }
}

/// Ends what [`Core::begin_activity`] began.
struct Active<'a>(&'a Core);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        *self.0.activity.lock() = None;
    }
}

impl Core {
    fn begin_activity(&self) -> Active<'_> {
        *self.activity.lock() = Some(Activity::default());
        Active(self)
    }

    /// Decodes all rows, and compares all sealed layers with their hashes. The inodes of those that do not fit.
    fn check_layers(
        &self,
        threads: usize,
        progress: &dyn Progress,
        report: &mut VerifyReport,
    ) -> Result<BTreeSet<Ino>> {
        let mut parts = Vec::new();
        let mut total = 0;
        let damaged = &mut report.damaged;
        progress.step("reading the metadata", None);
        self.meta.for_each_row(|key, epoch, value| {
            if let Err(error) = value.map_or(Ok(()), |bytes| decodes(key, bytes)) {
                let detail = format!("{error} (epoch {epoch})");
                damaged.push(Damage { height: None, path: "".into(), offset: 0, length: 0, detail });
            } else if let (KeyKind::Layer(ino), Some(bytes)) = (key.kind(), value) {
                let row = LayerRow::decode(bytes)?;
                if row.sealed {
                    total += row.blocks * 512;
                    push_parts(&mut parts, ino, epoch, &row);
                }
            }
            Ok(())
        })?;
        progress.step("reading", Some(total));
        let found = compare(self, &parts, threads, progress)?;
        report.bytes += found.bytes;
        report.unhashed_bytes += found.unhashed_bytes;
        Ok(found.suspects)
    }

    /// Hashes what has no hashes, mostly because it was adopted: from then on damage shows.
    pub(crate) fn sum_adopted(&self, progress: &dyn Progress) -> Result<()> {
        let mut layers: BTreeMap<EpochId, Vec<Ino>> = BTreeMap::new();
        self.meta.for_each_row(|key, epoch, value| {
            if let (KeyKind::Layer(ino), Some(bytes)) = (key.kind(), value)
                && let Ok(row) = LayerRow::decode(bytes)
                && row.sealed
                && !row.summed
            {
                layers.entry(epoch).or_default().push(ino);
            }
            Ok(())
        })?;
        for (epoch, inodes) in layers {
            let go_on = &mut |chunks: u64| {
                progress.advance(chunks * CHUNK_SIZE);
                !self.stopping.load(Ordering::Acquire)
            };
            match self.hash_layers(epoch, inodes, go_on)? {
                Hashing::Done => {}
                Hashing::Stopped => return Err(Error::Closed),
                Hashing::NoRoom => break,
            }
        }
        Ok(())
    }

    /// When the last scrub ended, and what it found.
    pub(crate) fn last_scrub(&self) -> Option<ScrubResult> {
        let rows = self.meta.control("scrub").ok()?;
        rows.first().and_then(|(_, bytes)| serde_json::from_slice(bytes).ok())
    }

    /// A scrub, if one is due.
    pub(crate) fn scrub_if_due(self: &Arc<Self>) -> Result<()> {
        let due = self
            .last_scrub()
            .is_none_or(|last| jiff::Timestamp::now().duration_since(last.time) > SCRUB_EVERY);
        if due { self.scrub(&Throttle::new(self, SCRUB_RATE)).map(drop) } else { Ok(()) }
    }

    /// Hashes what has no hash, and verifies everything.
    pub(crate) fn scrub(self: &Arc<Self>, progress: &dyn Progress) -> Result<ScrubResult> {
        self.sum_adopted(progress)?;
        // One thread: the running program is to have the others.
        let report = verify(self, None, 1, progress)?;
        for damage in &report.damaged {
            tracing::error!(?damage, "the scrub has found damaged data");
        }
        let result = ScrubResult {
            time: jiff::Timestamp::now(),
            bytes: report.bytes,
            damaged: report.damaged.len() as u64,
        };
        let row = json(&result);
        self.meta.apply_control(vec![("scrub".into(), Some(row))]);
        self.commit(false)?;
        Ok(result)
    }
}

/// Whether a row says something.
fn decodes(key: &Key, bytes: &[u8]) -> Result<()> {
    match key.kind() {
        KeyKind::Inode(_) => InodeRow::decode(bytes).map(drop),
        KeyKind::Dentry(..) => DentryRow::decode(bytes).map(drop),
        KeyKind::Xattr(..) => Ok(()),
        KeyKind::Layer(_) => LayerRow::decode(bytes).map(drop),
    }
}

/// Slows down whoever tells it of progress.
pub(super) struct Throttle<'a> {
    core: &'a Core,
    rate: u64,
    since: Mutex<(Instant, u64)>,
}

impl<'a> Throttle<'a> {
    /// `rate`: bytes a second.
    pub(super) fn new(core: &'a Core, rate: u64) -> Throttle<'a> {
        Throttle { core, rate, since: Mutex::new((Instant::now(), 0)) }
    }
}

impl Progress for Throttle<'_> {
    fn step(&self, _name: &str, _total: Option<u64>) {}

    fn advance(&self, units: u64) {
        let (started, done) = {
            let mut since = self.since.lock();
            since.1 += units;
            *since
        };
        let due = started + Duration::from_secs_f64(done as f64 / self.rate as f64);
        let mut work = self.core.work.lock();
        while !work.stop && due.saturating_duration_since(Instant::now()) > Duration::from_millis(5) {
            self.core.wake.wait_until(&mut work, due);
        }
    }
}
