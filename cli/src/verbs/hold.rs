//! `tmfs hold`: no deletion and no retention takes a held snapshot.

use std::path::Path;

use snapstore::Height;
use snapstore::control::Request;

use crate::output;
use crate::session::Session;

/// Protect a snapshot from deletion
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The snapshot
    #[arg(value_name = "HEIGHT", value_parser = super::height)]
    height: Height,
}

/// Holds it.
pub fn run(path: Option<&Path>, args: Args) -> anyhow::Result<()> {
    let Args { height } = args;
    Session::open(path)?.ask(Request::Hold { height })?;
    output::say(&format!("snapshot {height} is held"));
    Ok(())
}
