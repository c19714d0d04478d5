//! What runs around the cuts of a mount: the mount calls it, whoever has an idea of it brings it.

use std::collections::BTreeMap;

use super::Failure;
use crate::types::Height;

/// Runs before and after each cut, on the thread that asked for it, while no other snapshot or rollback can run.
pub trait Around: Send + Sync {
    /// Before the barrier. Gives labels for the snapshot; an error: there is to be none.
    fn before(&self, height: Height) -> Result<BTreeMap<String, String>, Failure>;
    /// After the cut, also when there was none, or `before` failed.
    fn after(&self, height: Height, taken: bool);
    /// What failed the last time, if anything did.
    fn problem(&self) -> Option<String>;
}
