//! Accounting: what a deletion frees, and what there is.
//!
//! Epochs fall into **groups**: a tip or a branching point, with the epochs below it down to the next such. A group's
//! epochs are seen together or not at all. Within a group, a chunk that a newer layer of the file hides is garbage;
//! an epoch that no tip sees is garbage whole. Deleting a snapshot makes groups grow: what it frees is the garbage
//! after, less the garbage before.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

use roaring::RoaringBitmap;

use super::core::Core;
use super::lineage::EpochTree;
use super::rows::{Key, KeyKind, LayerRow, Row};
use super::snapshots::Control;
use super::space::{own_chunks, visible_chunks};
use crate::backend::Usage;
use crate::error::{Error, Result};
use crate::types::{CHUNK_SIZE, EpochId, Ino};

/// What one epoch has of an inode's content: a layer, or the mark that it was removed.
struct Part {
    epoch: EpochId,
    own: RoaringBitmap,
    zeroed: RoaringBitmap,
    limit: u64,
}

impl Part {
    /// How many chunks of the next older part this one hides.
    fn hides_of(&self, lower: &Part) -> u64 {
        let all_below = lower.own.max().is_none_or(|last| u64::from(last) < self.limit / CHUNK_SIZE);
        if all_below && self.zeroed.is_empty() {
            return lower.own.intersection_len(&self.own);
        }
        let mut shows = lower.own.clone();
        super::space::cut(&mut shows, self.limit);
        shows -= &self.own;
        shows -= &self.zeroed;
        lower.own.len() - shows.len()
    }
}

/// So many inodes are few.
const FEW: usize = 1000;
/// Fewer snapshots than this are not worth a thread.
const SHARE: usize = 256;
/// How many threads work out sizes at most.
const MOST_THREADS: usize = 4;

/// Parts that were looked at: of two snapshots, one after the other, the second's own are asked for twice.
#[derive(Default)]
struct LookedAt(HashMap<EpochId, HashMap<Ino, Option<Arc<Part>>>>);

impl LookedAt {
    /// Forgets all but what is of these epochs.
    fn keep(&mut self, older: &[EpochId], newer: &[EpochId]) {
        self.0.retain(|epoch, _| older.contains(epoch) || newer.contains(epoch));
    }

    /// What these epochs, which come oldest first, have of an inode: newest first.
    fn parts(&mut self, core: &Core, ino: Ino, epochs: &[EpochId]) -> Result<Vec<Arc<Part>>> {
        let mut parts = Vec::with_capacity(epochs.len() + 1);
        for &epoch in epochs.iter().rev() {
            let part = match self.0.entry(epoch).or_default().entry(ino) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => place.insert(core.part(ino, epoch)?.map(Arc::new)),
            };
            parts.extend(part.clone());
        }
        Ok(parts)
    }
}

/// The groups of a tree under a set of tips.
struct Groups {
    /// Each epoch's group, by its newest member, newest epoch first; `None`: no tip sees it.
    of: Vec<(EpochId, Option<EpochId>)>,
}

/// Through how many children that somebody sees an epoch is seen.
enum Through {
    /// One, of this group.
    One(EpochId),
    Many,
}

impl Groups {
    fn new(tree: &EpochTree, tips: &BTreeSet<EpochId>) -> Groups {
        let mut through: HashMap<EpochId, Through> = HashMap::new();
        let mut of = Vec::with_capacity(tree.len());
        // Children come before their parents.
        for (epoch, row) in tree.iter().rev() {
            let children = through.remove(&epoch);
            let group = match children {
                _ if tips.contains(&epoch) => Some(epoch),
                None => None,
                Some(Through::One(group)) => Some(group),
                Some(Through::Many) => Some(epoch),
            };
            if let (Some(group), Some(parent)) = (group, row.parent) {
                let seen = through.entry(parent);
                seen.and_modify(|through| *through = Through::Many).or_insert(Through::One(group));
            }
            of.push((epoch, group));
        }
        Groups { of }
    }

