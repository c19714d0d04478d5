//! `tmfs delete`: snapshots by name, by range, or all that are not held.

use std::path::Path;

use snapstore::Height;
use snapstore::backend::DeleteReport;
use snapstore::control::{Reply, Request, Selection};

use crate::failure::usage;
use crate::session::{Session, unexpected};
use crate::{format, output};

/// Delete snapshots
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["heights", "all", "abandoned"])))]
pub struct Args {
    /// Heights; or one range A..B, both included
    #[arg(value_name = "HEIGHT|A..B", value_parser = which)]
    heights: Vec<Which>,
    /// All that are not held
    #[arg(long)]
    all: bool,
    /// What rollbacks left, with its snapshots: they can then not be undone any more
    #[arg(long)]
    abandoned: bool,
    /// Only say what it would delete, and what that would free
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object: `heights` and `freed_bytes`
    #[arg(long)]
    json: bool,
}

/// One argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Which {
    One(Height),
    Range(Height, Height),
}

/// Deletes.
pub fn run(path: Option<&Path>, args: Args) -> anyhow::Result<()> {
    let dry_run = args.dry_run;
    let selection = selection(&args)?;
    let request = Request::Delete { selection, dry_run };
    let Reply::Deleted(report) = Session::open(path)?.ask(request)? else { return Err(unexpected()) };
    match args.json {
        true => output::json(&report),
        false => output::report(&describe(&report, &args), dry_run),
    }
}

fn which(text: &str) -> Result<Which, String> {
    let Some((first, last)) = text.split_once("..") else { return super::height(text).map(Which::One) };
    let (first, last) = (super::height(first)?, super::height(last)?);
    match first <= last {
        true => Ok(Which::Range(first, last)),
        false => Err("the first height of a range is not above the second".into()),
    }
}

fn selection(args: &Args) -> anyhow::Result<Selection> {
    if args.all {
        return Ok(Selection::All);
    }
    if args.abandoned {
        return Ok(Selection::Abandoned);
    }
    if let [Which::Range(first, last)] = args.heights[..] {
        return Ok(Selection::Range(first, last));
    }
    let heights = args.heights.iter().map(|which| match which {
        Which::One(height) => Ok(*height),
        Which::Range(..) => Err(usage("give heights, or one range alone")),
    });
    Ok(Selection::Heights(heights.collect::<anyhow::Result<_>>()?))
}

/// What was done, or would be.
fn describe(report: &DeleteReport, args: &Args) -> String {
    let count = format::count(report.heights.len() as u64, "snapshot");
    let count = if args.abandoned { format!("what rollbacks left ({count})") } else { count };
    let size = format::size(report.freed_bytes);
    let heights = match report.heights[..] {
        [] => String::new(),
        _ => format!(": {}", format::heights(&report.heights)),
    };
    match args.dry_run {
        true => format!("would delete {count} and free {size} ({} bytes){heights}", report.freed_bytes),
        false => format!("deleted {count}, {size} are freed in the background{heights}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(heights: &[&str]) -> Args {
        let heights = heights.iter().map(|text| which(text).unwrap()).collect();
        Args { heights, all: false, abandoned: false, dry_run: false, json: false }
    }

    #[test]
    fn what_is_meant() {
        let height = Height;
        assert_eq!(selection(&args(&["1", "3"])).unwrap(), Selection::Heights(vec![height(1), height(3)]));
        assert_eq!(selection(&args(&["1..3"])).unwrap(), Selection::Range(height(1), height(3)));
        assert_eq!(selection(&args(&["3..3"])).unwrap(), Selection::Range(height(3), height(3)));
        assert_eq!(selection(&Args { all: true, ..args(&[]) }).unwrap(), Selection::All);
        let mixed = selection(&args(&["1..3", "7"])).unwrap_err();
        assert_eq!(mixed.to_string(), "give heights, or one range alone");
        assert_eq!(which("3..1").unwrap_err(), "the first height of a range is not above the second");
        for text in ["..", "1..", "..1", "1...3", "1..=3", "a"] {
            assert_eq!(
                which(text).unwrap_err(),
                "a height is a number from 0 to 18446744073709551615",
                "{text}"
            );
        }
    }

    #[test]
    fn words() {
        let report = DeleteReport { heights: vec![Height(1), Height(2)], freed_bytes: 8192 };
        assert_eq!(
            describe(&report, &args(&["1", "2"])),
            "deleted 2 snapshots, 8.00 KiB are freed in the background: 1, 2"
        );
        let dry = Args { dry_run: true, ..args(&["1..2"]) };
        assert_eq!(describe(&report, &dry), "would delete 2 snapshots and free 8.00 KiB (8192 bytes): 1, 2");
        let none = Args { abandoned: true, dry_run: true, ..args(&[]) };
        assert_eq!(
            describe(&DeleteReport::default(), &none),
            "would delete what rollbacks left (0 snapshots) and free 0 B (0 bytes)"
        );
    }
}
