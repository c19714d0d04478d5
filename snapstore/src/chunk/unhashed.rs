//! Hashing what was sealed without hashes: what sealing left, and what was adopted.
//!
//! Sealing hashes layers up to [`HASHED_AT_ONCE`] together; those beyond that are sealed without being *summed* (see
//! [`super::sums`]), and the epoch's row says so (`unhashed`) until the background has made up for it. So a snapshot
//! waits for the disk only, and a crash loses no more than the place where this was.
//!
//! What it reads has mostly just been written and is in the page cache. Where it is not, the disk is the programs':
//! while they read, this reads [`GIVING_WAY`] bytes a second at most, unless somebody waits for it.
//!
//! Two epochs are merged only when both have been here: of what folding joins, the chunks without hashes would be left
//! to the scrub, which does the same for all layers that are not summed, now and then.
//!
//! A piece of a layer is read and hashed while nothing folds it, and a chunk that has a hash keeps it: that is older
//! than this look at the data. What a fold brings meanwhile has its hashes. Where the disk is nearly full nothing is
//! hashed, and no merge waits for it: what gives space back comes first.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use roaring::RoaringBitmap;

use super::checked::damaged;
use super::core::{Core, Work};
use super::database::guarded;
use super::layer::{is_cut, scan_chunks};
use super::rows::{Key, LayerFile, LayerRow, Row};
use super::seal::Known;
use super::snapshots::{Control, epoch_row, json};
use super::sums::{GROUP, group_key};
use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::sync::atomic::Ordering;
use crate::types::{CHUNK_SIZE, EpochId, Ino};

/// So many chunks of an epoch are hashed while it is sealed (1 MiB): that takes less than a commit of its own.
pub(super) const HASHED_AT_ONCE: u64 = match (cfg!(shuttle), cfg!(test)) {
    (true, _) => 0,
    (_, true) => 8,
    _ => 256,
};
/// So many chunks are hashed when the store is closed (8 GiB): somebody waits.
const HASHED_AT_CLOSE: u64 = if cfg!(test) { 600 } else { 1 << 21 };
/// The rows of so many layers are written in one commit.
const BATCH: usize = 1024;
/// So many chunks are hashed before others get a turn (1 MiB).
const PIECE: u64 = 256;
/// Bytes a second, while programs read.
const GIVING_WAY: f64 = (64 << 20) as f64;
/// With more epochs than this it gives way to nobody: it would never come to an end.
const MANY_EPOCHS: usize = 8;
/// With less than this free, in bytes, nothing is hashed.
const ROOM: u64 = 64 << 20;

/// Layers that have all their hashes, and their rows when that was found out.
type Hashed = Vec<(Ino, Vec<u8>)>;

/// Whether to go on, after so many chunks.
type GoOn<'a> = &'a mut dyn FnMut(u64) -> bool;

/// How far an epoch's hashing has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hashing {
    /// To its end.
    Done,
    /// It was told not to go on.
    Stopped,
    /// The disk is nearly full.
    NoRoom,
}

/// Somebody waits for hashes.
pub(super) struct Hurry<'a>(&'a Core);

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.work.lock().hurry -= 1;
    }
}

/// When hashing was last seen to be in nobody's way.
struct Pace {
    since: Instant,
    reads: u64,
}

impl Core {
    /// Hashes the oldest epoch that waits for it. False when there is none, or it was told to end. What fails is left to
    /// the scrub.
    pub(super) fn hash_next(&self) -> Result<bool> {
        let _one = self.hashing.lock();
        let Some(epoch) = self.work.lock().hash.front().copied() else { return Ok(false) };
        let mut pace = Pace { since: Instant::now(), reads: self.reads.load(Ordering::Relaxed) };
        let done = guarded(|| self.hash_epoch(epoch, &mut |chunks| self.give_way(&mut pace, chunks)));
        if matches!(done, Ok(Hashing::Stopped)) {
            return Ok(false);
        }
        self.hash_ended(epoch);
        done.map(|_| true)
    }

    /// Hashes what this opening of the store has frozen, before it is closed, as far as that takes no great while. An
    /// error only where the store has failed.
    pub(super) fn hash_at_close(&self) -> Result<()> {
        let _one = self.hashing.lock();
        let mut left = HASHED_AT_CLOSE;
        loop {
            // What was left before is not for a command that has only looked at something.
            let next = self.work.lock().hash.iter().copied().find(|epoch| *epoch >= self.first_epoch);
            let Some(epoch) = next else { return Ok(()) };
            let go_on = &mut |chunks| {
                left = left.saturating_sub(chunks);
                left > 0
            };
            match guarded(|| self.hash_epoch(epoch, go_on)) {
                Ok(Hashing::Done) => self.hash_ended(epoch),
                done if self.meta.check().is_err() => return done.map(drop),
                done => {
                    self.report("hashing", done.map(drop));
                    return Ok(());
                }
            }
        }
    }

    fn hash_ended(&self, epoch: EpochId) {
        let mut work = self.work.lock();
        work.hash.retain(|&waiting| waiting != epoch);
        work.awaited.remove(&epoch);
        work.reclaim = true;
        drop(work);
        self.wake.notify_all();
        self.done.notify_all();
    }

