//! Open files and directories: what the kernel's file handles stand for.
//!
//! A handle on the live head remembers the head's serial at its opening. After a switch it is refused (EIO): what a
//! program wrote into the head that was left must not look as if it were in the new one.
//!
//! Handles open for writing are counted per inode. They are what a barrier must flush, since nothing else can have
//! dirty pages, and what a rollback must not cut off unasked.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::sync::Arc;

use snapstore::backend::{FileRead, FileWrite};
use snapstore::sync::atomic::{AtomicU64, Ordering};
use snapstore::sync::{Mutex, RwLock};
use snapstore::{FileKind, Ino};

use crate::node::{NodeId, Tag};

const SHARDS: usize = 16;

/// What an open handle stands for.
pub enum Handle {
    /// A file of the live head, open for reading.
    LiveRead(LiveRead),
    /// A file of the live head, open for writing (and reading).
    LiveWrite(LiveWrite),
    /// A live file that a barrier has opened to flush it. It reads and writes nothing.
    Flush(NodeId),
    /// A file of a view.
    View(Arc<dyn FileRead>),
    /// A directory.
    Directory(Directory),
}

impl Handle {
    /// The node it was opened from; `None` for a file of a view.
    fn node(&self) -> Option<NodeId> {
        match self {
            Handle::LiveRead(file) => Some(file.id),
            Handle::LiveWrite(file) => Some(file.id),
            Handle::Flush(id) => Some(*id),
            Handle::Directory(directory) => Some(directory.id),
            Handle::View(_) => None,
        }
    }
}

/// A live file open for reading.
pub struct LiveRead {
    /// The inode.
    pub ino: Ino,
    /// Its node.
    pub id: NodeId,
    /// The serial of its head.
    pub serial: u64,
    /// Its content.
    pub file: Arc<dyn FileRead>,
}

/// A live file open for writing.
pub struct LiveWrite {
    /// The inode.
    pub ino: Ino,
    /// Its node.
    pub id: NodeId,
    /// The serial of its head.
    pub serial: u64,
    /// Its content.
    pub file: Arc<dyn FileWrite>,
}

/// An open directory: its listing as it was when reading began, so that a name that stays is seen exactly once
/// whatever happens to other names meanwhile.
pub struct Directory {
    /// The directory.
    pub id: NodeId,
    /// The listing. An offset is an index into it.
    pub listing: Mutex<Option<Listing>>,
}

/// A directory's entries at one moment.
#[derive(Clone)]
pub struct Listing {
    /// The serial of the head they were read from.
    pub serial: u64,
    /// The entries, `.` and `..` first.
    pub entries: Arc<Vec<Listed>>,
}

/// One entry of a listing.
pub struct Listed {
    /// The name.
    pub name: OsString,
    /// The node it led to.
    pub id: NodeId,
    /// What that is.
    pub kind: FileKind,
}

/// An inode that is open for writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Writer {
    /// The inode's node.
    pub id: NodeId,
    /// The thread that opened it last, as the kernel named it.
    pub opened_by: u32,
}

struct WriterCount {
    handles: u32,
    opened_by: u32,
}

/// All open handles.
pub struct Handles {
    shards: Vec<RwLock<HashMap<u64, Arc<Handle>>>>,
    next: AtomicU64,
    open: AtomicU64,
    writing: AtomicU64,
    /// Taken after no other lock.
    writers: Mutex<HashMap<NodeId, WriterCount>>,
}

impl Default for Handles {
    fn default() -> Handles {
        Handles {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            next: AtomicU64::new(1),
            open: AtomicU64::new(0),
            writing: AtomicU64::new(0),
            writers: Mutex::default(),
        }
    }
}

impl Handles {
    fn shard(&self, fh: u64) -> &RwLock<HashMap<u64, Arc<Handle>>> {
        &self.shards[fh as usize % SHARDS]
    }

    /// Registers a handle that `pid` opens, and gives it a number.
    pub fn insert(&self, handle: Arc<Handle>, pid: u32) -> u64 {
        match &*handle {
            Handle::LiveWrite(file) => {
                self.open.fetch_add(1, Ordering::Relaxed);
                self.writing.fetch_add(1, Ordering::Relaxed);
                let mut writers = self.writers.lock();
                let count = writers.entry(file.id).or_insert(WriterCount { handles: 0, opened_by: pid });
                count.handles += 1;
                count.opened_by = pid;
            }
            Handle::LiveRead(_) | Handle::View(_) => {
                self.open.fetch_add(1, Ordering::Relaxed);
            }
            Handle::Flush(_) | Handle::Directory(_) => {}
        }
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        self.shard(fh).write().insert(fh, handle);
        fh
    }

    /// The handle of a number.
    pub fn get(&self, fh: u64) -> Option<Arc<Handle>> {
        self.shard(fh).read().get(&fh).cloned()
    }

    /// Takes a handle out.
    pub fn remove(&self, fh: u64) -> Option<Arc<Handle>> {
        let handle = self.shard(fh).write().remove(&fh)?;
        match &*handle {
            Handle::LiveWrite(file) => {
                self.open.fetch_sub(1, Ordering::Relaxed);
                self.writing.fetch_sub(1, Ordering::Relaxed);
                let mut writers = self.writers.lock();
                if let Some(count) = writers.get_mut(&file.id) {
                    count.handles -= 1;
                    if count.handles == 0 {
                        writers.remove(&file.id);
                    }
                }
            }
            Handle::LiveRead(_) | Handle::View(_) => {
                self.open.fetch_sub(1, Ordering::Relaxed);
            }
            Handle::Flush(_) | Handle::Directory(_) => {}
        }
        Some(handle)
    }

    /// Takes all of them out.
    pub fn clear(&self) {
        let all: Vec<u64> =
            self.shards.iter().flat_map(|shard| shard.read().keys().copied().collect::<Vec<_>>()).collect();
        for fh in all {
            drop(self.remove(fh));
        }
    }

    /// The inodes of the head with this tag that are open for writing.
    pub fn writers(&self, live: Tag) -> Vec<Writer> {
        let writers = self.writers.lock();
        let of_head = writers.iter().filter(|(id, _)| id.tag() == live);
        of_head.map(|(id, count)| Writer { id: *id, opened_by: count.opened_by }).collect()
    }

    /// The nodes that are open, but for files of views and what has this tag: files of heads that were left, and
    /// directories of all kinds.
    pub fn of_other_heads(&self, live: Tag) -> Vec<NodeId> {
        let mut open = HashSet::new();
        for shard in &self.shards {
            let shard = shard.read();
            let ids = shard.values().filter_map(|handle| handle.node());
            open.extend(ids.filter(|id| id.tag() != live && *id != NodeId::ROOT));
        }
        open.into_iter().collect()
    }

    /// Whether the inode is open for writing.
    pub fn is_writer(&self, id: NodeId) -> bool {
        self.writers.lock().contains_key(&id)
    }

    /// How many files are open, and how many of them for writing.
    pub fn counts(&self) -> (u64, u64) {
        (self.open.load(Ordering::Relaxed), self.writing.load(Ordering::Relaxed))
    }
}
