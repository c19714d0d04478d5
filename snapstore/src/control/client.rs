//! The client of a mounted data dir: for the command line, and for a program that wants snapshots of its own data.
//!
//! A node knows best when its data is at a height. It asks in its commit hook:
//!
//! ```no_run
//! use snapstore::control::client::{Client, ClientError};
//!
//! struct Node {
//!     snapshots: Client,
//! }
//!
//! impl Node {
//!     fn new() -> Result<Node, ClientError> {
//!         Ok(Node { snapshots: Client::connect("/var/lib/node")? })
//!     }
//!
//!     fn committed(&self, height: u64) {
//!         if height % 100 == 0 {
//!             if let Err(error) = self.snapshots.snapshot(height) {
//!                 eprintln!("no snapshot of {height}: {error}");
//!             }
//!         }
//!     }
//! }
//! ```
//!
//! `examples/node.rs` of this crate shows more of it, beside the calls of the ancestor's library.
//!
//! A client keeps no connection: each call finds the daemon anew through the mount, so that a client outlives a daemon
//! that was stopped and started. It waits for as long as the daemon works; an error that comes after the request was
//! sent says that the outcome is not known ([`ClientError::Lost`]), and nothing is ever asked twice by itself.
//!
//! The mounted root tells where the socket is ([`CONTROL_XATTR`]). A file system of somebody else could tell a lie, so
//! the peer must be root or the user who asks, by the credentials the kernel gives of it.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Write};
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::prune::PruneReport;
use super::wire::{self, MAX_REQUEST, WireError};
use super::{CONTROL_XATTR, Failure, FailureKind, Reply, Request, Selection, Side, Status, Verbs, sys};
use crate::backend::{DeleteReport, HeightQuery, SnapshotInfo, SnapshotOptions, SwitchReport};
use crate::diff::Change;
use crate::retention::Policy;
use crate::types::Height;

#[cfg(test)]
mod tests;

/// Why a call was not answered, or what the daemon answered instead.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // Each message says what the variant means; fields are what the message names.
pub enum ClientError {
    #[error("{data_dir}: no tmfs is mounted there; mount it with `tmfs mount {data_dir}`", data_dir = .data_dir.display())]
    NotMounted { data_dir: PathBuf },
    #[error("{data_dir}: the tmfs daemon of this mount has died; recover with `tmfs mount {data_dir}`", data_dir = .data_dir.display())]
    Dead { data_dir: PathBuf },
    #[error("{path}: permission denied; only root and the owner of the mount may ask", path = .path.display())]
    Permission { path: PathBuf },
    /// Whoever listens where the mount says is neither root nor the user who asks.
    #[error("{socket}: served by user {uid}, who is neither root nor you; not asked", socket = .socket.display())]
    Untrusted { socket: PathBuf, uid: u32 },
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A reply that does not belong to the request.
    #[error("the daemon gave an answer that does not fit the request; is it another version of tmfs?")]
    Unexpected,
    #[error("the request is too long ({len} bytes; at most {MAX_REQUEST}); ask in parts")]
    TooLong { len: usize },
    #[error("{op} {path}: {source}", path = .path.display())]
    Io { op: &'static str, path: PathBuf, source: io::Error },
    /// The connection ended after the request was sent: it may have been done or not.
    #[error(
        "the tmfs daemon went away before it answered, and may or may not have done it; look with `tmfs status`"
    )]
    Lost,
    /// The daemon's own answer.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl ClientError {
    /// What kind of failure it is.
    pub fn kind(&self) -> FailureKind {
        match self {
            ClientError::Failed(failure) => failure.kind,
            ClientError::NotMounted { .. } => FailureKind::NotAStore,
            ClientError::Wire(_) | ClientError::TooLong { .. } => FailureKind::Usage,
            ClientError::Dead { .. }
            | ClientError::Permission { .. }
            | ClientError::Untrusted { .. }
            | ClientError::Unexpected
            | ClientError::Io { .. }
            | ClientError::Lost => FailureKind::Failed,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        match error {
            ClientError::Failed(failure) => failure,
            error => Failure { kind: error.kind(), message: error.to_string() },
        }
    }
}

/// Asks the daemon of a mounted data dir. Cheap to make and to keep; may be used from many threads at once.
#[derive(Clone, Debug)]
pub struct Client {
    data_dir: PathBuf,
}

