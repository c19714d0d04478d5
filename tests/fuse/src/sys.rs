//! The few calls that need `unsafe` or that std has no name for.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, MsFlags, ProtFlags};

/// A shared writable mapping of a file's first bytes.
///
/// Plain `u8` access by copying in and out: a file that another process truncates gives SIGBUS, as for any program.
pub struct Mapping {
    start: NonNull<libc::c_void>,
    len: usize,
    writable: bool,
}

// SAFETY: the mapping is memory that this value owns; it is only reached through `&self`/`&mut self` copies.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of `file`, which must be open for reading and writing.
    pub fn shared(file: &File, len: usize) -> io::Result<Mapping> {
        Mapping::new(file, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    /// The same of a file that is open for reading only: it can only be read.
    pub fn of_reader(file: &File, len: usize) -> io::Result<Mapping> {
        Mapping::new(file, len, ProtFlags::PROT_READ)
    }

    fn new(file: &File, len: usize, protection: ProtFlags) -> io::Result<Mapping> {
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else refers to it.
        let start = unsafe { nix::sys::mman::mmap(None, size, protection, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Mapping { start, len, writable: protection.contains(ProtFlags::PROT_WRITE) })
    }

    /// Stores `data` at `offset`.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        assert!(
            offset.checked_add(data.len()).is_some_and(|end| end <= self.len),
            "a store within the mapping"
        );
        assert!(self.writable, "a store in a mapping that may be written");
        // SAFETY: the range lies within the mapping, as just asserted; `data` is not part of it.
        unsafe {
            self.start.as_ptr().cast::<u8>().add(offset).copy_from_nonoverlapping(data.as_ptr(), data.len())
        }
    }

    /// Loads `len` bytes from `offset`.
    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "a load within the mapping");
        let mut data = vec![0; len];
        // SAFETY: the range lies within the mapping, as just asserted; `data` is memory of its own.
        unsafe {
            data.as_mut_ptr().copy_from_nonoverlapping(self.start.as_ptr().cast::<u8>().add(offset), len)
        };
        data
    }

    /// `msync(MS_SYNC)` of the whole mapping.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the range is the mapping itself.
        Ok(unsafe { nix::sys::mman::msync(self.start, self.len, MsFlags::MS_SYNC) }?)
    }

    /// Drops this process's pages, so that the next load asks the page cache again.
    pub fn forget_pages(&self) -> io::Result<()> {
        // SAFETY: a shared file mapping loses nothing by MADV_DONTNEED.
        Ok(unsafe { nix::sys::mman::madvise(self.start, self.len, MmapAdvise::MADV_DONTNEED) }?)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and is not used after this.
        let _ = unsafe { nix::sys::mman::munmap(self.start, self.len) };
    }
}

/// A buffer whose address and length suit O_DIRECT.
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// The alignment, which suits every block size up to a page.
    pub const ALIGN: usize = 4096;

    /// `len` zero bytes; `len` is a multiple of [`Aligned::ALIGN`].
    pub fn zeroed(len: usize) -> Aligned {
        assert_eq!(len % Aligned::ALIGN, 0, "a length that suits O_DIRECT");
        let bytes = vec![0; len + Aligned::ALIGN];
        let start = bytes.as_ptr().align_offset(Aligned::ALIGN);
        Aligned { bytes, start, len }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    /// The bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// `renameat2` with its flags.
pub fn rename2(from: &Path, to: &Path, flags: libc::c_uint) -> nix::Result<()> {
    let (from, to) = (c_path(from), c_path(to));
    // SAFETY: both are C strings that live until the call returns.
    let done = unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
    Errno::result(done).map(drop)
}

/// `fallocate` with its mode bits.
pub fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> nix::Result<()> {
    // SAFETY: takes no pointers.
    let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as libc::off_t, len as libc::off_t) };
    Errno::result(done).map(drop)
}

