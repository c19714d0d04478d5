//! What a backend is: the trees it shows and the snapshots it keeps.
//!
//! A **[`Tree`]** can only be read. Every view is one, so that a view is read-only by its type. A **[`Head`]** is a
//! tree that can also be changed; the live data dir is the head `main`. A **[`Backend`]** owns the head and the
//! snapshots. The mounted file system (crate `fs`) knows nothing but these three traits and the two file traits.
//!
//! All methods may be called from many threads at once. They block for the disk, never for another caller's long
//! operation on another inode.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::merkle::{self, Hash};
use crate::progress::Progress;
use crate::types::{Attr, DirEntry, EpochId, FileKind, Height, Ino, StatFs, Timestamp};
use crate::verify::{Activity, ScrubResult, VerifyReport};

/// A tree of files that can be read: the live head, or a view of a snapshot.
pub trait Tree: Send + Sync {
    /// Finds `name` in the directory `parent`. [`Error::NoEntry`](crate::Error::NoEntry) when it is not there.
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr>;
    /// The attributes of an inode.
    fn get_attr(&self, ino: Ino) -> Result<Attr>;
    /// The target of a symlink.
    fn read_link(&self, ino: Ino) -> Result<Vec<u8>>;
    /// All entries of a directory, in byte order of their names, `.` and `..` excluded.
    fn read_dir(&self, dir: Ino) -> Result<Vec<DirEntry>>;
    /// The directory that holds `dir` (the root holds itself).
    fn parent(&self, dir: Ino) -> Result<Ino>;
    /// The value of an extended attribute. [`Error::NoXattr`](crate::Error::NoXattr) when it is not set.
    fn get_xattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>>;
    /// The names of all extended attributes.
    fn list_xattr(&self, ino: Ino) -> Result<Vec<OsString>>;
    /// Opens a regular file for reading.
    fn open(&self, ino: Ino) -> Result<Arc<dyn FileRead>>;
    /// Space of the file system below.
    fn stat_fs(&self) -> Result<StatFs>;
    /// A mark of a file's content: two trees of one backend in which a file has the same mark show the same content.
    /// Different marks say nothing; `None`: there are no marks.
    fn content_mark(&self, _ino: Ino) -> Result<Option<u64>> {
        Ok(None)
    }
}

