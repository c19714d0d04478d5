//! Snapshots, switches of heads, restarts and crashes, against the model.

use std::collections::BTreeSet;
use std::sync::Arc;

use snapstore::backend::*;
use snapstore::{EpochId, Error, Height, Ino};

use super::fixture::Place;
use super::ops::Op;
use super::runner::{Left, RECLAIM, Runner, Snap, check_tree};
use super::state::{State, code};

impl Runner {
    pub fn apply_snapshot(&mut self, op: &Op) -> bool {
        match *op {
            Op::Snapshot { step, options } => {
                let height = self.newest().map_or(10, |n| n + u64::from(step % 3));
                let hold = options % 8 == 0;
                let again = self.newest() == Some(height);
                let made =
                    self.store.snapshot(Height(height), &SnapshotOptions { hold, ..Default::default() });
                if again {
                    return self.same_height(made, height, hold);
                }
                let epoch = made.expect("snapshot").epoch;
                let state = self.model.named();
                let snap = Snap { height, state, held: hold, durable: false };
                assert!(self.snaps.insert(epoch, snap).is_none(), "an epoch named twice");
                self.path.push(epoch);
                self.changed = Some(false);
                self.waits = false;
                true
            }
            Op::SnapshotAgain => {
                let Some(height) = self.newest() else { return false };
                let made = self.store.snapshot(Height(height), &SnapshotOptions::default());
                if height > 0 {
                    let below = self.store.snapshot(Height(height - 1), &SnapshotOptions::default());
                    let want = match self.path.iter().any(|e| self.snaps[e].height == height - 1) {
                        true => "HeightExists",
                        false => "HeightNotNewer",
                    };
                    assert_eq!(code(&below.expect_err("below the newest")), want);
                }
                self.same_height(made, height, false)
            }
            Op::WaitDurable { which } => {
                let Some(epoch) = self.snap_on_path(which) else { return false };
                self.store
                    .wait_durable({
                        let h = Height(self.snaps[&epoch].height);
                        self.store.find(HeightQuery::Exact(h)).expect("found").epoch
                    })
                    .expect("wait_durable");
                let upto = self.path.iter().position(|&e| e == epoch).expect("on the path");
                for e in &self.path[..=upto] {
                    self.snaps.get_mut(e).expect("known").durable = true;
                }
                true
            }
            Op::Hold { which, held } => {
                let Some(epoch) = self.snap_on_path(which) else { return false };
                let snap = self.snaps.get_mut(&epoch).expect("known");
                let info = self.store.set_held(Height(snap.height), held).expect("hold");
                assert_eq!((info.held, info.epoch), (held, epoch));
                snap.held = held;
                self.all_names_durable();
                true
            }
            Op::Rollback { which, how } => self.rollback(which, how),
            Op::Undo => self.undo(),
            Op::Delete { which, how } if RECLAIM => self.delete(which, how),
            Op::DropAbandoned if RECLAIM => self.drop_abandoned(),
            Op::Delete { .. } | Op::DropAbandoned => false,
            _ => unreachable!("snapshots only"),
        }
    }

    fn same_height(&mut self, made: Result<SnapshotInfo, Error>, height: u64, hold: bool) -> bool {
        match (made, self.changed) {
            (Ok(info), Some(false) | None) => {
                assert_eq!((info.height, Some(&info.epoch)), (Height(height), self.path.last()));
                self.snaps.get_mut(&info.epoch).expect("known").held |= hold;
                true
            }
            (Err(e), Some(true) | None) => {
                assert_eq!(code(&e), "HeightExists");
                false
            }
            (made, changed) => panic!("changed: {changed:?}, snapshot of the same height: {made:?}"),
        }
    }

    /// After a switch of heads: old handles fail, the new head shows `state`.
    fn switched(&mut self, state: Option<State>, path: Vec<EpochId>) {
        for h in std::mem::take(&mut self.handles).into_values() {
            let mut byte = [0];
            assert_eq!(h.file.read_at(&mut byte, 0).map_err(|e| code(&e)), Err("Stale".into()));
            let written = h.file.write_at(b"x", 0);
            assert_eq!(written.map_err(|e| code(&e)), Err("Stale".into()));
        }
        let root = self.head.get_attr(Ino::ROOT).map_err(|e| code(&e));
        assert_eq!(root, Err("Stale".into()), "the old head");
        self.head = self.store.head();
        self.model = state.unwrap_or_else(|| State::of(&*self.head));
        self.path = path.into_iter().filter(|e| self.snaps.contains_key(e)).collect();
        self.all_durable();
        self.check_live();
    }

    fn rollback(&mut self, which: u16, how: u16) -> bool {
        let Some(epoch) = self.snap_on_path(which) else {
            let none = self.store.rollback(HeightQuery::Newest, &[], false);
            assert_eq!(none.map_err(|e| code(&e)), Err("NoSnapshots".into()));
            return false;
        };
        let height = self.snaps[&epoch].height;
        let above = self.path.iter().map(|e| self.snaps[e].height).find(|&h| h > height);
        let (query, epoch) = match how % 3 {
            0 => (HeightQuery::Newest, *self.path.last().expect("there is one")),
            1 => (HeightQuery::Exact(Height(height)), epoch),
            _ => (HeightQuery::AtOrBelow(Height(above.map_or(height + 5, |a| a - 1))), epoch),
        };
        let at = self.path.iter().position(|&e| e == epoch).expect("on the path");
        let dry = self.store.rollback(query, &[], true).expect("dry run");
        let (old, serial) = (self.model.named(), self.store.head_serial());
        let report = self.store.rollback(query, &[], false).expect("rollback");
        assert_eq!(dry, report);
        let hidden: Vec<_> = self.path[at + 1..].iter().map(|e| Height(self.snaps[e].height)).collect();
        assert_eq!((report.height, report.hidden_heights), (Some(Height(self.snaps[&epoch].height)), hidden));
        assert!(self.store.head_serial() > serial);
        self.left.push(Left { state: Some(old), path: self.path.clone(), by_undo: false });
        let snap = self.snaps.get_mut(&epoch).expect("known");
        snap.durable = true;
        let state = snap.state.clone();
        self.switched(Some(state), self.path[..=at].to_vec());
        self.changed = Some(false);
        self.waits = false;
        true
    }

