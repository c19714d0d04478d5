//! Folding: joining two neighbouring layers of a file that no snapshot needs apart any more.
//!
//! What the pair shows is what the upper layer has, and where it has nothing, what the lower has below the upper's
//! limit. Either the lower's visible chunks are copied up into the upper's file, or the upper's chunks are copied
//! down into the lower's file, whichever is less. Both only change bytes that nobody sees before the commit:
//! * copying up fills holes of a sealed layer, whose chunk map, not its holes, says what it has;
//! * copying down overwrites chunks that the upper layer hides from everybody.
//!
//! So a crash in between leaves both layers as they were to every reader, and folding again does no harm. The order
//! is: copy, sync, commit the row of the result and the hashes that came along, let open files take their stacks anew,
//! remove the other file.
//!
//! What is copied is compared with its hashes first: damage is not spread, and not given a hash of its own. What has no
//! hash yet gets one: where folding has been, nobody has to look again ([`super::unhashed`]).
//!
//! A chunk of the lower layer that the upper's limit cuts in two is a case of its own: nothing may be cleared in it
//! in place, where readers compare it with its hash. It is *lifted* first: what shows of it becomes the upper layer's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use roaring::RoaringBitmap;

use super::checked::damaged;
use super::core::Core;
use super::layer::{is_cut, runs, scan_chunks};
use super::rows::{LayerFile, LayerRow};
use super::space::cut;
use super::sums::{Edit, GROUP, Group, ZEROS, for_each_run, group_key, hash_chunk, hash_chunks};
use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread;
use crate::types::{CHUNK_SIZE, Ino};

/// What came of folding: the row of the result, and the file that is no longer needed.
pub(crate) struct Folded {
    pub row: LayerRow,
    pub gone: LayerFile,
    /// What becomes of the hashes of the result's file.
    pub sums: Edit,
}

/// Folds two sealed layers of an inode.
pub(crate) fn fold(core: &Core, ino: Ino, lower: &LayerRow, upper: &LayerRow) -> Result<Folded> {
    let Some(upper_own) = upper.chunks.as_ref().filter(|_| upper.limit > 0) else {
        // Nothing of the lower one shows.
        return Ok(Folded { row: upper.clone(), gone: lower.file, sums: Edit::default() });
    };
    let below = open(core, ino, lower.file)?;
    let above = open(core, ino, upper.file)?;
    for (row, file, limit) in [(lower, &below, upper.limit), (upper, &above, u64::MAX)] {
        if is_cut(row, &**file, limit).map_err(io("stat", ino, row.file))? {
            let end = file.stat().map_err(io("stat", ino, row.file))?.size;
            return Err(damaged(ino, row.file, (end / CHUNK_SIZE) as u32));
        }
    }
    let lower_own = match &lower.chunks {
        Some(chunks) => chunks.clone(),
        None => {
            // With what the file has lost: it is to be found damaged, not to become zeros that have no hash.
            let mut own = scan_chunks(&*below, lower.size).map_err(io("map", ino, lower.file))?;
            core.meta.for_each_group(ino, lower.file, |number, group| {
                own.extend(group.data().map(|n| number * GROUP + n));
                Ok(())
            })?;
            own
        }
    };
    let mut shows = lower_own.clone();
    cut(&mut shows, upper.limit);
    shows -= &upper.zeroed;
    shows -= upper_own;
    let work = Work { core, stopping: &core.stopping, ino, lower, upper, below: &*below, above: &*above };
    if shows.len() <= upper_own.len() { work.up(upper_own, &shows) } else { work.down(upper_own, &lower_own) }
}

fn open(core: &Core, ino: Ino, file: LayerFile) -> Result<Arc<dyn DiskFile>> {
    core.disk.open(&file.path(ino)).map_err(io("open", ino, file))
}

fn io(op: &'static str, ino: Ino, file: LayerFile) -> impl FnOnce(std::io::Error) -> Error {
    Error::io(op, file.path(ino))
}

struct Work<'a> {
    core: &'a Core,
    stopping: &'a AtomicBool,
    ino: Ino,
    lower: &'a LayerRow,
    upper: &'a LayerRow,
    below: &'a dyn DiskFile,
    above: &'a dyn DiskFile,
}

