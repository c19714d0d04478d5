//! The few system calls that no safe wrapper has.

mod fusermount;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

pub(crate) use fusermount::{command as fusermount, mount as mount_by_fusermount};

/// Writes the file's dirty pages and waits until they are written, without a lock that would keep writers out.
pub(crate) fn write_and_wait(file: &File) -> io::Result<()> {
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: takes no pointers; the descriptor is open for as long as `file` is borrowed.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Starts to write back the dirty pages of a range of a file, without waiting.
pub(crate) fn start_writeback(file: &File, from: u64, len: u64) -> io::Result<()> {
    // SAFETY: takes no pointers; the descriptor is open for as long as `file` is borrowed.
    let started = unsafe {
        libc::sync_file_range(file.as_raw_fd(), from as i64, len as i64, libc::SYNC_FILE_RANGE_WRITE)
    };
    if started == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The size of a file, and nothing else of it: what the kernel knows by itself it does not ask a file system for.
pub(crate) fn size_of(file: &File) -> io::Result<u64> {
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    let (fd, flags) = (file.as_raw_fd(), libc::AT_EMPTY_PATH);
    // SAFETY: the path is a C string; `found` has the size that the kernel writes; zeroed it is valid as it is.
    let found = unsafe {
        if libc::statx(fd, c"".as_ptr(), flags, libc::STATX_SIZE, found.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        found.assume_init()
    };
    Ok(found.stx_size)
}

/// Gives the calling thread, and it alone, descriptors of its own: the three standard ones, and what it opens from now
/// on. It must not use any other that it has from before.
pub(crate) fn leave_fuse() -> io::Result<()> {
    let (first, last, unshare) = (3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE);
    // SAFETY: the call takes numbers only. The descriptors stay open in the table that the other threads share; what
    // owns one of them is never dropped on this thread.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, unshare) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the threads of this process share a few places to allocate from; to be called before there are many of them. Of its
/// own the allocator gives each thread one, and what a thread has freed is of no use to the others: each command comes
/// on a thread of its own, so one that reads much of the metadata would cost its memory again and again.
pub fn share_memory() {
    #[cfg(target_env = "gnu")]
    {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        // SAFETY: takes no pointers; the allocator locks what it touches.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, processors.clamp(2, 8) as libc::c_int);
        }
    }
}

/// Gives memory that was freed back to the system. Opening a store reads all of its metadata once, page by page, and the
/// allocator keeps what that took: twice of what is in use, with 1,000,000 files.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers; the allocator locks what it touches.
    unsafe {
        libc::malloc_trim(0);
    }
}
