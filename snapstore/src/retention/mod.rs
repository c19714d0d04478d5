//! Retention: which heights stay, decided from the list of what there is and nothing else.
//!
//! A [`Policy`] is a union of rules that keep (`interval`, `keep-last`, `keep-daily`, `keep-within` and the like; without
//! any of them everything is kept), then limits (`capacity`, and the two of space, `max-history-bytes` and `min-free`)
//! that take from what is kept, in the order that the [`Algorithm`] gives. [`plan`](plan::plan) decides; whoever calls
//! it deletes.
//!
//! Laws, each with a test in `tests/retention.rs`:
//!
//! 1. The newest height, a held one and one that is not durable yet never go. So a prune that comes after the snapshot
//!    it makes room for cannot take it.
//! 2. Not more than `capacity` heights are left, those of law 1 counted, unless law 1 alone keeps more.
//! 3. No place is left empty: where a limit took something, `capacity` heights are left.
//! 4. What the union of rules keeps is the union of what each keeps.
//! 5. The decision depends on nothing but the list, and pruning what was just pruned takes nothing.
//! 6. A multiple of the interval that was passed is no loss: the first height after it is treated as the multiple itself.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

mod fade;
pub mod plan;
mod units;

pub use units::{Bytes, Free, Unit, Within};

/// What to keep. Keys are those of `[retention]` in the configuration and the options of `tmfs prune`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Policy {
    /// Keeps the first height at or after each multiple of it; also the grid of [`Algorithm::Fade`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<NonZeroU64>,
    /// At most so many heights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<NonZeroU64>,
    /// What goes first where a limit takes something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<Algorithm>,
    /// Keeps the newest so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_last: Option<u64>,
    /// Keeps the newest of each of the newest so many hours that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_hourly: Option<u64>,
    /// The same with days, in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_daily: Option<u64>,
    /// The same with weeks from Monday.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_weekly: Option<u64>,
    /// The same with months.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_monthly: Option<u64>,
    /// The same with years.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_yearly: Option<u64>,
    /// Keeps what is at most so much older than the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_within: Option<Within>,
    /// Content that only history sees takes at most so much.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_history_bytes: Option<Bytes>,
    /// So much of the file system below stays free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_free: Option<Free>,
}

/// The order in which heights are given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// The oldest first.
    #[default]
    Fair,
    /// So that the gaps grow by powers with age.
    Fade,
}

impl Policy {
    /// Whether it says nothing: then nothing may be pruned by it.
    pub fn is_empty(&self) -> bool {
        let limits = self.capacity.is_some() || self.limits_space();
        !limits && !self.has_rules()
    }

    /// Whether the space on the disk counts.
    pub fn limits_space(&self) -> bool {
        self.max_history_bytes.is_some() || self.min_free.is_some()
    }

    /// Whether there is a rule that keeps. Without one, everything is kept.
    pub fn has_rules(&self) -> bool {
        self.interval.is_some()
            || self.keep_last.is_some()
            || self.keep_within.is_some()
            || self.units().iter().any(|(_, count)| count.is_some())
    }

    /// What makes no sense, in words.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.algorithm.is_some() && self.capacity.is_none() && !self.limits_space() {
            return Err("algorithm needs a limit: capacity, max-history-bytes or min-free");
        }
        Ok(())
    }

    /// What `self` does not say is taken from `other`.
    pub fn or(self, other: Policy) -> Policy {
        Policy {
            interval: self.interval.or(other.interval),
            capacity: self.capacity.or(other.capacity),
            algorithm: self.algorithm.or(other.algorithm),
            keep_last: self.keep_last.or(other.keep_last),
            keep_hourly: self.keep_hourly.or(other.keep_hourly),
            keep_daily: self.keep_daily.or(other.keep_daily),
            keep_weekly: self.keep_weekly.or(other.keep_weekly),
            keep_monthly: self.keep_monthly.or(other.keep_monthly),
            keep_yearly: self.keep_yearly.or(other.keep_yearly),
            keep_within: self.keep_within.or(other.keep_within),
            max_history_bytes: self.max_history_bytes.or(other.max_history_bytes),
            min_free: self.min_free.or(other.min_free),
        }
    }

    pub(crate) fn units(&self) -> [(Unit, Option<u64>); 5] {
        [
            (Unit::Hour, self.keep_hourly),
            (Unit::Day, self.keep_daily),
            (Unit::Week, self.keep_weekly),
            (Unit::Month, self.keep_monthly),
            (Unit::Year, self.keep_yearly),
        ]
    }
}

