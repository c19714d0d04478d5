//! The store, as a follower sees it: what there is, and whom to ask for more.

use std::collections::BTreeMap;
use std::sync::Arc;

use snapstore::EpochId;
use snapstore::Height;
use snapstore::backend::{Backend, HeightQuery, SnapshotInfo, SnapshotOptions};
use snapstore::control::{Failure, FailureKind, Reply, Request, Verbs};

use crate::machine::{Kept, Newest};

/// Keeps snapshots.
pub trait Keeper: Send {
    /// What there is now.
    fn kept(&self) -> Result<Kept, Failure>;
    /// Takes a snapshot. Returns when the cut is made; it is durable a little later.
    fn take(&self, height: u64, options: SnapshotOptions) -> Result<SnapshotInfo, Failure>;
    /// Adds labels to a snapshot that was just taken. One that is gone again needs none.
    fn label(&self, height: u64, epoch: EpochId, labels: BTreeMap<String, String>) -> Result<(), Failure>;
}

/// A mounted store: it is asked as the command line asks, and looked into directly.
pub struct Mounted {
    /// Takes snapshots, with barrier and hooks.
    pub verbs: Arc<dyn Verbs>,
    /// Knows what there is.
    pub backend: Arc<dyn Backend>,
}

impl Keeper for Mounted {
    fn kept(&self) -> Result<Kept, Failure> {
        let serial = self.backend.head_serial();
        if self.backend.heights().is_empty() {
            return Ok(Kept { newest: None, serial });
        }
        let newest = match self.backend.find(HeightQuery::Newest) {
            Ok(info) => {
                let hash = info.hash.map(|hash| hash.to_ascii_lowercase());
                Some(Newest { height: info.height.0, hash })
            }
            // Deleted just now.
            Err(snapstore::Error::NoSnapshots) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Kept { newest, serial })
    }

    fn take(&self, height: u64, options: SnapshotOptions) -> Result<SnapshotInfo, Failure> {
        match self.verbs.call(Request::Snapshot { height: Height(height), options, wait: false })? {
            Reply::Snapshot(info) => Ok(info),
            _ => Err(Failure {
                kind: FailureKind::Failed,
                message: "a snapshot was answered with something else".into(),
            }),
        }
    }

    fn label(&self, height: u64, epoch: EpochId, labels: BTreeMap<String, String>) -> Result<(), Failure> {
        match self.backend.add_labels(Height(height), epoch, &labels) {
            Ok(_) | Err(snapstore::Error::NoSuchHeight { .. } | snapstore::Error::NoSnapshots) => Ok(()),
            Err(snapstore::Error::Unsupported) => {
                tracing::debug!(height, "this backend's snapshots keep no labels once they are made");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}
