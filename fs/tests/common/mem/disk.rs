//! Content on a disk: a nameless file for each inode, which the kernel may have. A snapshot copies them all.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use super::*;

pub fn read(file: &File, buf: &mut [u8], offset: u64) -> usize {
    let mut read = 0;
    while let Ok(more @ 1..) = file.read_at(&mut buf[read..], offset + read as u64) {
        read += more;
    }
    read
}

pub fn punch(file: &File, from: u64, to: u64) {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, flags, from as i64, (to - from).min(i64::MAX as u64 - from) as i64).unwrap();
}

pub fn seek(file: &File, offset: u64, what: Seek) -> Result<u64> {
    let whence = match what {
        Seek::Data => Whence::SeekData,
        Seek::Hole => Whence::SeekHole,
    };
    lseek(file.as_fd(), offset as i64, whence).map(|found| found as u64).map_err(|_| Error::NoData)
}

impl World {
    /// A file for a new inode.
    pub fn new_file(&self, kind: FileKind) -> Option<Arc<File>> {
        (self.on_disk && kind == FileKind::Regular).then(|| Arc::new(tempfile::tempfile().unwrap()))
    }
}

impl Inode {
    /// The attributes, with what the file on the disk says of its content.
    pub fn stat(&self) -> Attr {
        let Some(file) = &self.file else { return self.attr };
        let meta = file.metadata().unwrap();
        let time = |secs, nanos| Timestamp { secs, nanos: nanos as u32 };
        let mtime = time(meta.mtime(), meta.mtime_nsec());
        let ctime = time(meta.ctime(), meta.ctime_nsec()).max(self.attr.ctime);
        Attr { size: meta.len(), blocks: meta.blocks(), mtime, ctime, ..self.attr }
    }

    pub fn set_mtime(&mut self, time: Timestamp) {
        self.attr.mtime = time;
        if let Some(file) = &self.file {
            file.set_modified(time.into()).unwrap();
        }
    }
}

impl State {
    /// The same, with files of its own.
    pub fn copy(&self) -> State {
        let mut copy = self.clone();
        for inode in copy.inodes.values_mut() {
            let Some(file) = &inode.file else { continue };
            let (new, meta) = (tempfile::tempfile().unwrap(), file.metadata().unwrap());
            let mut buf = vec![0; meta.len() as usize];
            file.read_exact_at(&mut buf, 0).unwrap();
            new.write_all_at(&buf, 0).unwrap();
            new.set_modified(meta.modified().unwrap()).unwrap();
            inode.file = Some(Arc::new(new));
        }
        copy
    }
}
