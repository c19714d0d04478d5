//! Extended attributes of a name in a directory, symlinks not followed.
//!
//! The calls that take a directory and a name are newer than the kernels this has to run on; so the name is reached
//! through `/proc/self/fd`, whose part of the path is resolved by the kernel to the directory itself.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::c_name;

/// The path of `name` in `dir`; an empty name is the directory itself.
fn path(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<CString> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(if name.is_empty() { b"." } else { name.as_bytes() });
    c_name(OsStr::from_bytes(&path))
}

/// Calls `read` with a buffer, a larger one each time it says that it does not fit.
pub(super) fn with_room(mut read: impl FnMut(&mut [u8]) -> isize) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; 512];
    loop {
        let len = read(&mut buf);
        if let Ok(len) = usize::try_from(len) {
            buf.truncate(len);
            return Ok(buf);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || buf.len() > 1 << 20 {
            return Err(error);
        }
        buf.resize(buf.len() * 8, 0);
    }
}

/// The names in a list as the kernel gives it, each ended by a NUL.
pub(super) fn names(list: &[u8]) -> Vec<OsString> {
    let names = list.split(|&b| b == 0).filter(|name| !name.is_empty());
    names.map(|name| OsString::from_vec(name.to_vec())).collect()
}

/// The names of all extended attributes; none where the file system has no such thing.
pub(crate) fn list_xattr(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Vec<OsString>> {
    let path = path(dir, name)?;
    let list = with_room(|buf| {
        // SAFETY: the path is NUL-terminated, and at most `buf.len()` bytes are written to `buf`.
        unsafe { libc::llistxattr(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) }
    });
    match list {
        Ok(list) => Ok(names(&list)),
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// An extended attribute's value; `None` when it is not set.
pub(crate) fn get_xattr(dir: BorrowedFd<'_>, name: &OsStr, key: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let (path, key) = (path(dir, name)?, c_name(key)?);
    let value = with_room(|buf| {
        // SAFETY: both names are NUL-terminated, and at most `buf.len()` bytes are written to `buf`.
        unsafe { libc::lgetxattr(path.as_ptr(), key.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) }
    });
    match value {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.raw_os_error() == Some(libc::ENODATA) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Sets an extended attribute.
pub(crate) fn set_xattr(dir: BorrowedFd<'_>, name: &OsStr, key: &OsStr, value: &[u8]) -> io::Result<()> {
    let (path, key) = (path(dir, name)?, c_name(key)?);
    // SAFETY: both names are NUL-terminated, and `value.len()` bytes are read from `value`.
    let rc = unsafe { libc::lsetxattr(path.as_ptr(), key.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Removes an extended attribute.
pub(crate) fn remove_xattr(dir: BorrowedFd<'_>, name: &OsStr, key: &OsStr) -> io::Result<()> {
    let (path, key) = (path(dir, name)?, c_name(key)?);
    // SAFETY: both names are NUL-terminated.
    let rc = unsafe { libc::lremovexattr(path.as_ptr(), key.as_ptr()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
