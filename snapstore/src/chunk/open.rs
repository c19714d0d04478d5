//! Opening a store, recovering it when it was not closed, and closing it.
//!
//! After a clean close only the holes of the head's layers are looked at, since the store may have been copied. After
//! anything else:
//! 1. snapshots that were not durable yet are dropped, by name;
//! 2. unsealed layers take their size from their files, and frozen epochs are sealed;
//! 3. inodes without a name are removed, since whoever held them open is gone;
//! 4. layer files that no row refers to are removed.
//!
//! Each step can be repeated: a crash during recovery is followed by recovery.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{OFlag, open as open_path};
use nix::sys::stat::Mode;

use super::core::{Core, HeadInstance, HeadState};
use super::database::guarded;
use super::layer::scan_chunks;
use super::lineage::{EpochRow, EpochTree, Lineage};
use super::lock::StoreLock;
use super::meta::{Meta, OLDER_STATE};
use super::rows::{InodeRow, Key, KeyKind, LayerFile, LayerRow, Row};
use super::snapshots::{AbandonedRow, Control, HeadRow, SnapshotRow, epoch_row, json, snapshot_row};
use super::store::ChunkStore;
use super::worker::Workers;
use super::{OpenOptions, Recovery, adopt, format};
use crate::backend::BackendKind;
use crate::disk::{DatabaseFile, Disk, RealDisk};
use crate::error::{Error, Result};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::types::{CHUNK_SIZE, EpochId, FileKind, Height, Ino, Timestamp};

/// The metadata database's file in the store.
pub(crate) const DATABASE: &str = "meta/meta.redb";

/// Opens the store at `path`.
pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<(Arc<ChunkStore>, Recovery)> {
    let dir = open_dir(path)?;
    let found = format::check(&dir, path)?.backend;
    if found != BackendKind::Chunk {
        return Err(Error::OtherBackend { store: path.into(), found, wanted: BackendKind::Chunk });
    }
    close_to_others(&dir, path)?;
    let lock = StoreLock::take(&dir, path)?;
    if adopt::alive(path)?.is_none() {
        return Err(Error::NotAStore { path: path.into() });
    }
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(dir));
    let (core, recovery) = guarded(|| open_on(disk, path))?;
    let store = finish(core, Some(lock), options)?;
    Ok((store, recovery))
}

/// Starts the background of a store that has been opened and recovered.
pub(crate) fn finish(
    core: Arc<Core>,
    lock: Option<StoreLock>,
    options: &OpenOptions,
) -> Result<Arc<ChunkStore>> {
    core.work.lock().by_callers = options.no_background;
    let workers = match options.no_background {
        true => None,
        false => Some(Workers::start(&core).map_err(Error::io("start the background of", "the store"))?),
    };
    core.work.lock().reclaim = true;
    Ok(Arc::new(ChunkStore {
        core,
        workers: Mutex::new(workers),
        lock: Mutex::new(lock),
        closed: Mutex::new(false),
    }))
}

/// The file in a store by which somebody says that an older state will do.
const ACCEPT: &str = "ACCEPT-OLDER-STATE";

/// A damaged page was found, and what is left is an older state of the metadata. Nobody is to take it for the newest.
fn refuse_older_state(disk: &dyn Disk, meta: &Meta) -> Result<()> {
    if meta.control(OLDER_STATE)?.is_empty() {
        return Ok(());
    }
    if disk.stat(ACCEPT).map_err(Error::io("stat", ACCEPT))?.is_none() {
        let detail = format!(
            "what is there is older than the last commit, whose pages are damaged or were replaced; copy the store \
             away, then go on with that state by making an empty file {ACCEPT} in it"
        );
        return Err(Error::Damaged { what: "metadata database", detail });
    }
    // First: were it left behind by a crash, it would accept the next damage too.
    disk.remove(ACCEPT).map_err(Error::io("remove", ACCEPT))?;
    meta.rewrite(|w| w.control(OLDER_STATE, None))
}