    fn undo(&mut self) -> bool {
        let latest = |by_undo| self.left.iter().rposition(|l| l.by_undo == by_undo);
        let Some(i) = latest(false).or_else(|| latest(true)) else {
            let none = self.store.undo_rollback(false);
            assert_eq!(none.map_err(|e| code(&e)), Err("NothingToUndo".into()));
            return false;
        };
        let dry = self.store.undo_rollback(true).expect("dry run");
        let left = self.left.remove(i);
        self.left.push(Left { state: Some(self.model.named()), path: self.path.clone(), by_undo: true });
        assert_eq!(self.store.undo_rollback(false).expect("undo"), dry);
        let mut path = left.path;
        if left.state.is_none() {
            // The crash took what was not durable; of hidden snapshots only now it shows which.
            let there = self.store.heights();
            path.retain(|e| {
                let snap = &self.snaps[e];
                let kept = there.contains(&Height(snap.height));
                assert!(kept || !snap.durable, "the durable height {} is gone", snap.height);
                kept
            });
        }
        self.switched(left.state, path);
        self.changed = None;
        self.waits = true;
        true
    }

    pub fn reopen(&mut self) {
        self.forget_all();
        self.store.close().expect("close");
        self.views.clear();
        self.replace_store(None);
        self.model = self.model.named();
        // Closing froze what the head had changed, so that what it hides from now on is the next epoch's garbage.
        self.waits = true;
        // A crash may have taken hidden ones without our knowing.
        let known = self.left.iter().filter(|l| l.state.is_some()).flat_map(|l| &l.path);
        for epoch in self.path.iter().chain(known) {
            if let Some(snap) = self.snaps.get_mut(epoch) {
                snap.durable = true;
            }
        }
        self.all_durable();
        self.check_live();
    }

    /// Closes all handles, as a kernel that unmounts.
    fn forget_all(&mut self) {
        for slot in 0..3 {
            self.close(slot);
        }
    }

    /// Opens the store again; `place` is where it is from now on, after a crash.
    fn replace_store(&mut self, image: Option<(Place, Arc<dyn Backend>)>) {
        let (place, store) = match image {
            Some((place, store)) => (Some(place), store),
            None => {
                let (store, recovery) = self.place.open(self.background);
                assert!(recovery.clean && recovery.dropped.is_empty(), "{recovery:?}");
                (None, store)
            }
        };
        self.head = store.head();
        self.store = store;
        if let Some(place) = place {
            self.place = place;
        }
        if self.changed == Some(true) {
            self.changed = None;
        }
    }

    /// Looks at what a SIGKILL would leave now, and perhaps goes on from there.
    pub fn crash(&mut self, go_on: bool) -> bool {
        if self.background {
            return false;
        }
        let image = self.place.crash_image();
        let (store, recovery) = image.open(false);
        assert!(!recovery.clean);
        let head = store.head();
        let found = State::of(&*head);
        if !self.log.contains(&found.names()) {
            self.log
                .last()
                .expect("never empty")
                .check(&found.names(), "no state there ever was; the latest");
        }
        for (ino, content) in &self.synced {
            let always = self.log.iter().all(|s| s.nodes.contains_key(ino));
            let still = self.model.nodes.get(ino).is_some_and(|n| n.nlink > 0);
            match found.nodes.get(ino) {
                Some(_) => content.check(&*head.open(*ino).expect("open"), &format!("synced inode {ino}")),
                None => assert!(!still || !always, "synced inode {ino} is gone"),
            }
        }
        let there: BTreeSet<Height> = store.heights().into_iter().collect();
        let mut gone = BTreeSet::new();
        for &epoch in &self.path {
            let snap = &self.snaps[&epoch];
            let height = Height(snap.height);
            if !there.contains(&height) {
                assert!(!snap.durable, "the durable height {height} is gone");
                gone.insert(epoch);
                continue;
            }
            let view = store.view(HeightQuery::Exact(height)).expect("view");
            check_tree(&snap.state, &*view.tree, &format!("height {height} after a crash"));
        }
        if go_on {
            drop((std::mem::take(&mut self.handles), std::mem::take(&mut self.views)));
            // Snapshots of left heads may be lost as well; which, an undo shows.
            self.left.iter_mut().for_each(|l| l.state = None);
            self.snaps.retain(|e, _| !gone.contains(e));
            for left in &mut self.left {
                left.path.retain(|e| self.snaps.contains_key(e));
            }
            self.path.retain(|e| !gone.contains(e));
            self.model = found;
            self.replace_store(Some((image, store)));
            self.changed = None;
            self.waits = true;
            self.all_durable();
            self.check_live();
        } else {
            drop(head);
            drop(store);
        }
        true
    }
}