/// The content of a regular file of a [`Tree`].
pub trait FileRead: Send + Sync {
    /// Fills `buf` from `offset`; returns fewer bytes only where the file ends.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;
    /// The file's length in bytes, now.
    fn len(&self) -> Result<u64>;
    /// Whether the file has no content.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
    /// The next byte at or after `offset` that lies in data (or in a hole; the end counts as one).
    /// [`Error::NoData`](crate::Error::NoData) (ENXIO) when there is none, as `lseek` says.
    fn seek(&self, offset: u64, what: Seek) -> Result<u64>;
    /// The hash of a chunk ([`crate::merkle`]), if it is known without reading it.
    fn chunk_hash(&self, _chunk: u32) -> Result<Option<[u8; 32]>> {
        Ok(None)
    }
    /// A descriptor that the kernel may read and write directly, for backends whose snapshots are atomic below
    /// ([`Backend::passthrough`]). Every opening of one inode of one tree gives the same descriptor while one of them
    /// lives; in the live head it is open for reading and writing, unless the file cannot be.
    fn backing(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// What [`FileRead::seek`] looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Seek {
    Data,
    Hole,
}

/// A [`Tree`] that can be changed.
///
/// A handle to a head that is no longer the live one (a rollback switched away from it) answers
/// [`Error::Stale`](crate::Error::Stale) to everything.
pub trait Head: Tree {
    /// Makes a new inode named `name` in `parent`. Applies the parent's default ACL (then `umask` does not count),
    /// its set-group-id bit, and sets all four times to now.
    fn create(&self, parent: Ino, name: &OsStr, new: &NewInode<'_>) -> Result<Attr>;
    /// Gives an inode (not a directory) another name.
    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attr>;
    /// Removes a name that is no directory's. The inode lives on while it has names, or until [`Head::forget`].
    /// Returns what the name led to, with the link count that is left.
    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<Attr>;
    /// Removes an empty directory.
    fn remove_dir(&self, parent: Ino, name: &OsStr) -> Result<Attr>;
    /// Renames, with `renameat2`'s semantics. Returns what was replaced, if anything was.
    fn rename(&self, from: (Ino, &OsStr), to: (Ino, &OsStr), mode: RenameMode) -> Result<Option<Attr>>;
    /// Changes attributes; `None` leaves one as it is. A size that shrinks and grows again reads zeros.
    fn set_attr(&self, ino: Ino, set: &SetAttr) -> Result<Attr>;
    /// Sets an extended attribute. `system.posix_acl_access` also sets the mode's permission bits.
    fn set_xattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()>;
    /// Removes an extended attribute.
    fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<()>;
    /// Opens a regular file for reading and writing. `times`: who keeps its times when its content changes.
    fn open_write(&self, ino: Ino, times: Times) -> Result<Arc<dyn FileWrite>>;
    /// Clears set-user-id, set-group-id (where the group may execute) and `security.capability`, as a write by
    /// someone unprivileged does.
    fn drop_privileges(&self, ino: Ino) -> Result<()>;
    /// Makes every namespace change so far durable (fsync of a directory).
    fn sync_names(&self) -> Result<()>;
    /// Says that the kernel holds no reference to the inode any more: if it has no name either, it is removed.
    fn forget(&self, ino: Ino) -> Result<()>;
}

/// The content of a regular file of a [`Head`].
pub trait FileWrite: FileRead {
    /// Writes all of `data` at `offset`, growing the file as needed.
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()>;
    /// `fallocate`. Growing is part of it unless the mode keeps the size.
    fn allocate(&self, mode: Allocate, offset: u64, len: u64) -> Result<()>;
    /// Copies up to `len` bytes from another file; returns how many (0 at the source's end).
    fn copy_from(&self, source: &dyn FileRead, source_offset: u64, offset: u64, len: u64) -> Result<u64>;
    /// Makes the content durable, and with it whatever is needed to find it again after a power cut.
    /// `data_only` (fdatasync) leaves out attributes that do not matter for that.
    fn sync(&self, data_only: bool) -> Result<()>;
}

/// Decides at the moment of a cut whether it may be made.
pub trait Gate: Sync {
    /// Calls `cut` once, and answers `true`; or does not, and answers `false`. What the cut of a snapshot does takes
    /// microseconds and waits for no operation, so the gate may hold back whatever must not come in between.
    fn pass(&self, cut: &mut dyn FnMut()) -> bool;
}

/// A [`Gate`] that lets everything pass.
#[derive(Clone, Copy, Debug)]
pub struct Open;

impl Gate for Open {
    fn pass(&self, cut: &mut dyn FnMut()) -> bool {
        cut();
        true
    }
}

/// Who keeps a regular file's mtime and ctime when its content changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Times {
    /// The head: they become now.
    #[default]
    Touch,
    /// The caller: they stay until it sets them. A kernel that caches writes believes its own times, whatever it is
    /// told, and sends them when the file is closed or synced; a time of ours would stay wherever it has none to send.
    Keep,
}

/// The modes of `fallocate` that reach a FUSE file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocate {
    /// Reserve space; grow the file unless `keep_size`.
    Reserve {
        /// `FALLOC_FL_KEEP_SIZE`.
        keep_size: bool,
    },
    /// Make the range read zeros and free its space; the size stays.
    PunchHole,
    /// Make the range read zeros; grow the file unless `keep_size`.
    ZeroRange {
        /// `FALLOC_FL_KEEP_SIZE`.
        keep_size: bool,
    },
}

/// What [`Head::create`] makes.
#[derive(Clone, Copy, Debug)]
pub struct NewInode<'a> {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits as asked for, before the umask.
    pub mode: u32,
    /// The caller's umask.
    pub umask: u32,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory's set-group-id bit hands down its own.
    pub gid: u32,
    /// Device number, for device nodes.
    pub rdev: u32,
    /// Target, for symlinks; else empty.
    pub target: &'a [u8],
}

