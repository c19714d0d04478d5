//! The one module that knows the FUSE library: decode, call, reply.
//!
//! Handlers look alike on purpose. Each names its kind of request, calls one operation of the tree and sends what it
//! answers; there is no decision here that a test without a kernel would miss. [`Adapter::run`] counts the request,
//! has it watched, and catches a panic (a panic that escaped would end the worker thread, and with the last one the
//! mount); [`Adapter::serve`] does the same inside the tree. The tree is left only after the reply was sent: see
//! [`crate::tree`].
//!
//! Whatever may take long *and* needs other requests to be answered meanwhile must not run on a worker: a snapshot
//! asked for by `mkdir` waits for writes that come as requests. Such handlers pass their reply on to a thread of its
//! own.

mod backing;
mod decode;
mod init;
mod reply;
mod requests;
mod serve;
mod session;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use snapstore::FileKind;
use snapstore::backend::{SetAttr, Times};

use crate::mounted::Mounted;
use crate::tree::{Entered, Found, Make, is_heights};
use crate::workers::{Busy, Workers};

pub use backing::Backing;
use decode::{caller, errno, file_attr, file_type, from_fuser, node, rename_mode, timestamp, xattr_mode};
pub use init::Wanted;
use reply::{send_empty, send_entry, send_xattr};
pub use requests::{Kind, Requests};
pub use session::Session;

/// Answers the kernel's requests out of a mounted tree.
struct Adapter {
    mounted: Arc<Mounted>,
    wanted: Wanted,
    /// The threads that the library runs; none, for what runs on a thread of its own ([`Adapter::aside`]).
    workers: Option<Arc<Workers>>,
}

