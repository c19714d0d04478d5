//! The database below the metadata: redb, one file of copy-on-write B-trees, in which a commit is one flush of the disk.
//!
//! Four tables. `rows` has the versioned rows, by key and epoch; a value begins with one byte, 0 for a tombstone, 1 for
//! a row. `touched` says which keys an epoch has rows for, so that nothing ever scans everything. `control` has what has
//! no versions: epochs, snapshots, heads, counters. `sums` has the hashes of sealed layers' chunks ([`super::sums`]).
//!
//! Each value of `rows` and `control` ends in a checksum of its key and itself: redb's own checksums are looked at when
//! it is opened, a value's each time it is read.

use std::io::ErrorKind::{InvalidData, UnexpectedEof};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use redb::{ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};

use super::lineage::Lineage;
use super::meta::Value;
use super::rows::{Key, LayerFile, split_epoch};
use super::sums::{Edit, Group, group_key, next_in};
use crate::error::{Error, Result};
use crate::types::{EpochId, Ino};

pub(super) const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");
/// `epoch key` → nothing: which keys an epoch has rows for, so that nothing ever scans everything.
pub(super) const TOUCHED: TableDefinition<&[u8], ()> = TableDefinition::new("touched");
/// Rows that have no versions: epochs, snapshots, heads, counters.
pub(super) const CONTROL: TableDefinition<&str, &[u8]> = TableDefinition::new("control");

/// Hashes of chunks, by layer file and group: see [`super::sums`].
pub(super) const SUMS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("sums");

/// The database as of the last commit.
pub(crate) struct ReadView {
    pub(super) rows: ReadOnlyTable<&'static [u8], &'static [u8]>,
    pub(super) touched: ReadOnlyTable<&'static [u8], ()>,
    pub(super) sums: ReadOnlyTable<&'static [u8], &'static [u8]>,
    /// No row is about an inode of this number or above: what is younger than the last commit is not looked for.
    beyond: u64,
}

/// Memory for the database's page cache.
pub(super) const CACHE_BYTES: usize = 64 << 20;

/// The CRC-32C of a key and what is stored for it.
fn checksum(key: &[u8], value: &[u8]) -> [u8; 4] {
    crc32c::crc32c_append(crc32c::crc32c(key), value).to_le_bytes()
}

/// A value with the checksum of it and its key behind it.
pub(super) fn seal_value(key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let sum = checksum(key, &value);
    value.extend_from_slice(&sum);
    value
}

/// The value in what [`seal_value`] has made.
pub(super) fn open_value<'v>(key: &[u8], stored: &'v [u8]) -> Result<&'v [u8]> {
    match stored.split_last_chunk::<4>() {
        Some((value, sum)) if *sum == checksum(key, value) => Ok(value),
        _ => Err(Error::Damaged { what: "metadata row", detail: format!("bad checksum at {key:02x?}") }),
    }
}

/// What is stored for a row, or for a tombstone.
fn stored(at: &[u8], value: Option<&[u8]>) -> Vec<u8> {
    seal_value(at, value.map_or_else(|| vec![0], |value| [&[1], value].concat()))
}

/// The row in what is stored at a key with its epoch; `None`: a tombstone.
pub(super) fn live<'v>(at: &[u8], stored: &'v [u8]) -> Result<Option<&'v [u8]>> {
    match open_value(at, stored)?.split_first() {
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
        rows.insert(at.as_slice(), stored(&at, Some(value)).as_slice()).map_err(database)?;
        touched.insert(mark.as_slice(), ()).map_err(database)?;
        return Ok(());
    }
    let oldest = key.at(EpochId(0));
    let older = rows.range(oldest.as_slice()..at.as_slice()).map_err(database)?.next().is_some();
    if older {
        rows.insert(at.as_slice(), stored(&at, None).as_slice()).map_err(database)?;
        touched.insert(mark.as_slice(), ()).map_err(database)?;
    } else {
        rows.remove(at.as_slice()).map_err(database)?;
        touched.remove(mark.as_slice()).map_err(database)?;
    }
    Ok(())
}

/// Stores the hashes of a group.
pub(super) fn put_group(sums: &mut RowTable<'_>, key: &[u8; 24], group: &Group) -> Result<()> {
    sums.insert(&key[..], seal_value(key, group.encode()).as_slice()).map(drop).map_err(database)
}

fn sums_key(key: &[u8]) -> Result<&[u8; 24]> {
    let damaged = |_| Error::Damaged { what: "hashes of chunks", detail: "a key of a wrong length".into() };
    key.try_into().map_err(damaged)
}

fn group_in(key: &[u8; 24], stored: &[u8]) -> Result<Group> {
    Group::decode(open_value(key, stored)?)
}

