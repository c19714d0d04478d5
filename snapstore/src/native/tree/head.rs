//! The live head: plain files below, changed by system calls relative to descriptors.
//!
//! A change that takes several system calls (a file is made, then given to its owner) is made with the head
//! [entered](Instance::enter): a cut waits until nobody is inside, so that no snapshot shows half of one. Handles of a
//! head that a switch has left answer [`Error::Stale`].
//!
//! What was done is never answered with an error, also if the look at what came of it fails: a file system below that is
//! itself one of FUSE may know nothing of a file any more that has just lost its last name. The answer is then worked out
//! from what was seen before ([`after_loss`]).

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, fsync, linkat, syncfs, unlinkat};
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::errors::failed;
use super::file::{NativeFile, open_file};
use super::make;
use super::table::{PathFd, Table, reopen};
use crate::backend::{FileRead, FileWrite, Head, NewInode, RenameMode, SetAttr, Times, Tree, XattrMode};
use crate::chunk::tree::check_name;
use crate::error::{Error, Result};
use crate::native::engine::HeadId;
use crate::sys::{OpenXattrs, proc_path, rename_with};
use crate::types::{Attr, DirEntry, FileKind, Ino, NAME_MAX, StatFs, Timestamp};

const S_ISUID: u32 = 0o4000;
const S_ISGID: u32 = 0o2000;
const S_IXGRP: u32 = 0o010;

/// With more directories than this, all of the file system is synced instead of each.
const DIRECTORIES_MOST: usize = 64;

/// A head while it is the live one.
pub(crate) struct Instance {
    pub head: HeadId,
    retired: AtomicBool,
    /// Shared: a change; exclusive: a cut or a switch. Order: before every lock of a table or a node.
    changing: RwLock<()>,
}

impl Instance {
    /// The live head from now on.
    pub(crate) fn new(head: HeadId) -> Instance {
        Instance { head, retired: AtomicBool::new(false), changing: RwLock::new(()) }
    }

    /// Refuses handles of a head that was left.
    pub(crate) fn check(&self) -> Result<()> {
        if self.retired.load(Ordering::Acquire) { Err(Error::Stale) } else { Ok(()) }
    }

    /// Enters the head to change something in it. Not to be nested.
    pub(crate) fn enter(&self) -> Result<RwLockReadGuard<'_, ()>> {
        let guard = self.changing.read();
        self.check()?;
        Ok(guard)
    }

    /// Waits until nobody changes anything; nobody begins to while the guard is held.
    pub(crate) fn still(&self) -> RwLockWriteGuard<'_, ()> {
        self.changing.write()
    }

    /// The head is left: handles fail from here on. The caller has it [still](Instance::still).
    pub(crate) fn retire(&self, retired: bool) {
        self.retired.store(retired, Ordering::Release);
    }
}

/// The live head's files.
pub(crate) struct LiveHead {
    /// Its inodes.
    pub table: Arc<Table>,
    /// Which head it is, and whether it still is the live one.
    pub instance: Arc<Instance>,
    /// Whether the kernel may get its files' descriptors.
    pub passthrough: bool,
    /// Directories whose entries have changed since they were last synced.
    changed: Mutex<BTreeSet<Ino>>,
}

impl LiveHead {
    /// The head of these inodes.
    pub(crate) fn new(table: Arc<Table>, instance: Arc<Instance>, passthrough: bool) -> LiveHead {
        LiveHead { table, instance, passthrough, changed: Mutex::default() }
    }

    fn table(&self) -> Result<&Table> {
        self.instance.check()?;
        Ok(&self.table)
    }

    fn note(&self, dirs: &[Ino]) {
        self.changed.lock().extend(dirs);
    }

    fn open_file(&self, ino: Ino, times: Times) -> Result<NativeFile> {
        let (node, file) = open_file(self.table()?, ino, true, self.passthrough)?;
        let head = Some(self.instance.clone());
        Ok(NativeFile { ino, file, node, head, times, _keep: None })
    }

