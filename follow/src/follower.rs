//! The thread that follows: asks, has the machine decide, takes what is due, and says what it saw.
//!
//! A snapshot is named before the cut, by the height that was told then. Afterwards the node is asked once more: what
//! it tells by then stands beside it (labels `height-before`, `height-after`), and where the two differ, or the block
//! was replaced meanwhile, so does that they do (`mismatch`). Whoever restores knows within which heights the data is.
//!
//! [`Follower::pause`] has the thread hold no file of the mount and ask for nothing, so that the mount can go.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use snapstore::Height;
use snapstore::backend::SnapshotOptions;
use snapstore::control::following::Following;

use crate::clock::Clock;
use crate::command::Cancel;
use crate::every::{self, Every, Naming};
use crate::keeper::Keeper;
use crate::machine::{Event, Kept, Machine, Take};
use crate::pace::Pace;
use crate::settings::{Plan, What};
use crate::source::{Access, Problem, Source, Tip};
use crate::words;

/// How often it is looked whether the block of the newest snapshot is still the chain's.
const RECHECK: Duration = Duration::from_secs(10);
/// How long whoever pauses waits for what is under way: an answer, a cut.
const PATIENCE: Duration = Duration::from_secs(60);

/// A thread that follows. Ends when this is dropped.
pub struct Follower {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    cancel: Cancel,
    following: Mutex<Following>,
}

#[derive(Default)]
struct State {
    paused: bool,
    ended: bool,
    working: bool,
}

