//! Comparing sealed layers with their hashes, on as many threads as there is to gain: one reads while another hashes.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use roaring::RoaringBitmap;

use super::core::Core;
use super::layer::{is_cut, scan_chunks};
use super::rows::{Key, LayerRow, Row};
use super::sums::{GROUP, Group, ZEROS, for_each_run, group_key, hash_chunks};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::types::{CHUNK_SIZE, EpochId, Ino};

/// A layer is compared in parts of at least so many chunks (64 MiB), ...
const PART: u64 = 1 << 14;
/// ... and in so many parts at most: for each, its map is decoded anew.
const PARTS: u64 = 64;
/// Progress is told after so many chunks.
const TELL: u64 = 256;

/// A part of a layer: the chunks `first..end` of its file.
pub(super) struct Part {
    ino: Ino,
    epoch: EpochId,
    chunks: Range<u64>,
}

/// Adds the parts of a layer.
pub(super) fn push_parts(parts: &mut Vec<Part>, ino: Ino, epoch: EpochId, row: &LayerRow) {
    let end = row.size.div_ceil(CHUNK_SIZE);
    let step = PART.max(end.div_ceil(PARTS)).next_multiple_of(u64::from(GROUP));
    // An empty layer has a part too: that its row can be read is looked at there.
    for first in (0..end.max(1)).step_by(step as usize) {
        parts.push(Part { ino, epoch, chunks: first..end.min(first + step) });
    }
}

/// What came of comparing.
#[derive(Default)]
pub(super) struct Compared {
    pub bytes: u64,
    pub unhashed_bytes: u64,
    /// Inodes with a layer that does not fit, or could not be read.
    pub suspects: BTreeSet<Ino>,
}

/// What all threads add to.
#[derive(Default)]
struct Shared {
    next: AtomicUsize,
    bytes: AtomicU64,
    unhashed_bytes: AtomicU64,
    suspects: Mutex<BTreeSet<Ino>>,
}

/// Compares all parts, on so many threads.
pub(super) fn compare(
    core: &Core,
    parts: &[Part],
    threads: usize,
    progress: &dyn Progress,
) -> Result<Compared> {
    let shared = Shared::default();
    let work = || {
        while let Some(part) = parts.get(shared.next.fetch_add(1, Ordering::Relaxed)) {
            if core.stopping.load(Ordering::Acquire) {
                return;
            }
            // An error: folded or removed since it was listed, or it is not there at all. Its heights tell.
            if !shared.part(core, part, progress).unwrap_or(false) {
                shared.suspects.lock().insert(part.ino);
            }
        }
    };
    if threads <= 1 {
        work();
    } else {
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    }
    if core.stopping.load(Ordering::Acquire) {
        return Err(Error::Closed);
    }
    Ok(Compared {
        bytes: shared.bytes.into_inner(),
        unhashed_bytes: shared.unhashed_bytes.into_inner(),
        suspects: shared.suspects.into_inner(),
    })
}

impl Shared {
    /// Whether a part's data is what it was.
    fn part(&self, core: &Core, part: &Part, progress: &dyn Progress) -> Result<bool> {
        let ino = part.ino;
        let Some(Some(bytes)) = core.meta.row_at(&Key::layer(ino), part.epoch)? else { return Ok(true) };
        let row = LayerRow::decode(&bytes)?;
        let path = row.file.path(ino);
        let file = match core.disk.open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && row.size == 0 => return Ok(true),
            file => file.map_err(Error::io("open", &path))?,
        };
        let mut chunks = match &row.chunks {
            Some(chunks) => chunks.clone(),
            None => scan_chunks(&*file, row.size).map_err(Error::io("map", &path))?,
        };
        // Once for a layer.
        let mut right = part.chunks.start > 0
            || (holes_fit(core, ino, &row, &chunks)?
                && !is_cut(&row, &*file, u64::MAX).map_err(Error::io("stat", &path))?);
        chunks.remove_range(..part.chunks.start.min(u64::from(u32::MAX)) as u32);
        // What a layer has got by a fold since it was listed was compared when it was copied.
        if let Ok(end) = u32::try_from(part.chunks.end) {
            chunks.remove_range(end..);
        }
        let mut group = (u32::MAX, Arc::new(Group::default()));
        let (mut untold, mut compared, mut unhashed) = (0, 0, 0);
        let done = for_each_run(&*file, &chunks, |first, bytes| {
            if first / GROUP != group.0 {
                let found = core.meta.sums(&group_key(ino, row.file, first / GROUP));
                group = (first / GROUP, found.map_err(|_| std::io::ErrorKind::InvalidData)?);
            }
            let count = bytes.len() as u64 / CHUNK_SIZE;
            if !row.summed && group.1.is_empty() {
                unhashed += count * CHUNK_SIZE;
            } else {
                hash_chunks(bytes, |n, hash| match group.1.get(first % GROUP + n as u32) {
                    None if !row.summed => unhashed += CHUNK_SIZE,
                    known => {
                        compared += CHUNK_SIZE;
                        right &= hash == *known.unwrap_or(&ZEROS);
                    }
                });
            }
            untold += count;
            if untold >= TELL {
                progress.advance(std::mem::take(&mut untold) * CHUNK_SIZE);
            }
            if core.stopping.load(Ordering::Relaxed) {
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            Ok(())
        });
        progress.advance(untold * CHUNK_SIZE);
        self.bytes.fetch_add(compared, Ordering::Relaxed);
        self.unhashed_bytes.fetch_add(unhashed, Ordering::Relaxed);
        done.map_err(Error::io("read", &path))?;
        Ok(right)
    }
}

/// Whether a layer has data wherever a chunk has a hash that is not that of zeros.
fn holes_fit(core: &Core, ino: Ino, row: &LayerRow, chunks: &RoaringBitmap) -> Result<bool> {
    if row.chunks.is_some() {
        return Ok(true);
    }
    let mut fits = true;
    core.meta.for_each_group(ino, row.file, |number, group| {
        fits &= (0..GROUP)
            .all(|n| group.get(n).is_none_or(|hash| *hash == ZEROS || chunks.contains(number * GROUP + n)));
        Ok(())
    })?;
    Ok(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::rows::LayerFile;

    fn parts_of(size: u64) -> Vec<(u64, u64)> {
        let file = LayerFile { epoch: EpochId(1), turn: 0 };
        let (blocks, visible, limit) = (0, 0, 0);
        let zeroed = RoaringBitmap::new();
        let row =
            LayerRow { file, size, limit, blocks, visible, sealed: true, summed: true, zeroed, chunks: None };
        let mut parts = Vec::new();
        push_parts(&mut parts, Ino(2), EpochId(1), &row);
        parts.into_iter().map(|part| (part.chunks.start, part.chunks.end)).collect()
    }

    #[test]
    fn the_parts_of_a_layer_are_all_of_it_once() {
        assert_eq!(parts_of(0), [(0, 0)]);
        assert_eq!(parts_of(1), [(0, 1)]);
        for size in [PART * CHUNK_SIZE, PART * CHUNK_SIZE + 1, 1 << 40, crate::types::MAX_FILE_SIZE] {
            let parts = parts_of(size);
            assert!(parts.len() as u64 <= PARTS, "{} parts of {size} bytes", parts.len());
            assert_eq!(parts[0].0, 0);
            assert!(parts.windows(2).all(|pair| pair[0].1 == pair[1].0));
            assert_eq!(parts.last().map(|last| last.1), Some(size.div_ceil(CHUNK_SIZE)));
        }
    }
}
