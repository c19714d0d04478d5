//! The words of tmfs as types: ids that cannot be mixed up, and what a file system tells about a file.

use std::ffi::OsString;
use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// An inode number, unique within a store for ever: numbers are never used again.
///
/// Values are below 2^40, so that the mounted tree can put a view's tag above them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory of every tree.
    pub const ROOT: Ino = Ino(1);
    /// The number of bits an inode number may use.
    pub const BITS: u32 = 40;
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The store's own ever-increasing counter. Every change is made in exactly one epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EpochId(pub u64);

impl fmt::Display for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number a snapshot is named by: a block height as reported when it was taken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Height(pub u64);

impl From<u64> for Height {
    fn from(number: u64) -> Height {
        Height(number)
    }
}

impl fmt::Display for Height {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The unit of copy-on-write: 4 KiB of file content at a fixed offset in its file.
pub const CHUNK_SIZE: u64 = 4096;

/// The largest file tmfs holds, in bytes: 2^32 chunks, 16 TiB.
pub const MAX_FILE_SIZE: u64 = CHUNK_SIZE << 32;

/// The longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;

/// A point in time as file systems keep it: seconds since 1970 (may be negative) and nanoseconds (0..1e9).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp {
    /// Whole seconds since the epoch of Unix; negative before it.
    pub secs: i64,
    /// Nanoseconds within the second, always counted forwards: 0 to 999,999,999.
    pub nanos: u32,
}

impl Timestamp {
    /// The current time of the system's clock, as file systems take it: at the clock's last tick.
    ///
    /// The kernel compares a file's times with the same clock when the file is written. Where they are equal, as they
    /// are when a new file is written at once, it has nothing to tell when the file is closed.
    pub fn now() -> Timestamp {
        let clock = nix::time::ClockId::CLOCK_REALTIME_COARSE;
        match nix::time::clock_gettime(clock) {
            Ok(now) => Timestamp { secs: now.tv_sec(), nanos: now.tv_nsec() as u32 },
            Err(_) => std::time::SystemTime::now().into(),
        }
    }

    /// The point so much later.
    pub(crate) fn after(self, time: std::time::Duration) -> Timestamp {
        let nanos = u64::from(self.nanos) + u64::from(time.subsec_nanos());
        let secs = self.secs.saturating_add_unsigned(time.as_secs() + nanos / 1_000_000_000);
        Timestamp { secs, nanos: (nanos % 1_000_000_000) as u32 }
    }
}

impl From<std::time::SystemTime> for Timestamp {
    fn from(time: std::time::SystemTime) -> Timestamp {
        match time.duration_since(std::time::UNIX_EPOCH) {
            Ok(d) => Timestamp { secs: d.as_secs() as i64, nanos: d.subsec_nanos() },
            Err(e) => {
                let d = e.duration();
                match d.subsec_nanos() {
                    0 => Timestamp { secs: -(d.as_secs() as i64), nanos: 0 },
                    n => Timestamp { secs: -(d.as_secs() as i64) - 1, nanos: 1_000_000_000 - n },
                }
            }
        }
    }
}

impl From<Timestamp> for std::time::SystemTime {
    fn from(t: Timestamp) -> std::time::SystemTime {
        use std::time::Duration;
        let base = std::time::UNIX_EPOCH;
        let whole = if t.secs >= 0 {
            base.checked_add(Duration::from_secs(t.secs as u64))
        } else {
            base.checked_sub(Duration::from_secs(t.secs.unsigned_abs()))
        };
        whole.and_then(|w| w.checked_add(Duration::from_nanos(t.nanos.into()))).unwrap_or(base)
    }
}

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // The names say it.
pub enum FileKind {
    Regular,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

impl FileKind {
    /// The kind that the type bits (`S_IFMT`) of a mode stand for, if they stand for one.
    pub fn from_mode(mode: u32) -> Option<FileKind> {
        Some(match mode & libc::S_IFMT {
            libc::S_IFREG => FileKind::Regular,
            libc::S_IFDIR => FileKind::Directory,
            libc::S_IFLNK => FileKind::Symlink,
            libc::S_IFIFO => FileKind::Fifo,
            libc::S_IFSOCK => FileKind::Socket,
            libc::S_IFCHR => FileKind::CharDevice,
            libc::S_IFBLK => FileKind::BlockDevice,
            _ => return None,
        })
    }

