//! A backend in memory, obviously simple: the whole tree is one value, and a snapshot is a clone of it.

mod acl;
mod backend;
mod disk;
mod files;
mod head;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use snapstore::backend::*;
use snapstore::progress::Progress;
use snapstore::verify::VerifyReport;
use snapstore::*;

const PAGE: u64 = 4096;

#[derive(Clone)]
struct Inode {
    attr: Attr,
    pages: BTreeMap<u64, Vec<u8>>,
    /// What is there instead of pages, if files are on a disk.
    file: Option<Arc<File>>,
    entries: BTreeMap<OsString, Ino>,
    parent: Ino,
    target: Vec<u8>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

#[derive(Clone)]
struct State {
    inodes: BTreeMap<Ino, Inode>,
}

#[derive(Clone)]
struct Snapshot {
    info: SnapshotInfo,
    state: State,
}

struct Abandoned {
    state: State,
    snapshots: Vec<Snapshot>,
}

struct World {
    live: State,
    /// Whether files are on a disk.
    on_disk: bool,
    serial: u64,
    epoch: u64,
    next_ino: u64,
    changed: bool,
    snapshots: Vec<Snapshot>,
    abandoned: Vec<Abandoned>,
    closed: bool,
    synced: u64,
    /// Syncs wait while this is held.
    gate: Arc<RwLock<()>>,
}

/// The backend.
#[derive(Clone)]
pub struct Mem(Arc<Mutex<World>>);

struct Live {
    world: Arc<Mutex<World>>,
    serial: u64,
}

struct Frozen(Arc<State>);

struct LiveFile {
    head: Live,
    ino: Ino,
    file: Option<Arc<File>>,
}

struct FrozenFile(Arc<State>, Ino);

fn attr(ino: Ino, kind: FileKind, mode: u32) -> Attr {
    let now = Timestamp::now();
    Attr {
        ino,
        kind,
        mode,
        nlink: if kind == FileKind::Directory { 2 } else { 1 },
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        rdev: 0,
        size: 0,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
    }
}

impl Inode {
    fn new(attr: Attr, parent: Ino) -> Inode {
        Inode {
            attr,
            pages: BTreeMap::new(),
            file: None,
            entries: BTreeMap::new(),
            parent,
            target: Vec::new(),
            xattrs: BTreeMap::new(),
        }
    }

    fn touch(&mut self) {
        self.attr.mtime = Timestamp::now();
        self.attr.ctime = self.attr.mtime;
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        if let Some(file) = &self.file {
            return disk::read(file, buf, offset);
        }
        let len = (self.attr.size.saturating_sub(offset)).min(buf.len() as u64) as usize;
        for (i, byte) in buf[..len].iter_mut().enumerate() {
            let at = offset + i as u64;
            *byte = self.pages.get(&(at / PAGE)).map_or(0, |page| page[(at % PAGE) as usize]);
        }
        len
    }

    fn write(&mut self, data: &[u8], offset: u64) {
        if let Some(file) = &self.file {
            return file.write_all_at(data, offset).unwrap();
        }
        for (i, byte) in data.iter().enumerate() {
            let at = offset + i as u64;
            let page = self.pages.entry(at / PAGE).or_insert_with(|| vec![0; PAGE as usize]);
            page[(at % PAGE) as usize] = *byte;
        }
        self.attr.size = self.attr.size.max(offset + data.len() as u64);
        self.count();
    }

    fn zero(&mut self, from: u64, to: u64) {
        if let Some(file) = &self.file {
            return disk::punch(file, from, to);
        }
        let pages: Vec<u64> =
            self.pages.range(from / PAGE..).map(|(n, _)| *n).take_while(|n| n * PAGE < to).collect();
        for n in pages {
            if n * PAGE >= from && (n + 1) * PAGE <= to {
                self.pages.remove(&n);
            } else {
                let page = self.pages.get_mut(&n).unwrap();
                for at in from.max(n * PAGE)..to.min((n + 1) * PAGE) {
                    page[(at % PAGE) as usize] = 0;
                }
            }
        }
        self.count();
    }

    fn resize(&mut self, size: u64) {
        if let Some(file) = &self.file {
            return file.set_len(size).unwrap();
        }
        if size < self.attr.size {
            self.zero(size, u64::MAX);
        }
        self.attr.size = size;
    }

    fn count(&mut self) {
        self.attr.blocks = self.pages.len() as u64 * PAGE / 512;
    }

    fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        if let Some(file) = &self.file {
            return disk::seek(file, offset, what);
        }
        if offset >= self.attr.size {
            return Err(Error::NoData);
        }
        let mut n = offset / PAGE;
        match what {
            Seek::Data => match self.pages.range(n..).next() {
                Some((page, _)) => Ok(offset.max(page * PAGE)),
                None => Err(Error::NoData),
            },
            Seek::Hole => {
                while self.pages.contains_key(&n) {
                    n += 1;
                }
                Ok(offset.max(n * PAGE).min(self.attr.size))
            }
        }
    }
}

impl State {
    fn get(&self, ino: Ino) -> Result<&Inode> {
        self.inodes.get(&ino).ok_or(Error::NoEntry)
    }

