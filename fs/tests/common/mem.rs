//! A backend in memory, obviously simple: the whole tree is one value, and a snapshot is a clone of it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use snapstore::backend::*;
use snapstore::*;

const PAGE: u64 = 4096;

#[derive(Clone)]
struct Inode {
    attr: Attr,
    pages: BTreeMap<u64, Vec<u8>>,
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
    serial: u64,
    epoch: u64,
    next_ino: u64,
    changed: bool,
    snapshots: Vec<Snapshot>,
    abandoned: Vec<Abandoned>,
    closed: bool,
    synced: u64,
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
        let len = (self.attr.size.saturating_sub(offset)).min(buf.len() as u64) as usize;
        for (i, byte) in buf[..len].iter_mut().enumerate() {
            let at = offset + i as u64;
            *byte = self.pages.get(&(at / PAGE)).map_or(0, |page| page[(at % PAGE) as usize]);
        }
        len
    }

    fn write(&mut self, data: &[u8], offset: u64) {
        for (i, byte) in data.iter().enumerate() {
            let at = offset + i as u64;
            let page = self.pages.entry(at / PAGE).or_insert_with(|| vec![0; PAGE as usize]);
            page[(at % PAGE) as usize] = *byte;
        }
        self.attr.size = self.attr.size.max(offset + data.len() as u64);
        self.count();
    }

    fn zero(&mut self, from: u64, to: u64) {
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
        if size < self.attr.size {
            self.zero(size, u64::MAX);
        }
        self.attr.size = size;
    }

    fn count(&mut self) {
        self.attr.blocks = self.pages.len() as u64 * PAGE / 512;
    }

    fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
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
        Ok(inode.attr)
    }

    fn get_xattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        self.get(ino)?.xattrs.get(name).cloned().ok_or(Error::NoXattr)
    }
}

impl Mem {
    /// An empty tree.
    pub fn new() -> Mem {
        let root = Inode::new(attr(Ino::ROOT, FileKind::Directory, 0o755), Ino::ROOT);
        Mem(Arc::new(Mutex::new(World {
            live: State { inodes: BTreeMap::from([(Ino::ROOT, root)]) },
            serial: 1,
            epoch: 1,
            next_ino: 2,
            changed: false,
            snapshots: Vec::new(),
            abandoned: Vec::new(),
            closed: false,
            synced: 0,
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
            self.$with(|s| Ok(s.get(s.find(parent, name)?)?.attr))
        }
        fn get_attr(&self, ino: Ino) -> Result<Attr> {
            self.$with(|s| Ok(s.get(ino)?.attr))
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
        self.read(|s| s.get(ino).map(|_| ()))?;
        Ok(Arc::new(LiveFile { head: Live { world: self.world.clone(), serial: self.serial }, ino }))
    }
}

impl FileRead for FrozenFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        Ok(self.0.get(self.1)?.read(buf, offset))
    }
    fn len(&self) -> Result<u64> {
        Ok(self.0.get(self.1)?.attr.size)
    }
    fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        self.0.get(self.1)?.seek(offset, what)
    }
}

impl FileRead for LiveFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.head.read(|s| Ok(s.get(self.ino)?.read(buf, offset)))
    }
    fn len(&self) -> Result<u64> {
        self.head.read(|s| Ok(s.get(self.ino)?.attr.size))
    }
    fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        self.head.read(|s| s.get(self.ino)?.seek(offset, what))
    }
}

impl FileWrite for LiveFile {
    fn write_at(&self, data: &[u8], offset: u64, origin: WriteOrigin) -> Result<()> {
        self.head.write(|w| {
            let inode = w.live.get_mut(self.ino)?;
            inode.write(data, offset);
            if origin == WriteOrigin::Call {
                inode.touch();
            }
            Ok(())
        })
    }

    fn allocate(&self, mode: Allocate, offset: u64, len: u64) -> Result<()> {
        self.head.write(|w| {
            let inode = w.live.get_mut(self.ino)?;
            let end = offset + len;
            let grow = match mode {
                Allocate::Reserve { keep_size } => !keep_size,
                Allocate::PunchHole => {
                    inode.zero(offset, end);
                    false
                }
                Allocate::ZeroRange { keep_size } => {
                    inode.zero(offset, end);
                    !keep_size
                }
            };
            if grow {
                inode.attr.size = inode.attr.size.max(end);
            }
            inode.touch();
            Ok(())
        })
    }