    /// The group of an epoch.
    fn group(&self, epoch: EpochId) -> Option<EpochId> {
        let at = self.of.binary_search_by(|(other, _)| epoch.cmp(other)).ok()?;
        self.of[at].1
    }

    /// The members of each group, oldest first.
    fn members(&self) -> HashMap<EpochId, Vec<EpochId>> {
        let mut members: HashMap<EpochId, Vec<EpochId>> = HashMap::new();
        for &(epoch, group) in self.of.iter().rev() {
            if let Some(group) = group {
                members.entry(group).or_default().push(epoch);
            }
        }
        members
    }
}

/// What there was at one moment, to count by.
pub(crate) struct Census {
    tree: EpochTree,
    tips: BTreeSet<EpochId>,
}

impl Core {
    /// The tree and its tips as they are now, to count by without holding anything up.
    pub(crate) fn census(&self, c: &Control) -> Census {
        let mut tips = c.tips(self.head().epoch);
        tips.extend(self.pinned_epochs());
        Census { tree: c.tree.clone(), tips }
    }

    /// Bytes that deleting the snapshots of these epochs would free.
    pub(crate) fn freed_bytes(&self, census: &Census, gone: &[EpochId]) -> Result<u64> {
        let Census { tree, tips } = census;
        let mut tips = tips.clone();
        let before = Groups::new(tree, &tips);
        for epoch in gone {
            tips.remove(epoch);
        }
        let after = Groups::new(tree, &tips);
        // Only groups that change matter: those that an epoch joins or leaves.
        let mut affected: BTreeSet<Option<EpochId>> = BTreeSet::new();
        // Both are of one tree: the same epochs in the same order.
        let both =
            || after.of.iter().zip(&before.of).map(|(&(epoch, after), &(_, before))| (epoch, after, before));
        affected.extend(both().filter(|(_, after, before)| after != before).map(|(_, after, _)| after));
        let counts = |&(_, after, before): &(EpochId, Option<EpochId>, Option<EpochId>)| {
            affected.contains(&after) && (after.is_some() || before != after)
        };
        let mut members: Vec<EpochId> = both().filter(counts).map(|(epoch, ..)| epoch).collect();
        members.reverse();
        let mut chunks = 0;
        let unseen = |epoch| after.group(epoch).is_none();
        self.for_each_shared(&members, unseen, |parts| {
            chunks += garbage(parts, &after) - garbage(parts, &before);
        })?;
        Ok(chunks * CHUNK_SIZE)
    }

    /// Whether without the tips `gone` more of what is below the head is seen through the head only.
    pub(crate) fn head_gains(&self, census: &Census, gone: &[EpochId]) -> bool {
        let Census { tree, tips } = census;
        let before = Groups::new(tree, tips);
        let left: BTreeSet<EpochId> = tips.iter().filter(|e| !gone.contains(e)).copied().collect();
        let head = Some(self.head().epoch);
        let count = |groups: &Groups| groups.of.iter().filter(|(_, group)| *group == head).count();
        count(&Groups::new(tree, &left)) > count(&before)
    }

