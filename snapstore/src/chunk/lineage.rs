//! Epochs form a tree, and a lineage is a path through it.
//!
//! A snapshot freezes the head's epoch and begins a child of it; a rollback begins a child of the snapshot's epoch
//! instead, and leaves the old head's epoch behind as a leaf. What a tree of files shows is decided by its lineage:
//! of each row the version with the newest epoch in the lineage.
//!
//! Epoch numbers only grow, and a child's is above its parent's. So along a path nearly all epochs are neighbours,
//! and a lineage is a short list of intervals: one, and one more for each rollback on the path. An interval may span
//! numbers whose epochs are gone; it never spans one of another branch.
//!
//! A **tip** is an epoch that somebody sees: a snapshot's, the head's, one that a rollback left. An epoch that is no
//! tip and has one child is seen only through the child: the two can be merged. One that is no tip and has no child
//! is seen by nobody.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::types::EpochId;

/// A path from an epoch back to the first, as intervals of epoch numbers, newest first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Lineage {
    intervals: Arc<[(EpochId, EpochId)]>,
}

impl Lineage {
    /// Whether `epoch` lies on the path.
    pub(crate) fn contains(&self, epoch: EpochId) -> bool {
        match self.intervals[0] {
            (low, high) if epoch >= low => epoch <= high,
            _ => {
                let i = self.intervals.partition_point(|&(low, _)| low > epoch);
                self.intervals.get(i).is_some_and(|&(low, high)| low <= epoch && epoch <= high)
            }
        }
    }

    /// The newest epoch of the path: the one whose tree it is.
    pub(crate) fn tip(&self) -> EpochId {
        self.intervals[0].1
    }

    /// This path with a new child of its tip in front.
    pub(crate) fn extended(&self, tree: &EpochTree, child: EpochId) -> Lineage {
        let mut intervals = self.intervals.to_vec();
        match intervals.first_mut() {
            Some((_, high)) if tree.none_between(*high, child) => *high = child,
            _ => intervals.insert(0, (child, child)),
        }
        Lineage { intervals: intervals.into() }
    }

    /// The path from `tip` on.
    pub(crate) fn new(tree: &EpochTree, tip: EpochId) -> Lineage {
        let mut intervals: Vec<(EpochId, EpochId)> = Vec::new();
        let mut at = Some(tip);
        while let Some(epoch) = at {
            match intervals.last_mut() {
                // Neighbours in the tree, with no epoch of another branch between: one interval.
                Some((low, _)) if tree.none_between(epoch, *low) => *low = epoch,
                _ => intervals.push((epoch, epoch)),
            }
            at = tree.parent(epoch);
        }
        Lineage { intervals: intervals.into() }
    }
}

/// What is kept about an epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct EpochRow {
    /// The epoch it began from; the first has none.
    pub parent: Option<EpochId>,
    /// No longer written, data and metadata durable.
    pub sealed: bool,
    /// Chunks with data that its tree sees, once sealed.
    #[serde(default)]
    pub chunks: u64,
    /// The same of the tree it began from, once that is sealed.
    #[serde(default)]
    pub base: Option<u64>,
    /// Sealed, and some of its layers have no hashes yet: see [`super::unhashed`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unhashed: bool,
}

impl EpochRow {
    /// An epoch that begins now.
    pub(crate) fn begun(parent: Option<EpochId>, base: Option<u64>) -> EpochRow {
        EpochRow { parent, sealed: false, chunks: 0, base, unhashed: false }
    }
}

/// The tree of all epochs.
#[derive(Clone, Default, Debug)]
pub(crate) struct EpochTree {
    epochs: BTreeMap<EpochId, EpochRow>,
    children: BTreeMap<EpochId, Vec<EpochId>>,
}

impl EpochTree {
    pub(crate) fn insert(&mut self, epoch: EpochId, row: EpochRow) {
        let old = self.epochs.insert(epoch, row);
        debug_assert!(
            old.is_none_or(|o| o.parent == row.parent),
            "an epoch changes its parent by relink only"
        );
        if old.is_none()
            && let Some(parent) = row.parent
        {
            self.children.entry(parent).or_default().push(epoch);
        }
    }

    pub(crate) fn get(&self, epoch: EpochId) -> Option<&EpochRow> {
        self.epochs.get(&epoch)
    }

    pub(crate) fn get_mut(&mut self, epoch: EpochId) -> Option<&mut EpochRow> {
        self.epochs.get_mut(&epoch)
    }

    pub(crate) fn parent(&self, epoch: EpochId) -> Option<EpochId> {
        self.epochs.get(&epoch)?.parent
    }

    pub(crate) fn children(&self, epoch: EpochId) -> &[EpochId] {
        self.children.get(&epoch).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn len(&self) -> usize {
        self.epochs.len()
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (EpochId, &EpochRow)> {
        self.epochs.iter().map(|(&e, r)| (e, r))
    }

    /// Takes an epoch out; its children become its parent's. Returns the children.
    pub(crate) fn remove(&mut self, epoch: EpochId) -> Vec<EpochId> {
        let Some(row) = self.epochs.remove(&epoch) else { return Vec::new() };
        let orphans = self.children.remove(&epoch).unwrap_or_default();
        for child in &orphans {
            if let Some(c) = self.epochs.get_mut(child) {
                c.parent = row.parent;
            }
        }
        if let Some(siblings) = row.parent.and_then(|p| self.children.get_mut(&p)) {
            siblings.retain(|&c| c != epoch);
            siblings.extend(&orphans);
        }
        orphans
    }

    fn none_between(&self, low: EpochId, high: EpochId) -> bool {
        self.epochs.range(EpochId(low.0 + 1)..high).next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(pairs: &[(u64, u64)]) -> EpochTree {
        let mut t = EpochTree::default();
        for &(epoch, parent) in pairs {
            let parent = (parent != 0).then_some(EpochId(parent));
            t.insert(EpochId(epoch), EpochRow { sealed: true, ..EpochRow::begun(parent, None) });
        }
        t
    }

    fn path(t: &EpochTree, tip: u64) -> Vec<u64> {
        let l = Lineage::new(t, EpochId(tip));
        (1..=20).filter(|&e| l.contains(EpochId(e))).collect()
    }

    #[test]
    fn a_rollback_makes_a_second_interval() {
        let t = tree(&[(1, 0), (2, 1), (3, 2), (4, 3), (5, 2), (6, 5)]);
        assert_eq!(path(&t, 4), [1, 2, 3, 4]);
        assert_eq!(path(&t, 6), [1, 2, 5, 6]);
        assert_eq!(Lineage::new(&t, EpochId(6)).intervals.len(), 2);
        for (parent, child) in [(3, 4), (2, 5), (5, 6)] {
            let grown = Lineage::new(&t, EpochId(parent)).extended(&t, EpochId(child));
            assert_eq!(grown, Lineage::new(&t, EpochId(child)));
        }
        assert_eq!(Lineage::new(&t, EpochId(4)).intervals.len(), 1);
    }

    #[test]
    fn removing_an_epoch_relinks_its_children() {
        let mut t = tree(&[(1, 0), (2, 1), (3, 2), (4, 2)]);
        assert_eq!(t.remove(EpochId(2)), [EpochId(3), EpochId(4)]);
        assert_eq!(t.parent(EpochId(3)), Some(EpochId(1)));
        assert_eq!(t.children(EpochId(1)), [EpochId(3), EpochId(4)]);
        assert!(path(&t, 3).starts_with(&[1]));
        assert!(!path(&t, 4).contains(&3));
    }
}
