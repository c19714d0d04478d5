//! File handles: names for inodes that need no descriptor (`name_to_handle_at`, `open_by_handle_at`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The most bytes a handle has (`MAX_HANDLE_SZ`).
const MOST: usize = 128;

/// The kernel's `struct file_handle`, with room for the longest handle.
#[repr(C)]
struct Raw {
    bytes: libc::c_uint,
    kind: libc::c_int,
    handle: [u8; MOST],
}

/// A file handle: what its file system calls an inode.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct FileHandle {
    kind: i32,
    bytes: Box<[u8]>,
}

impl FileHandle {
    /// The handle of an open file (`O_PATH` will do). EOPNOTSUPP where the file system has none.
    pub(crate) fn of(file: BorrowedFd<'_>) -> io::Result<FileHandle> {
        let mut raw = Raw { bytes: MOST as libc::c_uint, kind: 0, handle: [0; MOST] };
        let mut mount: libc::c_int = 0;
        let at: *mut Raw = &mut raw;
        // SAFETY: the descriptor is borrowed and so open, the path is NUL-terminated, and `raw` has the layout of a
        // `file_handle` followed by as many bytes as its first field says.
        let rc = unsafe {
            libc::name_to_handle_at(
                file.as_raw_fd(),
                c"".as_ptr(),
                at.cast(),
                &mut mount,
                libc::AT_EMPTY_PATH,
            )
        };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        let len = (raw.bytes as usize).min(MOST);
        Ok(FileHandle { kind: raw.kind, bytes: raw.handle[..len].into() })
    }

    /// Opens the inode with `flags`, on the file system that `on` is a file of. ESTALE when it is gone.
    pub(crate) fn open(&self, on: BorrowedFd<'_>, flags: libc::c_int) -> io::Result<OwnedFd> {
        let mut raw = Raw { bytes: self.bytes.len() as libc::c_uint, kind: self.kind, handle: [0; MOST] };
        raw.handle[..self.bytes.len()].copy_from_slice(&self.bytes);
        let at: *mut Raw = &mut raw;
        // SAFETY: the descriptor is borrowed and so open; `raw` has the layout of a `file_handle`, and the kernel reads
        // as many of its bytes as its first field says, which are there.
        let fd = unsafe { libc::open_by_handle_at(on.as_raw_fd(), at.cast(), flags | libc::O_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just made this descriptor, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
