//! A commit: closing the memtables, making durable what their rows refer to, writing them, letting go of them.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{MemTable, Meta, Slot, Value};
use crate::chunk::database::{
    CONTROL, ROWS, ReadView, SUMS, TOUCHED, database, put_group, seal_value, write_row,
};
use crate::chunk::rows::{Key, KeyKind};
use crate::error::Result;
use crate::types::{EpochId, Ino};

/// Who owns what the rows refer to: the layers.
pub(crate) trait Source {
    /// A commit begins: whatever was applied up to here will be in it.
    fn begin_commit(&self);
    /// Encodes a layer's row as it is now, having made durable what it refers to. It may be deferred to a later commit
    /// (when `full`, only after a failure): its data is not on the disk yet, and nobody has asked for it. Then what
    /// inherits from it has to be deferred too: `put_off` are those that this commit has deferred.
    /// `row` is what the memtable has.
    fn before_commit(
        &self,
        ino: Ino,
        epoch: EpochId,
        row: &[u8],
        full: bool,
        put_off: &HashSet<(Ino, EpochId)>,
    ) -> Result<LayerCommit>;
    /// Makes durable what must be on the disk before the names that lead to it.
    fn sync_promised(&self) -> Result<()>;
    /// The rows are on the disk.
    fn after_commit(&self);
}

/// What [`Source::before_commit`] says about a layer's row.
pub(crate) enum LayerCommit {
    /// Write this row.
    Write(Vec<u8>),
    /// Leave it for a later commit.
    Defer,
    /// Write what the memtable has.
    AsIs,
    /// Write nothing.
    Skip,
}

impl Meta {
    pub(super) fn commit_now(&self, source: &dyn Source, full: bool) -> Result<()> {
        source.begin_commit();
        let (closed, upto) = self.close_tables();
        source.sync_promised()?;
        if closed.iter().all(|t| t.is_empty()) && self.pending_sums.lock().is_empty() {
            self.drop_closed(Vec::new())?;
            source.after_commit();
            return Ok(());
        }
        let mut deferred: Vec<(EpochId, Key, Value)> = Vec::new();
        let mut put_off: HashSet<(Ino, EpochId)> = HashSet::new();
        let txn = self.db()?.begin_write().map_err(database)?;
        let number = {
            let mut rows = txn.open_table(ROWS).map_err(database)?;
            let mut touched = txn.open_table(TOUCHED).map_err(database)?;
            let mut control = txn.open_table(CONTROL).map_err(database)?;
            let mut sums = txn.open_table(SUMS).map_err(database)?;
            for (key, group) in self.pending_sums.lock().take() {
                put_group(&mut sums, &key, &group)?;
            }
            for table in &closed {
                for (key, value) in &table.rows {
                    let encoded;
                    let mut bytes = value.as_deref();
                    if let (KeyKind::Layer(ino), Some(row)) = (key.kind(), bytes) {
                        // Older epochs come first.
                        match source.before_commit(ino, table.epoch, row, full, &put_off)? {
                            LayerCommit::Write(row) => {
                                encoded = row;
                                bytes = Some(&encoded);
                            }
                            LayerCommit::Defer => {
                                put_off.insert((ino, table.epoch));
                                deferred.push((table.epoch, key.clone(), value.clone()));
                                continue;
                            }
                            LayerCommit::AsIs => {}
                            LayerCommit::Skip => continue,
                        }
                    }
                    write_row(&mut rows, &mut touched, key, table.epoch, bytes)?;
                }
                for (name, value) in &table.control {
                    match value {
                        Some(v) => {
                            let stored = seal_value(name.as_bytes(), v.clone());
                            control.insert(name.as_str(), stored.as_slice()).map_err(database)?
                        }
                        None => control.remove(name.as_str()).map_err(database)?,
                    };
                }
            }
            self.newest.count(&mut control)?
        };
        txn.commit().map_err(database)?;
        super::written(&self.storage)?;
        self.newest.committed(number);
        self.drop_closed(deferred)?;
        self.pending_sums.lock().written();
        self.committed.fetch_max(upto, Ordering::AcqRel);
        source.after_commit();
        Ok(())
    }

    /// Closes every open memtable and opens an empty one of the same epoch above it.
    fn close_tables(&self) -> (Vec<Arc<MemTable>>, u64) {
        let mut tables = self.tables.write();
        let mut stack = Vec::with_capacity(tables.stack.len() + 1);
        let mut closed = Vec::new();
        let newest = tables.stack.first().map(|t| t.table().epoch);
        for slot in tables.stack.drain(..) {
            match slot {
                Slot::Open(table) => {
                    // An epoch that was left behind keeps an open table until it is sealed.
                    stack.push(Slot::Open(Box::new(MemTable::new(table.epoch))));
                    if !table.is_empty() || Some(table.epoch) == newest {
                        let table = Arc::from(table);
                        closed.push(Arc::clone(&table));
                        stack.push(Slot::Closed(table));
                    }
                }
                Slot::Closed(table) => {
                    closed.push(Arc::clone(&table));
                    stack.push(Slot::Closed(table));
                }
            }
        }
        tables.stack = stack;
        closed.reverse();
        (closed, self.applied.load(Ordering::Acquire))
    }

    /// Shows readers the new state of the database in place of the closed memtables.
    fn drop_closed(&self, deferred: Vec<(EpochId, Key, Value)>) -> Result<()> {
        let view = Arc::new(ReadView::new(&*self.db()?)?);
        let mut tables = self.tables.write();
        tables.view = view;
        tables.stack.retain(|t| matches!(t, Slot::Open(_)));
        for (epoch, key, value) in deferred {
            let open = tables.stack.iter_mut().find_map(|t| match t {
                Slot::Open(t) if t.epoch == epoch => Some(t),
                _ => None,
            });
            // A row that came in meanwhile is newer.
            match open {
                Some(table) => drop(table.rows.entry(key).or_insert(value)),
                // A layer that could not be synced when its epoch was sealed: it stays in memory, and is said.
                None => tracing::error!(%epoch, ?key, "a row was put off past the end of its epoch"),
            }
        }
        Ok(())
    }
}
