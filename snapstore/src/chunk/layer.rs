//! A layer: the chunks that one inode received in one epoch, in one sparse file, at their own offsets.
//!
//! A layer is **unsealed** while its epoch is the head's (and until the background has sealed it): it is written, and
//! its file's holes say which chunks it lacks. Once **sealed** it never changes, except that folding may merge it with
//! a neighbour; then its row in the metadata says which chunks it has, whatever else the file may contain.
//!
//! What a chunk reads as, from the newest layer down:
//! 1. the layer has it: its bytes;
//! 2. the layer marks it as zeroed, or it lies at or above the layer's limit: zeros;
//! 3. otherwise what the next older layer says, of which bytes at and above the limit count as zeros.
//!
//! A layer with limit 0 hides everything below it; the oldest layer of a file always has it.

use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Weak};

use roaring::RoaringBitmap;

use super::rows::{LayerFile, LayerRow};
use super::sums::Cached;
use crate::disk::{Disk, DiskFile};
use crate::error::{Error, Result};
use crate::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock};
use crate::types::{CHUNK_SIZE, EpochId, Ino};

/// A layer in memory. There is one object per layer while anybody uses it.
pub(crate) struct Layer {
    pub ino: Ino,
    pub epoch: EpochId,
    /// Order: after a stack's lock; held for memory operations only.
    pub state: RwLock<LayerState>,
    /// The open file, opened when it is first needed.
    file: Mutex<Option<Arc<dyn DiskFile>>>,
    /// The row may only be committed once the file is on the disk: it hides older data.
    pub barrier: bool,
    /// The layer that was below it when it was made, for as long as somebody has that one in memory: whose row is yet to
    /// be committed is.
    below: Mutex<Weak<Layer>>,
    /// The file's name and first data have been made durable.
    pub anchored: AtomicBool,
    /// Something was written since the last sync.
    pub unsynced: AtomicBool,
    /// The disk has a row of this layer.
    pub row_on_disk: AtomicBool,
    /// The disk has one, or a commit under way is writing it.
    pub row_maybe_on_disk: AtomicBool,
    /// A memtable carries the row, and the next commit takes the state as it is then.
    pub in_memtable: AtomicBool,
    /// Serializes syncs: nobody may take another's that is still under way for done.
    syncing: Mutex<()>,
    /// The errno with which a sync failed, or 0: what was written may be lost, and no later sync can tell.
    failed: AtomicI32,
    /// Where the file ends, though the row knows of more, and there are no hashes to tell. Else [`u64::MAX`].
    ends: AtomicU64,
    /// The hashes of chunks that were looked at last.
    pub sums: Cached,
}

/// The facts of a layer that change while it is unsealed.
#[derive(Clone, Debug)]
pub(crate) struct LayerState {
    pub file: LayerFile,
    /// Whether the file exists.
    pub created: bool,
    pub size: u64,
    pub limit: u64,
    pub blocks: u64,
    pub visible: u64,
    pub sealed: bool,
    /// See [`super::sums`].
    pub summed: bool,
    pub zeroed: RoaringBitmap,
    /// The chunks it has; `None`: everything (then `limit` is 0).
    pub chunks: Option<RoaringBitmap>,
}

/// How a chunk is found in a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// Here.
    Data,
    /// Nowhere: it reads zeros.
    Zero,
    /// Further down.
    Below,
}

impl LayerState {
    /// What this layer says about a chunk.
    pub(crate) fn find(&self, chunk: u32) -> Found {
        match &self.chunks {
            None => Found::Data,
            Some(chunks) if chunks.contains(chunk) => Found::Data,
            Some(_) if u64::from(chunk) * CHUNK_SIZE >= self.limit || self.zeroed.contains(chunk) => {
                Found::Zero
            }
            Some(_) => Found::Below,
        }
    }

    /// Whether a row says the same about where the layer's bytes are.
    pub(crate) fn matches(&self, row: &LayerRow) -> bool {
        self.file == row.file
            && self.size == row.size
            && self.limit == row.limit
            && self.summed == row.summed
            && self.chunks == row.chunks
            && self.zeroed == row.zeroed
    }

