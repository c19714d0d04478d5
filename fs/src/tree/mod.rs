//! The tree that a mount shows, without a kernel: nodes in, answers out.
//!
//! Whoever wants something of the tree first [enters](MountTree::enter) it. That holds the live head still: a switch
//! of the head waits until every request inside has been answered, so that no answer drawn from the old head is given
//! after the kernel was told to forget it. Reading, writing and syncing an open file does not enter: these belong to
//! their handle's head, and must go on while a switch waits.
//!
//! Read-only by type: a node resolves to [`Node::Live`], [`Node::View`] or [`Node::Virtual`], and only the first leads
//! to a [`Head`]. Whatever changes something goes through [`Entered::live`], which answers EROFS for a view.
//!
//! | file | what is in it |
//! |---|---|
//! | `resolve` | look-ups, and forgetting them |
//! | `names` | making, linking, renaming and removing names |
//! | `attrs` | attributes, symlinks, extended attributes, space |
//! | `files` | open files |
//! | `dirs` | open directories |
//! | `virtuals` | `@height`, `@time` and `@ino` |

mod attrs;
mod dirs;
mod files;
mod names;
mod resolve;
mod virtuals;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use snapstore::backend::{Backend, Gate, Head};
use snapstore::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use snapstore::sync::{Mutex, RwLock, RwLockReadGuard};
use snapstore::{Attr, Ino, NAME_MAX, Timestamp};

pub use dirs::DirItem;
pub use files::Opened;
pub use names::Make;
pub use virtuals::{height_of, is_heights};

use crate::errno::{Errno, Result};
use crate::handles::Handles;
use crate::lookups::Lookups;
use crate::node::{NodeId, Tag, Virtual};
use crate::order::Order;
use crate::views::{ViewNode, Views};

/// How long the kernel may keep what only a request of its own, or a switch that tells it, can change.
pub const LONG: Duration = Duration::from_secs(24 * 3600);

/// How long it may keep the attributes of the virtual directories, which follow the live root's owner, and the name of
/// a height.
pub const SHORT: Duration = Duration::from_secs(1);

/// Who asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The asking thread's number, as the daemon's pid namespace sees it.
    pub pid: u32,
}

/// A node as it is told to the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its number.
    pub id: NodeId,
    /// Its attributes (their `ino` is untagged).
    pub attr: Attr,
    /// FUSE's generation: the serial of the live head, 0 elsewhere.
    pub generation: u64,
    /// How long the name may be kept.
    pub entry_ttl: Duration,
    /// How long the attributes may be kept.
    pub attr_ttl: Duration,
}

/// The answer to a look-up.
#[derive(Clone, Copy, Debug)]
pub enum Found {
    /// It is there.
    Entry(Entry),
    /// It is not there, and the kernel may remember that for so long.
    Nothing(Duration),
}

/// What the tree needs to know of the mount.
#[derive(Clone, Debug, Default)]
pub struct TreeOptions {
    /// Show `@height` and `@time` in the root's listing.
    pub show_heights: bool,
    /// The value of the extended attribute that tells where the control socket is.
    pub control_path: PathBuf,
    /// Whether the kernel caches writes.
    pub writeback: bool,
    /// Whether the owner of the data may take snapshots by `mkdir`.
    pub owner_snapshots: bool,
    /// How many threads answer requests.
    pub workers: usize,
}

/// The tree that a mount shows.
pub struct MountTree {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) handles: Handles,
    pub(crate) lookups: Lookups,
    pub(crate) views: Views,
    /// The threads that flush for barriers.
    pub(crate) flushers: Mutex<HashSet<u32>>,
    /// Keeps changes of names and sizes in order with what the kernel caches.
    pub(crate) order: Order,
    /// Whether the kernel caches writes: as was agreed with it.
    writeback: AtomicBool,
    /// Whether the kernel reads and writes files below by itself: as was agreed with it.
    passthrough: AtomicBool,
    options: TreeOptions,
    mounted: Timestamp,
    /// `live.serial`, to be read without entering.
    serial: AtomicU64,
    /// Order: before every lock of a backend; a handler takes it once. Written only by a switch.
    live: RwLock<Live>,
}

struct Live {
    head: Arc<dyn Head>,
    serial: u64,
    /// The tag of its nodes, the root excepted.
    tag: Tag,
}

/// The tree with its head held still.
pub struct Entered<'t> {
    pub(crate) tree: &'t MountTree,
    live: RwLockReadGuard<'t, Live>,
}

/// What a node number stands for.
pub enum Node {
    /// An inode of the live head.
    Live(Ino),
    /// An inode of a view.
    View(Arc<ViewNode>, Ino),
    /// A virtual directory.
    Virtual(Virtual),
}

impl MountTree {
    /// The tree of a backend.
    pub fn new(backend: Arc<dyn Backend>, options: TreeOptions) -> MountTree {
        let live = Live { head: backend.head(), serial: backend.head_serial(), tag: Tag::FIRST };
        MountTree {
            backend,
            handles: Handles::default(),
            lookups: Lookups::default(),
            views: Views::default(),
            flushers: Mutex::default(),
            order: Order::new(options.workers),
            writeback: AtomicBool::new(options.writeback),
            passthrough: AtomicBool::new(false),
            options,
            mounted: Timestamp::now(),
            serial: AtomicU64::new(live.serial),
            live: RwLock::new(live),
        }
    }

