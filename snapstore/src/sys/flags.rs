//! The immutable flag of an inode: where the file system has one, not even root writes past it by accident.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_long};

/// `FS_IMMUTABLE_FL` of `linux/fs.h`.
const IMMUTABLE: c_int = 0x10;

/// Sets or clears the immutable flag. False where the file system has none, or this process may not change it.
pub(crate) fn set_immutable(file: BorrowedFd<'_>, on: bool) -> io::Result<bool> {
    // The kernel reads and writes an `int`, whatever the request's own name says; a `long` has room for either.
    let mut flags: [c_int; 2] = [0; 2];
    const _: () = assert!(size_of::<c_long>() <= 2 * size_of::<c_int>());
    // SAFETY: the descriptor is borrowed and so open; the kernel writes at most a long into `flags`.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, flags.as_mut_ptr()) };
    if rc != 0 {
        return unsupported(io::Error::last_os_error());
    }
    let wanted = if on { flags[0] | IMMUTABLE } else { flags[0] & !IMMUTABLE };
    if wanted == flags[0] {
        return Ok(true);
    }
    flags[0] = wanted;
    // SAFETY: as above; the kernel only reads `flags`.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_SETFLAGS, flags.as_ptr()) };
    if rc != 0 {
        return unsupported(io::Error::last_os_error());
    }
    Ok(true)
}

fn unsupported(error: io::Error) -> io::Result<bool> {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EPERM | libc::EACCES | libc::EINVAL | libc::ENOSYS) => {
            Ok(false)
        }
        _ => Err(error),
    }
}