/// The policy in words, as the status shows it.
impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut rules = Vec::new();
        if let Some(interval) = self.interval {
            rules.push(format!("multiples of {interval}"));
        }
        if let Some(last) = self.keep_last {
            rules.push(format!("the newest {last}"));
        }
        for (unit, count) in self.units() {
            if let Some(count) = count {
                rules.push(format!("one for each of {count} {}s", unit.name()));
            }
        }
        if let Some(within) = &self.keep_within {
            rules.push(format!("what is within {within} of the newest"));
        }
        let rules = if rules.is_empty() { "everything".to_owned() } else { rules.join(", ") };
        let mut words = vec![format!("keeps {rules}")];
        if let Some(capacity) = self.capacity {
            words.push(format!("at most {capacity}"));
        }
        if let Some(bytes) = self.max_history_bytes {
            words.push(format!("history at most {bytes}"));
        }
        if let Some(free) = self.min_free {
            words.push(format!("at least {free} free"));
        }
        if self.capacity.is_some() || self.limits_space() {
            words.push(match self.algorithm.unwrap_or_default() {
                Algorithm::Fair => "the oldest go first".to_owned(),
                Algorithm::Fade => "thinned out with age".to_owned(),
            });
        }
        f.write_str(&words.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_words() {
        let policy =
            Policy { interval: NonZeroU64::new(10), capacity: NonZeroU64::new(100), ..Policy::default() };
        assert_eq!(policy.to_string(), "keeps multiples of 10; at most 100; the oldest go first");
        let policy = Policy {
            algorithm: Some(Algorithm::Fade),
            keep_daily: Some(7),
            keep_within: Some("30d".parse().unwrap()),
            max_history_bytes: Some(Bytes(10 << 30)),
            min_free: Some(Free::Percent(5)),
            ..Policy::default()
        };
        assert_eq!(
            policy.to_string(),
            "keeps one for each of 7 days, what is within 30d of the newest; history at most 10G; at least 5% free; \
             thinned out with age"
        );
    }

    #[test]
    fn a_policy_survives_the_wire_and_typos_do_not() {
        let text = r#"{"capacity":5,"keep-within":"1mo","min-free":"10G","max-history-bytes":4096}"#;
        let policy: Policy = serde_json::from_str(text).unwrap();
        assert_eq!(policy.max_history_bytes, Some(Bytes(4096)));
        let again = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&again).unwrap(), policy, "{again}");
        for bad in
            [r#"{"capcity":5}"#, r#"{"capacity":0}"#, r#"{"min-free":"101%"}"#, r#"{"keep-within":"soon"}"#]
        {
            assert!(serde_json::from_str::<Policy>(bad).is_err(), "{bad}");
        }
        assert!(
            Policy { algorithm: Some(Algorithm::Fade), keep_last: Some(3), ..Policy::default() }
                .check()
                .is_err()
        );
    }

    #[test]
    fn what_is_said_first_wins() {
        let first = Policy { keep_last: Some(3), ..Policy::default() };
        let second = Policy { keep_last: Some(4), keep_daily: Some(5), ..Policy::default() };
        let both = first.or(second);
        assert_eq!((both.keep_last, both.keep_daily), (Some(3), Some(5)));
        assert!(Policy::default().is_empty() && !both.is_empty());
    }
}
