//! Inode numbers: what the file system below calls its inodes, as [`Ino`]s.
//!
//! Below 2^39 a number is the one below, of the file system that the tree's root is on. Whatever does not fit there
//! gets a number above, by order of appearance: inodes of another device (a nested subvolume, a child dataset) number
//! `n` of the `k`-th such device is `2^39 + k * 2^29 + n` while both are small enough; all others are counted through.
//! Numbers so given are a tree's own and last as long as it is open.

use std::collections::HashMap;
use std::ffi::OsString;

use crate::types::Ino;

/// Device and inode, as `stat` tells them.
pub(crate) type Id = (u64, u64);

const UPPER: u64 = 1 << (Ino::BITS - 1);
const DEVICE_BITS: u32 = 29;
/// The last place of a device is for what is counted through.
const DEVICES: u64 = (1 << (Ino::BITS - 1 - DEVICE_BITS)) - 1;

/// The numbers of one tree.
pub(crate) struct Numbers {
    root: Id,
    devices: HashMap<u64, u64>,
    counted: HashMap<Id, Ino>,
    stubs: HashMap<(Ino, OsString), Ino>,
    next: u64,
}

impl Numbers {
    /// Those of a tree with this root.
    pub(crate) fn new(root: Id) -> Numbers {
        Numbers {
            root,
            devices: HashMap::new(),
            counted: HashMap::new(),
            stubs: HashMap::new(),
            next: UPPER + (DEVICES << DEVICE_BITS),
        }
    }

    /// The number of an inode.
    pub(crate) fn of(&mut self, id: Id) -> Ino {
        let (device, inode) = id;
        if id == self.root {
            return Ino::ROOT;
        }
        if device == self.root.0 && inode > Ino::ROOT.0 && inode < UPPER {
            return Ino(inode);
        }
        if inode < 1 << DEVICE_BITS {
            let next = self.devices.len() as u64;
            let known = self.devices.get(&device).copied();
            let place = known.or_else(|| {
                (next < DEVICES).then(|| {
                    self.devices.insert(device, next);
                    next
                })
            });
            if let Some(place) = place {
                return Ino(UPPER + (place << DEVICE_BITS) + inode);
            }
        }
        if let Some(&ino) = self.counted.get(&id) {
            return ino;
        }
        let ino = self.count();
        self.counted.insert(id, ino);
        ino
    }

    /// The number of a directory that stands for a nested subvolume in a Btrfs snapshot: all of them are one inode
    /// below, but the kernel does not let one directory have two names.
    pub(crate) fn of_stub(&mut self, dir: Ino, name: OsString) -> Ino {
        if let Some(&ino) = self.stubs.get(&(dir, name.clone())) {
            return ino;
        }
        let ino = self.count();
        self.stubs.insert((dir, name), ino);
        ino
    }

    fn count(&mut self) -> Ino {
        let ino = Ino(self.next);
        self.next += 1;
        // 2^29 inodes that fit nowhere else, in one tree, while it is open.
        assert!(ino.0 < 1 << Ino::BITS, "the tree has more inodes than there are numbers for");
        ino
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn numbers_are_unique_stable_and_small_enough() {
        let mut numbers = Numbers::new((7, 256));
        let mut ids: Vec<Id> = vec![(7, 256), (7, 2), (7, UPPER), (7, 1), (7, u64::MAX), (8, 256), (9, 256)];
        ids.extend([(8, 1 << 29), (8, (1 << 29) - 1), (9, 1)]);
        ids.extend((100..100 + DEVICES + 20).map(|device| (device, 256)));
        let given: Vec<Ino> = ids.iter().map(|&id| numbers.of(id)).collect();
        assert_eq!(given[0], Ino::ROOT);
        assert_eq!(given[1], Ino(2));
        assert_eq!(given.iter().collect::<HashSet<_>>().len(), ids.len());
        assert!(given.iter().all(|ino| ino.0 < 1 << Ino::BITS));
        for (id, ino) in ids.iter().zip(&given) {
            assert_eq!(numbers.of(*id), *ino);
        }
        let stub = numbers.of_stub(Ino(5), "sub".into());
        assert_ne!(stub, numbers.of_stub(Ino(6), "sub".into()));
        assert_eq!(stub, numbers.of_stub(Ino(5), "sub".into()));
        assert!(!given.contains(&stub));
    }
}
