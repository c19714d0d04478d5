//! What the system calls answer, as errors of the store.

use std::io;

use crate::error::Error;
use crate::types::Ino;

/// The error of a system call `op` on an inode.
pub(crate) fn failed<E: Into<io::Error>>(op: &'static str, ino: Ino) -> impl FnOnce(E) -> Error {
    move |error| {
        let source = error.into();
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ESTALE) => Error::NoEntry,
            Some(libc::EEXIST) => Error::Exists,
            Some(libc::ENOTDIR) => Error::NotDirectory,
            Some(libc::EISDIR) => Error::IsDirectory,
            Some(libc::ENOTEMPTY) => Error::NotEmpty,
            Some(libc::EPERM) => Error::NotPermitted,
            Some(libc::EACCES) => Error::AccessDenied,
            Some(libc::ENAMETOOLONG) => Error::NameTooLong,
            Some(libc::EMLINK) => Error::TooManyLinks,
            Some(libc::ENODATA) => Error::NoXattr,
            Some(libc::E2BIG) => Error::TooBig,
            Some(libc::EINVAL | libc::ELOOP) => Error::InvalidArgument,
            Some(libc::EFBIG) => Error::FileTooLarge,
            Some(libc::ENXIO) => Error::NoData,
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => Error::Unsupported,
            Some(libc::EROFS) => Error::ReadOnly,
            _ => Error::Io { op, path: format!("inode {ino}").into(), source },
        }
    }
}