/// Changes rows of sealed epochs within one transaction.
pub(crate) struct RowWriter<'t> {
    pub(super) rows: RowTable<'t>,
    pub(super) touched: TouchedTable<'t>,
    pub(super) control: redb::Table<'t, &'static str, &'static [u8]>,
    pub(super) sums: RowTable<'t>,
}

impl RowWriter<'_> {
    /// Stores a row (`None`: a tombstone), in place of what was there.
    pub(crate) fn put(&mut self, key: &Key, epoch: EpochId, value: Option<&[u8]>) -> Result<()> {
        let at = key.at(epoch);
        self.rows.insert(at.as_slice(), stored(&at, value).as_slice()).map_err(database)?;
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
        let at = key.at(epoch);
        let stored = self.rows.get(at.as_slice()).map_err(database)?;
        stored.map(|s| live(&at, s.value()).map(|v| v.map(<[u8]>::to_vec))).transpose()
    }

    /// Changes hashes of a layer's file.
    pub(crate) fn edit_sums(&mut self, ino: Ino, file: LayerFile, edit: &Edit) -> Result<()> {
        for (group, changes) in edit.groups() {
            let key = group_key(ino, file, group);
            let old = self.sums.get(&key[..]).map_err(database)?;
            let mut group = old.map(|stored| group_in(&key, stored.value())).transpose()?.unwrap_or_default();
            for (n, hash) in changes {
                group.set(n, hash);
            }
            match group.is_empty() {
                true => drop(self.sums.remove(&key[..]).map_err(database)?),
                false => put_group(&mut self.sums, &key, &group)?,
            }
        }
        Ok(())
    }

    /// Removes the hashes of a layer's file that goes.
    pub(crate) fn remove_sums(&mut self, ino: Ino, file: LayerFile) -> Result<()> {
        let (first, last) = (group_key(ino, file, 0), group_key(ino, file, u32::MAX));
        self.sums.retain_in(&first[..]..=&last[..], |_, _| false).map_err(database)
    }

    /// Changes a control row.
    pub(crate) fn control(&mut self, name: &str, value: Option<&[u8]>) -> Result<()> {
        match value {
            Some(v) => self
                .control
                .insert(name, seal_value(name.as_bytes(), v.to_vec()).as_slice())
                .map_err(database)?,
            None => self.control.remove(name).map_err(database)?,
        };
        Ok(())
    }
}

impl ReadView {
    pub(super) fn new(db: &redb::Database) -> Result<ReadView> {
        let txn = db.begin_read().map_err(database)?;
        let rows = txn.open_table(ROWS).map_err(database)?;
        Ok(ReadView {
            beyond: beyond(&rows)?,
            rows,
            touched: txn.open_table(TOUCHED).map_err(database)?,
            sums: txn.open_table(SUMS).map_err(database)?,
        })
    }

    /// Whether there may be rows whose keys begin like this.
    fn may_have(&self, key: &[u8]) -> bool {
        number_in(key).is_none_or(|ino| ino < self.beyond)
    }

    pub(super) fn newest_below(
        &self,
        lineage: &Lineage,
        key: &Key,
        limit: EpochId,
    ) -> Result<Option<(EpochId, Value)>> {
        if !self.may_have(key.as_bytes()) {
            return Ok(None);
        }
        let (low, high) = (key.at(EpochId(0)), key.at(limit));
        for entry in self.rows.range::<&[u8]>(low.as_slice()..high.as_slice()).map_err(database)?.rev() {
            let (stored, value) = entry.map_err(database)?;
            let (_, epoch) = split_epoch(stored.value())?;
            if lineage.contains(epoch) {
                return Ok(Some((epoch, live(stored.value(), value.value())?.map(Arc::from))));
            }
        }
        Ok(None)
    }