    /// Hands out what the epochs, which come oldest first, have of each inode, newest first: of those that two of them
    /// have, and of those that one has which `counts_alone`. One inode is held at a time, and where only one epoch is large,
    /// as the one is that has all that was there at the beginning, what it has alone is not looked at.
    fn for_each_shared(
        &self,
        epochs: &[EpochId],
        counts_alone: impl Fn(EpochId) -> bool,
        mut each: impl FnMut(&[Arc<Part>]),
    ) -> Result<()> {
        let (mut listed, mut large) = (Vec::new(), Vec::new());
        let mut list = |epoch: EpochId, inos: Vec<Ino>| {
            listed.extend(inos.into_iter().map(|ino| (ino, Reverse(epoch))));
        };
        for &epoch in epochs {
            match self.meta.touched_layers_of(epoch, FEW)? {
                Some(inos) => list(epoch, inos),
                None => large.push(epoch),
            }
        }
        let unlisted = match large[..] {
            [only] if !counts_alone(only) => large.pop(),
            _ => None,
        };
        for epoch in large {
            list(epoch, self.meta.touched_layers(epoch)?);
        }
        listed.sort_unstable();
        for of_one in listed.chunk_by(|a, b| a.0 == b.0) {
            let ino = of_one[0].0;
            let mut of: Vec<EpochId> = of_one.iter().map(|(_, epoch)| epoch.0).collect();
            if let Some(epoch) = unlisted {
                of.insert(of.partition_point(|other| *other > epoch), epoch);
            }
            if of.len() == 1 && !counts_alone(of[0]) {
                continue;
            }
            let mut parts = Vec::with_capacity(of.len());
            for epoch in of {
                parts.extend(self.part(ino, epoch)?.map(Arc::new));
            }
            each(&parts);
        }
        Ok(())
    }

    /// What one epoch has of one inode's content; `None`: nothing.
    fn part(&self, ino: Ino, epoch: EpochId) -> Result<Option<Part>> {
        let row = match self.meta.row_at(&Key::layer(ino), epoch)? {
            None => return Ok(None),
            Some(None) => {
                let none = RoaringBitmap::new();
                return Ok(Some(Part { epoch, own: none.clone(), zeroed: none, limit: 0 }));
            }
            Some(Some(row)) => row,
        };
        // The usual case: all of it is in the row.
        if let LayerRow { sealed: true, chunks: Some(own), zeroed, limit, .. } = LayerRow::decode(&row)? {
            return Ok(Some(Part { epoch, own, zeroed, limit }));
        }
        let layer = self.layer(ino, epoch, &row)?;
        let own = match own_chunks(self, &layer) {
            // Folded away or removed since the look: nothing of it is left to count.
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            own => own?,
        };
        let state = layer.state.read();
        Ok(Some(Part { epoch, own, zeroed: state.zeroed.clone(), limit: state.limit }))
    }

    /// Bytes that become garbage when a group of epochs is joined with the next newer one: chunks of the older that the
    /// newer hides. Only inodes that both have matter, so the group that has few is gone through.
    fn freed_by_joining(&self, seen: &mut LookedAt, older: &[EpochId], newer: &[EpochId]) -> Result<u64> {
        let mut inos = None;
        for (group, most) in [(newer, FEW), (older, FEW), (newer, usize::MAX)] {
            if inos.is_none() {
                inos = self.touched_by(group, most)?;
            }
        }
        let (after, before) = (|_| Some(()), |epoch: EpochId| Some(newer.contains(&epoch)));
        let mut chunks = 0;
        for ino in inos.unwrap_or_default() {
            let mut parts = seen.parts(self, ino, newer)?;
            let above = parts.len();
            if above == 0 {
                continue;
            }
            parts.extend(seen.parts(self, ino, older)?);
            chunks += match &parts[..] {
                [upper, lower] if above == 1 => upper.hides_of(lower),
                parts if parts.len() > above => garbage_by(parts, after) - garbage_by(parts, before),
                _ => 0,
            };
        }
        Ok(chunks * CHUNK_SIZE)
    }

    /// The inodes whose layers any of these epochs has; `None` if there are more than `most`.
    fn touched_by(&self, epochs: &[EpochId], most: usize) -> Result<Option<BTreeSet<Ino>>> {
        let mut inos = BTreeSet::new();
        for &epoch in epochs {
            match self.meta.touched_layers_of(epoch, most)? {
                Some(touched) => inos.extend(touched),
                None => return Ok(None),
            }
        }
        Ok((inos.len() <= most).then_some(inos))
    }

