//! What is done behind: snapshots become durable, and what was deleted is removed.
//!
//! A snapshot is durable once the engine was synced after it was taken, and the catalog says so. A failure is told by
//! `tmfs status` and to whoever waits, and tried again after a while.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::core::Core;
use crate::error::{Error, Result};
use crate::types::EpochId;

/// After so long what failed is tried again.
const AGAIN: Duration = Duration::from_secs(10);

impl Core {
    /// Syncs what is not durable yet, and notes that it is.
    pub(crate) fn make_durable(&self) -> Result<()> {
        let waiting: Vec<EpochId> = {
            let control = self.control.lock();
            let rows = control.catalog.epochs.iter();
            rows.filter(|(_, row)| row.snapshot.as_ref().is_some_and(|s| !s.durable))
                .map(|(&e, _)| e)
                .collect()
        };
        if waiting.is_empty() {
            return Ok(());
        }
        self.engine.sync()?;
        let verb = self.verb()?;
        verb.commit(|c| {
            for epoch in waiting {
                if let Some(row) = c.snapshot_mut(epoch) {
                    row.durable = true;
                }
            }
        })?;
        self.done.notify_all();
        Ok(())
    }

    /// Removes what was deleted, as far as nobody uses it. What cannot be removed does not keep the rest.
    pub(crate) fn reclaim(&self) -> Result<()> {
        let mut failed = None;
        let doomed = self.control.lock().catalog.doomed.clone();
        if doomed.epochs.is_empty() && doomed.heads.is_empty() {
            return Ok(());
        }
        // Heads first: some file systems do not delete a snapshot on which a head stands.
        for &head in &doomed.heads {
            let verb = self.verb()?;
            let there = self.engine.kept()?.heads.contains(&head);
            match if there { self.engine.delete_head(head) } else { Ok(()) } {
                Ok(()) => verb.commit(|c| c.doomed.heads.remove(&head)).map(drop)?,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        for &epoch in &doomed.epochs {
            let verb = self.verb()?;
            let there = self.engine.kept()?.epochs.contains(&epoch);
            let delete = || if there { self.engine.delete_snapshot(epoch) } else { Ok(()) };
            match self.views.unused(epoch, delete) {
                Some(Ok(())) => verb.commit(|c| c.doomed.epochs.remove(&epoch)).map(drop)?,
                Some(Err(error)) => failed = failed.or(Some(error)),
                None => {}
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// All that is due, by the caller.
    pub(crate) fn work_off(&self) -> Result<()> {
        let durable = self.make_durable();
        let reclaimed = self.reclaim();
        let done = durable.and(reclaimed);
        self.work.lock().last_error = done.as_ref().err().map(ToString::to_string);
        done
    }
}

/// The background's thread.
pub(crate) struct Worker {
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts it.
    pub(crate) fn start(core: &Arc<Core>) -> Result<Worker> {
        let core = core.clone();
        let thread = thread::Builder::new()
            .name("tmfs-native".into())
            .spawn(move || run(&core))
            .map_err(Error::io("start the background of", "the store"))?;
        Ok(Worker { thread })
    }

    /// Ends it; what it is at, it completes.
    pub(crate) fn stop(self, core: &Core) {
        core.work.lock().stop = true;
        core.wake.notify_all();
        if self.thread.join().is_err() {
            tracing::error!("the background has panicked");
        }
    }
}

fn run(core: &Core) {
    loop {
        {
            let mut work = core.work.lock();
            while !work.due && !work.stop {
                match work.last_error.is_some() && work.failed.is_none() {
                    true if core.wake.wait_for(&mut work, AGAIN).timed_out() => break,
                    true => {}
                    false => core.wake.wait(&mut work),
                }
            }
            if work.stop {
                return;
            }
            work.due = false;
        }
        if let Err(error) = core.work_off() {
            tracing::error!(%error, "the background failed; it is tried again");
        }
        core.done.notify_all();
    }
}

/// Waits until what is due now is done.
pub(crate) fn settle(core: &Core) -> Result<()> {
    // One thread or another does it: each step takes its turn, and finds nothing left to do the second time.
    core.check()?;
    let done = core.work_off();
    if core.no_background.load(Ordering::Acquire) {
        core.work.lock().due = false;
    }
    done
}
