//! Control: what can be asked of a store, whether it is mounted or not.
//!
//! A [`Request`] is one verb with its arguments, a [`Reply`] its answer. They travel as one JSON object a line over
//! the socket `store/control.sock` ([`server`], [`client`], their lines in [`wire`]), or are answered in the same
//! process when nothing is mounted ([`offline`]). What both answer alike stands once, in [`verbs`]. The mounted file
//! system implements [`Verbs`] with what only it can do: flushing the kernel's dirty pages before a cut, and making
//! the kernel forget after a switch.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::backend::{DeleteReport, HeightQuery, SnapshotInfo, SnapshotOptions, SwitchReport, Usage};
use crate::diff::Change;
use crate::error::Error;
use crate::preserve::Pattern;
use crate::retention::Policy;
use crate::types::Height;
use crate::verify::{Activity, ScrubResult, VerifyReport};

use prune::PruneReport;

pub mod client;
pub mod following;
pub mod hooks;
pub mod offline;
pub mod prune;
pub mod server;
mod sys;
pub mod verbs;
pub mod wire;
pub mod wire_path;

/// The protocol's version, sent with every line. A peer of another version is refused by both sides.
pub const PROTOCOL: u32 = 1;

/// The name of the socket inside the store.
pub const SOCKET_NAME: &str = "control.sock";

/// The extended attribute of a mounted root that tells where the control socket is. It answers when asked by name and
/// is never listed. The value goes through `/proc/PID/fd/N`, since the store may lie beneath the mount.
pub const CONTROL_XATTR: &str = "user.tmfs.control";

/// One side of a diff.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The live head.
    Live,
    /// A snapshot.
    Height(Height),
}

/// Which snapshots a deletion means.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// Exactly these; one that does not exist fails the call.
    Heights(Vec<Height>),
    /// Every snapshot from the first to the second, both included; held ones fail the call.
    Range(Height, Height),
    /// Every snapshot that is not held.
    All,
    /// The heads that rollbacks left, with their snapshots.
    Abandoned,
}

/// A verb and its arguments.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
#[allow(missing_docs)] // Named and documented as on the command line.
pub enum Request {
    Status,
    Snapshot {
        height: Height,
        #[serde(flatten)]
        options: SnapshotOptions,
        /// Answer only when the snapshot is durable.
        wait: bool,
    },
    List,
    Show {
        height: Height,
    },
    Rollback {
        to: HeightQuery,
        #[serde(with = "wire_path::list")]
        preserve: Vec<PathBuf>,
        /// Leave out what is configured to be preserved at every rollback.
        #[serde(default)]
        only: bool,
        force: bool,
        dry_run: bool,
    },
    UndoRollback {
        #[serde(default)]
        only: bool,
        force: bool,
        dry_run: bool,
    },
    Delete {
        selection: Selection,
        dry_run: bool,
    },
    /// Delete what a retention policy does not keep: this one, or the mount's own.
    Prune {
        #[serde(default)]
        policy: Option<Policy>,
        dry_run: bool,
    },
    Hold {
        height: Height,
    },
    Release {
        height: Height,
    },
    Diff {
        a: Side,
        b: Side,
        /// Only below this path, relative to the data dir.
        #[serde(with = "wire_path::option", default)]
        path: Option<PathBuf>,
    },
    /// Read everything back, or what one height shows.
    Verify {
        height: Option<Height>,
    },
    /// Wait until the background work that is due is done.
    Settle,
    /// Unmount: flush, detach, close. Answered when everything is durable and the mount is gone.
    Unmount,
}

/// The answer to a [`Request`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", content = "data", rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Reply {
    Status(Box<Status>),
    Snapshot(SnapshotInfo),
    List(Vec<SnapshotInfo>),
    Switched(SwitchReport),
    Deleted(DeleteReport),
    Pruned(PruneReport),
    Diff(Vec<Change>),
    Verified(VerifyReport),
    Done,
}

/// How long cuts held programs back, in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pauses {
    /// The newest.
    pub newest_us: u64,
    /// The longest since the mount.
    pub longest_us: u64,
}

