//! A mounted file system, as the daemon holds it.
//!
//! It answers requests (through `adapter`) and commands ([`snapstore::control::Verbs`], in `verbs`). Commands that
//! change what snapshots there are, or which head is live, run one at a time; they wait for requests and therefore
//! never run on a thread that answers requests.
//!
//! However it is unmounted, by the verb, by `umount` or by the end of the connection, the same thing happens last:
//! the store is closed and marked clean, and [`Mounted::wait`] returns.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Once, OnceLock, Weak};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use jiff::Timestamp;
use parking_lot::{Condvar, Mutex, RwLock};
use snapstore::backend::{Backend, Gate, HeightQuery, Open, SnapshotInfo, SnapshotOptions};
use snapstore::control::hooks::Around;
use snapstore::control::{Failure, FailureKind};
use snapstore::preserve::Pattern;

use crate::adapter::{Backing, Requests};
use crate::errno::{Errno, Result};
use crate::flush::Flush;
use crate::inflight::InFlight;
use crate::kernel::Kernel;
use crate::mount::{Cache, MountOptions};
use crate::node::{NodeId, Virtual};
use crate::pauses::{Measured, Timed};
use crate::retain::Retaining;
use crate::tree::{Caller, MountTree, Node, TreeOptions, height_of};
use crate::trickle::Trickle;
use crate::ways::Ways;

/// So many barriers may see a change of names or sizes, before such changes are held back.
const FREE_ROUNDS: usize = 3;
/// So many barriers may fail to get a moment of rest even so.
const HELD_ROUNDS: usize = 6;
/// For how long a change of names or sizes waits at most in the first such round; twice as long in each further one.
const SHORTEST_HOLD: std::time::Duration = std::time::Duration::from_millis(10);

/// A mounted file system.
pub struct Mounted {
    pub(crate) tree: MountTree,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) options: MountOptions,
    pub(crate) requests: Requests,
    /// Of open files, if any go from the kernel straight to the file below.
    pub(crate) ways: Ways<Backing>,
    not_registered: Once,
    pub(crate) in_flight: InFlight,
    /// The watchdog's thread ends when this goes.
    watching: Mutex<Option<Sender<()>>>,
    pub(crate) retaining: Retaining,
    pub(crate) pauses: Measured,
    pub(crate) trickle: Trickle,
    /// Shared: a node is being reached by number; exclusive: the name that led to one is dropped. The kernel has a lock of
    /// its own for that, in which nobody can be killed: whoever waited there for a thread that waits for an answer would
    /// keep the connection of a killed daemon open. A leaf.
    pub(crate) by_number: RwLock<()>,
    around: OnceLock<Arc<dyn Around>>,
    pub(crate) preserve: OnceLock<Vec<Pattern>>,
    pub(crate) since: Timestamp,
    /// One verb at a time. Order: before the tree is entered; never taken on a thread that answers requests.
    pub(crate) verb: Mutex<()>,
    /// Gone when the connection has ended: it would keep the connection's device open.
    kernel: Mutex<Option<Arc<dyn Kernel>>>,
    limits: Mutex<Vec<String>>,
    /// Itself, for threads that go on when a verb is done.
    pub(crate) me: Weak<Mounted>,
    /// Threads that have the kernel drop what it still holds of heads that were left. They use the mount.
    pub(crate) forgetting: Mutex<Vec<JoinHandle<()>>>,
    /// They are to end.
    pub(crate) leaving: AtomicBool,
    end: Mutex<Option<Result<(), Failure>>>,
    ended: Condvar,
}

/// Calls what is to run after a cut when it goes.
struct After<'a> {
    around: &'a dyn Around,
    height: snapstore::Height,
    taken: bool,
}

impl Drop for After<'_> {
    fn drop(&mut self) {
        self.around.after(self.height, self.taken);
    }
}

/// Why there was no cut.
pub(crate) enum NotCut {
    /// What is to run before it failed, and without that there is to be none.
    GivenUp(Failure),
    /// The kernel could not write back what it keeps.
    Flush(Failure),
    /// The store refused or failed.
    Store(snapstore::Error),
}

impl From<NotCut> for Failure {
    fn from(refused: NotCut) -> Failure {
        match refused {
            NotCut::Flush(failure) | NotCut::GivenUp(failure) => failure,
            NotCut::Store(error) => error.into(),
        }
    }
}