    fn copy_from(&self, source: &dyn FileRead, source_offset: u64, offset: u64, len: u64) -> Result<u64> {
        let mut buf = vec![0; len.min(1 << 20) as usize];
        let read = source.read_at(&mut buf, source_offset)?;
        self.write_at(&buf[..read], offset, WriteOrigin::Call)?;
        Ok(read as u64)
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        self.head.write(|w| {
            w.synced += 1;
            Ok(())
        })
    }
}

impl Head for Live {
    fn create(&self, parent: Ino, name: &OsStr, new: &NewInode<'_>) -> Result<Attr> {
        self.write(|w| {
            let dir = w.live.dir(parent)?;
            if dir.entries.contains_key(name) {
                return Err(Error::Exists);
            }
            let setgid = dir.attr.mode & libc::S_ISGID != 0;
            let gid = if setgid { dir.attr.gid } else { new.gid };
            let ino = Ino(w.next_ino);
            w.next_ino += 1;
            let mut mode = new.mode & !new.umask;
            if setgid && new.kind == FileKind::Directory {
                mode |= libc::S_ISGID;
            }
            let size = new.target.len() as u64;
            let attr = Attr { uid: new.uid, gid, rdev: new.rdev, size, ..attr(ino, new.kind, mode) };
            let mut inode = Inode::new(attr, parent);
            inode.target = new.target.to_vec();
            w.live.inodes.insert(ino, inode);
            w.live.enter(parent, name, ino)?;
            Ok(w.live.get(ino)?.attr)
        })
    }

    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attr> {
        self.write(|w| {
            if w.live.dir(parent)?.entries.contains_key(name) {
                return Err(Error::Exists);
            }
            w.live.get_mut(ino)?.attr.nlink += 1;
            w.live.enter(parent, name, ino)?;
            Ok(w.live.get(ino)?.attr)
        })
    }

    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        self.write(|w| {
            let ino = w.live.leave(parent, name)?;
            w.live.drop_name(ino)
        })
    }

    fn remove_dir(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        self.write(|w| {
            let ino = w.live.find(parent, name)?;
            if !w.live.dir(ino)?.entries.is_empty() {
                return Err(Error::NotEmpty);
            }
            w.live.leave(parent, name)?;
            w.live.drop_name(ino)
        })
    }

    fn rename(&self, from: (Ino, &OsStr), to: (Ino, &OsStr), mode: RenameMode) -> Result<Option<Attr>> {
        self.write(|w| {
            let s = &mut w.live;
            let source = s.find(from.0, from.1)?;
            let target = s.find(to.0, to.1).ok();
            match mode {
                RenameMode::Exchange => {
                    let target = target.ok_or(Error::NoEntry)?;
                    s.leave(from.0, from.1)?;
                    s.leave(to.0, to.1)?;
                    s.enter(to.0, to.1, source)?;
                    s.enter(from.0, from.1, target)?;
                    return Ok(None);
                }
                RenameMode::NoReplace | RenameMode::WhiteoutNoReplace if target.is_some() => {
                    return Err(Error::Exists);
                }
                RenameMode::Whiteout | RenameMode::WhiteoutNoReplace => return Err(Error::InvalidArgument),
                RenameMode::Replace | RenameMode::NoReplace => {}
            }
            if target == Some(source) {
                return Ok(None);
            }
            if let Some(target) = target
                && !s.get(target)?.entries.is_empty()
            {
                return Err(Error::NotEmpty);
            }
            let replaced = match target {
                Some(target) => {
                    s.leave(to.0, to.1)?;
                    Some(s.drop_name(target)?)
                }
                None => None,
            };
            s.leave(from.0, from.1)?;
            s.enter(to.0, to.1, source)?;
            Ok(replaced)
        })
    }

    fn set_attr(&self, ino: Ino, set: &SetAttr) -> Result<Attr> {
        self.write(|w| {
            let inode = w.live.get_mut(ino)?;
            if let Some(size) = set.size {
                inode.resize(size);
                inode.touch();
            }
            let a = &mut inode.attr;
            if set.drop_privileges {
                a.mode &= !(libc::S_ISUID | if a.mode & 0o10 != 0 { libc::S_ISGID } else { 0 });
            }
            a.mode = set.mode.unwrap_or(a.mode);
            a.uid = set.uid.unwrap_or(a.uid);
            a.gid = set.gid.unwrap_or(a.gid);
            a.atime = set.atime.unwrap_or(a.atime);
            a.mtime = set.mtime.unwrap_or(a.mtime);
            a.ctime = set.ctime.unwrap_or_else(Timestamp::now);
            let mode = a.mode;
            if set.mode.is_some()
                && let Some(acl) = inode.xattrs.get_mut(OsStr::new("system.posix_acl_access"))
            {
                acl::set_mode(acl, mode);
            }
            Ok(inode.attr)
        })
    }

    fn set_xattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        self.write(|w| {
            let inode = w.live.get_mut(ino)?;
            match (mode, inode.xattrs.contains_key(name)) {
                (XattrMode::Create, true) => return Err(Error::Exists),
                (XattrMode::Replace, false) => return Err(Error::NoXattr),
                _ => {}
            }
            inode.xattrs.insert(name.to_owned(), value.to_vec());
            if name == "system.posix_acl_access" {
                inode.attr.mode = inode.attr.mode & !0o777 | acl::mode(value);
            }
            inode.attr.ctime = Timestamp::now();
            Ok(())
        })
    }

    fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        self.write(|w| w.live.get_mut(ino)?.xattrs.remove(name).map(|_| ()).ok_or(Error::NoXattr))
    }

    fn open_write(&self, ino: Ino) -> Result<Arc<dyn FileWrite>> {
        self.file(ino).map(|file| file as Arc<dyn FileWrite>)
    }

    fn drop_privileges(&self, ino: Ino) -> Result<()> {
        self.set_attr(ino, &SetAttr { drop_privileges: true, ..SetAttr::default() }).map(|_| ())
    }

    fn sync_names(&self) -> Result<()> {
        Ok(())
    }

    fn forget(&self, ino: Ino) -> Result<()> {
        self.write(|w| {
            if w.live.get(ino)?.attr.nlink == 0 {
                w.live.inodes.remove(&ino);
            }
            Ok(())
        })
    }
}

