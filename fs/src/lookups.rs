//! What the kernel knows of the live head's inodes.
//!
//! Two questions are answered here. **When is a nameless inode gone?** A file that was unlinked while open lives on
//! until the kernel has dropped its last reference and the last handle is closed; the two messages may arrive in any
//! order, on different threads. **What does the kernel still hold of a head that was left?** After a switch it must let
//! go of every node that does not carry the new head's tag.

use std::collections::HashMap;

use snapstore::sync::Mutex;

use crate::node::{NodeId, Tag};

const SHARDS: usize = 64;

#[derive(Default)]
struct Known {
    /// References of the kernel.
    references: u64,
    /// Open handles.
    handles: u32,
    /// Whether it was seen to lose its last name.
    nameless: bool,
    /// Whether it may change without a request: see [`Lookups::changes_unseen`].
    unseen: bool,
}

/// The table of live inodes that the kernel references.
pub struct Lookups {
    shards: Vec<Mutex<HashMap<NodeId, Known>>>,
}

impl Default for Lookups {
    fn default() -> Lookups {
        Lookups { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Lookups {
    fn shard(&self, id: NodeId) -> &Mutex<HashMap<NodeId, Known>> {
        &self.shards[id.0 as usize % SHARDS]
    }

    /// The kernel is being told of the inode, once more.
    pub fn refer(&self, id: NodeId) {
        self.shard(id).lock().entry(id).or_default().references += 1;
    }

    /// A handle is being opened.
    pub fn open(&self, id: NodeId) {
        self.shard(id).lock().entry(id).or_default().handles += 1;
    }

    /// A handle was closed. `true`: nobody can reach the inode any more, and it has no name.
    #[must_use]
    pub fn close(&self, id: NodeId) -> bool {
        self.drop_from(id, |known| known.handles = known.handles.saturating_sub(1))
    }

    /// From now on the inode may change without a request to tell of it, since the kernel writes the file below by
    /// itself: attributes of it must not be kept. `true`: until now they could be.
    #[must_use]
    pub fn changes_unseen(&self, id: NodeId) -> bool {
        let mut shard = self.shard(id).lock();
        !std::mem::replace(&mut shard.entry(id).or_default().unseen, true)
    }

    /// Whether it may change without a request. Remains so for as long as the kernel knows it: a mapping outlives the
    /// handle it was made from.
    pub fn may_change_unseen(&self, id: NodeId) -> bool {
        self.shard(id).lock().get(&id).is_some_and(|known| known.unseen)
    }

    /// The kernel dropped references. `true`: nobody can reach the inode any more, and it has no name.
    #[must_use]
    pub fn forget(&self, id: NodeId, references: u64) -> bool {
        self.drop_from(id, |known| known.references = known.references.saturating_sub(references))
    }

    /// The inode lost its last name. `true`: nobody can reach it any more.
    #[must_use]
    pub fn unnamed(&self, id: NodeId) -> bool {
        let mut shard = self.shard(id).lock();
        match shard.get_mut(&id) {
            Some(known) => known.nameless = true,
            None => return true,
        }
        false
    }

    /// The inode has got a name (again).
    pub fn named(&self, id: NodeId) {
        if let Some(known) = self.shard(id).lock().get_mut(&id) {
            known.nameless = false;
        }
    }

    fn drop_from(&self, id: NodeId, change: impl FnOnce(&mut Known)) -> bool {
        let mut shard = self.shard(id).lock();
        let Some(known) = shard.get_mut(&id) else { return false };
        change(known);
        if known.references > 0 || known.handles > 0 {
            return false;
        }
        let nameless = known.nameless;
        shard.remove(&id);
        nameless
    }

    /// Whether the kernel knows it, and it has no name.
    pub fn is_nameless(&self, id: NodeId) -> bool {
        self.shard(id).lock().get(&id).is_some_and(|known| known.nameless)
    }

    /// Whether the kernel references it.
    pub fn is_known(&self, id: NodeId) -> bool {
        self.shard(id).lock().contains_key(&id)
    }

    /// All that is known of heads other than the one with this tag.
    pub fn of_other_heads(&self, live: Tag) -> Vec<NodeId> {
        self.all(|id, _| id.tag() != live && id != NodeId::ROOT)
    }

    /// How many inodes the kernel knows.
    pub fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// How many of [`Lookups::of_other_heads`] there are.
    pub fn count_of_other_heads(&self, live: Tag) -> usize {
        let others = |id: &&NodeId| id.tag() != live && **id != NodeId::ROOT;
        self.shards.iter().map(|shard| shard.lock().keys().filter(others).count()).sum()
    }

    /// All without a name that are still referenced.
    pub fn nameless(&self) -> Vec<NodeId> {
        self.all(|_, known| known.nameless)
    }

    fn all(&self, wanted: impl Fn(NodeId, &Known) -> bool) -> Vec<NodeId> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.lock().iter().filter(|(id, known)| wanted(**id, known)).map(|(id, _)| *id));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: NodeId = NodeId(9);

    #[test]
    fn a_nameless_inode_goes_with_its_last_reference_or_handle() {
        let table = Lookups::default();
        table.refer(FILE);
        table.open(FILE);
        assert!(!table.unnamed(FILE));
        assert!(!table.forget(FILE, 1));
        assert!(table.close(FILE));
        table.refer(FILE);
        table.open(FILE);
        assert!(!table.unnamed(FILE));
        assert!(!table.close(FILE));
        assert!(table.forget(FILE, 1));
    }

    #[test]
    fn a_named_inode_is_only_forgotten() {
        let table = Lookups::default();
        table.refer(FILE);
        table.refer(FILE);
        assert!(!table.forget(FILE, 1));
        assert!(!table.forget(FILE, 1));
        assert!(table.unnamed(FILE), "unknown to the kernel: gone at once");
    }

    #[test]
    fn what_changes_unseen_does_so_until_it_is_forgotten() {
        let table = Lookups::default();
        table.refer(FILE);
        assert!(!table.may_change_unseen(FILE));
        assert!(table.changes_unseen(FILE));
        assert!(!table.changes_unseen(FILE));
        table.open(FILE);
        assert!(!table.close(FILE));
        assert!(table.may_change_unseen(FILE));
        assert!(!table.forget(FILE, 1));
        assert!(!table.may_change_unseen(FILE));
    }

    #[test]
    fn what_other_heads_left_is_found() {
        let table = Lookups::default();
        let left = Tag(3).node(snapstore::Ino(9));
        for id in [FILE, left, NodeId::ROOT] {
            table.refer(id);
        }
        assert_eq!(table.of_other_heads(Tag::FIRST), [left]);
        assert_eq!(table.of_other_heads(Tag(3)), [FILE]);
        assert_eq!((table.count_of_other_heads(Tag(3)), table.count()), (1, 3));
        assert!(table.is_known(left));
    }
}
