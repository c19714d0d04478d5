//! Which way the content of an open file goes: through this process, or from the kernel straight to the file below.
//!
//! The kernel allows one way for an inode at a time: while a descriptor of it is open one way, an opening the other way
//! fails (EIO), and so does one that names the same file below by another registration. So the first opening decides,
//! its registration is shared by all that follow, and the last release drops it. The kernel tells of a release after it
//! has let go itself, so a registration always lives as long as the kernel needs it.

use std::collections::HashMap;
use std::sync::Arc;

use snapstore::sync::Mutex;

use crate::node::NodeId;

const SHARDS: usize = 16;

/// The inodes that are open, each with its way. `D` is a registration of the file below.
pub(crate) struct Ways<D> {
    shards: Vec<Mutex<HashMap<NodeId, Open<D>>>>,
}

struct Open<D> {
    /// `None`: through this process.
    direct: Option<Arc<D>>,
    descriptors: u32,
}

impl<D> Default for Ways<D> {
    fn default() -> Ways<D> {
        Ways { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl<D> Ways<D> {
    fn shard(&self, id: NodeId) -> &Mutex<HashMap<NodeId, Open<D>>> {
        &self.shards[id.0 as usize % SHARDS]
    }

    /// Counts a descriptor that is being opened. `register` is asked only if it is the inode's only one; `None` from it
    /// means that the content goes through this process.
    pub(crate) fn open(&self, id: NodeId, register: impl FnOnce() -> Option<D>) -> Option<Arc<D>> {
        let mut shard = self.shard(id).lock();
        let open =
            shard.entry(id).or_insert_with(|| Open { direct: register().map(Arc::new), descriptors: 0 });
        open.descriptors += 1;
        open.direct.clone()
    }

    /// A descriptor was released.
    pub(crate) fn close(&self, id: NodeId) {
        let mut shard = self.shard(id).lock();
        let Some(open) = shard.get_mut(&id) else { return };
        open.descriptors -= 1;
        if open.descriptors == 0 {
            shard.remove(&id);
        }
    }

    /// The connection has ended: nothing is open any more.
    pub(crate) fn clear(&self) {
        self.shards.iter().for_each(|shard| shard.lock().clear());
    }

    /// Whether the kernel reads and writes the open inode by itself.
    pub(crate) fn is_direct(&self, id: NodeId) -> bool {
        self.shard(id).lock().get(&id).is_some_and(|open| open.direct.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: NodeId = NodeId(9);

    #[test]
    fn the_first_opening_decides_for_all() {
        let ways = Ways::default();
        let first = ways.open(FILE, || Some(1)).unwrap();
        let second = ways.open(FILE, || panic!("there is a registration")).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert!(ways.is_direct(FILE));
        ways.close(FILE);
        assert!(ways.is_direct(FILE), "one is still open");
        assert_eq!(ways.open(FILE, || panic!("there is a registration")).as_deref(), Some(&1));
    }

    #[test]
    fn the_last_release_drops_the_registration() {
        let ways = Ways::default();
        let registration = ways.open(FILE, || Some(1)).unwrap();
        ways.open(FILE, || None);
        ways.close(FILE);
        assert_eq!(Arc::strong_count(&registration), 2);
        ways.close(FILE);
        assert_eq!(Arc::strong_count(&registration), 1);
        assert!(!ways.is_direct(FILE));
        assert_eq!(ways.open(FILE, || None), None);
        assert_eq!(ways.open(FILE, || Some(2)), None, "cached once, cached until it is closed");
        assert!(!ways.is_direct(FILE));
    }
}