    /// Bytes that deleting each of these snapshots alone would free.
    pub(crate) fn exclusive_bytes(&self, epochs: &[EpochId]) -> Result<Vec<u64>> {
        let (census, unsealed) = {
            let control = self.control.lock();
            let census = self.census(&control);
            let unsealed: BTreeSet<EpochId> = census
                .tree
                .iter()
                .map(|(epoch, _)| epoch)
                .filter(|&epoch| !control.is_sealed(epoch))
                .collect();
            (census, unsealed)
        };
        let groups = Groups::new(&census.tree, &census.tips);
        let members = groups.members();
        let of = |group: EpochId| members.get(&group).map_or(&[][..], Vec::as_slice);
        let mut known = self.exclusive.lock();
        if known.len() > 2 * epochs.len() + 64 {
            known.retain(|epoch, _| census.tips.contains(epoch));
        }
        // The usual case: the epoch's group joins the next newer one. Sealed epochs do not change what they show; what
        // reclaim merges is in the list no more.
        let joins = |epoch: EpochId| {
            let mut seen = census.tree.children(epoch).iter().filter_map(|child| groups.group(*child));
            match (seen.next(), seen.next()) {
                (Some(next), None) => Some((of(epoch), of(next))),
                _ => None,
            }
        };
        let lookup = |epoch: &EpochId| match (known.get(epoch), joins(*epoch)) {
            (Some((of, bytes)), Some((older, newer))) if of.iter().eq(older.iter().chain(newer)) => {
                Some(*bytes)
            }
            _ => None,
        };
        let mut bytes: Vec<Option<u64>> = epochs.iter().map(lookup).collect();
        let mut unknown: Vec<(EpochId, &mut Option<u64>)> = epochs.iter().copied().zip(&mut bytes).collect();
        unknown.retain(|(_, bytes)| bytes.is_none());
        let work = |part: &mut [(EpochId, &mut Option<u64>)]| {
            let mut looked_at = LookedAt::default();
            part.iter_mut().try_for_each(|(epoch, bytes)| {
                **bytes = Some(match joins(*epoch) {
                    Some((older, newer)) => {
                        looked_at.keep(older, newer);
                        self.freed_by_joining(&mut looked_at, older, newer)?
                    }
                    None => self.freed_bytes(&census, &[*epoch])?,
                });
                Ok(())
            })
        };
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
        let share = unknown.len().div_ceil(threads).max(SHARE);
        if unknown.len() <= share {
            work(&mut unknown)?;
        } else {
            thread::scope(|scope| {
                let parts: Vec<_> =
                    unknown.chunks_mut(share).map(|part| scope.spawn(|| work(part))).collect();
                let ended =
                    parts.into_iter().map(|part| part.join().unwrap_or_else(|panic| resume_unwind(panic)));
                ended.collect::<Result<()>>()
            })?;
        }
        let bytes: Vec<u64> = bytes.into_iter().map(Option::unwrap_or_default).collect();
        for (&epoch, &bytes) in epochs.iter().zip(&bytes) {
            if let Some((older, newer)) = joins(epoch)
                && older.iter().chain(newer).all(|epoch| !unsealed.contains(epoch))
            {
                known.entry(epoch).insert_entry(([older, newer].concat(), bytes));
            }
        }
        Ok(bytes)
    }

