//! What the kernel knows of the live head's inodes.
//!
//! Two questions are answered here. **When is a nameless inode gone?** A file that was unlinked while open lives on
//! until the kernel has dropped its last reference and the last handle is closed; the two messages may arrive in any
//! order, on different threads. **Of which head is an inode that the kernel holds?** Each answer that tells the
//! kernel of an inode carries the head's serial as FUSE's generation, and is noted here; after a switch of the head,
//! an inode with an older serial is one that the kernel must not use any more.

use std::collections::HashMap;

use parking_lot::Mutex;
use snapstore::Ino;

const SHARDS: usize = 64;

#[derive(Default)]
struct Known {
    /// References of the kernel.
    references: u64,
    /// Open handles.
    handles: u32,
    /// The head serial that the kernel was last told.
    serial: u64,
    /// Whether it was seen to lose its last name.
    nameless: bool,
}

/// The table of live inodes that the kernel references.
pub struct Lookups {
    shards: Vec<Mutex<HashMap<Ino, Known>>>,
}

impl Default for Lookups {
    fn default() -> Lookups {
        Lookups { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Lookups {
    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, Known>> {
        &self.shards[ino.0 as usize % SHARDS]
    }

    /// The kernel is being told of the inode, once more.
    pub fn refer(&self, ino: Ino, serial: u64) {
        let mut shard = self.shard(ino).lock();
        let known = shard.entry(ino).or_default();
        known.references += 1;
        known.serial = known.serial.max(serial);
    }

    /// A handle is being opened.
    pub fn open(&self, ino: Ino) {
        self.shard(ino).lock().entry(ino).or_default().handles += 1;
    }

    /// A handle was closed. `true`: nobody can reach the inode any more, and it has no name.
    #[must_use]
    pub fn close(&self, ino: Ino) -> bool {
        self.drop_from(ino, |known| known.handles = known.handles.saturating_sub(1))
    }

    /// The kernel dropped references. `true`: nobody can reach the inode any more, and it has no name.
    #[must_use]
    pub fn forget(&self, ino: Ino, references: u64) -> bool {
        self.drop_from(ino, |known| known.references = known.references.saturating_sub(references))
    }

    /// The inode lost its last name. `true`: nobody can reach it any more.
    #[must_use]
    pub fn unnamed(&self, ino: Ino) -> bool {
        let mut shard = self.shard(ino).lock();
        match shard.get_mut(&ino) {
            Some(known) => known.nameless = true,
            None => return true,
        }
        false
    }

    /// The inode has got a name (again).
    pub fn named(&self, ino: Ino) {
        if let Some(known) = self.shard(ino).lock().get_mut(&ino) {
            known.nameless = false;
        }
    }

    fn drop_from(&self, ino: Ino, change: impl FnOnce(&mut Known)) -> bool {
        let mut shard = self.shard(ino).lock();
        let Some(known) = shard.get_mut(&ino) else { return false };
        change(known);
        if known.references > 0 || known.handles > 0 {
            return false;
        }
        let nameless = known.nameless;
        shard.remove(&ino);
        nameless
    }

    /// Whether the kernel's knowledge of the inode is of an older head than `serial`. `None`: it knows nothing.
    pub fn is_older(&self, ino: Ino, serial: u64) -> Option<bool> {
        self.shard(ino).lock().get(&ino).map(|known| known.serial < serial)
    }

    /// All inodes of which the kernel's knowledge is older than `serial`.
    pub fn older(&self, serial: u64) -> Vec<Ino> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.lock().iter().filter(|(_, known)| known.serial < serial).map(|(ino, _)| *ino));
        }
        all
    }

    /// All inodes without a name that are still referenced.
    pub fn nameless(&self) -> Vec<Ino> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.lock().iter().filter(|(_, known)| known.nameless).map(|(ino, _)| *ino));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Ino = Ino(9);

    #[test]
    fn a_nameless_inode_goes_with_its_last_reference_or_handle() {
        let table = Lookups::default();
        table.refer(FILE, 1);
        table.open(FILE);
        assert!(!table.unnamed(FILE));
        assert!(!table.forget(FILE, 1));
        assert!(table.close(FILE));
        table.refer(FILE, 1);
        table.open(FILE);
        assert!(!table.unnamed(FILE));
        assert!(!table.close(FILE));
        assert!(table.forget(FILE, 1));
    }

    #[test]
    fn a_named_inode_is_only_forgotten() {
        let table = Lookups::default();
        table.refer(FILE, 1);
        table.refer(FILE, 1);
        assert!(!table.forget(FILE, 1));
        assert!(!table.forget(FILE, 1));
        assert!(table.unnamed(FILE), "unknown to the kernel: gone at once");
    }

    #[test]
    fn what_an_older_head_told_is_found() {
        let table = Lookups::default();
        table.refer(FILE, 1);
        table.refer(Ino(10), 2);
        assert_eq!(table.older(2), [FILE]);
        assert_eq!(table.is_older(FILE, 2), Some(true));
        table.refer(FILE, 2);
        assert_eq!(table.is_older(FILE, 2), Some(false));
        assert_eq!(table.is_older(Ino(11), 2), None);
    }
}
