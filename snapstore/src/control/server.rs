//! The control socket of a mounted daemon.
//!
//! A thread accepts, and each connection has a thread of its own that reads a line, has it answered, writes the
//! answer, and reads the next. What can come in is not to be trusted with more than its own connection:
//!
//! * Only root and the daemon's own user are answered, by the credentials the kernel gives of the peer; the socket's
//!   mode says the same, but a mode can be changed.
//! * A line is at most [`MAX_REQUEST`] bytes, there are at most [`MAX_CONNECTIONS`] connections, and a peer that
//!   sends nothing or reads nothing is dropped after a while. A request itself may take as long as it takes.
//! * A peer that goes away loses its answer, nothing else. A panic while answering is answered as a failure.
//!
//! The store may lie beneath the mount, where its path leads into the mount. So the socket is bound through a
//! descriptor of the store, which also makes the length of the store's path irrelevant.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{UnlinkatFlags, unlinkat};
use parking_lot::{Condvar, Mutex};

use super::wire::{self, MAX_REQUEST};
use super::{Failure, FailureKind, Reply, SOCKET_NAME, Verbs};

#[cfg(test)]
mod tests;

/// How many connections are served at a time.
pub const MAX_CONNECTIONS: usize = 32;

/// How long a server waits for its peers.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a request to arrive, from its first wait to its newline.
    pub request: Duration,
    /// For a peer to take the next part of an answer.
    pub answer: Duration,
    /// For running requests to end, when the server is dropped.
    pub shutdown: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        let secs = Duration::from_secs;
        Timeouts { request: secs(60), answer: secs(30), shutdown: secs(10) }
    }
}

/// Serves a control socket until it is dropped. Dropping waits for the answers that are under way.
pub struct Server {
    shared: Arc<Shared>,
    listener: Arc<UnixListener>,
    accepting: Option<JoinHandle<()>>,
    store: OwnedFd,
    /// The inode of the socket we bound: one that another daemon put there is not ours to remove.
    inode: u64,
}

/// What the threads of a server share.
struct Shared {
    verbs: Arc<dyn Verbs>,
    timeouts: Timeouts,
    connections: Mutex<Connections>,
    /// Told when a connection has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Connections {
    closing: bool,
    next: u64,
    open: HashMap<u64, Arc<UnixStream>>,
}

impl Server {
    /// Listens on `control.sock` in the store's directory and answers with `verbs`. A socket that is there already is
    /// replaced: the caller holds the store's lock, so nobody serves it.
    pub fn bind(store: impl AsFd, verbs: Arc<dyn Verbs>) -> io::Result<Server> {
        Server::bind_with(store, verbs, Timeouts::default())
    }

    /// As [`Server::bind`], waiting for peers as told.
    pub fn bind_with(store: impl AsFd, verbs: Arc<dyn Verbs>, timeouts: Timeouts) -> io::Result<Server> {
        let store = store.as_fd().try_clone_to_owned()?;
        let listener = Arc::new(listen(&store)?);
        let inode = inode_of_socket(&store)?;
        let connections = Mutex::default();
        let shared = Arc::new(Shared { verbs, timeouts, connections, ended: Condvar::new() });
        let accepting = thread::Builder::new().name("control".into()).spawn({
            let (shared, listener) = (shared.clone(), listener.clone());
            move || accept(&shared, &listener)
        })?;
        Ok(Server { shared, listener, accepting: Some(accepting), store, inode })
    }

