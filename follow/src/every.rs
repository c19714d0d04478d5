//! Snapshots by the clock, for programs that have no height: when they are due, and what they are called.
//!
//! They are due at multiples of the period since 1970, so that a restart shifts nothing. A period that was slept
//! through gives one snapshot, not many.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a snapshot is called that is taken by the clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Naming {
    /// The time in seconds since 1970.
    #[default]
    Time,
    /// One more than the newest; 1 for the first.
    Counter,
}

/// Decides when the next snapshot is due.
#[derive(Clone, Debug)]
pub struct Every {
    period: Duration,
    /// Since 1970.
    due: Duration,
}

/// For as long as this at most it is not looked at the clock, since somebody may set it.
const LOOK: Duration = Duration::from_secs(30);

impl Every {
    /// The first is due at the next multiple.
    pub fn new(period: Duration, now: Duration) -> Every {
        Every { period, due: after(period, now) }
    }

    /// Whether one is due now; then the next is due a period later.
    pub fn is_due(&mut self, now: Duration) -> bool {
        let due = now >= self.due;
        // A clock that was set back must not stop everything until it is where it was.
        if due || self.due - now > self.period {
            self.due = after(self.period, now);
        }
        due
    }

    /// How long to wait.
    pub fn wait(&self, now: Duration) -> Duration {
        self.due.saturating_sub(now).min(LOOK)
    }
}

fn after(period: Duration, now: Duration) -> Duration {
    let period = period.as_millis().max(1);
    let next = (now.as_millis() / period + 1) * period;
    Duration::from_millis(u64::try_from(next).unwrap_or(u64::MAX))
}

/// The height that is next. An error: why there is none.
pub fn name(naming: Naming, now: Duration, newest: Option<u64>) -> Result<u64, String> {
    match (naming, newest) {
        (Naming::Counter, None) => Ok(1),
        (Naming::Counter, Some(newest)) => {
            newest.checked_add(1).ok_or("there is no height above the newest".into())
        }
        (Naming::Time, newest) => match newest.filter(|newest| *newest >= now.as_secs()) {
            None => Ok(now.as_secs()),
            Some(newest) => Err(format!(
                "the time is {}, and the newest snapshot has height {newest}: was the clock set back, or is it no time?",
                now.as_secs()
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn each_multiple_once() {
        let mut every = Every::new(secs(300), secs(1000));
        let due: Vec<u64> = (1000..2200).filter(|now| every.is_due(secs(*now))).collect();
        assert_eq!(due, [1200, 1500, 1800, 2100]);
        assert_eq!(every.wait(secs(2399)), secs(1));
        assert_eq!(every.wait(secs(2200)), LOOK);
        // Slept through.
        assert!(every.is_due(secs(10_000)));
        assert!(!every.is_due(secs(10_001)));
        // Set back.
        assert!(!every.is_due(secs(500)));
        assert!(every.is_due(secs(600)));
    }

    #[test]
    fn names() {
        assert_eq!(name(Naming::Time, secs(1000), None), Ok(1000));
        assert_eq!(name(Naming::Time, secs(1000), Some(999)), Ok(1000));
        assert!(name(Naming::Time, secs(1000), Some(1000)).unwrap_err().contains("set back"));
        assert_eq!(name(Naming::Counter, secs(1000), None), Ok(1));
        assert_eq!(name(Naming::Counter, secs(1000), Some(7)), Ok(8));
        assert!(name(Naming::Counter, secs(1000), Some(u64::MAX)).is_err());
    }
}