    fn row(&self) -> LayerRow {
        LayerRow {
            file: self.file,
            size: self.size,
            limit: self.limit,
            blocks: self.blocks,
            visible: self.visible,
            sealed: self.sealed,
            summed: self.summed,
            zeroed: self.zeroed.clone(),
            chunks: self.chunks.clone(),
        }
    }
}

impl Layer {
    /// A new, unsealed layer above content of `below` bytes (0 and not a `replacement`: a new file's first).
    pub(crate) fn fresh(ino: Ino, epoch: EpochId, turn: u32, below: u64, barrier: bool) -> Layer {
        let state = LayerState {
            file: LayerFile { epoch, turn },
            created: false,
            size: below,
            limit: below,
            blocks: 0,
            visible: 0,
            sealed: false,
            summed: false,
            zeroed: RoaringBitmap::new(),
            chunks: (below > 0).then(RoaringBitmap::new),
        };
        Layer::with_state(ino, epoch, state, barrier)
    }

    /// Notes what it inherits from.
    pub(crate) fn put_above(&self, below: &Arc<Layer>) {
        *self.below.lock() = Arc::downgrade(below);
    }

    /// Whether it shows something of a layer of which `is` says so.
    pub(crate) fn inherits_from(&self, is: impl Fn(Ino, EpochId) -> bool) -> bool {
        let below = |layer: &Layer| match layer.state.read().limit {
            0 => None,
            _ => layer.below.lock().upgrade(),
        };
        let mut next = below(self);
        while let Some(layer) = next {
            if is(layer.ino, layer.epoch) {
                return true;
            }
            next = below(&layer);
        }
        false
    }

    /// A layer that the metadata knows. An unsealed one that inherits gets its chunks from the file's holes, unless
    /// the row has them.
    pub(crate) fn load(disk: &dyn Disk, ino: Ino, epoch: EpochId, row: LayerRow) -> Result<Layer> {
        let LayerRow { file, size, limit, blocks, visible, sealed, summed, zeroed, chunks } = row;
        let created = true;
        let state =
            LayerState { file, created, size, limit, blocks, visible, sealed, summed, zeroed, chunks };
        let layer = Layer::with_state(ino, epoch, state, false);
        // A row that inherits is committed after the file's name is durable; a plain one need not be.
        layer.anchored.store(sealed || limit > 0, Ordering::Relaxed);
        layer.row_on_disk.store(true, Ordering::Relaxed);
        layer.row_maybe_on_disk.store(true, Ordering::Relaxed);
        // Whoever wrote it may have died before a sync.
        layer.unsynced.store(!sealed, Ordering::Relaxed);
        let mut state = layer.state.write();
        if !sealed && state.limit > 0 && state.chunks.is_none() {
            state.chunks =
                Some(scan_chunks(&*layer.file_of(disk, &state)?, size).map_err(|e| layer.io("map", e))?);
        } else if state.limit == 0 && state.chunks.is_none() && (!sealed || size == 0) {
            // The file may never have been written: a plain empty one.
            state.created = disk.stat(&file.path(ino)).map_err(|e| layer.io("stat", e))?.is_some();
        }
        drop(state);
        Ok(layer)
    }

    fn with_state(ino: Ino, epoch: EpochId, state: LayerState, barrier: bool) -> Layer {
        Layer {
            ino,
            epoch,
            state: RwLock::new(state),
            file: Mutex::new(None),
            barrier,
            below: Mutex::default(),
            anchored: AtomicBool::new(false),
            unsynced: AtomicBool::new(false),
            row_on_disk: AtomicBool::new(false),
            row_maybe_on_disk: AtomicBool::new(false),
            in_memtable: AtomicBool::new(false),
            syncing: Mutex::new(()),
            failed: AtomicI32::new(0),
            ends: AtomicU64::new(u64::MAX),
            sums: Cached::default(),
        }
    }

    /// The row as it is now. An unsealed layer's chunks are left to its file's holes, unless `with_chunks`.
    pub(crate) fn row(&self, with_chunks: bool) -> LayerRow {
        let mut row = self.state.read().row();
        if !row.sealed && !with_chunks && row.limit > 0 {
            row.chunks = None;
        }
        row
    }

