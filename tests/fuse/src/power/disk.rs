//! A disk with a volatile cache, and what is left of it when the power goes.
//!
//! A write is on the disk for certain only after a flush that came later. Until then the cut decides about it: it is
//! kept, dropped, or kept in part, whatever became of the writes before and after it. That is what the block layer
//! allows a disk to do, no more and no less.

use std::sync::{Mutex, MutexGuard};

use super::image::Image;
use crate::rng::Rng;

/// What a disk writes wholly or not at all.
const SECTOR: usize = 512;
/// What most disks today write wholly or not at all.
const PAGE: usize = 4096;

/// A disk in use.
pub struct Disk {
    state: Mutex<State>,
    /// What it writes wholly or not at all.
    unit: usize,
}

struct State {
    /// What no cut takes away.
    flushed: Image,
    /// What is read.
    current: Image,
    /// What came since the last flush, in its order.
    pending: Vec<Write>,
    /// It says that it flushes, and does not.
    lies: bool,
}

struct Write {
    offset: u64,
    data: Vec<u8>,
}

/// What a cut does to the writes since the last flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// All are dropped.
    All,
    /// None is: the cache was on the disk just in time.
    Nothing,
    /// Those up to some moment are kept.
    Later,
    /// Each is kept or dropped for itself.
    Some,
    /// Each page of each is kept or dropped for itself.
    TornPages,
    /// Each sector of each is kept or dropped for itself.
    TornSectors,
}

impl Loss {
    const ALL: [Loss; 6] =
        [Loss::All, Loss::Nothing, Loss::Later, Loss::Some, Loss::TornPages, Loss::TornSectors];
}

/// What a cut left, and how it came to that, for messages.
pub struct Remains {
    /// What the disk holds when the power is back.
    pub image: Image,
    /// What was done to the unflushed writes.
    pub loss: Loss,
    /// How many there were.
    pub pending: usize,
}

impl Disk {
    /// A disk that holds `image`, all of it flushed.
    pub fn new(image: Image) -> Disk {
        Disk::with_unit(image, SECTOR)
    }

    /// The same, of a disk that writes pages of 4 KiB wholly or not at all.
    pub fn of_pages(image: Image) -> Disk {
        Disk::with_unit(image, PAGE)
    }

    fn with_unit(image: Image, unit: usize) -> Disk {
        let state = State { flushed: image.clone(), current: image, pending: Vec::new(), lies: false };
        Disk { state: Mutex::new(state), unit }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no one panics with it")
    }

    /// Its size in bytes.
    pub fn len(&self) -> u64 {
        self.state().current.len()
    }

    /// Whether it has no room at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads what was written last.
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        self.state().current.read(offset, len)
    }

    /// Writes into the cache.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state();
        state.current.write(offset, data);
        state.pending.push(Write { offset, data: data.to_owned() });
    }

    /// Empties the cache onto the disk.
    pub fn flush(&self) {
        let State { flushed, pending, lies, .. } = &mut *self.state();
        if *lies {
            return;
        }
        for write in pending.drain(..) {
            flushed.write(write.offset, &write.data);
        }
    }

    /// From now on each flush is a lie.
    pub fn flush_no_more(&self) {
        self.state().lies = true;
    }

    /// What a power cut at this moment leaves. The disk itself runs on.
    pub fn cut(&self, rng: &mut Rng) -> Remains {
        let state = self.state();
        let mut image = state.flushed.clone();
        let loss = *rng.pick(&Loss::ALL);
        let last = rng.below(state.pending.len() as u64 + 1) as usize;
        for (at, write) in state.pending.iter().enumerate() {
            let unit = match loss {
                // ext4's superblock is two sectors of which it takes for granted that they are written as one.
                Loss::TornSectors if write.offset < PAGE as u64 => PAGE,
                Loss::TornSectors => self.unit,
                Loss::TornPages => PAGE,
                _ => write.data.len(),
            };
            for (part, data) in write.data.chunks(unit.max(1)).enumerate() {
                let kept = match loss {
                    Loss::All => false,
                    Loss::Nothing => true,
                    Loss::Later => at < last,
                    Loss::Some | Loss::TornPages | Loss::TornSectors => rng.once_in(2),
                };
                if kept {
                    image.write(write.offset + (part * unit) as u64, data);
                }
            }
        }
        Remains { image, loss, pending: state.pending.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        std::fs::write(&file, vec![0; 16 * PAGE]).unwrap();
        Disk::new(Image::load(&file).unwrap())
    }

    #[test]
    fn what_was_flushed_survives_and_the_rest_may() {
        let disk = disk();
        disk.write(1000, &[1; 10_000]);
        disk.flush();
        disk.write(8000, &[2; 5000]);
        assert_eq!(disk.read(7999, 2), [1, 2]);
        let (mut rng, mut seen) = (Rng::new(1), std::collections::HashSet::new());
        for _ in 0..200 {
            let Remains { image, loss, pending } = disk.cut(&mut rng);
            assert_eq!(pending, 1);
            assert!(image.read(1000, 7000).iter().all(|&byte| byte == 1), "{loss:?}");
            let late = image.read(8000, 3000);
            assert!(late.iter().all(|byte| [1, 2].contains(byte)), "{loss:?}");
            match loss {
                Loss::All => assert!(late.iter().all(|&byte| byte == 1)),
                Loss::Nothing => assert!(late.iter().all(|&byte| byte == 2)),
                _ => {}
            }
            seen.insert(format!("{loss:?} {:?}", late.iter().filter(|&&byte| byte == 2).count()));
        }
        assert!(seen.len() > 10, "cuts differ: {seen:?}");
        assert_eq!(disk.read(8000, 5000), [2; 5000], "the disk itself runs on");
    }

    #[test]
    fn the_image_keeps_its_copies_apart() {
        let disk = disk();
        disk.write(0, b"one");
        disk.flush();
        let mut copy = disk.cut(&mut Rng::new(1)).image;
        copy.write(0, b"two");
        copy.write(PAGE as u64 - 1, b"across");
        assert_eq!((disk.read(0, 3), copy.read(0, 3)), (b"one".to_vec(), b"two".to_vec()));
        assert_eq!(copy.read(PAGE as u64 - 1, 6), b"across");
        assert_eq!(disk.read(copy.len() - 2, 10).len(), 2, "up to the end");
    }
}
