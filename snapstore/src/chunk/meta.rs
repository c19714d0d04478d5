//! The metadata: versioned rows, changed in memory, committed together.
//!
//! Every change of names and attributes goes into a *memtable* of the head's epoch. A commit closes the memtables,
//! writes their rows to the database in one transaction, and only then drops them; so what is on the disk is at all
//! times an exact prefix of what happened. A reader looks through the memtables, newest first, then into the
//! database as of the last commit.
//!
//! Invariants:
//! 1. The rows of one operation enter the memtables under one lock ([`Meta::apply`]): a commit has all or none.
//! 2. Memtables are ordered by epoch, then age; only the youngest of an epoch is open. Closed ones do not change.
//! 3. A commit takes all memtables there are; so rows reach the disk in the order in which they were made.
//! 4. What a row refers to is on the disk before the row ([`Source::before_commit`]); what a commit stopped
//!    referring to is removed only after it ([`Source::after_commit`]).
//!
//! The database is redb: one file, copy-on-write B-trees, a commit is one flush of the disk.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use redb::{ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};

use super::lineage::Lineage;
use super::rows::{Key, KeyKind, Row, split_epoch};
use crate::error::{Error, Result};
use crate::types::{EpochId, Ino};

const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");
/// `epoch key` → nothing: which keys an epoch has rows for, so that nothing ever scans everything.
const TOUCHED: TableDefinition<&[u8], ()> = TableDefinition::new("touched");
/// Rows that have no versions: epochs, snapshots, heads, counters.
const CONTROL: TableDefinition<&str, &[u8]> = TableDefinition::new("control");

/// A row's value: bytes, or nothing where a tombstone hides older versions.
pub(crate) type Value = Option<Arc<[u8]>>;

/// Changes of rows that happen together.
pub(crate) type Batch = Vec<(Key, Value)>;

/// Changes of control rows: a value, or nothing to remove the row.
pub(crate) type ControlBatch = Vec<(String, Option<Vec<u8>>)>;

/// The rows changed in one epoch since the last commit.
struct MemTable {
    epoch: EpochId,
    rows: BTreeMap<Key, Value>,
    control: BTreeMap<String, Option<Vec<u8>>>,
    /// Inodes whose fsync must wait for this table's commit.
    needed: HashSet<Ino>,
}

impl MemTable {
    fn new(epoch: EpochId) -> MemTable {
        MemTable { epoch, rows: BTreeMap::new(), control: BTreeMap::new(), needed: HashSet::new() }
    }

    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.control.is_empty()
    }
}

struct Tables {
    /// Newest first. Open ones may change under the write lock; closed ones are shared with a commit.
    stack: Vec<Slot>,
    view: Arc<ReadView>,
}

enum Slot {
    Open(Box<MemTable>),
    Closed(Arc<MemTable>),
}

impl Slot {
    fn table(&self) -> &MemTable {
        match self {
            Slot::Open(t) => t,
            Slot::Closed(t) => t,
        }
    }
}

/// The database as of the last commit.
pub(crate) struct ReadView {
    rows: ReadOnlyTable<&'static [u8], &'static [u8]>,
    touched: ReadOnlyTable<&'static [u8], ()>,
}

