//! What goes, and why.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Algorithm, Policy, fade};
use crate::backend::SnapshotInfo;
use crate::types::Height;

/// A snapshot, as far as retention looks at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Item {
    /// Its name.
    pub height: Height,
    /// When the cut was made.
    pub time: jiff::Timestamp,
    /// It may not go: it is held, or not durable yet.
    pub fixed: bool,
}

impl From<&SnapshotInfo> for Item {
    fn from(info: &SnapshotInfo) -> Item {
        Item { height: info.height, time: info.time, fixed: info.held || !info.durable }
    }
}

/// Why a height goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// No rule keeps it.
    NoRule,
    /// More than the capacity were left.
    Capacity,
    /// History took more than it may.
    MaxHistoryBytes,
    /// Too little of the disk was free.
    MinFree,
}

/// What a policy decides about a list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// What goes, ascending.
    pub gone: Vec<(Height, Why)>,
    /// Of the rest what may go, in the order of giving up: for the limits of space.
    pub spare: Vec<Height>,
}

impl Plan {
    /// Gives up the fewest of [`Plan::spare`] by which, with all that goes, at least `need` bytes are freed, as `freed`
    /// counts them for a set of heights. `false`: all of them are not enough; those that help go.
    pub fn free<E>(
        &mut self,
        need: u64,
        why: Why,
        mut freed: impl FnMut(&[Height]) -> Result<u64, E>,
    ) -> Result<bool, E> {
        let gone: Vec<Height> = self.gone.iter().map(|(height, _)| *height).collect();
        let mut with = |count: usize| freed(&[&gone, &self.spare[..count]].concat());
        let most = with(self.spare.len())?;
        // More heights never free less.
        let (mut few, mut enough) = (0, self.spare.len());
        while few < enough {
            let middle = few + (enough - few) / 2;
            match with(middle)? >= need.min(most) {
                true => enough = middle,
                false => few = middle + 1,
            }
        }
        self.gone.extend(self.spare.drain(..enough).map(|height| (height, why)));
        self.gone.sort_unstable();
        Ok(most >= need)
    }

    /// Gives up the first of [`Plan::spare`]. `false`: there is none.
    pub fn give_up(&mut self, why: Why) -> bool {
        if self.spare.is_empty() {
            return false;
        }
        self.gone.push((self.spare.remove(0), why));
        self.gone.sort_unstable();
        true
    }
}

/// Decides about a list, ascending by height. The limits of space need what only the disk knows: [`Plan::free`].
pub fn plan(items: &[Item], policy: &Policy) -> Plan {
    let Some((newest, _)) = items.split_last() else { return Plan::default() };
    let ruled = rules(items, policy);
    let may_go = |item: &Item| !item.fixed && item.height != newest.height;
    let mut plan = Plan::default();
    let mut left = Vec::with_capacity(items.len());
    for item in items {
        match may_go(item) && ruled.as_ref().is_some_and(|ruled| !ruled.contains(&item.height)) {
            true => plan.gone.push((item.height, Why::NoRule)),
            false => left.push(*item),
        }
    }
    let mut spare: Vec<Height> = order(&left, policy);
    spare.retain(|height| {
        left.binary_search_by_key(height, |item| item.height).is_ok_and(|at| may_go(&left[at]))
    });
    let capacity = policy.capacity.map_or(u64::MAX, std::num::NonZeroU64::get);
    let over = (left.len() as u64).saturating_sub(capacity).min(spare.len() as u64) as usize;
    plan.gone.extend(spare.drain(..over).map(|height| (height, Why::Capacity)));
    plan.gone.sort_unstable();
    plan.spare = spare;
    plan
}

/// The heights in the order of giving up.
fn order(items: &[Item], policy: &Policy) -> Vec<Height> {
    let mut heights: Vec<Height> = items.iter().map(|item| item.height).collect();
    if policy.algorithm == Some(Algorithm::Fade) {
        let mut ranked: Vec<_> = fade::ranks(&heights, policy.interval).into_iter().zip(heights).collect();
        ranked.sort_by(|(a, older), (b, newer)| b.cmp(a).then(older.cmp(newer)));
        heights = ranked.into_iter().map(|(_, height)| height).collect();
    }
    heights
}

/// What the rules keep; `None`: there are none.
fn rules(items: &[Item], policy: &Policy) -> Option<BTreeSet<Height>> {
    if !policy.has_rules() {
        return None;
    }
    let mut kept = BTreeSet::new();
    if let Some(interval) = policy.interval {
        // What was told of a height may have passed the multiple: then the next one stands for it.
        let mut multiple = None;
        for item in items {
            if multiple.replace(item.height.0 / interval) != Some(item.height.0 / interval) {
                kept.insert(item.height);
            }
        }
    }
    let last = policy.keep_last.unwrap_or(0).min(items.len() as u64) as usize;
    kept.extend(items[items.len() - last..].iter().map(|item| item.height));
    for (unit, count) in policy.units() {
        let mut seen = BTreeSet::new();
        for item in items.iter().rev() {
            if seen.len() as u64 >= count.unwrap_or(0) {
                break;
            }
            if seen.insert(unit.of(item.time)) {
                kept.insert(item.height);
            }
        }
    }
    if let (Some(within), Some(newest)) = (&policy.keep_within, items.last()) {
        let since = within.before(newest.time);
        kept.extend(items.iter().filter(|item| item.time >= since).map(|item| item.height));
    }
    Some(kept)
}