    /// The layer's file; made when there is none yet.
    pub(crate) fn data(&self, disk: &dyn Disk) -> Result<Arc<dyn DiskFile>> {
        if let Some(file) = &*self.file.lock() {
            return Ok(Arc::clone(file));
        }
        let state = self.state.read();
        if state.created {
            return self.file_of(disk, &state);
        }
        drop(state);
        let mut state = self.state.write();
        if !state.created {
            let file = create(disk, &state.file, self.ino).map_err(|e| self.io("create", e))?;
            if state.size > 0
                && let Err(e) = file.set_len(state.size)
            {
                // Tried anew from the beginning next time.
                let _ = disk.remove(&state.file.path(self.ino));
                return Err(self.io("extend", e));
            }
            *self.file.lock() = Some(file);
            state.created = true;
        }
        self.file_of(disk, &state)
    }

    /// The layer's file, if there is one.
    pub(crate) fn existing(&self, disk: &dyn Disk) -> Result<Option<Arc<dyn DiskFile>>> {
        let state = self.state.read();
        if state.created { self.file_of(disk, &state).map(Some) } else { Ok(None) }
    }

    fn file_of(&self, disk: &dyn Disk, state: &LayerState) -> Result<Arc<dyn DiskFile>> {
        let mut slot = self.file.lock();
        if let Some(file) = &*slot {
            return Ok(Arc::clone(file));
        }
        let file = disk.open(&state.file.path(self.ino)).map_err(|e| self.io("open", e))?;
        if state.sealed && !state.summed {
            let end = file.stat().map_err(|e| self.io("stat", e))?.size;
            self.ends.store(if end < state.size { end } else { u64::MAX }, Ordering::Release);
        }
        *slot = Some(Arc::clone(&file));
        Ok(file)
    }

    /// The layer's file, if there is one, for somebody who comes by: it does not stay open for that. Of all layers that
    /// wait for a commit, the descriptors could be too many.
    pub(crate) fn peek(&self, disk: &dyn Disk) -> Result<Option<Arc<dyn DiskFile>>> {
        let was_open = self.file.lock().is_some();
        let file = self.existing(disk)?;
        if !was_open {
            self.close_file();
        }
        Ok(file)
    }

    /// The space that its file takes, in units of 512 bytes.
    pub(crate) fn blocks(&self, disk: &dyn Disk) -> Result<u64> {
        let space = self.peek(disk)?.map(|file| file.stat()).transpose().map_err(|e| self.io("stat", e))?;
        Ok(space.map_or(0, |space| space.blocks))
    }

    /// The first chunk at or after `chunk` that the file has lost: it was cut, and has no hashes that would tell.
    /// The file has been opened.
    pub(crate) fn lost(&self, chunk: u64) -> Option<u64> {
        let ends = self.ends.load(Ordering::Acquire);
        let lost = chunk.max(ends / CHUNK_SIZE);
        (ends < u64::MAX && lost * CHUNK_SIZE < self.state.read().size).then_some(lost)
    }

    /// Closes the file; it is opened again when needed.
    pub(crate) fn close_file(&self) {
        *self.file.lock() = None;
    }

    /// Whether a sync would find something to do. Not whether there is nothing to wait for: a sync that is under way has
    /// taken what it does for done.
    pub(crate) fn needs_sync(&self) -> bool {
        !self.anchored.load(Ordering::Acquire) || self.unsynced.load(Ordering::Acquire)
    }

