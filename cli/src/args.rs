//! The command line as a whole: what holds for every verb.

use std::path::PathBuf;

use clap::{Command, CommandFactory, Parser};

use crate::failure::{EXIT_STATUSES, Told};
use crate::verbs::Verb;

/// Keeps the history of a running program's data directory, by block height.
#[derive(Parser, Debug)]
#[command(name = "tmfs", version, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    /// The data dir; without it TMFS_PATH, else the tmfs mount that holds the working directory, else the only one
    #[arg(short, long, global = true, value_name = "DIR")]
    pub path: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The command line's definition; each verb's help ends with the exit statuses.
pub fn command() -> Command {
    let command = Cli::command().after_help(EXIT_STATUSES);
    command.mut_subcommands(|verb| verb.after_help(EXIT_STATUSES))
}

/// Prints what was asked for (help, the version: on stdout), or what is wrong with the command line.
pub fn explain(asked: &clap::Error) -> anyhow::Result<()> {
    asked.print()?;
    match asked.use_stderr() {
        true => Err(Told(2).into()),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound_and_every_help_ends_with_the_exit_statuses() {
        let mut command = command();
        command.clone().debug_assert();
        command.build();
        assert!(command.render_help().to_string().trim_end().ends_with(EXIT_STATUSES));
        for verb in command.get_subcommands_mut() {
            let help = verb.render_long_help().to_string();
            assert!(help.trim_end().ends_with(EXIT_STATUSES), "{help}");
            assert!(verb.get_about().is_some(), "{} says what it does", verb.get_name());
        }
    }
}
