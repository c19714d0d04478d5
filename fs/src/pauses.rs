//! How long cuts kept programs waiting.
//!
//! A cut needs a moment in which no name and no size changes and no write begins: the gate. That is all that a program
//! can feel of a snapshot, so it is measured at each and shown by `tmfs status`.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use snapstore::backend::Gate;
use snapstore::control::Pauses;

/// The pauses of a mount's cuts.
#[derive(Default)]
pub(crate) struct Measured(Mutex<Option<Pauses>>);

impl Measured {
    /// What was measured since the mount; `None` before the first cut.
    pub(crate) fn now(&self) -> Option<Pauses> {
        *self.0.lock()
    }

    fn add(&self, pause: Duration) {
        let newest_us = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        let mut pauses = self.0.lock();
        let longest_us = pauses.map_or(0, |before| before.longest_us).max(newest_us);
        *pauses = Some(Pauses { newest_us, longest_us });
    }
}

/// A gate that measures how long it was closed.
pub(crate) struct Timed<'g> {
    /// The gate itself.
    pub gate: &'g dyn Gate,
    /// Since when changes were held back before, if they were.
    pub held: Option<Instant>,
    /// Where it is noted.
    pub measured: &'g Measured,
}

impl Gate for Timed<'_> {
    fn pass(&self, cut: &mut dyn FnMut()) -> bool {
        let since = self.held.unwrap_or_else(Instant::now);
        let passed = self.gate.pass(cut);
        if passed {
            self.measured.add(since.elapsed());
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use snapstore::backend::Open;

    use super::*;

    struct Closed;

    impl Gate for Closed {
        fn pass(&self, _cut: &mut dyn FnMut()) -> bool {
            false
        }
    }

    #[test]
    fn the_newest_and_the_longest_of_those_that_passed() {
        let measured = Measured::default();
        let pass = |gate: &dyn Gate, held, rest| {
            Timed { gate, held, measured: &measured }.pass(&mut || std::thread::sleep(rest))
        };
        assert!(!pass(&Closed, None, Duration::ZERO));
        assert_eq!(measured.now(), None);
        assert!(pass(&Open, None, Duration::from_millis(5)));
        let first = measured.now().unwrap();
        assert!(first.newest_us >= 5000 && first.longest_us == first.newest_us, "{first:?}");
        let an_hour_ago = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap();
        assert!(pass(&Open, Some(an_hour_ago), Duration::ZERO));
        let held = measured.now().unwrap();
        assert!(held.newest_us >= 3_600_000_000, "{held:?}");
        assert!(pass(&Open, None, Duration::ZERO));
        let last = measured.now().unwrap();
        assert!(last.newest_us < 3_600_000_000 && last.longest_us == held.newest_us, "{last:?}");
    }
}
