//! The metadata database's file, through the same door as everything else.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::DiskFile;

/// A [`DiskFile`] as redb wants its storage.
pub(crate) struct DatabaseFile {
    file: Arc<dyn DiskFile>,
    size: AtomicU64,
}

impl DatabaseFile {
    /// The database in `file`, which nobody else may use.
    pub(crate) fn new(file: Arc<dyn DiskFile>) -> io::Result<DatabaseFile> {
        let size = file.stat()?.size.into();
        Ok(DatabaseFile { file, size })
    }
}

impl std::fmt::Debug for DatabaseFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatabaseFile").finish_non_exhaustive()
    }
}

impl redb::StorageBackend for DatabaseFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.size.load(Ordering::Acquire))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match self.file.read_at(out, offset)? {
            n if n == out.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)?;
        self.size.store(len, Ordering::Release);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_at(data, offset)
    }
}
