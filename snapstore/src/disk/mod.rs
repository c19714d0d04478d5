//! The one door to the disk: everything the store keeps goes through [`Disk`] and [`DiskFile`].
//!
//! The two traits are as small as the store's needs, so that a twin that fails or one that simulates power cuts can
//! stand in for the real disk. Paths are relative to the store, plain ASCII, and made by the store itself.

use std::io;
use std::sync::Arc;

mod database;
mod real;
#[cfg(test)]
pub(crate) mod twin;

pub(crate) use database::{DatabaseFile, Failure, Reserve};
pub(crate) use real::RealDisk;

/// A directory of files: the store.
pub(crate) trait Disk: Send + Sync {
    /// Opens an existing file, for reading and writing.
    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes a new, empty file; fails when there is one.
    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes a directory unless it is there.
    fn create_dir(&self, path: &str) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// The same for a large file, in steps where one would have others wait, as long as `go_on` says so. The name is
    /// gone at once; who has the file open has all of it.
    fn remove_gently(&self, path: &str, go_on: &dyn Fn() -> bool) -> io::Result<()> {
        let _ = go_on;
        self.remove(path)
    }
    /// The names in a directory, in no particular order; empty when there is no such directory.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;
    /// Size, space and time of a file; `None` when it is not there.
    fn stat(&self, path: &str) -> io::Result<Option<DiskStat>>;
    /// Makes a directory's entries durable.
    fn sync_dir(&self, path: &str) -> io::Result<()>;
    /// Makes everything on this file system durable.
    fn sync_all(&self) -> io::Result<()>;
    /// Space of the file system.
    fn stat_fs(&self) -> io::Result<crate::types::StatFs>;
}

/// What [`Disk::stat`] tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DiskStat {
    /// Length in bytes.
    pub size: u64,
    /// Space in units of 512 bytes.
    pub blocks: u64,
    /// Last change of content.
    pub mtime: crate::types::Timestamp,
}

/// What [`DiskFile::stat`] tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FileSpace {
    /// Length in bytes.
    pub size: u64,
    /// Space in units of 512 bytes.
    pub blocks: u64,
}

/// An open file of a [`Disk`]. Dropping it closes it.
pub(crate) trait DiskFile: Send + Sync {
    /// Fills `buf`; returns fewer bytes only where the file ends.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// The same for what nobody is going to read again soon: the cache need not keep it.
    fn read_once(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(buf, offset)
    }
    /// Writes all of `data`.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Sets the length; grows with a hole.
    fn set_len(&self, size: u64) -> io::Result<()>;
    /// Size and space. Not its times: a time that somebody has seen makes the kernel take the next one from the fine
    /// clock, and from then on the times of all files on all file systems, so that FUSE has new times to send at each
    /// fsync (Linux 6.13, `ktime_get_coarse_real_ts64_mg`).
    fn stat(&self) -> io::Result<FileSpace>;
    /// Makes content and length durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Starts writing dirty pages back without waiting.
    fn start_writeback(&self) -> io::Result<()>;
    /// Reserves space without changing content; grows the file unless `keep_size`.
    fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> io::Result<()>;
    /// Frees the space of a range, which reads zeros then; the length stays.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// The first byte of data at or after `offset`; `None` when there is none.
    fn seek_data(&self, offset: u64) -> io::Result<Option<u64>>;
    /// The first byte of a hole at or after `offset` (the end counts as one); `None` past the end.
    fn seek_hole(&self, offset: u64) -> io::Result<Option<u64>>;
    /// Copies a range from another file of the same disk, sharing blocks where the file system can.
    fn copy_from(&self, source: &dyn DiskFile, from: u64, to: u64, len: u64) -> io::Result<()> {
        const STEP: usize = 1 << 20;
        let mut buf = vec![0; STEP.min(len as usize)];
        let mut done = 0;
        while done < len {
            let want = STEP.min((len - done) as usize);
            let got = source.read_at(&mut buf[..want], from + done)?;
            if got == 0 {
                break;
            }
            self.write_at(&buf[..got], to + done)?;
            done += got as u64;
        }
        Ok(())
    }
}
