//! How many requests of which kind were answered.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! kinds {
    ($($kind:ident = $name:literal,)*) => {
        /// A kind of request.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[allow(missing_docs)] // The names are FUSE's.
        pub enum Kind { $($kind,)* }

        impl Kind {
            const NAMES: &'static [&'static str] = &[$($name,)*];
            /// All kinds, in the order of their numbers.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind,)*];
        }
    };
}

kinds! {
    Lookup = "lookup",
    Forget = "forget",
    GetAttr = "getattr",
    SetAttr = "setattr",
    ReadLink = "readlink",
    MkNod = "mknod",
    MkDir = "mkdir",
    Unlink = "unlink",
    RmDir = "rmdir",
    Symlink = "symlink",
    Rename = "rename",
    Link = "link",
    Open = "open",
    Create = "create",
    Read = "read",
    Write = "write",
    Release = "release",
    Fsync = "fsync",
    OpenDir = "opendir",
    ReadDir = "readdir",
    ReleaseDir = "releasedir",
    FsyncDir = "fsyncdir",
    StatFs = "statfs",
    SetXattr = "setxattr",
    GetXattr = "getxattr",
    ListXattr = "listxattr",
    RemoveXattr = "removexattr",
    Fallocate = "fallocate",
    Seek = "lseek",
    CopyRange = "copy_file_range",
}

impl Kind {
    /// Whether it makes, moves or removes a name.
    pub(crate) fn changes_names(self) -> bool {
        use Kind::*;
        matches!(self, MkNod | MkDir | Unlink | RmDir | Symlink | Rename | Link | Create)
    }

    /// FUSE's name for it.
    pub fn name(self) -> &'static str {
        Kind::NAMES[self as usize]
    }
}

/// The counters.
pub struct Requests {
    counts: Vec<AtomicU64>,
    panics: AtomicU64,
}

impl Default for Requests {
    fn default() -> Requests {
        Requests {
            counts: Kind::NAMES.iter().map(|_| AtomicU64::new(0)).collect(),
            panics: AtomicU64::new(0),
        }
    }
}

impl Requests {
    /// Counts a request.
    pub fn count(&self, kind: Kind) {
        self.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a handler that panicked.
    pub fn count_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// How many handlers panicked.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// The counts by name, without those that are 0.
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        Kind::NAMES
            .iter()
            .map(|name| (*name).to_owned())
            .zip(counts)
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}
