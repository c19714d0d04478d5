//! The mirror's answers to the kernel.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use nix::fcntl::{FallocateFlags, copy_file_range, fallocate};
use nix::unistd::{Whence, lseek};

use super::{Change, Mirror, attr};

const TTL: Duration = Duration::from_secs(24 * 3600);
const FILE: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE;

/// The answer that there is nothing under a name, which the kernel may keep.
const NOTHING: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

fn send_entry(found: io::Result<FileAttr>, reply: ReplyEntry) {
    match found {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(error) => reply.error(error.into()),
    }
}

fn send_attr(attr: io::Result<FileAttr>, reply: ReplyAttr) {
    match attr {
        Ok(attr) => reply.attr(&TTL, &attr),
        Err(error) => reply.error(error.into()),
    }
}

fn send_empty(done: io::Result<()>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    }
}

/// A value, or only its length where no room is offered.
fn send_xattr(value: io::Result<Vec<u8>>, room: u32, reply: ReplyXattr) {
    match value {
        Ok(value) if room == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > room as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(error.into()),
    }
}

thread_local! {
    /// Each worker reads into one buffer.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn read_full(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64)? {
            0 => break,
            len => done += len,
        }
    }
    Ok(done)
}

impl Filesystem for Mirror {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // As tmfs does; see `fs/src/adapter/init.rs`.
        for flag in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_EXPORT_SUPPORT,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_WRITEBACK_CACHE,
        ] {
            let _ = config.add_capabilities(flag);
        }
        if let Err(most) = config.set_max_write(1 << 20) {
            let _ = config.set_max_write(most);
        }
        if let Err(most) = config.set_max_readahead(16 << 20) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(128);
        let _ = config.set_congestion_threshold(96);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.child(parent, name).and_then(fs::symlink_metadata);
        match found {
            Ok(meta) => send_entry(Ok(self.found(parent, name, &meta)), reply),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                reply.entry(&TTL, &NOTHING, Generation(0))
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.nodes.write().forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let meta = match fh {
            Some(fh) => self.files.get(fh).and_then(|file| file.metadata()),
            None => self.path(ino).and_then(fs::symlink_metadata),
        };
        send_attr(meta.map(|meta| attr(ino.0, &meta)), reply);
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        send_attr(self.changed(ino, fh, &Change { mode, uid, gid, size, atime, mtime }), reply);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.path(ino).and_then(fs::read_link) {
            Ok(target) => reply.data(target.as_os_str().as_bytes()),
            Err(error) => reply.error(error.into()),
        }
    }

    fn mkdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let make = |path: &Path| DirBuilder::new().mode(mode & !umask).create(path);
        send_entry(self.made(parent, name, make), reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        send_empty(self.removed(parent, name, |path| fs::remove_file(path)), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        send_empty(self.removed(parent, name, |path| fs::remove_dir(path)), reply);
    }

    fn symlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let make = |path: &Path| std::os::unix::fs::symlink(target, path);
        send_entry(self.made(parent, name, make), reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        send_empty(self.renamed((parent, name), (newparent, newname), flags), reply);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let make = |path: &Path| fs::hard_link(self.path(ino)?, path);
        send_entry(self.made(newparent, newname, make), reply);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        // The kernel reads the rest of a page that is written in part, and keeps O_APPEND itself.
        let write = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
        let truncate = write && flags.0 & libc::O_TRUNC != 0;
        let open = |path| OpenOptions::new().read(true).write(write).truncate(truncate).open(path);
        match self.path(ino).and_then(open) {
            Ok(file) => reply.opened(self.files.insert(file), FILE),
            Err(error) => reply.error(error.into()),
        }
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(mode & !umask).truncate(flags & libc::O_TRUNC != 0);
        let made = self.child(parent, name).and_then(|path| {
            let file = options.open(path)?;
            let meta = file.metadata()?;
            Ok((file, meta))
        });
        match made {
            Ok((file, meta)) => {
                let attr = self.found(parent, name, &meta);
                reply.created(&TTL, &attr, Generation(0), self.files.insert(file), FILE);
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size as usize {
                buffer.resize(size as usize, 0);
            }
            let buf = &mut buffer[..size as usize];
            match self.files.get(fh).and_then(|file| read_full(&file, buf, offset)) {
                Ok(len) => reply.data(&buf[..len]),
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.files.get(fh).and_then(|file| file.write_all_at(data, offset)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.files.remove(fh);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let sync = |file: &File| if datasync { file.sync_data() } else { file.sync_all() };
        send_empty(self.files.get(fh).and_then(|file| sync(&file)), reply);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.listed(ino) {
            Ok(entries) => reply.opened(self.dirs.insert(entries), FopenFlags::empty()),
            Err(error) => reply.error(error.into()),
        }
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = match self.dirs.get(fh) {
            Ok(entries) => entries,
            Err(error) => return reply.error(error.into()),
        };
        for (at, entry) in entries.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(entry.ino), at as u64 + 1, entry.kind, &entry.name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (entries, path) = match self.dirs.get(fh).and_then(|entries| Ok((entries, self.path(ino)?))) {
            Ok(found) => found,
            Err(error) => return reply.error(error.into()),
        };
        for (at, entry) in entries.iter().enumerate().skip(offset as usize) {
            let Ok(meta) = fs::symlink_metadata(path.join(&entry.name)) else { continue };
            // The kernel neither looks up nor forgets what `.` and `..` lead to.
            let dots = at < 2;
            let attr = if dots { attr(ino.0, &meta) } else { self.found(ino, &entry.name, &meta) };
            if reply.add(attr.ino, at as u64 + 1, &entry.name, &TTL, &attr, Generation(0)) {
                if !dots {
                    self.nodes.write().forget(attr.ino.0, 1);
                }
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.dirs.remove(fh);
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        send_empty(self.path(ino).and_then(File::open).and_then(|dir| dir.sync_all()), reply);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match nix::sys::statvfs::statvfs(&self.source) {
            Ok(s) => reply.statfs(
                s.blocks(),
                s.blocks_free(),
                s.blocks_available(),
                s.files(),
                s.files_free(),
                s.block_size() as u32,
                s.name_max() as u32,
                s.fragment_size() as u32,
            ),
            Err(error) => reply.error(io::Error::from(error).into()),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        send_empty(self.path(ino).and_then(|path| xattr::set(path, name, value)), reply);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = self.path(ino).and_then(|path| xattr::get(path, name));
        let none = || io::Error::from_raw_os_error(libc::ENODATA);
        send_xattr(value.and_then(|value| value.ok_or_else(none)), size, reply);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self
            .path(ino)
            .and_then(xattr::list)
            .map(|names| names.flat_map(|name| [name.as_bytes(), &[0]].concat()).collect());
        send_xattr(names, size, reply);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        send_empty(self.path(ino).and_then(|path| xattr::remove(path, name)), reply);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_truncate(mode);
        let allocate = |file: &File| Ok(fallocate(file, mode, offset as libc::off_t, length as libc::off_t)?);
        send_empty(self.files.get(fh).and_then(|file| allocate(&file)), reply);
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let whence = if whence == libc::SEEK_DATA { Whence::SeekData } else { Whence::SeekHole };
        match self.files.get(fh).and_then(|file| Ok(lseek(&*file, offset, whence)?)) {
            Ok(found) => reply.offset(found),
            Err(error) => reply.error(error.into()),
        }
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let copied = self.files.get(fh_in).and_then(|from| {
            let (to, mut from_at, mut to_at) = (self.files.get(fh_out)?, offset_in as i64, offset_out as i64);
            let len = len.min(1 << 30) as usize;
            Ok(copy_file_range(&*from, Some(&mut from_at), &*to, Some(&mut to_at), len)?)
        });
        match copied {
            Ok(len) => reply.written(len as u32),
            Err(error) => reply.error(error.into()),
        }
    }
}
