//! The background: commits every few seconds, sealing, hashing, reclaiming, removing files.
//!
//! Four threads, so that nothing long ever holds up a snapshot's durability. Without a background (tests, short calls on
//! a store that is not mounted) whoever waits does the work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::Core;
use super::database::guarded;
use super::verify::SCRUB_AFTER;
use crate::error::Result;
use crate::sync::atomic::Ordering;

/// Changes reach the disk at most this long after they were made, asked for or not.
const COMMIT_EVERY: Duration = Duration::from_secs(5);

/// The background threads; dropping waits for them.
pub(crate) struct Workers {
    core: Arc<Core>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Workers {
    pub(crate) fn start(core: &Arc<Core>) -> std::io::Result<Workers> {
        let spawn = |name: &str, run: fn(&Arc<Core>)| {
            let core = Arc::clone(core);
            std::thread::Builder::new().name(name.into()).spawn(move || run(&core))
        };
        let threads = vec![
            spawn("tmfs-seal", seal_loop)?,
            spawn("tmfs-hash", hash_loop)?,
            spawn("tmfs-reclaim", reclaim_loop)?,
            spawn("tmfs-scrub", scrub_loop)?,
        ];
        Ok(Workers { core: Arc::clone(core), threads })
    }

    /// Stops the threads and waits for them.
    pub(crate) fn stop(&mut self) {
        self.core.work.lock().stop = true;
        self.core.wake.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.core.done.notify_all();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}

/// So many layers may wait for being removed while one of them is removed bit by bit.
const FEW_FILES: usize = 256;
/// For so long at most: then the rest of it goes at once.
const GENTLY: Duration = Duration::from_secs(2);

/// Looks now and then whether a scrub is due.
fn scrub_loop(core: &Arc<Core>) {
    let mut next = Instant::now() + SCRUB_AFTER;
    loop {
        {
            let mut work = core.work.lock();
            while !work.stop && Instant::now() < next {
                core.wake.wait_until(&mut work, next);
            }
            if work.stop {
                return;
            }
        }
        match guarded(|| core.scrub_if_due()) {
            Err(crate::Error::Closed) => {}
            done => core.report("scrub", done),
        }
        next = Instant::now() + Duration::from_secs(3600);
    }
}

fn seal_loop(core: &Arc<Core>) {
    let mut last_commit = Instant::now();
    loop {
        let epoch = {
            let mut work = core.work.lock();
            if work.stop {
                return;
            }
            if work.seal.is_empty() || work.seal_failed.is_some() {
                let due = COMMIT_EVERY.saturating_sub(last_commit.elapsed()).max(Duration::from_millis(10));
                core.wake.wait_for(&mut work, due);
            }
            if work.stop {
                return;
            }
            let next = if work.seal_failed.is_some() { None } else { work.seal.pop_front() };
            work.busy += usize::from(next.is_some());
            next
        };
        if let Some(epoch) = epoch {
            core.seal_reporting(epoch);
        }
        if last_commit.elapsed() >= COMMIT_EVERY {
            // Data first and outside any lock; then the commit finds nothing left to wait for.
            let synced = guarded(|| core.sync_waiting());
            let committed = guarded(|| core.commit(synced.is_ok()));
            core.meta.sync_newest();
            core.report("periodic sync", synced);
            core.report("periodic commit", committed);
            last_commit = Instant::now();
        }
    }
}

fn hash_loop(core: &Arc<Core>) {
    loop {
        {
            let mut work = core.work.lock();
            // A store that is being closed hashes by itself.
            while !work.stop && (work.hash.is_empty() || core.stopping.load(Ordering::Acquire)) {
                core.wake.wait_for(&mut work, Duration::from_secs(60));
            }
            if work.stop {
                return;
            }
        }
        core.report("hashing", core.hash_next().map(drop));
    }
}

fn reclaim_loop(core: &Arc<Core>) {
    loop {
        let (remove, reclaim) = {
            let mut work = core.work.lock();
            while !work.stop && work.remove.is_empty() && !work.reclaim {
                core.wake.wait_for(&mut work, Duration::from_secs(60));
            }
            if work.stop {
                return;
            }
            work.busy += 1;
            (std::mem::take(&mut work.remove), std::mem::take(&mut work.reclaim))
        };
        core.remove_files(remove);
        if reclaim {
            core.report("reclaim", guarded(|| core.reclaim(|| core.work.lock().stop)));
        }
        core.finish_one();
    }
}

impl Core {
    /// Whether callers have to do the background's work.
    pub(crate) fn background_off(&self) -> bool {
        self.work.lock().by_callers
    }

    /// Does all the background work that is due, in the calling thread.
    pub(crate) fn work_off(&self) -> Result<()> {
        // Epochs are sealed in their order: one caller at a time.
        let _one = self.working.lock();
        loop {
            let next = self.work.lock().seal.pop_front();
            let Some(epoch) = next else { break };
            if let Err(e) = self.seal(epoch) {
                self.work.lock().seal.push_front(epoch);
                return Err(e);
            }
            // It may have been what a merge waited for.
            self.work.lock().reclaim = true;
        }
        while self.hash_next()? {}
        let (remove, reclaim) = {
            let mut work = self.work.lock();
            (std::mem::take(&mut work.remove), std::mem::take(&mut work.reclaim))
        };
        self.remove_files(remove);
        if reclaim {
            self.reclaim(|| false)?;
            let remove = std::mem::take(&mut self.work.lock().remove);
            self.remove_files(remove);
        }
        Ok(())
    }

    /// Waits until the background has nothing to do.
    pub(crate) fn settle(&self) -> Result<()> {
        self.commit(true)?;
        let _hurry = self.hurry();
        loop {
            if self.background_off() {
                self.work_off()?;
                let work = self.work.lock();
                if !work.has_some() {
                    return Ok(());
                }
                if self.stopping.load(Ordering::Acquire) {
                    return Err(crate::Error::Closed);
                }
                continue;
            }
            let mut work = self.work.lock();
            if let Some(first) = work.seal_failed.clone() {
                return Err(crate::Error::PreviousFailure { first });
            }
            if work.stop {
                return Err(crate::Error::Closed);
            }
            if !work.has_some() {
                return Ok(());
            }
            self.wake.notify_all();
            self.done.wait_for(&mut work, Duration::from_millis(100));
        }
    }

    fn seal_reporting(&self, epoch: crate::types::EpochId) {
        let done = guarded(|| self.seal(epoch));
        {
            let mut work = self.work.lock();
            match &done {
                Ok(()) => work.reclaim = true,
                Err(e) => {
                    // Later epochs stand on this one: none is called durable before it.
                    work.seal.push_front(epoch);
                    work.seal_failed = Some(e.to_string());
                }
            }
        }
        self.report("sealing a snapshot", done);
        self.finish_one();
        self.wake.notify_all();
    }

    fn finish_one(&self) {
        self.work.lock().busy -= 1;
        self.done.notify_all();
    }

    pub(super) fn report(&self, what: &str, done: Result<()>) {
        if let Err(e) = done {
            tracing::error!("{what}: {e}");
            self.work.lock().last_error = Some(format!("{what}: {e}"));
        }
    }

    /// Removes the files that are queued for it.
    pub(crate) fn remove_queued(&self) {
        let files = std::mem::take(&mut self.work.lock().remove);
        self.remove_files(files);
    }

    /// Whether there is no hurry with giving space back.
    pub(super) fn has_plenty_of_space(&self) -> bool {
        !self.meta.reserve.is_spent()
            && self.disk.stat_fs().is_ok_and(|space| space.blocks_available > space.blocks / 20)
    }

    fn remove_files(&self, files: Vec<(crate::types::Ino, super::rows::LayerFile)>) {
        let mut waiting = files.len();
        for (ino, file) in files {
            let gently = waiting <= FEW_FILES && !self.background_off();
            let since = Instant::now();
            let go_on = || {
                gently
                    && since.elapsed() < GENTLY
                    && !self.stopping.load(Ordering::Acquire)
                    && self.has_plenty_of_space()
            };
            waiting -= 1;
            match self.disk.remove_gently(&file.path(ino), &go_on) {
                // Never written, so never made.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => {
                    self.report(
                        "removing a layer",
                        Err(crate::Error::Io { op: "remove", path: file.path(ino).into(), source: e }),
                    );
                }
                Ok(()) => {}
            }
        }
    }
}
