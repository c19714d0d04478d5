//! `tmfs prune`: deletes what a retention policy does not keep.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use snapstore::Height;
use snapstore::control::prune::PruneReport;
use snapstore::control::{FailureKind, Reply, Request};
use snapstore::retention::Policy;

use crate::failure::{failure, usage};
use crate::policy::PolicyArgs;
use crate::session::{Session, unexpected};
use crate::{config, format, output};

/// Delete what a retention policy does not keep; without options the policy of the mount
///
/// What `--interval` and the `--keep` options keep is a union; without any of them, everything is kept. The limits
/// then take from it. The newest height and held ones never go.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Keep multiples of N; where one was passed, the first height after it
    #[arg(long, value_name = "N")]
    interval: Option<NonZeroU64>,
    #[command(flatten)]
    policy: PolicyArgs,
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
    let policy = args.policy.policy(args.interval).or(file);
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