impl Work<'_> {
    /// Copies what shows of the lower layer up.
    fn up(&self, upper_own: &RoaringBitmap, shows: &RoaringBitmap) -> Result<Folded> {
        let file = self.upper.file;
        // Of a chunk that the limit cuts, only what lies below it shows.
        let end = self.upper.limit.min(self.lower.size);
        let sums = take_along(self.core, self.ino, self.lower, self.below, shows)?;
        copy_runs(self.stopping, self.below, self.above, shows, end).map_err(io("fold", self.ino, file))?;
        self.above.sync_data().map_err(io("sync", self.ino, file))?;
        let chunks = upper_own | shows;
        let limit = self.upper.limit.min(self.lower.limit);
        let mut zeroed = &self.upper.zeroed | &self.lower.zeroed;
        zeroed -= &chunks;
        cut(&mut zeroed, limit);
        let blocks = self.above.stat().map_err(io("stat", self.ino, file))?.blocks;
        let summed = self.lower.summed && self.upper.summed;
        let row = LayerRow { limit, zeroed, blocks, summed, chunks: Some(chunks), ..self.upper.clone() };
        Ok(Folded { row: optimized(row), gone: self.lower.file, sums })
    }

    /// Copies the upper layer down.
    fn down(&self, upper_own: &RoaringBitmap, lower_own: &RoaringBitmap) -> Result<Folded> {
        let file = self.lower.file;
        let mut sums = take_along(self.core, self.ino, self.upper, self.above, upper_own)?;
        // An earlier try may have left bytes beyond the layer's end, where its own holes are to say what there is.
        self.below
            .set_len(self.lower.size)
            .and_then(|()| self.hide(upper_own, lower_own))
            .and_then(|()| copy_runs(self.stopping, self.above, self.below, upper_own, self.upper.size))
            .and_then(|()| self.below.set_len(self.upper.size))
            .map_err(io("fold", self.ino, file))?;
        self.below.sync_data().map_err(io("sync", self.ino, file))?;
        let limit = self.upper.limit.min(self.lower.limit);
        let mut zeroed = &self.upper.zeroed | &self.lower.zeroed;
        let chunks = self.lower.chunks.as_ref().map(|own| {
            let mut chunks = own.clone();
            cut(&mut chunks, self.upper.limit);
            chunks -= &self.upper.zeroed;
            chunks | upper_own
        });
        match &chunks {
            Some(chunks) => zeroed -= chunks,
            // The file's own holes say it.
            None => zeroed.clear(),
        }
        cut(&mut zeroed, limit);
        let blocks = self.below.stat().map_err(io("stat", self.ino, file))?.blocks;
        for chunk in self.hidden(lower_own)? - upper_own {
            sums.set(chunk, None);
        }
        let summed = self.lower.summed && self.upper.summed;
        let row = LayerRow { file, limit, zeroed, blocks, summed, chunks, ..self.upper.clone() };
        Ok(Folded { row: optimized(row), gone: self.upper.file, sums })
    }

    /// The chunks of the lower file that the upper layer hides: of those that it has, and of those that have a hash. An
    /// earlier try may have made a hole of a chunk whose hash is still there.
    fn hidden(&self, lower_own: &RoaringBitmap) -> Result<RoaringBitmap> {
        let mut all = lower_own.clone();
        if !self.upper.zeroed.is_empty() || self.upper.limit < self.lower.size {
            self.core.meta.for_each_group(self.ino, self.lower.file, |number, group| {
                let hashed = (0..GROUP).filter(|n| group.get(*n).is_some());
                all.extend(hashed.map(|n| number * GROUP + n));
                Ok(())
            })?;
        }
        let mut shown = all.clone();
        cut(&mut shown, self.upper.limit);
        shown -= &self.upper.zeroed;
        Ok(all - shown)
    }

    /// Makes read zeros in the lower file what the upper layer hides without having data of its own there.
    fn hide(&self, upper_own: &RoaringBitmap, lower_own: &RoaringBitmap) -> std::io::Result<()> {
        let limit = self.upper.limit;
        if limit < self.lower.size {
            let edge = limit.next_multiple_of(CHUNK_SIZE).min(self.lower.size);
            if edge < self.lower.size {
                self.below.punch(edge, self.lower.size.next_multiple_of(CHUNK_SIZE) - edge)?;
            }
        }
        let mut zeroed = &self.upper.zeroed & lower_own;
        zeroed -= upper_own;
        for (first, count) in runs(&zeroed) {
            self.below.punch(u64::from(first) * CHUNK_SIZE, count * CHUNK_SIZE)?;
        }
        Ok(())
    }
}

