//! One row: the same work for every target.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::report::{Goals, Unit};

/// How large the rows are.
#[derive(clap::Args, Clone, Debug)]
pub struct Sizes {
    /// How long a row runs that runs for a time, in seconds
    #[arg(long, default_value_t = 4.0)]
    pub seconds: f64,
    /// Size of the file that rows read and overwrite
    #[arg(long, default_value = "256M", value_parser = crate::options::size)]
    pub size: u64,
    /// How many files the rows about names make
    #[arg(long, default_value_t = 100_000)]
    pub files: u64,
    /// How many keys the databases get; synced ones a fiftieth of that
    #[arg(long, default_value_t = 500_000)]
    pub keys: u64,
}

/// In what state the kernel's caches are when the clock starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caches {
    /// As the preparation left them.
    Warm,
    /// Dropped, the disk's as well as FUSE's.
    Cold,
}

/// A piece of work in an empty directory.
pub trait Row {
    /// Short, and unique.
    fn name(&self) -> String;
    /// What is measured, in a sentence.
    fn what(&self) -> String;
    /// What [`Row::run`] gives back.
    fn unit(&self) -> Unit {
        Unit::Rate
    }
    /// What it should reach.
    fn goals(&self) -> Goals;
    /// The caches it starts with.
    fn caches(&self) -> Caches {
        Caches::Warm
    }
    /// A program that it needs.
    fn program(&self) -> Option<&str> {
        None
    }
    /// What must be there before the clock starts. Everything is on the disk and the background at rest when it does.
    fn prepare(&self, _dir: &Path) -> anyhow::Result<()> {
        Ok(())
    }
    /// Does the work. Gives back how fast it was.
    fn run(&self, dir: &Path) -> anyhow::Result<f64>;
}

/// Calls `once` over and over for about so many seconds. Gives back the calls in a second.
pub fn for_seconds(seconds: f64, mut once: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    // The clock is looked at only now and then: it costs as much as a short call.
    const BETWEEN: u64 = 16;
    let (started, limit) = (Instant::now(), Duration::from_secs_f64(seconds));
    let mut calls = 0;
    while started.elapsed() < limit {
        for _ in 0..BETWEEN {
            once()?;
        }
        calls += BETWEEN;
    }
    Ok(calls as f64 / started.elapsed().as_secs_f64())
}

/// How often in a second something is done that was done `count` times since `started`.
pub fn rate(count: u64, started: Instant) -> f64 {
    count as f64 / started.elapsed().as_secs_f64()
}
