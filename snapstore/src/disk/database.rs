//! The metadata database's file, through the same door as everything else.
//!
//! **A failed write must not cost the readers.** The database refuses everything, reading too, once its storage has
//! failed. So it does not get to know: from the first failure on nothing is written to the disk any more, which stays
//! as a power cut at that moment would have left it, and what the database writes is kept in memory. Whoever commits
//! asks [`Failure`] before believing in a commit, and refuses every later one; until the next mount there are none.
//!
//! **A full disk must not prevent deletions.** Space for some commits is set aside in a file, the reserve. It is let go
//! of when a write finds the disk full, and made again when there is space; meanwhile ([`Reserve::is_spent`]) nothing
//! that adds is to be begun.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::{Disk, DiskFile};

/// The reserve's file in the store.
const RESERVE: &str = "meta/reserve";
/// Its size: a commit that deletes takes some dozen pages, and gives them back with the next.
const RESERVE_BYTES: u64 = 4 << 20;

const BLOCK: u64 = 4096;

type Blocks = BTreeMap<u64, Box<[u8; BLOCK as usize]>>;

/// The first failure of the database's file: what it said.
#[derive(Clone, Default)]
pub(crate) struct Failure(Arc<Mutex<Option<First>>>);

type First = (String, Option<i32>);

impl Failure {
    /// What was the first to fail, if something was, and its errno.
    pub(crate) fn first(&self) -> Option<First> {
        self.0.lock().clone()
    }
}

/// Space that is set aside for commits on a full disk.
pub(crate) struct Reserve {
    disk: Arc<dyn Disk>,
    spent: AtomicBool,
    /// Serializes making and letting go.
    changing: Mutex<()>,
}

impl Reserve {
    fn new(disk: Arc<dyn Disk>) -> Arc<Reserve> {
        let there = matches!(disk.stat(RESERVE), Ok(Some(s)) if s.blocks * 512 >= RESERVE_BYTES);
        Arc::new(Reserve { disk, spent: AtomicBool::new(!there), changing: Mutex::new(()) })
    }

    /// Whether the disk was full a moment ago, and the reserve is in use.
    pub(crate) fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Acquire)
    }

    /// Sets the space aside, unless it is; a disk that cannot is as if it were full.
    pub(crate) fn fill(&self) -> io::Result<()> {
        let _one = self.changing.lock();
        if !self.is_spent() {
            return Ok(());
        }
        self.make()?;
        self.spent.store(false, Ordering::Release);
        Ok(())
    }

    fn make(&self) -> io::Result<()> {
        if self.disk.stat(RESERVE)?.is_some() {
            self.disk.remove(RESERVE)?;
        }
        let made = self.disk.create(RESERVE)?.allocate(0, RESERVE_BYTES, false);
        match made {
            // It cannot set space aside: then there is no reserve.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => Ok(()),
            Err(e) => {
                let _ = self.disk.remove(RESERVE);
                Err(e)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Lets go of the space. False when that has been done.
    pub(crate) fn spend(&self) -> bool {
        let _one = self.changing.lock();
        if self.spent.swap(true, Ordering::AcqRel) {
            return false;
        }
        tracing::warn!("the disk is full: only what frees space is still taken");
        self.disk.remove(RESERVE).is_ok()
    }
}

/// A [`DiskFile`] as redb wants its storage.
pub(crate) struct DatabaseFile {
    file: Arc<dyn DiskFile>,
    size: AtomicU64,
    reserve: Arc<Reserve>,
    failure: Failure,
    /// After a failure: what would have been written since then.
    memory: RwLock<Option<Blocks>>,
}

impl DatabaseFile {
    /// The database in `file`, which nobody else may use.
    pub(crate) fn new(disk: Arc<dyn Disk>, file: Arc<dyn DiskFile>) -> io::Result<DatabaseFile> {
        let size = file.stat()?.size.into();
        let (failure, memory) = (Failure::default(), RwLock::default());
        Ok(DatabaseFile { file, size, reserve: Reserve::new(disk), failure, memory })
    }

    pub(crate) fn failure(&self) -> Failure {
        self.failure.clone()
    }

    /// The disk that the file is on.
    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.reserve.disk
    }

    /// Whether there is nothing in the file yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.size.load(Ordering::Acquire) == 0
    }

    pub(crate) fn reserve(&self) -> Arc<Reserve> {
        Arc::clone(&self.reserve)
    }

    /// Changes the file, on a full disk with the reserve's space.
    fn change(
        &self,
        on_disk: impl Fn() -> io::Result<()>,
        instead: impl FnOnce(&mut Blocks) -> io::Result<()>,
    ) -> io::Result<()> {
        let full = |e: &io::Error| matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
        let with_reserve = || match on_disk() {
            Err(e) if full(&e) && self.reserve.spend() => on_disk(),
            done => done,
        };
        self.try_once(with_reserve, instead)
    }

    /// Does something on the disk; after a failure, and from then on, `instead`, in memory.
    fn try_once(
        &self,
        on_disk: impl FnOnce() -> io::Result<()>,
        instead: impl FnOnce(&mut Blocks) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.memory.read().is_none() {
            let Err(e) = on_disk() else { return Ok(()) };
            tracing::error!("the metadata cannot be written: {e}");
            self.failure.0.lock().get_or_insert_with(|| (e.to_string(), e.raw_os_error()));
        }
        instead(self.memory.write().get_or_insert_default())
    }

    /// Fills a buffer from the disk; behind the file's end there are zeros.
    fn read_disk(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        // The database does not forgive one error: a passing one is no reason to refuse everything.
        let got = self.file.read_at(buf, offset).or_else(|_| self.file.read_at(buf, offset))?;
        buf[got..].fill(0);
        Ok(())
    }
}