    /// The type bits (`S_IFMT`) of this kind.
    pub fn mode_bits(self) -> u32 {
        match self {
            FileKind::Regular => libc::S_IFREG,
            FileKind::Directory => libc::S_IFDIR,
            FileKind::Symlink => libc::S_IFLNK,
            FileKind::Fifo => libc::S_IFIFO,
            FileKind::Socket => libc::S_IFSOCK,
            FileKind::CharDevice => libc::S_IFCHR,
            FileKind::BlockDevice => libc::S_IFBLK,
        }
    }
}

/// What `stat` tells about an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// The inode's number in its store (untagged).
    pub ino: Ino,
    /// What it is.
    pub kind: FileKind,
    /// Permission, set-id and sticky bits: `0o7777` at most.
    pub mode: u32,
    /// Names that lead to it; a directory counts itself and its subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, in the kernel's 32-bit encoding; else 0.
    pub rdev: u32,
    /// Content in bytes (for a symlink: the target's length).
    pub size: u64,
    /// Space in units of 512 bytes, of all layers that this tree sees.
    pub blocks: u64,
    /// Last access, as set at creation and by `utimensat`: reading does not move it.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
}

/// One entry of a directory, `.` and `..` excluded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// The name: any bytes but `/` and NUL, at most [`NAME_MAX`].
    pub name: OsString,
    /// The inode it leads to.
    pub ino: Ino,
    /// What that inode is.
    pub kind: FileKind,
}

/// Space of the file system below, as `statvfs` tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)] // The names are statvfs's.
pub struct StatFs {
    pub block_size: u32,
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
}

/// Chunk numbers `first..=last` of the byte range `offset..offset + len`; `None` when `len` is 0.
pub fn chunk_span(offset: u64, len: u64) -> Option<RangeInclusive<u32>> {
    let last = offset.checked_add(len.checked_sub(1)?)?;
    Some((offset / CHUNK_SIZE) as u32..=(last / CHUNK_SIZE) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    #[test]
    fn timestamps_before_1970_survive_the_round_trip() {
        for t in [
            UNIX_EPOCH,
            UNIX_EPOCH - Duration::new(1, 1),
            UNIX_EPOCH - Duration::from_secs(5),
            UNIX_EPOCH + Duration::new(1_700_000_000, 999_999_999),
        ] {
            assert_eq!(SystemTime::from(Timestamp::from(t)), t);
        }
        assert_eq!(
            Timestamp::from(UNIX_EPOCH - Duration::from_nanos(1)),
            Timestamp { secs: -1, nanos: 999_999_999 }
        );
    }

    #[test]
    fn later_over_a_second_and_before_1970() {
        let at = |secs, nanos| Timestamp { secs, nanos };
        assert_eq!(at(1, 999_999_999).after(Duration::from_nanos(1)), at(2, 0));
        assert_eq!(at(-1, 500_000_000).after(Duration::from_millis(600)), at(0, 100_000_000));
        let now = Timestamp::now();
        assert!(
            now <= SystemTime::now().into()
                && SystemTime::from(now.after(Duration::from_secs(1))) > SystemTime::now()
        );
    }

    #[test]
    fn chunk_spans() {
        assert_eq!(chunk_span(0, 0), None);
        assert_eq!(chunk_span(0, 1), Some(0..=0));
        assert_eq!(chunk_span(4095, 2), Some(0..=1));
        assert_eq!(chunk_span(8192, 4096), Some(2..=2));
    }
}
