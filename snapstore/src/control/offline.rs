//! The verbs on a store that is not mounted, in the process that asks.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{Failure, FailureKind, Reply, Request, Status, Verbs, verbs};
use crate::backend::Backend;
use crate::error::Result;
use crate::locate::Located;
use crate::preserve::{self, Pattern};
use crate::progress::{Progress, Silent};

/// Answers for a store that is not mounted.
///
/// Nobody has a file of it open, so a rollback needs no force. Close the backend when done.
pub struct Offline {
    backend: Arc<dyn Backend>,
    located: Located,
    progress: Box<dyn Progress>,
    preserve: Vec<Pattern>,
}

impl Offline {
    /// Answers with this backend, opened for the data dir `located`.
    pub fn new(backend: Arc<dyn Backend>, located: Located) -> Offline {
        Offline { backend, located, progress: Box::new(Silent), preserve: Vec::new() }
    }

    /// Tells of the progress of long work.
    pub fn telling(self, progress: Box<dyn Progress>) -> Offline {
        Offline { progress, ..self }
    }

    /// Carries these over at every rollback, unless told not to.
    pub fn preserving(self, preserve: Vec<Pattern>) -> Offline {
        Offline { preserve, ..self }
    }

    /// The requests that [`verbs::answer`] leaves to a mount or to us.
    fn own(&self, request: &Request) -> Result<Reply> {
        let backend = &*self.backend;
        let configured = |only: bool| if only { &[][..] } else { &self.preserve };
        match request {
            Request::Status => {
                let base = verbs::status_base(backend, &self.located)?;
                Ok(Reply::Status(Box::new(Status { preserve: self.preserve.clone(), ..base })))
            }
            Request::Snapshot { height, options, wait } => {
                let taken = backend.snapshot(*height, options)?;
                if !*wait {
                    return Ok(Reply::Snapshot(taken));
                }
                // Without background threads, only settling seals.
                backend.settle()?;
                super::verbs::durable(backend, taken).map(Reply::Snapshot)
            }
            Request::Rollback { to, preserve, only, force: _, dry_run } => {
                let preserve = preserve::with(&*backend.head(), preserve, configured(*only))?;
                backend.rollback(*to, &preserve, *dry_run).map(Reply::Switched)
            }
            Request::UndoRollback { only, force: _, dry_run } => {
                let preserve = preserve::with(&*backend.head(), &[], configured(*only))?;
                backend.undo_rollback_preserving(&preserve, *dry_run).map(Reply::Switched)
            }
            _ => unreachable!("the rest is answered alike everywhere, or below"),
        }
    }
}

impl Verbs for Offline {
    fn call(&self, request: Request) -> Result<Reply, Failure> {
        if request == Request::Unmount {
            let message = format!("{}: not mounted", self.located.data_dir.display());
            return Err(Failure { kind: FailureKind::Failed, message });
        }
        if let Request::Prune { policy, dry_run } = &request {
            let policy = policy.as_ref().ok_or_else(verbs::no_policy)?;
            return super::prune::prune(&*self.backend, policy, *dry_run, &Mutex::new(())).map(Reply::Pruned);
        }
        match verbs::answer(&*self.backend, &request, &*self.progress) {
            Some(answer) => answer,
            None => self.own(&request).map_err(Failure::from),
        }
    }
}
