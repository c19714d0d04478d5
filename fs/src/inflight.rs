//! Requests that are being answered, and the watch over those that take too long.
//!
//! A request that never ends hangs the program that made it, and nothing else would tell why: the log of a daemon in
//! a deadlock is silent. So each thread that answers has a [`Slot`], and a watchdog looks at all slots once a second.
//!
//! On the way of a request this costs four stores to a cache line that nobody else writes, and no clock: a slot counts
//! its thread's turns, and it is the watchdog that remembers since when it has seen the same turn. Ages are therefore
//! short by up to the time between two looks, which is nothing to what counts as too long.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use snapstore::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use snapstore::sync::{Mutex, thread_local};

use crate::adapter::Kind;
use crate::node::NodeId;

/// How often the watchdog looks.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// What one thread is answering. On cache lines of its own.
#[repr(align(128))]
struct Slot {
    /// Odd: a request is under way. Raised when it begins and when it ends; written by its own thread only.
    turn: AtomicU64,
    /// A [`Kind`], as a number.
    kind: AtomicUsize,
    /// The [`NodeId`] the request is about: a directory, where it is about a name.
    node: AtomicU64,
}

/// A request that is being answered, until this is dropped.
pub struct Answering(Arc<Slot>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.turn.store(self.0.turn.load(Ordering::Relaxed) + 1, Ordering::Release);
    }
}

thread_local! {
    /// This thread's slot, and the [`InFlight`] it is for.
    static MINE: RefCell<Option<(u64, Arc<Slot>)>> = const { RefCell::new(None) };
}

/// All requests of one mount that are being answered.
pub struct InFlight {
    id: u64,
    /// Taken by a thread's first request and by the watchdog, never on the way of a request. A leaf.
    watched: Mutex<Vec<Watched>>,
    overdue: AtomicU64,
    slow: AtomicU64,
}

/// A slot, and what the watchdog has seen in it.
struct Watched {
    slot: Arc<Slot>,
    seen: Option<Seen>,
}

struct Seen {
    turn: u64,
    since: Instant,
    /// What was told to be overdue, once it was.
    told: Option<(Kind, NodeId)>,
}

/// What the watchdog has to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sight {
    /// A request takes too long.
    Overdue(Kind, NodeId, Duration),
    /// One of those has ended.
    Ended(Kind, NodeId, Duration),
}

impl Default for InFlight {
    fn default() -> InFlight {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        InFlight {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            watched: Mutex::default(),
            overdue: AtomicU64::new(0),
            slow: AtomicU64::new(0),
        }
    }
}

impl InFlight {
    /// This thread begins to answer a request. One at a time: it must have answered the one before.
    pub fn begin(&self, kind: Kind, node: NodeId) -> Answering {
        let slot = self.mine();
        let turn = slot.turn.load(Ordering::Relaxed);
        debug_assert!(turn.is_multiple_of(2), "a thread answers one request at a time");
        slot.kind.store(kind as usize, Ordering::Relaxed);
        slot.node.store(node.0, Ordering::Relaxed);
        slot.turn.store(turn + 1, Ordering::Release);
        Answering(slot)
    }

    /// How many requests are overdue now, as of the watchdog's latest look.
    pub fn overdue(&self) -> u64 {
        self.overdue.load(Ordering::Relaxed)
    }

    /// How many ever were.
    pub fn slow(&self) -> u64 {
        self.slow.load(Ordering::Relaxed)
    }

    fn mine(&self) -> Arc<Slot> {
        MINE.with(|mine| match &mut *mine.borrow_mut() {
            Some((id, slot)) if *id == self.id => slot.clone(),
            mine => {
                let slot = Arc::new(Slot {
                    turn: AtomicU64::new(0),
                    kind: AtomicUsize::new(0),
                    node: AtomicU64::new(0),
                });
                self.watched.lock().push(Watched { slot: slot.clone(), seen: None });
                *mine = Some((self.id, slot.clone()));
                slot
            }
        })
    }

