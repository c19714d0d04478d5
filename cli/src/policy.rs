//! A retention policy on the command line: the options that `tmfs mount` and `tmfs prune` share.

use std::num::NonZeroU64;

use clap::ValueEnum;
use snapstore::retention::{Algorithm, Bytes, Free, Policy, Within};

/// All of a policy but its interval, which each verb calls by its own name.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct PolicyArgs {
    /// Keep at most N heights, held ones counted
    #[arg(long, value_name = "N")]
    capacity: Option<NonZeroU64>,
    /// What goes first where a limit takes something (default: fair)
    #[arg(long, value_enum)]
    algorithm: Option<Order>,
    /// Keep the newest N
    #[arg(long, value_name = "N")]
    keep_last: Option<u64>,
    /// Keep the newest of each of N hours that have one
    #[arg(long, value_name = "N")]
    keep_hourly: Option<u64>,
    /// Keep the newest of each of N days (UTC)
    #[arg(long, value_name = "N")]
    keep_daily: Option<u64>,
    /// Keep the newest of each of N weeks
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u64>,
    /// Keep the newest of each of N months
    #[arg(long, value_name = "N")]
    keep_monthly: Option<u64>,
    /// Keep the newest of each of N years
    #[arg(long, value_name = "N")]
    keep_yearly: Option<u64>,
    /// Keep what is at most this much older than the newest: 36h, 30d, 2w, 6mo, 1y
    #[arg(long, value_name = "DURATION")]
    keep_within: Option<Within>,
    /// Prune until history takes at most so much (K, M, G, T: powers of 1024)
    #[arg(long, value_name = "SIZE")]
    max_history_bytes: Option<Bytes>,
    /// Prune until so much of the disk is free: a size, or a share as 5%
    #[arg(long, value_name = "SIZE")]
    min_free: Option<Free>,
}

/// [`Algorithm`] on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Order {
    /// The oldest
    Fair,
    /// So that the gaps grow by powers with age
    Fade,
}

impl PolicyArgs {
    /// The policy that they are, with this interval.
    pub fn policy(self, interval: Option<NonZeroU64>) -> Policy {
        Policy {
            interval,
            capacity: self.capacity,
            algorithm: self.algorithm.map(|order| match order {
                Order::Fair => Algorithm::Fair,
                Order::Fade => Algorithm::Fade,
            }),
            keep_last: self.keep_last,
            keep_hourly: self.keep_hourly,
            keep_daily: self.keep_daily,
            keep_weekly: self.keep_weekly,
            keep_monthly: self.keep_monthly,
            keep_yearly: self.keep_yearly,
            keep_within: self.keep_within,
            max_history_bytes: self.max_history_bytes,
            min_free: self.min_free,
        }
    }
}