    /// Takes a name away. Gives what it led to, as it is then.
    fn remove(&self, parent: Ino, name: &OsStr, how: UnlinkatFlags) -> Result<Attr> {
        check_name(name)?;
        let _changing = self.instance.enter()?;
        let dir = self.table.fd(parent)?;
        let (fd, before) = self.table.child(parent, name)?;
        match (how, before.kind == FileKind::Directory) {
            (UnlinkatFlags::NoRemoveDir, true) => return Err(Error::IsDirectory),
            (UnlinkatFlags::RemoveDir, false) => return Err(Error::NotDirectory),
            _ => {}
        }
        unlinkat(&*dir, name, how).map_err(failed("remove from", parent))?;
        self.note(&[parent]);
        Ok(self.left(&before, &fd))
    }

    /// What an inode that lost a name is now; without any, it is kept by its descriptor.
    fn left(&self, before: &Attr, fd: &PathFd) -> Attr {
        let left = after_loss(before, self.table.attr_of(before.ino, fd.as_fd()));
        if left.nlink == 0 {
            self.table.pin(before.ino, fd.clone());
        }
        left
    }

    fn set_times(&self, ino: Ino, fd: &PathFd, set: &SetAttr) -> Result<()> {
        if set.atime.is_none() && set.mtime.is_none() {
            return Ok(());
        }
        let node = self.table.node(ino)?;
        let _times = node.times.lock();
        let time = |time: Option<Timestamp>| {
            time.map_or(TimeSpec::UTIME_OMIT, |time| TimeSpec::new(time.secs, time.nanos.into()))
        };
        let path = proc_path(fd.as_raw_fd());
        utimensat(AT_FDCWD, path.as_str(), &time(set.atime), &time(set.mtime), UtimensatFlags::FollowSymlink)
            .map_err(failed("set the times of", ino))
    }

    fn resize(&self, ino: Ino, size: u64, times: Times) -> Result<()> {
        let file = self.open_file(ino, times)?;
        file.resize(size)
    }

    fn set_mode(&self, ino: Ino, fd: &PathFd, mode: u32) -> Result<()> {
        let path = proc_path(fd.as_raw_fd());
        fchmodat(AT_FDCWD, path.as_str(), Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)
            .map_err(failed("set the mode of", ino))
    }
}

/// What an inode that has lost a name is now, from what it was and what a look at it says.
pub(super) fn after_loss(before: &Attr, now: Result<Attr>) -> Attr {
    let mut left = match now {
        Ok(now) => now,
        // The file system below has let go of it: that was its last name.
        Err(Error::NoEntry) => Attr { nlink: 0, ..*before },
        Err(_) => Attr { nlink: before.nlink.saturating_sub(1), ..*before },
    };
    if left.kind == FileKind::Directory {
        left.nlink = 0;
    }
    left
}

/// The mode that is left when someone unprivileged writes.
fn without_privileges(mode: u32) -> u32 {
    match mode & (S_ISGID | S_IXGRP) {
        bits if bits == S_ISGID | S_IXGRP => mode & !(S_ISUID | S_ISGID),
        _ => mode & !S_ISUID,
    }
}

fn drop_capability(ino: Ino, fd: &PathFd) -> Result<()> {
    let removed = OpenXattrs::of(fd.as_fd()).and_then(|x| x.remove(OsStr::new("security.capability")));
    match removed {
        Err(e) if !matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => {
            Err(failed("remove an attribute of", ino)(e))
        }
        _ => Ok(()),
    }
}

