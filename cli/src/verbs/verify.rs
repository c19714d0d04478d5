//! `tmfs verify`: reads everything back, and says what is damaged.

use std::io::{self, Write};
use std::path::Path;

use snapstore::Height;
use snapstore::control::{FailureKind, Reply, Request};
use snapstore::verify::{Damage, VerifyReport};

use crate::failure::Told;
use crate::session::{Session, unexpected};
use crate::{format, output};

/// Read everything back, or one snapshot, and say what is damaged
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only what this snapshot shows
    #[arg(value_name = "HEIGHT", value_parser = super::height)]
    height: Option<Height>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Verifies. Exit status 6 when something is damaged.
pub fn run(path: Option<&Path>, args: Args) -> anyhow::Result<()> {
    let request = Request::Verify { height: args.height };
    let Reply::Verified(report) = Session::open(path)?.ask_with_bar(request)? else {
        return Err(unexpected());
    };
    match args.json {
        true => output::json(&report)?,
        false => output::data(|out| describe(out, &report))?,
    }
    match report.damaged.is_empty() {
        true => Ok(()),
        false => Err(Told(FailureKind::Damaged.exit_status()).into()),
    }
}

fn describe(out: &mut dyn Write, report: &VerifyReport) -> io::Result<()> {
    for damage in &report.damaged {
        writeln!(out, "{}", line(damage))?;
    }
    let heights = match report.heights {
        1 => "1 height".to_owned(),
        count => format!("{count} heights"),
    };
    let read = format::size(report.bytes);
    match report.damaged.len() {
        0 => writeln!(out, "{heights}: {read} compared with their hashes, nothing is damaged")?,
        count => writeln!(out, "{heights}: {read} compared with their hashes, {count} damaged")?,
    }
    if report.unhashed_bytes > 0 {
        let size = format::size(report.unhashed_bytes);
        writeln!(out, "{size} can be read, but have no hash yet: they are from before the first mount")?;
    }
    Ok(())
}

/// One damaged part: where, and what.
fn line(damage: &Damage) -> String {
    let place = match damage.height {
        Some(height) => format!("height {height}"),
        None => "live".to_owned(),
    };
    if damage.path.as_os_str().is_empty() && damage.length == 0 {
        return format!("metadata: {}", damage.detail);
    }
    let path = format::path(&damage.path);
    match damage.length {
        0 => format!("{place}: {path}: {}", damage.detail),
        length => {
            let last = damage.offset + length - 1;
            format!("{place}: {path}: bytes {} to {last}: {}", damage.offset, damage.detail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_is_named() {
        let damage = Damage {
            height: Some(Height(7)),
            path: "db/data.mdb".into(),
            offset: 4096,
            length: 8192,
            detail: "damaged".into(),
        };
        let report = VerifyReport { heights: 1, bytes: 1 << 20, unhashed_bytes: 0, damaged: vec![damage] };
        let mut out = Vec::new();
        describe(&mut out, &report).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "height 7: db/data.mdb: bytes 4096 to 12287: damaged\n\
             1 height: 1.00 MiB compared with their hashes, 1 damaged\n"
        );
    }
}