/// How the kernel may keep the listing of a directory ([`Entered::open_dir`](crate::tree::Entered::open_dir)).
fn listing_flags(keep: Option<bool>) -> FopenFlags {
    match keep {
        Some(true) => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
        Some(false) => FopenFlags::FOPEN_CACHE_DIR,
        None => FopenFlags::empty(),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let agreed = init::negotiate(config, self.wanted);
        if !agreed.writeback {
            self.mounted.tree.writes_go_through();
        }
        if agreed.passthrough {
            self.mounted.tree.pass_through();
        }
        self.mounted.add_limits(agreed.limits);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.serve(
            Kind::Lookup,
            parent,
            |tree| tree.lookup(caller(req), node(parent), name),
            |found| send_entry(found, reply),
        );
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        // One of many, it may be.
        let _busy = self.workers.as_ref().map(Busy::brief);
        let _ = self.run(Kind::Forget, ino, || {
            self.mounted.tree.forget(node(ino), nlookup);
            Ok(())
        });
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(
            Kind::GetAttr,
            ino,
            |tree| tree.get_attr(node(ino)),
            |result| match result {
                Ok((attr, ttl)) => reply.attr(&ttl, &file_attr(node(ino), &attr)),
                Err(e) => reply.error(errno(e)),
            },
        );
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(timestamp),
            mtime: mtime.map(timestamp),
            ctime: ctime.map(from_fuser),
            drop_privileges: false,
            times: Times::Touch,
        };
        let fh = fh.map(|fh| fh.0);
        self.serve_in_order(
            (Kind::SetAttr, size.is_some()),
            ino,
            |tree| tree.set_attr(caller(req), node(ino), fh, set),
            |result| match result {
                Ok((attr, ttl)) => reply.attr(&ttl, &file_attr(node(ino), &attr)),
                Err(e) => reply.error(errno(e)),
            },
        );
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.serve(
            Kind::ReadLink,
            ino,
            |tree| tree.read_link(node(ino)),
            |result| match result {
                Ok(target) => reply.data(&target),
                Err(e) => reply.error(errno(e)),
            },
        );
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        // A mode without a type asks for a regular file.
        let kind = FileKind::from_mode(mode).unwrap_or(FileKind::Regular);
        let what = Make { kind, mode, umask, rdev, target: &[] };
        self.make(Kind::MkNod, req, parent, name, &what, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        if !is_heights(node(parent)) {
            let what = Make { kind: FileKind::Directory, mode, umask, rdev: 0, target: &[] };
            return self.make(Kind::MkDir, req, parent, name, &what, reply);
        }
        let (who, name) = (caller(req), name.to_owned());
        self.aside(Kind::MkDir, move |adapter| {
            let taken = adapter.run(Kind::MkDir, parent, || adapter.mounted.make_height(&name));
            match taken {
                Ok(()) => adapter.serve(
                    Kind::Lookup,
                    parent,
                    |tree| tree.lookup(who, node(parent), &name),
                    |found| send_entry(found, reply),
                ),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(
            Kind::Unlink,
            parent,
            |tree| tree.unlink(node(parent), name),
            |result| send_empty(result, reply),
        );
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if !is_heights(node(parent)) {
            let work = |tree: &Entered<'_>| tree.remove_dir(node(parent), name);
            return self.serve(Kind::RmDir, parent, work, |result| send_empty(result, reply));
        }
        let (who, name) = (caller(req), name.to_owned());
        self.aside(Kind::RmDir, move |adapter| {
            send_empty(adapter.run(Kind::RmDir, parent, || adapter.mounted.remove_height(who, &name)), reply)
        });
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        let what = Make { kind: FileKind::Symlink, mode: 0o777, umask: 0, rdev: 0, target };
        self.make(Kind::Symlink, req, parent, name, &what, reply);
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
        let (from, to) = ((node(parent), name), (node(newparent), newname));
        self.serve(
            Kind::Rename,
            parent,
            |tree| tree.rename(from, to, rename_mode(flags)?),
            |result| send_empty(result, reply),
        );
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let work = |tree: &Entered<'_>| tree.link(node(ino), node(newparent), newname).map(Found::Entry);
        self.serve(Kind::Link, ino, work, |found| send_entry(found, reply));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.serve_in_order(
            (Kind::Open, flags.0 & libc::O_TRUNC != 0),
            ino,
            |tree| tree.open(caller(req), node(ino), flags.0),
            |result| match result {
                Ok(opened) => self.send_opened(node(ino), &opened, reply),
                Err(e) => reply.error(errno(e)),
            },
        );
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let work = |tree: &Entered<'_>| tree.create(caller(req), node(parent), name, (mode, umask));
        self.serve(Kind::Create, parent, work, |result| match result {
            Ok((entry, opened)) => self.send_created(&entry, &opened, reply),
            Err(e) => reply.error(errno(e)),
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _busy = self.busy();
        decode::with_buffer(size as usize, |buf| {
            match self.run(Kind::Read, ino, || self.mounted.tree.read(fh.0, buf, offset)) {
                Ok(len) => reply.data(&buf[..len]),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _busy = self.busy();
        let unprivileged = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match self.run(Kind::Write, ino, || self.mounted.tree.write(fh.0, data, offset, unprivileged)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(e) => reply.error(errno(e)),
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
        // Once: the kernel does not ask again. It has written its pages back before asking.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _busy = self.busy();
        let result = self.run(Kind::Release, ino, || {
            self.mounted.tree.release(fh.0);
            self.closed(node(ino));
            if !self.mounted.tree.handles.is_writer(node(ino)) {
                self.mounted.trickle.closed(node(ino));
            }
            Ok(())
        });
        send_empty(result, reply);
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let _busy = self.busy();
        send_empty(self.run(Kind::Fsync, ino, || self.mounted.tree.sync(fh.0, datasync)), reply);
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.serve(
            Kind::OpenDir,
            ino,
            |tree| tree.open_dir(caller(req), node(ino)),
            |result| match result {
                Ok((fh, keep)) => reply.opened(FileHandle(fh), listing_flags(keep)),
                Err(e) => reply.error(errno(e)),
            },
        );
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let _busy = self.busy();
        let told = self.run(Kind::ReadDir, ino, || {
            let tree = self.mounted.tree.enter();
            tree.read_dir(fh.0, offset, |item| {
                reply.add(INodeNo(item.id.0), item.next, file_type(item.kind), item.name)
            })?;
            Ok(tree)
        });
        match told {
            Ok(_entered) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _busy = self.busy();
        let told = self.run(Kind::ReadDir, ino, || {
            let tree = self.mounted.tree.enter();
            tree.read_dir_plus(caller(req), fh.0, offset, |item, e| {
                let attr = file_attr(e.id, &e.attr);
                reply.add(
                    INodeNo(e.id.0),
                    item.next,
                    item.name,
                    &e.entry_ttl,
                    &attr,
                    Generation(e.generation),
                )
            })?;
            Ok(tree)
        });
        match told {
            Ok(_entered) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn releasedir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        let _busy = self.busy();
        let result = self.run(Kind::ReleaseDir, ino, || {
            self.mounted.tree.release_dir(fh.0);
            Ok(())
        });
        send_empty(result, reply);
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // Of a view's directory: waits until its snapshot is durable, which may take long.
        self.aside(Kind::FsyncDir, move |adapter| {
            send_empty(adapter.run(Kind::FsyncDir, ino, || adapter.mounted.sync_directory(fh.0)), reply)
        });
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.serve(
            Kind::StatFs,
            ino,
            |tree| tree.stat_fs(),
            |result| match result {
                Ok(s) => {
                    let name_max = snapstore::NAME_MAX as u32;
                    let (size, files) = (s.block_size, (s.files, s.files_free));
                    reply.statfs(
                        s.blocks,
                        s.blocks_free,
                        s.blocks_available,
                        files.0,
                        files.1,
                        size,
                        name_max,
                        size,
                    )
                }
                Err(e) => reply.error(errno(e)),
            },
        );
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let work = |tree: &Entered<'_>| tree.set_xattr(node(ino), name, value, xattr_mode(flags)?);
        self.serve(Kind::SetXattr, ino, work, |result| send_empty(result, reply));
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.serve(
            Kind::GetXattr,
            ino,
            |tree| tree.get_xattr(node(ino), name),
            |value| send_xattr(value, size, reply),
        );
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.serve(
            Kind::ListXattr,
            ino,
            |tree| tree.list_xattr(node(ino)),
            |value| send_xattr(value, size, reply),
        );
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(
            Kind::RemoveXattr,
            ino,
            |tree| tree.remove_xattr(node(ino), name),
            |result| send_empty(result, reply),
        );
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // Once: the kernel checks permissions itself and does not ask again.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _busy = self.busy();
        let work = || self.mounted.tree.allocate(fh.0, mode, offset, length);
        send_empty(self.run(Kind::Fallocate, ino, work), reply);
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let _busy = self.busy();
        match self.run(Kind::Seek, ino, || self.mounted.tree.seek(fh.0, offset, whence)) {
            Ok(found) => reply.offset(found),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((fh_in.0, offset_in), (fh_out.0, offset_out));
        let _busy = self.busy();
        match self.run(Kind::CopyRange, ino_in, || self.mounted.tree.copy(from, to, len)) {
            Ok(copied) => reply.written(copied),
            Err(e) => reply.error(errno(e)),
        }
    }
}
