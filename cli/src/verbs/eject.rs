//! `tmfs eject`: back to a plain directory.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use snapstore::control::FailureKind;
use snapstore::store;

use crate::failure::{failure, usage};
use crate::progress::Bar;
use crate::target::{self, State};
use crate::{format, output};

/// Make a data dir a plain directory again, as it is now; all snapshots are dropped
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The data dir, not mounted
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Ejects.
pub fn run(args: Args) -> anyhow::Result<()> {
    store::put_back(&args.dir, None)?;
    let data_dir = target::existing(&args.dir)?;
    let dir = format::path(&data_dir);
    let located = match target::state(&data_dir, None)? {
        State::Mounted(_) => {
            let message = format!("{dir}: mounted; unmount it first with `tmfs unmount {dir}`");
            return Err(failure(FailureKind::Busy, message));
        }
        State::Dead => return Err(target::dead(&data_dir)),
        // An eject that was interrupted near its end leaves a plain directory and what is left of the store.
        State::Plain => {
            return match store::eject(&data_dir, None, &Bar::default()) {
                Ok(_) => {
                    output::say(&format!("{dir}: a plain directory again"));
                    Ok(())
                }
                Err(snapstore::Error::NotAStore { .. }) => Err(target::plain(&data_dir)),
                Err(error) => Err(error.into()),
            };
        }
        State::Adopted(located) => located,
    };
    if !args.yes && !agreed(&dir)? {
        return Err(failure(FailureKind::Failed, format!("{dir}: left as it is")));
    }
    store::eject(&data_dir, Some(&located.store), &Bar::default())?;
    output::say(&format!("{dir}: a plain directory again"));
    Ok(())
}

/// Asks on a terminal.
fn agreed(dir: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(usage(format!(
            "{dir}: ejecting drops all snapshots; say --yes to do it without being asked"
        )));
    }
    let mut stderr = io::stderr();
    let _ = write!(stderr, "{dir}: drop all snapshots and make it a plain directory? [y/N] ");
    let _ = stderr.flush();
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
