//! Open files.
//!
//! What is done to an open file belongs to the head it was opened in, and is done without entering the tree.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use snapstore::backend::{Allocate, FileRead, Seek, SetAttr, Times};
use snapstore::{FileKind, Ino, MAX_FILE_SIZE};

use super::names::Make;
use super::{Caller, Entered, Entry, MountTree, Node};
use crate::errno::{Errno, Result};
use crate::handles::{Handle, LiveRead, LiveWrite};
use crate::node::NodeId;

/// The most that one `copy_file_range` request copies: a program asks again for the rest, and the worker is free
/// meanwhile.
const COPY_MAX: u64 = 256 << 20;

/// A file that was opened.
#[derive(Clone)]
pub struct Opened {
    /// The number of its handle.
    pub fh: u64,
    handle: Arc<Handle>,
    /// The kernel may have been told to keep attributes that may now change without a request.
    pub(crate) drop_attributes: bool,
}

impl Opened {
    /// The file below that the kernel may take for it.
    pub(crate) fn backing(&self) -> Option<BorrowedFd<'_>> {
        match &*self.handle {
            Handle::LiveRead(file) => file.file.backing(),
            Handle::LiveWrite(file) => file.file.backing(),
            Handle::View(file) => file.backing(),
            Handle::Flush(_) | Handle::Directory(_) => None,
        }
    }
}

impl Entered<'_> {
    /// Opens a regular file with `open`'s flags.
    pub fn open(&self, caller: Caller, id: NodeId, flags: i32) -> Result<Opened> {
        let writing = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let truncating = flags & libc::O_TRUNC != 0;
        let handle = match self.node(id)? {
            Node::Live(_) if !writing && !truncating && self.is_flush(caller) => Handle::Flush(id),
            Node::Live(ino) => {
                let handle = self.open_live(ino, writing)?;
                if truncating {
                    self.tree.order.change();
                    let drop_privileges = caller.uid != 0;
                    // Opened for reading, nobody flushes the kernel's times before a cut.
                    let times = if writing { self.tree.times() } else { Times::Touch };
                    let set = SetAttr { size: Some(0), drop_privileges, times, ..SetAttr::default() };
                    self.head().set_attr(ino, &set)?;
                }
                handle
            }
            Node::View(..) if writing || truncating => return Err(Errno(libc::EROFS)),
            Node::View(view, ino) => {
                view.opens();
                Handle::View(view.view.tree.open(ino)?)
            }
            Node::Virtual(_) => return Err(Errno(libc::EISDIR)),
        };
        Ok(self.register(handle, caller))
    }

    /// Makes a regular file and opens it.
    pub fn create(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: (u32, u32),
    ) -> Result<(Entry, Opened)> {
        let (mode, umask) = mode;
        let what = Make { kind: FileKind::Regular, mode, umask, rdev: 0, target: &[] };
        let entry = self.make(caller, parent, name, &what)?;
        match self.open_live(entry.attr.ino, true) {
            Ok(handle) => Ok((entry, self.register(handle, caller))),
            Err(error) => {
                // The kernel will not be told of it after all.
                self.tree.forget_told(entry.id);
                Err(error)
            }
        }
    }

    fn open_live(&self, ino: Ino, writing: bool) -> Result<Handle> {
        let (id, serial) = (self.live_node(ino), self.serial());
        Ok(match writing {
            true => {
                let file = self.head().open_write(ino, self.tree.times())?;
                Handle::LiveWrite(LiveWrite { ino, id, serial, file })
            }
            false => Handle::LiveRead(LiveRead { ino, id, serial, file: self.head().open(ino)? }),
        })
    }

    fn register(&self, handle: Handle, caller: Caller) -> Opened {
        match &handle {
            Handle::LiveRead(LiveRead { id, .. })
            | Handle::LiveWrite(LiveWrite { id, .. })
            | Handle::Flush(id) => self.tree.lookups.open(*id),
            Handle::View(_) | Handle::Directory(_) => {}
        }
        let drop_attributes = match &handle {
            Handle::LiveWrite(file) => {
                self.tree.passes_through() && self.tree.lookups.changes_unseen(file.id)
            }
            _ => false,
        };
        let handle = Arc::new(handle);
        Opened { fh: self.tree.handles.insert(handle.clone(), caller.pid), handle, drop_attributes }
    }

    fn is_flush(&self, caller: Caller) -> bool {
        self.tree.flushers.lock().contains(&caller.pid)
    }
}

impl MountTree {
    fn handle(&self, fh: u64) -> Result<Arc<Handle>> {
        let handle = self.handles.get(fh).ok_or(Errno(libc::EBADF))?;
        let serial = match &*handle {
            Handle::LiveRead(file) => file.serial,
            Handle::LiveWrite(file) => file.serial,
            Handle::Flush(_) | Handle::View(_) | Handle::Directory(_) => return Ok(handle),
        };
        // The head it was opened in has been left.
        if serial == self.serial() { Ok(handle) } else { Err(Errno(libc::EIO)) }
    }

    /// Who keeps the times of files whose content changes.
    pub(super) fn times(&self) -> Times {
        if self.writeback.load(Ordering::Relaxed) { Times::Keep } else { Times::Touch }
    }