/// Compares chunks of a layer with their hashes, as far as they have some. Gives the hashes, to go where the chunks go.
fn take_along(
    core: &Core,
    ino: Ino,
    row: &LayerRow,
    file: &dyn DiskFile,
    chunks: &RoaringBitmap,
) -> Result<Edit> {
    let mut sums = Edit::default();
    let mut group = (u32::MAX, Arc::new(Group::default()));
    let mut failed = None;
    for_each_run(file, chunks, |first, bytes| {
        if first / GROUP != group.0 {
            match core.meta.sums(&group_key(ino, row.file, first / GROUP)) {
                Ok(found) => group = (first / GROUP, found),
                Err(error) => {
                    failed = Some(error);
                    return Err(std::io::ErrorKind::Interrupted.into());
                }
            }
        }
        hash_chunks(bytes, |n, hash| {
            let chunk = first + n as u32;
            let known = group.1.get(chunk % GROUP).copied();
            if (known.is_some() || row.summed) && hash != known.unwrap_or(ZEROS) {
                failed.get_or_insert(damaged(ino, row.file, chunk));
            }
            sums.set(chunk, Some(hash));
        });
        if failed.is_some() { Err(std::io::ErrorKind::InvalidData.into()) } else { Ok(()) }
    })
    .map_err(|e| failed.unwrap_or_else(|| io("read", ino, row.file)(e)))?;
    Ok(sums)
}

/// Gives the upper layer what shows of the lower layer's chunk that the upper's limit cuts in two, if there is such a
/// one. To be committed before the two are folded: the upper layer's new row, and its hashes.
pub(crate) fn lift(
    core: &Core,
    ino: Ino,
    lower: &LayerRow,
    upper: &LayerRow,
) -> Result<Option<(LayerRow, Edit)>> {
    let limit = upper.limit;
    let chunk = (limit / CHUNK_SIZE) as u32;
    let Some(own) = upper.chunks.as_ref().filter(|_| !limit.is_multiple_of(CHUNK_SIZE) && limit < lower.size)
    else {
        return Ok(None);
    };
    if own.contains(chunk) || upper.zeroed.contains(chunk) {
        return Ok(None);
    }
    let below = open(core, ino, lower.file)?;
    let start = u64::from(chunk) * CHUNK_SIZE;
    let has = match &lower.chunks {
        Some(chunks) => chunks.contains(chunk),
        None => {
            let data = below.seek_data(start).map_err(io("map", ino, lower.file))?;
            data.is_some_and(|data| data < start + CHUNK_SIZE)
                || core.meta.next_data_sum(ino, lower.file, chunk)? == Some(chunk)
        }
    };
    if !has {
        return Ok(None);
    }
    take_along(core, ino, lower, &*below, &RoaringBitmap::from_iter([chunk]))?;
    let mut bytes = vec![0; CHUNK_SIZE as usize];
    let got = below.read_at(&mut bytes, start).map_err(io("read", ino, lower.file))?;
    bytes[got.min((limit - start) as usize)..].fill(0);
    bytes.truncate((upper.size - start).min(CHUNK_SIZE) as usize);
    let above = open(core, ino, upper.file)?;
    above.write_at(&bytes, start).map_err(io("fold", ino, upper.file))?;
    above.sync_data().map_err(io("sync", ino, upper.file))?;
    let mut sums = Edit::default();
    sums.set(chunk, Some(hash_chunk(&bytes)));
    let mut row = upper.clone();
    row.chunks.get_or_insert_default().insert(chunk);
    row.blocks = above.stat().map_err(io("stat", ino, upper.file))?.blocks;
    Ok(Some((optimized(row), sums)))
}

fn optimized(mut row: LayerRow) -> LayerRow {
    row.zeroed.optimize();
    if let Some(chunks) = &mut row.chunks {
        chunks.optimize();
    }
    row
}

/// Copies runs of chunks to the same places in another file, up to the byte `end`, in small steps that are synced one by
/// one, taking about half of the time: whoever works in the foreground gets the other half of the disk.
///
/// The steps are small because a file system's journal is one for all. Of a thousand chunks with one sync at their end, a
/// database that commits meanwhile waits for all of them (8 ms at worst on ext4, 2.5 ms with these steps, and 2 ms when
/// nothing else is written).
fn copy_runs(
    stopping: &AtomicBool,
    from: &dyn DiskFile,
    to: &dyn DiskFile,
    chunks: &RoaringBitmap,
    end: u64,
) -> std::io::Result<()> {
    const STEP: u64 = 64 * CHUNK_SIZE;
    let mut since = Instant::now();
    let mut copied = 0;
    for (first, count) in runs(chunks) {
        let start = u64::from(first) * CHUNK_SIZE;
        let stop = (start + count * CHUNK_SIZE).min(end);
        let mut at = start;
        while at < stop {
            if stopping.load(Ordering::Acquire) {
                // Nothing has changed for anybody yet; the next time begins anew.
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            let len = (STEP - copied).min(stop - at);
            to.copy_from(from, at, at, len)?;
            at += len;
            copied += len;
            if copied >= STEP {
                to.sync_data()?;
                thread::sleep(since.elapsed().min(Duration::from_millis(50)));
                (since, copied) = (Instant::now(), 0);
            }
        }
    }
    Ok(())
}