/// The kernel's form of an access ACL: a version, then (tag, permissions, id) for each entry.
mod acl {
    const USER_OBJ: u16 = 1;
    const GROUP_OBJ: u16 = 4;
    const MASK: u16 = 0x10;
    const OTHER: u16 = 0x20;

    fn word(entry: &[u8], at: usize) -> u16 {
        u16::from_le_bytes([entry[at], entry[at + 1]])
    }

    fn shift(acl: &[u8], tag: u16) -> Option<u32> {
        let masked = acl[4..].chunks_exact(8).any(|entry| word(entry, 0) == MASK);
        match tag {
            USER_OBJ => Some(6),
            GROUP_OBJ if !masked => Some(3),
            MASK => Some(3),
            OTHER => Some(0),
            _ => None,
        }
    }

    pub fn mode(acl: &[u8]) -> u32 {
        let entries = acl[4..].chunks_exact(8);
        entries.filter_map(|e| Some(u32::from(word(e, 2)) << shift(acl, word(e, 0))?)).sum()
    }

    pub fn set_mode(acl: &mut [u8], mode: u32) {
        let whole = acl.to_vec();
        for entry in acl[4..].chunks_exact_mut(8) {
            if let Some(shift) = shift(&whole, word(entry, 0)) {
                entry[2] = (mode >> shift & 7) as u8;
            }
        }
    }
}

impl World {
    fn find(&self, query: HeightQuery) -> Result<&Snapshot> {
        let all = &self.snapshots;
        match query {
            HeightQuery::Newest => all.last().ok_or(Error::NoSnapshots),
            HeightQuery::Exact(height) => all
                .iter()
                .find(|s| s.info.height == height)
                .ok_or(Error::NoSuchHeight { height, nearest: None }),
            HeightQuery::AtOrBelow(height) => all
                .iter()
                .rfind(|s| s.info.height <= height)
                .ok_or(Error::NothingBelow { height, oldest: None }),
        }
    }

    fn switch(&mut self, state: State) -> State {
        self.serial += 1;
        self.changed = false;
        std::mem::replace(&mut self.live, state)
    }
}

fn view(snapshot: &Snapshot) -> View {
    View {
        epoch: snapshot.info.epoch,
        height: snapshot.info.height,
        time: snapshot.info.time,
        tree: Arc::new(Frozen(Arc::new(snapshot.state.clone()))),
    }
}

impl Backend for Mem {
    fn kind(&self) -> BackendKind {
        BackendKind::External
    }

    fn head(&self) -> Arc<dyn Head> {
        Arc::new(Live { world: self.0.clone(), serial: self.head_serial() })
    }

    fn head_serial(&self) -> u64 {
        self.0.lock().serial
    }