    /// All versions of a row in a lineage before `limit`, newest first, in one go through the tree.
    pub(super) fn versions<'v>(
        &'v self,
        lineage: &'v Lineage,
        key: &Key,
        limit: EpochId,
    ) -> Result<impl Iterator<Item = Result<(EpochId, Value)>> + 'v> {
        let stored = match self.may_have(key.as_bytes()) {
            true => {
                let (low, high) = (key.at(EpochId(0)), key.at(limit));
                Some(self.rows.range::<&[u8]>(low.as_slice()..high.as_slice()).map_err(database)?)
            }
            false => None,
        };
        Ok(stored.into_iter().flatten().rev().filter_map(move |entry| {
            let row = || {
                let (stored, value) = entry.map_err(database)?;
                let (_, epoch) = split_epoch(stored.value())?;
                if !lineage.contains(epoch) {
                    return Ok(None);
                }
                let value = live(stored.value(), value.value())?.map(Arc::from);
                Ok(Some((epoch, value)))
            };
            row().transpose()
        }))
    }

    pub(super) fn row_at(&self, key: &Key, epoch: EpochId) -> Result<Option<Value>> {
        let at = key.at(epoch);
        let stored = self.rows.get(at.as_slice()).map_err(database)?;
        stored.map(|s| live(&at, s.value()).map(|v| v.map(Arc::from))).transpose()
    }

    pub(super) fn groups(
        &self,
        ino: Ino,
        file: LayerFile,
        mut each: impl FnMut(u32, &Group) -> Result<()>,
    ) -> Result<()> {
        let (first, last) = (group_key(ino, file, 0), group_key(ino, file, u32::MAX));
        for entry in self.sums.range::<&[u8]>(&first[..]..=&last[..]).map_err(database)? {
            let (key, stored) = entry.map_err(database)?;
            let key = sums_key(key.value())?;
            let number = u32::from_be_bytes(key[20..].try_into().expect("four bytes"));
            each(number, &group_in(key, stored.value())?)?;
        }
        Ok(())
    }

    pub(super) fn has_groups(&self, ino: Ino, file: LayerFile) -> Result<bool> {
        let (first, last) = (group_key(ino, file, 0), group_key(ino, file, u32::MAX));
        let mut groups = self.sums.range::<&[u8]>(&first[..]..=&last[..]).map_err(database)?;
        Ok(groups.next().transpose().map_err(database)?.is_some())
    }

    /// The first chunk, from `from` on, in the groups `first..=last` that has the hash of something else than zeros.
    pub(super) fn next_data_sum(&self, first: &[u8; 24], last: &[u8; 24], from: u32) -> Result<Option<u32>> {
        for entry in self.sums.range::<&[u8]>(&first[..]..=&last[..]).map_err(database)? {
            let (key, stored) = entry.map_err(database)?;
            let key = sums_key(key.value())?;
            if let Some(chunk) = next_in(key, &group_in(key, stored.value())?, from) {
                return Ok(Some(chunk));
            }
        }
        Ok(None)
    }

    pub(super) fn sums(&self, key: &[u8; 24]) -> Result<Group> {
        let stored = self.sums.get(&key[..]).map_err(database)?;
        Ok(stored.map(|stored| group_in(key, stored.value())).transpose()?.unwrap_or_default())
    }

    pub(super) fn scan(
        &self,
        lineage: &Lineage,
        prefix: &[u8],
        mut each: impl FnMut(&[u8], Option<&[u8]>) -> Result<bool>,
    ) -> Result<()> {
        if !self.may_have(prefix) {
            return Ok(());
        }
        // Versions of a key come oldest first: the last one in the lineage counts.
        let (mut key, mut value, mut known) = (Vec::new(), Vec::new(), None);
        for entry in self.rows.range::<&[u8]>(prefix..).map_err(database)? {
            let (stored, bytes) = entry.map_err(database)?;
            if !stored.value().starts_with(prefix) {
                break;
            }
            let (found, epoch) = split_epoch(stored.value())?;
            if !lineage.contains(epoch) {
                continue;
            }
            let live = live(stored.value(), bytes.value())?;
            if let Some(is_live) = known
                && key != found
                && !each(&key, Some(&value[..]).filter(|_| is_live))?
            {
                return Ok(());
            }
            key.clear();
            key.extend_from_slice(found);
            value.clear();
            value.extend_from_slice(live.unwrap_or_default());
            known = Some(live.is_some());
        }
        if let Some(is_live) = known {
            each(&key, Some(&value[..]).filter(|_| is_live))?;
        }
        Ok(())
    }
}

/// The first inode number that is above those of all rows.
fn beyond(rows: &ReadOnlyTable<&'static [u8], &'static [u8]>) -> Result<u64> {
    let mut beyond = 0;
    for kind in Key::KINDS {
        let of_kind = rows.range::<&[u8]>(&[kind][..]..&[kind + 1][..]).map_err(database)?.next_back();
        if let Some(entry) = of_kind {
            let (stored, _) = entry.map_err(database)?;
            // One that is too short is damaged, which whoever reads it is told; until then it hides nothing.
            beyond = beyond.max(number_in(stored.value()).map_or(u64::MAX, |ino| ino.saturating_add(1)));
        }
    }
    Ok(beyond)
}

/// The inode number in the beginning of a key; `None` where there is no whole one.
fn number_in(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(1..9)?.try_into().ok()?))
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
        // Its own words for a file that does not begin as a database does, and ours for one whose end is missing.
        redb::Error::Io(e) if matches!(e.kind(), InvalidData | UnexpectedEof) && errno.is_none() => {
            Error::Damaged { what: "metadata database", detail: e.to_string() }
        }
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
