//! Takes snapshots of a mounted data dir at a steady pace, from a thread of its own.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use snapstore::Height;
use snapstore::backend::SnapshotOptions;
use snapstore::control::client::{Client, ClientError};

/// A running thread that takes snapshots.
pub struct Snapper {
    stop: Sender<()>,
    thread: JoinHandle<Result<u64, ClientError>>,
}

impl Snapper {
    /// Takes the first snapshot at once, then one at each `every`. None waits until the snapshot is durable.
    pub fn start(client: Client, every: Duration) -> anyhow::Result<Snapper> {
        let (stop, stopped) = mpsc::channel();
        let take = move || {
            let first = client.list()?.last().map_or(0, |last| last.height.0) + 1;
            let started = Instant::now();
            let mut taken = 0;
            loop {
                client.snapshot_with(Height(first + taken), SnapshotOptions::default(), false)?;
                taken += 1;
                // What takes longer than its time leaves out none of the later ones, as a chain's blocks do not.
                let next = started + every * taken as u32;
                match stopped.recv_timeout(next.saturating_duration_since(Instant::now())) {
                    Err(RecvTimeoutError::Timeout) => {}
                    _ => return Ok(taken),
                }
            }
        };
        Ok(Snapper { stop, thread: thread::Builder::new().name("snapshots".to_owned()).spawn(take)? })
    }

    /// Ends it. Gives back how many were taken; fails when one failed.
    pub fn stop(self) -> anyhow::Result<u64> {
        let _ = self.stop.send(());
        let taken =
            self.thread.join().map_err(|_| anyhow!("the thread that takes snapshots has panicked"))?;
        Ok(taken?)
    }
}
