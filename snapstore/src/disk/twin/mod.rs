//! The twin of the real disk, in memory: it remembers what has been synced and what has not.
//!
//! A [`MemDisk`] behaves as a file system does while the power is on. Beside that it keeps, for each file and for the
//! names, what the disk is certain to have, and the operations since then in their order. A [`Media`] is a copy of all
//! that, taken at any moment for nearly nothing; [`Media::image`] makes of it one of the states in which a power cut
//! at that moment may leave a journaling file system. See [`image`] for which states those are.
//!
//! It also fails on command ([`fault`]), and has a capacity.

mod fault;
mod file;
mod image;
mod names;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

pub(crate) use fault::{Fault, Kind};
pub(crate) use image::{Odometer, Sampler};

use super::{Disk, DiskFile, DiskStat, FileSpace};
use crate::types::StatFs;
use fault::Faults;
use file::FileState;
use names::Names;

pub(crate) const PAGE: u64 = 4096;

/// Everything a disk holds, synced or not.
#[derive(Clone, Default)]
pub(crate) struct Media {
    files: BTreeMap<u64, FileState>,
    names: Names,
    next: u64,
}

impl Media {
    /// Whether a power cut would change anything.
    pub(crate) fn is_settled(&self) -> bool {
        self.names.is_settled() && self.files.values().all(FileState::is_settled)
    }

    /// Pages in use by files that have a name or are open.
    fn used(&self, open: &BTreeMap<u64, usize>) -> u64 {
        let counts = |id: &u64| open.contains_key(id) || self.names.has(*id);
        self.files.iter().filter(|(id, _)| counts(id)).map(|(_, f)| f.pages()).sum()
    }
}

/// A disk in memory.
pub(crate) struct MemDisk {
    me: Weak<MemDisk>,
    media: Mutex<Media>,
    /// Open files, and how often.
    open: Mutex<BTreeMap<u64, usize>>,
    faults: Mutex<Faults>,
    /// Pages that the disk has; `None`: as many as are asked for.
    capacity: Mutex<Option<u64>>,
    /// Copies taken before each sync, where somebody wants them.
    taken: Mutex<Option<Vec<Media>>>,
    lies: AtomicBool,
    /// The next sync of a file's data waits until it gets something from here.
    parked: Mutex<Option<Receiver<()>>>,
}

impl MemDisk {
    pub(crate) fn new(media: Media) -> Arc<MemDisk> {
        Arc::new_cyclic(|me| MemDisk {
            me: me.clone(),
            media: Mutex::new(media),
            open: Mutex::default(),
            faults: Mutex::default(),
            capacity: Mutex::default(),
            taken: Mutex::default(),
            lies: AtomicBool::new(false),
            parked: Mutex::default(),
        })
    }

    /// What is on the disk and what is on its way there, now.
    pub(crate) fn media(&self) -> Media {
        self.media.lock().clone()
    }

    /// From now on a copy is taken before each sync.
    pub(crate) fn watch(&self) {
        *self.taken.lock() = Some(Vec::new());
    }

    /// The copies taken since the last call.
    pub(crate) fn taken(&self) -> Vec<Media> {
        self.taken.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Has an operation fail.
    pub(crate) fn plan(&self, fault: Option<Fault>) {
        self.faults.lock().plan(fault);
    }

    /// Does what a test looks at; no fault strikes, and it does not count.
    pub(crate) fn aside<R>(&self, look: impl FnOnce() -> R) -> R {
        let faults = std::mem::take(&mut *self.faults.lock());
        let found = look();
        *self.faults.lock() = faults;
        found
    }

    /// Operations so far, and whether the planned fault has struck.
    pub(crate) fn operations(&self) -> (u64, bool) {
        self.faults.lock().seen()
    }

    pub(crate) fn set_capacity(&self, pages: Option<u64>) {
        *self.capacity.lock() = pages;
    }

    pub(crate) fn used(&self) -> u64 {
        self.media.lock().used(&self.open.lock())
    }

    /// Has the next sync of a file's data take until the result is used, or goes.
    pub(crate) fn park(&self) -> Sender<()> {
        let (go_on, parked) = channel();
        *self.parked.lock() = Some(parked);
        go_on
    }

    /// Whether that sync has begun.
    pub(crate) fn has_parked(&self) -> bool {
        self.parked.lock().is_none()
    }

    /// From now on syncs do nothing.
    pub(crate) fn lie(&self) {
        self.lies.store(true, Ordering::Relaxed);
    }

    fn enter(&self, kind: Kind) -> io::Result<()> {
        self.faults.lock().strike(kind)
    }

    /// Pages that can still be had.
    pub(crate) fn free(&self) -> u64 {
        let capacity = *self.capacity.lock();
        capacity.map_or(u64::MAX, |c| c.saturating_sub(self.used()))
    }

    fn before_sync(&self) {
        if let Some(taken) = &mut *self.taken.lock() {
            let media = self.media();
            if !media.is_settled() {
                taken.push(media);
            }
        }
    }

    fn handle(&self, id: u64) -> io::Result<Arc<dyn DiskFile>> {
        *self.open.lock().entry(id).or_default() += 1;
        let disk = self.me.upgrade().ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(MemFile { disk, id }))
    }
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

impl Disk for MemDisk {
    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.enter(Kind::Look)?;
        let id = self.media.lock().names.find(path).ok_or_else(|| errno(libc::ENOENT))?;
        self.handle(id)
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.enter(Kind::Name)?;
        let id = {
            let mut media = self.media.lock();
            let id = media.next;
            media.names.create(path, id)?;
            media.next += 1;
            media.files.insert(id, FileState::default());
            id
        };
        self.handle(id)
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.enter(Kind::Name)?;
        self.media.lock().names.create_dir(path)
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.enter(Kind::Remove)?;
        self.media.lock().names.remove_dir(path)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.enter(Kind::Remove)?;
        self.media.lock().names.remove(path)
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.enter(Kind::Look)?;
        Ok(self.media.lock().names.list(path))
    }

