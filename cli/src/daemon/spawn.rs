//! Starting the daemon in the background, and waiting until it serves.
//!
//! The program runs itself again, so that the daemon begins with one thread and nothing of ours but three descriptors:
//! a pipe with what must not stand on a command line, the pipe it tells through ([`super::ready`]), and the log as its
//! stderr.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::Context;
use clap::ValueEnum;
use snapstore::control::FailureKind;

use super::Plan;
use super::log;
use super::ready::Message;
use crate::extras::Extras;
use crate::failure::{Told, failure};
use crate::{output, sys};

/// The hidden option of `tmfs mount` that makes it the daemon.
pub const DAEMON_FLAG: &str = "daemon";

/// The hidden option by which the daemon learns its retention policy.
pub const RETENTION_OPTION: &str = "retention";

/// Starts the daemon and waits for its word; gives its process. Notices are said on stderr.
pub fn spawn(plan: &Plan, log: File) -> anyhow::Result<u32> {
    let (mut words, pipe) = std::io::pipe().context("cannot make a pipe")?;
    let mut child = {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("tmfs").arg("mount").arg(&plan.data_dir).arg("--store").arg(&plan.store);
        let cache = plan.cache.to_possible_value().expect("no value is skipped");
        command.arg("--cache").arg(cache.get_name());
        command.arg(format!("--passthrough={}", plan.passthrough));
        command.arg(format!("--show-heights={}", plan.show_heights));
        command.arg(format!("--owner-snapshots={}", plan.owner_snapshots));
        let policy = serde_json::to_string(&plan.retention).context("cannot write the retention policy")?;
        command.arg(format!("--{RETENTION_OPTION}={policy}"));
        command.arg(format!("--{DAEMON_FLAG}"));
        command.current_dir("/").stdin(Stdio::piped()).stdout(pipe).stderr(log);
        command.spawn().context("cannot start the daemon")?
        // Our end of the pipe for writing goes with the command.
    };
    // Through a pipe, since everybody may read a command line, and there may be passwords in it. One that ends before
    // it has read says why by itself.
    let extras = serde_json::to_vec(&plan.extras).context("cannot write what is to be followed")?;
    let _ = child.stdin.take().map(|mut pipe| pipe.write_all(&extras));
    let mut line = Vec::new();
    words.read_to_end(&mut line).context("cannot hear from the daemon")?;
    match serde_json::from_slice(&line) {
        Ok(Message::Mounted(notices)) => {
            notices.iter().for_each(|notice| output::complain(notice));
            Ok(child.id())
        }
        Ok(Message::Failed { status, message }) => {
            let _ = child.wait();
            output::complain(&message);
            Err(Told(status).into())
        }
        Err(_) => {
            let status = child.wait().context("cannot wait for the daemon")?;
            let log = plan.store.join(log::NAME);
            let message = format!("the daemon ended before it served ({status}); see {}", log.display());
            Err(failure(FailureKind::Failed, message))
        }
    }
}

/// What [`spawn`] has written for the daemon; nothing, if somebody else has started it.
pub fn read_extras() -> anyhow::Result<Extras> {
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).context("cannot hear what is to be followed")?;
    if text.is_empty() {
        return Ok(Extras::default());
    }
    serde_json::from_slice(&text).context("cannot understand what is to be followed")
}

/// Makes this process, just started by [`spawn`], independent of whoever started it.
pub fn become_daemon() -> anyhow::Result<()> {
    sys::close_inherited();
    nix::unistd::setsid().context("cannot begin a session")?;
    Ok(())
}