/// Who owns what the rows refer to: the layers.
pub(crate) trait Source {
    /// A commit begins: whatever was applied up to here will be in it.
    fn begin_commit(&self);
    /// Encodes a layer's row as it is now, having made durable what it refers to. `None` defers the row to a later
    /// commit (only when not `full`): its data is not on the disk yet, and nobody has asked for it.
    /// `row` is what the memtable has.
    fn before_commit(&self, ino: Ino, epoch: EpochId, row: &[u8], full: bool) -> Result<LayerCommit>;
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

/// The metadata of a store.
pub(crate) struct Meta {
    db: Mutex<Option<Arc<redb::Database>>>,
    /// Order: taken after `committing`, and after any lock of names; held for memory operations only.
    tables: RwLock<Tables>,
    /// Order: before `tables`. One commit at a time; others wait and find themselves served.
    committing: Mutex<()>,
    /// Changes applied so far, and those that the disk has.
    applied: AtomicU64,
    committed: AtomicU64,
    /// Whether the head's epoch has any change of its own.
    head_touched: AtomicBool,
    failed: Mutex<Option<String>>,
}

impl Meta {
    /// Opens the database, or makes it in an empty file.
    pub(crate) fn open(backend: impl redb::StorageBackend) -> Result<Meta> {
        let db = redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(backend)
            .map_err(database)?;
        let txn = db.begin_write().map_err(database)?;
        txn.open_table(ROWS).map_err(database)?;
        txn.open_table(TOUCHED).map_err(database)?;
        txn.open_table(CONTROL).map_err(database)?;
        txn.commit().map_err(database)?;
        let view = Arc::new(ReadView::new(&db)?);
        Ok(Meta {
            db: Mutex::new(Some(Arc::new(db))),
            tables: RwLock::new(Tables { stack: Vec::new(), view }),
            committing: Mutex::new(()),
            applied: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            head_touched: AtomicBool::new(false),
            failed: Mutex::new(None),
        })
    }

    fn db(&self) -> Result<Arc<redb::Database>> {
        self.db.lock().clone().ok_or(Error::Closed)
    }

    /// Begins a new epoch of the head, together with its first rows and the control rows that say so. From here on
    /// changes go there. `during` runs at the very moment, under the lock that every change takes.
    pub(crate) fn begin_epoch(
        &self,
        epoch: EpochId,
        rows: Batch,
        control: ControlBatch,
        during: impl FnOnce(),
    ) {
        let mut tables = self.tables.write();
        debug_assert!(tables.stack.first().is_none_or(|t| t.table().epoch < epoch));
        let mut table = MemTable::new(epoch);
        if !control.is_empty() {
            self.applied.fetch_add(1, Ordering::AcqRel);
        }
        table.control = control.into_iter().collect();
        self.head_touched.store(!rows.is_empty(), Ordering::Release);
        table.rows.extend(rows);
        tables.stack.insert(0, Slot::Open(Box::new(table)));
        during();
    }

    /// Makes changes of one operation, in the head's epoch. `needed` are the inodes whose fsync has to wait for them.
    pub(crate) fn apply(&self, batch: Batch, needed: &[Ino]) {
        self.apply_with_control(batch, Vec::new(), needed);
    }

    /// Like [`Meta::apply`], with control rows that belong to the same operation.
    pub(crate) fn apply_with_control(&self, batch: Batch, control: ControlBatch, needed: &[Ino]) {
        let mut tables = self.tables.write();
        let Some(Slot::Open(table)) = tables.stack.first_mut() else {
            unreachable!("the head's memtable is open")
        };
        table.rows.extend(batch);
        table.control.extend(control);
        table.needed.extend(needed);
        self.head_touched.store(true, Ordering::Release);
        self.applied.fetch_add(1, Ordering::AcqRel);
    }

    /// Makes changes in `epoch`, which is the head's or one that was the head's until a moment ago and still has
    /// operations in flight.
    pub(crate) fn apply_at(&self, epoch: EpochId, batch: Batch, needed: &[Ino]) {
        let mut tables = self.tables.write();
        let head = tables.stack.first().map(|t| t.table().epoch);
        let Some(Slot::Open(table)) =
            tables.stack.iter_mut().find(|t| t.table().epoch == epoch && matches!(t, Slot::Open(_)))
        else {
            unreachable!("an epoch's memtable is open until its operations have ended")
        };
        table.rows.extend(batch);
        table.needed.extend(needed);
        if head == Some(epoch) {
            self.head_touched.store(true, Ordering::Release);
        }
        self.applied.fetch_add(1, Ordering::AcqRel);
    }

