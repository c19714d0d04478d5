//! The number of the newest commit that is known to be on the disk, kept beside the database.
//!
//! The database alone cannot tell a commit that a power cut has torn from one that was on the disk and is damaged: of
//! both it goes back to the commit before. So each commit has a number, in a control row, and when it is on the disk
//! the number is written to a file of its own. That file is not synced then, since a commit is to cost one flush; it is
//! with the periodic commit, and when the store is closed. So it may lag behind, but never says more than the database
//! has: a database whose newest commit is below it has lost one.
//!
//! Two records in pages of their own are written in turns, so that a torn write leaves the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redb::{ReadableTable, Table};

use crate::chunk::database::{database, open_value, seal_value};
use crate::disk::{Disk, DiskFile};
use crate::error::{Error, Result};

const PATH: &str = "meta/newest";
/// The control row.
const ROW: &str = "commit";
const MAGIC: &[u8; 8] = b"tmfs cmt";
const PAGE: u64 = 4096;
const RECORD: usize = 20;

type Control<'t> = Table<'t, &'static str, &'static [u8]>;

pub(super) struct Newest {
    /// `None`: it could not be made, on a full disk.
    file: Option<Arc<dyn DiskFile>>,
    /// The newest commit.
    number: AtomicU64,
    unsynced: AtomicBool,
}

fn record(number: u64) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..8].copy_from_slice(MAGIC);
    record[8..16].copy_from_slice(&number.to_le_bytes());
    let sum = crc32c::crc32c(&record[..16]);
    record[16..].copy_from_slice(&sum.to_le_bytes());
    record
}

/// The number in a record; `None` when it is torn, damaged, or was never written.
fn number_in(found: &[u8; RECORD]) -> Option<u64> {
    let number = u64::from_le_bytes(found[8..16].try_into().expect("eight bytes"));
    (*found == record(number)).then_some(number)
}

impl Newest {
    /// Opens the file, or makes it. `fresh`: the database is new, and what an earlier one left here says nothing.
    pub(super) fn open(disk: &Arc<dyn Disk>, fresh: bool) -> Result<Newest> {
        let io = |op| Error::io(op, PATH);
        let there = disk.stat(PATH).map_err(io("stat"))?.is_some();
        if there && fresh {
            disk.remove(PATH).map_err(io("remove"))?;
        }
        let file = match there && !fresh {
            true => Some(disk.open(PATH).map_err(io("open"))?),
            false => make(disk).inspect_err(|e| tracing::warn!("{PATH}: cannot be made: {e}")).ok(),
        };
        let mut number = 0;
        for slot in 0..2 {
            let mut found = [0; RECORD];
            if let Some(file) = &file
                && file.read_at(&mut found, slot * PAGE).map_err(io("read"))? == RECORD
            {
                number = number.max(number_in(&found).unwrap_or(0));
            }
        }
        Ok(Newest { file, number: number.into(), unsynced: AtomicBool::new(false) })
    }

    /// Whether the database has the newest commit that is known to have been on the disk.
    pub(super) fn is_in(&self, control: &Control<'_>) -> Result<bool> {
        let stored = control.get(ROW).map_err(database)?;
        let in_database = match &stored {
            Some(stored) => {
                let text = open_value(ROW.as_bytes(), stored.value())?;
                let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
                let detail = || "the number of the newest commit is none".into();
                number.ok_or_else(|| Error::Damaged { what: "metadata row", detail: detail() })?
            }
            None => 0,
        };
        let known = self.number.fetch_max(in_database, Ordering::AcqRel);
        Ok(known <= in_database)
    }

    /// Numbers a commit, in its transaction.
    pub(super) fn count(&self, control: &mut Control<'_>) -> Result<u64> {
        let number = self.number.load(Ordering::Acquire) + 1;
        let value = seal_value(ROW.as_bytes(), number.to_string().into_bytes());
        control.insert(ROW, value.as_slice()).map_err(database)?;
        Ok(number)
    }

    /// The commit is on the disk. A file that cannot be written lags behind, and that is all.
    pub(super) fn committed(&self, number: u64) {
        self.number.store(number, Ordering::Release);
        let Some(file) = &self.file else { return };
        self.unsynced.store(true, Ordering::Release);
        if let Err(e) = file.write_at(&record(number), number % 2 * PAGE) {
            tracing::debug!("{PATH}: {e}");
        }
    }

    /// Has the disk know the number too.
    pub(super) fn sync(&self) {
        if let Some(file) = &self.file
            && self.unsynced.swap(false, Ordering::AcqRel)
            && let Err(e) = file.sync_data()
        {
            tracing::warn!("{PATH}: cannot be synced: {e}");
        }
    }
}

/// The file, with the space that it will ever need.
fn make(disk: &Arc<dyn Disk>) -> std::io::Result<Arc<dyn DiskFile>> {
    let file = disk.create(PATH)?;
    file.write_at(&[0; 2 * PAGE as usize], 0)?;
    file.sync_data()?;
    disk.sync_dir("meta")?;
    Ok(file)
}
