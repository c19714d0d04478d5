//! The views that the kernel knows: which tag stands for which snapshot's tree.
//!
//! A view is known by the epoch it shows *and* by the name that led to it. The epoch, never the height: a height that
//! is executed again after a rollback is another view with other bytes. The name, because the kernel does not let one
//! directory have two names, and `latest`, `1200` and `~1203` may all show one epoch.
//!
//! The kernel's references to a view's nodes are counted together; with the last one the tag is free. Tags are given
//! out in a circle, so a tag comes back as late as possible.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::sync::Arc;

use snapstore::backend::View;
use snapstore::sync::RwLock;
use snapstore::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use snapstore::{EpochId, Ino};

use crate::node::{NodeId, Tag};

/// A view under a tag.
pub struct ViewNode {
    /// The upper bits of its nodes' numbers.
    pub tag: Tag,
    /// The snapshot and its files.
    pub view: View,
    name: OsString,
    /// Whether a file of it was ever opened.
    opened: AtomicBool,
    /// How often the kernel has been told of its nodes. Grows under the table's read lock, ends under its write lock.
    references: AtomicU64,
}

impl ViewNode {
    /// The node of one of its inodes.
    pub fn node(&self, ino: Ino) -> NodeId {
        self.tag.node(ino)
    }

    /// A file of it is opened. From now on attributes that the kernel keeps go stale unasked: Linux no longer believes
    /// how many blocks a file has once it is closed, if it caches writes (`fuse_flush`), not even here where nobody
    /// writes.
    pub fn opens(&self) {
        self.opened.store(true, Ordering::Relaxed);
    }

    /// Whether the kernel may tell a listing that it keeps again. Else it asks for it with the attributes of all
    /// (`readdirplus`), which costs less than asking for each file's.
    pub fn may_keep_listings(&self) -> bool {
        !self.opened.load(Ordering::Relaxed)
    }
}

/// The views that the kernel knows.
#[derive(Default)]
pub struct Views {
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    by_tag: HashMap<Tag, Arc<ViewNode>>,
    by_name: HashMap<(EpochId, OsString), Tag>,
    /// Tags of live heads. Few: one for each switch since the mount.
    heads: HashSet<Tag>,
    last: u32,
}

impl Views {
    /// The node of a view that was reached by `name`, counting one reference to its root.
    pub fn enter(&self, view: View, name: OsString) -> Arc<ViewNode> {
        let mut table = self.table.write();
        if let Some(node) =
            table.by_name.get(&(view.epoch, name.clone())).and_then(|tag| table.by_tag.get(tag))
        {
            node.references.fetch_add(1, Ordering::Relaxed);
            return node.clone();
        }
        let tag = table.free_tag();
        let node = Arc::new(ViewNode {
            tag,
            view,
            name: name.clone(),
            opened: AtomicBool::new(false),
            references: AtomicU64::new(1),
        });
        table.by_name.insert((node.view.epoch, name), tag);
        table.by_tag.insert(tag, node.clone());
        node
    }

    /// The kernel knows none any more.
    pub fn clear(&self) {
        let mut table = self.table.write();
        table.by_name.clear();
        let gone = std::mem::take(&mut table.by_tag);
        drop(table);
        drop(gone);
    }

    /// A tag for a live head, that no view ever gets.
    pub fn tag_for_head(&self) -> Tag {
        let mut table = self.table.write();
        let tag = table.free_tag();
        table.heads.insert(tag);
        tag
    }

    /// The view of a tag.
    pub fn get(&self, tag: Tag) -> Option<Arc<ViewNode>> {
        self.table.read().by_tag.get(&tag).cloned()
    }

    /// By which names the kernel was led to which epochs. It may have forgotten some of them since.
    pub fn names(&self) -> Vec<(EpochId, OsString)> {
        self.table.read().by_name.keys().cloned().collect()
    }

    /// Counts a reference that the kernel is being given.
    pub fn refer(&self, node: &ViewNode) {
        let _held = self.table.read();
        node.references.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes back references that the kernel has dropped. `false`: the tag is no view's.
    pub fn forget(&self, tag: Tag, references: u64) -> bool {
        let Some(node) = self.get(tag) else { return false };
        if node.references.fetch_sub(references, Ordering::AcqRel) > references {
            return true;
        }
        let mut table = self.table.write();
        if node.references.load(Ordering::Acquire) == 0 && table.by_tag.remove(&tag).is_some() {
            table.by_name.remove(&(node.view.epoch, node.name.clone()));
        }
        true
    }
}

impl Table {
    fn free_tag(&mut self) -> Tag {
        loop {
            self.last = (self.last + 1) % Tag::VIRTUAL.0;
            let tag = Tag(self.last);
            if tag != Tag::FIRST && !self.by_tag.contains_key(&tag) && !self.heads.contains(&tag) {
                return tag;
            }
        }
    }
}
