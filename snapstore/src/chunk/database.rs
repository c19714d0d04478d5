//! The database below the metadata: redb, one file of copy-on-write B-trees, in which a commit is one flush of the disk.
//!
//! Three tables. `rows` has the versioned rows, by key and epoch; a value begins with one byte, 0 for a tombstone, 1 for
//! a row. `touched` says which keys an epoch has rows for, so that nothing ever scans everything. `control` has what has
//! no versions: epochs, snapshots, heads, counters.

use std::panic::{AssertUnwindSafe, catch_unwind};

use std::sync::Arc;

use redb::{ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};

use super::lineage::Lineage;
use super::meta::Value;
use super::rows::{Key, split_epoch};
use crate::error::{Error, Result};
use crate::types::EpochId;

pub(super) const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");
/// `epoch key` → nothing: which keys an epoch has rows for, so that nothing ever scans everything.
pub(super) const TOUCHED: TableDefinition<&[u8], ()> = TableDefinition::new("touched");
/// Rows that have no versions: epochs, snapshots, heads, counters.
pub(super) const CONTROL: TableDefinition<&str, &[u8]> = TableDefinition::new("control");

/// The database as of the last commit.
pub(crate) struct ReadView {
    pub(super) rows: ReadOnlyTable<&'static [u8], &'static [u8]>,
    pub(super) touched: ReadOnlyTable<&'static [u8], ()>,
}

/// Memory for the database's page cache.
pub(super) const CACHE_BYTES: usize = 64 << 20;

pub(super) fn live(stored: &[u8]) -> Result<Option<&[u8]>> {
    match stored.split_first() {
        Some((0, [])) => Ok(None),
        Some((1, value)) => Ok(Some(value)),
        _ => Err(Error::Damaged { what: "metadata row", detail: "neither a row nor a tombstone".into() }),
    }
}

pub(super) fn touched_key(epoch: EpochId, key: &Key) -> Vec<u8> {
    [&epoch.0.to_be_bytes()[..], key.as_bytes()].concat()
}

pub(super) type RowTable<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;
pub(super) type TouchedTable<'t> = redb::Table<'t, &'static [u8], ()>;

/// Writes one row, or a tombstone where older versions are to be hidden, or nothing where there are none.
pub(super) fn write_row(
    rows: &mut RowTable<'_>,
    touched: &mut TouchedTable<'_>,
    key: &Key,
    epoch: EpochId,
    value: Option<&[u8]>,
) -> Result<()> {
    let at = key.at(epoch);
    let mark = touched_key(epoch, key);
    if let Some(value) = value {
        rows.insert(at.as_slice(), [&[1], value].concat().as_slice()).map_err(database)?;
        touched.insert(mark.as_slice(), ()).map_err(database)?;
        return Ok(());
    }
    let oldest = key.at(EpochId(0));
    let older = rows.range(oldest.as_slice()..at.as_slice()).map_err(database)?.next().is_some();
    if older {
        rows.insert(at.as_slice(), &[0][..]).map_err(database)?;
        touched.insert(mark.as_slice(), ()).map_err(database)?;
    } else {
        rows.remove(at.as_slice()).map_err(database)?;
        touched.remove(mark.as_slice()).map_err(database)?;
    }
    Ok(())
}

/// Changes rows of sealed epochs within one transaction.
pub(crate) struct RowWriter<'t> {
    pub(super) rows: RowTable<'t>,
    pub(super) touched: TouchedTable<'t>,
    pub(super) control: redb::Table<'t, &'static str, &'static [u8]>,
}

