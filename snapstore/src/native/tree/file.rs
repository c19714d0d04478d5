//! Open files: one descriptor for each inode of a tree, shared by all who have it open.
//!
//! The kernel takes one backing descriptor for an inode and no other ([`FileRead::backing`]), so the descriptor is the
//! inode's: in the live head it is open for reading and writing, unless the file cannot be.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};

use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use nix::unistd::{Whence, lseek64};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::errors::failed;
use super::head::Instance;
use super::table::{Node, Table, reopen};
use crate::backend::{Allocate, FileRead, FileWrite, Seek, Times};
use crate::error::{Error, Result};
use crate::sys::{copy_file_range, stat_at};
use crate::types::{FileKind, Ino};

/// A file's descriptor.
pub(crate) struct OpenFile {
    /// What the kernel may hold as well cannot be taken back.
    fixed: Option<File>,
    /// `None` once it was revoked.
    revocable: RwLock<Option<File>>,
    writable: bool,
    /// The inode was forgotten while it was open: its table drops it with this.
    forgotten: Mutex<Option<(Weak<Table>, Ino)>>,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // The descriptor is still open, so the number is not another inode's yet.
        if let Some((table, ino)) = self.forgotten.get_mut().take()
            && let Some(table) = table.upgrade()
        {
            table.forget(ino);
        }
    }
}

/// A descriptor in use.
enum Use<'f> {
    Fixed(&'f File),
    Revocable(RwLockReadGuard<'f, Option<File>>),
}

impl Use<'_> {
    fn file(&self) -> Result<&File> {
        match self {
            Use::Fixed(file) => Ok(file),
            Use::Revocable(file) => file.as_ref().ok_or(Error::Stale),
        }
    }
}

impl OpenFile {
    fn new(fd: OwnedFd, writable: bool, fixed: bool) -> OpenFile {
        let file = File::from(fd);
        let (fixed, revocable) = if fixed { (Some(file), None) } else { (None, Some(file)) };
        OpenFile { fixed, revocable: RwLock::new(revocable), writable, forgotten: Mutex::default() }
    }

    /// Nobody knows the inode any more, but who has it open.
    pub(crate) fn forget_at_close(&self, table: &Arc<Table>, ino: Ino) {
        *self.forgotten.lock() = Some((Arc::downgrade(table), ino));
    }

    fn get(&self) -> Use<'_> {
        match &self.fixed {
            Some(file) => Use::Fixed(file),
            None => Use::Revocable(self.revocable.read()),
        }
    }

    /// Closes the descriptor, if the kernel cannot have it.
    pub(crate) fn revoke(&self) {
        *self.revocable.write() = None;
    }
}

/// Opens an inode's one descriptor, or shares it. `write`: for writing too, if that can be; `passthrough`: the kernel
/// may get it.
pub(crate) fn open_file(
    table: &Table,
    ino: Ino,
    write: bool,
    passthrough: bool,
) -> Result<(Arc<Node>, Arc<OpenFile>)> {
    let fd = table.fd(ino)?;
    match table.attr_of(ino, fd.as_fd())?.kind {
        FileKind::Regular => {}
        FileKind::Directory => return Err(Error::IsDirectory),
        _ => return Err(Error::InvalidArgument),
    }
    let node = table.node(ino)?;
    let mut open = node.open.lock();
    if let Some(file) = open.upgrade()
        && (file.writable || !write || reopen(fd.as_fd(), OFlag::O_RDWR).is_err())
    {
        drop(open);
        return Ok((node, file));
    }
    let both = if write { reopen(fd.as_fd(), OFlag::O_RDWR).ok() } else { None };
    let file = match both {
        Some(file) => OpenFile::new(file, true, passthrough),
        None => {
            let file = reopen(fd.as_fd(), OFlag::O_RDONLY).map_err(failed("open", ino))?;
            OpenFile::new(file, false, passthrough)
        }
    };
    let file = Arc::new(file);
    *open = Arc::downgrade(&file);
    drop(open);
    Ok((node, file))
}

/// A regular file of a tree, open.
pub(crate) struct NativeFile {
    pub ino: Ino,
    pub file: Arc<OpenFile>,
    pub node: Arc<Node>,
    /// The head it belongs to, for one of the live head.
    pub head: Option<Arc<Instance>>,
    pub times: Times,
    /// Keeps a view open.
    pub _keep: Option<Arc<dyn Send + Sync>>,
}

impl NativeFile {
    fn check(&self) -> Result<()> {
        self.head.as_ref().map_or(Ok(()), |head| head.check())
    }

