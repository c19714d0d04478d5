//! The real disk: a directory descriptor, and the system calls of files below it.
//!
//! The directory is held by descriptor, so that the store is reached even when the mount lies over its path.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{AtFlags, FallocateFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use nix::unistd::Whence;

use super::{Disk, DiskFile, DiskStat, FileSpace};
use crate::sys::uncached;
use crate::types::{CHUNK_SIZE, StatFs, Timestamp};

/// A [`Disk`] on a directory of the machine.
pub(crate) struct RealDisk {
    dir: OwnedFd,
}

impl RealDisk {
    /// A disk whose root is the directory `dir`.
    pub(crate) fn new(dir: OwnedFd) -> RealDisk {
        RealDisk { dir }
    }

    /// Opens a path that leads through no symlink, and so not out of the store.
    fn open_with(&self, path: &str, flags: OFlag) -> io::Result<OwnedFd> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        // Only what is made takes a mode; the call refuses one elsewhere.
        let mode = if flags.contains(OFlag::O_CREAT) { 0o600 } else { 0 };
        let mode = Mode::from_bits_truncate(mode);
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let how = OpenHow::new().flags(flags).mode(mode).resolve(resolve);
        match openat2(self.dir.as_fd(), path, how) {
            // Kernels before 5.6, and sandboxes that do not know the call.
            Err(nix::Error::ENOSYS | nix::Error::EPERM) => {
                Ok(nix::fcntl::openat(self.dir.as_fd(), path, flags, mode)?)
            }
            opened => Ok(opened?),
        }
    }

    fn open_dir(&self, path: &str) -> io::Result<OwnedFd> {
        self.open_with(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(self.open_with(path, OFlag::O_RDWR)?.into())))
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let fd = self.open_with(path, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL)?;
        Ok(Arc::new(RealFile(fd.into())))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        match nix::sys::stat::mkdirat(self.dir.as_fd(), path, Mode::from_bits_truncate(0o700)) {
            Ok(()) | Err(nix::Error::EEXIST) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        Ok(nix::unistd::unlinkat(self.dir.as_fd(), path, nix::unistd::UnlinkatFlags::RemoveDir)?)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        Ok(nix::unistd::unlinkat(self.dir.as_fd(), path, nix::unistd::UnlinkatFlags::NoRemoveDir)?)
    }

    fn remove_gently(&self, path: &str, go_on: &dyn Fn() -> bool) -> io::Result<()> {
        let file = match self.open_with(path, OFlag::O_RDWR) {
            Ok(file) => RealFile(file.into()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(e),
            // No descriptor is free, or it is damaged: that is no reason to keep it.
            Err(_) => return self.remove(path),
        };
        self.remove(path)?;
        // Whatever goes wrong from here on: the file goes when it is closed.
        let _ = file.give_back(go_on);
        Ok(())
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let fd = match self.open_dir(path) {
            Ok(fd) => fd,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut names = Vec::new();
        for entry in nix::dir::Dir::from_fd(fd)?.iter() {
            match entry?.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        Ok(names)
    }

    fn stat(&self, path: &str) -> io::Result<Option<DiskStat>> {
        match nix::sys::stat::fstatat(self.dir.as_fd(), path, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(st) => Ok(Some(DiskStat {
                size: st.st_size as u64,
                blocks: st.st_blocks as u64,
                mtime: Timestamp { secs: st.st_mtime, nanos: st.st_mtime_nsec as u32 },
            })),
            Err(nix::Error::ENOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let fd = self.open_dir(if path.is_empty() { "." } else { path })?;
        Ok(nix::unistd::fsync(fd)?)
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(nix::unistd::syncfs(self.dir.as_fd())?)
    }

    fn stat_fs(&self) -> io::Result<StatFs> {
        let v = nix::sys::statvfs::fstatvfs(self.dir.as_fd())?;
        Ok(StatFs {
            block_size: v.fragment_size() as u32,
            blocks: v.blocks(),
            blocks_free: v.blocks_free(),
            blocks_available: v.blocks_available(),
            files: v.files(),
            files_free: v.files_free(),
        })
    }
}

/// From how many bytes on a write goes past the cache.
///
/// What is written here is in the kernel's cache already, as the pages of the file that the mount shows, so a second
/// copy is of no use. It does harm: a long write makes large folios, and each later write of 4 KiB into one of those
/// goes through the state of all its blocks, as does its write-back. (ext4, Linux 6.18: 64 random overwrites of 4 KiB
/// with an fdatasync take 2.5 times as long in a file whose cache has large folios.) Short writes make small ones.
const BULK: usize = 64 << 10;

/// How much of the beginning of a write goes past the cache: whole chunks, since the rest of a chunk that is written in
/// part would have to be read from the disk again.
fn bulk(len: usize, offset: u64) -> usize {
    if len < BULK || !offset.is_multiple_of(CHUNK_SIZE) { 0 } else { len - len % CHUNK_SIZE as usize }
}

/// Reads until the buffer is full or the file ends.
fn fill(
    buf: &mut [u8],
    offset: u64,
    read: impl Fn(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match read(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// An open file of the machine.
struct RealFile(File);

/// How many scattered chunks a file gives back at a time.
const GIVE_BACK: u64 = 64;
/// Before it gives back some; after it, as long as that took.
const GIVE_BACK_REST: Duration = Duration::from_millis(2);

impl RealFile {
    /// Frees the space of a file that has no name any more, bit by bit.
    ///
    /// The commit of the file system's journal that frees a thousand pieces of a file takes milliseconds (more where
    /// each is discarded), and everybody's next fsync waits for it.
    fn give_back(&self, go_on: &dyn Fn() -> bool) -> io::Result<()> {
        let (size, blocks) = crate::sys::space_of(self.0.as_fd())?;
        let (all, used) = (size.div_ceil(CHUNK_SIZE), blocks * 512 / CHUNK_SIZE);
        let steps = used / GIVE_BACK;
        // What is dense lies in few pieces.
        if steps < 2 || used > all / 2 || crate::sys::has_name(self.0.as_fd())? {
            return Ok(());
        }
        for left in (0..steps).rev() {
            // Whoever had found the name before it went may be opening the file only now.
            thread::sleep(GIVE_BACK_REST);
            if !crate::sys::is_sole_user(self.0.as_fd()) || !go_on() {
                break;
            }
            let since = Instant::now();
            self.0.set_len((u128::from(all) * u128::from(left) / u128::from(steps)) as u64 * CHUNK_SIZE)?;
            thread::sleep(since.elapsed().min(10 * GIVE_BACK_REST));
        }
        Ok(())
    }

    fn seek(&self, offset: u64, whence: Whence) -> io::Result<Option<u64>> {
        match nix::unistd::lseek64(&self.0, offset as i64, whence) {
            Ok(at) => Ok(Some(at as u64)),
            Err(nix::Error::ENXIO) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        fill(buf, offset, |buf, at| self.0.read_at(buf, at))
    }

    fn read_once(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        fill(buf, offset, |buf, at| uncached::read_at(self.0.as_fd(), buf, at))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let (bulk, rest) = data.split_at(bulk(data.len(), offset));
        let mut done = 0;
        while done < bulk.len() {
            match uncached::write_at(self.0.as_fd(), &bulk[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.0.write_all_at(rest, offset + done as u64)
    }

    fn set_len(&self, size: u64) -> io::Result<()> {
        self.0.set_len(size)
    }

    fn stat(&self) -> io::Result<FileSpace> {
        let (size, blocks) = crate::sys::space_of(self.0.as_fd())?;
        Ok(FileSpace { size, blocks })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn start_writeback(&self) -> io::Result<()> {
        crate::sys::start_writeback(self.0.as_fd())
    }

    fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> io::Result<()> {
        let flags = if keep_size { FallocateFlags::FALLOC_FL_KEEP_SIZE } else { FallocateFlags::empty() };
        Ok(nix::fcntl::fallocate(&self.0, flags, offset as i64, len as i64)?)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        Ok(nix::fcntl::fallocate(&self.0, flags, offset as i64, len as i64)?)
    }

    fn seek_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.seek(offset, Whence::SeekData)
    }

    fn seek_hole(&self, offset: u64) -> io::Result<Option<u64>> {
        self.seek(offset, Whence::SeekHole)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// 1,000 scattered chunks, and how often somebody was asked whether to go on while they were removed.
    fn removed(meanwhile: impl FnOnce(&RealDisk)) -> u64 {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(File::open(dir.path()).unwrap().into());
        {
            let file = disk.create("layer").unwrap();
            for n in 0..1000 {
                file.write_at(&[n as u8; CHUNK_SIZE as usize], n * 16 * CHUNK_SIZE).unwrap();
            }
            file.sync_data().unwrap();
        }
        let asked = Cell::new(0);
        let go_on = || {
            asked.set(asked.get() + 1);
            true
        };
        meanwhile(&disk);
        disk.remove_gently("layer", &go_on).unwrap();
        assert!(disk.stat("layer").unwrap().is_none());
        let again = disk.remove_gently("layer", &go_on).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::NotFound);
        asked.get()
    }

    #[test]
    fn a_scattered_file_goes_in_steps() {
        assert!(removed(|_| {}) >= 10);
    }

    #[test]
    fn nothing_is_taken_from_whoever_has_it_open() {
        let mut open = None;
        assert_eq!(removed(|disk| open = Some(disk.open("layer").unwrap())), 0);
        let (open, mut chunk) = (open.unwrap(), [0; CHUNK_SIZE as usize]);
        for n in 0..1000 {
            assert_eq!(open.read_at(&mut chunk, n * 16 * CHUNK_SIZE).unwrap(), chunk.len());
            assert!(chunk.iter().all(|&byte| byte == n as u8));
        }
        // Nor from another name.
        let mut second = None;
        let link = |disk: &RealDisk| {
            nix::unistd::linkat(disk.dir.as_fd(), "layer", disk.dir.as_fd(), "other", AtFlags::empty())
                .unwrap();
            second = disk.stat("other").unwrap();
        };
        assert_eq!(removed(link), 0);
        assert!(second.is_some_and(|file| file.blocks >= 8000));
    }
}