/// What [`Head::set_attr`] changes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[allow(missing_docs)] // The names are stat's.
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<Timestamp>,
    pub mtime: Option<Timestamp>,
    pub ctime: Option<Timestamp>,
    /// The caller may not keep set-id bits when it changes size or owner.
    pub drop_privileges: bool,
    /// Who keeps the times when the size changes.
    pub times: Times,
}

/// `renameat2`'s flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RenameMode {
    /// Replace what is at the target.
    Replace,
    /// `RENAME_NOREPLACE`: fail when there is something.
    NoReplace,
    /// `RENAME_EXCHANGE`: both must be there, and change places.
    Exchange,
    /// `RENAME_WHITEOUT`: leave a character device 0:0 at the source.
    Whiteout,
    /// `RENAME_WHITEOUT | RENAME_NOREPLACE`.
    WhiteoutNoReplace,
}

/// `setxattr`'s flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum XattrMode {
    Set,
    Create,
    Replace,
}

/// Which backend keeps the snapshots.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum BackendKind {
    Chunk,
    Btrfs,
    Zfs,
    External,
}

impl BackendKind {
    /// All of them.
    pub const ALL: [BackendKind; 4] =
        [BackendKind::Chunk, BackendKind::Btrfs, BackendKind::Zfs, BackendKind::External];

    /// Its name, as on the command line and in `FORMAT`.
    pub fn name(self) -> &'static str {
        match self {
            BackendKind::Chunk => "chunk",
            BackendKind::Btrfs => "btrfs",
            BackendKind::Zfs => "zfs",
            BackendKind::External => "external",
        }
    }

    /// The kind with this name.
    pub fn named(name: &str) -> Option<BackendKind> {
        BackendKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl std::fmt::Display for BackendKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What is asked for with a snapshot.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct SnapshotOptions {
    /// The block's hash, as hexadecimal digits (an even number, at most 128), without `0x`.
    #[serde(default)]
    pub hash: Option<String>,
    /// Free labels. Keys: 1 to 64 bytes without `=`; values: at most 4096 bytes; at most 64 of them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Held from the start: no deletion and no retention takes it until it is released.
    #[serde(default)]
    pub hold: bool,
}

impl SnapshotOptions {
    /// So many labels at most.
    pub const MOST_LABELS: usize = 64;

    /// Adds what may be left out: labels over those of the same keys, and others as long as there is room. A snapshot must
    /// not fail for them.
    pub fn note(&mut self, labels: BTreeMap<String, String>) {
        for (key, value) in labels {
            if self.labels.len() < SnapshotOptions::MOST_LABELS || self.labels.contains_key(&key) {
                self.labels.insert(key, value);
            }
        }
    }
}

/// A snapshot as `tmfs list --json` shows it. Field names are part of the command line's contract.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Its name.
    pub height: Height,
    /// When the cut was made.
    pub time: jiff::Timestamp,
    /// Whether it would survive a power cut now.
    pub durable: bool,
    /// Whether it is protected from deletion.
    pub held: bool,
    /// The block's hash, if it was given.
    pub hash: Option<String>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Bytes of file content that the snapshot sees (each chunk that holds data counts 4096).
    pub referenced_bytes: u64,
    /// Bytes that deleting it alone would free.
    pub exclusive_bytes: u64,
    /// The epoch it froze.
    pub epoch: EpochId,
    /// The hash of its tree, in hexadecimal digits: only where one snapshot was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
}

/// Where a height is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeightQuery {
    /// The newest snapshot.
    Newest,
    /// Exactly this height.
    Exact(Height),
    /// The nearest height at or below.
    AtOrBelow(Height),
}

/// A view: a snapshot's tree.
#[derive(Clone)]
pub struct View {
    /// The epoch it shows: a view's identity, since a height can be executed again after a rollback.
    pub epoch: EpochId,
    /// Its height.
    pub height: Height,
    /// When the cut was made.
    pub time: jiff::Timestamp,
    /// The files.
    pub tree: Arc<dyn Tree>,
}