    /// Space and counts of the whole store. Reads all layer rows and the head's inode rows.
    pub(crate) fn usage(&self) -> Result<Usage> {
        // From the newest sealed epoch on, what the epochs since then have changed is counted file by file.
        let (head, census, undo_depth, base, since) = {
            let c = self.control.lock();
            let head = self.head();
            let mut since = vec![head.epoch];
            let mut at = c.tree.parent(head.epoch);
            while let Some(epoch) = at.filter(|&e| !c.is_sealed(e)) {
                since.push(epoch);
                at = c.tree.parent(epoch);
            }
            let oldest = since.last().copied().unwrap_or(head.epoch);
            let base = c.tree.get(oldest).and_then(|e| e.base).unwrap_or(0);
            (head.clone(), self.census(&c), c.abandoned.len() as u64, base, since)
        };
        let mut usage = Usage { undo_depth, ..Usage::default() };
        let mut live = base as i64;
        let mut touched = BTreeSet::new();
        for &epoch in &since {
            touched.extend(self.meta.touched_layers(epoch)?);
        }
        let oldest = since.last().copied().unwrap_or(head.epoch);
        for ino in touched {
            live +=
                self.with_stack(&head.lineage, ino, |stack| Ok(visible_chunks(self, stack)?.len()))? as i64;
            live -= self.chunks_in(&head.lineage, ino, oldest)? as i64;
        }
        usage.live_bytes = live.max(0) as u64 * CHUNK_SIZE;
        let mut total = 0;
        self.meta.for_each_row(|key, epoch, value| {
            if let (KeyKind::Layer(ino), Some(bytes)) = (key.kind(), value) {
                usage.layers += 1;
                let blocks = match self.pinned_layer(ino, epoch) {
                    Some(layer) => layer.blocks(&*self.disk)?,
                    None => LayerRow::decode(bytes)?.blocks,
                };
                total += blocks * 512;
            }
            Ok(())
        })?;
        usage.history_bytes = total.saturating_sub(usage.live_bytes);
        self.meta.scan(&head.lineage, &Key::inodes(), |_, _| {
            usage.live_files += 1;
            Ok(true)
        })?;
        usage.reclaimable_bytes = self.reclaimable_bytes(&head, &census)?;
        let stat = self.disk.stat(super::open::DATABASE);
        let blocks = stat.map_err(Error::io("stat", super::open::DATABASE))?.map_or(0, |s| s.blocks);
        usage.metadata_bytes = blocks * 512;
        Ok(usage)
    }

    /// Bytes that the background is going to give back: what is garbage already, apart from what the head hides,
    /// which has to be frozen first.
    fn reclaimable_bytes(&self, head: &super::core::HeadState, census: &Census) -> Result<u64> {
        let groups = Groups::new(&census.tree, &census.tips);
        let mut sizes: BTreeMap<Option<EpochId>, usize> = BTreeMap::new();
        for (_, group) in &groups.of {
            *sizes.entry(*group).or_default() += 1;
        }
        let counts = |group: &Option<EpochId>| match group {
            None => true,
            Some(top) => *top != head.epoch && sizes.get(group).is_some_and(|&n| n > 1),
        };
        let members: Vec<EpochId> =
            groups.of.iter().rev().filter(|(_, group)| counts(group)).map(|(epoch, _)| *epoch).collect();
        let mut chunks = 0;
        let unseen = |epoch| groups.group(epoch).is_none();
        self.for_each_shared(&members, unseen, |parts| chunks += garbage(parts, &groups))?;
        let pending = self.work.lock().frees_space();
        Ok((chunks * CHUNK_SIZE).max(u64::from(pending)))
    }
}

/// The chunks of one inode's layers, newest first, that are garbage under a grouping.
fn garbage(parts: &[Arc<Part>], groups: &Groups) -> u64 {
    garbage_by(parts, |epoch| groups.group(epoch))
}

/// The same, with the grouping as a function; `None`: nobody sees the epoch.
fn garbage_by<G: Eq + Hash>(parts: &[Arc<Part>], group_of: impl Fn(EpochId) -> Option<G>) -> u64 {
    let mut hidden: HashMap<G, (RoaringBitmap, u64)> = HashMap::new();
    let mut chunks = 0;
    for part in parts {
        let Some(group) = group_of(part.epoch) else {
            chunks += part.own.len();
            continue;
        };
        let (hides, limit) = hidden.entry(group).or_insert_with(|| (RoaringBitmap::new(), u64::MAX));
        let mut shows = part.own.clone();
        super::space::cut(&mut shows, *limit);
        shows -= &*hides;
        chunks += part.own.len() - shows.len();
        *hides |= &part.own | &part.zeroed;
        *limit = part.limit.min(*limit);
    }
    chunks
}