/// Opens the directory of a store, or of one to be. It must be this user's: whoever owns it could change what is in it
/// under our hands, and have root serve what he likes as root's.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd> {
    open_own(path, OFlag::empty())
}

/// As [`open_dir`], of a store that is being made: a symlink that somebody put in its place is not followed.
pub(crate) fn open_new_dir(path: &Path) -> Result<OwnedFd> {
    open_own(path, OFlag::O_NOFOLLOW)
}

fn open_own(path: &Path, more: OFlag) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | more;
    let dir = open_path(path, flags, Mode::empty()).map_err(|e| match e {
        nix::Error::ENOENT | nix::Error::ENOTDIR => Error::NotAStore { path: path.into() },
        e => Error::Io { op: "open", path: path.into(), source: e.into() },
    })?;
    let stat = nix::sys::stat::fstat(&dir).map_err(|e| Error::Io {
        op: "stat",
        path: path.into(),
        source: e.into(),
    })?;
    if stat.st_uid != nix::unistd::geteuid().as_raw() {
        return Err(Error::ForeignStore { store: path.into(), owner: stat.st_uid });
    }
    Ok(dir)
}

/// Closes a store to everybody else: a copy may have been made with other permissions.
pub(crate) fn close_to_others(dir: &OwnedFd, path: &Path) -> Result<()> {
    let io = |op: &'static str| move |e: nix::Error| Error::Io { op, path: path.into(), source: e.into() };
    let mode = nix::sys::stat::fstat(dir).map_err(io("stat"))?.st_mode;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    tracing::warn!("{}: others could enter the store; it is closed to them now", path.display());
    nix::sys::stat::fchmod(dir, Mode::from_bits_truncate(mode & 0o700)).map_err(io("chmod"))
}

/// Opens and recovers a store on any disk.
pub(crate) fn open_on(disk: Arc<dyn Disk>, path: &Path) -> Result<(Arc<Core>, Recovery)> {
    let file = disk.open(DATABASE).map_err(Error::io("open", path.join(DATABASE)))?;
    let database =
        DatabaseFile::new(Arc::clone(&disk), file).map_err(Error::io("open", path.join(DATABASE)))?;
    // A new one would be made in its place, and what `meta/newest` knows of the old one forgotten.
    if database.is_empty() {
        return Err(Error::Damaged { what: "metadata database", detail: format!("{DATABASE} is empty") });
    }
    let meta = Meta::open(database)?;
    refuse_older_state(&*disk, &meta)?;
    let clean = !meta.control("clean")?.is_empty();
    let (control, head) = read_control(&meta)?;
    let next_ino = number(&meta, "next_ino")?;
    let holes_exact = probe_holes(&*disk).map_err(Error::io("probe the file system of", path))?;
    if !holes_exact {
        tracing::warn!(
            "{}: holes are not reported exactly; chunk maps are committed instead",
            path.display()
        );
    }
    let core = Core::new(disk, meta, control, head, next_ino, holes_exact);
    // The head's epoch goes on: its memtable begins empty.
    let epoch = core.head().epoch;
    core.meta.begin_epoch(epoch, Vec::new(), Vec::new(), || {});
    if !core.meta.touched(epoch, None, 1)?.is_empty() {
        core.meta.set_head_touched();
    }
    for (name, _) in core.meta.control("orphan/")? {
        if let Ok(ino) = name.parse() {
            core.orphans.lock().insert(Ino(ino));
        }
    }
    let mut recovery = Recovery { clean, ..Recovery::default() };
    if clean && holes_exact {
        restore_holes(&core, epoch)?;
    }
    core.meta.apply_control(vec![("clean".into(), None)]);
    if !clean {
        recover(&core, &mut recovery)?;
    }
    // A close that could not seal everything is not clean; but a store may come from anywhere.
    let unsealed: Vec<EpochId> = {
        let c = core.control.lock();
        c.tree.iter().filter(|(e, row)| !row.sealed && *e != epoch).map(|(e, _)| e).collect()
    };
    for &epoch in &unsealed {
        core.meta.open_epoch(epoch);
    }
    {
        let waiting: Vec<EpochId> = core.control.lock().unhashed().collect();
        let mut work = core.work.lock();
        work.seal.extend(unsealed);
        // Recovery has sealed some, and queued them itself.
        work.hash = waiting.into();
    }
    {
        let _names = core.names.lock();
        core.purge_orphans()?;
    }
    core.commit(true)?;
    if !clean {
        recovery.orphan_layers = sweep(&core)?;
    }
    if let Err(e) = core.meta.reserve.fill() {
        tracing::warn!("{}: no space can be set aside: {e}", path.display());
    }
    Ok((core, recovery))
}

