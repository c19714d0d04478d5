//! A plain mirror: a FUSE file system that hands every request on to a directory, and does nothing else.
//!
//! It asks of the kernel what tmfs asks (write-back cache, cloned descriptors, long-lived entries, the same limits), so
//! what it costs is what FUSE costs. Extended attributes and ACLs are handed on too: a kernel that was told there are none
//! never asks again, and saves a request for each file that is written. What is left out is what no row asks for:
//! whiteouts, and owners other than the user who runs it.
//!
//! A node's number is handed out anew for each file, never the inode number of the file below, which is used again as
//! soon as a file is gone while the kernel may still know the old one under it.

mod requests;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirEntryExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use fuser::{FileAttr, FileHandle, FileType, INodeNo, MountOption, RenameFlags, TimeOrNow};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use parking_lot::RwLock;

const ROOT: u64 = 1;

/// Show a directory at another place, through FUSE
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The directory to show
    source: PathBuf,
    /// Where to mount
    mountpoint: PathBuf,
}

/// Mounts, and serves until it is unmounted.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let source = args.source.canonicalize().with_context(|| args.source.display().to_string())?;
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    let mut config = fuser::Config::default();
    config.mount_options = vec![
        MountOption::FSName("mirror".to_owned()),
        MountOption::Subtype("mirror".to_owned()),
        MountOption::DefaultPermissions,
    ];
    config.acl = fuser::SessionACL::All;
    config.n_threads = Some((2 * processors).clamp(8, 32));
    config.clone_fd = true;
    let session = fuser::Session::new(Mirror::new(source), &args.mountpoint, &config)
        .with_context(|| format!("cannot mount at {}", args.mountpoint.display()))?;
    session.run().context("serving the mirror")
}

/// A file or directory that the kernel knows.
struct Node {
    /// Its inode below.
    ino: u64,
    /// Each directory and name it was seen under; the last one is used.
    names: Vec<(u64, OsString)>,
    /// How many look-ups the kernel has not forgotten.
    lookups: u64,
}

#[derive(Default)]
struct Nodes {
    by_id: HashMap<u64, Node>,
    by_ino: HashMap<u64, u64>,
    last: u64,
}

impl Nodes {
    /// The node of what was found under a name, looked up once more.
    fn found(&mut self, parent: u64, name: &OsStr, meta: &Metadata) -> u64 {
        let last = &mut self.last;
        let id = *self.by_ino.entry(meta.ino()).or_insert_with(|| {
            *last += 1;
            *last
        });
        let new = || Node { ino: meta.ino(), names: Vec::new(), lookups: 0 };
        let node = self.by_id.entry(id).or_insert_with(new);
        node.lookups += 1;
        if !node.names.iter().any(|(dir, known)| *dir == parent && known == name) {
            node.names.push((parent, name.to_owned()));
        }
        id
    }

    /// A name is gone; with `last`, the file too.
    fn unlinked(&mut self, parent: u64, name: &OsStr, ino: u64, last: bool) {
        let Some(&id) = self.by_ino.get(&ino) else { return };
        if let Some(node) = self.by_id.get_mut(&id) {
            node.names.retain(|(dir, known)| !(*dir == parent && known == name));
        }
        if last {
            self.by_ino.remove(&ino);
        }
    }

    fn forget(&mut self, id: u64, lookups: u64) {
        let Some(node) = self.by_id.get_mut(&id) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        let ino = node.ino;
        if node.lookups == 0 {
            self.by_id.remove(&id);
            if self.by_ino.get(&ino) == Some(&id) {
                self.by_ino.remove(&ino);
            }
        }
    }
}

/// What is open, by the number the kernel was told.
struct Handles<T> {
    open: RwLock<(u64, HashMap<u64, Arc<T>>)>,
}

impl<T> Handles<T> {
    fn new() -> Handles<T> {
        Handles { open: RwLock::new((0, HashMap::new())) }
    }

    fn insert(&self, what: T) -> FileHandle {
        let mut open = self.open.write();
        open.0 += 1;
        let handle = open.0;
        open.1.insert(handle, Arc::new(what));
        FileHandle(handle)
    }

    fn get(&self, handle: FileHandle) -> io::Result<Arc<T>> {
        let found = self.open.read().1.get(&handle.0).cloned();
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    fn remove(&self, handle: FileHandle) {
        self.open.write().1.remove(&handle.0);
    }
}

struct Entry {
    name: OsString,
    kind: FileType,
    ino: u64,
}

struct Mirror {
    source: PathBuf,
    nodes: RwLock<Nodes>,
    files: Handles<File>,
    dirs: Handles<Vec<Entry>>,
}

impl Mirror {
    fn new(source: PathBuf) -> Mirror {
        let nodes = RwLock::new(Nodes { last: ROOT, ..Nodes::default() });
        Mirror { source, nodes, files: Handles::new(), dirs: Handles::new() }
    }

