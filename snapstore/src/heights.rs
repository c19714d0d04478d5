//! What is the same for every backend about snapshots and their heights: what is kept of one, which one a query means,
//! and whether another may be taken.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::backend::{HeightQuery, SnapshotInfo, SnapshotOptions};
use crate::error::{Error, Result};
use crate::types::{EpochId, Height, Timestamp};

/// The snapshots that can be seen.
pub(crate) type Visible = BTreeMap<Height, EpochId>;

/// What is kept about a snapshot; the epoch it froze is its key.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotRow {
    pub height: Height,
    pub time: jiff::Timestamp,
    pub hash: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub held: bool,
    /// Its epoch is sealed: a power cut does not take it any more.
    pub durable: bool,
    /// The hash of its tree, once somebody has asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<crate::merkle::Hash>,
}

impl SnapshotRow {
    /// A snapshot that is being taken now.
    pub(crate) fn new(height: Height, options: &SnapshotOptions) -> SnapshotRow {
        SnapshotRow {
            height,
            time: now(),
            hash: options.hash.clone(),
            labels: options.labels.clone(),
            held: options.hold,
            durable: false,
            root: None,
        }
    }

    /// Adds what is asked for with a snapshot that exists already.
    pub(crate) fn add(&mut self, options: &SnapshotOptions) {
        self.held |= options.hold;
        self.hash = options.hash.clone().or(self.hash.take());
        self.labels.extend(options.labels.clone());
    }

    /// What `tmfs list` shows of it; what deleting it would free is left open.
    pub(crate) fn info(&self, epoch: EpochId, referenced_bytes: u64) -> SnapshotInfo {
        SnapshotInfo {
            height: self.height,
            time: self.time,
            durable: self.durable,
            held: self.held,
            hash: self.hash.clone(),
            labels: self.labels.clone(),
            referenced_bytes,
            exclusive_bytes: 0,
            epoch,
            root: None,
        }
    }
}

/// The epoch a query means.
pub(crate) fn find(visible: &Visible, query: HeightQuery) -> Result<EpochId> {
    let below = |h: Height| visible.range(..=h).next_back();
    match query {
        HeightQuery::Newest => visible.last_key_value().map(|(_, &e)| e).ok_or(Error::NoSnapshots),
        HeightQuery::Exact(height) => visible
            .get(&height)
            .copied()
            .ok_or_else(|| Error::NoSuchHeight { height, nearest: below(height).map(|(&h, _)| h) }),
        HeightQuery::AtOrBelow(height) => below(height).map(|(_, &e)| e).ok_or_else(|| {
            let oldest = visible.first_key_value().map(|(&h, _)| h);
            Error::NothingBelow { height, oldest }
        }),
    }
}

/// Whether a snapshot of this height may be taken: `Some` is one that is it already, since it is the newest and nothing
/// has changed since, which `unchanged` tells of the newest.
pub(crate) fn check_new(
    visible: &Visible,
    height: Height,
    unchanged: impl FnOnce(EpochId) -> Result<bool>,
) -> Result<Option<EpochId>> {
    let Some((&newest, &epoch)) = visible.last_key_value() else { return Ok(None) };
    if newest == height && unchanged(epoch)? {
        return Ok(Some(epoch));
    }
    if visible.contains_key(&height) {
        return Err(Error::HeightExists { height });
    }
    if height < newest {
        return Err(Error::HeightNotNewer { height, newest });
    }
    Ok(None)
}

/// The heights above one, which a rollback to it hides.
pub(crate) fn above(visible: &Visible, height: Height) -> Vec<Height> {
    use std::ops::Bound::{Excluded, Unbounded};
    visible.range((Excluded(height), Unbounded)).map(|(&h, _)| h).collect()
}

/// Of the switches that can be undone (by serial, with whether they were undos themselves), the one to be undone next.
/// Undoing goes back switch by switch; when none is left, it takes back the latest undo.
pub(crate) fn undoable(left: impl DoubleEndedIterator<Item = (u64, bool)> + Clone) -> Option<u64> {
    let newest = |undo| left.clone().rev().find(|(_, by_undo)| *by_undo == undo);
    newest(false).or_else(|| newest(true)).map(|(serial, _)| serial)
}

/// The time of the system's clock, in whole microseconds.
pub(crate) fn now() -> jiff::Timestamp {
    let t = Timestamp::from(std::time::SystemTime::now());
    jiff::Timestamp::new(t.secs, (t.nanos / 1000 * 1000) as i32).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

/// Refuses options that are not valid.
pub(crate) fn check_options(options: &SnapshotOptions) -> Result<()> {
    let bad = |field, expected| Err(Error::BadSnapshotOption { field, expected });
    if let Some(hash) = &options.hash {
        let hex = hash.bytes().all(|b| b.is_ascii_hexdigit());
        if hash.is_empty() || hash.len() > 128 || !hash.len().is_multiple_of(2) || !hex {
            return bad("hash", "an even number of hexadecimal digits, at most 128");
        }
    }
    if options.labels.len() > SnapshotOptions::MOST_LABELS {
        return bad("labels", "at most 64 of them");
    }
    for (key, value) in &options.labels {
        if key.is_empty() || key.len() > 64 || key.contains('=') {
            return bad("label", "a key of 1 to 64 bytes without `=`");
        }
        if value.len() > 4096 {
            return bad("label", "a value of at most 4096 bytes");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_beside_many_labels_fails_no_snapshot() {
        let label = |key: &str| BTreeMap::from([(key.to_owned(), "x".to_owned())]);
        let labels = (0..64).map(|key| (key.to_string(), String::new())).collect();
        let mut options = SnapshotOptions { labels, ..SnapshotOptions::default() };
        options.note(label("hook-failed"));
        options.note(label("7"));
        check_options(&options).unwrap();
        assert_eq!((options.labels.get("hook-failed"), options.labels["7"].as_str()), (None, "x"));
        options.labels.remove("0");
        options.note(label("hook-failed"));
        check_options(&options).unwrap();
        assert_eq!(options.labels["hook-failed"], "x");
    }
}