impl std::fmt::Debug for DatabaseFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatabaseFile").finish_non_exhaustive()
    }
}

/// The blocks of a range: number, where it begins in the range, first byte within the block, length.
fn blocks(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let end = offset + len as u64;
    (offset / BLOCK..end.div_ceil(BLOCK)).map(move |block| {
        let (from, to) = (offset.max(block * BLOCK), end.min((block + 1) * BLOCK));
        (block, (from - offset) as usize, (from % BLOCK) as usize, (to - from) as usize)
    })
}

impl redb::StorageBackend for DatabaseFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.size.load(Ordering::Acquire))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset + out.len() as u64 > self.size.load(Ordering::Acquire) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_disk(out, offset)?;
        if let Some(memory) = &*self.memory.read() {
            for (block, at, within, len) in blocks(offset, out.len()) {
                if let Some(bytes) = memory.get(&block) {
                    out[at..at + len].copy_from_slice(&bytes[within..within + len]);
                }
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(
            || self.file.set_len(len),
            |memory| {
                // What is cut off does not come back when the file grows again.
                for block in len.div_ceil(BLOCK)..self.size.load(Ordering::Acquire).div_ceil(BLOCK) {
                    memory.insert(block, Box::new([0; BLOCK as usize]));
                }
                Ok(())
            },
        )?;
        self.size.store(len, Ordering::Release);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        // Never again after a failure: the second would succeed though what the first lost is not on the disk.
        self.try_once(|| self.file.sync_data(), |_| Ok(()))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(
            || self.file.write_at(data, offset),
            |memory| {
                for (block, at, within, len) in blocks(offset, data.len()) {
                    let bytes = match memory.entry(block) {
                        Entry::Occupied(there) => there.into_mut(),
                        Entry::Vacant(place) => {
                            let mut bytes = Box::new([0; BLOCK as usize]);
                            self.read_disk(&mut bytes[..], block * BLOCK)?;
                            place.insert(bytes)
                        }
                    };
                    bytes[within..within + len].copy_from_slice(&data[at..at + len]);
                }
                Ok(())
            },
        )
    }
}
