//! The errors of the store, one type.
//!
//! Policy: an error says what failed, on what, and, where there is something to do, what to do next. The file
//! operations' errors are plain (the errno is the message, and `fs` decides it in one table); those that a person
//! reads on the command line are sentences. Nothing carries a free-form string where a field would do.

use std::io;
use std::path::PathBuf;

use crate::backend::BackendKind;
use crate::types::{EpochId, Height, Ino};

/// A result of the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // Each message says what the variant means; fields are what the message names.
pub enum Error {
    // --- File operations: POSIX's own answers.
    #[error("no such file or directory")]
    NoEntry,
    #[error("file exists")]
    Exists,
    #[error("not a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    #[error("directory not empty")]
    NotEmpty,
    #[error("operation not permitted")]
    NotPermitted,
    #[error("permission denied")]
    AccessDenied,
    #[error("file name too long")]
    NameTooLong,
    #[error("too many links")]
    TooManyLinks,
    #[error("no such attribute")]
    NoXattr,
    #[error("value too large")]
    TooBig,
    #[error("invalid argument")]
    InvalidArgument,
    #[error("file too large")]
    FileTooLarge,
    #[error("no data at or after this offset")]
    NoData,
    #[error("operation not supported")]
    Unsupported,
    #[error("read-only tree")]
    ReadOnly,
    /// The head was switched under the caller's handle.
    #[error("this handle belongs to a head that a rollback has replaced")]
    Stale,

    // --- Snapshots and heads.
    #[error("there is no snapshot of height {height}{}", nearest_hint(.nearest))]
    NoSuchHeight { height: Height, nearest: Option<Height> },
    #[error("there is no snapshot at or below height {height}{}", oldest_hint(.oldest))]
    NothingBelow { height: Height, oldest: Option<Height> },
    #[error("there is no snapshot yet; take one with `tmfs snapshot HEIGHT`")]
    NoSnapshots,
    #[error("there is no snapshot at or before {time}")]
    NoSnapshotAt { time: jiff::Timestamp },
    #[error(
        "a snapshot of height {height} exists and the data has changed since; delete it first or use a newer height"
    )]
    HeightExists { height: Height },
    #[error(
        "height {height} is not above the newest snapshot, {newest}; roll back first if the chain went back"
    )]
    HeightNotNewer { height: Height, newest: Height },
    #[error("the snapshot of height {height} is held; release it first with `tmfs release {height}`")]
    Held { height: Height },
    #[error("there is no rollback to undo")]
    NothingToUndo,
    #[error("{path}: no such file in the live head; nothing was changed", path = .path.display())]
    PreserveMissing { path: PathBuf },
    #[error("{path}: cannot be carried over: {reason}; nothing was changed", path = .path.display())]
    PreserveImpossible { path: PathBuf, reason: &'static str },
    #[error("{path}: its backend is {kind}, which the ancestor had not; only btrfs and zfs can take its snapshots over", path = .path.display())]
    NothingToImport { path: PathBuf, kind: crate::backend::BackendKind },
    #[error("{path}: is a subvolume within the data dir, which no snapshot would contain; make it a plain directory, or move it elsewhere", path = .path.display())]
    NestedSubvolume { path: PathBuf },
    #[error("the snapshot's {field} is not valid: {expected}")]
    BadSnapshotOption { field: &'static str, expected: &'static str },

    // --- The store as a whole.
    #[error("{path}: not a tmfs data dir or store; `tmfs mount {path}` makes it one", path = .path.display())]
    NotAStore { path: PathBuf },
    #[error("{data_dir}: its store {store} is not there; name the place it is at now with --store", data_dir = .data_dir.display(), store = .store.display())]
    StoreMissing { data_dir: PathBuf, store: PathBuf },
    #[error("{store}: in use by another tmfs process{}; unmount it first", pid_hint(.pid), store = .store.display())]
    Locked { store: PathBuf, pid: Option<u32> },
    #[error("{store}: written by a newer tmfs (format {found}, this one knows up to {known}); use that version", store = .store.display())]
    NewerFormat { store: PathBuf, found: u32, known: u32 },
    #[error("{store}: kept by the backend {found}, not {wanted}; leave --backend out, or eject first and mount anew", store = .store.display())]
    OtherBackend { store: PathBuf, found: BackendKind, wanted: BackendKind },
    /// Whoever owns the store's directory can change what is in it.
    #[error("{store}: belongs to user {owner}, and only he can use it; `chown -R` hands a store over", store = .store.display())]
    ForeignStore { store: PathBuf, owner: u32 },
    #[error("{path}: {reason}; nothing was changed", path = .path.display())]
    CannotAdopt { path: PathBuf, reason: String },
    #[error("{path}: {reason}", path = .path.display())]
    CannotEject { path: PathBuf, reason: String },
    /// Bytes on the disk that cannot be.
    #[error("damaged store: {what} ({detail}); run `tmfs verify`, and copy out what can be read")]
    Damaged { what: &'static str, detail: String },
    #[error("damaged data: inode {ino}, epoch {epoch}: {detail}")]
    DamagedLayer { ino: Ino, epoch: EpochId, detail: String },
    /// An earlier write or sync failed: what was acknowledged can no longer be promised.
    #[error(
        "the store refuses changes after an earlier failure ({first}); unmount, check the disk, and mount again"
    )]
    PreviousFailure { first: String },
    #[error("the store has been closed")]
    Closed,

    // --- The world below.
    #[error("{op} {path}: {source}", path = .path.display())]
    Io { op: &'static str, path: PathBuf, source: io::Error },
    /// A program that was run for a backend.
    #[error("`{command}`: {reason}")]
    Command { command: String, reason: String },
    #[error("metadata: {0}")]
    Metadata(String, Option<i32>),
}

impl Error {
    /// An [`Error::Io`] for an operation on a path.
    pub fn io(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { op, path, source }
    }
}

fn nearest_hint(nearest: &Option<Height>) -> String {
    nearest
        .map_or_else(|| "; `tmfs list` shows what there is".into(), |n| format!("; the nearest below is {n}"))
}

fn oldest_hint(oldest: &Option<Height>) -> String {
    oldest.map_or_else(String::new, |n| format!("; the oldest is {n}"))
}

fn pid_hint(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |p| format!(" (process {p})"))
}
