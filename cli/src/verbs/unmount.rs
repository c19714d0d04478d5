//! `tmfs unmount`: the end of a mount, with everything durable.

use std::path::{Path, PathBuf};
use std::time::Duration;

use snapstore::control::FailureKind;
use snapstore::control::client::{Client, ClientError};
use snapstore::procs;

use crate::detach;
use crate::failure::failure;
use crate::sys::Process;
use crate::target::{self, State};
use crate::{format, output};

/// Unmount a data dir; returns when everything is durable
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The data dir
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// How long a daemon that has unmounted may take to end.
const END: Duration = Duration::from_secs(30);

/// Unmounts.
pub fn run(args: Args) -> anyhow::Result<()> {
    at(&args.dir)
}

/// Unmounts the data dir of this name.
pub fn at(dir: &Path) -> anyhow::Result<()> {
    let data_dir = target::existing(dir)?;
    match target::state(&data_dir, None)? {
        State::Mounted(client) => unmount(&data_dir, &client),
        State::Dead => detach::dead(&data_dir, "the next `tmfs mount` recovers the data"),
        State::Adopted(_) => {
            Err(failure(FailureKind::Failed, format!("{}: not mounted", data_dir.display())))
        }
        State::Plain => Err(target::plain(&data_dir)),
    }
}

fn unmount(data_dir: &Path, client: &Client) -> anyhow::Result<()> {
    // Known before it goes: the store's lock is free only when the daemon has ended.
    let daemon = client.daemon_pid().ok().and_then(|pid| Process::open(pid).ok());
    match client.unmount() {
        Ok(()) => {}
        Err(ClientError::Failed(refused)) if refused.kind == FailureKind::Busy => {
            let message = format!("{refused}{}", users(data_dir, &refused.message));
            return Err(failure(FailureKind::Busy, message));
        }
        Err(error) => return Err(error.into()),
    }
    if daemon.is_some_and(|daemon| !daemon.wait(END)) {
        output::complain("everything is durable, but the daemon has not ended yet");
    }
    output::say(&format!("{}: unmounted", format::path(data_dir)));
    Ok(())
}

/// Who uses the data dir, unless the message says so already.
fn users(data_dir: &Path, message: &str) -> String {
    let users = procs::open_files(data_dir, false);
    match users.iter().any(|user| message.contains(&user.pid.to_string())) {
        true => String::new(),
        false => super::mount::list_users(&users),
    }
}
