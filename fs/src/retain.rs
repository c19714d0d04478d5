//! Retention in the daemon: after each snapshot, and now and then where space counts.
//!
//! A thread of its own prunes, so that no snapshot waits for it: a snapshot only wakes it. It waits until the newest
//! height is durable before anything goes ([`snapstore::control::prune`]).

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use snapstore::control::prune::{PruneReport, prune, space};
use snapstore::control::{Failure, Reply, verbs};
use snapstore::retention::Policy;
use snapstore::retention::plan::Why;

use crate::mounted::Mounted;

/// How often the free space is looked at.
const LOOK: Duration = Duration::from_secs(10);
/// How often what history takes is counted, in looks: that reads all of the metadata.
const COUNT: u32 = 6;

/// What the daemon keeps of its retention.
#[derive(Default)]
pub(crate) struct Retaining {
    policy: Mutex<Option<Policy>>,
    /// Wakes the thread; the thread ends when it goes.
    wake: Mutex<Option<SyncSender<()>>>,
    failed: Mutex<Option<String>>,
}

impl Retaining {
    /// There is a new snapshot, or no space for one.
    pub(crate) fn poke(&self) {
        if let Some(wake) = &*self.wake.lock() {
            // Full: it is going to look anyway.
            let _ = wake.try_send(());
        }
    }

    /// Ends the thread, after what it is doing.
    pub(crate) fn end(&self) {
        *self.wake.lock() = None;
    }

    /// The policy in words.
    pub(crate) fn words(&self) -> Option<String> {
        self.policy.lock().as_ref().map(Policy::to_string)
    }

    /// Why the latest pruning failed, if it did.
    pub(crate) fn failed(&self) -> Option<String> {
        self.failed.lock().clone()
    }

    fn policy(&self) -> Option<Policy> {
        self.policy.lock().clone()
    }
}

impl Mounted {
    /// Prunes by this policy from now on. An empty one prunes nothing.
    pub fn retain(self: &Arc<Mounted>, policy: Policy) -> std::io::Result<()> {
        if policy.is_empty() {
            return Ok(());
        }
        tracing::info!(%policy, "retention");
        *self.retaining.policy.lock() = Some(policy.clone());
        let (wake, woken) = mpsc::sync_channel(1);
        let mounted = self.clone();
        thread::Builder::new().name("tmfs-retain".into()).spawn(move || mounted.keep_to(&policy, &woken))?;
        *self.retaining.wake.lock() = Some(wake);
        Ok(())
    }

    /// The verb `prune`: by a policy that is given, else by the mount's.
    pub(crate) fn prune(&self, policy: Option<&Policy>, dry_run: bool) -> Result<Reply, Failure> {
        let policy = policy.cloned().or_else(|| self.retaining.policy()).ok_or_else(verbs::no_policy)?;
        let report = prune(&*self.backend, &policy, dry_run, &self.verb);
        self.drop_gone_heights();
        let report = report?;
        if !dry_run {
            tell(&report);
        }
        Ok(Reply::Pruned(report))
    }

    fn keep_to(&self, policy: &Policy, woken: &Receiver<()>) {
        let mut looks = 0;
        loop {
            let due = match woken.recv_timeout(LOOK) {
                Ok(()) => true,
                Err(RecvTimeoutError::Timeout) => {
                    looks += 1;
                    let count = policy.max_history_bytes.is_some() && looks % COUNT == 0;
                    count || self.is_short(policy)
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if due {
                self.keep(policy);
            }
        }
    }

    /// Whether too little is free.
    fn is_short(&self, policy: &Policy) -> bool {
        let Some(least) = policy.min_free else { return false };
        space(&*self.backend).is_ok_and(|(free, total)| free < least.of(total))
    }

    fn keep(&self, policy: &Policy) {
        let report = prune(&*self.backend, policy, false, &self.verb);
        self.drop_gone_heights();
        let mut failed = match report {
            Ok(report) => {
                tell(&report);
                (!report.unmet.is_empty()).then(|| report.unmet.join("; "))
            }
            // The store is closed by an unmount: nothing is to be said.
            Err(_) if self.retaining.wake.lock().is_none() => return,
            Err(failure) => Some(failure.to_string()),
        };
        let words = failed.take().map(|words| format!("retention: {words}"));
        let mut before = self.retaining.failed.lock();
        // Once is enough in the log, however often it is tried.
        if *before != words
            && let Some(words) = &words
        {
            tracing::error!("{words}");
        }
        *before = words;
    }
}

/// Says in the log what went: loudly where space was the reason.
fn tell(report: &PruneReport) {
    let of = |why: &[Why]| {
        let pruned = report.pruned.iter().filter(|pruned| why.contains(&pruned.why));
        pruned.map(|pruned| pruned.height.to_string()).collect::<Vec<_>>().join(" ")
    };
    let freed_bytes = report.freed_bytes;
    let (by_policy, by_history, by_space) =
        (of(&[Why::NoRule, Why::Capacity]), of(&[Why::MaxHistoryBytes]), of(&[Why::MinFree]));
    if !by_policy.is_empty() {
        tracing::info!(heights = by_policy, freed_bytes, "pruned");
    }
    if !by_history.is_empty() {
        tracing::info!(heights = by_history, freed_bytes, "pruned: history took more than max-history-bytes");
    }
    if !by_space.is_empty() {
        tracing::warn!(heights = by_space, freed_bytes, "pruned: less than min-free was free on the disk");
    }
}
