//! `tmfs import-btm`: the ancestor's snapshots of a volume become heights.

use std::path::PathBuf;

use serde_json::json;
use snapstore::Height;
use snapstore::backend::BackendKind;
use snapstore::control::FailureKind;
use snapstore::native::import::{self, Imported};
use snapstore::store;

use crate::backends::Asked;
use crate::failure::{failure, usage};
use crate::progress::Bar;
use crate::{format, output, target};

/// Take over the snapshots that BTM has made of a volume (VOLUME@N) as heights
///
/// VOLUME is the directory of a Btrfs subvolume, or the mount point of a ZFS dataset. It becomes a tmfs data dir, if it
/// is not one yet; it must not be mounted. Run again, it takes over what is new.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The volume's directory
    #[arg(value_name = "VOLUME")]
    volume: PathBuf,
    /// Remove the originals when all is taken over and durable
    #[arg(long)]
    remove: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Imports.
pub fn run(args: Args) -> anyhow::Result<()> {
    store::put_back(&args.volume, None)?;
    let volume = target::existing(&args.volume)?;
    let dir = format::path(&volume);
    let located = match target::state(&volume, None)? {
        target::State::Mounted(_) => {
            let message = format!("{dir}: mounted; unmount it first with `tmfs unmount {dir}`");
            return Err(failure(FailureKind::Busy, message));
        }
        target::State::Adopted(located) => located,
        target::State::Dead | target::State::Plain => {
            let (choice, _) = store::choose(&volume)?;
            if choice.kind() == BackendKind::Chunk {
                return Err(usage(format!(
                    "{dir}: neither a Btrfs subvolume nor the mount point of a ZFS dataset: BTM has no snapshots of it"
                )));
            }
            super::mount::adopt(&volume, None, Asked::Auto)?
        }
    };
    let imported = import::import_btm(&located.store, args.remove, &Bar::default())?;
    if args.json {
        return output::json(&json!({
            "data_dir": volume.display().to_string(),
            "heights": imported.heights,
            "present": imported.present,
            "removed": imported.removed,
        }));
    }
    words(&imported).iter().for_each(|line| output::say(&format!("{dir}: {line}")));
    Ok(())
}

/// What was done, for a person.
fn words(imported: &Imported) -> Vec<String> {
    let list = |heights: &[Height]| {
        let shown: Vec<String> = heights.iter().map(Height::to_string).collect();
        shown.join(" ")
    };
    let mut lines = match imported.heights.len() {
        0 => vec!["nothing new to take over".to_owned()],
        1 => vec![format!("1 height taken over: {}", list(&imported.heights))],
        n => vec![format!("{n} heights taken over: {}", list(&imported.heights))],
    };
    if !imported.present.is_empty() {
        lines.push(format!("there already: {}", list(&imported.present)));
    }
    if imported.removed > 0 {
        lines.push(format!("originals removed: {}", imported.removed));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_said() {
        let mut imported = Imported::default();
        assert_eq!(words(&imported), ["nothing new to take over"]);
        imported.heights = vec![Height(10)];
        assert_eq!(words(&imported), ["1 height taken over: 10"]);
        imported = Imported { heights: vec![Height(10), Height(20)], present: vec![Height(5)], removed: 3 };
        assert_eq!(
            words(&imported),
            ["2 heights taken over: 10 20", "there already: 5", "originals removed: 3"]
        );
    }
}
