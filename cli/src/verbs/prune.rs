//! `tmfs prune`: deletes what a retention policy does not keep.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use snapstore::Height;
use snapstore::control::prune::PruneReport;
use snapstore::control::{FailureKind, Reply, Request};
use snapstore::retention::{Algorithm, Bytes, Free, Policy, Within};

use crate::failure::{failure, usage};
use crate::session::{Session, unexpected};
use crate::{config, format, output};

/// Delete what a retention policy does not keep; without options the policy of the mount
///
/// What `--interval` and the `--keep` options keep is a union; without any of them, everything is kept. The limits
/// then take from it. The newest height and held ones never go.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Keep multiples of N
    #[arg(long, value_name = "N")]
    interval: Option<NonZeroU64>,
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
    /// Take `[retention]` from this file; the command line wins
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only say what it would delete, and what that would free
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object: `pruned`, `freed_bytes`, `kept`, `unmet`
    #[arg(long)]
    json: bool,
}

/// [`Algorithm`] on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Order {
    /// The oldest
    Fair,
    /// So that the gaps grow by powers with age
    Fade,
}

/// Prunes.
pub fn run(path: Option<&Path>, args: Args) -> anyhow::Result<()> {
    let (dry_run, json) = (args.dry_run, args.json);
    let request = Request::Prune { policy: policy(args)?, dry_run };
    let Reply::Pruned(report) = Session::open(path)?.ask(request)? else { return Err(unexpected()) };
    match json {
        true => output::json(&report)?,
        false => output::report(&describe(&report, dry_run), dry_run)?,
    }
    match report.unmet.is_empty() {
        true => Ok(()),
        false => Err(failure(FailureKind::Failed, report.unmet.join("; "))),
    }
}

/// What was asked for; `None`: the mount knows.
fn policy(args: Args) -> anyhow::Result<Option<Policy>> {
    let file = args.config.as_deref().map(config::read).transpose()?.unwrap_or_default().retention;
    let policy = Policy {
        interval: args.interval,
        capacity: args.capacity,
        algorithm: args.algorithm.map(|order| match order {
            Order::Fair => Algorithm::Fair,
            Order::Fade => Algorithm::Fade,
        }),
        keep_last: args.keep_last,
        keep_hourly: args.keep_hourly,
        keep_daily: args.keep_daily,
        keep_weekly: args.keep_weekly,
        keep_monthly: args.keep_monthly,
        keep_yearly: args.keep_yearly,
        keep_within: args.keep_within,
        max_history_bytes: args.max_history_bytes,
        min_free: args.min_free,
    };
    let policy = policy.or(file);
    policy.check().map_err(usage)?;
    match (policy.is_empty(), args.config) {
        (true, Some(config)) => Err(usage(format!("{}: has no [retention]", config.display()))),
        (true, None) => Ok(None),
        (false, _) => Ok(Some(policy)),
    }
}

/// What was done, or would be.
fn describe(report: &PruneReport, dry_run: bool) -> String {
    let pruned: Vec<Height> = report.pruned.iter().map(|pruned| pruned.height).collect();
    let count = format::count(pruned.len() as u64, "snapshot");
    let (size, kept) = (format::size(report.freed_bytes), report.kept);
    let heights = match pruned[..] {
        [] => String::new(),
        _ => format!(": {}", format::heights(&pruned)),
    };
    match dry_run {
        true => format!(
            "would delete {count}, free {size} ({} bytes) and keep {kept}{heights}",
            report.freed_bytes
        ),
        false => format!("deleted {count}, {size} are freed in the background, {kept} kept{heights}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use snapstore::control::prune::Pruned;
    use snapstore::retention::plan::Why;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(args: &[&str]) -> anyhow::Result<Option<Policy>> {
        policy(Line::try_parse_from([&["prune"], args].concat())?.args)
    }

    #[test]
    fn options() {
        assert_eq!(parse(&[]).unwrap(), None);
        assert_eq!(parse(&["--dry-run"]).unwrap(), None);
        let policy =
            parse(&["--interval", "10", "--capacity", "5", "--algorithm", "fade", "--min-free", "5%"]);
        let words = "keeps multiples of 10; at most 5; at least 5% free; thinned out with age";
        assert_eq!(policy.unwrap().unwrap().to_string(), words);
        for bad in
            [["--capacity", "0"], ["--keep-within", "soon"], ["--algorithm", "fade"], ["--min-free", "x"]]
        {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn words() {
        let pruned = [1, 2].map(|height| Pruned { height: Height(height), why: Why::Capacity }).into();
        let report = PruneReport { pruned, freed_bytes: 8192, kept: 3, unmet: vec![] };
        assert_eq!(
            describe(&report, true),
            "would delete 2 snapshots, free 8.00 KiB (8192 bytes) and keep 3: 1, 2"
        );
        assert_eq!(
            describe(&report, false),
            "deleted 2 snapshots, 8.00 KiB are freed in the background, 3 kept: 1, 2"
        );
    }
}
