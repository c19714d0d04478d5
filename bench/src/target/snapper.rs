//! Takes snapshots at a steady pace, from a thread of its own.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::anyhow;

/// A running thread that takes snapshots.
pub struct Snapper {
    stop: Sender<()>,
    thread: JoinHandle<anyhow::Result<u64>>,
}

impl Snapper {
    /// Takes the first snapshot at once, then one at each `every`: `take` takes the nth.
    pub fn start(
        every: Duration,
        mut take: impl FnMut(u64) -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<Snapper> {
        let (stop, stopped) = mpsc::channel();
        let steadily = move || {
            let started = Instant::now();
            let mut taken = 0;
            loop {
                take(taken)?;
                taken += 1;
                // What takes longer than its time leaves out none of the later ones, as a chain's blocks do not.
                let next = started + every * taken as u32;
                match stopped.recv_timeout(next.saturating_duration_since(Instant::now())) {
                    Err(RecvTimeoutError::Timeout) => {}
                    _ => return Ok(taken),
                }
            }
        };
        Ok(Snapper { stop, thread: thread::Builder::new().name("snapshots".to_owned()).spawn(steadily)? })
    }

    /// Ends it. Gives back how many were taken; fails when one failed.
    pub fn stop(self) -> anyhow::Result<u64> {
        let _ = self.stop.send(());
        self.thread.join().map_err(|_| anyhow!("the thread that takes snapshots has panicked"))?
    }
}
