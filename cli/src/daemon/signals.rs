//! SIGTERM, SIGINT and SIGHUP unmount.
//!
//! The first one asks for a clean unmount. While files are open that is refused, and the daemon stays: their programs
//! would lose what they write. The second one detaches the mount from the tree of files: nobody can open anything any
//! more, what is open goes on working, and the daemon ends when the last of it is closed.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use snapstore::control::{FailureKind, Request, Verbs};

use crate::detach;

/// Keeps the signals for [`handle`]. Call before any thread is started: threads inherit it.
pub fn block() -> nix::Result<SigSet> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    Ok(signals)
}

/// Waits for the signals on a thread of its own.
pub fn handle(signals: SigSet, verbs: Arc<dyn Verbs>, data_dir: PathBuf) -> anyhow::Result<()> {
    let wait = move || {
        let mut busy = false;
        while let Ok(signal) = signals.wait() {
            tracing::info!(%signal, "unmounting");
            match verbs.call(Request::Unmount) {
                Ok(_) => return,
                Err(failure) if busy && failure.kind == FailureKind::Busy => {
                    tracing::warn!("still busy: detaching; the daemon ends when the last file is closed");
                    match detach::after_flush(&data_dir) {
                        Ok(()) => return,
                        Err(error) => tracing::error!("{error:#}"),
                    }
                }
                Err(failure) => {
                    busy = failure.kind == FailureKind::Busy;
                    let next = if busy { "; the next signal detaches the mount" } else { "" };
                    tracing::error!("not unmounted: {failure}{next}");
                }
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).context("cannot wait for signals")?;
    Ok(())
}