impl RowWriter<'_> {
    /// Stores a row (`None`: a tombstone), in place of what was there.
    pub(crate) fn put(&mut self, key: &Key, epoch: EpochId, value: Option<&[u8]>) -> Result<()> {
        let stored = value.map_or_else(|| vec![0], |v| [&[1], v].concat());
        self.rows.insert(key.at(epoch).as_slice(), stored.as_slice()).map_err(database)?;
        self.touched.insert(touched_key(epoch, key).as_slice(), ()).map_err(database)?;
        Ok(())
    }

    /// Removes a row.
    pub(crate) fn remove(&mut self, key: &Key, epoch: EpochId) -> Result<()> {
        self.rows.remove(key.at(epoch).as_slice()).map_err(database)?;
        self.touched.remove(touched_key(epoch, key).as_slice()).map_err(database)?;
        Ok(())
    }

    /// The row of exactly this epoch.
    pub(crate) fn get(&self, key: &Key, epoch: EpochId) -> Result<Option<Option<Vec<u8>>>> {
        let stored = self.rows.get(key.at(epoch).as_slice()).map_err(database)?;
        stored.map(|s| live(s.value()).map(|v| v.map(<[u8]>::to_vec))).transpose()
    }

    /// Changes a control row.
    pub(crate) fn control(&mut self, name: &str, value: Option<&[u8]>) -> Result<()> {
        match value {
            Some(v) => self.control.insert(name, v).map_err(database)?,
            None => self.control.remove(name).map_err(database)?,
        };
        Ok(())
    }
}

impl ReadView {
    pub(super) fn new(db: &redb::Database) -> Result<ReadView> {
        let txn = db.begin_read().map_err(database)?;
        Ok(ReadView {
            rows: txn.open_table(ROWS).map_err(database)?,
            touched: txn.open_table(TOUCHED).map_err(database)?,
        })
    }

    pub(super) fn newest_below(
        &self,
        lineage: &Lineage,
        key: &Key,
        limit: EpochId,
    ) -> Result<Option<(EpochId, Value)>> {
        let (low, high) = (key.at(EpochId(0)), key.at(limit));
        for entry in self.rows.range::<&[u8]>(low.as_slice()..high.as_slice()).map_err(database)?.rev() {
            let (stored, value) = entry.map_err(database)?;
            let (_, epoch) = split_epoch(stored.value())?;
            if lineage.contains(epoch) {
                return Ok(Some((epoch, live(value.value())?.map(Arc::from))));
            }
        }
        Ok(None)
    }

    pub(super) fn row_at(&self, key: &Key, epoch: EpochId) -> Result<Option<Value>> {
        let stored = self.rows.get(key.at(epoch).as_slice()).map_err(database)?;
        stored.map(|s| live(s.value()).map(|v| v.map(Arc::from))).transpose()
    }

    pub(super) fn scan(
        &self,
        lineage: &Lineage,
        prefix: &[u8],
        mut each: impl FnMut(&[u8], Option<&[u8]>) -> Result<bool>,
    ) -> Result<()> {
        // Versions of a key come oldest first: the last one in the lineage counts.
        let mut current: Option<(Vec<u8>, Option<Vec<u8>>)> = None;
        for entry in self.rows.range::<&[u8]>(prefix..).map_err(database)? {
            let (stored, value) = entry.map_err(database)?;
            if !stored.value().starts_with(prefix) {
                break;
            }
            let (key, epoch) = split_epoch(stored.value())?;
            if !lineage.contains(epoch) {
                continue;
            }
            let value = live(value.value())?;
            match &mut current {
                Some((k, v)) if k == key => *v = value.map(<[u8]>::to_vec),
                _ => {
                    if let Some((k, v)) = current.replace((key.to_vec(), value.map(<[u8]>::to_vec)))
                        && !each(&k, v.as_deref())?
                    {
                        return Ok(());
                    }
                }
            }
        }
        if let Some((k, v)) = current {
            each(&k, v.as_deref())?;
        }
        Ok(())
    }
}

/// The database's errors, with the errno where the disk gave one.
pub(super) fn database(error: impl Into<redb::Error>) -> Error {
    let error = error.into();
    let errno = match &error {
        redb::Error::Io(e) => e.raw_os_error(),
        _ => None,
    };
    match error {
        redb::Error::Corrupted(detail) => Error::Damaged { what: "metadata database", detail },
        other => Error::Metadata(other.to_string(), errno),
    }
}

/// Does work that reads the database, where nobody else catches a panic: on a damaged page redb panics in places. What
/// was under way is given up, as by an error; it may be a bug, too, which the message tells.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text =
            text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        Err(Error::Damaged { what: "metadata", detail: format!("reading it ended in a panic: {text}") })
    })
}
