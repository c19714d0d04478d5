//! The content of one file in one tree: a stack of layers, newest on top.
//!
//! Reading resolves each chunk from the top down ([`Layer`]'s head says how). Writing happens in the layer of the
//! head's current epoch only; the first write after a snapshot puts a new layer on the stack.
//!
//! Locks: the stack's lock is held for reading by reads and by writes that change nothing but bytes and the map of
//! the top layer; for writing by what changes the stack or copies old bytes up. It is held across disk access, so
//! nothing but another access to the same file ever waits for it.

use std::sync::Arc;

use super::checked::{DATA, fill, known};
use super::core::{Core, Op, Scope};
use super::layer::{Found, Layer};
use super::seek::{next_data, next_hole};
use super::sums::ZEROS;
use crate::backend::Seek;
use crate::error::{Error, Result};
use crate::sync::atomic::Ordering;
use crate::sync::{Mutex, RwLock};
use crate::types::{CHUNK_SIZE, Ino, chunk_span};

const CHUNK: usize = CHUNK_SIZE as usize;

/// A file's content as one tree sees it.
pub(crate) struct Content {
    pub ino: Ino,
    pub scope: Scope,
    /// Order: after an [`Op`], before a layer's state and the metadata's tables.
    stack: RwLock<Vec<Arc<Layer>>>,
    /// Serializes the reloading of the stack.
    reloading: Mutex<()>,
}

impl Content {
    pub(crate) fn load(core: &Core, scope: Scope, ino: Ino) -> Result<Content> {
        let stack = core.load_stack(&scope.lineage(core), ino)?;
        Ok(Content { ino, scope, stack: RwLock::new(stack), reloading: Mutex::new(()) })
    }

    /// Takes the stack anew from the metadata: folding has replaced layers.
    pub(crate) fn reload(&self, core: &Core) -> Result<()> {
        let _one = self.reloading.lock();
        let mut stack = self.stack.write();
        *stack = core.load_stack(&self.scope.lineage(core), self.ino)?;
        Ok(())
    }

    pub(crate) fn len(&self) -> u64 {
        self.stack.read().first().map_or(0, |l| l.state.read().size)
    }

    /// Fills `buf` from `offset`; fewer bytes only at the end of the file.
    pub(crate) fn read_at(&self, core: &Core, buf: &mut [u8], offset: u64) -> Result<usize> {
        core.reads.fetch_add(1, Ordering::Relaxed);
        let mut done = read_stack(core, &self.stack.read(), buf, offset);
        // One fold may follow another.
        for _ in 0..3 {
            if !was_folded(&done) {
                return done;
            }
            self.reload(core)?;
            done = read_stack(core, &self.stack.read(), buf, offset);
        }
        if let Err(error @ Error::Damaged { .. }) = &done {
            tracing::error!(ino = %self.ino, %error, "a read was answered with an error");
        }
        done
    }

    /// As [`Content::read_at`], for who has the stack to itself: the metadata's is looked at, and the one held stays.
    fn read_held(&self, core: &Core, stack: &[Arc<Layer>], buf: &mut [u8], offset: u64) -> Result<usize> {
        match read_stack(core, stack, buf, offset) {
            done if !was_folded(&done) => done,
            _ => read_stack(core, &core.load_stack(&self.scope.lineage(core), self.ino)?, buf, offset),
        }
    }

    /// Writes all of `data` at `offset`.
    pub(crate) fn write_at(&self, core: &Core, data: &[u8], offset: u64) -> Result<()> {
        let Some(span) = chunk_span(offset, data.len() as u64) else { return Ok(()) };
        let end = end_of(offset, data.len() as u64)?;
        core.check_space()?;
        loop {
            let op = core.enter(&self.scope)?;
            let stack = self.stack.read();
            if let Some(top) = stack.first()
                && top.epoch == op.epoch()
                && !needs_copy_up(top, offset, end)
            {
                let top = Arc::clone(top);
                let Err(error) = top.data(&*core.disk)?.write_at(data, offset) else {
                    top.wrote();
                    return self.grown(core, &top, span, end);
                };
                // Others may be writing beside us. Their epoch is still ours: `op` is there.
                drop(stack);
                let _alone = self.stack.write();
                core.take_back(&top, span, &error);
                return Err(top.io("write", error));
            }
            drop(stack);
            let mut stack = self.stack.write();
            if !self.top_for(core, &mut stack, &op)? {
                continue;
            }
            return self.write_exclusive(core, &stack, data, offset);
        }
    }