    fn snapshot(&self, height: Height, options: &SnapshotOptions) -> Result<SnapshotInfo> {
        let mut w = self.0.lock();
        if let Some(newest) = w.snapshots.last() {
            if newest.info.height == height && !w.changed {
                return Ok(newest.info.clone());
            }
            if w.find(HeightQuery::Exact(height)).is_ok() {
                return Err(Error::HeightExists { height });
            }
            if newest.info.height > height {
                return Err(Error::HeightNotNewer { height, newest: newest.info.height });
            }
        }
        let info = SnapshotInfo {
            height,
            time: jiff::Timestamp::now(),
            durable: true,
            held: options.hold,
            hash: options.hash.clone(),
            labels: options.labels.clone(),
            referenced_bytes: 0,
            exclusive_bytes: 0,
            epoch: EpochId(w.epoch),
        };
        w.epoch += 1;
        w.changed = false;
        let state = w.live.clone();
        w.snapshots.push(Snapshot { info: info.clone(), state });
        Ok(info)
    }

    fn wait_durable(&self, _height: Height) -> Result<()> {
        Ok(())
    }

    fn snapshots(&self, _space: bool) -> Result<Vec<SnapshotInfo>> {
        Ok(self.0.lock().snapshots.iter().map(|s| s.info.clone()).collect())
    }

    fn heights(&self) -> Vec<Height> {
        self.0.lock().snapshots.iter().map(|s| s.info.height).collect()
    }

    fn find(&self, query: HeightQuery) -> Result<SnapshotInfo> {
        Ok(self.0.lock().find(query)?.info.clone())
    }

    fn view(&self, query: HeightQuery) -> Result<View> {
        Ok(view(self.0.lock().find(query)?))
    }

    fn view_at(&self, time: jiff::Timestamp) -> Result<View> {
        let w = self.0.lock();
        w.snapshots.iter().rfind(|s| s.info.time <= time).map(view).ok_or(Error::NoSnapshotAt { time })
    }

    fn rollback(&self, to: HeightQuery, _preserve: &[PathBuf], dry_run: bool) -> Result<SwitchReport> {
        let mut w = self.0.lock();
        let target = w.find(to)?.clone();
        let height = target.info.height;
        let hidden = w.snapshots.iter().map(|s| s.info.height).filter(|h| *h > height).collect();
        if !dry_run {
            let kept = w.snapshots.iter().filter(|s| s.info.height <= height).cloned().collect();
            let snapshots = std::mem::replace(&mut w.snapshots, kept);
            let state = w.switch(target.state);
            w.abandoned.push(Abandoned { state, snapshots });
        }
        Ok(SwitchReport {
            height: Some(height),
            hidden_heights: hidden,
            preserved: Vec::new(),
            changed: Vec::new(),
        })
    }

    fn undo_rollback(&self, dry_run: bool) -> Result<SwitchReport> {
        let mut w = self.0.lock();
        if w.abandoned.is_empty() {
            return Err(Error::NothingToUndo);
        }
        if !dry_run {
            let back = w.abandoned.pop().unwrap();
            w.switch(back.state);
            w.snapshots = back.snapshots;
        }
        let report =
            SwitchReport { height: None, hidden_heights: vec![], preserved: vec![], changed: vec![] };
        Ok(report)
    }

    fn delete(&self, heights: &[Height], dry_run: bool) -> Result<DeleteReport> {
        let mut w = self.0.lock();
        for height in heights {
            if w.find(HeightQuery::Exact(*height))?.info.held {
                return Err(Error::Held { height: *height });
            }
        }
        if !dry_run {
            w.snapshots.retain(|s| !heights.contains(&s.info.height));
        }
        Ok(DeleteReport { heights: heights.to_vec(), freed_bytes: 0 })
    }

    fn drop_abandoned(&self, dry_run: bool) -> Result<DeleteReport> {
        if !dry_run {
            self.0.lock().abandoned.clear();
        }
        Ok(DeleteReport::default())
    }

    fn set_held(&self, height: Height, held: bool) -> Result<SnapshotInfo> {
        let mut w = self.0.lock();
        w.find(HeightQuery::Exact(height))?;
        let snapshot = w.snapshots.iter_mut().find(|s| s.info.height == height).unwrap();
        snapshot.info.held = held;
        Ok(snapshot.info.clone())
    }

    fn usage(&self) -> Result<Usage> {
        Ok(Usage::default())
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }

    fn last_error(&self) -> Option<String> {
        None
    }

    fn close(&self) -> Result<()> {
        self.0.lock().closed = true;
        Ok(())
    }
}
