//! `tmfs release`: the end of a hold.

use std::path::Path;

use snapstore::Height;
use snapstore::control::Request;

use crate::output;
use crate::session::Session;

/// End the protection of a held snapshot
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The snapshot
    #[arg(value_name = "HEIGHT", value_parser = super::height)]
    height: Height,
}

/// Releases it.
pub fn run(path: Option<&Path>, args: Args) -> anyhow::Result<()> {
    let Args { height } = args;
    Session::open(path)?.ask(Request::Release { height })?;
    output::say(&format!("snapshot {height} is not held any more"));
    Ok(())
}
