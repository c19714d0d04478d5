//! Views, reachable as long as somebody uses them.
//!
//! A snapshot has one view, however many look at it. It is made reachable for the first and given back after the last;
//! each has a slot of its own for that, so that a slow one holds up nobody else. What is deleted while its view is in
//! use is out of the catalog at once, and removed when the view is given back.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;

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
        drop(slot);
        let keep = Arc::new(Use { core: self.clone(), epoch });
        let tree = ViewTree { table, passthrough: self.abilities.passthrough, keep };
        Ok(View { epoch, height, time, tree: Arc::new(tree) })
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
