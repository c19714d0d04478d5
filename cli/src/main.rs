//! `tmfs`: a time-travel file system over the data directory of a running program.
//!
//! Each verb is a file in `verbs`. A verb finds its data dir (`target`), gets somebody who answers for it, the daemon of
//! a mount or the store itself (`session`), asks, and prints: data on stdout, words on stderr (`output`). What goes
//! wrong comes up here as an error, and becomes an exit status in one match.
//!
//! Called by mount(8), under another name, it is a helper of that program (`helper`).

mod args;
mod backends;
mod config;
mod daemon;
mod detach;
mod extras;
mod failure;
mod format;
mod helper;
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
use crate::helper::Helper;

fn main() -> ExitCode {
    install_panic_hook();
    let mut words = std::env::args_os();
    let helper = Helper::called(words.next().as_deref());
    let result = panic::catch_unwind(AssertUnwindSafe(|| match helper {
        Some(helper) => helper.run(words),
        None => run(),
    }));
    let outcome = result.map_or(Outcome::Panicked, |result| outcome(&result));
    let status = match &outcome {
        Outcome::Done | Outcome::BrokenPipe => 0,
        Outcome::Told(status) => *status,
        Outcome::Failed { status, message } => {
            output::complain(message);
            *status
        }
        Outcome::Panicked => 1,
    };
    ExitCode::from(if helper.is_some() { Helper::status(&outcome, status) } else { status })
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
