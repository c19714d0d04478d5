//! `tmfs show`: all that is known of one snapshot.

use std::io::{self, Write};
use std::path::Path;

use jiff::Timestamp;
use snapstore::Height;
use snapstore::backend::SnapshotInfo;
use snapstore::control::{Reply, Request};

use super::list::Entry;
use crate::session::{Session, unexpected};
use crate::{format, output};

/// Show one snapshot
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The snapshot
    #[arg(value_name = "HEIGHT", value_parser = super::height)]
    height: Height,
    /// Print one JSON object, as `tmfs list --json` has it
    #[arg(long)]
    json: bool,
}

/// Shows it.
pub fn run(path: Option<&Path>, args: Args) -> anyhow::Result<()> {
    let Reply::Snapshot(info) = Session::open(path)?.ask(Request::Show { height: args.height })? else {
        return Err(unexpected());
    };
    match args.json {
        true => output::json(&Entry::from(info)),
        false => output::data(|out| describe(out, &info, Timestamp::now())),
    }
}

/// The snapshot in lines of its own.
fn describe(out: &mut dyn Write, info: &SnapshotInfo, now: Timestamp) -> io::Result<()> {
    let yes = |yes| if yes { "yes" } else { "no" };
    let mut line = |name: &str, value: &str| writeln!(out, "{name:<12}{value}");
    line("height", &info.height.to_string())?;
    line("time", &format!("{} ({} old)", format::time(info.time), format::age(info.time, now)))?;
    line("durable", yes(info.durable))?;
    line("held", yes(info.held))?;
    line("hash", info.hash.as_deref().unwrap_or("-"))?;
    line("root", info.root.as_deref().unwrap_or("-"))?;
    line("referenced", &format::size(info.referenced_bytes))?;
    line("exclusive", &format!("{} (what deleting it would free)", format::size(info.exclusive_bytes)))?;
    for (key, value) in &info.labels {
        line("label", &format!("{}={}", format::text(key), format::text(value)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lines() {
        let now: Timestamp = "2026-07-01T12:00:00Z".parse().unwrap();
        let info = SnapshotInfo {
            height: Height(1190),
            time: now - jiff::SignedDuration::from_hours(2),
            durable: true,
            held: false,
            hash: None,
            labels: [("a".into(), "b c".into())].into(),
            referenced_bytes: 5 << 20,
            exclusive_bytes: 4096,
            epoch: snapstore::EpochId(3),
            root: None,
        };
        let mut out = Vec::new();
        describe(&mut out, &info, now).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "height      1190\n\
             time        2026-07-01T10:00:00Z (2 h old)\n\
             durable     yes\n\
             held        no\n\
             hash        -\n\
             root        -\n\
             referenced  5.00 MiB\n\
             exclusive   4.00 KiB (what deleting it would free)\n\
             label       a=\"b c\"\n"
        );
    }
}
