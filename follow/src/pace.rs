//! When to ask next: seldom while nothing is due, often when something is about to be.
//!
//! How long a block takes is estimated from the heights that were told. From the time at which the next multiple is
//! expected half of what is left is waited for, again and again, but never less than a tenth of a block: so a multiple
//! is seen long before the block after it, with a few questions for each.

use std::time::Duration;

/// Without an estimate.
const UNKNOWN: Duration = Duration::from_secs(1);
/// After a first answer that failed; twice as long after each further one.
const BACKOFF: Duration = Duration::from_millis(500);

/// Decides when to ask next.
#[derive(Clone, Debug)]
pub struct Pace {
    least: Duration,
    most: Duration,
    /// The last height, and when it was first told.
    last: Option<(u64, Duration)>,
    block: Option<Duration>,
    failures: u32,
}

impl Pace {
    /// Never asks more often than `least` nor more seldom than `most`.
    pub fn new(least: Duration, most: Duration) -> Pace {
        Pace { least: least.min(most), most, last: None, block: None, failures: 0 }
    }

    /// A height was told, and believed.
    pub fn told(&mut self, height: u64, now: Duration) {
        self.failures = 0;
        match self.last {
            Some((last, _)) if height == last => return,
            Some((last, since)) if height > last => {
                let took = now.saturating_sub(since).div_f64((height - last) as f64);
                // The latest counts for a third.
                self.block = Some(self.block.map_or(took, |block| block.mul_f64(0.67) + took.mul_f64(0.33)));
            }
            _ => self.block = None,
        }
        self.last = Some((height, now));
    }

    /// There was no answer, or a snapshot failed: how long to wait.
    pub fn failed(&mut self) -> Duration {
        let wait = BACKOFF * (1 << self.failures.min(10));
        self.failures += 1;
        wait.clamp(self.least, self.most.max(self.least))
    }

    /// The next answer decides: as soon as may be.
    pub fn soon(&self) -> Duration {
        self.least
    }

    /// How long to wait until the next question, when this is the next height to take.
    pub fn wait(&self, next: Option<u64>, now: Duration) -> Duration {
        let (Some((last, since)), Some(block), Some(next)) = (self.last, self.block, next) else {
            return UNKNOWN.clamp(self.least, self.most);
        };
        let blocks = next.saturating_sub(last).min(1 << 32) as f64;
        // Nothing is planned for longer than this.
        let ahead = Duration::try_from_secs_f64(block.as_secs_f64() * blocks).unwrap_or(self.most * 4);
        let left = (since + ahead.min(self.most * 1000)).saturating_sub(now);
        (left / 2).max(block / 10).clamp(self.least, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_millis(200);
    const MOST: Duration = Duration::from_secs(10);

    fn secs(secs: f64) -> Duration {
        Duration::from_secs_f64(secs)
    }

    /// Asks as told of a chain with a block each `block` seconds; gives the heights that were told.
    fn heights(block: f64, interval: u64, time: f64) -> (Vec<u64>, usize) {
        let mut pace = Pace::new(LEAST, MOST);
        let (mut now, mut told, mut questions) = (0.0, Vec::new(), 0);
        while now < time {
            let height = (now / block) as u64;
            pace.told(height, secs(now));
            questions += 1;
            if told.last() != Some(&height) {
                told.push(height);
            }
            now += pace.wait(Some((height / interval + 1) * interval), secs(now)).as_secs_f64();
        }
        (told, questions)
    }

    #[test]
    fn multiples_are_seen_with_few_questions() {
        for (block, interval) in [(12.0, 10), (6.0, 1), (2.0, 100), (0.9, 5), (120.0, 1)] {
            let time = block * (interval * 30) as f64;
            let (told, questions) = heights(block, interval, time);
            // The first ones teach how long a block takes.
            let missed: Vec<u64> =
                (5..30).map(|at| at * interval).filter(|multiple| !told.contains(multiple)).collect();
            assert_eq!(missed, [] as [u64; 0], "block {block}, interval {interval}");
            let most = (time / MOST.as_secs_f64()) as usize + 30 * 30;
            assert!(questions <= most, "block {block}, interval {interval}: {questions} questions");
        }
    }

    #[test]
    fn limits_hold_whatever_is_told() {
        let mut pace = Pace::new(LEAST, MOST);
        let mut now = Duration::ZERO;
        for height in [0, u64::MAX, 3, 3, 4, u64::MAX, u64::MAX - 1] {
            pace.told(height, now);
            for next in [None, Some(0), Some(height), Some(u64::MAX)] {
                let wait = pace.wait(next, now);
                assert!((LEAST..=MOST).contains(&wait), "{wait:?}");
            }
            now += secs(1e6);
        }
        let waits: Vec<u64> = (0..40).map(|_| pace.failed().as_millis() as u64).collect();
        assert_eq!(waits[..7], [500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        assert_eq!(waits[39], 10_000);
        pace.told(7, now);
        assert_eq!(pace.failed(), BACKOFF);
    }
}