/// What a rollback (or its undoing) did, or, as a dry run, would do.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SwitchReport {
    /// The height that is live now; `None` after an undo that went back to a head between snapshots.
    pub height: Option<Height>,
    /// Snapshots of the head that was left: kept, out of sight, until that head is dropped.
    pub hidden_heights: Vec<Height>,
    /// Paths that were carried over, relative to the data dir.
    #[serde(with = "crate::control::wire_path::list")]
    pub preserved: Vec<PathBuf>,
    /// The inode numbers at the preserved paths in the new head, for callers that cache.
    #[serde(skip)]
    pub changed: Vec<Ino>,
}

/// What a deletion did, or, as a dry run, would do.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct DeleteReport {
    /// The heights, ascending.
    pub heights: Vec<Height>,
    /// Bytes of file content that are freed.
    pub freed_bytes: u64,
}

/// Space and counts, for `tmfs status`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes of content that the live head sees.
    pub live_bytes: u64,
    /// Bytes of content that only history sees (snapshots and heads that a rollback left).
    pub history_bytes: u64,
    /// Inodes in the live head.
    pub live_files: u64,
    /// Bytes of the metadata.
    pub metadata_bytes: u64,
    /// Bytes waiting to be given back by the background reclaim.
    pub reclaimable_bytes: u64,
    /// Layer files in the store.
    pub layers: u64,
    /// Heads that rollbacks left and that can be brought back.
    pub undo_depth: u64,
}

