//! The content of files.

use std::os::fd::{AsFd, BorrowedFd};

use super::*;

impl FileRead for FrozenFile {
    fn backing(&self) -> Option<BorrowedFd<'_>> {
        self.0.get(self.1).ok()?.file.as_ref().map(|file| file.as_fd())
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        Ok(self.0.get(self.1)?.read(buf, offset))
    }
    fn len(&self) -> Result<u64> {
        Ok(self.0.get(self.1)?.stat().size)
    }
    fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        self.0.get(self.1)?.seek(offset, what)
    }
}

impl FileRead for LiveFile {
    fn backing(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(|file| file.as_fd())
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.head.read(|s| Ok(s.get(self.ino)?.read(buf, offset)))
    }
    fn len(&self) -> Result<u64> {
        self.head.read(|s| Ok(s.get(self.ino)?.stat().size))
    }
    fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        self.head.read(|s| s.get(self.ino)?.seek(offset, what))
    }
}

impl FileWrite for LiveFile {
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.head.write(|w| {
            let inode = w.live.get_mut(self.ino)?;
            inode.write(data, offset);
            inode.touch();
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
            if grow && inode.stat().size < end {
                inode.resize(end);
            }
            inode.touch();
            Ok(())
        })
    }

    fn copy_from(&self, source: &dyn FileRead, source_offset: u64, offset: u64, len: u64) -> Result<u64> {
        let mut buf = vec![0; len.min(1 << 20) as usize];
        let read = source.read_at(&mut buf, source_offset)?;
        self.write_at(&buf[..read], offset)?;
        Ok(read as u64)
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        let gate = self.head.world.lock().gate.clone();
        let _open = gate.read();
        if let Some(file) = &self.file {
            file.sync_all().unwrap();
        }
        self.head.write(|w| {
            w.synced += 1;
            Ok(())
        })
    }
}