    /// Changes control rows with the next commit.
    pub(crate) fn apply_control(&self, batch: ControlBatch) {
        let mut tables = self.tables.write();
        let Some(Slot::Open(table)) = tables.stack.first_mut() else {
            unreachable!("the head's memtable is open")
        };
        table.control.extend(batch);
        self.applied.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether the head's epoch has any change of its own.
    pub(crate) fn head_touched(&self) -> bool {
        self.head_touched.load(Ordering::Acquire)
    }

    pub(crate) fn set_head_touched(&self) {
        self.head_touched.store(true, Ordering::Release);
    }

    /// Whether an fsync of `ino` must wait for a commit.
    pub(crate) fn is_needed(&self, ino: Ino) -> bool {
        self.tables.read().stack.iter().any(|t| t.table().needed.contains(&ino))
    }

    /// Has the next fsync of `ino` commit, even if no row of it is new: one may have been left for later. `epoch` has
    /// operations in flight.
    pub(crate) fn need(&self, epoch: EpochId, ino: Ino) {
        let mut tables = self.tables.write();
        for slot in &mut tables.stack {
            if let Slot::Open(table) = slot
                && table.epoch == epoch
            {
                table.needed.insert(ino);
            }
        }
        self.applied.fetch_add(1, Ordering::AcqRel);
    }

    /// Has the next commit look at rows that an earlier one left for later, though nothing is new.
    pub(crate) fn look_again(&self) {
        self.applied.fetch_add(1, Ordering::AcqRel);
    }

    /// The newest version of a row in a lineage, and its epoch. A tombstone is a version.
    pub(crate) fn newest(&self, lineage: &Lineage, key: &Key) -> Result<Option<(EpochId, Value)>> {
        self.newest_below(lineage, key, EpochId(u64::MAX))
    }

    /// Like [`Meta::newest`], among versions of epochs before `limit`.
    pub(crate) fn newest_below(
        &self,
        lineage: &Lineage,
        key: &Key,
        limit: EpochId,
    ) -> Result<Option<(EpochId, Value)>> {
        let (recent, view) = {
            let tables = self.tables.read();
            let hit = tables.stack.iter().map(Slot::table).find_map(|t| {
                let value = t.rows.get(key).filter(|_| t.epoch < limit && lineage.contains(t.epoch))?;
                Some((t.epoch, value.clone()))
            });
            if hit.as_ref().is_some_and(|(epoch, _)| *epoch == lineage.tip()) {
                return Ok(hit);
            }
            (hit, tables.view.clone())
        };
        // Sealing makes rows of a frozen epoch when the database may have a later epoch's already.
        let stored = view.newest_below(lineage, key, limit)?;
        Ok(match (recent, stored) {
            (Some(recent), Some(stored)) if stored.0 > recent.0 => Some(stored),
            (Some(recent), _) => Some(recent),
            (None, stored) => stored,
        })
    }

    /// A row of a lineage, decoded; `None` when there is none or a tombstone hides it.
    pub(crate) fn get<R: Row>(&self, lineage: &Lineage, key: &Key) -> Result<Option<R>> {
        match self.newest(lineage, key)? {
            Some((_, Some(value))) => R::decode(&value).map(Some),
            _ => Ok(None),
        }
    }

    /// All versions of a row in a lineage, newest first, down to the first for which `last` says so.
    pub(crate) fn versions(
        &self,
        lineage: &Lineage,
        key: &Key,
        mut last: impl FnMut(EpochId, &Value) -> Result<bool>,
    ) -> Result<()> {
        let mut limit = EpochId(u64::MAX);
        while let Some((epoch, value)) = self.newest_below(lineage, key, limit)? {
            if last(epoch, &value)? {
                break;
            }
            limit = epoch;
        }
        Ok(())
    }

    /// Calls `each` for the rows of a lineage whose keys begin with `prefix`, in order of their keys, tombstones left
    /// out, until it says false.
    pub(crate) fn scan(
        &self,
        lineage: &Lineage,
        prefix: &[u8],
        mut each: impl FnMut(&Key, &[u8]) -> Result<bool>,
    ) -> Result<()> {
        // The memtables' part is copied under the lock; the database's part is read as of the same moment.
        let (recent, view) = {
            let tables = self.tables.read();
            let mut recent: BTreeMap<Key, Value> = BTreeMap::new();
            for slot in tables.stack.iter().rev() {
                let t = slot.table();
                if !lineage.contains(t.epoch) {
                    continue;
                }
                let from = t.rows.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded));
                for (key, value) in from.take_while(|(k, _)| k.as_bytes().starts_with(prefix)) {
                    recent.insert(key.clone(), value.clone());
                }
            }
            (recent, tables.view.clone())
        };
        let mut recent = recent.into_iter().peekable();
        let mut go_on = true;
        view.scan(lineage, prefix, |key, value| {
            while go_on && recent.peek().is_some_and(|(k, _)| k.as_bytes() < key) {
                if let Some((k, Some(v))) = recent.next() {
                    go_on = each(&k, &v)?;
                }
            }
            if !go_on {
                return Ok(false);
            }
            if recent.peek().is_some_and(|(k, _)| k.as_bytes() == key) {
                if let Some((k, Some(v))) = recent.next() {
                    go_on = each(&k, &v)?;
                }
                return Ok(go_on);
            }
            if let Some(value) = value {
                go_on = each(&Key::from_bytes(key)?, value)?;
            }
            Ok(go_on)
        })?;
        for (key, value) in recent {
            if !go_on {
                break;
            }
            if let Some(value) = value {
                go_on = each(&key, &value)?;
            }
        }
        Ok(())
    }