    /// Writes with the stack to itself: partly written chunks that an older layer has are completed from there.
    fn write_exclusive(&self, core: &Core, stack: &[Arc<Layer>], data: &[u8], offset: u64) -> Result<()> {
        let top = &stack[0];
        let Some(span) = chunk_span(offset, data.len() as u64) else { return Ok(()) };
        let end = offset + data.len() as u64;
        let file = top.data(&*core.disk)?;
        let written = if needs_copy_up(top, offset, end) {
            let size = top.state.read().size.max(end);
            let from = offset - offset % CHUNK_SIZE;
            let to = end.next_multiple_of(CHUNK_SIZE).min(size);
            let mut whole = vec![0; (to - from) as usize];
            if offset > from {
                let head = CHUNK.min(whole.len());
                self.read_held(core, stack, &mut whole[..head], from)?;
            }
            if to > end {
                let tail = (end - end % CHUNK_SIZE).max(from);
                self.read_held(core, stack, &mut whole[(tail - from) as usize..], tail)?;
            }
            whole[(offset - from) as usize..(end - from) as usize].copy_from_slice(data);
            file.write_at(&whole, from)
        } else {
            file.write_at(data, offset)
        };
        if let Err(error) = written {
            core.take_back(top, span, &error);
            return Err(top.io("write", error));
        }
        top.wrote();
        self.grown(core, top, span, end)
    }

    /// Notes that the top layer has the chunks of `span`, and reaches at least to `end`.
    fn grown(
        &self,
        core: &Core,
        top: &Arc<Layer>,
        span: std::ops::RangeInclusive<u32>,
        end: u64,
    ) -> Result<()> {
        let (grew, mapped) = {
            let known = top.state.read();
            let mapped = known.chunks.as_ref().is_none_or(|c| c.contains_range(span.clone()));
            (end > known.size, mapped)
        };
        if grew || !mapped {
            let mut state = top.state.write();
            state.size = state.size.max(end);
            if let Some(chunks) = &mut state.chunks {
                chunks.insert_range(span);
            }
        }
        if grew || (!mapped && !core.holes_exact) {
            core.touch_layer(top);
        }
        Ok(())
    }

    /// Sets the size. What is cut off is gone: growing again reads zeros.
    pub(crate) fn truncate(&self, core: &Core, size: u64) -> Result<()> {
        if size > crate::types::MAX_FILE_SIZE {
            return Err(Error::FileTooLarge);
        }
        loop {
            let op = core.enter(&self.scope)?;
            let mut stack = self.stack.write();
            let old = stack.first().map_or(0, |l| l.state.read().size);
            if size == old {
                return Ok(());
            }
            if size == 0 && self.replace_top(core, &mut stack, &op)? {
                return Ok(());
            }
            if !self.top_for(core, &mut stack, &op)? {
                continue;
            }
            let top = Arc::clone(&stack[0]);
            let cuts_inherited = size < top.state.read().limit;
            let file = top.data(&*core.disk)?;
            file.set_len(size).map_err(|e| top.io("truncate", e))?;
            top.wrote();
            {
                let mut state = top.state.write();
                state.size = size;
                state.limit = state.limit.min(size);
                let first_gone = size.div_ceil(CHUNK_SIZE);
                if size == 0 {
                    // Nothing is inherited any more: a plain layer again.
                    state.chunks = None;
                    state.zeroed.clear();
                } else if let Some(chunks) = &mut state.chunks
                    && first_gone <= u64::from(u32::MAX)
                {
                    chunks.remove_range(first_gone as u32..);
                }
            }
            core.touch_layer(&top);
            if cuts_inherited {
                core.meta.need(top.epoch, top.ino);
            }
            // The disk's row says that more is inherited than now is. Should the file grow again and the power go,
            // old bytes would come back: so the disk must know first. (Cutting is rare, growing after it rarer.)
            if cuts_inherited && top.row_maybe_on_disk.load(std::sync::atomic::Ordering::Acquire) {
                core.sync_layer(&top)?;
                core.require_commit(&top);
                // Under the file's lock: nothing grows it before the disk knows.
                core.commit(false)?;
            }
            return Ok(());
        }
    }