/// Makes everything durable and says so on the disk.
pub(crate) fn close(core: &Arc<Core>) -> Result<()> {
    {
        let _names = core.names.lock();
        core.purge_orphans()?;
    }
    // Folding can wait for the next time.
    core.stopping.store(true, Ordering::Release);
    // Open files are gone; what they wrote is not. One file that cannot be synced must not cost the others.
    let mut failed = core.sync_layers(&core.pinned_layers()).err();
    core.commit(failed.is_none())?;
    core.closing.store(true, Ordering::Release);
    if failed.is_none() && core.meta.head_touched() {
        // Frozen without a name, what the head has written gets its hashes: damage shows at the next mount.
        core.begin(&mut core.control.lock(), None, None, Vec::new(), Vec::new());
    }
    let frozen: Vec<EpochId> = {
        let c = core.control.lock();
        let head = core.head().epoch;
        c.tree.iter().map(|(e, _)| e).filter(|&e| e != head && !c.is_sealed(e)).collect()
    };
    for epoch in frozen {
        failed = failed.or(core.wait_sealed(epoch).err());
    }
    failed = failed.or_else(|| core.hash_at_close().err());
    failed = failed.or(core.sync_unsealed().err());
    if let Some(error) = failed {
        // What failed first is what the caller is to know.
        let _ = core.commit(false);
        return Err(error);
    }
    core.meta.apply_control(vec![("clean".into(), Some(b"1".to_vec()))]);
    core.commit(true)?;
    core.remove_queued();
    Ok(())
}

impl Core {
    /// Syncs every layer of the head's epoch, and notes their sizes and chunks: see [`restore_holes`].
    fn sync_unsealed(&self) -> Result<()> {
        let epoch = self.head().epoch;
        for ino in self.meta.touched_layers(epoch)? {
            if let Some(Some(row)) = self.meta.row_at(&Key::layer(ino), epoch)? {
                let layer = self.layer(ino, epoch, &row)?;
                self.sync_layer(&layer)?;
                if layer.state.read().created {
                    let blocks = layer.blocks(&*self.disk)?;
                    layer.state.write().blocks = blocks;
                    self.touch_layer(&layer);
                }
            }
        }
        Ok(())
    }
}

fn number(meta: &Meta, name: &'static str) -> Result<u64> {
    let damaged = || Error::Damaged { what: "control row", detail: name.into() };
    let rows = meta.control(name)?;
    let (_, bytes) = rows.first().ok_or_else(damaged)?;
    std::str::from_utf8(bytes).ok().and_then(|s| s.parse().ok()).ok_or_else(damaged)
}

fn parse<T: serde::de::DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::Damaged { what: "control row", detail: format!("{name}: {e}") })
}

/// The rows of one kind that are numbered.
fn numbered<T: serde::de::DeserializeOwned>(meta: &Meta, prefix: &str) -> Result<BTreeMap<u64, T>> {
    let rows = meta.control(prefix)?;
    rows.iter()
        .map(|(name, bytes)| {
            let number = name
                .parse()
                .map_err(|_| Error::Damaged { what: "control row", detail: format!("{prefix}{name}") })?;
            Ok((number, parse(name, bytes)?))
        })
        .collect()
}