    /// Enters the tree to answer one request. Not to be nested.
    pub fn enter(&self) -> Entered<'_> {
        Entered { tree: self, live: self.live.read() }
    }

    /// The serial of the live head.
    pub fn serial(&self) -> u64 {
        self.serial.load(Ordering::Acquire)
    }

    /// Lets `switch` exchange the live head while nobody is in the tree, and takes over what it left live. Gives back
    /// the names that led from the root before and after, and what `switch` answered; `None` if `gate` did not let it
    /// pass. Whatever the gate holds back waits for the whole switch.
    pub fn switch<T>(
        &self,
        gate: &dyn Gate,
        switch: impl Fn() -> snapstore::Result<T>,
    ) -> snapstore::Result<Option<(Vec<DirName>, T)>> {
        let mut live = self.live.write();
        let mut names: Vec<DirName> = live.head.read_dir(Ino::ROOT)?.into_iter().map(|e| e.name).collect();
        let mut switched = None;
        gate.pass(&mut || switched = Some(switch()));
        let Some(answer) = switched.transpose()? else { return Ok(None) };
        let tag = self.views.tag_for_head();
        *live = Live { head: self.backend.head(), serial: self.backend.head_serial(), tag };
        self.serial.store(live.serial, Ordering::Release);
        // The switch is made: a listing that fails now must not look like a switch that failed.
        match live.head.read_dir(Ino::ROOT) {
            Ok(entries) => names.extend(entries.into_iter().map(|e| e.name)),
            Err(error) => tracing::error!(%error, "the new head's root cannot be listed"),
        }
        names.sort();
        names.dedup();
        Ok(Some((names, answer)))
    }

    /// The tag of the live head's nodes.
    pub(crate) fn live_tag(&self) -> Tag {
        self.live.read().tag
    }

    /// Whether the kernel keeps what is written, for a while.
    pub(crate) fn keeps_writes(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    /// The kernel does not cache writes after all.
    pub(crate) fn writes_go_through(&self) {
        self.writeback.store(false, Ordering::Relaxed);
    }

    /// The kernel reads and writes files below by itself.
    pub(crate) fn pass_through(&self) {
        self.passthrough.store(true, Ordering::Relaxed);
    }

    /// Whether the kernel reads and writes files below by itself.
    pub(crate) fn passes_through(&self) -> bool {
        self.passthrough.load(Ordering::Relaxed)
    }

    /// The live head, for work that is no request.
    pub fn head(&self) -> Arc<dyn Head> {
        self.live.read().head.clone()
    }

    /// The connection has ended: nothing is open any more, and no view is known.
    pub fn let_go(&self) {
        self.handles.clear();
        self.views.clear();
    }

    /// Removes what has no name and was only kept because the kernel knew it: at the end of a mount.
    pub fn forget_nameless(&self) {
        let tree = self.enter();
        for id in self.lookups.nameless() {
            if let Ok(Node::Live(ino)) = tree.node(id)
                && let Err(error) = tree.head().forget(ino)
            {
                tracing::debug!(%ino, %error, "a nameless file stays until the next mount");
            }
        }
    }
}

/// A name in a directory.
pub type DirName = std::ffi::OsString;

impl Entered<'_> {
    /// What a node number stands for. ESTALE: it is of a head that was left, or of a view the kernel has forgotten.
    pub fn node(&self, id: NodeId) -> Result<Node> {
        match id.tag() {
            _ if id == NodeId::ROOT => Ok(Node::Live(Ino::ROOT)),
            tag if tag == self.live.tag => Ok(Node::Live(id.ino())),
            Tag::VIRTUAL => Virtual::of(id).map(Node::Virtual).ok_or(Errno(libc::ESTALE)),
            tag => {
                let view = self.tree.views.get(tag).ok_or(Errno(libc::ESTALE))?;
                Ok(Node::View(view, id.ino()))
            }
        }
    }

    /// The inode of a node that is to be changed.
    pub fn live(&self, id: NodeId) -> Result<Ino> {
        match self.node(id)? {
            Node::Live(ino) => Ok(ino),
            Node::View(..) | Node::Virtual(Virtual::Times | Virtual::Inodes) => Err(Errno(libc::EROFS)),
            Node::Virtual(Virtual::Heights) => Err(Errno(libc::EPERM)),
        }
    }

    /// The node of an inode of the live head.
    pub fn live_node(&self, ino: Ino) -> NodeId {
        if ino == Ino::ROOT { NodeId::ROOT } else { self.live.tag.node(ino) }
    }

    /// The live head.
    pub fn head(&self) -> &Arc<dyn Head> {
        &self.live.head
    }

    /// The live head's serial.
    pub fn serial(&self) -> u64 {
        self.live.serial
    }

    /// The directory of the live head in which `name` is to be made or removed: the beginning of every change of
    /// names. Names of virtual directories are refused with `reserved`.
    fn parent(&self, parent: NodeId, name: &OsStr, reserved: i32) -> Result<Ino> {
        if name.len() > NAME_MAX {
            return Err(Errno(libc::ENAMETOOLONG));
        }
        let dir = self.live(parent)?;
        if dir == Ino::ROOT && Virtual::named(name).is_some() {
            return Err(Errno(reserved));
        }
        self.tree.order.change();
        Ok(dir)
    }
}
