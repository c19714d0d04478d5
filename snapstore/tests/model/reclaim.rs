//! Deleting, against the model (behind [`RECLAIM`](super::runner::RECLAIM)).

use snapstore::Height;
use snapstore::backend::DeleteReport;

use super::fixture::layer_files;
use super::runner::Runner;
use super::state::code;

impl Runner {
    /// What a deletion reports is what goes from the disk.
    fn freed_exactly(
        &mut self,
        delete: impl Fn(&Runner, bool) -> snapstore::Result<DeleteReport>,
    ) -> DeleteReport {
        self.drop_views();
        self.store.settle().expect("settle");
        let before = self.place.layer_bytes();
        let dry = delete(self, true).expect("dry run");
        let real = delete(self, false).expect("delete");
        assert_eq!(dry, real, "a dry run says what is done");
        self.store.settle().expect("settle");
        let after = self.place.layer_bytes();
        assert_eq!(before - after, real.freed_bytes, "freed bytes, as the layers' holes say");
        real
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
        let report = self.freed_exactly(|r, dry| r.store.delete(&heights, dry));
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
        self.check_layer_counts();
        true
    }

    pub fn drop_abandoned(&mut self) -> bool {
        self.freed_exactly(|r, dry| r.store.drop_abandoned(dry));
        self.left.clear();
        let path = self.path.clone();
        self.snaps.retain(|e, _| path.contains(e));
        assert_eq!(self.store.undo_rollback(true).map_err(|e| code(&e)), Err("NothingToUndo".into()));
        self.names_synced();
        self.check_live();
        self.check_heights();
        self.check_layer_counts();
        true
    }

    /// No inode has more layers than snapshots and heads that can differ in it.
    fn check_layer_counts(&self) {
        let mut counts = std::collections::BTreeMap::<u64, usize>::new();
        for path in layer_files(&self.place.store()) {
            let name = path.file_name().and_then(|n| n.to_str()).expect("ascii");
            let ino = name.split('.').next().and_then(|i| i.parse().ok()).expect("an inode number");
            *counts.entry(ino).or_default() += 1;
        }
        for (ino, count) in counts {
            let mut versions = 0;
            let mut last = None;
            for epoch in self.snaps.keys() {
                let now = self.snaps[epoch].state.nodes.get(&snapstore::Ino(ino)).map(|n| &n.content);
                versions += usize::from(now.is_some() && now != last);
                last = now;
            }
            // Equal content can still have been written twice, so the exact bound is the number of tips.
            let most = self.snaps.len() + self.left.len() + 1;
            assert!(count <= most, "inode {ino}: {count} layers, {most} tips, {versions} contents");
        }
    }
}