impl Follower {
    /// Starts to follow.
    pub fn start(
        plan: &Plan,
        data_dir: &Path,
        keeper: Box<dyn Keeper>,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Follower> {
        let shared = Arc::new(Shared::default());
        let access = Access {
            limit: plan.limit,
            cancel: shared.cancel.clone(),
            cookie: plan.cookie.clone(),
            commitment: plan.commitment,
            environment: vec![("TMFS_PATH", data_dir.display().to_string())],
        };
        let mut work = Work::new(plan, &access, keeper, clock);
        shared.tell(&work.following);
        tracing::info!(source = %work.following.source, rule = %work.following.rule, "following");
        let thread = thread::Builder::new().name("tmfs-follow".into()).spawn({
            let shared = shared.clone();
            move || shared.run(&mut work)
        })?;
        Ok(Follower { shared, thread: Mutex::new(Some(thread)) })
    }

    /// What it is at.
    pub fn following(&self) -> Following {
        self.shared.following.lock().clone()
    }

    /// Stops for now. When this returns nothing is under way, and nothing begins before [`Follower::resume`].
    pub fn pause(&self) {
        let mut state = self.shared.state.lock();
        state.paused = true;
        self.shared.cancel.set(true);
        self.shared.changed.notify_all();
        self.shared.changed.wait_while_for(&mut state, |state| state.working, PATIENCE);
    }

    /// Goes on.
    pub fn resume(&self) {
        self.shared.cancel.set(false);
        self.shared.state.lock().paused = false;
        self.shared.changed.notify_all();
    }

    /// Stops for good.
    pub fn end(&self) {
        self.pause();
        self.shared.state.lock().ended = true;
        self.shared.changed.notify_all();
        // Whoever does not come to an end by then ends with the process.
        let idle = !self.shared.state.lock().working;
        if let (Some(thread), true) = (self.thread.lock().take(), idle) {
            let _ = thread.join();
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn run(&self, work: &mut Work) {
        let mut wait = Duration::ZERO;
        loop {
            let mut state = self.state.lock();
            self.changed.wait_while_for(&mut state, |state| !state.ended && !state.paused, wait);
            while state.paused && !state.ended {
                self.changed.wait(&mut state);
            }
            if state.ended {
                return;
            }
            state.working = true;
            drop(state);
            // A bug here must not end following for good, nor leave whoever pauses waiting.
            wait = panic::catch_unwind(AssertUnwindSafe(|| work.step())).unwrap_or_else(|_| {
                work.following.problem = Some("a bug of the follower's was caught; see the log".into());
                Duration::from_secs(10)
            });
            // What was cut short by a pause says nothing about the node.
            if !self.cancel.is_set() {
                self.tell(&work.following);
            }
            self.state.lock().working = false;
            self.changed.notify_all();
        }
    }

    fn tell(&self, following: &Following) {
        *self.following.lock() = following.clone();
    }
}

/// What is done in one step, and what is remembered between steps.
pub(crate) struct Work {
    kind: Kind,
    keeper: Box<dyn Keeper>,
    clock: Arc<dyn Clock>,
    cancel: Cancel,
    pub(crate) following: Following,
    /// What was last said in the log of what is wrong.
    said: Option<String>,
}

enum Kind {
    Heights(Box<Heights>),
    Clock { every: Every, naming: Naming },
}

struct Heights {
    name: &'static str,
    interval: u64,
    source: Box<dyn Source>,
    machine: Machine,
    pace: Pace,
    checked: Option<(u64, Duration)>,
    /// What the chain did.
    worry: Option<String>,
}

impl Work {
    fn new(plan: &Plan, access: &Access, keeper: Box<dyn Keeper>, clock: Arc<dyn Clock>) -> Work {
        let source = match &plan.what {
            What::Heights { source, .. } => Some(source.open(access)),
            What::Every { .. } => None,
        };
        Work::with(plan, source, access.cancel.clone(), keeper, clock)
    }

    pub(crate) fn with(
        plan: &Plan,
        source: Option<Box<dyn Source>>,
        cancel: Cancel,
        keeper: Box<dyn Keeper>,
        clock: Arc<dyn Clock>,
    ) -> Work {
        let (kind, name, rule) = match (&plan.what, plan.what.rules(), source) {
            (What::Heights { source: spec, interval, .. }, Some(rules), Some(source)) => {
                let heights = Heights {
                    name: spec.family().name(),
                    interval: interval.get(),
                    source,
                    machine: Machine::new(rules),
                    pace: Pace::new(plan.poll.0, plan.poll.1),
                    checked: None,
                    worry: None,
                };
                (Kind::Heights(Box::new(heights)), spec.to_string(), format!("multiples of {interval}"))
            }
            (What::Every { period, naming }, ..) => {
                let every = Every::new(period.0, clock.unix());
                let called = match naming {
                    Naming::Time => "heights are Unix times",
                    Naming::Counter => "heights are counted",
                };
                let kind = Kind::Clock { every, naming: *naming };
                (kind, "clock".to_owned(), format!("every {period}, {called}"))
            }
            _ => unreachable!("heights have rules and a source"),
        };
        let following = Following { source: name, rule, ..Following::default() };
        Work { kind, keeper, clock, cancel, following, said: None }
    }

    /// Does what there is to do now. Gives how long to wait.
    pub(crate) fn step(&mut self) -> Duration {
        let Work { kind, keeper, clock, cancel, following, said } = self;
        let mut at = At { keeper: &**keeper, clock: &**clock, cancel, following, said };
        match kind {
            Kind::Heights(heights) => heights.step(&mut at),
            Kind::Clock { every, naming } => by_the_clock(every, *naming, &mut at),
        }
    }
}

/// What a step works with.
struct At<'a> {
    keeper: &'a dyn Keeper,
    clock: &'a dyn Clock,
    cancel: &'a Cancel,
    following: &'a mut Following,
    said: &'a mut Option<String>,
}

impl At<'_> {
    fn timestamp(&self) -> Option<jiff::Timestamp> {
        jiff::Timestamp::from_millisecond(self.clock.unix().as_millis() as i64).ok()
    }

    /// Something is wrong: in the status until it is not, in the log once.
    fn problem(&mut self, words: String) {
        if self.cancel.is_set() {
            return;
        }
        // Numbers in it may differ from answer to answer.
        let kind: String = words.chars().filter(|char| !char.is_ascii_digit()).collect();
        if self.said.as_ref() != Some(&kind) {
            tracing::warn!("follower: {words}");
            *self.said = Some(kind);
        }
        self.following.problem = Some(words);
    }

    /// The node answers as it should; what the chain did may be worth a word.
    fn well(&mut self, worry: Option<String>) {
        if self.said.take().is_some() {
            tracing::info!("follower: goes on");
        }
        self.following.problem = worry;
    }
}

impl Heights {
    fn step(&mut self, at: &mut At<'_>) -> Duration {
        let kept = match at.keeper.kept() {
            Ok(kept) => kept,
            Err(failure) => {
                at.problem(failure.message);
                return self.pace.failed();
            }
        };
        let tip = match self.source.tip() {
            Ok(tip) => tip,
            Err(problem) => {
                if !at.cancel.is_set() && !matches!(problem, Problem::NoHeight(_) | Problem::Garbage { .. }) {
                    self.machine.unanswered();
                }
                at.problem(problem.to_string());
                return self.pace.failed();
            }
        };
        at.following.syncing = tip.syncing;
        let before = self.machine.seen();
        let verdict = self.machine.observe(&tip, &kept);
        let mut doubtful = None;
        let (mut fresh, mut no_block) = (false, false);
        for event in &verdict.events {
            let words = words::sentence(event);
            match event {
                Event::WentBack { .. } => {
                    fresh = true;
                    self.worry(words);
                }
                Event::Refused { .. } | Event::Stale { .. } => doubtful = Some(words),
                // The status says that it is catching up, and no more needs to be said.
                Event::NoBlock => no_block = true,
                _ => tracing::info!("follower: {words}"),
            }
        }
        if !verdict.believed {
            if no_block {
                at.well(self.worry.clone());
            } else if let Some(words) = doubtful {
                at.problem(words);
            }
            return if self.machine.doubts() { self.pace.soon() } else { self.pace.failed() };
        }
        let now = at.clock.now();
        self.pace.told(tip.height, now);
        at.following.height = Some(Height(tip.height));
        at.following.seen = at.timestamp();
        let went_back = before.is_some_and(|before| tip.height < before);
        if let Some(words) = self.recheck(&kept, went_back || verdict.take.is_some(), now) {
            fresh = true;
            self.worry(words);
        }
        at.well(self.worry.clone());
        match verdict.take {
            Some(take) if !at.cancel.is_set() => {
                let wait = self.take(&take, tip, at);
                if !fresh && at.following.taken == Some(Height(take.height)) {
                    self.worry = None;
                }
                wait
            }
            _ => self.pace.wait(self.machine.next(), at.clock.now()),
        }
    }

