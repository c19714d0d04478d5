//! Shows a [`Disk`] as the one file of a FUSE file system, for a loop device to sit on.
//!
//! The file is opened with direct I/O and served by one thread: each request of the loop device arrives as it was
//! issued and in its order, and its flush arrives as `fsync`. Nothing is kept between.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, WriteFlags,
};

use super::disk::Disk;

/// The file's name.
pub const NAME: &str = "disk";

const FILE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);

/// Ends the connection when process `$2` has died. Its own death may not do that: a thread of it that waits for the disk
/// cannot die before the connection ends, which cannot end before the thread has died.
const WATCH: &str = "while read -r _ _ state _ < \"/proc/$2/stat\" && [ \"$state\" != Z ]; do sleep 1; done; umount -f \"$1\"";

/// Serves until the mount is gone.
pub struct Server {
    session: BackgroundSession,
    watch: Child,
}

impl Server {
    /// Shows `disk` below `dir`.
    pub fn mount(disk: Arc<Disk>, dir: &Path) -> io::Result<Server> {
        let mut config = fuser::Config::default();
        config.mount_options = vec![MountOption::FSName("disk".to_owned()), MountOption::DefaultPermissions];
        let session = fuser::Session::new(Served { disk }, dir, &config)?.spawn()?;
        let watch = Command::new("sh")
            .args(["-c", WATCH, "sh"])
            .arg(dir)
            .arg(std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Server { session, watch })
    }

    /// Ends, after somebody has unmounted it.
    pub fn join(mut self) -> io::Result<()> {
        let _ = self.watch.kill();
        let _ = self.watch.wait();
        self.session.join()
    }
}

struct Served {
    disk: Arc<Disk>,
}

impl Served {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let file = ino == FILE;
        let size = if file { self.disk.len() } else { 0 };
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if file { FileType::RegularFile } else { FileType::Directory },
            perm: if file { 0o600 } else { 0o700 },
            nlink: if file { 1 } else { 2 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Served {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.add_capabilities(InitFlags::FUSE_BIG_WRITES | InitFlags::FUSE_MAX_PAGES);
        if let Err(most) = config.set_max_write(1 << 20) {
            let _ = config.set_max_write(most);
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == NAME {
            reply.entry(&TTL, &self.attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(&self.disk.read(offset, size as usize));
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.disk.write(offset, data);
        reply.written(data.len() as u32);
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // `close` flushes nothing of a disk.
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.disk.flush();
        reply.ok();
    }
}
