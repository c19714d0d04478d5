//! All versions of one row: of the memtables and of the database, newest first.

use super::{Meta, Slot, Value};
use crate::chunk::lineage::Lineage;
use crate::chunk::rows::Key;
use crate::error::Result;
use crate::types::EpochId;

impl Meta {
    /// All versions of a row in a lineage, newest first, down to the first for which `last` says so.
    pub(crate) fn versions(
        &self,
        lineage: &Lineage,
        key: &Key,
        mut last: impl FnMut(EpochId, &Value) -> Result<bool>,
    ) -> Result<()> {
        // All of one moment: between two looks reclaim may move a row to where the second does not find it.
        let (mut recent, view) = {
            let tables = self.tables.read();
            let of_key = tables.stack.iter().map(Slot::table).filter_map(|t| {
                let value = t.rows.get(key).filter(|_| lineage.contains(t.epoch))?;
                Some((t.epoch, value.clone()))
            });
            (of_key.collect::<Vec<_>>(), tables.view.clone())
        };
        // Of one epoch the youngest memtable's row counts, which comes first.
        recent.dedup_by_key(|(epoch, _)| *epoch);
        let mut recent = recent.into_iter().peekable();
        // Nothing is newer than the tip: what is under way is in memory, mostly, and the disk need not be asked.
        let mut done = None;
        if let Some((epoch, value)) = recent.next_if(|(epoch, _)| *epoch == lineage.tip()) {
            if last(epoch, &value)? {
                return Ok(());
            }
            done = Some(epoch);
        }
        let mut stored = view.versions(lineage, key, EpochId(lineage.tip().0 + 1))?.peekable();
        loop {
            // Of one epoch the memtable's row is the younger one.
            while stored
                .next_if(|row| row.as_ref().is_ok_and(|(epoch, _)| done.is_some_and(|done| *epoch >= done)))
                .is_some()
            {}
            let memory_first = match (recent.peek(), stored.peek()) {
                (Some((epoch, _)), Some(Ok((stored, _)))) => epoch >= stored,
                (memory, stored) => memory.is_some() && stored.is_none(),
            };
            let next = if memory_first { recent.next() } else { stored.next().transpose()? };
            let Some((epoch, value)) = next else { return Ok(()) };
            if last(epoch, &value)? {
                return Ok(());
            }
            done = Some(epoch);
        }
    }
}
