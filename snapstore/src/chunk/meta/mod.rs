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

mod commit;
mod newest;
mod sums;
mod versions;

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use redb::{ReadableDatabase, ReadableTable};

use super::database::{
    CACHE_BYTES, CONTROL, ROWS, ReadView, RowWriter, SUMS, TOUCHED, database, guarded, live, open_value,
    put_group, seal_value,
};
use super::lineage::Lineage;
use super::rows::{Key, KeyKind, Row, split_epoch};
use super::sums::Pending;
use crate::disk::{DatabaseFile, Failure, Reserve};
use crate::error::{Error, Result};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock};
use crate::types::{EpochId, Ino};

pub(crate) use commit::{LayerCommit, Source};

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
    /// Hashes of chunks for the next commit.
    pending_sums: Mutex<Pending>,
    /// What the database's file says: the database itself does not get to know of a failed write.
    storage: Failure,
    newest: newest::Newest,
    /// How often rows of sealed epochs were written anew.
    rewrites: AtomicU64,
    /// Space for commits on a full disk.
    pub reserve: Arc<Reserve>,
}

/// The control row that says that a damaged page made redb go back to an older state.
pub(crate) const OLDER_STATE: &str = "older_state";

impl Meta {
    /// Opens the database, or makes it in an empty file.
    pub(crate) fn open(backend: DatabaseFile) -> Result<Meta> {
        // redb trusts a page's insides before it has compared its checksum, and panics when they make no sense.
        guarded(|| Meta::open_whole(backend))
    }

    fn open_whole(backend: DatabaseFile) -> Result<Meta> {
        let (storage, reserve) = (backend.failure(), backend.reserve());
        let newest = newest::Newest::open(backend.disk(), backend.is_empty())?;
        let mut db = redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(backend)
            .map_err(database)?;
        // Every page against its checksum: a damaged one would lead astray without a word. Where it can, redb goes back
        // to an older state, which may lack what was promised: that is noted, and `open` refuses it.
        let whole = db.check_integrity().map_err(database)?;
        let txn = db.begin_write().map_err(database)?;
        txn.open_table(ROWS).map_err(database)?;
        txn.open_table(TOUCHED).map_err(database)?;
        txn.open_table(SUMS).map_err(database)?;
        let number = {
            let mut control = txn.open_table(CONTROL).map_err(database)?;
            if !(newest.is_in(&control)? && whole) {
                let note = seal_value(OLDER_STATE.as_bytes(), b"1".to_vec());
                control.insert(OLDER_STATE, note.as_slice()).map_err(database)?;
            }
            newest.count(&mut control)?
        };
        txn.commit().map_err(database)?;
        written(&storage)?;
        newest.committed(number);
        let view = Arc::new(ReadView::new(&db)?);
        Ok(Meta {
            db: Mutex::new(Some(Arc::new(db))),
            tables: RwLock::new(Tables { stack: Vec::new(), view }),
            committing: Mutex::new(()),
            applied: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            head_touched: AtomicBool::new(false),
            failed: Mutex::new(None),
            pending_sums: Mutex::default(),
            storage,
            newest,
            rewrites: AtomicU64::new(0),
            reserve,
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

    /// Calls `each` for the rows of a lineage whose keys begin with `prefix`, in order of their keys, tombstones left
    /// out, until it says false.
    pub(crate) fn scan(
        &self,
        lineage: &Lineage,
        prefix: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> Result<bool>,
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
                    go_on = each(k.as_bytes(), &v)?;
                }
            }
            if !go_on {
                return Ok(false);
            }
            if recent.peek().is_some_and(|(k, _)| k.as_bytes() == key) {
                if let Some((k, Some(v))) = recent.next() {
                    go_on = each(k.as_bytes(), &v)?;
                }
                return Ok(go_on);
            }
            if let Some(value) = value {
                go_on = each(key, value)?;
            }
            Ok(go_on)
        })?;
        for (key, value) in recent {
            if !go_on {
                break;
            }
            if let Some(value) = value {
                go_on = each(key.as_bytes(), &value)?;
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
        self.commit_now(source, full).inspect_err(|e| self.fail(e))
    }

    /// What the disk has now is unknown: no later success may cover this up.
    fn fail(&self, error: &Error) {
        self.failed.lock().get_or_insert_with(|| error.to_string());
    }

    /// Refuses when an earlier commit failed.
    pub(crate) fn check(&self) -> Result<()> {
        match &*self.failed.lock() {
            Some(first) => Err(Error::PreviousFailure { first: first.clone() }),
            None => Ok(()),
        }
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

    /// Writes rows of sealed epochs, which no memtable holds: what reclaim does. `change` gets a [`RowWriter`]. Hashes
    /// that wait for a commit are in this one: rows may rely on them, and `change` may remove them.
    pub(crate) fn rewrite(&self, change: impl FnOnce(&mut RowWriter<'_>) -> Result<()>) -> Result<()> {
        let _one = self.committing.lock();
        self.check()?;
        let db = self.db()?;
        let txn = db.begin_write().map_err(database)?;
        let number = {
            let mut writer = RowWriter {
                rows: txn.open_table(ROWS).map_err(database)?,
                touched: txn.open_table(TOUCHED).map_err(database)?,
                control: txn.open_table(CONTROL).map_err(database)?,
                sums: txn.open_table(SUMS).map_err(database)?,
            };
            for (key, group) in self.pending_sums.lock().take() {
                put_group(&mut writer.sums, &key, &group)?;
            }
            change(&mut writer)?;
            self.newest.count(&mut writer.control)?
        };
        let committed = txn.commit().map_err(database).and_then(|()| written(&self.storage));
        committed.inspect_err(|e| self.fail(e))?;
        self.newest.committed(number);
        let view = Arc::new(ReadView::new(&db)?);
        let mut tables = self.tables.write();
        tables.view = view;
        self.pending_sums.lock().written();
        self.rewrites.fetch_add(1, Ordering::AcqRel);
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
        Ok(self.touched_layers_of(epoch, usize::MAX)?.unwrap_or_default())
    }

    /// The same, `None` if there are more than `most`.
    pub(crate) fn touched_layers_of(&self, epoch: EpochId, most: usize) -> Result<Option<Vec<Ino>>> {
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
            if inos.len() > most {
                return Ok(None);
            }
        }
        inos.sort_unstable();
        inos.dedup();
        Ok(Some(inos))
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
            each(&Key::from_bytes(key)?, epoch, live(stored.value(), value.value())?)?;
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
            let value = open_value(name.value().as_bytes(), value.value())?.to_vec();
            out.push((rest.to_owned(), value));
        }
        Ok(out)
    }

    /// Has the disk know which commit is the newest, so that damage to it is not taken for a torn one.
    pub(crate) fn sync_newest(&self) {
        self.newest.sync();
    }

    /// Closes the database. Everything after it fails with [`Error::Closed`].
    pub(crate) fn close(&self) {
        let _one = self.committing.lock();
        // The last readers' views keep the database open until they are gone; none outlives the store.
        *self.db.lock() = None;
        self.newest.sync();
    }

    fn view(&self) -> Arc<ReadView> {
        Arc::clone(&self.tables.read().view)
    }
}

/// Whether everything written so far is on the disk.
fn written(storage: &Failure) -> Result<()> {
    match storage.first() {
        Some((what, errno)) => Err(Error::Metadata(what, errno)),
        None => Ok(()),
    }
}

fn layer_of(key: &Key) -> Option<Ino> {
    match key.kind() {
        KeyKind::Layer(ino) => Some(ino),
        _ => None,
    }
}
