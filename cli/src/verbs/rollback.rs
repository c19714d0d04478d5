//! `tmfs rollback`: the live head becomes a snapshot's state, or what it was before.

use std::path::{Path, PathBuf};

use snapstore::Height;
use snapstore::backend::{HeightQuery, SwitchReport};
use snapstore::control::{Reply, Request};

use crate::session::{Session, unexpected};
use crate::{format, output, target};

/// Make the data what it was at a height; or undo that
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The height, or the nearest below it that there is; without it the newest
    #[arg(value_name = "HEIGHT", value_parser = super::height)]
    height: Option<Height>,
    /// Fail unless exactly HEIGHT is there
    #[arg(long, requires = "height")]
    exact: bool,
    /// Carry this path over from the data as it is now (in the data dir; may be given again)
    #[arg(long, value_name = "PATH")]
    preserve: Vec<PathBuf>,
    /// Do not carry over what the mount is configured to preserve
    #[arg(long)]
    no_preserve: bool,
    /// Also while files are open for writing: what is written to them then fails
    #[arg(long)]
    force: bool,
    /// Only say what it would do
    #[arg(long)]
    dry_run: bool,
    /// Bring back what the latest rollback left
    #[arg(long, conflicts_with_all = ["height", "exact", "preserve"])]
    undo: bool,
    /// Print one JSON object: `height`, `hidden_heights`, `preserved`
    #[arg(long)]
    json: bool,
}

/// Rolls back.
pub fn run(path: Option<&Path>, args: Args) -> anyhow::Result<()> {
    let session = Session::open(path)?;
    let data_dir = session.data_dir.clone();
    let (force, dry_run, only) = (args.force, args.dry_run, args.no_preserve);
    let request = if args.undo {
        Request::UndoRollback { only, force, dry_run }
    } else {
        let preserve = args.preserve.iter().map(|path| preserved(&data_dir, path));
        let preserve = match preserve.collect::<anyhow::Result<_>>() {
            Ok(preserve) => preserve,
            Err(error) => {
                session.close()?;
                return Err(error);
            }
        };
        let to = match args.height {
            None => HeightQuery::Newest,
            Some(height) if args.exact => HeightQuery::Exact(height),
            Some(height) => HeightQuery::AtOrBelow(height),
        };
        Request::Rollback { to, preserve, only, force, dry_run }
    };
    let Reply::Switched(report) = session.ask(request)? else { return Err(unexpected()) };
    match args.json {
        true => output::json(&report),
        false => output::report(&describe(&data_dir, &args, &report), dry_run),
    }
}

/// A path to carry over, relative to the data dir.
fn preserved(data_dir: &Path, path: &Path) -> anyhow::Result<PathBuf> {
    let relative = target::within(data_dir, path)?;
    if relative.as_os_str().is_empty() {
        return Err(crate::failure::usage("the data dir itself cannot be preserved; name what is in it"));
    }
    Ok(relative)
}

/// What was done, or would be.
fn describe(data_dir: &Path, args: &Args, report: &SwitchReport) -> String {
    let dir = format::path(data_dir);
    let done = |did: &str, would: &str| if args.dry_run { format!("would {would}") } else { did.to_owned() };
    let mut lines = Vec::new();
    if args.undo {
        let now = match report.height {
            Some(height) => format!(", which is at height {height}"),
            None => String::new(),
        };
        lines.push(format!(
            "{}: {} the data that the latest rollback left{now}",
            dir,
            done("brought back", "bring back")
        ));
    } else if let Some(height) = report.height {
        lines.push(format!("{dir}: {} to height {height}", done("rolled back", "roll back")));
        if let Some(asked) = args.height.filter(|asked| *asked != height) {
            lines.push(format!("{height} is the nearest height at or below {asked}"));
        }
    } else {
        lines.push(format!("{dir}: {}", done("rolled back", "roll back")));
    }
    if !report.preserved.is_empty() {
        let paths: Vec<String> = report.preserved.iter().map(|path| format::path(path)).collect();
        lines.push(format!("{}: {}", done("carried over", "carry over"), paths.join(" ")));
    }
    if !report.hidden_heights.is_empty() {
        let heights = format::heights(&report.hidden_heights);
        lines.push(format!(
            "{}: {heights}",
            if args.dry_run { "out of sight then" } else { "out of sight now" }
        ));
    }
    if !args.dry_run && !args.undo {
        lines.push(format!("undo it with `tmfs rollback --undo --path {dir}`"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> Args {
        Args {
            height: Some(Height(1195)),
            exact: false,
            preserve: vec![],
            no_preserve: false,
            force: false,
            dry_run: false,
            undo: false,
            json: false,
        }
    }

    #[test]
    fn words() {
        let report = SwitchReport {
            height: Some(Height(1190)),
            hidden_heights: vec![Height(1200), Height(1210)],
            preserved: vec!["a b".into()],
            changed: vec![],
        };
        let words = |args: Args, report: &SwitchReport| describe(Path::new("/d"), &args, report);
        assert_eq!(
            words(args(), &report),
            "/d: rolled back to height 1190\n\
             1190 is the nearest height at or below 1195\n\
             carried over: \"a b\"\n\
             out of sight now: 1200, 1210\n\
             undo it with `tmfs rollback --undo --path /d`"
        );
        assert_eq!(
            words(Args { height: None, dry_run: true, ..args() }, &report),
            "/d: would roll back to height 1190\n\
             would carry over: \"a b\"\n\
             out of sight then: 1200, 1210"
        );
        let undone =
            SwitchReport { height: None, hidden_heights: vec![], preserved: vec![], changed: vec![] };
        assert_eq!(
            words(Args { undo: true, ..args() }, &undone),
            "/d: brought back the data that the latest rollback left"
        );
    }
}
