//! Which errno a caller sees for which error: decided here, once, for everything.
//!
//! The match has no wildcard, so a new error of the store does not compile before someone has decided about it.
//! [`TABLE`] is the same table as data; a test compares it with docs/SEMANTICS.md.

use std::io;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use snapstore::Error;

/// An error number as the kernel wants it: positive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

/// What the operations of a mounted tree answer.
pub type Result<T, E = Errno> = std::result::Result<T, E>;

macro_rules! table {
    ($($variant:ident => $errno:ident,)*) => {
        /// The store's errors and the errno of each. `Io` and `Metadata` are not in it: they pass on the errno that
        /// the file system below gave, or EIO where it gave none.
        pub const TABLE: &[(&str, &str)] = &[$((stringify!($variant), stringify!($errno)),)*];

        impl From<&Error> for Errno {
            fn from(error: &Error) -> Errno {
                Errno(match error {
                    $(Error::$variant { .. } => libc::$errno,)*
                    Error::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
                    Error::Metadata(_, errno) => errno.unwrap_or(libc::EIO),
                })
            }
        }
    };
}

table! {
    // File operations.
    NoEntry => ENOENT,
    Exists => EEXIST,
    NotDirectory => ENOTDIR,
    IsDirectory => EISDIR,
    NotEmpty => ENOTEMPTY,
    NotPermitted => EPERM,
    AccessDenied => EACCES,
    NameTooLong => ENAMETOOLONG,
    TooManyLinks => EMLINK,
    NoXattr => ENODATA,
    TooBig => E2BIG,
    InvalidArgument => EINVAL,
    FileTooLarge => EFBIG,
    NoData => ENXIO,
    Unsupported => EOPNOTSUPP,
    ReadOnly => EROFS,
    Stale => EIO,
    // Snapshots and heads, as `mkdir` and `rmdir` below `@height` and look-ups there see them.
    NoSuchHeight => ENOENT,
    NothingBelow => ENOENT,
    NoSnapshots => ENOENT,
    NoSnapshotAt => ENOENT,
    HeightExists => EEXIST,
    HeightNotNewer => EINVAL,
    Held => EBUSY,
    NothingToUndo => ENOENT,
    PreserveMissing => ENOENT,
    PreserveImpossible => EINVAL,
    NothingToImport => EINVAL,
    NestedSubvolume => EINVAL,
    BadSnapshotOption => EINVAL,
    // The store as a whole.
    NotAStore => EINVAL,
    StoreMissing => EINVAL,
    Locked => EBUSY,
    NewerFormat => EINVAL,
    OtherBackend => EINVAL,
    ForeignStore => EACCES,
    CannotAdopt => EINVAL,
    CannotEject => EINVAL,
    Damaged => EIO,
    DamagedLayer => EIO,
    PreviousFailure => EIO,
    Closed => EIO,
    Command => EIO,
}

/// How many failures the log tells of in a while. A program that goes on writing to a full disk would fill the log
/// as well.
const TOLD: u32 = 20;
const WHILE: Duration = Duration::from_secs(10);

static FAILURES: Throttle = Throttle(Mutex::new(Told { since: None, told: 0, silent: 0 }));

/// Lets through a few in each while, and counts the others.
struct Throttle(Mutex<Told>);

struct Told {
    since: Option<Instant>,
    told: u32,
    silent: u64,
}

impl Throttle {
    /// `None`: not this one. Else how many were not let through since the last that was.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut told = self.0.lock();
        if told.since.is_none_or(|since| now.duration_since(since) >= WHILE) {
            (told.since, told.told) = (Some(now), 0);
        }
        if told.told == TOLD {
            told.silent += 1;
            return None;
        }
        told.told += 1;
        Some(std::mem::take(&mut told.silent))
    }
}

impl From<Error> for Errno {
    fn from(error: Error) -> Errno {
        let errno = Errno::from(&error);
        // The caller learns a number only; what a person needs to know must stand in the log.
        match error {
            Error::Damaged { .. }
            | Error::DamagedLayer { .. }
            | Error::PreviousFailure { .. }
            | Error::Io { .. }
            | Error::Command { .. }
            | Error::Metadata(..) => match FAILURES.admit(Instant::now()) {
                Some(0) => tracing::error!(%error, errno = errno.0, "a request failed"),
                Some(more) => tracing::error!(%error, errno = errno.0, more, "requests failed"),
                None => {}
            },
            _ => {}
        }
        errno
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Errno {
        Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use snapstore::Height;

    #[test]
    fn errors_of_the_disk_keep_their_number() {
        let full = Error::io("write", "x")(io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(Errno::from(full), Errno(libc::ENOSPC));
        assert_eq!(Errno::from(Error::Metadata("broken".into(), None)), Errno(libc::EIO));
        assert_eq!(Errno::from(Error::Held { height: Height(3) }), Errno(libc::EBUSY));
    }

    #[test]
    fn the_log_tells_of_a_few_failures_in_a_while_and_counts_the_others() {
        let throttle = Throttle(Mutex::new(Told { since: None, told: 0, silent: 0 }));
        let begun = Instant::now();
        let admitted: Vec<_> = (0..100).map(|_| throttle.admit(begun)).collect();
        assert!(admitted[..TOLD as usize].iter().all(|admitted| *admitted == Some(0)));
        assert!(admitted[TOLD as usize..].iter().all(Option::is_none));
        assert_eq!(throttle.admit(begun + WHILE), Some(100 - u64::from(TOLD)));
        assert_eq!(throttle.admit(begun + WHILE), Some(0));
    }

    #[test]
    fn the_table_names_each_error_once() {
        let mut names: Vec<_> = TABLE.iter().map(|row| row.0).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), TABLE.len());
    }
}
