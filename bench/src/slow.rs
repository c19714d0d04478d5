//! A disk that syncs slowly: one file of a FUSE file system, for a loop device to sit on. Its content is that of an
//! image; reads and writes are handed on, a flush takes as long as it is told.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::Context;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, WriteFlags,
};

/// The file's name.
pub const NAME: &str = "disk";

const FILE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);

/// Show an image as a disk whose flush is slow
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What is on the disk
    image: PathBuf,
    /// Where to mount
    mountpoint: PathBuf,
    /// How long a flush takes, in microseconds
    flush: u64,
}

/// Mounts, and serves until it is unmounted.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let image = OpenOptions::new().read(true).write(true).open(&args.image);
    let image = image.with_context(|| args.image.display().to_string())?;
    let size = image.metadata()?.len();
    let mut config = fuser::Config::default();
    config.mount_options = vec![MountOption::FSName("slow-disk".to_owned()), MountOption::DefaultPermissions];
    // Reads go on while a flush waits, as on a disk.
    config.n_threads = Some(4);
    let disk = Slow { image, size, flush: Duration::from_micros(args.flush) };
    let session = fuser::Session::new(disk, &args.mountpoint, &config)
        .with_context(|| format!("cannot mount at {}", args.mountpoint.display()))?;
    session.run().context("serving the slowed disk")
}

struct Slow {
    image: File,
    size: u64,
    flush: Duration,
}

impl Slow {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let file = ino == FILE;
        let size = if file { self.size } else { 0 };
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

    fn read(&self, offset: u64, size: u32) -> io::Result<Vec<u8>> {
        let len = self.size.saturating_sub(offset).min(u64::from(size));
        let mut data = vec![0; len as usize];
        self.image.read_exact_at(&mut data, offset)?;
        Ok(data)
    }

    fn sync(&self) -> io::Result<()> {
        let started = Instant::now();
        self.image.sync_data()?;
        thread::sleep(self.flush.saturating_sub(started.elapsed()));
        Ok(())
    }
}

impl Filesystem for Slow {
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
        match self.read(offset, size) {
            Ok(data) => reply.data(&data),
            Err(_) => reply.error(Errno::EIO),
        }
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
        match self.image.write_all_at(data, offset) {
            Ok(()) => reply.written(data.len() as u32),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // `close` flushes nothing of a disk.
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        match self.sync() {
            Ok(()) => reply.ok(),
            Err(_) => reply.error(Errno::EIO),
        }
    }
}
