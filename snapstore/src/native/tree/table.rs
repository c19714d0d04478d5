//! How inodes are reached: by number, though the system has no call for that.
//!
//! A [`Table`] knows of each inode that it has told anybody of how to get an `O_PATH` descriptor for it:
//!
//! * by a **file handle**, where the file system below has them and this process may use them: then descriptors are
//!   only kept as long as they are in use, and a bounded number of them longer;
//! * else by a **descriptor** that is kept;
//! * by the **place** where a listing saw it (directory and name), until somebody goes there. The inode found must be
//!   the one that was seen.
//!
//! An inode without a name is kept by a descriptor in any case: without, the file system would free it, and might
//! give its number to another while the kernel still knows it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{OsStr, OsString};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use lru::LruCache;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::Mode;
use parking_lot::{Mutex, RwLock};

use super::errors::failed;
use super::file::OpenFile;
use super::numbers::{Id, Numbers};
use crate::error::{Error, Result};
use crate::sys::{FileHandle, Stat, proc_path, stat_at};
use crate::types::{Attr, FileKind, Ino};

/// So many descriptors are kept of inodes that a file handle leads to.
const RECENT: usize = 8192;

/// The inode number of the directories that Btrfs shows in place of subvolumes that a snapshot does not have.
const STUB: u64 = 2;

/// `openat` that gives a descriptor of whatever is there, symlinks included.
const PATH: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// A descriptor with which nothing can be done but name an inode.
pub(crate) type PathFd = Arc<OwnedFd>;

/// The inodes of one tree.
pub(crate) struct Table {
    /// `None` once the tree was let go.
    root: RwLock<Option<PathFd>>,
    handles: bool,
    numbers: Mutex<Numbers>,
    nodes: Mutex<HashMap<Ino, Arc<Node>>>,
    recent: Mutex<LruCache<Ino, PathFd>>,
    /// The directories in which other file systems are mounted that belong to the tree, by their root directories.
    mounted_in: Mutex<HashMap<Ino, Ino>>,
    /// A directory of each device, open for reading: what handles are opened with.
    anchors: Mutex<HashMap<u64, PathFd>>,
}

/// What is known of an inode.
pub(crate) struct Node {
    reach: Mutex<Reach>,
    /// The one open descriptor that all who have the file open share.
    pub open: Mutex<Weak<OpenFile>>,
    /// Held while times are changed, and by who keeps times while content changes.
    pub times: Mutex<()>,
}

enum Reach {
    Handle { device: u64, handle: FileHandle },
    Held(PathFd),
    Place { dir: Ino, name: OsString, id: Id },
}

impl Table {
    /// The inodes below a directory.
    pub(crate) fn new(root: BorrowedFd<'_>) -> Result<Table> {
        let directory = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root: PathFd =
            Arc::new(openat(root, ".", directory, Mode::empty()).map_err(failed("open", Ino::ROOT))?);
        let stat = stat_at(root.as_fd(), OsStr::new("")).map_err(failed("stat", Ino::ROOT))?;
        let handles = FileHandle::of(root.as_fd()).and_then(|handle| handle.open(root.as_fd(), libc::O_PATH));
        let most = NonZeroUsize::new(RECENT).unwrap_or(NonZeroUsize::MIN);
        Ok(Table {
            handles: handles.is_ok(),
            numbers: Mutex::new(Numbers::new(stat.id)),
            nodes: Mutex::default(),
            recent: Mutex::new(LruCache::new(most)),
            mounted_in: Mutex::default(),
            anchors: Mutex::new(HashMap::from([(stat.id.0, root.clone())])),
            root: RwLock::new(Some(root)),
        })
    }

    /// The root directory, open for reading.
    pub(crate) fn root(&self) -> Result<PathFd> {
        self.root.read().clone().ok_or(Error::Stale)
    }

    /// Lets go of everything below: no descriptor is left open. What is asked for afterwards fails.
    pub(crate) fn let_go(&self) {
        *self.root.write() = None;
        self.recent.lock().clear();
        self.anchors.lock().clear();
        // A file that ends here may be forgotten by it, which takes the lock.
        let nodes = std::mem::take(&mut *self.nodes.lock());
        for node in nodes.into_values() {
            if let Some(file) = node.open.lock().upgrade() {
                file.revoke();
            }
        }
    }