fn read_control(meta: &Meta) -> Result<(Control, HeadState)> {
    let mut tree = EpochTree::default();
    let epochs: BTreeMap<u64, EpochRow> = numbered(meta, "epoch/")?;
    for (epoch, row) in epochs {
        if row.parent.is_some_and(|p| p.0 >= epoch) {
            return Err(Error::Damaged {
                what: "epoch row",
                detail: format!("epoch {epoch} is not above its parent"),
            });
        }
        tree.insert(EpochId(epoch), row);
    }
    let head_bytes = meta.control("head")?;
    let (_, bytes) =
        head_bytes.first().ok_or(Error::Damaged { what: "control row", detail: "no head".into() })?;
    let head: HeadRow = parse("head", bytes)?;
    let snapshots: BTreeMap<u64, SnapshotRow> = numbered(meta, "snapshot/")?;
    let abandoned: BTreeMap<u64, AbandonedRow> = numbered(meta, "abandoned/")?;
    let tips =
        snapshots.keys().map(|&e| EpochId(e)).chain(abandoned.values().map(|a| a.epoch)).chain([head.epoch]);
    for tip in tips {
        if tree.get(tip).is_none() {
            return Err(Error::Damaged { what: "control row", detail: format!("epoch {tip} is missing") });
        }
    }
    let lineage = Lineage::new(&tree, head.epoch);
    let mut control = Control {
        tree,
        snapshots: snapshots.into_iter().map(|(e, s)| (EpochId(e), s)).collect(),
        visible: BTreeMap::new(),
        abandoned,
        next_epoch: EpochId(number(meta, "next_epoch")?),
        sealing: BTreeSet::new(),
    };
    control.refresh_visible(&lineage);
    let instance = Arc::new(HeadInstance { serial: head.serial, retired: AtomicBool::new(false) });
    Ok((control, HeadState { epoch: head.epoch, lineage, instance }))
}

fn recover(core: &Arc<Core>, recovery: &mut Recovery) -> Result<()> {
    let head = core.head();
    let unsealed: Vec<EpochId> = {
        let mut c = core.control.lock();
        let lost: Vec<(EpochId, Height)> =
            c.snapshots.iter().filter(|(_, s)| !s.durable).map(|(&e, s)| (e, s.height)).collect();
        for (epoch, height) in lost {
            tracing::warn!("the snapshot of height {height} was not durable yet and is gone");
            c.snapshots.remove(&epoch);
            core.meta.apply_control(vec![(snapshot_row(epoch), None)]);
            recovery.dropped.push(height);
        }
        c.refresh_visible(&head.lineage);
        recovery.dropped.sort_unstable();
        c.tree.iter().filter(|(_, row)| !row.sealed).map(|(e, _)| e).collect()
    };
    for epoch in unsealed {
        recover_epoch(core, epoch)?;
        if epoch != head.epoch {
            core.meta.open_epoch(epoch);
            core.seal(epoch)?;
        }
    }
    Ok(())
}

/// How far apart two times may lie that were taken at the same moment. Ours is the clock's last tick, at most 10 ms old;
/// that of a layer's file is so too, mostly, but of the finer clock if somebody has looked at the one before (Linux 6.13).
/// So a write that was not committed keeps the mtime before it if that is no older than this.
const TICK: Duration = Duration::from_millis(10);

