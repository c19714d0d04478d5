//! An open file of the head.

use std::sync::Arc;

use super::content::Content;
use super::head::ChunkHead;
use crate::backend::{Allocate, FileRead, FileWrite, Seek, Times};
use crate::error::{Error, Result};

/// A regular file of the head, open for reading and writing. When the head is switched it fails.
pub(crate) struct HeadFile {
    pub head: ChunkHead,
    pub content: Arc<Content>,
    pub times: Times,
}

impl HeadFile {
    fn check(&self) -> Result<()> {
        if self.head.core.head().instance.serial == self.head.instance.serial {
            Ok(())
        } else {
            Err(Error::Stale)
        }
    }

    /// The content was changed.
    fn changed(&self) -> Result<()> {
        match self.times {
            Times::Touch => self.head.touch_times(self.content.ino),
            Times::Keep => Ok(()),
        }
    }
}

impl FileRead for HeadFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.check()?;
        self.content.read_at(&self.head.core, buf, offset)
    }

    fn len(&self) -> Result<u64> {
        self.check()?;
        Ok(self.content.len())
    }

    fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        self.check()?;
        self.content.seek(&self.head.core, offset, what)
    }
}

impl FileWrite for HeadFile {
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.content.write_at(&self.head.core, data, offset)?;
        self.changed()
    }

    fn allocate(&self, mode: Allocate, offset: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Err(Error::InvalidArgument);
        }
        let core = &self.head.core;
        match mode {
            Allocate::Reserve { keep_size } => self.content.reserve(core, offset, len, keep_size)?,
            Allocate::PunchHole => self.content.zero(core, offset, len, false)?,
            Allocate::ZeroRange { keep_size } => self.content.zero(core, offset, len, !keep_size)?,
        }
        self.changed()
    }

    fn copy_from(&self, source: &dyn FileRead, source_offset: u64, offset: u64, len: u64) -> Result<u64> {
        const STEP: u64 = 1 << 20;
        let core = &self.head.core;
        let mut buf = vec![0; STEP.min(len) as usize];
        let mut done = 0;
        while done < len {
            let want = STEP.min(len - done) as usize;
            let got = source.read_at(&mut buf[..want], source_offset + done)?;
            if got == 0 {
                break;
            }
            self.content.write_at(core, &buf[..got], offset + done)?;
            done += got as u64;
        }
        if done > 0 {
            self.changed()?;
        }
        Ok(done)
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        self.check()?;
        // Times alone never wait for a commit: a power cut may leave those of the last few seconds.
        self.content.sync(&self.head.core)
    }
}