    /// Waits until everything that was sealed before has its hashes, or it is clear that it does not get them now.
    pub(super) fn wait_hashed(&self) -> Result<()> {
        if self.background_off() {
            while self.hash_next()? {}
            return Ok(());
        }
        let _hurry = self.hurry();
        let mut work = self.work.lock();
        let mut waiting: Vec<EpochId> = work.hash.iter().copied().collect();
        while !work.stop {
            waiting.retain(|epoch| work.hash.contains(epoch));
            if waiting.is_empty() {
                break;
            }
            self.done.wait_for(&mut work, Duration::from_millis(100));
        }
        Ok(())
    }

    /// Has hashing give way to nobody, as long as the answer is kept.
    pub(super) fn hurry(&self) -> Hurry<'_> {
        self.work.lock().hurry += 1;
        self.wake.notify_all();
        Hurry(self)
    }

    /// Whether none of these epochs waits for its hashes. If space is short, they are made without giving way then.
    pub(super) fn are_hashed(&self, epochs: [EpochId; 2]) -> bool {
        let mut work = self.work.lock();
        let waiting: Vec<EpochId> = epochs.into_iter().filter(|epoch| work.hash.contains(epoch)).collect();
        if waiting.is_empty() {
            return true;
        }
        work.awaited.extend(waiting);
        self.wake.notify_all();
        false
    }

    /// Between two pieces: slowly, while programs read. False: it ends here.
    fn give_way(&self, pace: &mut Pace, chunks: u64) -> bool {
        let due = pace.since + Duration::from_secs_f64((chunks * CHUNK_SIZE) as f64 / GIVING_WAY);
        let short_of_space = !self.has_plenty_of_space();
        let mut work = self.work.lock();
        while self.reads.load(Ordering::Relaxed) != pace.reads && !self.stopping.load(Ordering::Acquire) {
            let hurry = work.is_in_a_hurry() || (short_of_space && !work.awaited.is_empty());
            if hurry || self.wake.wait_until(&mut work, due).timed_out() {
                break;
            }
        }
        let go_on = !work.stop;
        drop(work);
        *pace = Pace { since: Instant::now(), reads: self.reads.load(Ordering::Relaxed) };
        go_on && !self.stopping.load(Ordering::Acquire)
    }

    /// Hashes the layers of a sealed epoch that have no hashes, as long as `go_on` allows it. What one layer is in the
    /// way of (it is gone, it cannot be read) is left to the scrub.
    fn hash_epoch(&self, epoch: EpochId, go_on: GoOn<'_>) -> Result<Hashing> {
        if !self.control.lock().tree.get(epoch).is_some_and(|row| row.unhashed) {
            return Ok(Hashing::Done);
        }
        let progress = self.hash_layers(epoch, self.meta.touched_layers(epoch)?, go_on)?;
        if progress == Hashing::Done {
            let mut c = self.control.lock();
            if let Some(row) = c.tree.get_mut(epoch) {
                row.unhashed = false;
                let row = json(row);
                self.meta.apply_control(vec![(epoch_row(epoch), Some(row))]);
            }
        }
        Ok(progress)
    }

    /// Hashes those of an epoch's layers that are sealed and have no hashes.
    pub(super) fn hash_layers(
        &self,
        epoch: EpochId,
        inodes: impl IntoIterator<Item = Ino>,
        go_on: GoOn<'_>,
    ) -> Result<Hashing> {
        let mut hashed = Hashed::default();
        for ino in inodes {
            match self.hash_layer(ino, epoch, &mut hashed, go_on) {
                Ok(Hashing::Done) => {}
                // Not even that some layers are done: on a full disk nothing is written for this.
                Ok(Hashing::NoRoom) => return Ok(Hashing::NoRoom),
                Ok(ended) => {
                    self.store_hashed(epoch, hashed)?;
                    return Ok(ended);
                }
                Err(error) if self.meta.check().is_err() => return Err(error),
                Err(error) => tracing::error!("inode {ino}, epoch {epoch}: not hashed: {error}"),
            }
            if hashed.len() >= BATCH {
                self.store_hashed(epoch, std::mem::take(&mut hashed))?;
            }
        }
        self.store_hashed(epoch, hashed)?;
        Ok(Hashing::Done)
    }

    /// Hashes one layer, piece by piece.
    fn hash_layer(&self, ino: Ino, epoch: EpochId, hashed: &mut Hashed, go_on: GoOn<'_>) -> Result<Hashing> {
        let mut looked: Option<(Vec<u8>, Arc<dyn DiskFile>, RoaringBitmap)> = None;
        let mut from = 0;
        loop {
            let piece = {
                // Nothing folds or removes it meanwhile.
                let _one = self.folding.lock();
                let Some((bytes, row)) = self.unsummed(ino, epoch)? else { return Ok(Hashing::Done) };
                if row.size == 0 {
                    hashed.push((ino, bytes));
                    return Ok(Hashing::Done);
                }
                if looked.as_ref().is_none_or(|(seen, ..)| *seen != bytes) {
                    // It may be another file. (Where it is the same, the chunks that a fold has brought have hashes.)
                    from = 0;
                    let (file, chunks) = self.look_at(ino, &row)?;
                    looked = Some((bytes, file, chunks));
                }
                let Some((bytes, file, chunks)) = &looked else { continue };
                let mut rest = chunks.iter();
                rest.advance_to(from);
                let piece: RoaringBitmap = rest.take(PIECE as usize).collect();
                let Some(last) = piece.max() else {
                    hashed.push((ino, bytes.clone()));
                    return Ok(Hashing::Done);
                };
                if !self.has_room()? {
                    return Ok(Hashing::NoRoom);
                }
                let lacking = self.lacking(ino, row.file, piece)?;
                if !lacking.is_empty() {
                    self.sum_file(ino, row.file, &**file, &lacking, Known::Keep)?;
                }
                if last == u32::MAX {
                    hashed.push((ino, bytes.clone()));
                    return Ok(Hashing::Done);
                }
                from = last + 1;
                lacking.len()
            };
            if !go_on(piece) {
                return Ok(Hashing::Stopped);
            }
        }
    }

    /// A layer's file, which has all that its row says, and the chunks that it holds.
    fn look_at(&self, ino: Ino, row: &LayerRow) -> Result<(Arc<dyn DiskFile>, RoaringBitmap)> {
        let path = row.file.path(ino);
        let file = self.disk.open(&path).map_err(Error::io("open", &path))?;
        if is_cut(row, &*file, u64::MAX).map_err(Error::io("stat", &path))? {
            // Zeros would get a hash.
            let end = file.stat().map_err(Error::io("stat", &path))?.size;
            return Err(damaged(ino, row.file, (end / CHUNK_SIZE) as u32));
        }
        let chunks = match &row.chunks {
            Some(chunks) => chunks.clone(),
            None => scan_chunks(&*file, row.size).map_err(Error::io("map", &path))?,
        };
        Ok((file, chunks))
    }

    /// The row of a layer that is sealed and has no hashes.
    fn unsummed(&self, ino: Ino, epoch: EpochId) -> Result<Option<(Vec<u8>, LayerRow)>> {
        let Some(Some(bytes)) = self.meta.row_at(&Key::layer(ino), epoch)? else { return Ok(None) };
        let row = LayerRow::decode(&bytes)?;
        Ok((row.sealed && !row.summed).then(|| (bytes.to_vec(), row)))
    }

    /// Those of some chunks that have no hash.
    fn lacking(&self, ino: Ino, name: LayerFile, mut chunks: RoaringBitmap) -> Result<RoaringBitmap> {
        let numbers: BTreeSet<u32> = chunks.iter().map(|chunk| chunk / GROUP).collect();
        for number in numbers {
            let group = self.meta.sums(&group_key(ino, name, number))?;
            for n in (0..GROUP).filter(|n| group.get(*n).is_some()) {
                chunks.remove(number * GROUP + n);
            }
        }
        Ok(chunks)
    }

    /// Whether there is room for hashes.
    fn has_room(&self) -> Result<bool> {
        let space =
            self.disk.stat_fs().map_err(Error::io("look at the space of", "the store's file system"))?;
        let room = space.blocks_available.saturating_mul(u64::from(space.block_size)) >= ROOM;
        // What was set aside for such times is set aside again first.
        Ok(room && self.meta.reserve.fill().is_ok())
    }

    /// Says on the disk of which layers there are all hashes. Those go there with it.
    fn store_hashed(&self, epoch: EpochId, mut hashed: Hashed) -> Result<()> {
        if hashed.is_empty() {
            return Ok(());
        }
        let _one = self.folding.lock();
        self.meta.rewrite(|w| {
            let mut stored = Hashed::default();
            for (ino, seen) in hashed.drain(..) {
                let key = Key::layer(ino);
                if w.get(&key, epoch)?.flatten().as_ref() == Some(&seen) {
                    let row = LayerRow { summed: true, ..LayerRow::decode(&seen)? };
                    w.put(&key, epoch, Some(&row.encode()))?;
                    stored.push((ino, seen));
                }
            }
            hashed = stored;
            Ok(())
        })?;
        // Those in use compare from here on. One that is loaded at this very moment from the row of before does not.
        for (ino, seen) in hashed {
            if let Some(live) = self.live_layer(ino, epoch, &LayerRow::decode(&seen)?) {
                live.state.write().summed = true;
            }
        }
        Ok(())
    }
}

impl Control {
    /// The sealed epochs that have layers without hashes.
    pub(super) fn unhashed(&self) -> impl Iterator<Item = EpochId> {
        self.tree.iter().filter(|(_, row)| row.sealed && row.unhashed).map(|(epoch, _)| epoch)
    }
}

impl Work {
    /// Whether hashing gives way to nobody.
    fn is_in_a_hurry(&self) -> bool {
        self.stop || self.by_callers || self.hurry > 0 || self.hash.len() > MANY_EPOCHS
    }
}

#[cfg(test)]
mod tests;