/// Takes the sizes of an unsealed epoch's layers from their files.
fn recover_epoch(core: &Core, epoch: EpochId) -> Result<()> {
    let lineage = Lineage::new(&core.control.lock().tree, epoch);
    let (mut rows, mut files) = (Vec::<(Key, Vec<u8>)>::new(), Vec::new());
    for ino in core.meta.touched_layers(epoch)? {
        let key = Key::layer(ino);
        let Some(Some(bytes)) = core.meta.row_at(&key, epoch)? else { continue };
        let mut row = LayerRow::decode(&bytes)?;
        let path = row.file.path(ino);
        let stat = core.disk.stat(&path).map_err(Error::io("stat", &path))?;
        match stat {
            Some(stat) => {
                row.size = stat.size;
                row.blocks = stat.blocks;
                if row.limit > row.size {
                    row.limit = row.size;
                }
                if let Some(inode) = core.meta.get::<InodeRow>(&lineage, &Key::inode(ino))?
                    && stat.mtime > inode.ctime.after(TICK)
                {
                    // Written after its attributes were last committed.
                    let inode = InodeRow { mtime: stat.mtime, ctime: stat.mtime, ..inode };
                    rows.push((Key::inode(ino), inode.encode()));
                }
            }
            None if row.limit == 0 => row.size = 0,
            // Cannot come of a power cut, since the file is on the disk before the row is. Reading it fails; the
            // rest of the store is as good as ever.
            None => {
                tracing::error!(
                    "inode {ino}, epoch {epoch}: its layer {path} is missing; what it held is lost"
                );
                continue;
            }
        }
        // Sealing may have got as far as this layer, but not to its end: it begins again.
        (row.sealed, row.summed) = (false, false);
        files.push((ino, row.file));
        if core.holes_exact {
            row.chunks = None;
        }
        rows.push((key, row.encode()));
    }
    core.meta.rewrite(|w| {
        // A sealing that a crash has ended may have hashed what is written again now.
        files.iter().try_for_each(|&(ino, file)| w.remove_sums(ino, file))?;
        rows.iter().try_for_each(|(key, row)| w.put(key, epoch, Some(row)))
    })
}

/// Has the holes of the head's layers say again what the rows said when the store was closed. A copy may have made
/// holes of zeros, behind which older data would show, or zeros of holes. From here on the holes count, and the rows say
/// nothing: a write that only fills a hole changes no row.
fn restore_holes(core: &Core, epoch: EpochId) -> Result<()> {
    let mut rows: Vec<(Key, Vec<u8>)> = Vec::new();
    for ino in core.meta.touched_layers(epoch)? {
        let Some(Some(bytes)) = core.meta.row_at(&Key::layer(ino), epoch)? else { continue };
        let mut row = LayerRow::decode(&bytes)?;
        if row.sealed || row.limit == 0 {
            continue;
        }
        let Some(wanted) = row.chunks.take() else { continue };
        rows.push((Key::layer(ino), row.encode()));
        let path = row.file.path(ino);
        let restore = || -> std::io::Result<()> {
            let file = core.disk.open(&path)?;
            let found = scan_chunks(&*file, row.size)?;
            if found == wanted {
                return Ok(());
            }
            tracing::info!("{path}: copied with other holes than it had; they are restored");
            for chunk in &wanted - &found {
                let at = u64::from(chunk) * CHUNK_SIZE;
                let len = CHUNK_SIZE.min(row.size.saturating_sub(at));
                file.write_at(&[0; CHUNK_SIZE as usize][..len as usize], at)?;
            }
            for chunk in &found - &wanted {
                file.punch(u64::from(chunk) * CHUNK_SIZE, CHUNK_SIZE)?;
            }
            file.sync_data()
        };
        match restore() {
            // Its reader is told; the rest of the store is as good as ever.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                tracing::error!(
                    "inode {ino}, epoch {epoch}: its layer {path} is missing; what it held is lost"
                );
            }
            done => done.map_err(Error::io("restore the holes of", &path))?,
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    core.meta.rewrite(|w| rows.iter().try_for_each(|(key, row)| w.put(key, epoch, Some(row))))
}

