//! What differs between two trees.
//!
//! Both trees are walked side by side in byte order of their names.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One difference.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// Relative to the data dir. Bytes that are not UTF-8 are shown as U+FFFD in JSON.
    pub path: PathBuf,
    /// What happened to it on the way from the first tree to the second.
    pub kind: ChangeKind,
}

/// What happened to a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Only in the second tree.
    Added,
    /// Only in the first tree.
    Removed,
    /// In both, with other content, target or device number.
    Modified,
    /// In both, with the same content, but other permissions, owner, times or extended attributes.
    Attributes,
    /// In both, as different kinds of inode.
    Replaced,
}
