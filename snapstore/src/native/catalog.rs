//! What tmfs knows of a native store beside the files: which epoch is which height, what stands on what, which head is
//! live, and what is under way.
//!
//! It is small, so it is kept in memory and written whole, in one file that is replaced: `catalog`, with a version and a
//! checksum. Whatever an engine is about to make is noted in it before ([`Unsure`], `making`), and whatever it is about
//! to remove is named in it no more and noted as `doomed`. So after a crash everything the engine has belongs to one of
//! four kinds:
//!
//! | the engine has it, and it is | then it |
//! |---|---|
//! | in `epochs` or `heads` | stays |
//! | in `making` | is removed: nobody was told of it |
//! | in `doomed` | is removed: somebody was told that it is gone |
//! | nowhere | stays, and is told of: the catalog may be an older one that somebody put back |
//!
//! Invariants, checked when it is read and before it is written ([`Catalog::check`]):
//!
//! 1. The live head is in `heads`, and so is every abandoned one.
//! 2. What an epoch or a head stands on is in `epochs`, and an epoch's number is above that of what it stands on.
//! 3. All numbers are below `next_epoch` and `next_head`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::engine::HeadId;
use super::site::Site;
use crate::chunk::adopt::journal::{read_long_file, replace_file};
use crate::error::{Error, Result};
use crate::heights::{SnapshotRow, Visible};
use crate::types::EpochId;

/// The file's name in the store.
pub(crate) const NAME: &str = "catalog";

/// The version that is written, and the newest that is read.
const VERSION: u32 = 1;
const FIRST: &str = "tmfs catalog ";
const SUM: &str = "crc32c ";
const SUM_LINE: usize = SUM.len() + 9;

/// A store's catalog.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Catalog {
    /// Raised by every switch of the head.
    pub serial: u64,
    /// The live head.
    pub live: HeadId,
    /// All heads: the live one and those that switches left.
    pub heads: BTreeMap<HeadId, HeadRow>,
    /// The heads that switches left, by the serial of the switch.
    pub abandoned: BTreeMap<u64, AbandonedRow>,
    /// All epochs that the engine keeps.
    pub epochs: BTreeMap<EpochId, EpochRow>,
    pub next_epoch: EpochId,
    pub next_head: HeadId,
    /// What the engine may be making.
    #[serde(default)]
    pub making: Unsure,
    /// What the engine is to remove.
    #[serde(default)]
    pub doomed: Unsure,
    /// The store was closed, and nothing has been changed since.
    pub clean: bool,
    /// The system's run in which it was last opened.
    #[serde(default)]
    pub boot: String,
}

/// A head.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct HeadRow {
    /// The epoch it stands on: its newest snapshot, or the one it was made from. `None`: on nothing that is left.
    pub base: Option<EpochId>,
    /// Where heads are not kept: the epoch that froze this one when it was left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<EpochId>,
    /// The switch to it may not be done yet: it was made from this epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<EpochId>,
    /// Paths that are to be put into it from the store when the switch is done.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "crate::control::wire_path::list")]
    pub carry: Vec<PathBuf>,
    /// When the switch is done, this epoch is of no use any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spent: Option<EpochId>,
}

/// A head that a switch left.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct AbandonedRow {
    pub head: HeadId,
    /// It was left by an undo, not by a rollback.
    pub by_undo: bool,
}

/// What the engine keeps.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct EpochRow {
    /// The epoch before it on its head's path.
    pub parent: Option<EpochId>,
    /// `None` for one that has no height: it froze a head that was left.
    pub snapshot: Option<SnapshotRow>,
}

/// What the engine may have or not have.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Unsure {
    pub epochs: BTreeSet<EpochId>,
    pub heads: BTreeSet<HeadId>,
}

impl Catalog {
    /// The catalog of a store that was just adopted.
    pub(crate) fn new(live: HeadId) -> Catalog {
        Catalog {
            serial: 1,
            live,
            heads: BTreeMap::from([(live, HeadRow::default())]),
            abandoned: BTreeMap::new(),
            epochs: BTreeMap::new(),
            next_epoch: EpochId(1),
            next_head: HeadId(live.0 + 1),
            making: Unsure::default(),
            doomed: Unsure::default(),
            clean: true,
            boot: String::new(),
        }
    }

    /// The live head's row.
    pub(crate) fn head(&mut self) -> &mut HeadRow {
        self.heads.entry(self.live).or_default()
    }

    /// A number for a new epoch, noted as being made.
    pub(crate) fn begin_epoch(&mut self) -> EpochId {
        let epoch = self.next_epoch;
        self.next_epoch = EpochId(epoch.0 + 1);
        self.making.epochs.insert(epoch);
        epoch
    }

