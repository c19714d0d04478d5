//! `tmfs`: a time-travel file system over the data directory of a running program.
//!
//! Each verb is a file in `verbs`. A verb finds its data dir (`target`), gets somebody who answers for it, the daemon of
//! a mount or the store itself (`session`), asks, and prints: data on stdout, words on stderr (`output`). What goes
//! wrong comes up here as an error, and becomes an exit status in one match.

mod args;
mod backends;
mod config;
mod daemon;
mod detach;
mod extras;
mod failure;
mod format;
mod mounts;
mod output;
mod policy;
mod progress;
mod session;
mod sys;
mod table;
mod target;
mod verbs;

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;

use clap::FromArgMatches;

use crate::failure::{Outcome, outcome};

fn main() -> ExitCode {
    install_panic_hook();
    let result = panic::catch_unwind(AssertUnwindSafe(run));
    match result.map_or(Outcome::Panicked, |result| outcome(&result)) {
        Outcome::Done | Outcome::BrokenPipe => ExitCode::SUCCESS,
        Outcome::Told(status) => ExitCode::from(status),
        Outcome::Failed { status, message } => {
            output::complain(&message);
            ExitCode::from(status)
        }
        Outcome::Panicked => ExitCode::FAILURE,
    }
}

fn run() -> anyhow::Result<()> {
    let cli = match args::command().try_get_matches() {
        Ok(matches) => args::Cli::from_arg_matches(&matches)?,
        Err(asked) => return args::explain(&asked),
    };
    verbs::run(cli)
}

/// A panic is a bug: one sentence that says so and where, and the trace only for those who ask for it.
fn install_panic_hook() {
    panic::set_hook(Box::new(|info| {
        let text = info.payload();
        let text = text
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| text.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let place = info.location().map(|place| format!(" at {place}")).unwrap_or_default();
        output::complain(&format!(
            "this is a bug in tmfs {}, please report it: {text}{place}",
            env!("CARGO_PKG_VERSION")
        ));
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            output::complain(&std::backtrace::Backtrace::force_capture().to_string());
        }
    }));
}