impl Mounted {
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        options: MountOptions,
        workers: usize,
        me: Weak<Mounted>,
    ) -> Mounted {
        let tree = TreeOptions {
            show_heights: options.show_heights,
            control_path: options.control_path.clone(),
            writeback: options.cache == Cache::Writeback,
            owner_snapshots: options.owner_snapshots,
            workers,
        };
        Mounted {
            tree: MountTree::new(backend.clone(), tree),
            backend,
            options,
            requests: Requests::default(),
            ways: Ways::default(),
            not_registered: Once::new(),
            in_flight: InFlight::default(),
            watching: Mutex::new(None),
            retaining: Retaining::default(),
            pauses: Measured::default(),
            trickle: Trickle::default(),
            by_number: RwLock::default(),
            around: OnceLock::new(),
            preserve: OnceLock::new(),
            since: Timestamp::now(),
            verb: Mutex::new(()),
            kernel: Mutex::new(None),
            limits: Mutex::default(),
            me,
            forgetting: Mutex::default(),
            leaving: AtomicBool::new(false),
            end: Mutex::new(None),
            ended: Condvar::new(),
        }
    }

    /// Starts the watch over requests that take too long: until the connection has ended.
    pub(crate) fn start_watchdog(self: &Arc<Mounted>) -> std::io::Result<()> {
        let (hold, end) = mpsc::channel();
        let mounted = self.clone();
        let watch = move || mounted.in_flight.watch(mounted.options.slow_request, &end);
        thread::Builder::new().name("tmfs-watch".into()).spawn(watch)?;
        *self.watching.lock() = Some(hold);
        Ok(())
    }

    pub(crate) fn connect(&self, kernel: Box<dyn Kernel>) {
        *self.kernel.lock() = Some(Arc::from(kernel));
    }

    /// The kernel, while there is a connection.
    pub(crate) fn kernel(&self) -> Option<Arc<dyn Kernel>> {
        self.kernel.lock().clone()
    }

    /// What could not be set up at the mount, in words.
    pub fn limits(&self) -> Vec<String> {
        self.limits.lock().clone()
    }

    /// Notes what could not be set up, in words: in the log now, and in every status.
    pub fn add_limits(&self, limits: Vec<String>) {
        for limit in &limits {
            tracing::warn!("{limit}");
        }
        self.limits.lock().extend(limits);
    }

    /// How content gets from programs to the store, in a word.
    pub(crate) fn cache(&self) -> &'static str {
        match self.options.cache {
            _ if self.tree.passes_through() => "passthrough",
            Cache::Writeback => "writeback",
            Cache::Through => "through",
        }
    }

    /// The kernel does not take a file: that one goes through this process.
    pub(crate) fn not_registered(&self, error: &std::io::Error) {
        self.not_registered.call_once(|| {
            self.add_limits(vec![format!(
                "content of some files goes through tmfs: no passthrough: {error}"
            )]);
        });
    }

    /// The backend that the mount shows.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Waits until the file system is unmounted, whoever does it, and the store is closed.
    pub fn wait(&self) -> Result<(), Failure> {
        let mut end = self.end.lock();
        loop {
            if let Some(result) = &*end {
                return result.clone();
            }
            self.ended.wait(&mut end);
        }
    }

    /// As [`Mounted::wait`], for at most so long; `None`: it is still mounted.
    pub fn wait_for(&self, time: std::time::Duration) -> Option<Result<(), Failure>> {
        let mut end = self.end.lock();
        self.ended.wait_while_for(&mut end, |end| end.is_none(), time);
        end.clone()
    }

    /// The connection has ended: closes the store.
    pub(crate) fn finish(&self) {
        let _one = self.verb.lock();
        *self.kernel.lock() = None;
        self.retaining.end();
        self.trickle.end();
        *self.watching.lock() = None;
        self.tree.forget_nameless();
        // Releases that the end of the connection has swallowed: what is open keeps views in use below.
        self.tree.let_go();
        self.ways.clear();
        let result = self.backend.close().map_err(Failure::from);
        if let Err(failure) = &result {
            tracing::error!(%failure, "the store was not closed cleanly");
        }
        *self.end.lock() = Some(result);
        self.ended.notify_all();
    }

    /// Takes a snapshot. What was written before is in it; it is durable later ([`Backend::wait_durable`]).
    pub fn snapshot(
        &self,
        height: snapstore::Height,
        options: &SnapshotOptions,
    ) -> std::result::Result<SnapshotInfo, Failure> {
        let _one = self.verb.lock();
        Ok(self.cut(height, options)?)
    }

    /// Has something run around each cut from now on. Once only.
    pub fn run_around(&self, around: Arc<dyn Around>) {
        let first = self.around.set(around).is_ok();
        assert!(first, "a mount is set up once");
    }

    /// Has each rollback carry over what these stand for, from now on. Once only.
    pub fn preserve(&self, patterns: Vec<Pattern>) {
        let first = self.preserve.set(patterns).is_ok();
        assert!(first, "a mount is set up once");
    }

    /// What failed the last time around a cut, if anything did.
    pub(crate) fn hook_problem(&self) -> Option<String> {
        self.around.get()?.problem()
    }

    /// What runs around a cut, the barrier and the cut.
    fn cut(
        &self,
        height: snapstore::Height,
        options: &SnapshotOptions,
    ) -> std::result::Result<SnapshotInfo, NotCut> {
        let Some(around) = self.around.get() else { return self.flush_and_cut(height, options) };
        // Whatever comes of it, a panic too.
        let mut after = After { around: &**around, height, taken: false };
        let labels = around.before(height).map_err(NotCut::GivenUp)?;
        let mut options = options.clone();
        options.note(labels);
        let cut = self.flush_and_cut(height, &options);
        after.taken = cut.is_ok();
        cut
    }

    /// The barrier and the cut.
    fn flush_and_cut(
        &self,
        height: snapstore::Height,
        options: &SnapshotOptions,
    ) -> std::result::Result<SnapshotInfo, NotCut> {
        let cut = self.in_order("snapshot", Some(height), |gate, held| {
            self.backend.cut(height, options, &Timed { gate, held, measured: &self.pauses })
        });
        if cut.is_ok() {
            self.trickle.snapshot_taken();
        }
        // One that failed too: there may be no space for it.
        self.retaining.poke();
        cut
    }

    /// The barrier, then what it is for. Nothing that `attempt` finds as a change of names or sizes is there without
    /// what was written before it: see [`crate::order`]. `attempt` answers `None` if the gate was closed; it is told
    /// since when changes are held back, if they are.
    pub(crate) fn in_order<T>(
        &self,
        verb: &str,
        height: Option<snapstore::Height>,
        attempt: impl Fn(&dyn Gate, Option<Instant>) -> snapstore::Result<Option<T>>,
    ) -> std::result::Result<T, NotCut> {
        let order = &self.tree.order;
        if self.tree.passes_through() {
            // What a write has written is below when it returns, in order with all else. What may still be in the
            // kernel's pages here was stored in a mapping of one of the few files that do go through us.
            self.flush_writers(Flush::All).map_err(NotCut::Flush)?;
            return match attempt(&Open, None).map_err(NotCut::Store)? {
                Some(done) => Ok(done),
                None => unreachable!("this gate is always open"),
            };
        }
        for round in 0..FREE_ROUNDS + HELD_ROUNDS {
            let held = round.checked_sub(FREE_ROUNDS);
            let _held = held.map(|round| order.hold(SHORTEST_HOLD * (1 << round)));
            let since = held.map(|_| Instant::now());
            let gate = order.unchanged();
            // Held back, a change keeps its inode's lock: the times are those of the round before.
            let what = if held.is_none() { Flush::All } else { Flush::Pages };
            self.flush_writers(what).map_err(NotCut::Flush)?;
            if let Some(done) = attempt(&gate, since).map_err(NotCut::Store)? {
                return Ok(done);
            }
        }
        tracing::warn!(
            verb,
            height = height.map(tracing::field::display),
            "names change faster than written data can be flushed: what is kept may show a change of names without \
             unsynced data that was written shortly before it"
        );
        match attempt(&Open, None).map_err(NotCut::Store)? {
            Some(done) => Ok(done),
            None => unreachable!("this gate is always open"),
        }
    }

    /// `mkdir @height/NAME`.
    pub(crate) fn make_height(&self, name: &OsStr) -> Result<()> {
        let height = height_of(name).ok_or(Errno(libc::EINVAL))?;
        let _one = self.verb.lock();
        if self.backend.find(HeightQuery::Exact(height)).is_ok() {
            return Err(Errno(libc::EEXIST));
        }
        match self.cut(height, &SnapshotOptions::default()) {
            Ok(_) => Ok(()),
            Err(NotCut::Store(error)) => Err(error.into()),
            Err(NotCut::Flush(failure) | NotCut::GivenUp(failure)) => {
                tracing::error!(%height, %failure, "no snapshot was taken");
                Err(Errno(libc::EIO))
            }
        }
    }

    /// `rmdir @height/NAME`. Whoever owns the data may be let in to take snapshots, never to delete them.
    pub(crate) fn remove_height(&self, who: Caller, name: &OsStr) -> Result<()> {
        if who.uid != 0 && who.uid != nix::unistd::geteuid().as_raw() {
            return Err(Errno(libc::EACCES));
        }
        let height = height_of(name).ok_or(Errno(libc::EPERM))?;
        let _one = self.verb.lock();
        self.backend.delete(&[height], false)?;
        Ok(())
    }

    /// `fsync` of a directory: live, it makes names durable; in a view, it waits until the snapshot is.
    pub(crate) fn sync_directory(&self, fh: u64) -> Result<()> {
        let Some(id) = self.tree.directory(fh) else { return Err(Errno(libc::EBADF)) };
        let node = self.tree.enter().node(id)?;
        match node {
            Node::Live(_) => Ok(self.tree.head().sync_names()?),
            Node::Virtual(_) => Ok(()),
            Node::View(view, _) => {
                // A height that is gone, or stands for another epoch by now, has nothing left to wait for.
                match self.backend.find(HeightQuery::Exact(view.view.height)) {
                    Ok(found) if found.epoch == view.view.epoch => {
                        Ok(self.backend.wait_durable(view.view.epoch)?)
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// The path of a node by number, for threads that [`crate::flush::Flusher`] has let in.
    pub(crate) fn path_of(&self, id: NodeId) -> PathBuf {
        self.options.mountpoint.join(Virtual::Inodes.name()).join(id.0.to_string())
    }

    /// Has the kernel drop the name by which a node was reached by number. It would keep the node in memory, and so an
    /// unlinked file on the disk.
    pub(crate) fn drop_path_of(&self, id: NodeId) {
        let _alone = self.by_number.write();
        if let Some(kernel) = self.kernel()
            && let Err(error) = kernel.forget_name(Virtual::Inodes.id(), OsStr::new(&id.0.to_string()))
        {
            tracing::debug!(?id, %error, "the kernel keeps a name of @ino");
        }
    }

    /// Has the kernel drop the names of heights that are gone, or mean another epoch than when it asked for them.
    ///
    /// Whoever asks for one holds the lock of `@height` in the kernel until the name is in its cache; this waits for
    /// it. So no answer from before the change is kept after this. The verb lock must not be held: `mkdir` in `@height`
    /// waits for it with that lock held.
    pub(crate) fn drop_gone_heights(&self) {
        let Some(kernel) = self.kernel() else { return };
        let names = self.tree.views.names().into_iter();
        let known: Vec<_> =
            names.filter_map(|(epoch, name)| Some((height_of(&name)?, epoch, name))).collect();
        if known.is_empty() {
            return;
        }
        // Where that cannot be told the kernel asks for all of them again.
        let there = self.backend.snapshots(false).unwrap_or_default();
        let there: HashMap<_, _> = there.into_iter().map(|found| (found.height, found.epoch)).collect();
        for (height, epoch, name) in known {
            if there.get(&height) == Some(&epoch) {
                continue;
            }
            if let Err(error) = kernel.forget_name(Virtual::Heights.id(), &name) {
                tracing::debug!(%height, %error, "the kernel keeps the name of a height for a moment");
            }
        }
    }

    /// Has the kernel drop the root's attributes.
    pub(crate) fn drop_root(&self, kernel: &dyn Kernel) {
        if let Err(error) = kernel.forget_content(NodeId::ROOT) {
            tracing::warn!(%error, "the kernel keeps the old root's attributes");
        }
    }
}

/// A failure of the mount itself.
pub(crate) fn failed(message: impl Into<String>) -> Failure {
    Failure { kind: FailureKind::Failed, message: message.into() }
}

/// A failure for which somebody else must act first.
pub(crate) fn busy(message: impl Into<String>) -> Failure {
    Failure { kind: FailureKind::Busy, message: message.into() }
}
