//! The barrier before a cut: everything that programs have written is in the daemon when it returns.
//!
//! With writeback cache, and with shared writable mappings in any mode, finished writes sit in the kernel's pages.
//! `syncfs` does not push them on a FUSE mount, so each inode that is open for writing is flushed by itself; no other
//! inode can have dirty pages, since the kernel writes them back when a file is closed.
//!
//! An inode is flushed by a thread of ours that opens it *through the mount* and syncs it. To reach any inode that
//! way, also one whose name is gone or lies in a directory we may not enter, there is `@ino/<number>`, which is there
//! for these threads only: [`Flusher`] notes their numbers. Two steps: `sync_file_range` writes the bulk without
//! keeping writers out; then `fsync`, which does keep them out but finds little left, sends what came meanwhile and
//! the file's times. The `fsync` request that reaches us on such a handle is answered at once: it is the kernel that
//! was to be flushed, not the disk.
//!
//! A thread that waits for an answer of our own mount cannot be interrupted, not even by SIGKILL. If the daemon is
//! killed then, nobody answers any more, and what ends the wait is the end of the connection, which comes when nobody
//! has `/dev/fuse` open. So these threads have descriptors of their own, without that one: it goes with the others, who
//! do die at once. Otherwise a killed daemon would hang for ever, and with it every program on the mount.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use snapstore::control::Failure;

use crate::handles::Writer;
use crate::mounted::{Mounted, failed};
use crate::node::NodeId;
use crate::sys;
use crate::tree::MountTree;

/// What of an inode is flushed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// What was written, and the file's times.
    All,
    /// What was written. That needs no lock of the inode, which a change of its name or size holds as long as it has to
    /// wait (see [`crate::order`]).
    Pages,
}

/// How many inodes are flushed at once. Each needs a worker or two to take its pages.
const PARALLEL: usize = 4;

/// For so many milliseconds a file that is not there may turn out to be one that was just removed.
const GOING: u32 = 100;

/// Lets the current thread reach live inodes by number, as long as it exists.
pub(crate) struct Flusher<'t> {
    tree: &'t MountTree,
    thread: u32,
}

impl<'t> Flusher<'t> {
    pub(crate) fn new(tree: &'t MountTree) -> Flusher<'t> {
        let thread = nix::unistd::gettid().as_raw() as u32;
        tree.flushers.lock().insert(thread);
        Flusher { tree, thread }
    }
}

impl Drop for Flusher<'_> {
    fn drop(&mut self) {
        self.tree.flushers.lock().remove(&self.thread);
    }
}

impl Mounted {
    /// Has the kernel write back every inode that is open for writing. Never on a thread that answers requests.
    pub(crate) fn flush_writers(&self, what: Flush) -> Result<(), Failure> {
        let mut writers = self.tree.handles.writers(self.tree.live_tag());
        // What the kernel writes by itself has no pages here.
        writers.retain(|writer| !self.ways.is_direct(writer.id));
        let (closed, failures) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        self.through_mount(&writers, |writer| match self.flush_inode(writer.id, what) {
            Ok(true) => {}
            Ok(false) => closed.lock().push(*writer),
            Err(error) => failures.lock().push((*writer, error)),
        });
        // Telling the kernel something takes the connection, which those threads do not have.
        for_each(&writers, |writer| self.drop_path_of(writer.id));
        for_each(&closed.into_inner(), |writer| {
            if let Err(error) = self.write_back(writer.id) {
                failures.lock().push((*writer, error));
            }
        });
        match failures.into_inner().first() {
            None => Ok(()),
            Some((writer, error)) => Err(failed(format!(
                "{}: what was written could not be flushed: {error}",
                self.describe(writer)
            ))),
        }
    }

    /// Does something with each of `items` that uses the mount: on a few threads that may reach inodes by number, and
    /// have no part in the connection: they cannot tell the kernel anything either.
    pub(crate) fn through_mount<T: Sync>(&self, items: &[T], work: impl Fn(&T) + Sync) {
        let enter = || {
            if let Err(error) = sys::leave_fuse() {
                tracing::warn!(%error, "a thread that uses the mount keeps the connection open");
            }
            Flusher::new(&self.tree)
        };
        spread(items, enter, work);
    }

    /// Whether it could be done this way: false for what may not be opened.
    fn flush_inode(&self, id: NodeId, what: Flush) -> io::Result<bool> {
        let together = self.by_number.read();
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(self.path_of(id));
        drop(together);
        match opened {
            Ok(file) => match flush_file(&file, what) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && self.is_going(id) => Ok(true),
                flushed => flushed.map(|()| true),
            },
            // Closed for good since we listed it, so the kernel has flushed it.
            Err(_) if !self.tree.handles.is_writer(id) => Ok(true),
            // Without root, a file that its owner may not read; or one that somebody holds a lease on.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::WouldBlock) =>
            {
                Ok(false)
            }
            // It has just lost its last name, so it is in no snapshot; some file systems below find it no more.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.is_going(id) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Whether an inode has no name any more, or is closed: whoever removes it says so a moment after it is gone.
    fn is_going(&self, id: NodeId) -> bool {
        (0..GOING).any(|_| {
            thread::sleep(Duration::from_millis(1));
            self.tree.lookups.is_nameless(id) || !self.tree.handles.is_writer(id)
        })
    }

    /// The slow way: dropping cached pages writes them back first.
    fn write_back(&self, id: NodeId) -> io::Result<()> {
        match self.kernel() {
            Some(kernel) => kernel.forget_content(id),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// A file that is open for writing, in words: by what `/proc` knows, else by number.
    pub(crate) fn describe(&self, writer: &Writer) -> String {
        let process = std::fs::read_to_string(format!("/proc/{}/comm", writer.opened_by));
        let process = process.map(|name| format!(" {}", name.trim())).unwrap_or_default();
        format!(
            "the file with inode number {} (opened by process {}{process})",
            writer.id.0, writer.opened_by
        )
    }
}

fn flush_file(file: &File, what: Flush) -> io::Result<()> {
    sys::write_and_wait(file)?;
    match what {
        Flush::All => file.sync_all(),
        Flush::Pages => Ok(()),
    }
}

/// Does something with each of `items`, on a few threads.
pub(crate) fn for_each<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    spread(items, || (), work);
}

/// The same on threads of which each calls `enter` first, and keeps what that returns.
fn spread<T: Sync, G>(items: &[T], enter: impl Fn() -> G + Sync, work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let worker = || {
        let _entered = enter();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item);
        }
    };
    thread::scope(|scope| {
        for _ in 0..items.len().min(PARALLEL) {
            scope.spawn(worker);
        }
    });
}