/// What came of a height that was offered at an interval.
#[must_use = "a height may have been skipped"]
#[derive(Clone, PartialEq, Debug)]
pub enum Due {
    /// It was a multiple, and there is a snapshot of it.
    Taken(SnapshotInfo),
    /// There is none: it was no multiple.
    Skipped {
        /// The next height that is one.
        next: Height,
    },
}

/// A result of a call.
pub type Result<T, E = ClientError> = std::result::Result<T, E>;

impl Client {
    /// A client of the tmfs that is mounted at `data_dir`. Fails when there is none, when its daemon has died, and when
    /// it may not be asked.
    pub fn connect(data_dir: impl AsRef<Path>) -> Result<Client> {
        let client = Client { data_dir: data_dir.as_ref().to_owned() };
        client.stream()?;
        Ok(client)
    }

    /// The daemon's process.
    pub fn daemon_pid(&self) -> Result<u32> {
        let stream = self.stream()?;
        let peer =
            getsockopt(&stream, PeerCredentials).map_err(|error| self.io("ask the peer of")(error.into()))?;
        Ok(peer.pid() as u32)
    }

    /// Takes a snapshot of this height and waits until it is durable.
    pub fn snapshot(&self, height: impl Into<Height>) -> Result<SnapshotInfo> {
        self.snapshot_with(height, SnapshotOptions::default(), true)
    }