    /// Empties the file by putting a new layer in place of everything, so that the old content stays on the disk
    /// until the new one has followed: a program that rewrites a file and forgets the fsync finds, after a power
    /// cut, one or the other. False when there is nothing on the disk to be careful with.
    fn replace_top(&self, core: &Core, stack: &mut Vec<Arc<Layer>>, op: &Op<'_>) -> Result<bool> {
        let Some(top) = stack.first().cloned() else { return Ok(false) };
        if top.epoch > op.epoch() {
            return Ok(false);
        }
        let same_epoch = top.epoch == op.epoch();
        if same_epoch && !top.row_maybe_on_disk.load(std::sync::atomic::Ordering::Acquire) {
            return Ok(false);
        }
        let turn = if same_epoch { top.state.read().file.turn + 1 } else { 0 };
        let fresh = Arc::new(Layer::fresh(self.ino, op.epoch(), turn, 0, true));
        let old = same_epoch.then(|| top.state.read().file);
        core.put_layer(&fresh);
        if let Some(old) = old {
            core.discard_file(self.ino, old);
        }
        *stack = vec![fresh];
        Ok(true)
    }

    /// Sees to it that the top layer is of the operation's epoch. False when the head has moved on meanwhile and the
    /// operation must begin again.
    fn top_for(&self, core: &Core, stack: &mut Vec<Arc<Layer>>, op: &Op<'_>) -> Result<bool> {
        let below = match stack.first() {
            Some(top) if top.epoch == op.epoch() => return Ok(true),
            Some(top) if top.epoch > op.epoch() => return Ok(false),
            Some(top) => top.state.read().size,
            None => 0,
        };
        let layer = Arc::new(Layer::fresh(self.ino, op.epoch(), 0, below, !stack.is_empty()));
        if let Some(below) = stack.first() {
            layer.put_above(below);
            // Its size is the file's, from the first moment on.
            layer.data(&*core.disk)?;
        }
        core.put_layer(&layer);
        stack.insert(0, layer);
        Ok(true)
    }

    /// Reserves space.
    pub(crate) fn reserve(&self, core: &Core, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let end = end_of(offset, len)?;
        core.check_space()?;
        loop {
            let op = core.enter(&self.scope)?;
            let mut stack = self.stack.write();
            if !self.top_for(core, &mut stack, &op)? {
                continue;
            }
            let top = &stack[0];
            let file = top.data(&*core.disk)?;
            let (size, limit, plain) = {
                let s = top.state.read();
                (s.size, s.limit, s.chunks.is_none())
            };
            // Not where older data shows through: a reserved block may count as data when holes are looked for.
            let from = if plain { offset } else { offset.max(limit.next_multiple_of(CHUNK_SIZE)) };
            if from < end {
                file.allocate(from, end - from, keep_size).map_err(|e| top.io("reserve", e))?;
            }
            if !keep_size && end > size {
                file.set_len(end).map_err(|e| top.io("extend", e))?;
                top.state.write().size = end;
            }
            top.wrote();
            core.touch_layer(top);
            return Ok(());
        }
    }

    /// Makes a range read zeros and gives its space back.
    pub(crate) fn zero(&self, core: &Core, offset: u64, len: u64, grow: bool) -> Result<()> {
        let end = end_of(offset, len)?;
        loop {
            let op = core.enter(&self.scope)?;
            let mut stack = self.stack.write();
            if !self.top_for(core, &mut stack, &op)? {
                continue;
            }
            let top = Arc::clone(&stack[0]);
            let file = top.data(&*core.disk)?;
            let (size, plain) = {
                let s = top.state.read();
                (s.size, s.chunks.is_none())
            };
            if grow && end > size {
                file.set_len(end).map_err(|e| top.io("extend", e))?;
                top.state.write().size = end;
            }
            if plain {
                file.punch(offset, len).map_err(|e| top.io("punch", e))?;
            } else {
                self.zero_inherited(core, &stack, offset, end.min(size.max(if grow { end } else { 0 })))?;
            }
            top.wrote();
            core.touch_layer(&top);
            return Ok(());
        }
    }