    /// A descriptor that names the inode.
    pub(crate) fn fd(&self, ino: Ino) -> Result<PathFd> {
        if ino == Ino::ROOT {
            return self.root();
        }
        if let Some(fd) = self.recent.lock().get(&ino) {
            return Ok(fd.clone());
        }
        let node = self.node(ino)?;
        let place = match &*node.reach.lock() {
            Reach::Held(fd) => return Ok(fd.clone()),
            Reach::Handle { device, handle } => {
                let anchor = self.anchors.lock().get(device).cloned().ok_or(Error::Stale)?;
                let flags = libc::O_PATH | libc::O_NOFOLLOW;
                let fd = Arc::new(handle.open(anchor.as_fd(), flags).map_err(failed("open", ino))?);
                self.recent.lock().put(ino, fd.clone());
                return Ok(fd);
            }
            Reach::Place { dir, name, id } => (*dir, name.clone(), *id),
        };
        let (dir, name, id) = place;
        let (fd, stat) = self.open_child(dir, &name)?;
        // Another may have taken the name since it was listed.
        if stat.id != id {
            return Err(Error::NoEntry);
        }
        if id.1 != STUB {
            self.settle(ino, &node, &fd, &stat);
        }
        Ok(fd)
    }

    /// What is known of an inode. [`Error::NoEntry`] when nobody was told of it.
    pub(crate) fn node(&self, ino: Ino) -> Result<Arc<Node>> {
        if ino == Ino::ROOT {
            let mut nodes = self.nodes.lock();
            let root = self.root()?;
            return Ok(nodes.entry(ino).or_insert_with(|| Arc::new(Node::new(Reach::Held(root)))).clone());
        }
        self.nodes.lock().get(&ino).cloned().ok_or(Error::NoEntry)
    }

    /// Finds a name in a directory.
    pub(crate) fn child(&self, dir: Ino, name: &OsStr) -> Result<(PathFd, Attr)> {
        let (fd, stat) = self.open_child(dir, name)?;
        let ino = self.known(dir, name, &fd, &stat);
        Ok((fd, attr(ino, &stat)?))
    }

    /// The attributes of an inode.
    pub(crate) fn attr(&self, ino: Ino) -> Result<Attr> {
        let fd = self.fd(ino)?;
        self.attr_of(ino, fd.as_fd())
    }

    /// The attributes of an inode that is open.
    pub(crate) fn attr_of(&self, ino: Ino, fd: BorrowedFd<'_>) -> Result<Attr> {
        attr(ino, &stat_at(fd, OsStr::new("")).map_err(failed("stat", ino))?)
    }

    /// The directory above one.
    pub(crate) fn parent(&self, dir: Ino) -> Result<Ino> {
        if dir == Ino::ROOT {
            return Ok(Ino::ROOT);
        }
        let node = self.node(dir)?;
        if let Reach::Place { dir: above, .. } = &*node.reach.lock() {
            return Ok(*above);
        }
        let fd = self.fd(dir)?;
        // Where the live files lie beneath the mount that shows them, `..` of what is in their root leads to that mount,
        // and this process would ask itself.
        let how = OpenHow::new().flags(PATH | OFlag::O_DIRECTORY).resolve(ResolveFlag::RESOLVE_NO_XDEV);
        let above = match openat2(&*fd, "..", how) {
            Err(Errno::EXDEV) => return Ok(self.mounted_in.lock().get(&dir).copied().unwrap_or(Ino::ROOT)),
            above => Arc::new(above.map_err(failed("open", dir))?),
        };
        let stat = stat_at(above.as_fd(), OsStr::new("")).map_err(failed("stat", dir))?;
        let ino = self.numbers.lock().of(stat.id);
        if ino != Ino::ROOT {
            let node = self.nodes.lock().entry(ino).or_insert_with(|| Arc::new(Node::unreached())).clone();
            self.settle(ino, &node, &above, &stat);
        }
        Ok(ino)
    }

    /// An entry that a listing of `dir` has seen; its number.
    pub(crate) fn listed(&self, dir: Ino, name: &OsStr, id: Id, kind: FileKind) -> Ino {
        let ino = match kind == FileKind::Directory && id.1 == STUB {
            true => self.numbers.lock().of_stub(dir, name.to_owned()),
            false => self.numbers.lock().of(id),
        };
        if ino != Ino::ROOT {
            let place = || Node::new(Reach::Place { dir, name: name.to_owned(), id });
            let node = self.nodes.lock().entry(ino).or_insert_with(|| Arc::new(place())).clone();
            let mut reach = node.reach.lock();
            if let Reach::Place { .. } = &*reach {
                *reach = Reach::Place { dir, name: name.to_owned(), id };
            }
        }
        ino
    }