impl Tree for LiveHead {
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        self.table()?.lookup(parent, name)
    }

    fn get_attr(&self, ino: Ino) -> Result<Attr> {
        self.table()?.attr(ino)
    }

    fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        self.table()?.read_link(ino)
    }

    fn read_dir(&self, dir: Ino) -> Result<Vec<DirEntry>> {
        self.table()?.read_dir(dir)
    }

    fn parent(&self, dir: Ino) -> Result<Ino> {
        self.table()?.parent(dir)
    }

    fn get_xattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        self.table()?.get_xattr(ino, name)
    }

    fn list_xattr(&self, ino: Ino) -> Result<Vec<OsString>> {
        self.table()?.list_xattr(ino)
    }

    fn open(&self, ino: Ino) -> Result<Arc<dyn FileRead>> {
        Ok(Arc::new(self.open_file(ino, Times::Keep)?))
    }

    fn stat_fs(&self) -> Result<StatFs> {
        self.table()?.stat_fs()
    }
}

impl Head for LiveHead {
    fn create(&self, parent: Ino, name: &OsStr, new: &NewInode<'_>) -> Result<Attr> {
        check_name(name)?;
        let _changing = self.instance.enter()?;
        let attr = make::make(&self.table, parent, name, new)?;
        self.note(&[parent]);
        Ok(attr)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attr> {
        check_name(name)?;
        let _changing = self.instance.enter()?;
        let (fd, dir) = (self.table.fd(ino)?, self.table.fd(parent)?);
        let before = self.table.attr_of(ino, fd.as_fd())?;
        let path = proc_path(fd.as_raw_fd());
        linkat(AT_FDCWD, path.as_str(), &*dir, name, AtFlags::AT_SYMLINK_FOLLOW)
            .map_err(failed("link into", parent))?;
        self.note(&[parent]);
        let linked = Attr { nlink: before.nlink.saturating_add(1), ..before };
        Ok(self.table.attr_of(ino, fd.as_fd()).unwrap_or(linked))
    }

    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        self.remove(parent, name, UnlinkatFlags::NoRemoveDir)
    }

    fn remove_dir(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        self.remove(parent, name, UnlinkatFlags::RemoveDir)
    }

    fn rename(&self, from: (Ino, &OsStr), to: (Ino, &OsStr), mode: RenameMode) -> Result<Option<Attr>> {
        check_name(from.1)?;
        check_name(to.1)?;
        let _changing = self.instance.enter()?;
        let (source_dir, target_dir) = (self.table.fd(from.0)?, self.table.fd(to.0)?);
        // Looked up, they are known by more than their names.
        let (_, source) = self.table.child(from.0, from.1)?;
        let target = match self.table.child(to.0, to.1) {
            Ok((fd, attr)) => Some((fd, attr)),
            Err(Error::NoEntry) => None,
            Err(e) => return Err(e),
        };
        let flags = match mode {
            RenameMode::Replace => 0,
            RenameMode::NoReplace => libc::RENAME_NOREPLACE,
            RenameMode::Exchange => libc::RENAME_EXCHANGE,
            RenameMode::Whiteout => libc::RENAME_WHITEOUT,
            RenameMode::WhiteoutNoReplace => libc::RENAME_WHITEOUT | libc::RENAME_NOREPLACE,
        };
        let names = ((source_dir.as_fd(), from.1), (target_dir.as_fd(), to.1));
        rename_with(names.0, names.1, flags).map_err(failed("rename in", from.0))?;
        self.note(&[from.0, to.0]);
        match target {
            // Two names of one inode: nothing has happened.
            Some((_, attr)) if attr.ino == source.ino || mode == RenameMode::Exchange => Ok(None),
            target => Ok(target.map(|(fd, attr)| self.left(&attr, &fd))),
        }
    }

