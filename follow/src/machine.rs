//! What to believe of a height that is told, and when it is time for a snapshot. No network, no clock, no store: they
//! come in as values, so that every case can be tried.
//!
//! **Belief.** A height is compared with the *basis*: the highest of what was believed before and the newest snapshot.
//! Up to some growth it is believed at once. What grows more (or is the first of all, with no snapshot to compare with)
//! is believed when the next answer agrees. What grows by more than the limit of a jump is refused, however often it is
//! said, unless jumps are accepted. So one wrong answer never makes a snapshot, and no wrong answers make so many of
//! them that retention gives up genuine ones for their sake.
//!
//! **Time.** A snapshot is due when a multiple of the interval has been reached or passed since the height that was
//! last dealt with ([`Machine::done`], never below the newest snapshot). It is named by the height that was told; the
//! multiples that were passed on the way are *skipped*.
//!
//! **Going back.** A height below the last one is a reorganisation, or a node that lost its data: it is said, and
//! believed. Of a node that says that it is catching up it is what to expect, and not said; height 0 of such a one means
//! that it knows no block yet, and counts for nothing. Nothing at or below the newest snapshot can be taken again. After
//! a rollback of tmfs itself (the store's serial has changed) all is new: the basis is the newest snapshot that is left,
//! and the chain runs on from there. A node that was not stopped for it may go on telling the height it has in memory:
//! such a one is *stale*, and counts for nothing until the node was away for a moment, or tells a lower one.

use std::num::NonZeroU64;

use crate::source::Tip;

/// Growth that is believed at once, in intervals and in heights, whichever is more.
const STEADY: (u64, u64) = (10, 1000);

/// What a follower goes by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Multiples of it are taken.
    pub interval: NonZeroU64,
    /// Growth above this is a jump.
    pub max_jump: u64,
    /// A jump is believed, if two answers agree.
    pub accept_jumps: bool,
}

impl Rules {
    /// An interval above the limit must not make each step a jump.
    fn limit(&self) -> u64 {
        self.max_jump.max(self.interval.get().saturating_mul(2))
    }

    fn steady(&self) -> u64 {
        STEADY.1.max(self.interval.get().saturating_mul(STEADY.0)).min(self.limit())
    }

    /// The first multiple above a height; `None` for the height: the first of all.
    fn next(&self, above: Option<u64>) -> Option<u64> {
        match above {
            None => Some(0),
            Some(height) => (height / self.interval.get() + 1).checked_mul(self.interval.get()),
        }
    }
}

/// The store, as far as it matters here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kept {
    /// The newest snapshot.
    pub newest: Option<Newest>,
    /// Changes with every rollback and its undoing.
    pub serial: u64,
}

/// The newest snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Newest {
    pub height: u64,
    pub hash: Option<String>,
}

/// Heights that were passed without a snapshot: multiples of the interval, from the first to the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Skipped {
    pub first: u64,
    pub last: u64,
    pub count: u64,
}

/// A snapshot that is due.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Take {
    /// Its name: the height that was told.
    pub height: u64,
    /// What was passed on the way.
    pub skipped: Option<Skipped>,
    /// It comes after a jump.
    pub jumped: bool,
}

/// What is to be said.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // `words` has a sentence for each.
pub enum Event {
    RolledBack { to: Option<u64> },
    WentBack { from: u64, to: u64, newest: Option<u64> },
    Doubted { height: u64, basis: Option<u64> },
    Refused { height: u64, basis: u64, limit: u64 },
    Jumped { height: u64, basis: u64 },
    Reorganised { height: u64, was: String, is: String },
    Stale { height: u64, newest: Option<u64> },
    NoBlock,
}

/// What an answer leads to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verdict {
    /// Whether the height is believed.
    pub believed: bool,
    /// What is to be said, in order.
    pub events: Vec<Event>,
    /// The snapshot that is due. Tell how it went by [`Machine::done`]; else it is due again with the next answer.
    pub take: Option<Take>,
}

/// What a follower remembers.
#[derive(Clone, Debug)]
pub struct Machine {
    rules: Rules,
    /// The last height that was believed.
    seen: Option<u64>,
    /// Up to here multiples have been dealt with.
    done: Option<u64>,
    /// A height that the next answer must agree with.
    doubt: Option<u64>,
    serial: Option<u64>,
    /// What was told before a rollback: from here up it is the old head's.
    stale: Option<u64>,
    /// The latest replaced block that was told of.
    told: Option<(u64, String)>,
    reorganised: Option<u64>,
    jumped: bool,
}

impl Machine {
    /// One that has seen nothing.
    pub fn new(rules: Rules) -> Machine {
        Machine {
            rules,
            seen: None,
            done: None,
            doubt: None,
            serial: None,
            stale: None,
            told: None,
            reorganised: None,
            jumped: false,
        }
    }