/// `lseek` with SEEK_DATA or SEEK_HOLE.
pub fn seek(file: &File, offset: u64, whence: libc::c_int) -> nix::Result<u64> {
    // SAFETY: takes no pointers.
    let at = unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, whence) };
    Errno::result(at).map(|at| at as u64)
}

/// `linkat` of an open descriptor's path is not wanted here: a hard link by paths, not following a symlink.
pub fn link(from: &Path, to: &Path) -> nix::Result<()> {
    let (from, to) = (c_path(from), c_path(to));
    // SAFETY: both are C strings that live until the call returns.
    let done = unsafe { libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), 0) };
    Errno::result(done).map(drop)
}

/// `mknod`: fifos, sockets, device nodes.
pub fn mknod(path: &Path, mode: libc::mode_t, device: libc::dev_t) -> nix::Result<()> {
    let path = c_path(path);
    // SAFETY: a C string that lives until the call returns.
    let done = unsafe { libc::mknod(path.as_ptr(), mode, device) };
    Errno::result(done).map(drop)
}

/// The times to set with [`set_times`]: seconds and nanoseconds; `None` leaves one as it is.
pub type Times = (Option<(i64, i64)>, Option<(i64, i64)>);

/// `utimensat`: atime and mtime, to the nanosecond, of a symlink itself too.
pub fn set_times(path: &Path, (atime, mtime): Times) -> nix::Result<()> {
    let path = c_path(path);
    let spec = |time: Option<(i64, i64)>| match time {
        Some((seconds, nanoseconds)) => libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds },
        None => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
    };
    let times = [spec(atime), spec(mtime)];
    // SAFETY: the C string and the two timespecs live until the call returns.
    let done =
        unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) };
    Errno::result(done).map(drop)
}

/// `copy_file_range` between two descriptors at given offsets.
pub fn copy_range(
    from: &File,
    from_offset: u64,
    to: &File,
    to_offset: u64,
    len: usize,
) -> nix::Result<usize> {
    let (mut from_offset, mut to_offset) = (from_offset as libc::loff_t, to_offset as libc::loff_t);
    // SAFETY: the two offsets are locals that live until the call returns.
    let copied = unsafe {
        libc::copy_file_range(from.as_raw_fd(), &mut from_offset, to.as_raw_fd(), &mut to_offset, len, 0)
    };
    Errno::result(copied).map(|copied| copied as usize)
}

/// An open-file-description lock on the whole file, exclusive; false when another holds one.
pub fn try_ofd_lock(file: &File) -> nix::Result<bool> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as _,
        l_whence: libc::SEEK_SET as _,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: `lock` lives until the call returns.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &mut lock) };
    match Errno::result(done) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether `pid` is a live process (a zombie counts as dead).
pub fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(')').map(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X'])))
        .unwrap_or(false)
}

/// Opens an LMDB environment.
pub fn open_lmdb(dir: &Path, write_map: bool) -> heed::Result<heed::Env> {
    let mut options = heed::EnvOpenOptions::new();
    options.map_size(256 << 20).max_dbs(2);
    // SAFETY: each test opens its environment once in this process and changes the files through it alone.
    unsafe {
        if write_map {
            options.flags(heed::EnvFlags::WRITE_MAP);
        }
        options.open(dir)
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path without a NUL")
}

/// Does something as another user without any rights: on a thread of its own, whose user is changed for good.
pub fn as_user<T: Send>(uid: u32, work: impl FnOnce() -> T + Send) -> T {
    let run = || {
        // The calls themselves, not the library's, which would change all threads.
        // SAFETY: no pointer is read, since the list of groups is said to be empty.
        let groups = unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) };
        // SAFETY: the call takes numbers only.
        let gid = unsafe { libc::syscall(libc::SYS_setresgid, uid, uid, uid) };
        // SAFETY: the call takes numbers only.
        let user = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
        assert_eq!((groups, gid, user), (0, 0, 0), "{}", io::Error::last_os_error());
        work()
    };
    std::thread::scope(|scope| match scope.spawn(run).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
