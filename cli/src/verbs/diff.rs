//! `tmfs diff`: what changed between two heights, or since one.

use std::path::{Path, PathBuf};

use snapstore::control::{Reply, Request, Side};
use snapstore::diff::{Change, ChangeKind};

use crate::session::{Session, unexpected};
use crate::{format, output, target};

/// List what changed from A to B: + added, - removed, M modified, A attributes only, R replaced by another kind
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A height, or `live`
    #[arg(value_name = "A", value_parser = side)]
    a: Side,
    /// A height, or `live`
    #[arg(value_name = "B", value_parser = side)]
    b: Side,
    /// Only this path in the data dir, and what is below it
    #[arg(value_name = "PATH")]
    below: Option<PathBuf>,
    /// Print a JSON array of objects with `path` and `kind`
    #[arg(long)]
    json: bool,
}

/// Lists it.
pub fn run(path: Option<&Path>, args: Args) -> anyhow::Result<()> {
    let session = Session::open(path)?;
    let below = args.below.as_deref().map(|path| target::within(&session.data_dir, path)).transpose();
    let below = match below {
        Ok(below) => below.filter(|below| !below.as_os_str().is_empty()),
        Err(error) => {
            session.close()?;
            return Err(error);
        }
    };
    let Reply::Diff(changes) = session.ask(Request::Diff { a: args.a, b: args.b, path: below })? else {
        return Err(unexpected());
    };
    match args.json {
        true => output::json(&changes),
        false => output::data(|out| changes.iter().try_for_each(|change| writeln!(out, "{}", line(change)))),
    }
}

fn side(text: &str) -> Result<Side, String> {
    match text {
        "live" => Ok(Side::Live),
        _ => super::height(text).map(Side::Height).map_err(|error| format!("{error}, or `live`")),
    }
}

fn line(change: &Change) -> String {
    let sign = match change.kind {
        ChangeKind::Added => '+',
        ChangeKind::Removed => '-',
        ChangeKind::Modified => 'M',
        ChangeKind::Attributes => 'A',
        ChangeKind::Replaced => 'R',
    };
    format!("{sign} {}", format::path(&change.path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use snapstore::Height;

    #[test]
    fn sides_and_lines() {
        assert_eq!(side("live"), Ok(Side::Live));
        assert_eq!(side("7"), Ok(Side::Height(Height(7))));
        assert_eq!(side("l").unwrap_err(), "a height is a number from 0 to 18446744073709551615, or `live`");
        let change = |path: &str, kind| line(&Change { path: path.into(), kind });
        assert_eq!(change("a/b", ChangeKind::Added), "+ a/b");
        assert_eq!(change("a b", ChangeKind::Modified), "M \"a b\"");
        assert_eq!(change("", ChangeKind::Attributes), "A .");
    }

    #[test]
    fn json_is_stable() {
        let change = Change { path: "a b".into(), kind: ChangeKind::Replaced };
        assert_eq!(serde_json::to_string(&change).unwrap(), r#"{"path":"a b","kind":"replaced"}"#);
    }
}
