//! How a daemon tells that it serves, or why it does not.
//!
//! In the background its stdout is a pipe to `tmfs mount`: one line of JSON, then the end. In the foreground it says so
//! on stderr, and to a service manager that asked to be told (`NOTIFY_SOCKET`).

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use serde::{Deserialize, Serialize};

use crate::output;

/// The line.
#[derive(Serialize, Deserialize, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The mount serves requests; what is to be said about it.
    Mounted(Vec<String>),
    /// It does not, and the daemon ends.
    Failed {
        /// The exit status.
        status: u8,
        /// One sentence.
        message: String,
    },
}

/// Whom to tell.
pub enum Ready {
    /// `tmfs mount`, at the other end of stdout.
    Parent,
    /// Whoever started `tmfs mount --foreground`: this is said.
    Foreground(String),
    /// Has been told.
    Told,
}

impl Ready {
    /// Tells that the mount serves.
    pub fn mounted(&mut self, notices: Vec<String>) {
        match std::mem::replace(self, Ready::Told) {
            Ready::Parent => send(&Message::Mounted(notices)),
            Ready::Foreground(words) => {
                // The notices have been logged, and the log is on stderr too.
                output::say(&words);
                notify();
            }
            Ready::Told => {}
        }
    }

    /// Tells that there will be no mount. `false` when nobody can be told any more: the log must do.
    pub fn failed(&mut self, status: u8, message: &str) -> bool {
        let whom = std::mem::replace(self, Ready::Told);
        if matches!(whom, Ready::Parent) {
            send(&Message::Failed { status, message: message.to_owned() });
        }
        matches!(whom, Ready::Parent)
    }
}

/// Sends the line, and ends the pipe. Whoever waited for it may be gone: then nobody is told.
fn send(message: &Message) {
    let mut out = std::io::stdout().lock();
    if let Ok(mut line) = serde_json::to_vec(message) {
        line.push(b'\n');
        let _ = out.write_all(&line).and_then(|()| out.flush());
    }
    match std::fs::OpenOptions::new().write(true).open("/dev/null") {
        Ok(null) => {
            let _ = nix::unistd::dup2_stdout(null);
        }
        Err(error) => tracing::warn!(%error, "stdout stays open"),
    }
}

/// Tells systemd, or whoever speaks as it does.
fn notify() {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            SocketAddr::from_abstract_name(name)
        }
        None => SocketAddr::from_pathname(&name),
    };
    let told = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address));
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager was not told");
    }
}