    fn set_attr(&self, ino: Ino, set: &SetAttr) -> Result<Attr> {
        if let Some(size) = set.size {
            self.resize(ino, size, set.times)?;
        }
        let _changing = self.instance.enter()?;
        let fd = self.table.fd(ino)?;
        let before = self.table.attr_of(ino, fd.as_fd())?;
        let mut mode = set.mode.map_or(before.mode, |mode| mode & 0o7777);
        if set.drop_privileges && before.kind != FileKind::Directory {
            mode = without_privileges(mode);
        }
        if set.uid.is_some() || set.gid.is_some() {
            let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
            fchownat(&*fd, "", uid, gid, AtFlags::AT_EMPTY_PATH | AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(failed("chown", ino))?;
        }
        if before.kind != FileKind::Symlink {
            // A change of owner takes set-id bits away, which is for the caller to decide.
            let now = self.table.attr_of(ino, fd.as_fd())?.mode;
            if mode != now || set.mode.is_some() {
                self.set_mode(ino, &fd, mode)?;
            }
        } else if set.mode.is_some() {
            return Err(Error::Unsupported);
        }
        if set.drop_privileges {
            drop_capability(ino, &fd)?;
        }
        self.set_times(ino, &fd, set)?;
        self.table.attr_of(ino, fd.as_fd())
    }

    fn set_xattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        if name.is_empty() || name.len() > NAME_MAX || name.as_bytes().contains(&0) {
            return Err(Error::InvalidArgument);
        }
        let _changing = self.instance.enter()?;
        let fd = self.table.fd(ino)?;
        let flags = match mode {
            XattrMode::Set => 0,
            XattrMode::Create => libc::XATTR_CREATE,
            XattrMode::Replace => libc::XATTR_REPLACE,
        };
        OpenXattrs::of(fd.as_fd())
            .and_then(|xattrs| xattrs.set(name, value, flags))
            .map_err(failed("set an attribute of", ino))
    }

    fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        let _changing = self.instance.enter()?;
        let fd = self.table.fd(ino)?;
        OpenXattrs::of(fd.as_fd())
            .and_then(|xattrs| xattrs.remove(name))
            .map_err(failed("remove an attribute of", ino))
    }

    fn open_write(&self, ino: Ino, times: Times) -> Result<Arc<dyn FileWrite>> {
        Ok(Arc::new(self.open_file(ino, times)?))
    }

    fn drop_privileges(&self, ino: Ino) -> Result<()> {
        let _changing = self.instance.enter()?;
        let fd = self.table.fd(ino)?;
        let mode = self.table.attr_of(ino, fd.as_fd())?.mode;
        if without_privileges(mode) != mode {
            self.set_mode(ino, &fd, without_privileges(mode))?;
        }
        drop_capability(ino, &fd)
    }

    fn sync_names(&self) -> Result<()> {
        self.instance.check()?;
        let dirs = std::mem::take(&mut *self.changed.lock());
        let synced = self.sync_directories(&dirs);
        if synced.is_err() {
            self.changed.lock().extend(dirs);
        }
        synced
    }

    fn forget(&self, ino: Ino) -> Result<()> {
        self.instance.check()?;
        let Ok(node) = self.table.node(ino) else { return Ok(()) };
        let open = node.open.lock().upgrade();
        if ino == Ino::ROOT || self.table.attr(ino).is_ok_and(|attr| attr.nlink > 0) {
            return Ok(());
        }
        match open {
            // It is there for him who has it open. Requests overtake each other: he may be about to close it.
            Some(open) => open.forget_at_close(&self.table, ino),
            None => self.table.forget(ino),
        }
        Ok(())
    }
}

impl LiveHead {
    fn sync_directories(&self, dirs: &BTreeSet<Ino>) -> Result<()> {
        if dirs.len() > DIRECTORIES_MOST {
            return syncfs(&*self.table.root()?).map_err(failed("sync", Ino::ROOT));
        }
        for &dir in dirs {
            let open = self.table.fd(dir).and_then(|fd| {
                reopen(fd.as_fd(), OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(failed("open", dir))
            });
            match open {
                Ok(open) => fsync(&open).map_err(failed("sync", dir))?,
                // Removed meanwhile, and the number may be a file's by now: what is to be durable is the removal, in the
                // directory above.
                Err(Error::NoEntry | Error::NotDirectory) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
