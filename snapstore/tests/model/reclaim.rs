//! Deleting, against the model (behind [`RECLAIM`](super::runner::RECLAIM)).

use snapstore::Height;
use snapstore::backend::{DeleteReport, SnapshotOptions};

use super::fixture::layer_files;
use super::runner::Runner;
use super::state::code;

impl Runner {
    /// What a deletion reports is what goes from the disk, perhaps with what has waited for the head to be frozen.
    fn freed_exactly(
        &mut self,
        delete: impl Fn(&Runner, bool) -> snapstore::Result<DeleteReport>,
    ) -> DeleteReport {
        self.drop_views();
        self.store.settle().expect("settle");
        let waiting = self.waiting_bytes();
        // After that, which copies the layers: space that is only reserved looks like data, to the store too, as long as
        // the kernel keeps pages of it.
        let before = self.place.layer_bytes();
        let dry = delete(self, true).expect("dry run");
        let real = delete(self, false).expect("delete");
        assert_eq!(dry, real, "a dry run says what is done");
        self.store.settle().expect("settle");
        let freed = before - self.place.layer_bytes();
        assert_eq!(self.store.usage().expect("usage").reclaimable_bytes, 0, "settled");
        let said = real.freed_bytes;
        match waiting {
            Some(waiting) => assert!(
                freed == said || freed == said + waiting,
                "freed {freed} bytes as the layers' holes say, not {said}, nor {waiting} more that waited"
            ),
            None => assert!(freed >= said, "freed {freed} bytes as the layers' holes say, not {said}"),
        }
        real
    }

    /// Garbage that only the head hides: it goes as soon as the head's epoch is frozen. `None`: nobody knows.
    fn waiting_bytes(&self) -> Option<u64> {
        if !self.waits {
            return Some(0);
        }
        // Opening a copy removes inodes without a name, which hides more.
        if self.background || self.model.nodes.values().any(|n| n.nlink == 0) {
            return None;
        }
        let copy = self.place.crash_image();
        let (store, _) = copy.open(false);
        store.settle().expect("settle");
        let before = copy.layer_bytes();
        let above = self.newest().map_or(0, |n| n + 1);
        store.snapshot(Height(above), &SnapshotOptions::default()).expect("snapshot");
        store.settle().expect("settle");
        Some(before - copy.layer_bytes())
    }

    pub fn delete(&mut self, which: u16, how: u16) -> bool {
        if self.path.is_empty() {
            return false;
        }
        let first = which as usize % self.path.len();
        let some: Vec<_> = self.path[first..].iter().copied().take(1 + how as usize % 3).collect();
        let heights: Vec<_> = some.iter().map(|e| Height(self.snaps[e].height)).collect();
        if some.iter().any(|e| self.snaps[e].held) {
            for dry in [true, false] {
                let refused = self.store.delete(&heights, dry).map_err(|e| code(&e));
                assert_eq!(refused, Err("Held".into()));
            }
            return false;
        }
        for info in self.store.snapshots(true).expect("list").iter().filter(|info| !info.held) {
            let alone = self.store.delete(&[info.height], true).expect("dry run");
            assert_eq!(info.exclusive_bytes, alone.freed_bytes, "height {} alone", info.height);
        }
        let keep_views = how & 0x300 == 0 && !self.views.is_empty();
        let report = match keep_views {
            // What is open in a view stays until it is closed, so that the bytes do not come out even yet.
            true => {
                let dry = self.store.delete(&heights, true).expect("dry run");
                let real = self.store.delete(&heights, false).expect("delete");
                assert_eq!(dry, real, "a dry run says what is done");
                real
            }
            false => self.freed_exactly(|r, dry| r.store.delete(&heights, dry)),
        };
        self.waits |= some.last() == self.path.last();
        assert_eq!(report.heights, heights);
        // What the newest snapshot was is gone: nothing says whether the head differs from the one below.
        self.changed = Some(true).filter(|_| self.changed == Some(true));
        for epoch in some {
            self.snaps.remove(&epoch);
            self.path.retain(|&e| e != epoch);
            for left in &mut self.left {
                left.path.retain(|&e| e != epoch);
            }
        }
        self.names_synced();
        self.check_live();
        self.check_heights();
        if keep_views {
            self.count("Delete under views");
            self.check_views();
            self.store.settle().expect("settle");
            self.check_views();
            self.check_heights();
        } else {
            self.check_layer_counts();
        }
        true
    }

    pub fn drop_abandoned(&mut self) -> bool {
        let hidden: Vec<_> =
            self.snaps.iter().filter(|(e, _)| !self.path.contains(e)).map(|(_, s)| s).collect();
        // A crash may have taken hidden ones without our knowing: the durable ones are certain.
        if hidden.iter().any(|s| s.held) {
            let certain = hidden.iter().any(|s| s.held && s.durable);
            match self.store.drop_abandoned(true) {
                Ok(_) => assert!(!certain, "a held snapshot would go"),
                Err(e) => {
                    assert_eq!(code(&e), "Held");
                    let real = self.store.drop_abandoned(false).map_err(|e| code(&e));
                    assert_eq!(real, Err("Held".into()));
                    return false;
                }
            }
        }
        self.freed_exactly(|r, dry| r.store.drop_abandoned(dry));
        self.left.clear();
        // It may have frozen the head.
        self.changed = self.changed.filter(|&c| c);
        self.waits = true;
        let path = self.path.clone();
        self.snaps.retain(|e, _| path.contains(e));
        assert_eq!(self.store.undo_rollback(true).map_err(|e| code(&e)), Err("NothingToUndo".into()));
        self.names_synced();
        self.check_live();
        self.check_heights();
        self.check_layer_counts();
        true
    }

    /// No inode has more layers than there are epochs that reclaim has to keep apart.
    fn check_layer_counts(&self) {
        let mut counts = std::collections::BTreeMap::<u64, usize>::new();
        for path in layer_files(&self.place.store()) {
            let name = path.file_name().and_then(|n| n.to_str()).expect("ascii");
            let ino = name.split('.').next().and_then(|i| i.parse().ok()).expect("an inode number");
            *counts.entry(ino).or_default() += 1;
        }
        // Snapshots, left heads and the head are seen by somebody; so is each fork, by more than one. A fork has a left
        // head above it. And one epoch may wait to be merged with the head's until that is frozen.
        let most = self.snaps.len() + 2 * self.left.len() + 2;
        for (ino, count) in counts {
            assert!(count <= most, "inode {ino}: {count} layers, at most {most} differ");
        }
    }
}