    /// Changes content. Whoever keeps the times himself finds mtime as it was.
    fn change<T>(&self, change: impl FnOnce(&File) -> Result<T>) -> Result<T> {
        let head = self.head.as_ref().ok_or(Error::ReadOnly)?;
        let _changing = head.enter()?;
        let file = self.file.get();
        let file = file.file()?;
        if !self.file.writable {
            return Err(Error::NotPermitted);
        }
        if self.times == Times::Touch {
            return change(file);
        }
        let _times = self.node.times.lock();
        let before = stat_at(file.as_fd(), "".as_ref()).map_err(failed("stat", self.ino))?.mtime;
        let done = change(file);
        let mtime = TimeSpec::new(before.secs, before.nanos.into());
        futimens(file, &TimeSpec::UTIME_OMIT, &mtime).map_err(failed("set the times of", self.ino))?;
        done
    }

    fn failed<E: Into<io::Error>>(&self, op: &'static str) -> impl FnOnce(E) -> Error {
        failed(op, self.ino)
    }
}

impl FileRead for NativeFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.check()?;
        let file = self.file.get();
        let file = file.file()?;
        let mut done = 0;
        while done < buf.len() {
            match file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed("read")(e)),
            }
        }
        Ok(done)
    }

    fn len(&self) -> Result<u64> {
        self.check()?;
        let file = self.file.get();
        let (size, _) = crate::sys::space_of(file.file()?.as_fd()).map_err(self.failed("stat"))?;
        Ok(size)
    }

    fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        self.check()?;
        let offset = i64::try_from(offset).map_err(|_| Error::NoData)?;
        let whence = match what {
            Seek::Data => Whence::SeekData,
            Seek::Hole => Whence::SeekHole,
        };
        let file = self.file.get();
        Ok(lseek64(file.file()?, offset, whence).map_err(self.failed("seek in"))? as u64)
    }

    fn backing(&self) -> Option<BorrowedFd<'_>> {
        self.file.fixed.as_ref().map(File::as_fd)
    }
}

impl FileWrite for NativeFile {
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.change(|file| file.write_all_at(data, offset).map_err(self.failed("write")))
    }

    fn allocate(&self, mode: Allocate, offset: u64, len: u64) -> Result<()> {
        let keep = |keep| if keep { FallocateFlags::FALLOC_FL_KEEP_SIZE } else { FallocateFlags::empty() };
        let flags = match mode {
            Allocate::Reserve { keep_size } => keep(keep_size),
            Allocate::PunchHole => FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep(true),
            Allocate::ZeroRange { keep_size } => FallocateFlags::FALLOC_FL_ZERO_RANGE | keep(keep_size),
        };
        let number = |n| i64::try_from(n).map_err(|_| Error::FileTooLarge);
        let (offset, len) = (number(offset)?, number(len)?);
        self.change(|file| fallocate(file, flags, offset, len).map_err(self.failed("allocate in")))
    }

    fn copy_from(&self, source: &dyn FileRead, source_offset: u64, offset: u64, len: u64) -> Result<u64> {
        if let Some(from) = source.backing()
            && let Some(copied) = self.copy_below(from, source_offset, offset, len)?
        {
            return Ok(copied);
        }
        const STEP: u64 = 1 << 20;
        let mut buf = vec![0; STEP.min(len) as usize];
        let mut done = 0;
        while done < len {
            let want = STEP.min(len - done) as usize;
            let got = source.read_at(&mut buf[..want], source_offset + done)?;
            if got == 0 {
                break;
            }
            self.write_at(&buf[..got], offset + done)?;
            done += got as u64;
        }
        Ok(done)
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        self.check()?;
        let file = self.file.get();
        let file = file.file()?;
        let done = if data_only { file.sync_data() } else { file.sync_all() };
        done.map_err(self.failed("sync"))
    }
}

impl NativeFile {
    /// Sets the length. What lies between an old end and a new one reads zeros.
    pub(crate) fn resize(&self, size: u64) -> Result<()> {
        self.change(|file| file.set_len(size).map_err(self.failed("truncate")))
    }

    /// Has the file system copy, or share blocks; `None` where it cannot.
    fn copy_below(
        &self,
        from: BorrowedFd<'_>,
        source_offset: u64,
        offset: u64,
        len: u64,
    ) -> Result<Option<u64>> {
        let number = |n| i64::try_from(n).map_err(|_| Error::FileTooLarge);
        let (source_at, at) = (number(source_offset)?, number(offset)?);
        number(source_offset.saturating_add(len))?;
        number(offset.saturating_add(len))?;
        self.change(|file| {
            let mut done = 0;
            while done < len {
                let want = usize::try_from(len - done).unwrap_or(usize::MAX).min(1 << 30);
                let further = done as i64;
                match copy_file_range((from, source_at + further), (file.as_fd(), at + further), want) {
                    Ok(0) => break,
                    Ok(n) => done += n as u64,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) if done == 0 && cannot_copy(&e) => return Ok(None),
                    Err(e) => return Err(self.failed("copy into")(e)),
                }
            }
            Ok(Some(done))
        })
    }
}

/// Whether an error says that these two files cannot be copied between within the kernel.
fn cannot_copy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EXDEV | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS))
}
