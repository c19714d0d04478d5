//! The commands that a mounted file system answers.

use std::path::Path;
use std::sync::Arc;

use snapstore::backend::{HeightQuery, Tree};
use snapstore::control::{Failure, Reply, Request, Selection, Side, Verbs};
use snapstore::{Error, Height};

use crate::mounted::Mounted;

impl Verbs for Mounted {
    fn call(&self, request: Request) -> Result<Reply, Failure> {
        Ok(match request {
            Request::Status => Reply::Status(Box::new(self.status()?)),
            Request::Snapshot { height, options, wait } => {
                let mut info = self.snapshot(height, &options)?;
                if wait {
                    self.backend.wait_durable(height)?;
                    info.durable = true;
                }
                Reply::Snapshot(info)
            }
            Request::List => Reply::List(self.backend.snapshots(true)?),
            Request::Show { height } => {
                // Finding it first: a height that is not there is an error that names the nearest.
                let found = self.backend.find(HeightQuery::Exact(height))?;
                let counted = self.backend.snapshots(true)?.into_iter().find(|s| s.height == height);
                Reply::Snapshot(counted.unwrap_or(found))
            }
            Request::Rollback { to, preserve, force, dry_run } => {
                let _one = self.verb.lock();
                let report = match dry_run {
                    true => self.backend.rollback(to, &preserve, true)?,
                    false => {
                        // Fails before anything is flushed or refused when there is nothing to go back to.
                        self.backend.find(to)?;
                        self.switch_head(force, || self.backend.rollback(to, &preserve, false))?
                    }
                };
                Reply::Switched(report)
            }
            Request::UndoRollback { force, dry_run } => {
                let _one = self.verb.lock();
                let would = self.backend.undo_rollback(true)?;
                Reply::Switched(match dry_run {
                    true => would,
                    false => self.switch_head(force, || self.backend.undo_rollback(false))?,
                })
            }
            Request::Delete { selection, dry_run } => {
                let _one = self.verb.lock();
                Reply::Deleted(self.delete(selection, dry_run)?)
            }
            Request::Hold { height } => Reply::Snapshot(self.backend.set_held(height, true)?),
            Request::Release { height } => Reply::Snapshot(self.backend.set_held(height, false)?),
            Request::Diff { a, b, path } => {
                let (a, b) = (self.side(a)?, self.side(b)?);
                Reply::Diff(snapstore::diff::between(&*a, &*b, path.as_deref().map(below))?)
            }
            Request::Settle => {
                self.backend.settle()?;
                Reply::Done
            }
            Request::Unmount => {
                self.unmount()?;
                Reply::Done
            }
        })
    }
}

impl Mounted {
    fn delete(&self, selection: Selection, dry_run: bool) -> Result<snapstore::backend::DeleteReport, Error> {
        let heights: Vec<Height> = match selection {
            Selection::Heights(heights) => heights,
            Selection::Range(first, last) => {
                self.backend.heights().into_iter().filter(|height| (first..=last).contains(height)).collect()
            }
            Selection::All => {
                self.backend.snapshots(false)?.iter().filter(|s| !s.held).map(|s| s.height).collect()
            }
            Selection::Abandoned => return self.backend.drop_abandoned(dry_run),
        };
        self.backend.delete(&heights, dry_run)
    }

    /// The tree of one side of a diff. Of the live head: with what programs have written until now.
    fn side(&self, side: Side) -> Result<Arc<dyn Tree>, Failure> {
        Ok(match side {
            Side::Live => {
                self.flush_writers()?;
                self.tree.head()
            }
            Side::Height(height) => self.backend.view(HeightQuery::Exact(height))?.tree,
        })
    }
}

/// A path relative to the data dir, however it was written.
fn below(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}