    /// Zeroes a range where older layers show through: whole chunks are marked, the edges are written.
    fn zero_inherited(&self, core: &Core, stack: &[Arc<Layer>], offset: u64, end: u64) -> Result<()> {
        if offset >= end {
            return Ok(());
        }
        let top = &stack[0];
        let size = top.state.read().size;
        let first = offset.next_multiple_of(CHUNK_SIZE);
        // The file's last chunk is whole when the range covers it to the end.
        let last = if end >= size { end.next_multiple_of(CHUNK_SIZE) } else { end - end % CHUNK_SIZE };
        if first >= last {
            return self.write_exclusive(core, stack, &vec![0; (end - offset) as usize], offset);
        }
        if offset < first {
            self.write_exclusive(core, stack, &vec![0; (first - offset) as usize], offset)?;
        }
        if last < end {
            self.write_exclusive(core, stack, &vec![0; (end - last) as usize], last)?;
        }
        // Inclusive: the largest file's end is chunk 2^32, which is no chunk's number.
        let whole = (first / CHUNK_SIZE) as u32..=((last - 1) / CHUNK_SIZE) as u32;
        let (had_data, marked) = {
            let mut state = top.state.write();
            let inherited = state.limit.min(last);
            let marked = first < inherited;
            if marked {
                state.zeroed.insert_range(*whole.start()..=((inherited - 1) / CHUNK_SIZE) as u32);
            }
            let chunks = state.chunks.get_or_insert_default();
            (chunks.remove_range(whole) > 0, marked)
        };
        core.touch_layer(top);
        if marked {
            // No file can tell the marks: an fsync has to commit them.
            core.meta.need(top.epoch, top.ino);
        }
        if had_data && top.row_maybe_on_disk.load(std::sync::atomic::Ordering::Acquire) {
            // The marks first: a hole without its mark would show what lies below.
            core.require_commit(top);
            core.commit(false)?;
        }
        if had_data {
            let file = top.data(&*core.disk)?;
            file.punch(first, last - first).map_err(|e| top.io("punch", e))?;
        }
        Ok(())
    }

    /// The hash of a chunk, if it is known.
    pub(crate) fn chunk_hash(&self, core: &Core, chunk: u32) -> Result<Option<[u8; 32]>> {
        known_hash(core, &self.stack.read(), chunk)
    }

    /// Makes the content durable: the layers, and the metadata that leads to them where that is not on the disk.
    pub(crate) fn sync(&self, core: &Core) -> Result<()> {
        let stack: Vec<_> = self.stack.read().clone();
        for layer in stack.iter().filter(|l| !l.state.read().sealed) {
            core.sync_layer(layer)?;
        }
        let missing = stack.iter().any(|l| !l.row_on_disk.load(std::sync::atomic::Ordering::Acquire));
        if missing {
            // An earlier commit may have left the row for later, since then the data was not on the disk.
            core.meta.look_again();
        }
        if missing || core.meta.is_needed(self.ino) || (!core.holes_exact && self.map_changed()) {
            core.commit(false)?;
        }
        core.meta.check()
    }

    fn map_changed(&self) -> bool {
        let stack = self.stack.read();
        stack.iter().any(|l| l.in_memtable.load(std::sync::atomic::Ordering::Acquire))
    }

    /// The next data or hole at or after `offset`.
    pub(crate) fn seek(&self, core: &Core, offset: u64, what: Seek) -> Result<u64> {
        let stack = self.stack.read();
        let size = stack.first().map_or(0, |l| l.state.read().size);
        if offset >= size {
            return Err(Error::NoData);
        }
        let found = match what {
            Seek::Data => next_data(core, &stack, offset, size)?,
            Seek::Hole => next_hole(core, &stack, offset, size)?,
        };
        found.ok_or(Error::NoData)
    }
}

/// The hash that one chunk has as a stack shows it; `None`: it is not known.
fn known_hash(core: &Core, stack: &[Arc<Layer>], chunk: u32) -> Result<Option<[u8; 32]>> {
    let mut origin = [Origin { layer: ZERO, clip: 0 }];
    resolve(stack, chunk, &mut origin);
    let end = (u64::from(chunk) + 1) * CHUNK_SIZE;
    let Some(layer) = stack.get(origin[0].layer as usize) else { return Ok(Some(ZEROS)) };
    if origin[0].clip < end {
        return Ok(None);
    }
    known(core, layer, chunk)
}

