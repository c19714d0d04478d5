//! What a file system's own snapshots must offer to be a backend.
//!
//! An engine knows epochs and heads, not heights: a height that is executed again after a rollback is another epoch, so
//! names below never clash. What it keeps is found by number alone, and its own listing ([`Engine::kept`]) is compared
//! with the catalog at every opening: what the catalog does not know is left over from a crash and is dropped, *if the
//! engine says that tmfs made it*. Nothing else is ever listed or touched.
//!
//! Invariants that the callers keep and engines may rely on:
//!
//! 1. One call at a time for [`snapshot`](Engine::snapshot), [`branch`](Engine::branch), [`switch`](Engine::switch) and
//!    the deletions; views are opened and closed at any time, from any thread.
//! 2. The number of an epoch or a head is never used twice, also not after a crash.
//! 3. A snapshot is not deleted while its view is open, a head not while it is live.
//!
//! What engines must keep:
//!
//! 4. Each call is whole or not at all as seen after a crash, or can be called again with the same arguments and then
//!    completes (`AlreadyExists` of what it made itself is success).
//! 5. What [`Engine::snapshot`] makes is atomic over everything in the head: no file in it is older than another.
//! 6. Nothing of what a call was not asked for is destroyed, whatever the file system's own tools would suggest.

use std::os::fd::OwnedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::BackendKind;
use crate::error::Result;
use crate::types::{EpochId, Height};

/// The number of a head: a writable tree, the live one or one that a rollback left.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HeadId(pub u64);

/// What is told to an engine about a snapshot, for people who look at it from below.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Its height.
    pub height: Height,
    /// When the cut is made.
    pub time: jiff::Timestamp,
    /// The block's hash, if it was given.
    pub hash: Option<String>,
}

/// What an engine keeps, and tmfs made.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Kept {
    /// Snapshots, in any order.
    pub epochs: Vec<EpochId>,
    /// Heads, in any order.
    pub heads: Vec<HeadId>,
}

/// Space of a snapshot in bytes, as the engine counts it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Space {
    /// What it sees.
    pub referenced: u64,
    /// What deleting it alone would free.
    pub exclusive: u64,
}

/// Space of everything in bytes, as the engine counts it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Totals {
    /// What the live head sees.
    pub live: u64,
    /// What only snapshots and abandoned heads see.
    pub history: u64,
}

/// What an engine has and has not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Abilities {
    /// A head that a switch leaves is kept as it is, so that an undo goes back to it. Where not, the backend takes a
    /// snapshot of it before each switch, and an undo is a switch to that.
    pub keeps_heads: bool,
    /// The live files may be handed to the kernel (FUSE passthrough).
    pub passthrough: bool,
    /// [`Engine::space`] tells what is true; where not, sizes are shown as unknown (0).
    pub space: bool,
    /// [`Engine::totals`] tells what only history takes.
    pub history: bool,
    /// What cannot be done here, in words, one sentence each: `tmfs status` shows them.
    pub limits: Vec<String>,
}

/// A file system's snapshots. Blocking; errors name the command or call, and what it was done to.
pub trait Engine: Send + Sync {
    /// Which backend this makes.
    fn kind(&self) -> BackendKind;
    /// What it has and has not.
    fn abilities(&self) -> Abilities;
    /// What there is of tmfs's.
    fn kept(&self) -> Result<Kept>;

    /// The root directory of a head, made reachable if it was not.
    fn open_head(&self, head: HeadId) -> Result<OwnedFd>;
    /// Freezes a head as `epoch`. It need not be durable on return: see [`Engine::sync`].
    fn snapshot(&self, head: HeadId, epoch: EpochId, facts: &Facts) -> Result<()>;
    /// Whether a head may differ from a snapshot of it. `true` is always right.
    fn changed_since(&self, _head: HeadId, _epoch: EpochId) -> Result<bool> {
        Ok(true)
    }
    /// Makes everything that was done durable.
    fn sync(&self) -> Result<()>;

    /// The root directory of a snapshot, read-only, made reachable if it was not (mounted, cloned).
    fn open_view(&self, epoch: EpochId) -> Result<OwnedFd>;
    /// Nobody uses the view any more; what made it reachable may go.
    fn close_view(&self, epoch: EpochId) -> Result<()>;

    /// Makes a new head with the content of a snapshot, beside the live one, which is not touched. Where heads are not
    /// kept ([`Abilities::keeps_heads`]) nothing is made yet.
    fn branch(&self, from: EpochId, new: HeadId) -> Result<()>;
    /// `new` is the live head from now on; the catalog says so already. Called again after a crash, and whenever the
    /// store is opened: does nothing when it is done. Where heads are not kept, the live files become those of `from`.
    /// `from` is `None` for a head that is kept and was live before (an undo), and at an opening long after, when the
    /// snapshot may be gone.
    fn switch(&self, from: Option<EpochId>, new: HeadId) -> Result<()>;

    /// Deletes a snapshot.
    fn delete_snapshot(&self, epoch: EpochId) -> Result<()>;
    /// Deletes a head that is not live.
    fn delete_head(&self, head: HeadId) -> Result<()>;

    /// Space of the snapshots, in the order asked for.
    fn space(&self, epochs: &[EpochId]) -> Result<Vec<Space>>;
    /// Space of everything; zeros where that is not known without reading all.
    fn totals(&self, _live: HeadId) -> Result<Totals> {
        Ok(Totals::default())
    }
    /// Waits until the file system has given back what was deleted, for at most about `time`. `false`: it has not.
    fn wait_freed(&self, _time: Duration) -> Result<bool> {
        Ok(true)
    }
    /// Whether a snapshot that [`Engine::kept`] lists after a power cut is there as a whole, also one that was not
    /// synced. Where not, the backend drops those that had not become durable.
    fn whole_when_kept(&self) -> bool {
        true
    }

    /// The store is being closed: views that are still reachable are made unreachable, nothing else.
    fn close(&self) -> Result<()> {
        Ok(())
    }
}
