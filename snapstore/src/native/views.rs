//! Views, reachable as long as somebody uses them.
//!
//! A snapshot has one view, however many look at it. It is made reachable for the first and given back after the last;
//! each has a slot of its own for that, so that a slow one holds up nobody else. What is deleted while its view is in
//! use is out of the catalog at once, and removed when the view is given back. From the deletion on only files that are
//! open use it: the kernel may know of its trees for days, and nobody would get the space back.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::core::Core;
use super::tree::{Table, ViewTree};
use crate::backend::View;
use crate::error::{Error, Result};
use crate::types::EpochId;

/// The views in use.
#[derive(Default)]
pub(crate) struct Views {
    slots: Mutex<HashMap<EpochId, Arc<Mutex<Slot>>>>,
}

/// One view.
#[derive(Default)]
pub(crate) struct Slot {
    users: usize,
    table: Option<Arc<Table>>,
    trees: Vec<Weak<ViewTree>>,
}

/// Somebody uses a view.
struct Use {
    core: Arc<Core>,
    epoch: EpochId,
}

impl Views {
    fn slot(&self, epoch: EpochId) -> Arc<Mutex<Slot>> {
        self.slots.lock().entry(epoch).or_default().clone()
    }

    /// Does something while the view of an epoch is in nobody's use and nobody can open it; `None` if it is in use.
    pub(crate) fn unused<T>(&self, epoch: EpochId, act: impl FnOnce() -> T) -> Option<T> {
        let slot = self.slot(epoch);
        let slot = slot.lock();
        if slot.users > 0 {
            return None;
        }
        let answer = act();
        self.slots.lock().remove(&epoch);
        Some(answer)
    }
}

impl Core {
    /// The tree of a snapshot.
    pub(crate) fn view(self: &Arc<Core>, epoch: EpochId) -> Result<View> {
        let slot = self.views.slot(epoch);
        let mut slot = slot.lock();
        // Looked at with the slot held: who deletes takes it out of the catalog first.
        let (height, time) = {
            let control = self.control.lock();
            let row = control.catalog.snapshot(epoch).ok_or(Error::NoSnapshots)?;
            (row.height, row.time)
        };
        let table = match &slot.table {
            Some(table) => table.clone(),
            None => {
                let opened = self.engine.open_view(epoch)?;
                let table = Table::new(opened.as_fd()).inspect_err(|_| self.close_view(epoch))?;
                slot.table.insert(Arc::new(table)).clone()
            }
        };
        slot.users += 1;
        let keep = Arc::new(Use { core: self.clone(), epoch });
        let tree = Arc::new(ViewTree::new(table, self.abilities.passthrough, keep));
        slot.trees.retain(|tree| tree.strong_count() > 0);
        slot.trees.push(Arc::downgrade(&tree));
        Ok(View { epoch, height, time, tree })
    }

    /// The snapshots of these epochs were deleted: their trees keep nothing reachable any more.
    pub(crate) fn end_views(&self, epochs: &[EpochId]) {
        for epoch in epochs {
            let slot = self.views.slots.lock().get(epoch).cloned();
            let trees = slot.map(|slot| std::mem::take(&mut slot.lock().trees)).unwrap_or_default();
            // The last one gives the view back, which takes the slot.
            trees.iter().filter_map(Weak::upgrade).for_each(|tree| tree.end());
        }
    }

    fn close_view(&self, epoch: EpochId) {
        if let Err(error) = self.engine.close_view(epoch) {
            tracing::warn!(%epoch, %error, "a view was not given back");
        }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let slot = self.core.views.slot(self.epoch);
        let mut slot = slot.lock();
        slot.users -= 1;
        if slot.users > 0 {
            return;
        }
        if let Some(table) = slot.table.take() {
            table.let_go();
        }
        self.core.close_view(self.epoch);
        let deleted = self.core.control.lock().catalog.doomed.epochs.contains(&self.epoch);
        drop(slot);
        if deleted {
            self.core.poke();
        }
    }
}
