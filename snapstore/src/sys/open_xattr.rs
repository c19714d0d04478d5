//! Extended attributes of an open file, of any kind, also one that is open with `O_PATH`: by its name in `/proc`, which
//! leads to the inode itself, a symlink's too.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::xattr::{names, with_room};
use super::{c_name, proc_path};

/// The extended attributes of a file.
pub(crate) struct OpenXattrs<'f> {
    path: CString,
    _file: BorrowedFd<'f>,
}

impl<'f> OpenXattrs<'f> {
    /// Those of an open file.
    pub(crate) fn of(file: BorrowedFd<'f>) -> io::Result<OpenXattrs<'f>> {
        Ok(OpenXattrs { path: c_name(OsStr::new(&proc_path(file.as_raw_fd())))?, _file: file })
    }

    /// All names.
    pub(crate) fn list(&self) -> io::Result<Vec<OsString>> {
        let list = with_room(|buf| {
            // SAFETY: the path is NUL-terminated, and at most `buf.len()` bytes are written to `buf`.
            unsafe { libc::listxattr(self.path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) }
        });
        list.map(|list| names(&list))
    }

    /// A value.
    pub(crate) fn get(&self, name: &OsStr) -> io::Result<Vec<u8>> {
        let name = c_name(name)?;
        with_room(|buf| {
            // SAFETY: both names are NUL-terminated, and at most `buf.len()` bytes are written to `buf`.
            unsafe { libc::getxattr(self.path.as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) }
        })
    }

    /// Sets a value; `flags` as `setxattr` takes them.
    pub(crate) fn set(&self, name: &OsStr, value: &[u8], flags: libc::c_int) -> io::Result<()> {
        let name = c_name(name)?;
        // SAFETY: both names are NUL-terminated, and `value.len()` bytes are read from `value`.
        let rc = unsafe {
            libc::setxattr(self.path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags)
        };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Removes an attribute.
    pub(crate) fn remove(&self, name: &OsStr) -> io::Result<()> {
        let name = c_name(name)?;
        // SAFETY: both names are NUL-terminated.
        let rc = unsafe { libc::removexattr(self.path.as_ptr(), name.as_ptr()) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