impl Drop for Content {
    /// Layers that wait for a commit stay in memory, but need no descriptor meanwhile.
    fn drop(&mut self) {
        for layer in self.stack.get_mut() {
            layer.close_file();
        }
    }
}

fn end_of(offset: u64, len: u64) -> Result<u64> {
    offset.checked_add(len).filter(|&e| e <= crate::types::MAX_FILE_SIZE).ok_or(Error::FileTooLarge)
}

/// Whether a write of `offset..end` into the top layer leaves a chunk incomplete that an older layer completes.
fn needs_copy_up(top: &Layer, offset: u64, end: u64) -> bool {
    let state = top.state.read();
    let Some(chunks) = &state.chunks else { return false };
    let missing = |chunk: u64| chunk * CHUNK_SIZE < state.limit && !chunks.contains(chunk as u32);
    (!offset.is_multiple_of(CHUNK_SIZE) && missing(offset / CHUNK_SIZE))
        || (!end.is_multiple_of(CHUNK_SIZE) && end < state.size && missing(end / CHUNK_SIZE))
}

/// Where a chunk's bytes come from: which layer of the stack, and how many bytes of the file may come from there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub layer: u32,
    pub clip: u64,
}

const UNRESOLVED: u32 = u32::MAX;
pub(super) const ZERO: u32 = u32::MAX - 1;

/// Resolves chunks from the top of the stack down.
pub(super) fn resolve(stack: &[Arc<Layer>], first: u32, origins: &mut [Origin]) {
    origins.fill(Origin { layer: UNRESOLVED, clip: u64::MAX });
    let mut open = origins.len();
    let mut clip = u64::MAX;
    for (i, layer) in stack.iter().enumerate() {
        let state = layer.state.read();
        for (n, origin) in origins.iter_mut().enumerate().filter(|(_, o)| o.layer == UNRESOLVED) {
            match state.find(first + n as u32) {
                Found::Data => *origin = Origin { layer: i as u32, clip },
                Found::Zero => origin.layer = ZERO,
                Found::Below => continue,
            }
            open -= 1;
        }
        if open == 0 {
            return;
        }
        clip = clip.min(state.limit);
    }
    for origin in origins.iter_mut().filter(|o| o.layer == UNRESOLVED) {
        origin.layer = ZERO;
    }
}

/// A layer may have gone away under a reader, or have got other hashes: it was folded with another. The metadata knows
/// where to.
fn was_folded(done: &Result<usize>) -> bool {
    match done {
        Err(Error::Io { source, .. }) => source.raw_os_error() == Some(libc::ENOENT),
        Err(Error::Damaged { what, .. }) => *what == DATA,
        _ => false,
    }
}

fn read_stack(core: &Core, stack: &[Arc<Layer>], buf: &mut [u8], offset: u64) -> Result<usize> {
    let Some(top) = stack.first() else { return Ok(0) };
    let (size, plain) = {
        let state = top.state.read();
        (state.size, state.chunks.is_none())
    };
    let len = size.saturating_sub(offset).min(buf.len() as u64) as usize;
    let buf = &mut buf[..len];
    if plain {
        fill(core, top, buf, offset, u64::MAX)?;
        return Ok(len);
    }
    // A request is at most 1 MiB; larger ones are done piece by piece.
    const MOST: usize = 257;
    let mut origins = [Origin { layer: ZERO, clip: 0 }; MOST];
    let mut at = offset;
    let end = offset + len as u64;
    while at < end {
        let first = at / CHUNK_SIZE;
        let count = (end.div_ceil(CHUNK_SIZE) - first).min(MOST as u64) as usize;
        let origins = &mut origins[..count];
        resolve(stack, first as u32, origins);
        for run in origins.chunk_by(|a, b| a == b) {
            let to = ((at / CHUNK_SIZE + run.len() as u64) * CHUNK_SIZE).min(end);
            let part = &mut buf[(at - offset) as usize..(to - offset) as usize];
            match run[0].layer {
                ZERO => part.fill(0),
                layer => fill(core, &stack[layer as usize], part, at, run[0].clip)?,
            }
            at = to;
        }
    }
    Ok(len)
}
