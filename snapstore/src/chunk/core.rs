//! What every part of the chunk store stands on: the disk, the metadata, the head, and the layers in use.
//!
//! # Operations and epochs
//! There is no gate that stops writers for a cut. Each operation that changes data registers itself with the epoch
//! it found ([`Core::enter`]); a cut makes the next epoch the head's in one step, under the lock that changes of
//! metadata take anyway, and then waits until the operations of the old epoch have ended ([`Core::drain`]), while new
//! ones go on in the new epoch. So an operation is in the snapshot or not, never half; one that ended before the cut
//! was asked for is in it; one that began after it returned is not.
//!
//! # Lock order
//! `control` (snapshots and rollbacks) → `names` → an [`Op`] → a file's stack → a layer's state → the metadata's
//! tables. `pinned` comes before a layer's state; `live`, `contents`, `discarded` and `promised` are leaves.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::content::Content;
use super::layer::Layer;
use super::lineage::Lineage;
use super::meta::Meta;
use super::rows::{Key, LayerFile, LayerRow, Row};
use super::snapshots::Control;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex, RwLock, thread};
use crate::types::{EpochId, Ino};
use crate::verify::Activity;

/// One head as a running program sees it. A rollback retires it, and handles that belong to it fail from then on.
pub(crate) struct HeadInstance {
    pub serial: u64,
    pub retired: AtomicBool,
}

/// Where the head is.
#[derive(Clone)]
pub(crate) struct HeadState {
    pub epoch: EpochId,
    pub lineage: Lineage,
    pub instance: Arc<HeadInstance>,
}

/// A view with a file open: its epoch's data is not reclaimed meanwhile.
pub(crate) struct ViewScope {
    pub lineage: Lineage,
    pub core: Weak<Core>,
}

impl ViewScope {
    pub(crate) fn new(core: &Arc<Core>, lineage: Lineage) -> ViewScope {
        core.pin(lineage.tip());
        ViewScope { lineage, core: Arc::downgrade(core) }
    }
}

impl Drop for ViewScope {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            core.unpin(self.lineage.tip());
        }
    }
}

/// Which tree a file is seen in.
#[derive(Clone)]
pub(crate) enum Scope {
    Head(Arc<HeadInstance>),
    View(Arc<ViewScope>),
}

impl Scope {
    pub(crate) fn lineage(&self, core: &Core) -> Lineage {
        match self {
            Scope::Head(_) => core.head().lineage.clone(),
            Scope::View(view) => view.lineage.clone(),
        }
    }

