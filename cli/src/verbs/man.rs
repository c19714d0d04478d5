//! `tmfs man`: the manual, made from the definition of the command line.

use std::path::PathBuf;

use anyhow::Context;
use clap_mangen::Man;

use crate::{args, output};

/// Print the manual page
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Write the pages of all verbs into this directory instead
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints the page, or writes them all.
pub fn run(args: Args) -> anyhow::Result<()> {
    let command = args::command();
    match args.dir {
        Some(dir) => {
            let context = || format!("cannot write the manual to {}", dir.display());
            std::fs::create_dir_all(&dir).with_context(context)?;
            clap_mangen::generate_to(command, &dir).with_context(context)
        }
        None => {
            let mut page = Vec::new();
            Man::new(command).render(&mut page)?;
            output::data(|out| out.write_all(&page))
        }
    }
}
