//! The commands that a mounted file system answers.
//!
//! What concerns only the store is answered as for one that is not mounted ([`snapstore::control::verbs`]). Here is
//! the rest: a cut needs the barrier before it, a switch needs the kernel to forget, and unmounting is ours alone.

use std::path::PathBuf;

use snapstore::backend::SwitchReport;
use snapstore::control::{Failure, Reply, Request, Side, Verbs, verbs};
use snapstore::preserve;

use snapstore::progress::Silent;

use crate::flush::Flush;
use crate::mounted::Mounted;

impl Verbs for Mounted {
    fn call(&self, request: Request) -> Result<Reply, Failure> {
        match &request {
            Request::Status => self.status().map(Box::new).map(Reply::Status),
            Request::Snapshot { height, options, wait } => {
                let taken = self.snapshot(*height, options)?;
                if !*wait {
                    return Ok(Reply::Snapshot(taken));
                }
                Ok(Reply::Snapshot(verbs::durable(&*self.backend, taken)?))
            }
            Request::Rollback { to, preserve, only, force, dry_run } => self.changing_heights(|| {
                // Patterns mean what is there at the moment of the switch.
                let rollback =
                    |dry_run| self.backend.rollback(*to, &self.preserved(preserve, *only)?, dry_run);
                // Tried dry first: what cannot be done must fail before anything is refused, flushed or cut off.
                self.switched(rollback(true)?, *force, *dry_run, || rollback(false))
            }),
            Request::UndoRollback { only, force, dry_run } => self.changing_heights(|| {
                let undo =
                    |dry_run| self.backend.undo_rollback_preserving(&self.preserved(&[], *only)?, dry_run);
                self.switched(undo(true)?, *force, *dry_run, || undo(false))
            }),
            Request::Unmount => self.unmount().map(|()| Reply::Done),
            Request::Diff { a, b, .. } => {
                if [a, b].contains(&&Side::Live) {
                    self.flush_writers(Flush::All)?;
                }
                self.of_the_store(&request)
            }
            Request::Delete { .. } => self.changing_heights(|| self.of_the_store(&request)),
            // Takes the lock itself, for the deletion only.
            Request::Prune { policy, dry_run } => self.prune(policy.as_ref(), *dry_run),
            Request::List
            | Request::Show { .. }
            | Request::Hold { .. }
            | Request::Release { .. }
            | Request::Verify { .. }
            | Request::Settle => self.of_the_store(&request),
        }
    }
}

impl Mounted {
    /// Runs what takes heights away or gives them another meaning: one such at a time, and then the kernel forgets
    /// them, however far it came.
    fn changing_heights(&self, verb: impl FnOnce() -> Result<Reply, Failure>) -> Result<Reply, Failure> {
        let one = self.verb.lock();
        let reply = verb();
        drop(one);
        self.drop_gone_heights();
        reply
    }

    fn of_the_store(&self, request: &Request) -> Result<Reply, Failure> {
        verbs::answer(&*self.backend, request, &Silent)
            .unwrap_or_else(|| Err(crate::mounted::failed("this command is not known to the mount")))
    }

    /// The paths that a switch carries over.
    fn preserved(&self, named: &[PathBuf], only: bool) -> snapstore::Result<Vec<PathBuf>> {
        let configured = self.preserve.get().filter(|_| !only).map_or(&[][..], Vec::as_slice);
        preserve::with(&*self.backend.head(), named, configured)
    }

    fn switched(
        &self,
        report: SwitchReport,
        force: bool,
        dry_run: bool,
        switch: impl Fn() -> snapstore::Result<SwitchReport>,
    ) -> Result<Reply, Failure> {
        if dry_run {
            return Ok(Reply::Switched(report));
        }
        self.switch_head(force, switch).map(Reply::Switched)
    }
}
