//! `tmfs completions`: what a shell needs to complete our command lines.

use clap_complete::Shell;

use crate::{args, output};

/// Print the completions for a shell
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints them.
pub fn run(args: Args) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::command(), "tmfs", &mut script);
    output::data(|out| out.write_all(&script))
}
