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
    let mut report = PruneReport::default();
    match prune_into(&mut report, backend, policy, dry_run, verb) {
        Ok(true) => Ok(report),
        Ok(false) if report.pruned.is_empty() => {
            let message =
                "heights changed faster than could be decided about them; nothing was pruned".to_owned();
            Err(Failure { kind: FailureKind::Busy, message })
        }
        // The rest is for the next time.
        Ok(false) => Ok(report),
        Err(error) if report.pruned.is_empty() => Err(error.into()),
        Err(error) => {
            // What is gone is told of all the same.
            report.unmet.push(error.to_string());
            Ok(report)
        }
    }
}

/// Prunes as long as there is something to prune. `false`: it was given up, since something always came in between.
fn prune_into(
    report: &mut PruneReport,
    backend: &dyn Backend,
    policy: &Policy,
    dry_run: bool,
    verb: &Mutex<()>,
) -> Result<bool> {
    let mut attempts = 0;
    while attempts < ATTEMPTS {
        // What the newest replaces goes only when the newest cannot be lost any more; younger ones do not count yet.
        let newest = backend.snapshots(false)?.pop();
        if let Some(newest) = &newest {
            backend.wait_durable(newest.epoch)?;
        }
        let mut listed = backend.snapshots(false)?;
        listed.retain(|listed| newest.as_ref().is_some_and(|newest| listed.height <= newest.height));
        let (plan, unmet) = decide(backend, &listed, policy, dry_run)?;
        let pruned = plan.gone.iter().map(|&(height, why)| Pruned { height, why });
        let heights: Vec<Height> = plan.gone.iter().map(|(height, _)| *height).collect();
        report.kept = (listed.len() - heights.len()) as u64;
        report.unmet = unmet;
        if heights.is_empty() {
            return Ok(true);
        }
        report.freed_bytes += if dry_run {
            backend.delete(&heights, true)?.freed_bytes
        } else {
            let _one = verb.lock();
            if !is_as_listed(&listed, &backend.snapshots(false)?) {
                attempts += 1;
                continue;
            }
            backend.delete(&heights, false)?.freed_bytes
        };
        report.pruned.extend(pruned);
        report.pruned.sort_unstable_by_key(|pruned| pruned.height);
        if dry_run || !policy.limits_space() || backend.tells_what_is_freed() {
            return Ok(true);
        }
        // What that has freed, the disk tells.
    }
    Ok(false)
}

/// Whether a decision made about `then` holds: what there was is there, held as it was, and newer ones may have come.
fn is_as_listed(then: &[SnapshotInfo], now: &[SnapshotInfo]) -> bool {
    let same = |(a, b): (&SnapshotInfo, &SnapshotInfo)| a.epoch == b.epoch && a.held == b.held;
    now.len() >= then.len() && then.iter().zip(now).all(same)
}

/// What goes, and which limits of space are not met by that. Where nobody knows beforehand what a deletion frees
/// ([`Backend::tells_what_is_freed`]) first what the rules give up goes, then, each time that this is asked, one more.
fn decide(
    backend: &dyn Backend,
    listed: &[SnapshotInfo],
    policy: &Policy,
    dry_run: bool,
) -> Result<(Plan, Vec<String>)> {
    let items: Vec<Item> = listed.iter().map(Item::from).collect();
    let mut plan = plan(&items, policy);
    let mut unmet = Vec::new();
    if !policy.limits_space() {
        return Ok((plan, unmet));
    }
    let told = backend.tells_what_is_freed();
    if !told && !plan.gone.is_empty() && !dry_run {
        return Ok((plan, unmet));
    }
    // What an earlier deletion frees must not be counted as still in use.
    let given_back = backend.wait_freed()?;
    let freed = |heights: &[Height]| match heights {
        [] => Ok(0),
        _ => backend.delete(heights, true).map(|report| report.freed_bytes),
    };
    let mut unmet_history = None;
    let mut meet = |need: u64, why, limit: String| -> Result<()> {
        if need == 0 {
            return Ok(());
        }
        if !given_back {
            unmet.push(format!(
                "{limit}: {need} bytes are missing, and what was deleted is not free yet: a view of it is open, or the \
                 file system takes its time; no other height goes before that"
            ));
        } else if !told && dry_run && !plan.spare.is_empty() {
            unmet.push(format!(
                "{limit}: {need} bytes are missing, and this backend cannot tell how many heights it takes to free \
                 them; they would go one by one until it is enough, height {} first",
                plan.spare[0]
            ));
        } else if !(if told { plan.free(need, why, freed)? } else { plan.give_up(why) }) {
            unmet.push(format!(
                "{limit}: all that may be pruned does not free the {need} bytes that are missing; the newest and held \
                 heights, what rollbacks left and the live files stay"
            ));
        }
        Ok(())
    };
    if let Some(most) = policy.max_history_bytes.filter(|_| !backend.tells_history()) {
        unmet_history = Some(format!(
            "max-history-bytes {most}: what history takes is not known to this backend; limit it by min-free, capacity \
             or rules"
        ));
    } else if let Some(most) = policy.max_history_bytes {
        let usage = backend.usage()?;
        let history = usage.history_bytes.saturating_sub(usage.reclaimable_bytes);
        meet(history.saturating_sub(most.0), Why::MaxHistoryBytes, format!("max-history-bytes {most}"))?;
    }
    if let Some(least) = policy.min_free {
        let (free, total) = space(backend)?;
        meet(least.of(total).saturating_sub(free), Why::MinFree, format!("min-free {least}"))?;
    }
    unmet.extend(unmet_history);
    Ok((plan, unmet))
}

/// Bytes that are free for everybody, and all there are.
pub fn space(backend: &dyn Backend) -> Result<(u64, u64)> {
    let below = backend.head().stat_fs()?;
    let size = u64::from(below.block_size);
    Ok((below.blocks_available * size, below.blocks * size))
}