/// Removes layer files that no row refers to.
fn sweep(core: &Core) -> Result<u64> {
    let mut known: HashSet<(Ino, LayerFile)> = HashSet::new();
    core.meta.for_each_row(|key, _, value| {
        if let (KeyKind::Layer(ino), Some(bytes)) = (key.kind(), value) {
            known.insert((ino, LayerRow::decode(bytes)?.file));
        }
        Ok(())
    })?;
    let mut removed = 0;
    let list = |dir: &str| core.disk.list(dir).map_err(Error::io("list", dir));
    for dir in list("layers")? {
        let dir = format!("layers/{dir}");
        for name in list(&dir)? {
            if let Some(layer) = LayerFile::parse(&name)
                && !known.contains(&layer)
            {
                let path = format!("{dir}/{name}");
                core.disk.remove(&path).map_err(Error::io("remove", &path))?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// Whether the file system below reports holes exactly, chunk by chunk, also before anything is synced.
fn probe_holes(disk: &dyn Disk) -> std::io::Result<bool> {
    const NAME: &str = "probe";
    if disk.stat(NAME)?.is_some() {
        disk.remove(NAME)?;
    }
    let file = disk.create(NAME)?;
    let wanted: BTreeSet<u32> = [1, 3, 4, 9].into();
    let probe = || -> std::io::Result<bool> {
        file.set_len(16 * CHUNK_SIZE)?;
        for &chunk in &wanted {
            // Zeros too: a file system that turns them into holes is not exact for us.
            let byte = u8::from(chunk != 3);
            file.write_at(&[byte; CHUNK_SIZE as usize], u64::from(chunk) * CHUNK_SIZE)?;
        }
        let exact = || {
            Ok::<_, std::io::Error>(scan_chunks(&*file, 16 * CHUNK_SIZE)?.iter().eq(wanted.iter().copied()))
        };
        let before = exact()?;
        file.sync_data()?;
        let after = exact()?;
        file.punch(9 * CHUNK_SIZE, CHUNK_SIZE)?;
        let punched = !scan_chunks(&*file, 16 * CHUNK_SIZE)?.contains(9);
        Ok(before && after && punched)
    };
    let exact = probe();
    drop(file);
    disk.remove(NAME)?;
    match exact {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => Ok(false),
        // A full disk can be mounted too: maps in the rows are right in any case, they only cost more.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => Ok(false),
        other => other,
    }
}

/// The directories of a new store, and its database, empty: what adopting begins with.
pub(crate) fn create_database(disk: &Arc<dyn Disk>) -> Result<Meta> {
    let io = |path: &str| Error::io("create", path.to_owned());
    disk.create_dir("meta").map_err(io("meta"))?;
    disk.create_dir("layers").map_err(io("layers"))?;
    let file = disk.create(DATABASE).map_err(io(DATABASE))?;
    Meta::open(DatabaseFile::new(Arc::clone(disk), file).map_err(io(DATABASE))?)
}

/// The rows of a store that has nothing in it but a root directory.
pub(crate) fn initialize(disk: &Arc<dyn Disk>, root: InodeRow) -> Result<()> {
    let meta = create_database(disk)?;
    let first = EpochId(1);
    let head = HeadRow { epoch: first, serial: 1 };
    meta.rewrite(|w| {
        w.put(&Key::inode(Ino::ROOT), first, Some(&root.encode()))?;
        w.control(&epoch_row(first), Some(&json(&EpochRow::begun(None, Some(0)))))?;
        w.control("head", Some(&json(&head)))?;
        w.control("next_epoch", Some(b"2"))?;
        w.control("next_ino", Some(b"2"))?;
        w.control("clean", Some(b"1"))
    })?;
    meta.close();
    disk.sync_dir("meta").map_err(Error::io("sync", "meta"))
}

/// A root directory's row, made now.
pub(crate) fn root_row(mode: u32, uid: u32, gid: u32) -> InodeRow {
    let now = Timestamp::now();
    InodeRow {
        kind: FileKind::Directory,
        mode,
        uid,
        gid,
        nlink: 2,
        rdev: 0,
        parent: Ino::ROOT,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        target: Box::default(),
    }
}