/// What `tmfs status --json` shows. Field names are part of the command line's contract.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's process, or `None` when the store is not mounted.
    pub pid: Option<u32>,
    /// Where it is mounted, or would be.
    #[serde(with = "wire_path")]
    pub data_dir: PathBuf,
    /// Where everything is kept.
    #[serde(with = "wire_path")]
    pub store: PathBuf,
    /// What keeps the snapshots.
    pub backend: crate::backend::BackendKind,
    /// The version of tmfs that serves the mount.
    pub version: String,
    /// Since when it is mounted.
    pub mounted_since: Option<jiff::Timestamp>,
    /// The writable head that is live.
    pub head: String,
    /// How many snapshots there are.
    pub heights: u64,
    /// The oldest height.
    pub oldest_height: Option<Height>,
    /// The newest height.
    pub newest_height: Option<Height>,
    /// When the newest was taken.
    pub newest_time: Option<jiff::Timestamp>,
    /// Heights that are held.
    pub held: u64,
    /// Space and counts.
    #[serde(flatten)]
    pub usage: Usage,
    /// `writeback` or `through`, when mounted.
    pub cache: Option<String>,
    /// What follows the chain's height, if anything does.
    pub follower: Option<String>,
    /// The same in parts.
    #[serde(default)]
    pub following: Option<Box<following::Following>>,
    /// What every rollback carries over, as patterns.
    #[serde(default)]
    pub preserve: Vec<Pattern>,
    /// The retention policy in words, when mounted with one.
    #[serde(default)]
    pub retention: Option<String>,
    /// How long snapshots kept programs waiting; `None` before the first since the mount.
    #[serde(default)]
    pub pauses: Option<Pauses>,
    /// Open file handles, when mounted.
    pub open_files: u64,
    /// Of those, open for writing.
    pub open_for_writing: u64,
    /// FUSE requests answered since the mount, by kind.
    pub requests: std::collections::BTreeMap<String, u64>,
    /// Panics caught in request handlers (each one is a bug to report).
    pub panics: u64,
    /// Requests that are not answered yet and have taken longer than they should (30 seconds).
    #[serde(default)]
    pub overdue_requests: u64,
    /// Requests that ever took so long.
    #[serde(default)]
    pub slow_requests: u64,
    /// Resident memory of the daemon in bytes.
    pub memory_bytes: Option<u64>,
    /// What could not be set up at the mount, in words (for example without root).
    pub limits: Vec<String>,
    /// A verification that is going on.
    pub verifying: Option<Activity>,
    /// What the last scrub has found.
    pub scrub: Option<ScrubResult>,
    /// The latest error of the background work.
    pub last_error: Option<String>,
}

/// Why a request was not done, as it crosses the socket.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What a script tests: the program's exit status says the same.
    pub kind: FailureKind,
    /// One sentence for a person.
    pub message: String,
}

/// The kinds of failure, one for each exit status of the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Exit 1.
    Failed,
    /// Exit 2.
    Usage,
    /// Exit 3.
    NoSuchHeight,
    /// Exit 4.
    NotAStore,
    /// Exit 5: open files, held, locked.
    Busy,
    /// Exit 6: damaged data found.
    Damaged,
}

impl FailureKind {
    /// The exit status of the command line.
    pub fn exit_status(self) -> u8 {
        match self {
            FailureKind::Failed => 1,
            FailureKind::Usage => 2,
            FailureKind::NoSuchHeight => 3,
            FailureKind::NotAStore => 4,
            FailureKind::Busy => 5,
            FailureKind::Damaged => 6,
        }
    }
}

impl FailureKind {
    /// The kind of an error of the store.
    pub fn of(error: &Error) -> FailureKind {
        match error {
            Error::NoSuchHeight { .. }
            | Error::NothingBelow { .. }
            | Error::NoSnapshots
            | Error::NoSnapshotAt { .. } => FailureKind::NoSuchHeight,
            Error::NotAStore { .. } => FailureKind::NotAStore,
            Error::Held { .. } | Error::Locked { .. } => FailureKind::Busy,
            Error::Damaged { .. } | Error::DamagedLayer { .. } => FailureKind::Damaged,
            Error::BadSnapshotOption { .. } => FailureKind::Usage,
            _ => FailureKind::Failed,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { kind: FailureKind::of(&error), message: error.to_string() }
    }
}

/// Whoever can answer a [`Request`]: the mounted file system, a store that is not mounted, a client of a socket.
pub trait Verbs: Send + Sync {
    /// Does what is asked and answers.
    fn call(&self, request: Request) -> Result<Reply, Failure>;
}