    /// Makes everything written so far durable, its name by `sync_dir`. After a failure every further call fails: the
    /// kernel reports a lost write once only, and a later success would be a lie.
    pub(crate) fn sync(
        &self,
        disk: &dyn Disk,
        sync_dir: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<()> {
        let _one = self.syncing.lock();
        let failed = self.failed.load(Ordering::Acquire);
        if failed != 0 {
            return Err(self.io("sync", io::Error::from_raw_os_error(failed)));
        }
        let anchored = self.anchored.load(Ordering::Acquire);
        if anchored && !self.unsynced.load(Ordering::Acquire) {
            return Ok(());
        }
        let file = match self.peek(disk)? {
            Some(file) => file,
            // It hides older data, and its row waits for it: then an empty file is what it waits for.
            None if self.barrier => self.data(disk)?,
            None => return Ok(()),
        };
        self.unsynced.store(false, Ordering::Release);
        let done = file.sync_data().and_then(|()| match anchored {
            true => Ok(()),
            false => sync_dir(&LayerFile::dir(self.ino)),
        });
        match done {
            Ok(()) => {
                self.anchored.store(true, Ordering::Release);
                Ok(())
            }
            Err(e) => {
                self.failed.store(e.raw_os_error().unwrap_or(libc::EIO), Ordering::Release);
                Err(self.io("sync", e))
            }
        }
    }

    /// Takes back what a write into `span` that failed may have left in the file: bytes behind the end, which would show
    /// when the file grows; and chunks that the layer does not have, which a recovery would take for the layer's, since
    /// it goes by the holes. To be called by an operation of the layer's epoch, with the file to itself.
    pub(crate) fn take_back(&self, disk: &dyn Disk, span: RangeInclusive<u32>) -> Result<()> {
        let Some(file) = self.existing(disk)? else { return Ok(()) };
        let (size, stray) = {
            let state = self.state.read();
            let mut stray = RoaringBitmap::new();
            if let Some(own) = &state.chunks {
                stray.insert_range(span);
                stray -= own;
            }
            (state.size, stray)
        };
        let punched = runs(&stray)
            .try_for_each(|(first, count)| file.punch(u64::from(first) * CHUNK_SIZE, count * CHUNK_SIZE));
        punched.map_err(|e| self.io("punch", e))?;
        match file.stat().map_err(|e| self.io("stat", e))?.size > size {
            true => file.set_len(size).map_err(|e| self.io("truncate", e)),
            false => Ok(()),
        }
    }

    /// Takes over that an earlier object of this layer failed to sync, and with which errno.
    pub(crate) fn mark_failed(&self, errno: i32) {
        self.failed.store(errno, Ordering::Release);
    }

    /// Whether it is the layer that a row stands for. A sealed one that differs from its row was just replaced.
    pub(crate) fn stands_for(&self, row: &LayerRow) -> bool {
        !row.sealed || self.state.read().matches(row)
    }

    /// Notes that something was written.
    pub(crate) fn wrote(&self) {
        if !self.unsynced.load(Ordering::Relaxed) {
            self.unsynced.store(true, Ordering::Release);
        }
    }

    /// An I/O error on this layer's file.
    pub(crate) fn io(&self, op: &'static str, source: io::Error) -> Error {
        Error::Io {
            op,
            path: self.state.try_read().map_or_else(String::new, |s| s.file.path(self.ino)).into(),
            source,
        }
    }
}

/// Whether a layer that has no hashes lacks a part of its file of which something shows, below `limit`.
pub(crate) fn is_cut(row: &LayerRow, file: &dyn DiskFile, limit: u64) -> io::Result<bool> {
    Ok(!row.summed && file.stat()?.size < row.size.min(limit))
}

/// A bitmap's runs: first chunk, number of chunks.
pub(crate) fn runs(chunks: &RoaringBitmap) -> impl Iterator<Item = (u32, u64)> + '_ {
    let mut rest = chunks.iter();
    std::iter::from_fn(move || {
        let range = rest.next_range()?;
        Some((*range.start(), u64::from(range.end() - range.start()) + 1))
    })
}

/// Makes the file of a new layer, and its directory where there is none.
pub(crate) fn create(disk: &dyn Disk, file: &LayerFile, ino: Ino) -> io::Result<Arc<dyn DiskFile>> {
    let path = file.path(ino);
    match disk.create(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let dir = LayerFile::dir(ino);
            disk.create_dir(&dir)?;
            // Its name is durable before anything is in it, or whoever comes next would take it for durable.
            disk.sync_dir("layers").inspect_err(|_| drop(disk.remove_dir(&dir)))?;
            disk.create(&path)
        }
        done => done,
    }
}

/// The chunks of a file's first `size` bytes that hold data, as the file system's holes say.
pub(crate) fn scan_chunks(file: &dyn DiskFile, size: u64) -> io::Result<RoaringBitmap> {
    let mut chunks = RoaringBitmap::new();
    let mut at = 0;
    while at < size {
        let Some(data) = file.seek_data(at)?.filter(|&d| d < size) else { break };
        let hole = file.seek_hole(data)?.unwrap_or(size).min(size);
        chunks.insert_range((data / CHUNK_SIZE) as u32..=((hole - 1) / CHUNK_SIZE) as u32);
        at = hole;
    }
    Ok(chunks)
}