    /// Where a node is below.
    fn path(&self, id: INodeNo) -> io::Result<PathBuf> {
        let nodes = self.nodes.read();
        let (mut names, mut id) = (Vec::new(), id.0);
        while id != ROOT {
            let node = nodes.by_id.get(&id).and_then(|node| node.names.last());
            let (parent, name) = node.ok_or_else(|| io::Error::from_raw_os_error(libc::ESTALE))?;
            names.push(name);
            id = *parent;
        }
        let mut path = self.source.clone();
        path.extend(names.into_iter().rev());
        Ok(path)
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> io::Result<PathBuf> {
        Ok(self.path(parent)?.join(name))
    }

    fn found(&self, parent: INodeNo, name: &OsStr, meta: &Metadata) -> FileAttr {
        attr(self.nodes.write().found(parent.0, name, meta), meta)
    }

    /// Makes something, and looks at it.
    fn made(
        &self,
        parent: INodeNo,
        name: &OsStr,
        make: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<FileAttr> {
        let path = self.child(parent, name)?;
        make(&path)?;
        Ok(self.found(parent, name, &fs::symlink_metadata(path)?))
    }

    fn removed(
        &self,
        parent: INodeNo,
        name: &OsStr,
        remove: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<()> {
        let path = self.child(parent, name)?;
        let meta = fs::symlink_metadata(&path)?;
        remove(&path)?;
        self.nodes.write().unlinked(parent.0, name, meta.ino(), meta.is_dir() || meta.nlink() == 1);
        Ok(())
    }

    fn renamed(&self, from: (INodeNo, &OsStr), to: (INodeNo, &OsStr), flags: RenameFlags) -> io::Result<()> {
        if !flags.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let (old, new) = (self.child(from.0, from.1)?, self.child(to.0, to.1)?);
        let moved = fs::symlink_metadata(&old)?;
        let replaced = fs::symlink_metadata(&new).ok();
        if replaced.as_ref().is_some_and(|replaced| replaced.ino() == moved.ino()) {
            return Ok(());
        }
        fs::rename(&old, &new)?;
        let mut nodes = self.nodes.write();
        if let Some(replaced) = replaced {
            nodes.unlinked(to.0.0, to.1, replaced.ino(), replaced.is_dir() || replaced.nlink() == 1);
        }
        nodes.unlinked(from.0.0, from.1, moved.ino(), false);
        if let Some(id) = nodes.by_ino.get(&moved.ino()).copied()
            && let Some(node) = nodes.by_id.get_mut(&id)
        {
            node.names.push((to.0.0, to.1.to_owned()));
        }
        Ok(())
    }

    fn changed(&self, id: INodeNo, fh: Option<FileHandle>, set: &Change) -> io::Result<FileAttr> {
        let file = fh.map(|fh| self.files.get(fh)).transpose()?;
        // An open file is reached by its descriptor's path: it may have no other.
        let path = match &file {
            Some(file) => PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
            None => self.path(id)?,
        };
        if let Some(mode) = set.mode {
            fs::set_permissions(&path, Permissions::from_mode(mode & 0o7777))?;
        }
        if set.uid.is_some() || set.gid.is_some() {
            std::os::unix::fs::lchown(&path, set.uid, set.gid)?;
        }
        match (set.size, &file) {
            (Some(size), Some(file)) => file.set_len(size)?,
            (Some(size), None) => OpenOptions::new().write(true).open(&path)?.set_len(size)?,
            (None, _) => {}
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let follow =
                if file.is_some() { UtimensatFlags::FollowSymlink } else { UtimensatFlags::NoFollowSymlink };
            utimensat(nix::fcntl::AT_FDCWD, &path, &time(set.atime), &time(set.mtime), follow)?;
        }
        let meta = match &file {
            Some(file) => file.metadata()?,
            None => fs::symlink_metadata(&path)?,
        };
        Ok(attr(id.0, &meta))
    }

    fn listed(&self, dir: INodeNo) -> io::Result<Vec<Entry>> {
        let path = self.path(dir)?;
        let ino = fs::metadata(&path)?.ino();
        let mut entries: Vec<Entry> =
            [".", ".."].map(|name| Entry { name: name.into(), kind: FileType::Directory, ino }).into();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let kind = FileType::from_std(entry.file_type()?).unwrap_or(FileType::RegularFile);
            entries.push(Entry { name: entry.file_name(), kind, ino: entry.ino() });
        }
        Ok(entries)
    }
}

/// What `setattr` changes.
struct Change {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    atime: Option<TimeOrNow>,
    mtime: Option<TimeOrNow>,
}

fn time(time: Option<TimeOrNow>) -> TimeSpec {
    match time {
        None => TimeSpec::UTIME_OMIT,
        Some(TimeOrNow::Now) => TimeSpec::UTIME_NOW,
        Some(TimeOrNow::SpecificTime(time)) => {
            TimeSpec::from_duration(time.duration_since(UNIX_EPOCH).unwrap_or_default())
        }
    }
}

fn at(seconds: i64, nanoseconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::new(seconds.max(0) as u64, nanoseconds as u32)
}

fn attr(id: u64, meta: &Metadata) -> FileAttr {
    FileAttr {
        ino: INodeNo(id),
        size: meta.size(),
        blocks: meta.blocks(),
        atime: at(meta.atime(), meta.atime_nsec()),
        mtime: at(meta.mtime(), meta.mtime_nsec()),
        ctime: at(meta.ctime(), meta.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind: FileType::from_std(meta.file_type()).unwrap_or(FileType::RegularFile),
        perm: (meta.mode() & 0o7777) as u16,
        nlink: meta.nlink() as u32,
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: meta.rdev() as u32,
        blksize: 4096,
        flags: 0,
    }
}
