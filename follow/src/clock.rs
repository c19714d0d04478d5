//! Time, as whoever follows a height sees it: a test brings its own.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What time it is.
pub trait Clock: Send + Sync {
    /// Time that never goes back, since some moment.
    fn now(&self) -> Duration;
    /// Time since the beginning of 1970, as the system's clock has it.
    fn unix(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn unix(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

#[cfg(test)]
pub(crate) mod fake {
    use std::sync::Arc;

    use super::*;
    use parking_lot::Mutex;

    /// A clock that stands still until it is told otherwise.
    #[derive(Clone, Default)]
    pub(crate) struct FakeClock(Arc<Mutex<(Duration, Duration)>>);

    impl FakeClock {
        pub(crate) fn at(unix: u64) -> FakeClock {
            FakeClock(Arc::new(Mutex::new((Duration::ZERO, Duration::from_secs(unix)))))
        }

        pub(crate) fn pass(&self, time: Duration) {
            let mut clocks = self.0.lock();
            clocks.0 += time;
            clocks.1 += time;
        }

        pub(crate) fn set_unix(&self, unix: u64) {
            self.0.lock().1 = Duration::from_secs(unix);
        }
    }

    impl Clock for FakeClock {
        fn now(&self) -> Duration {
            self.0.lock().0
        }

        fn unix(&self) -> Duration {
            self.0.lock().1
        }
    }
}