    /// Refuses a handle of a head that was left.
    pub(super) fn check_handle(&self, fh: u64) -> Result<()> {
        // A handle that is unknown is one that the kernel only guessed: nothing is wrong with the request.
        if self.handles.get(fh).is_some() { self.handle(fh).map(|_| ()) } else { Ok(()) }
    }

    /// Reads into `buf` from an offset; fewer bytes only at the file's end.
    pub fn read(&self, fh: u64, buf: &mut [u8], offset: u64) -> Result<usize> {
        let handle = self.handle(fh)?;
        Ok(readable(&handle)?.read_at(buf, offset)?)
    }

    /// Writes. `unprivileged`: the writer may not leave set-id bits behind.
    pub fn write(&self, fh: u64, data: &[u8], offset: u64, unprivileged: bool) -> Result<()> {
        let handle = self.handle(fh)?;
        let file = writable(&handle)?;
        within_limit(offset, data.len() as u64)?;
        if unprivileged {
            self.head().drop_privileges(file.ino)?;
        }
        Ok(file.file.write_at(data, offset)?)
    }

    /// Makes the content durable.
    pub fn sync(&self, fh: u64, data_only: bool) -> Result<()> {
        match &*self.handle(fh)? {
            Handle::LiveWrite(file) => Ok(file.file.sync(data_only)?),
            // fsync is allowed on any descriptor and covers what others wrote.
            Handle::LiveRead(file) => Ok(self.head().open_write(file.ino, self.times())?.sync(data_only)?),
            // A barrier wants the kernel's pages to be written, not the disk to be waited for.
            Handle::Flush(_) | Handle::View(_) => Ok(()),
            Handle::Directory(_) => Err(Errno(libc::EISDIR)),
        }
    }

    /// `fallocate` with the system call's mode.
    pub fn allocate(&self, fh: u64, mode: i32, offset: u64, len: u64) -> Result<()> {
        const KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP_SIZE;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        const ZERO_KEEP: i32 = ZERO | KEEP_SIZE;
        let mode = match mode {
            0 => Allocate::Reserve { keep_size: false },
            KEEP_SIZE => Allocate::Reserve { keep_size: true },
            PUNCH => Allocate::PunchHole,
            ZERO => Allocate::ZeroRange { keep_size: false },
            ZERO_KEEP => Allocate::ZeroRange { keep_size: true },
            _ => return Err(Errno(libc::EOPNOTSUPP)),
        };
        if mode != Allocate::PunchHole {
            within_limit(offset, len)?;
        }
        let handle = self.handle(fh)?;
        self.order.wait();
        self.order.change();
        Ok(writable(&handle)?.file.allocate(mode, offset, len)?)
    }

    /// The next data or hole.
    pub fn seek(&self, fh: u64, offset: i64, whence: i32) -> Result<i64> {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return Err(Errno(libc::EINVAL)),
        };
        let offset = u64::try_from(offset).map_err(|_| Errno(libc::ENXIO))?;
        let handle = self.handle(fh)?;
        Ok(readable(&handle)?.seek(offset, what)? as i64)
    }

    /// Copies between open files, from a view too; gives the number of bytes copied.
    pub fn copy(&self, from: (u64, u64), to: (u64, u64), len: u64) -> Result<u32> {
        let (source, target) = (self.handle(from.0)?, self.handle(to.0)?);
        let len = len.min(COPY_MAX);
        let file = writable(&target)?;
        within_limit(to.1, len)?;
        self.order.wait();
        self.order.change();
        Ok(file.file.copy_from(readable(&source)?, from.1, to.1, len)? as u32)
    }

    /// Closes a file.
    pub fn release(&self, fh: u64) {
        let Some(handle) = self.handles.remove(fh) else { return };
        let id = match &*handle {
            Handle::LiveRead(file) => file.id,
            Handle::LiveWrite(file) => file.id,
            Handle::Flush(id) => *id,
            Handle::View(_) | Handle::Directory(_) => return,
        };
        drop(handle);
        if self.lookups.close(id) {
            self.gone(id);
        }
    }

    /// Takes back a reference that was counted for an answer that is not given.
    pub(crate) fn forget_told(&self, id: NodeId) {
        // Inside the tree: `forget` would enter it again.
        if id.tag() != crate::node::Tag::VIRTUAL && !self.views.forget(id.tag(), 1) {
            let _ = self.lookups.forget(id, 1);
        }
    }
}

fn readable(handle: &Handle) -> Result<&dyn FileRead> {
    match handle {
        Handle::LiveRead(file) => Ok(&*file.file),
        Handle::LiveWrite(file) => Ok(&*file.file),
        Handle::View(file) => Ok(&**file),
        Handle::Flush(_) => Err(Errno(libc::EBADF)),
        Handle::Directory(_) => Err(Errno(libc::EISDIR)),
    }
}

fn writable(handle: &Handle) -> Result<&LiveWrite> {
    match handle {
        Handle::LiveWrite(file) => Ok(file),
        Handle::View(_) => Err(Errno(libc::EROFS)),
        Handle::LiveRead(_) | Handle::Flush(_) | Handle::Directory(_) => Err(Errno(libc::EBADF)),
    }
}

fn within_limit(offset: u64, len: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= MAX_FILE_SIZE => Ok(()),
        _ => Err(Errno(libc::EFBIG)),
    }
}