    /// As [`Server::bind`], in the directory at this path.
    pub fn bind_at(store: &Path, verbs: Arc<dyn Verbs>) -> io::Result<Server> {
        Server::bind(std::fs::File::open(store)?, verbs)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.connections.lock().closing = true;
        // On Linux this wakes the thread that accepts, for good.
        let _ = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        // Peers that are only connected see the end at once; those that wait for an answer still get it.
        let deadline = Instant::now() + self.shared.timeouts.shutdown;
        let mut connections = self.shared.connections.lock();
        for stream in connections.open.values() {
            let _ = stream.shutdown(Shutdown::Read);
        }
        while !connections.open.is_empty() {
            if self.shared.ended.wait_until(&mut connections, deadline).timed_out() {
                tracing::warn!(connections = connections.open.len(), "control requests were cut off");
                break;
            }
        }
        drop(connections);
        if inode_of_socket(&self.store).is_ok_and(|inode| inode == self.inode) {
            let _ = unlinkat(&self.store, SOCKET_NAME, UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// A listening socket in the store, of mode 0600 from its first moment.
fn listen(store: &OwnedFd) -> io::Result<UnixListener> {
    match unlinkat(store, SOCKET_NAME, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::Error::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // Before it has a name: Linux gives the name the socket's own mode.
    fchmod(&socket, Mode::from_bits_truncate(0o600))?;
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(&path_of_socket(store))?)?;
    socket::listen(&socket, Backlog::new(MAX_CONNECTIONS as i32)?)?;
    Ok(UnixListener::from(socket))
}

/// The socket's path through the descriptor of its directory.
fn path_of_socket(store: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_NAME}", store.as_raw_fd()))
}

fn inode_of_socket(store: &OwnedFd) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path_of_socket(store)).map(|metadata| metadata.ino())
}

fn accept(shared: &Arc<Shared>, listener: &UnixListener) {
    loop {
        let accepted = listener.accept();
        if shared.connections.lock().closing {
            return;
        }
        match accepted {
            Ok((stream, _)) => shared.clone().take(stream),
            Err(error) => {
                // Out of descriptors or memory, most likely: it may pass.
                tracing::warn!(%error, "control socket: accepting failed");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

impl Shared {
    /// Serves a new connection on a thread of its own, or refuses it.
    fn take(self: Arc<Shared>, stream: UnixStream) {
        // Neither of these fails for a duration above zero.
        let _ = stream.set_write_timeout(Some(self.timeouts.answer));
        if let Err(failure) = may_ask(&stream) {
            refuse(&stream, failure);
            return;
        }
        let stream = Arc::new(stream);
        let id = {
            let mut connections = self.connections.lock();
            if connections.open.len() >= MAX_CONNECTIONS {
                drop(connections);
                let message = format!("tmfs is serving {MAX_CONNECTIONS} control connections; try again");
                refuse(&stream, Failure { kind: FailureKind::Busy, message });
                return;
            }
            connections.next += 1;
            let id = connections.next;
            connections.open.insert(id, stream.clone());
            id
        };
        let shared = self.clone();
        let serve = move || {
            let _ended = Ended { shared: &shared, id };
            if let Err(error) = shared.serve(&stream) {
                tracing::debug!(%error, "control connection ended");
            }
        };
        if let Err(error) = thread::Builder::new().name("control-peer".into()).spawn(serve) {
            tracing::warn!(%error, "control socket: no thread for a connection");
            self.end(id);
        }
    }

    /// Answers one line after the other, until the peer has no more or the server is dropped.
    fn serve(&self, stream: &UnixStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            let answer = match self.read_line(&mut reader, &mut line)? {
                Line::End => return Ok(()),
                Line::TooLong => {
                    let message = format!("the request is longer than {MAX_REQUEST} bytes");
                    refuse(stream, Failure { kind: FailureKind::Usage, message });
                    return Ok(());
                }
                Line::Whole => match wire::read_request(&line) {
                    Ok(request) => {
                        tracing::debug!(?request, "control request");
                        self.answer(request)
                    }
                    Err(error) => Err(error.into()),
                },
            };
            let mut stream = stream;
            stream.write_all(&wire::answer_line(answer)?)?;
        }
    }

    /// Has the request answered; a panic becomes a failure.
    fn answer(&self, request: super::Request) -> Result<Reply, Failure> {
        panic::catch_unwind(AssertUnwindSafe(|| self.verbs.call(request))).unwrap_or_else(|_| {
            tracing::error!("a control request panicked");
            let message = "tmfs failed inside (a bug; its log says where)".to_owned();
            Err(Failure { kind: FailureKind::Failed, message })
        })
    }

    /// Reads up to a newline, within the limits of length and time.
    fn read_line(&self, reader: &mut BufReader<&UnixStream>, line: &mut Vec<u8>) -> io::Result<Line> {
        line.clear();
        let deadline = Instant::now() + self.timeouts.request;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            reader.get_ref().set_read_timeout(Some(left))?;
            let piece = match reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                piece => piece?,
            };
            if piece.is_empty() {
                return Ok(Line::End); // What came without a newline is no request.
            }
            let newline = piece.iter().position(|byte| *byte == b'\n');
            let taken = newline.map_or(piece.len(), |at| at + 1);
            line.extend_from_slice(&piece[..taken]);
            reader.consume(taken);
            if line.len() > MAX_REQUEST {
                return Ok(Line::TooLong);
            }
            if newline.is_some() {
                return Ok(Line::Whole);
            }
        }
    }

    fn end(&self, id: u64) {
        self.connections.lock().open.remove(&id);
        self.ended.notify_all();
    }
}

/// What [`Shared::read_line`] read.
enum Line {
    Whole,
    End,
    TooLong,
}

/// Ends a connection when its thread ends, however it ends.
struct Ended<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.shared.end(self.id);
    }
}

/// Whether the peer is root or runs as the daemon's user.
fn may_ask(stream: &UnixStream) -> Result<(), Failure> {
    let peer = socket::getsockopt(stream, socket::sockopt::PeerCredentials);
    match peer {
        Ok(peer) if peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw() => Ok(()),
        _ => {
            let message = "only root and the owner of the mount may ask".to_owned();
            Err(Failure { kind: FailureKind::Failed, message })
        }
    }
}

/// Sends a failure to a peer whose requests are not read. The line is short and the first of its connection or the
/// answer to what was read, so this does not wait for the peer; what it has sent and we have not read does not keep
/// it from reading the line (unlike TCP).
fn refuse(mut stream: &UnixStream, failure: Failure) {
    if let Ok(line) = wire::answer_line(Err(failure)) {
        let _ = stream.write_all(&line);
    }
    let _ = stream.shutdown(Shutdown::Both);
}