    fn key(&self) -> ScopeKey {
        match self {
            Scope::Head(instance) => ScopeKey::Head(instance.serial),
            Scope::View(view) => ScopeKey::View(view.lineage.tip()),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum ScopeKey {
    Head(u64),
    View(EpochId),
}

/// The store's shared state.
pub(crate) struct Core {
    pub disk: Arc<dyn Disk>,
    pub meta: Meta,
    /// Serializes snapshots, rollbacks, deletions.
    pub control: Mutex<Control>,
    /// Serializes changes of names and attributes, from their first look to [`Meta::apply`].
    pub names: Mutex<()>,
    head: RwLock<Arc<HeadState>>,
    /// The head's epoch when the store was opened.
    pub first_epoch: EpochId,
    /// Operations under way, by the lowest bit of their epoch: a cut waits for the one before it to be over.
    inflight: [AtomicUsize; 2],
    pub next_ino: AtomicU64,
    ino_bound: AtomicU64,
    /// The file system below reports holes exactly, chunk by chunk.
    pub holes_exact: bool,
    /// The store is being closed: the rows say which chunks each layer has, although its file's holes do.
    pub closing: AtomicBool,
    live: Mutex<HashMap<(Ino, EpochId), Weak<Layer>>>,
    /// Layers whose latest state the metadata on the disk does not have.
    pub(super) pinned: Mutex<BTreeMap<(Ino, EpochId), Arc<Layer>>>,
    contents: Mutex<HashMap<(Ino, ScopeKey), Weak<Content>>>,
    /// What deleting a snapshot alone would free, and the epochs that this was worked out from.
    pub(super) exclusive: Mutex<HashMap<EpochId, (Vec<EpochId>, u64)>>,
    /// Counts changes of layers under open files.
    folds: AtomicU64,
    /// Serializes the loading of contents, by inode: a stack that was read before another's write would hide it.
    /// Order: before a file's stack.
    loading: [Mutex<()>; 64],
    /// Files that no row will refer to after the next commit.
    pub(super) discarded: Mutex<Vec<(Ino, LayerFile)>>,
    pub(super) doomed: Mutex<Vec<(Ino, LayerFile)>>,
    /// Layers whose rows the commit under way writes.
    pub(super) encoded: Mutex<Vec<Arc<Layer>>>,
    /// Layers to be synced before the next commit.
    pub(super) promised: Mutex<Vec<Arc<Layer>>>,
    /// Epochs with files of their views open, and how many.
    pins: Mutex<HashMap<EpochId, usize>>,
    /// Epochs whose snapshots were deleted since the store was opened: their views answer no more. Held for reading
    /// while a view answers.
    pub ended: RwLock<HashSet<EpochId>>,
    /// Layers whose sync has failed, and the errno.
    failed: Mutex<HashMap<(Ino, EpochId), i32>>,
    /// Files of unsealed layers whose names are durable.
    pub(crate) anchored: Mutex<HashSet<(Ino, LayerFile)>>,
    /// Inodes of the head without a name, held open.
    pub orphans: Mutex<HashSet<Ino>>,
    /// Serializes callers that do the background's work themselves. Order: before everything else.
    pub working: Mutex<()>,
    /// The store is closing: long work that can be done another time ends.
    pub stopping: AtomicBool,
    /// A verification that is going on.
    pub activity: Mutex<Option<Activity>>,
    /// Held while layers are folded or removed, or hashed when they are sealed. Order: before everything else.
    pub folding: Mutex<()>,
    /// Held while the background has a hand on the contents that programs have open: a file is not open because of
    /// that. Order: before a file's stack.
    pub replacing: Mutex<()>,
    /// Held by who hashes what sealing left. Order: before `folding`, after `working`.
    pub hashing: Mutex<()>,
    /// Counts what programs read, roughly: hashing gives way to them.
    pub reads: AtomicU64,
    /// Work for the background.
    pub work: Mutex<Work>,
    pub wake: Condvar,
    /// Woken when something in `work` has been done.
    pub done: Condvar,
}

/// What the background has to do.
#[derive(Default)]
pub(crate) struct Work {
    /// Epochs to seal, oldest first.
    pub seal: std::collections::VecDeque<EpochId>,
    /// Epochs whose layers are to be hashed, oldest first.
    pub hash: std::collections::VecDeque<EpochId>,
    /// So many wait for that.
    pub hurry: usize,
    /// Those of them that a merge waits for.
    pub awaited: std::collections::BTreeSet<EpochId>,
    /// Whether epochs may have become mergeable.
    pub reclaim: bool,
    /// Layer files to remove.
    pub remove: Vec<(Ino, LayerFile)>,
    /// Workers busy now.
    pub busy: usize,
    /// Why sealing does not go on: it is not tried again before the store is opened anew.
    pub seal_failed: Option<String>,
    /// There is no background: whoever waits does the work.
    pub by_callers: bool,
    /// Stop.
    pub stop: bool,
    /// The latest error, as text.
    pub last_error: Option<String>,
}

impl Work {
    /// Whether there is anything to do or under way.
    pub(crate) fn has_some(&self) -> bool {
        self.frees_space() || !self.hash.is_empty()
    }

    /// Whether that may give space back.
    pub(crate) fn frees_space(&self) -> bool {
        self.reclaim
            || self.busy > 0
            || !self.seal.is_empty()
            || !self.awaited.is_empty()
            || !self.remove.is_empty()
    }
}

/// An operation that changes data, registered with its epoch.
pub(crate) struct Op<'a> {
    core: &'a Core,
    epoch: EpochId,
}

impl Op<'_> {
    /// The epoch the operation belongs to.
    pub(crate) fn epoch(&self) -> EpochId {
        self.epoch
    }
}

impl Drop for Op<'_> {
    fn drop(&mut self) {
        self.core.inflight[(self.epoch.0 & 1) as usize].fetch_sub(1, Ordering::AcqRel);
    }
}

/// Inode numbers are reserved on the disk so many at a time.
const INO_RESERVE: u64 = 1 << 16;