    /// Takes a snapshot with a block's hash, labels or a hold. Returns when the cut is made: what is written from then
    /// on is not in it; waits until it is durable only when told to.
    pub fn snapshot_with(
        &self,
        height: impl Into<Height>,
        options: SnapshotOptions,
        wait: bool,
    ) -> Result<SnapshotInfo> {
        let height = height.into();
        match self.ask(&Request::Snapshot { height, options, wait })? {
            Reply::Snapshot(info) => Ok(info),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Takes a snapshot if the height is a multiple of the interval, and says if it is none: for a hook that is called at
    /// each block.
    pub fn snapshot_every(
        &self,
        interval: NonZeroU64,
        height: impl Into<Height>,
        options: SnapshotOptions,
        wait: bool,
    ) -> Result<Due> {
        let height = height.into();
        match height.0 % interval {
            0 => self.snapshot_with(height, options, wait).map(Due::Taken),
            over => {
                let next = Height(height.0.saturating_add(interval.get() - over));
                Ok(Due::Skipped { next })
            }
        }
    }

    /// Rolls back to a height: without one to the newest, not `strict` to the nearest at or below. Refused while a file
    /// is open for writing: the program that asks must have closed its own.
    pub fn rollback(&self, height: Option<Height>, strict: bool) -> Result<SwitchReport> {
        let to = match height {
            None => HeightQuery::Newest,
            Some(height) if strict => HeightQuery::Exact(height),
            Some(height) => HeightQuery::AtOrBelow(height),
        };
        self.switched(&Request::Rollback {
            to,
            preserve: Vec::new(),
            only: false,
            force: false,
            dry_run: false,
        })
    }

    /// Takes the latest rollback back.
    pub fn undo_rollback(&self) -> Result<SwitchReport> {
        self.switched(&Request::UndoRollback { only: false, force: false, dry_run: false })
    }

    fn switched(&self, request: &Request) -> Result<SwitchReport> {
        match self.ask(request)? {
            Reply::Switched(report) => Ok(report),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// All snapshots, ascending.
    pub fn list(&self) -> Result<Vec<SnapshotInfo>> {
        match self.ask(&Request::List)? {
            Reply::List(list) => Ok(list),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// The heights of all snapshots, ascending.
    pub fn heights(&self) -> Result<Vec<Height>> {
        Ok(self.list()?.into_iter().map(|snapshot| snapshot.height).collect())
    }

    /// One snapshot.
    pub fn show(&self, height: impl Into<Height>) -> Result<SnapshotInfo> {
        self.one(&Request::Show { height: height.into() })
    }

    /// Protects a snapshot from deletion.
    pub fn hold(&self, height: impl Into<Height>) -> Result<SnapshotInfo> {
        self.one(&Request::Hold { height: height.into() })
    }

    /// Ends a snapshot's protection.
    pub fn release(&self, height: impl Into<Height>) -> Result<SnapshotInfo> {
        self.one(&Request::Release { height: height.into() })
    }

    fn one(&self, request: &Request) -> Result<SnapshotInfo> {
        match self.ask(request)? {
            Reply::Snapshot(info) => Ok(info),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Deletes snapshots; [`Selection::All`] is what the ancestor called `clean`.
    pub fn delete(&self, selection: Selection) -> Result<DeleteReport> {
        match self.ask(&Request::Delete { selection, dry_run: false })? {
            Reply::Deleted(report) => Ok(report),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Deletes what a policy does not keep: this one, or the mount's own; a dry run only tells.
    pub fn prune(&self, policy: Option<Policy>, dry_run: bool) -> Result<PruneReport> {
        match self.ask(&Request::Prune { policy, dry_run })? {
            Reply::Pruned(report) => Ok(report),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// What differs between two sides, at and below a path if one is given.
    pub fn diff(&self, a: Side, b: Side, path: Option<&Path>) -> Result<Vec<Change>> {
        match self.ask(&Request::Diff { a, b, path: path.map(Path::to_owned) })? {
            Reply::Diff(changes) => Ok(changes),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// What the daemon tells of itself and its store.
    pub fn status(&self) -> Result<Status> {
        match self.ask(&Request::Status)? {
            Reply::Status(status) => Ok(*status),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Waits until the background work that is due is done.
    pub fn settle(&self) -> Result<()> {
        self.done(&Request::Settle)
    }

    /// Unmounts; returns when everything is durable and the mount is gone.
    pub fn unmount(&self) -> Result<()> {
        self.done(&Request::Unmount)
    }

    fn done(&self, request: &Request) -> Result<()> {
        match self.ask(request)? {
            Reply::Done => Ok(()),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Sends any request and waits for its answer, however long that takes.
    pub fn ask(&self, request: &Request) -> Result<Reply> {
        let line = wire::request_line(request).map_err(self.io("encode a request for"))?;
        if line.len() > MAX_REQUEST {
            return Err(ClientError::TooLong { len: line.len() });
        }
        let stream = self.stream()?;
        // A server that hangs up early has said why: the answer counts, not the failure to send.
        let sent = (&stream).write_all(&line);
        let mut answer = Vec::new();
        let read = BufReader::new(&stream).read_until(b'\n', &mut answer);
        match (sent, read) {
            (_, Ok(_)) if answer.ends_with(b"\n") => Ok(wire::read_answer(&answer)??),
            (Err(error), _) => Err(self.io("ask the daemon of")(error)),
            (Ok(()), _) => Err(ClientError::Lost),
        }
    }

    /// A new connection to the daemon.
    fn stream(&self) -> Result<UnixStream> {
        let socket = self.socket()?;
        let stream = connect(&socket).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Permission { path: socket.clone() },
            _ => ClientError::Io { op: "connect to", path: socket.clone(), source: error },
        })?;
        let peer =
            getsockopt(&stream, PeerCredentials).map_err(|error| self.io("ask the peer of")(error.into()))?;
        if peer.uid() != 0 && peer.uid() != nix::unistd::geteuid().as_raw() {
            return Err(ClientError::Untrusted { socket, uid: peer.uid() });
        }
        Ok(stream)
    }

    /// Where the mounted root says its socket is.
    fn socket(&self) -> Result<PathBuf> {
        let name = std::ffi::CString::new(CONTROL_XATTR).expect("a constant without NUL");
        let data_dir = || self.data_dir.clone();
        match sys::get_xattr(&self.data_dir, &name) {
            Ok(value) => Ok(PathBuf::from(std::ffi::OsString::from_vec(value))),
            Err(error) => Err(match error.raw_os_error() {
                Some(libc::ENODATA | libc::EOPNOTSUPP | libc::ERANGE) => {
                    ClientError::NotMounted { data_dir: data_dir() }
                }
                Some(libc::ENOTCONN | libc::ECONNABORTED) => ClientError::Dead { data_dir: data_dir() },
                Some(libc::EACCES | libc::EPERM) => ClientError::Permission { path: data_dir() },
                _ => ClientError::Io { op: "look at", path: data_dir(), source: error },
            }),
        }
    }

    fn io(&self, op: &'static str) -> impl FnOnce(io::Error) -> ClientError {
        let path = self.data_dir.clone();
        move |source| ClientError::Io { op, path, source }
    }
}

impl Verbs for Client {
    fn call(&self, request: Request) -> Result<Reply, Failure> {
        Ok(self.ask(&request)?)
    }
}

/// Connects to a socket by its path, of any length.
fn connect(path: &Path) -> io::Result<UnixStream> {
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            // Longer than an address holds: through a descriptor of the directory it is short.
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Err(error) };
            let dir =
                OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir)?;
            UnixStream::connect(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name))
        }
        connected => connected,
    }
}