    /// Makes everything applied so far durable. `full` also takes along the rows of layers whose data is not yet on
    /// the disk, after putting it there; otherwise those are left for later. Callers at the same time share a commit.
    pub(crate) fn commit(&self, source: &dyn Source, full: bool) -> Result<()> {
        let wanted = self.applied.load(Ordering::Acquire);
        let _one = self.committing.lock();
        if !full && self.committed.load(Ordering::Acquire) >= wanted {
            return Ok(());
        }
        self.check()?;
        self.commit_now(source, full).inspect_err(|e| {
            // What the disk has now is unknown: no later success may cover this up.
            self.failed.lock().get_or_insert_with(|| e.to_string());
        })
    }

    /// Refuses when an earlier commit failed.
    pub(crate) fn check(&self) -> Result<()> {
        match &*self.failed.lock() {
            Some(first) => Err(Error::PreviousFailure { first: first.clone() }),
            None => Ok(()),
        }
    }

    fn commit_now(&self, source: &dyn Source, full: bool) -> Result<()> {
        source.begin_commit();
        let (closed, upto) = self.close_tables();
        source.sync_promised()?;
        if closed.iter().all(|t| t.is_empty()) {
            self.drop_closed(Vec::new())?;
            source.after_commit();
            return Ok(());
        }
        let mut deferred: Vec<(EpochId, Key, Value)> = Vec::new();
        let txn = self.db()?.begin_write().map_err(database)?;
        {
            let mut rows = txn.open_table(ROWS).map_err(database)?;
            let mut touched = txn.open_table(TOUCHED).map_err(database)?;
            let mut control = txn.open_table(CONTROL).map_err(database)?;
            for table in &closed {
                for (key, value) in &table.rows {
                    let encoded;
                    let mut bytes = value.as_deref();
                    if let (KeyKind::Layer(ino), Some(row)) = (key.kind(), bytes) {
                        match source.before_commit(ino, table.epoch, row, full)? {
                            LayerCommit::Write(row) => {
                                encoded = row;
                                bytes = Some(&encoded);
                            }
                            LayerCommit::Defer => {
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
                        Some(v) => control.insert(name.as_str(), v.as_slice()).map_err(database)?,
                        None => control.remove(name.as_str()).map_err(database)?,
                    };
                }
            }
        }
        txn.commit().map_err(database)?;
        self.drop_closed(deferred)?;
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
            if let Some(table) = open {
                table.rows.entry(key).or_insert(value);
            }
        }
        Ok(())
    }

    /// Opens a memtable for a frozen epoch that recovery is about to seal.
    pub(crate) fn open_epoch(&self, epoch: EpochId) {
        let mut tables = self.tables.write();
        let at = tables.stack.partition_point(|t| t.table().epoch > epoch);
        tables.stack.insert(at, Slot::Open(Box::new(MemTable::new(epoch))));
    }

    /// Forgets the memtable of an epoch that is sealed: nothing will be written in it again.
    pub(crate) fn end_epoch(&self, epoch: EpochId) {
        let mut tables = self.tables.write();
        tables.stack.retain(|t| t.table().epoch != epoch || !t.table().is_empty());
    }

    /// Writes rows of sealed epochs, which no memtable holds: what reclaim does. `change` gets a [`RowWriter`].
    pub(crate) fn rewrite(&self, change: impl FnOnce(&mut RowWriter<'_>) -> Result<()>) -> Result<()> {
        let _one = self.committing.lock();
        self.check()?;
        let db = self.db()?;
        let txn = db.begin_write().map_err(database)?;
        {
            let mut writer = RowWriter {
                rows: txn.open_table(ROWS).map_err(database)?,
                touched: txn.open_table(TOUCHED).map_err(database)?,
                control: txn.open_table(CONTROL).map_err(database)?,
            };
            change(&mut writer)?;
        }
        txn.commit().map_err(database)?;
        let view = Arc::new(ReadView::new(&db)?);
        self.tables.write().view = view;
        Ok(())
    }

    /// The rows changed in an epoch, in order of their keys, from `after` on; at most `most` of them. Committed ones
    /// only.
    pub(crate) fn touched(&self, epoch: EpochId, after: Option<&Key>, most: usize) -> Result<Vec<Key>> {
        let view = self.view();
        let start = match after {
            Some(key) => [&epoch.0.to_be_bytes()[..], key.as_bytes(), &[0]].concat(),
            None => epoch.0.to_be_bytes().to_vec(),
        };
        let end = (epoch.0 + 1).to_be_bytes();
        let mut out = Vec::new();
        for entry in view.touched.range::<&[u8]>(start.as_slice()..&end[..]).map_err(database)? {
            let (stored, _) = entry.map_err(database)?;
            let key = stored.value().get(8..).unwrap_or_default();
            out.push(Key::from_bytes(key)?);
            if out.len() == most {
                break;
            }
        }
        Ok(out)
    }

    /// How many committed rows an epoch has; counts no further than `most`.
    pub(crate) fn count_touched(&self, epoch: EpochId, most: u64) -> Result<u64> {
        let (start, end) = (epoch.0.to_be_bytes(), (epoch.0 + 1).to_be_bytes());
        let view = self.view();
        let mut count = 0;
        for entry in view.touched.range::<&[u8]>(&start[..]..&end[..]).map_err(database)? {
            entry.map_err(database)?;
            count += 1;
            if count == most {
                break;
            }
        }
        Ok(count)
    }

    /// The layers changed in an epoch, committed or not, in order of their inodes.
    pub(crate) fn touched_layers(&self, epoch: EpochId) -> Result<Vec<Ino>> {
        let mut inos: Vec<Ino> = {
            let tables = self.tables.read();
            let of_epoch = tables.stack.iter().map(Slot::table).filter(|t| t.epoch == epoch);
            of_epoch.flat_map(|t| t.rows.keys()).filter_map(layer_of).collect()
        };
        let prefix = [&epoch.0.to_be_bytes()[..], &Key::layer(Ino(0)).as_bytes()[..1]].concat();
        let end = (epoch.0 + 1).to_be_bytes();
        for entry in self.view().touched.range::<&[u8]>(prefix.as_slice()..&end[..]).map_err(database)? {
            let (stored, _) = entry.map_err(database)?;
            let key = Key::from_bytes(stored.value().get(8..).unwrap_or_default())?;
            inos.extend(layer_of(&key));
        }
        inos.sort_unstable();
        inos.dedup();
        Ok(inos)
    }

    /// The row of exactly this epoch, committed or not.
    pub(crate) fn row_at(&self, key: &Key, epoch: EpochId) -> Result<Option<Value>> {
        let view = {
            let tables = self.tables.read();
            for slot in &tables.stack {
                let t = slot.table();
                if t.epoch == epoch
                    && let Some(value) = t.rows.get(key)
                {
                    return Ok(Some(value.clone()));
                }
            }
            tables.view.clone()
        };
        view.row_at(key, epoch)
    }

    /// Every stored row, in order: key, epoch, value.
    pub(crate) fn for_each_row(
        &self,
        mut each: impl FnMut(&Key, EpochId, Option<&[u8]>) -> Result<()>,
    ) -> Result<()> {
        for entry in self.view().rows.iter().map_err(database)? {
            let (stored, value) = entry.map_err(database)?;
            let (key, epoch) = split_epoch(stored.value())?;
            each(&Key::from_bytes(key)?, epoch, live(value.value())?)?;
        }
        Ok(())
    }

    /// The control rows whose names begin with `prefix`.
    pub(crate) fn control(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let txn = self.db()?.begin_read().map_err(database)?;
        let table = txn.open_table(CONTROL).map_err(database)?;
        let mut out = Vec::new();
        for entry in table.range::<&str>(prefix..).map_err(database)? {
            let (name, value) = entry.map_err(database)?;
            let Some(rest) = name.value().strip_prefix(prefix) else { break };
            out.push((rest.to_owned(), value.value().to_vec()));
        }
        Ok(out)
    }

    /// Closes the database. Everything after it fails with [`Error::Closed`].
    pub(crate) fn close(&self) {
        let _one = self.committing.lock();
        // The last readers' views keep the database open until they are gone; none outlives the store.
        *self.db.lock() = None;
    }

    fn view(&self) -> Arc<ReadView> {
        Arc::clone(&self.tables.read().view)
    }
}

/// Memory for the database's page cache.
const CACHE_BYTES: usize = 64 << 20;

fn layer_of(key: &Key) -> Option<Ino> {
    match key.kind() {
        KeyKind::Layer(ino) => Some(ino),
        _ => None,
    }
}

fn live(stored: &[u8]) -> Result<Option<&[u8]>> {
    match stored.split_first() {
        Some((0, [])) => Ok(None),
        Some((1, value)) => Ok(Some(value)),
        _ => Err(Error::Damaged { what: "metadata row", detail: "neither a row nor a tombstone".into() }),
    }
}

fn touched_key(epoch: EpochId, key: &Key) -> Vec<u8> {
    [&epoch.0.to_be_bytes()[..], key.as_bytes()].concat()
}

type RowTable<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;
type TouchedTable<'t> = redb::Table<'t, &'static [u8], ()>;

/// Writes one row, or a tombstone where older versions are to be hidden, or nothing where there are none.
fn write_row(
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
    rows: RowTable<'t>,
    touched: TouchedTable<'t>,
    control: redb::Table<'t, &'static str, &'static [u8]>,
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
    fn new(db: &redb::Database) -> Result<ReadView> {
        let txn = db.begin_read().map_err(database)?;
        Ok(ReadView {
            rows: txn.open_table(ROWS).map_err(database)?,
            touched: txn.open_table(TOUCHED).map_err(database)?,
        })
    }

    fn newest_below(&self, lineage: &Lineage, key: &Key, limit: EpochId) -> Result<Option<(EpochId, Value)>> {
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

    fn row_at(&self, key: &Key, epoch: EpochId) -> Result<Option<Value>> {
        let stored = self.rows.get(key.at(epoch).as_slice()).map_err(database)?;
        stored.map(|s| live(s.value()).map(|v| v.map(Arc::from))).transpose()
    }

    fn scan(
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
fn database(error: impl Into<redb::Error>) -> Error {
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