impl Core {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        meta: Meta,
        control: Control,
        head: HeadState,
        next_ino: u64,
        holes_exact: bool,
    ) -> Arc<Core> {
        Arc::new(Core {
            disk,
            meta,
            control: Mutex::new(control),
            names: Mutex::new(()),
            first_epoch: head.epoch,
            head: RwLock::new(Arc::new(head)),
            inflight: [AtomicUsize::new(0), AtomicUsize::new(0)],
            next_ino: AtomicU64::new(next_ino),
            ino_bound: AtomicU64::new(next_ino),
            holes_exact,
            closing: AtomicBool::new(false),
            live: Mutex::default(),
            pinned: Mutex::default(),
            contents: Mutex::default(),
            exclusive: Mutex::default(),
            folds: AtomicU64::new(0),
            loading: std::array::from_fn(|_| Mutex::new(())),
            discarded: Mutex::default(),
            doomed: Mutex::default(),
            encoded: Mutex::default(),
            promised: Mutex::default(),
            pins: Mutex::default(),
            ended: RwLock::default(),
            failed: Mutex::default(),
            anchored: Mutex::default(),
            orphans: Mutex::default(),
            working: Mutex::default(),
            stopping: AtomicBool::new(false),
            activity: Mutex::default(),
            folding: Mutex::default(),
            replacing: Mutex::default(),
            hashing: Mutex::default(),
            reads: AtomicU64::new(0),
            work: Mutex::default(),
            wake: Condvar::new(),
            done: Condvar::new(),
        })
    }

    /// Where the head is now.
    pub(crate) fn head(&self) -> Arc<HeadState> {
        Arc::clone(&self.head.read())
    }

    /// Makes another state the head's. Called while the metadata's tables are locked for a new epoch.
    pub(crate) fn set_head(&self, state: HeadState) {
        *self.head.write() = Arc::new(state);
    }

    /// Registers an operation that changes data with the head's epoch.
    pub(crate) fn enter(&self, scope: &Scope) -> Result<Op<'_>> {
        let Scope::Head(instance) = scope else { return Err(Error::ReadOnly) };
        loop {
            let head = self.head();
            if head.instance.serial != instance.serial {
                return Err(Error::Stale);
            }
            self.meta.check()?;
            let op = Op { core: self, epoch: head.epoch };
            self.inflight[(head.epoch.0 & 1) as usize].fetch_add(1, Ordering::AcqRel);
            // The head may have moved on between the look and the registration.
            if instance.retired.load(Ordering::Acquire) {
                return Err(Error::Stale);
            }
            if self.head.read().epoch == head.epoch {
                return Ok(op);
            }
        }
    }

    /// Waits until no operation of `epoch`, which is no longer the head's, is under way.
    pub(crate) fn drain(&self, epoch: EpochId) {
        let slot = &self.inflight[(epoch.0 & 1) as usize];
        let mut turns = 0u32;
        while slot.load(Ordering::Acquire) != 0 {
            turns += 1;
            if turns < 100 {
                thread::yield_now();
            } else {
                thread::sleep(Duration::from_micros(50));
            }
        }
    }

    /// A new inode number.
    pub(crate) fn new_ino(&self) -> Result<Ino> {
        let ino = self.next_ino.fetch_add(1, Ordering::AcqRel);
        if ino >> Ino::BITS != 0 {
            return Err(Error::Metadata("all inode numbers are used up".into(), Some(libc::ENOSPC)));
        }
        // Callers hold `names`, so that no two reserve at once.
        if ino >= self.ino_bound.load(Ordering::Acquire) {
            let bound = ino + INO_RESERVE;
            self.ino_bound.store(bound, Ordering::Release);
            self.meta.apply_control(vec![("next_ino".into(), Some(bound.to_string().into_bytes()))]);
        }
        Ok(Ino(ino))
    }

    // --- Layers.

    /// The layers of an inode in a lineage, newest first.
    pub(crate) fn load_stack(&self, lineage: &Lineage, ino: Ino) -> Result<Vec<Arc<Layer>>> {
        let mut stack = Vec::new();
        self.meta.versions(lineage, &Key::layer(ino), |epoch, value| {
            let Some(bytes) = value else { return Ok(true) };
            let layer = self.layer(ino, epoch, bytes)?;
            let last = layer.state.read().limit == 0;
            stack.push(layer);
            Ok(last)
        })?;
        Ok(stack)
    }

    /// Runs something on an inode's stack that opens its files; again with a fresh stack when folding has just
    /// replaced one of them.
    pub(crate) fn with_stack<T>(
        &self,
        lineage: &Lineage,
        ino: Ino,
        f: impl Fn(&[Arc<Layer>]) -> Result<T>,
    ) -> Result<T> {
        let mut tries = 0;
        loop {
            match f(&self.load_stack(lineage, ino)?) {
                Err(Error::Io { source, .. })
                    if source.raw_os_error() == Some(libc::ENOENT) && tries < 10 =>
                {
                    tries += 1;
                }
                done => return done,
            }
        }
    }

    /// The row of a layer that has just been found not to be in memory. `seen` may be older: a memtable has a row as
    /// it was when the layer was first touched, and the commit that wrote the layer's last state, which let go of the
    /// layer, may have ended since `seen` was looked up.
    pub(crate) fn row_of_gone(&self, ino: Ino, epoch: EpochId, seen: &[u8]) -> Result<LayerRow> {
        match self.meta.row_at(&Key::layer(ino), epoch)? {
            Some(Some(now)) => LayerRow::decode(&now),
            _ => LayerRow::decode(seen),
        }
    }

    /// The layer that a row stands for: the one in use, or loaded now.
    pub(crate) fn layer(&self, ino: Ino, epoch: EpochId, seen: &[u8]) -> Result<Arc<Layer>> {
        if let Some(layer) = self.live_layer(ino, epoch, &LayerRow::decode(seen)?) {
            return Ok(layer);
        }
        let row = self.row_of_gone(ino, epoch, seen)?;
        let loaded = Arc::new(Layer::load(&*self.disk, ino, epoch, row.clone())?);
        if !row.sealed
            && let Some(&errno) = self.failed.lock().get(&(ino, epoch))
        {
            loaded.mark_failed(errno);
        }
        if !row.sealed && self.anchored.lock().contains(&(ino, row.file)) {
            loaded.anchored.store(true, Ordering::Release);
        }
        let mut live = self.live.lock();
        if let Some(layer) = live.get(&(ino, epoch)).and_then(Weak::upgrade).filter(|l| l.stands_for(&row)) {
            return Ok(layer);
        }
        if live.len() >= 1024 && live.len().is_power_of_two() {
            live.retain(|_, l| l.strong_count() > 0);
        }
        live.insert((ino, epoch), Arc::downgrade(&loaded));
        Ok(loaded)
    }

    /// The layer in memory that a row stands for. None also where folding has put another in the place of the one in
    /// memory: that one's size and chunks are of the past.
    pub(crate) fn live_layer(&self, ino: Ino, epoch: EpochId, row: &LayerRow) -> Option<Arc<Layer>> {
        let layer = self.live.lock().get(&(ino, epoch)).and_then(Weak::upgrade)?;
        layer.stands_for(row).then_some(layer)
    }

    /// Has contents that are being loaded right now look again: rows of layers are about to change, or just have.
    pub(crate) fn layers_changing(&self) {
        self.folds.fetch_add(1, Ordering::AcqRel);
    }

    /// Forgets layers that folding has replaced, and lets every open file take its stack anew.
    pub(crate) fn layers_replaced(&self, ino: Ino, epochs: &[EpochId]) -> Result<()> {
        self.layers_changing();
        {
            let mut live = self.live.lock();
            for &epoch in epochs {
                live.remove(&(ino, epoch));
            }
        }
        let _hand = self.replacing.lock();
        let open: Vec<_> = {
            let contents = self.contents.lock();
            contents.iter().filter(|((i, _), _)| *i == ino).filter_map(|(_, c)| c.upgrade()).collect()
        };
        let done = open.iter().try_for_each(|content| content.reload(self));
        drop(open);
        done
    }

    /// Takes in a new layer of an epoch with operations under way.
    pub(crate) fn put_layer(&self, layer: &Arc<Layer>) {
        self.live.lock().insert((layer.ino, layer.epoch), Arc::downgrade(layer));
        self.touch_layer(layer);
    }

    /// Has the next commit write the layer's row, as the layer is then.
    pub(crate) fn touch_layer(&self, layer: &Arc<Layer>) {
        if !layer.in_memtable.load(Ordering::Acquire) {
            self.put_row(layer, false);
        }
    }

    /// Puts the layer's row into the memtable, unless one is there and another is not `wanted`. In one step with
    /// [`Core::take_row`]: else a commit could let go of the layer between the mark and the row.
    fn put_row(&self, layer: &Arc<Layer>, wanted: bool) {
        let mut pinned = self.pinned.lock();
        if !layer.in_memtable.swap(true, Ordering::AcqRel) || wanted {
            pinned.insert((layer.ino, layer.epoch), Arc::clone(layer));
            let row = layer.row(false).encode();
            self.meta.apply_at(layer.epoch, vec![(Key::layer(layer.ino), Some(row.into()))], &[]);
        }
    }

    /// The row as a commit is to write it: what changes from here on has to put another.
    pub(super) fn take_row(&self, layer: &Layer, with_chunks: bool) -> Vec<u8> {
        let _pinned = self.pinned.lock();
        layer.in_memtable.store(false, Ordering::Release);
        layer.row_maybe_on_disk.store(true, Ordering::Release);
        layer.row(with_chunks).encode()
    }

    /// Has the next commit write the layer's row even if it was going to leave it for later.
    pub(crate) fn require_commit(&self, layer: &Arc<Layer>) {
        self.put_row(layer, true);
    }

    /// Has the next commit, once it has succeeded, remove a layer file. To be called after the change that stops
    /// referring to it was applied.
    pub(crate) fn discard_file(&self, ino: Ino, file: LayerFile) {
        self.forget_anchor(ino, file);
        self.discarded.lock().push((ino, file));
    }

    /// Has the next commit sync a layer first.
    pub(crate) fn promise(&self, layer: &Arc<Layer>) {
        self.promised.lock().push(Arc::clone(layer));
    }

    /// Layers that the disk's metadata does not know as they are.
    pub(crate) fn pinned_layers(&self) -> Vec<Arc<Layer>> {
        self.pinned.lock().values().cloned().collect()
    }

    pub(crate) fn pinned_layer(&self, ino: Ino, epoch: EpochId) -> Option<Arc<Layer>> {
        self.pinned.lock().get(&(ino, epoch)).cloned()
    }

    /// A layer is final: its name's durability is no question any more.
    pub(crate) fn forget_anchor(&self, ino: Ino, file: LayerFile) {
        self.anchored.lock().remove(&(ino, file));
    }

    /// Gives up a layer that will never be committed.
    pub(crate) fn drop_layer(&self, ino: Ino, epoch: EpochId) {
        self.pinned.lock().remove(&(ino, epoch));
        self.live.lock().remove(&(ino, epoch));
    }

    // --- Contents.

    /// The content of an inode in a tree, shared by all who have it open.
    pub(crate) fn content(&self, scope: &Scope, ino: Ino) -> Result<Arc<Content>> {
        let key = (ino, scope.key());
        if let Some(content) = self.contents.lock().get(&key).and_then(Weak::upgrade) {
            return Ok(content);
        }
        let _one = self.loading[(ino.0 % 64) as usize].lock();
        if let Some(content) = self.contents.lock().get(&key).and_then(Weak::upgrade) {
            return Ok(content);
        }
        let folds = self.folds.load(Ordering::Acquire);
        let loaded = Arc::new(Content::load(self, scope.clone(), ino)?);
        {
            let mut contents = self.contents.lock();
            if contents.len() >= 1024 && contents.len().is_power_of_two() {
                contents.retain(|_, c| c.strong_count() > 0);
            }
            contents.insert(key, Arc::downgrade(&loaded));
        }
        // What was folded before the content could be found by `layers_replaced` is taken in here.
        if self.folds.load(Ordering::Acquire) != folds {
            loaded.reload(self)?;
        }
        Ok(loaded)
    }

    /// The content of an inode of the head, if somebody has it open.
    pub(crate) fn open_content(&self, instance: &HeadInstance, ino: Ino) -> Option<Arc<Content>> {
        self.contents.lock().get(&(ino, ScopeKey::Head(instance.serial))).and_then(Weak::upgrade)
    }

    // --- Views in use.

    pub(crate) fn pin(&self, epoch: EpochId) {
        *self.pins.lock().entry(epoch).or_default() += 1;
    }

    fn unpin(&self, epoch: EpochId) {
        let mut pins = self.pins.lock();
        if let Some(count) = pins.get_mut(&epoch) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&epoch);
                drop(pins);
                self.work.lock().reclaim = true;
                self.wake.notify_all();
            }
        }
    }

    pub(crate) fn pinned_epochs(&self) -> Vec<EpochId> {
        self.pins.lock().keys().copied().collect()
    }

    // --- Commits.

    /// Makes everything so far durable; see [`Meta::commit`].
    pub(crate) fn commit(&self, full: bool) -> Result<()> {
        self.meta.commit(self, full)
    }
}

impl Core {
    pub(crate) fn note_failed(&self, layer: &Layer, errno: Option<i32>) {
        self.failed.lock().insert((layer.ino, layer.epoch), errno.unwrap_or(libc::EIO));
    }

    /// After a write that failed with `error`; see [`Layer::take_back`]. Where that fails as well, no sync of the layer
    /// succeeds any more.
    pub(crate) fn take_back(
        &self,
        layer: &Layer,
        span: std::ops::RangeInclusive<u32>,
        error: &std::io::Error,
    ) {
        if let Err(failure) = layer.take_back(&*self.disk, span) {
            tracing::error!(ino = %layer.ino, %failure, "what a failed write has left could not be taken back");
            let errno = error.raw_os_error();
            layer.mark_failed(errno.unwrap_or(libc::EIO));
            self.note_failed(layer, errno);
        }
    }
}

#[cfg(test)]
mod tests;
