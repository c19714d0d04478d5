//! Runs a test under many interleavings of its threads.
//!
//! `TMFS_ITERATIONS=n` says how many, `TMFS_SEED=n` repeats a series, `TMFS_SCHEDULE=text` replays the one interleaving
//! that a failure has printed.

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, MaxSteps, Runner};

/// Few enough for every change of the code.
const ITERATIONS: u64 = 200;
/// Bugs that need up to so many switches at just the right places are looked for on purpose.
const DEPTH: usize = 3;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(scheduler: impl Scheduler + 'static, test: Arc<impl Fn() + Send + Sync + 'static>) {
    let mut config = Config::new();
    // The database needs more than the default.
    config.stack_size = 1 << 20;
    config.max_steps = MaxSteps::FailAfter(1_000_000);
    // That it takes every order of memory for the strictest is said in the head of `sync`.
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(move || test());
}

/// Runs `test` under many interleavings: half of them at random, half with few switches at places drawn at random.
pub fn explore(test: impl Fn() + Send + Sync + 'static) {
    let test = Arc::new(test);
    if let Ok(schedule) = std::env::var("TMFS_SCHEDULE") {
        return run(ReplayScheduler::new_from_encoded(schedule.trim()), test);
    }
    let iterations = number("TMFS_ITERATIONS").unwrap_or(ITERATIONS).max(2) as usize;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
    let seed = number("TMFS_SEED").unwrap_or(u64::from(now));
    eprintln!("TMFS_SEED={seed} TMFS_ITERATIONS={iterations}");
    run(RandomScheduler::new_from_seed(seed, iterations / 2), Arc::clone(&test));
    run(PctScheduler::new_from_seed(seed, DEPTH, iterations - iterations / 2), test);
}

/// What `make` makes, which needs locks and threads: in one interleaving, to begin others from.
pub fn prepare<T: Send + 'static>(make: impl Fn() -> T + Send + Sync + 'static) -> T {
    let made = Arc::new(Mutex::new(None));
    let place = Arc::clone(&made);
    let make = move || *place.lock().expect("one thread") = Some(make());
    run(RandomScheduler::new_from_seed(0, 1), Arc::new(make));
    made.lock().expect("one thread").take().expect("it was run")
}