    /// The chain did something that whoever restores should know: in the status until the next snapshot.
    fn worry(&mut self, words: String) {
        tracing::warn!("follower: {words}");
        self.worry = Some(words);
    }

    /// Whether the block of the newest snapshot is the chain's still; what to say if it is not.
    fn recheck(&mut self, kept: &Kept, at_once: bool, now: Duration) -> Option<String> {
        let newest = kept.newest.as_ref().filter(|newest| newest.hash.is_some())?;
        let recently =
            |(height, when): (u64, Duration)| height == newest.height && now.saturating_sub(when) < RECHECK;
        if !at_once && self.checked.is_some_and(recently) {
            return None;
        }
        let hash = self.source.hash(newest.height);
        // A chain that went back may not have come to that block yet: then it is looked again with each answer.
        let there = self.machine.seen().is_some_and(|seen| seen >= newest.height);
        self.checked = there.then_some((newest.height, now));
        match hash {
            Ok(Some(is)) => {
                let event = self.machine.recheck(newest, &is)?;
                Some(words::sentence(&event))
            }
            Ok(None) => None,
            Err(problem) => {
                tracing::debug!(%problem, "the newest snapshot's block is not compared");
                None
            }
        }
    }

    fn take(&mut self, take: &Take, tip: Tip, at: &mut At<'_>) -> Duration {
        let hash = match tip.hash {
            Some(hash) => Some(hash),
            None => self.source.hash(take.height).unwrap_or_else(|problem| {
                tracing::debug!(%problem, height = take.height, "no hash");
                None
            }),
        };
        let mut labels = BTreeMap::new();
        let mut label = |key: &str, value: String| labels.insert(key.to_owned(), value);
        label("follow", self.name.to_owned());
        label("height-before", take.height.to_string());
        if tip.syncing {
            label("syncing", "yes".into());
        }
        if take.jumped {
            label("jumped", "yes".into());
        }
        if let Some(height) = self.machine.reorganised() {
            label("reorganised", height.to_string());
        }
        let skipped = take.skipped.as_ref().map(|skipped| words::skipped(skipped, self.interval));
        if let Some(skipped) = &skipped {
            label("skipped", skipped.clone());
        }
        if at.cancel.is_set() {
            return Duration::ZERO;
        }
        let options = SnapshotOptions { hash: hash.clone(), labels, hold: false };
        let info = match at.keeper.take(take.height, options) {
            Ok(info) => info,
            Err(failure) => {
                // Somebody else was faster, and that is no error.
                let newest = at.keeper.kept().ok().and_then(|kept| kept.newest);
                if newest.is_some_and(|newest| newest.height >= take.height) {
                    tracing::info!(height = take.height, "follower: there is a snapshot already");
                    self.machine.done(take.height);
                    return self.pace.wait(self.machine.next(), at.clock.now());
                }
                at.problem(format!("height {}: {}", take.height, failure.message));
                return self.pace.failed();
            }
        };
        self.machine.done(take.height);
        at.following.taken = Some(info.height);
        at.following.taken_at = Some(info.time);
        if let (Some(words), Some(passed)) = (skipped, &take.skipped) {
            tracing::warn!(height = take.height, "follower: skipped {words}");
            at.following.skipped = at.following.skipped.saturating_add(passed.count);
            at.following.last_skipped = Some(words);
        }
        self.look_back(take.height, hash, &info, at);
        self.pace.wait(self.machine.next(), at.clock.now())
    }

