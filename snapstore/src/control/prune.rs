//! Pruning: what a retention policy takes from a backend, mounted or not.
//!
//! Deciding takes a while where space counts, and holds nothing up; only the deletion does, by the lock under which
//! snapshots and rollbacks are made. What was decided counts only if nothing but new snapshots has come since.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Failure, FailureKind};
use crate::backend::{Backend, SnapshotInfo};
use crate::error::Result;
use crate::retention::Policy;
use crate::retention::plan::{Item, Plan, Why, plan};
use crate::types::Height;

/// So often a decision is made anew when something came in between.
const ATTEMPTS: usize = 8;

/// What pruning did, or, as a dry run, would do. `tmfs prune --json`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PruneReport {
    /// The heights, ascending, and why each goes.
    pub pruned: Vec<Pruned>,
    /// Bytes of file content that are freed.
    pub freed_bytes: u64,
    /// How many heights are left.
    pub kept: u64,
    /// Limits of space that all that may go does not meet, in words.
    pub unmet: Vec<String>,
}

/// One height that goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Pruned {
    pub height: Height,
    pub why: Why,
}

/// Prunes. `verb` is the lock of whatever else changes the snapshots or the head.
pub fn prune(
    backend: &dyn Backend,
    policy: &Policy,
    dry_run: bool,
    verb: &Mutex<()>,
) -> Result<PruneReport, Failure> {
    let usage = |message: &str| Failure { kind: FailureKind::Usage, message: message.to_owned() };
    if policy.is_empty() {
        return Err(usage("the retention policy is empty: it says neither what to keep nor a limit"));
    }
    policy.check().map_err(usage)?;
    for _ in 0..ATTEMPTS {
        // What the newest replaces goes only when the newest cannot be lost any more; younger ones do not count yet.
        let newest = backend.snapshots(false)?.pop();
        if let Some(newest) = &newest {
            backend.wait_durable(newest.epoch)?;
        }
        let mut listed = backend.snapshots(false)?;
        listed.retain(|listed| newest.as_ref().is_some_and(|newest| listed.height <= newest.height));
        let (plan, unmet) = decide(backend, &listed, policy)?;
        let pruned: Vec<Pruned> = plan.gone.iter().map(|&(height, why)| Pruned { height, why }).collect();
        let heights: Vec<Height> = pruned.iter().map(|pruned| pruned.height).collect();
        let kept = (listed.len() - heights.len()) as u64;
        if heights.is_empty() {
            return Ok(PruneReport { kept, unmet, ..PruneReport::default() });
        }
        let freed_bytes = if dry_run {
            backend.delete(&heights, true)?.freed_bytes
        } else {
            let _one = verb.lock();
            if !is_as_listed(&listed, &backend.snapshots(false)?) {
                continue;
            }
            backend.delete(&heights, false)?.freed_bytes
        };
        return Ok(PruneReport { pruned, freed_bytes, kept, unmet });
    }
    let message = "heights changed faster than could be decided about them; nothing was pruned".to_owned();
    Err(Failure { kind: FailureKind::Busy, message })
}

/// Whether a decision made about `then` holds: what there was is there, held as it was, and newer ones may have come.
fn is_as_listed(then: &[SnapshotInfo], now: &[SnapshotInfo]) -> bool {
    let same = |(a, b): (&SnapshotInfo, &SnapshotInfo)| a.epoch == b.epoch && a.held == b.held;
    now.len() >= then.len() && then.iter().zip(now).all(same)
}

fn decide(backend: &dyn Backend, listed: &[SnapshotInfo], policy: &Policy) -> Result<(Plan, Vec<String>)> {
    let items: Vec<Item> = listed.iter().map(Item::from).collect();
    let mut plan = plan(&items, policy);
    let mut unmet = Vec::new();
    if !policy.limits_space() {
        return Ok((plan, unmet));
    }
    // What an earlier deletion frees must not be counted as still in use.
    backend.settle()?;
    let freed = |heights: &[Height]| match heights {
        [] => Ok(0),
        _ => backend.delete(heights, true).map(|report| report.freed_bytes),
    };
    let mut meet = |need: u64, why, limit: String| -> Result<()> {
        if need > 0 && !plan.free(need, why, freed)? {
            unmet.push(format!(
                "{limit}: all that may be pruned does not free the {need} bytes that are missing; the newest and held \
                 heights, what rollbacks left and the live files stay"
            ));
        }
        Ok(())
    };
    if let Some(most) = policy.max_history_bytes {
        let usage = backend.usage()?;
        let history = usage.history_bytes.saturating_sub(usage.reclaimable_bytes);
        meet(history.saturating_sub(most.0), Why::MaxHistoryBytes, format!("max-history-bytes {most}"))?;
    }
    if let Some(least) = policy.min_free {
        let (free, total) = space(backend)?;
        meet(least.of(total).saturating_sub(free), Why::MinFree, format!("min-free {least}"))?;
    }
    Ok((plan, unmet))
}

/// Bytes that are free for everybody, and all there are.
pub fn space(backend: &dyn Backend) -> Result<(u64, u64)> {
    let below = backend.head().stat_fs()?;
    let size = u64::from(below.block_size);
    Ok((below.blocks_available * size, below.blocks * size))
}
