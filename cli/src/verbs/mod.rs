//! The verbs, one file each.

use clap::Subcommand;

use crate::args::Cli;
use crate::failure::usage;

mod completions;
mod delete;
mod diff;
mod eject;
mod hold;
mod import_btm;
mod list;
mod man;
pub mod mount;
mod prune;
mod release;
mod rollback;
mod show;
mod snapshot;
mod status;
mod unmount;
mod verify;

pub use unmount::at as unmount;

/// What can be asked for.
#[derive(Subcommand, Debug)]
#[allow(missing_docs)] // Each says what it does at its arguments, which clap shows.
pub enum Verb {
    Mount(mount::Args),
    Unmount(unmount::Args),
    Status(status::Args),
    Snapshot(snapshot::Args),
    List(list::Args),
    Show(show::Args),
    Rollback(rollback::Args),
    Delete(delete::Args),
    Prune(prune::Args),
    Hold(hold::Args),
    Release(release::Args),
    Diff(diff::Args),
    Verify(verify::Args),
    Eject(eject::Args),
    ImportBtm(import_btm::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Does what was asked for.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    let path = cli.path.as_deref();
    let takes_dir = |verb: &str| match path {
        Some(_) => Err(usage(format!("`tmfs {verb}` takes the data dir as an argument, not with --path"))),
        None => Ok(()),
    };
    match cli.verb {
        Verb::Mount(args) => takes_dir("mount").and_then(|()| mount::run(args)),
        Verb::Unmount(args) => takes_dir("unmount").and_then(|()| unmount::run(args)),
        Verb::Eject(args) => takes_dir("eject").and_then(|()| eject::run(args)),
        Verb::ImportBtm(args) => takes_dir("import-btm").and_then(|()| import_btm::run(args)),
        Verb::Status(args) => status::run(path, args),
        Verb::Snapshot(args) => snapshot::run(path, args),
        Verb::List(args) => list::run(path, args),
        Verb::Show(args) => show::run(path, args),
        Verb::Rollback(args) => rollback::run(path, args),
        Verb::Delete(args) => delete::run(path, args),
        Verb::Prune(args) => prune::run(path, args),
        Verb::Hold(args) => hold::run(path, args),
        Verb::Release(args) => release::run(path, args),
        Verb::Diff(args) => diff::run(path, args),
        Verb::Verify(args) => verify::run(path, args),
        Verb::Completions(args) => completions::run(args),
        Verb::Man(args) => man::run(args),
    }
}

/// A height as it is written on the command line: digits.
pub fn height(text: &str) -> Result<snapstore::Height, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let height = digits.then(|| text.parse().ok()).flatten();
    height.map(snapstore::Height).ok_or_else(|| format!("a height is a number from 0 to {}", u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heights() {
        assert_eq!(height("0"), Ok(snapstore::Height(0)));
        assert_eq!(height("18446744073709551615"), Ok(snapstore::Height(u64::MAX)));
        for text in ["", "+1", "-1", "1 ", "0x10", "18446744073709551616", "latest"] {
            assert_eq!(height(text).unwrap_err(), "a height is a number from 0 to 18446744073709551615");
        }
    }
}