    /// What the node tells when the cut is made.
    fn look_back(
        &mut self,
        height: u64,
        hash: Option<String>,
        info: &snapstore::backend::SnapshotInfo,
        at: &mut At<'_>,
    ) {
        if at.cancel.is_set() {
            // The mount is about to go, and the node may be slow.
            return;
        }
        let mut labels = BTreeMap::new();
        let mut mismatch = None;
        match self.source.tip() {
            Ok(tip) => {
                labels.insert("height-after".to_owned(), tip.height.to_string());
                if tip.height != height {
                    mismatch = Some(format!("{height} before the cut, {} after it", tip.height));
                }
            }
            Err(problem) => {
                labels.insert("height-after".to_owned(), "unknown".into());
                mismatch = Some(format!("after the cut {problem}"));
            }
        }
        if let Some(before) = hash
            && let Ok(Some(after)) = self.source.hash(height)
            && after != before
        {
            mismatch = Some(format!("block {height} was {before} before the cut and {after} after it"));
        }
        if let Ok(Some(finalized)) = self.source.finalized() {
            labels.insert("finalized".to_owned(), finalized.to_string());
        }
        match &mismatch {
            Some(mismatch) => {
                tracing::warn!(height, "follower: took a snapshot; mismatch: {mismatch}");
                // What a node says may be longer than a label.
                labels.insert("mismatch".to_owned(), mismatch.chars().take(1000).collect());
            }
            None => tracing::info!(height, "follower: took a snapshot"),
        }
        if let Err(failure) = at.keeper.label(height, info.epoch, labels) {
            tracing::warn!(
                height,
                "follower: what the node told after the cut is not kept as labels: {failure}"
            );
        }
    }
}

fn by_the_clock(every: &mut Every, naming: Naming, at: &mut At<'_>) -> Duration {
    let now = at.clock.unix();
    if every.is_due(now) && !at.cancel.is_set() {
        let taken = at.keeper.kept().map_err(|failure| failure.message).and_then(|kept| {
            let height = every::name(naming, now, kept.newest.map(|newest| newest.height))?;
            let labels = [("follow".to_owned(), "clock".to_owned())].into();
            let options = SnapshotOptions { labels, ..SnapshotOptions::default() };
            at.keeper.take(height, options).map_err(|failure| format!("height {height}: {}", failure.message))
        });
        match taken {
            Ok(info) => {
                tracing::info!(height = %info.height, "follower: took a snapshot");
                at.well(None);
                at.following.taken = Some(info.height);
                at.following.taken_at = Some(info.time);
            }
            Err(problem) => at.problem(problem),
        }
    }
    every.wait(at.clock.unix())
}

#[cfg(test)]
mod tests;