    /// A number for a new head, noted as being made if the engine makes one.
    pub(crate) fn begin_head(&mut self, making: bool) -> HeadId {
        let head = self.next_head;
        self.next_head = HeadId(head.0 + 1);
        if making {
            self.making.heads.insert(head);
        }
        head
    }

    /// The epochs from one back to the first.
    pub(crate) fn path(&self, from: Option<EpochId>) -> impl Iterator<Item = EpochId> {
        std::iter::successors(from, |epoch| self.epochs.get(epoch)?.parent)
    }

    /// The snapshots in a head's past.
    pub(crate) fn visible(&self, head: HeadId) -> Visible {
        let base = self.heads.get(&head).and_then(|row| row.base);
        let row = |epoch| self.epochs.get(&epoch).and_then(|row| row.snapshot.as_ref());
        self.path(base).filter_map(|epoch| Some((row(epoch)?.height, epoch))).collect()
    }

    /// The row of a snapshot.
    pub(crate) fn snapshot(&self, epoch: EpochId) -> Option<&SnapshotRow> {
        self.epochs.get(&epoch)?.snapshot.as_ref()
    }

    /// The row of a snapshot, to be changed.
    pub(crate) fn snapshot_mut(&mut self, epoch: EpochId) -> Option<&mut SnapshotRow> {
        self.epochs.get_mut(&epoch)?.snapshot.as_mut()
    }

    /// Takes an epoch out: what stood on it stands on what it stood on.
    pub(crate) fn remove_epoch(&mut self, epoch: EpochId) {
        let Some(row) = self.epochs.remove(&epoch) else { return };
        for other in self.epochs.values_mut().filter(|other| other.parent == Some(epoch)) {
            other.parent = row.parent;
        }
        for head in self.heads.values_mut() {
            if head.base == Some(epoch) {
                head.base = row.parent;
            }
            for gone in [&mut head.tail, &mut head.from, &mut head.spent] {
                gone.take_if(|of| *of == epoch);
            }
        }
    }

    /// Takes an epoch out; the engine is to delete it.
    pub(crate) fn doom_epoch(&mut self, epoch: EpochId) {
        self.remove_epoch(epoch);
        self.doomed.epochs.insert(epoch);
    }

    /// What an engine may have begun to make and nobody was told of is to be removed.
    pub(crate) fn doom_making(&mut self) {
        let making = std::mem::take(&mut self.making);
        self.doomed.epochs.extend(making.epochs);
        self.doomed.heads.extend(making.heads);
    }

    /// The invariants.
    pub(crate) fn check(&self) -> Result<(), String> {
        for head in std::iter::once(&self.live).chain(self.abandoned.values().map(|left| &left.head)) {
            if !self.heads.contains_key(head) {
                return Err(format!("head {} is missing", head.0));
            }
        }
        for (id, head) in &self.heads {
            if *id >= self.next_head {
                return Err(format!("head {} is above the next", id.0));
            }
            for epoch in [head.base, head.tail, head.from, head.spent].into_iter().flatten() {
                if !self.epochs.contains_key(&epoch) {
                    return Err(format!("head {} stands on epoch {epoch}, which is missing", id.0));
                }
            }
        }
        for (id, epoch) in &self.epochs {
            if *id >= self.next_epoch {
                return Err(format!("epoch {id} is above the next"));
            }
            if let Some(parent) = epoch.parent
                && (parent >= *id || !self.epochs.contains_key(&parent))
            {
                return Err(format!("epoch {id} stands on epoch {parent}, which is missing or not below it"));
            }
        }
        Ok(())
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        self.check().map_err(|detail| Error::Damaged { what: "catalog in memory", detail })?;
        let json = serde_json::to_string(self)
            .map_err(|e| Error::Damaged { what: "catalog in memory", detail: e.to_string() })?;
        let mut bytes = format!("{FIRST}{VERSION}\n{json}\n").into_bytes();
        let sum = sum_line(&bytes);
        bytes.extend(sum);
        Ok(bytes)
    }

    /// What bytes say.
    pub(crate) fn parse(bytes: &[u8], site: &Site) -> Result<Catalog> {
        let damaged = |detail: &str| Error::Damaged { what: "catalog", detail: detail.into() };
        let first = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
        let version = std::str::from_utf8(first).ok().and_then(|line| line.strip_prefix(FIRST)?.parse().ok());
        let version: u32 = version.ok_or_else(|| damaged("it does not begin as one"))?;
        if version > VERSION {
            return Err(Error::NewerFormat { store: site.store.clone(), found: version, known: VERSION });
        }
        let split = bytes.len().checked_sub(SUM_LINE).ok_or_else(|| damaged("it is too short"))?;
        let (before, sum) = bytes.split_at(split);
        if sum != sum_line(before) {
            return Err(damaged("its checksum does not fit"));
        }
        let json = before.get(first.len() + 1..).unwrap_or_default();
        let catalog: Catalog = serde_json::from_slice(json).map_err(|e| damaged(&e.to_string()))?;
        catalog.check().map_err(|detail| damaged(&detail))?;
        Ok(catalog)
    }
}