    fn get_mut(&mut self, ino: Ino) -> Result<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or(Error::NoEntry)
    }

    fn dir(&self, ino: Ino) -> Result<&Inode> {
        let inode = self.get(ino)?;
        if inode.attr.kind == FileKind::Directory { Ok(inode) } else { Err(Error::NotDirectory) }
    }

    fn find(&self, parent: Ino, name: &OsStr) -> Result<Ino> {
        assert_ne!(name, "PANIC", "a handler that panics, for a test");
        self.dir(parent)?.entries.get(name).copied().ok_or(Error::NoEntry)
    }

    fn read_dir(&self, dir: Ino) -> Result<Vec<DirEntry>> {
        let entries = &self.dir(dir)?.entries;
        let told = |(name, ino): (&OsString, &Ino)| DirEntry {
            name: name.clone(),
            ino: *ino,
            kind: self.inodes[ino].attr.kind,
        };
        Ok(entries.iter().map(told).collect())
    }

    fn enter(&mut self, parent: Ino, name: &OsStr, ino: Ino) -> Result<()> {
        let is_dir = self.get(ino)?.attr.kind == FileKind::Directory;
        let dir = self.get_mut(parent)?;
        dir.entries.insert(name.to_owned(), ino);
        dir.attr.nlink += u32::from(is_dir);
        dir.touch();
        let inode = self.get_mut(ino)?;
        inode.attr.ctime = Timestamp::now();
        if is_dir {
            inode.parent = parent;
        }
        Ok(())
    }

    fn leave(&mut self, parent: Ino, name: &OsStr) -> Result<Ino> {
        let ino = self.find(parent, name)?;
        let is_dir = self.get(ino)?.attr.kind == FileKind::Directory;
        let dir = self.get_mut(parent)?;
        dir.entries.remove(name);
        dir.attr.nlink -= u32::from(is_dir);
        dir.touch();
        Ok(ino)
    }

    fn drop_name(&mut self, ino: Ino) -> Result<Attr> {
        let inode = self.get_mut(ino)?;
        inode.attr.nlink = if inode.attr.kind == FileKind::Directory { 0 } else { inode.attr.nlink - 1 };
        inode.attr.ctime = Timestamp::now();
        Ok(inode.stat())
    }

    fn get_xattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        self.get(ino)?.xattrs.get(name).cloned().ok_or(Error::NoXattr)
    }
}

impl Mem {
    /// An empty tree.
    pub fn new() -> Mem {
        Mem::with(false)
    }

    /// An empty tree whose files are on a disk, so that the kernel may have them.
    pub fn on_disk() -> Mem {
        Mem::with(true)
    }

    fn with(on_disk: bool) -> Mem {
        let root = Inode::new(attr(Ino::ROOT, FileKind::Directory, 0o755), Ino::ROOT);
        Mem(Arc::new(Mutex::new(World {
            live: State { inodes: BTreeMap::from([(Ino::ROOT, root)]) },
            on_disk,
            serial: 1,
            epoch: 1,
            next_ino: 2,
            changed: false,
            snapshots: Vec::new(),
            abandoned: Vec::new(),
            closed: false,
            synced: 0,
            gate: Arc::default(),
        })))
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.0.lock().closed
    }

    /// How many inodes the live head has, nameless ones too.
    pub fn inodes(&self) -> usize {
        self.0.lock().live.inodes.len()
    }

    /// Syncs wait while this is locked for writing.
    pub fn gate(&self) -> Arc<RwLock<()>> {
        self.0.lock().gate.clone()
    }

    /// How many syncs reached it.
    pub fn syncs(&self) -> u64 {
        self.0.lock().synced
    }
}

impl Live {
    fn read<T>(&self, f: impl FnOnce(&State) -> Result<T>) -> Result<T> {
        let world = self.world.lock();
        if world.serial == self.serial { f(&world.live) } else { Err(Error::Stale) }
    }

    fn write<T>(&self, f: impl FnOnce(&mut World) -> Result<T>) -> Result<T> {
        let mut world = self.world.lock();
        if world.serial != self.serial {
            return Err(Error::Stale);
        }
        world.changed = true;
        f(&mut world)
    }
}

macro_rules! tree {
    ($with:ident) => {
        fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
            self.$with(|s| Ok(s.get(s.find(parent, name)?)?.stat()))
        }
        fn get_attr(&self, ino: Ino) -> Result<Attr> {
            self.$with(|s| Ok(s.get(ino)?.stat()))
        }
        fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
            self.$with(|s| Ok(s.get(ino)?.target.clone()))
        }
        fn read_dir(&self, dir: Ino) -> Result<Vec<DirEntry>> {
            self.$with(|s| s.read_dir(dir))
        }
        fn parent(&self, dir: Ino) -> Result<Ino> {
            self.$with(|s| Ok(s.get(dir)?.parent))
        }
        fn get_xattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
            self.$with(|s| s.get_xattr(ino, name))
        }
        fn list_xattr(&self, ino: Ino) -> Result<Vec<OsString>> {
            self.$with(|s| Ok(s.get(ino)?.xattrs.keys().cloned().collect()))
        }
        fn stat_fs(&self) -> Result<StatFs> {
            let blocks = 1 << 30;
            Ok(StatFs {
                block_size: 4096,
                blocks,
                blocks_free: blocks,
                blocks_available: blocks,
                files: 1 << 20,
                files_free: 1 << 20,
            })
        }
    };
}

impl Frozen {
    fn read<T>(&self, f: impl FnOnce(&State) -> Result<T>) -> Result<T> {
        f(&self.0)
    }
}

impl Tree for Frozen {
    tree!(read);
    fn open(&self, ino: Ino) -> Result<Arc<dyn FileRead>> {
        self.0.get(ino)?;
        Ok(Arc::new(FrozenFile(self.0.clone(), ino)))
    }
}

impl Tree for Live {
    tree!(read);
    fn open(&self, ino: Ino) -> Result<Arc<dyn FileRead>> {
        self.file(ino).map(|file| file as Arc<dyn FileRead>)
    }
}

impl Live {
    fn file(&self, ino: Ino) -> Result<Arc<LiveFile>> {
        let file = self.read(|s| Ok(s.get(ino)?.file.clone()))?;
        let head = Live { world: self.world.clone(), serial: self.serial };
        Ok(Arc::new(LiveFile { head, ino, file }))
    }
}