    /// Looks at all slots: tells of each request once when it has taken longer than `limit`, and once when it ends.
    pub fn look(&self, now: Instant, limit: Duration) -> Vec<Sight> {
        let mut sights = Vec::new();
        let mut watched = self.watched.lock();
        for Watched { slot, seen } in watched.iter_mut() {
            let turn = slot.turn.load(Ordering::Acquire);
            if let Some(before) = seen
                && before.turn != turn
            {
                if let Some((kind, node)) = before.told {
                    sights.push(Sight::Ended(kind, node, now - before.since));
                }
                *seen = None;
            }
            if turn.is_multiple_of(2) {
                continue;
            }
            let seen = seen.get_or_insert(Seen { turn, since: now, told: None });
            let age = now - seen.since;
            if seen.told.is_none() && age >= limit {
                // The same turn as at an earlier look: what is read here belongs to it.
                let kind = Kind::ALL[slot.kind.load(Ordering::Relaxed)];
                let node = NodeId(slot.node.load(Ordering::Relaxed));
                if slot.turn.load(Ordering::Acquire) == turn {
                    seen.told = Some((kind, node));
                    self.slow.fetch_add(1, Ordering::Relaxed);
                    sights.push(Sight::Overdue(kind, node, age));
                }
            }
        }
        // Of a thread that has ended, nobody else has the slot.
        watched.retain(|w| w.seen.is_some() || Arc::strong_count(&w.slot) > 1);
        let overdue = watched.iter().filter(|w| w.seen.as_ref().is_some_and(|s| s.told.is_some())).count();
        self.overdue.store(overdue as u64, Ordering::Relaxed);
        sights
    }

    /// The watchdog: looks and logs until nobody holds the other end of `end`.
    pub fn watch(&self, limit: Duration, end: &Receiver<()>) {
        let between = BETWEEN_LOOKS.min(limit);
        while end.recv_timeout(between) == Err(RecvTimeoutError::Timeout) {
            for sight in self.look(Instant::now(), limit) {
                match sight {
                    Sight::Overdue(kind, node, age) => tracing::warn!(
                        request = kind.name(),
                        inode = node.ino().0,
                        tree = node.tag().0,
                        seconds = age.as_secs(),
                        "a request is not answered"
                    ),
                    Sight::Ended(kind, node, age) => tracing::warn!(
                        request = kind.name(),
                        inode = node.ino().0,
                        tree = node.tag().0,
                        seconds = age.as_secs(),
                        "a request was answered late"
                    ),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);
    const NODE: NodeId = NodeId(7);

    #[test]
    fn a_request_that_takes_too_long_is_told_of_once_and_again_when_it_ends() {
        let all = InFlight::default();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let request = all.begin(Kind::Write, NODE);
        assert_eq!(all.look(at(0), LIMIT), []);
        assert_eq!(all.look(at(29), LIMIT), []);
        assert_eq!(all.look(at(30), LIMIT), [Sight::Overdue(Kind::Write, NODE, LIMIT)]);
        assert_eq!((all.overdue(), all.slow()), (1, 1));
        assert_eq!(all.look(at(31), LIMIT), []);
        drop(request);
        let next = all.begin(Kind::Read, NODE);
        let late = Duration::from_secs(40);
        assert_eq!(all.look(at(40), LIMIT), [Sight::Ended(Kind::Write, NODE, late)]);
        assert_eq!((all.overdue(), all.slow()), (0, 1));
        assert_eq!(all.look(at(69), LIMIT), []);
        assert_eq!(all.look(at(70), LIMIT), [Sight::Overdue(Kind::Read, NODE, LIMIT)]);
        drop(next);
    }

    #[test]
    fn many_short_requests_are_no_long_one_and_threads_that_end_leave_nothing() {
        let all = InFlight::default();
        let begin = Instant::now();
        for second in 0..100 {
            let _request = all.begin(Kind::Lookup, NODE);
            assert_eq!(all.look(begin + Duration::from_secs(second), LIMIT), []);
        }
        std::thread::scope(|scope| {
            // Joined: the end of the scope alone does not wait for what the thread leaves behind.
            scope.spawn(|| drop(all.begin(Kind::Fsync, NODE))).join().unwrap();
        });
        assert_eq!(all.watched.lock().len(), 2);
        all.look(begin + Duration::from_secs(100), LIMIT);
        all.look(begin + Duration::from_secs(101), LIMIT);
        assert_eq!(all.watched.lock().len(), 1, "this thread's own");
    }

    #[test]
    fn two_mounts_of_one_process_have_slots_of_their_own() {
        let (one, other) = (InFlight::default(), InFlight::default());
        let begin = Instant::now();
        let _request = one.begin(Kind::Open, NODE);
        let second =
            std::thread::scope(|scope| scope.spawn(|| other.begin(Kind::Open, NODE)).join().unwrap());
        assert_eq!((one.look(begin, LIMIT), other.look(begin, LIMIT)), (vec![], vec![]));
        drop(second);
        let late = begin + LIMIT;
        assert_eq!(other.look(late, LIMIT), []);
        assert_eq!(one.look(late, LIMIT), [Sight::Overdue(Kind::Open, NODE, LIMIT)]);
    }
}