/// Owns the live head and the snapshots of one data dir.
pub trait Backend: Send + Sync {
    /// Which kind it is.
    fn kind(&self) -> BackendKind;
    /// The live head. Ask again after a switch: the old one is stale then.
    fn head(&self) -> Arc<dyn Head>;
    /// A number that every switch of the head raises, also across restarts: the FUSE generation of live inodes.
    fn head_serial(&self) -> u64;
    /// Makes the cut and names it. The caller has flushed the kernel's dirty pages. Returns before the snapshot is
    /// durable: see [`Backend::wait_durable`].
    ///
    /// Errors: [`Error::HeightExists`](crate::Error::HeightExists), unless that snapshot is the newest and nothing
    /// has changed since (then it is returned again);
    /// [`Error::HeightNotNewer`](crate::Error::HeightNotNewer).
    fn snapshot(&self, height: Height, options: &SnapshotOptions) -> Result<SnapshotInfo> {
        Ok(self.cut(height, options, &Open)?.expect("an open gate lets everything pass"))
    }
    /// [`Backend::snapshot`], if `gate` lets it pass at the very moment of the cut; else nothing is done, and the answer
    /// is `None`.
    fn cut(&self, height: Height, options: &SnapshotOptions, gate: &dyn Gate)
    -> Result<Option<SnapshotInfo>>;
    /// Waits until the snapshot of an epoch survives a power cut. One that was deleted meanwhile has nothing left to
    /// wait for.
    fn wait_durable(&self, epoch: EpochId) -> Result<()>;
    /// All snapshots in the live head's past, ascending. With `space` the two byte counts are worked out (this may
    /// read metadata); without, they are 0.
    fn snapshots(&self, space: bool) -> Result<Vec<SnapshotInfo>>;
    /// The heights of [`Backend::snapshots`], ascending, without the details.
    fn heights(&self) -> Vec<Height>;
    /// Finds a snapshot. [`Error::NoSuchHeight`](crate::Error::NoSuchHeight) when there is none.
    fn find(&self, query: HeightQuery) -> Result<SnapshotInfo>;
    /// The tree of a snapshot.
    fn view(&self, query: HeightQuery) -> Result<View>;
    /// The tree of the newest snapshot taken at or before `time`.
    fn view_at(&self, time: jiff::Timestamp) -> Result<View>;
    /// Makes the state of a snapshot the live head, in one atomic commit. `preserve` are paths, relative to the data
    /// dir, that are carried over from the head that is left. Writers must have been stopped or cut off by the
    /// caller. With `dry_run` nothing is changed.
    fn rollback(&self, to: HeightQuery, preserve: &[PathBuf], dry_run: bool) -> Result<SwitchReport>;
    /// Brings back, whole, the head that the latest rollback left.
    /// [`Error::NothingToUndo`](crate::Error::NothingToUndo) when there is none.
    fn undo_rollback(&self, dry_run: bool) -> Result<SwitchReport>;
    /// The same, with paths carried over from the head that is left now. A backend that can only bring a head back as a
    /// whole refuses.
    fn undo_rollback_preserving(&self, preserve: &[PathBuf], dry_run: bool) -> Result<SwitchReport> {
        match preserve.first() {
            None => self.undo_rollback(dry_run),
            Some(path) => Err(crate::error::Error::PreserveImpossible {
                path: path.clone(),
                reason: "this backend brings back what a rollback left as a whole; use --no-preserve",
            }),
        }
    }
    /// Deletes snapshots by name; their space comes back in the background. All or none: one that is missing or held
    /// fails the whole call.
    fn delete(&self, heights: &[Height], dry_run: bool) -> Result<DeleteReport>;
    /// Drops the heads that rollbacks left, and their snapshots. There is no undo after this.
    fn drop_abandoned(&self, dry_run: bool) -> Result<DeleteReport>;
    /// Protects a snapshot from deletion, or no longer.
    fn set_held(&self, height: Height, held: bool) -> Result<SnapshotInfo>;
    /// Adds labels to the snapshot of an epoch, over those of the same keys. A backend that keeps no labels of a
    /// snapshot once it is made answers [`Error::Unsupported`](crate::Error::Unsupported).
    fn add_labels(
        &self,
        height: Height,
        epoch: EpochId,
        labels: &BTreeMap<String, String>,
    ) -> Result<SnapshotInfo> {
        let _ = (height, epoch, labels);
        Err(crate::error::Error::Unsupported)
    }
    /// Whether [`DeleteReport::freed_bytes`] is right for any set of snapshots, so that it is known beforehand how many
    /// must go for some space. Where not, they go one by one, and the disk tells.
    fn tells_what_is_freed(&self) -> bool {
        true
    }
    /// Whether [`Usage::history_bytes`] is known.
    fn tells_history(&self) -> bool {
        true
    }
    /// As [`Backend::settle`], and until the file system below has given back what was deleted, for a minute at most.
    /// `false`: it has not yet, or some of it is in use.
    fn wait_freed(&self) -> Result<bool> {
        self.settle().map(|()| true)
    }
    /// Space and counts.
    fn usage(&self) -> Result<Usage>;
    /// Waits until the background work that is due now (sealing, reclaim, folding) is done.
    fn settle(&self) -> Result<()>;
    /// Reads everything back, or what one height shows, and says what is damaged.
    fn verify(&self, height: Option<Height>, progress: &dyn Progress) -> Result<VerifyReport>;
    /// How far a verification is that is going on.
    fn activity(&self) -> Option<Activity> {
        None
    }
    /// What the last scrub has found, if there has been one.
    fn last_scrub(&self) -> Option<ScrubResult> {
        None
    }
    /// The hash of a snapshot's tree ([`crate::merkle`]). Worked out when it is first asked for, which reads whatever
    /// has no hash yet.
    fn root_hash(&self, height: Height) -> Result<Hash> {
        merkle::root(&*self.view(HeightQuery::Exact(height))?.tree)
    }
    /// Whether live files may be handed to the kernel ([`FileRead::backing`]): then the cut is atomic below, and
    /// nothing of theirs waits in the kernel's FUSE cache for it.
    fn passthrough(&self) -> bool {
        false
    }
    /// What this backend cannot do here, in words, one sentence each.
    fn limits(&self) -> Vec<String> {
        Vec::new()
    }
    /// The background's latest error, if there is one, as text.
    fn last_error(&self) -> Option<String>;
    /// Makes everything durable and marks the store as cleanly closed. Everything after it fails.
    fn close(&self) -> Result<()>;
}