/// The line that ends a catalog.
fn sum_line(before: &[u8]) -> Vec<u8> {
    format!("{SUM}{:08x}\n", crc32c::crc32c(before)).into_bytes()
}

/// Where a catalog is kept. A test's may fail.
pub(crate) trait Kept: Send + Sync {
    /// Puts these bytes in place of what was there, in one step, durably.
    fn replace(&self, bytes: &[u8]) -> Result<()>;
}

/// The catalog's file in a store.
pub(crate) struct CatalogFile(pub Site);

impl Kept for CatalogFile {
    fn replace(&self, bytes: &[u8]) -> Result<()> {
        replace_file(self.0.dir(), NAME, bytes, 0o600).map_err(Error::io("write", self.0.path(NAME)))
    }
}

/// Reads the catalog of a store.
pub(crate) fn read(site: &Site) -> Result<Catalog> {
    let bytes = read_long_file(site.dir(), NAME).map_err(Error::io("read", site.path(NAME)))?;
    let missing = || Error::Damaged { what: "catalog", detail: "it is not there".into() };
    Catalog::parse(&bytes.ok_or_else(missing)?, site)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::SnapshotOptions;
    use crate::types::Height;

    fn site() -> Site {
        let dir = std::fs::File::open("/").unwrap().into();
        Site { data_dir: "/data".into(), store: "/store".into(), dir }
    }

    fn full() -> Catalog {
        let mut c = Catalog::new(HeadId(1));
        for height in [10, 20, 30] {
            let epoch = c.begin_epoch();
            let parent = c.head().base;
            let row = SnapshotRow::new(Height(height), &SnapshotOptions::default());
            c.epochs.insert(epoch, EpochRow { parent, snapshot: Some(row) });
            c.making.epochs.remove(&epoch);
            c.head().base = Some(epoch);
        }
        let new = c.begin_head(true);
        c.heads
            .insert(new, HeadRow { base: Some(EpochId(2)), carry: vec!["a b".into()], ..HeadRow::default() });
        c.abandoned.insert(2, AbandonedRow { head: c.live, by_undo: false });
        c.live = new;
        c
    }

    #[test]
    fn it_is_read_back_as_it_was_written_and_every_damage_is_found() {
        let c = full();
        let bytes = c.bytes().unwrap();
        assert_eq!(Catalog::parse(&bytes, &site()).unwrap(), c);
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let read = Catalog::parse(&bytes, &site());
            assert!(matches!(read, Err(Error::Damaged { .. } | Error::NewerFormat { .. })), "bit {bit}");
        }
        for end in 0..bytes.len() {
            assert!(Catalog::parse(&bytes[..end], &site()).is_err(), "cut to {end}");
        }
        let newer = Catalog::parse(b"tmfs catalog 7\nwhatever", &site());
        assert!(matches!(newer, Err(Error::NewerFormat { found: 7, .. })));
    }

    #[test]
    fn what_stood_on_a_removed_epoch_stands_on_the_one_below() {
        let mut c = full();
        let heights = |c: &Catalog, head| c.visible(head).into_keys().map(|h| h.0).collect::<Vec<_>>();
        assert_eq!(heights(&c, HeadId(1)), [10, 20, 30]);
        assert_eq!(heights(&c, HeadId(2)), [10, 20]);
        c.doom_epoch(EpochId(2));
        c.check().unwrap();
        assert_eq!(heights(&c, HeadId(1)), [10, 30]);
        assert_eq!(heights(&c, HeadId(2)), [10]);
        c.doom_epoch(EpochId(1));
        c.doom_epoch(EpochId(3));
        c.check().unwrap();
        assert_eq!(c.heads[&HeadId(1)].base, None);
        assert_eq!(c.doomed.epochs.len(), 3);
    }

    #[test]
    fn broken_rules_are_named() {
        let broken = |change: &dyn Fn(&mut Catalog)| {
            let mut c = full();
            change(&mut c);
            c.check().unwrap_err()
        };
        assert_eq!(broken(&|c| drop(c.heads.remove(&HeadId(1)))), "head 1 is missing");
        assert_eq!(
            broken(&|c| drop(c.epochs.remove(&EpochId(3)))),
            "head 1 stands on epoch 3, which is missing"
        );
        assert!(broken(&|c| drop(c.epochs.remove(&EpochId(1)))).contains("epoch 2 stands on epoch 1"));
        assert_eq!(broken(&|c| c.next_epoch = EpochId(3)), "epoch 3 is above the next");
    }
}