    /// The inode has lost its last name: it is kept by a descriptor until [`Table::forget`].
    pub(crate) fn pin(&self, ino: Ino, fd: PathFd) {
        if let Ok(node) = self.node(ino) {
            *node.reach.lock() = Reach::Held(fd);
        }
    }

    /// Nobody knows the inode any more.
    pub(crate) fn forget(&self, ino: Ino) {
        self.recent.lock().pop(&ino);
        self.nodes.lock().remove(&ino);
    }

    fn open_child(&self, dir: Ino, name: &OsStr) -> Result<(PathFd, Stat)> {
        let above = self.fd(dir)?;
        // One name, neither `..` nor with a slash in it: it cannot lead out of the directory.
        let fd = Arc::new(openat(&*above, name, PATH, Mode::empty()).map_err(failed("look up in", dir))?);
        let stat = stat_at(fd.as_fd(), OsStr::new("")).map_err(failed("stat", dir))?;
        Ok((fd, stat))
    }

    /// Notes an inode that was found by name; its number.
    fn known(&self, dir: Ino, name: &OsStr, fd: &PathFd, stat: &Stat) -> Ino {
        if stat.kind == Some(FileKind::Directory) && stat.id.1 == STUB {
            return self.listed(dir, name, stat.id, FileKind::Directory);
        }
        let ino = self.numbers.lock().of(stat.id);
        if ino == Ino::ROOT {
            return ino;
        }
        if stat.mount_root {
            self.mounted_in.lock().insert(ino, dir);
        }
        let node = self.nodes.lock().entry(ino).or_insert_with(|| Arc::new(Node::unreached())).clone();
        self.settle(ino, &node, fd, stat);
        ino
    }

    /// Notes how an inode is reached from now on.
    fn settle(&self, ino: Ino, node: &Node, fd: &PathFd, stat: &Stat) {
        let mut reach = node.reach.lock();
        if let Reach::Place { .. } = &*reach {
            *reach = match self.handle(fd, stat) {
                Some(handle) => Reach::Handle { device: stat.id.0, handle },
                None => Reach::Held(fd.clone()),
            };
        }
        if let Reach::Handle { .. } = &*reach {
            self.recent.lock().put(ino, fd.clone());
        }
    }

    /// The file handle of an inode, if it can be opened by it.
    fn handle(&self, fd: &PathFd, stat: &Stat) -> Option<FileHandle> {
        if !self.handles {
            return None;
        }
        let handle = FileHandle::of(fd.as_fd()).ok()?;
        let mut anchors = self.anchors.lock();
        if let Entry::Vacant(place) = anchors.entry(stat.id.0) {
            if stat.kind != Some(FileKind::Directory) {
                return None;
            }
            let anchor = reopen(fd.as_fd(), OFlag::O_RDONLY | OFlag::O_DIRECTORY).ok()?;
            handle.open(anchor.as_fd(), libc::O_PATH).ok()?;
            place.insert(Arc::new(anchor));
        }
        Some(handle)
    }
}

impl Node {
    fn new(reach: Reach) -> Node {
        Node { reach: Mutex::new(reach), open: Mutex::new(Weak::new()), times: Mutex::new(()) }
    }

    /// A node whose way is about to be noted.
    fn unreached() -> Node {
        Node::new(Reach::Place { dir: Ino::ROOT, name: OsString::new(), id: (0, 0) })
    }
}

/// Opens what an `O_PATH` descriptor names.
pub(crate) fn reopen(fd: BorrowedFd<'_>, flags: OFlag) -> io::Result<OwnedFd> {
    Ok(open(proc_path(fd.as_raw_fd()).as_str(), flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, Mode::empty())?)
}

fn attr(ino: Ino, stat: &Stat) -> Result<Attr> {
    Ok(Attr {
        ino,
        kind: stat.kind.ok_or(Error::Unsupported)?,
        mode: stat.mode,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.rdev,
        size: stat.size,
        blocks: stat.blocks,
        atime: stat.atime,
        mtime: stat.mtime,
        ctime: stat.ctime,
        btime: stat.btime.unwrap_or(stat.ctime),
    })
}