    /// The next height that will be taken, if all goes well.
    pub fn next(&self) -> Option<u64> {
        self.rules.next(Some(self.done.max(self.seen)?))
    }

    /// The last height that was believed.
    pub fn seen(&self) -> Option<u64> {
        self.seen
    }

    /// Whether the next answer decides about the last one.
    pub fn doubts(&self) -> bool {
        self.doubt.is_some()
    }

    /// An answer has come.
    pub fn observe(&mut self, tip: &Tip, kept: &Kept) -> Verdict {
        let mut verdict = Verdict::default();
        let newest = kept.newest.as_ref().map(|newest| newest.height);
        if self.serial.is_some_and(|serial| serial != kept.serial) {
            verdict.events.push(Event::RolledBack { to: newest });
            *self = Machine { stale: self.stale.max(self.seen), ..Machine::new(self.rules) };
        }
        self.serial = Some(kept.serial);
        self.stale =
            self.stale.filter(|stale| newest.is_none_or(|newest| newest < *stale) && tip.height >= *stale);
        if self.stale.is_some() {
            verdict.events.push(Event::Stale { height: tip.height, newest });
            return verdict;
        }
        if tip.syncing && tip.height == 0 {
            // As a basis it would make the chain's own height a jump.
            verdict.events.push(Event::NoBlock);
            return verdict;
        }
        if !self.believes(tip.height, self.seen.max(newest), &mut verdict.events) {
            return verdict;
        }
        verdict.believed = true;
        if let Some(from) = self.seen.filter(|seen| tip.height < *seen) {
            if !tip.syncing {
                verdict.events.push(Event::WentBack { from, to: tip.height, newest });
            }
            // What was dealt with above is to come again; what has a snapshot has it.
            self.done = self.done.min(tip.height.checked_sub(1));
        }
        self.seen = Some(tip.height);
        self.done = self.done.max(newest);
        if self.done.is_none() && !tip.height.is_multiple_of(self.rules.interval.get()) {
            // The first answer, and nothing before it: what came earlier was nobody's business.
            self.done = Some(tip.height);
        } else if self.done.is_none() {
            self.done = tip.height.checked_sub(1);
        }
        verdict.take = self.due(tip.height);
        verdict
    }

    fn due(&self, height: u64) -> Option<Take> {
        let first = self.rules.next(self.done).filter(|first| *first <= height)?;
        let interval = self.rules.interval.get();
        let last = match height.is_multiple_of(interval) {
            true => height.checked_sub(interval),
            false => Some(height - height % interval),
        };
        let skipped = last.filter(|last| *last >= first).map(|last| Skipped {
            first,
            last,
            count: (last - first) / interval + 1,
        });
        Some(Take { height, skipped, jumped: self.jumped })
    }

    /// The height of a snapshot whose block the chain has replaced, since the last one was taken.
    pub fn reorganised(&self) -> Option<u64> {
        self.reorganised
    }

    /// There was no answer.
    pub fn unanswered(&mut self) {
        // Whoever answers next has been started since, most likely.
        self.stale = None;
    }

    /// A height has its snapshot, or has had one already.
    pub fn done(&mut self, height: u64) {
        self.done = self.done.max(Some(height));
        self.reorganised = None;
        self.jumped = false;
    }

    /// What the chain says now of the block at the newest snapshot's height.
    pub fn recheck(&mut self, newest: &Newest, is: &str) -> Option<Event> {
        let was = newest.hash.as_deref()?;
        let now = (newest.height, is.to_owned());
        if was == is || self.told.as_ref() == Some(&now) {
            return None;
        }
        self.told = Some(now);
        self.reorganised = Some(newest.height);
        Some(Event::Reorganised { height: newest.height, was: was.to_owned(), is: is.to_owned() })
    }

    fn believes(&mut self, height: u64, basis: Option<u64>, events: &mut Vec<Event>) -> bool {
        let above = |growth: u64| basis.is_none_or(|basis| height > basis.saturating_add(growth));
        if !above(self.rules.steady()) {
            self.doubt = None;
            return true;
        }
        let limit = self.rules.limit();
        let jump = basis.filter(|_| above(limit));
        if let Some(basis) = jump
            && !self.rules.accept_jumps
        {
            self.doubt = None;
            events.push(Event::Refused { height, basis, limit });
            return false;
        }
        let agreed = self.doubt.is_some_and(|doubt| height >= doubt && height - doubt <= limit);
        if !agreed {
            self.doubt = Some(height);
            events.push(Event::Doubted { height, basis });
            return false;
        }
        self.doubt = None;
        if let Some(basis) = jump {
            events.push(Event::Jumped { height, basis });
            self.jumped = true;
        }
        true
    }
}

#[cfg(test)]
mod tests;