    fn stat(&self, path: &str) -> io::Result<Option<DiskStat>> {
        self.enter(Kind::Look)?;
        let media = self.media.lock();
        Ok(media.names.find(path).map(|id| media.files[&id].stat()))
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.before_sync();
        self.enter(Kind::Sync)?;
        self.media.lock().names.sync_dir(path)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.before_sync();
        self.enter(Kind::Sync)?;
        let mut media = self.media.lock();
        media.names.sync_all();
        media.files.values_mut().for_each(FileState::sync);
        Ok(())
    }

    fn stat_fs(&self) -> io::Result<StatFs> {
        self.enter(Kind::Look)?;
        let blocks = self.capacity.lock().unwrap_or(1 << 32);
        let free = self.free().min(1 << 32);
        Ok(StatFs {
            block_size: PAGE as u32,
            blocks,
            blocks_free: free,
            blocks_available: free,
            files: 1 << 20,
            files_free: 1 << 19,
        })
    }
}

/// An open file of a [`MemDisk`].
struct MemFile {
    disk: Arc<MemDisk>,
    id: u64,
}

impl MemFile {
    fn with<T>(&self, f: impl FnOnce(&mut FileState) -> T) -> T {
        f(self.disk.media.lock().files.get_mut(&self.id).expect("an open file stays"))
    }

    /// Makes sure that so many more pages can be had.
    fn take(&self, pages: u64) -> io::Result<()> {
        if pages > 0 && pages > self.disk.free() { Err(errno(libc::ENOSPC)) } else { Ok(()) }
    }
}

impl Drop for MemFile {
    fn drop(&mut self) {
        let mut open = self.disk.open.lock();
        if let Some(count) = open.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.id);
            }
        }
    }
}

impl DiskFile for MemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.enter(Kind::Read)?;
        Ok(self.with(|f| f.read(buf, offset)))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let entered = self.disk.enter(Kind::Write);
        if entered.is_err() && self.disk.faults.lock().writes_short() {
            // Half of it has arrived.
            self.with(|f| f.write(&data[..data.len() / 2], offset));
        }
        entered?;
        self.take(self.with(|f| f.missing(offset, data.len() as u64)))?;
        self.with(|f| f.write(data, offset));
        Ok(())
    }

    fn set_len(&self, size: u64) -> io::Result<()> {
        self.disk.enter(Kind::Write)?;
        self.with(|f| f.set_len(size));
        Ok(())
    }

    fn stat(&self) -> io::Result<FileSpace> {
        self.disk.enter(Kind::Look)?;
        let DiskStat { size, blocks, .. } = self.with(|f| f.stat());
        Ok(FileSpace { size, blocks })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.before_sync();
        let parked = self.disk.parked.lock().take();
        if let Some(parked) = parked {
            let _ = parked.recv();
        }
        match self.disk.enter(Kind::Sync) {
            Ok(()) if self.disk.lies.load(Ordering::Relaxed) => {}
            Ok(()) => self.with(FileState::sync),
            Err(e) => {
                self.with(FileState::fail_sync);
                return Err(e);
            }
        }
        Ok(())
    }

    fn start_writeback(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> io::Result<()> {
        self.disk.enter(Kind::Write)?;
        self.take(self.with(|f| f.missing(offset, len)))?;
        self.with(|f| f.allocate(offset, len, keep_size));
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.enter(Kind::Write)?;
        self.with(|f| f.punch(offset, len));
        Ok(())
    }

    fn seek_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.disk.enter(Kind::Look)?;
        Ok(self.with(|f| f.seek_data(offset)))
    }

    fn seek_hole(&self, offset: u64) -> io::Result<Option<u64>> {
        self.disk.enter(Kind::Look)?;
        Ok(self.with(|f| f.seek_hole(offset)))
    }
}

#[cfg(test)]
mod tests;
