//! What the kernel caches and what it does not, kept in order for a cut.
//!
//! A program that has written (into pages that the kernel keeps) and then removed, renamed or truncated something may
//! count on it that the first came before the second: a database removes its old log when it has written down that it
//! needs it no more. But the second reaches the daemon at once, and the first when a barrier has the kernel write its
//! pages back. A cut that came after the removal and without the writing would show neither the log nor what took its
//! place.
//!
//! So changes of names and sizes are counted. A cut goes with a barrier during which none arrived: whatever was
//! written before the last of them is then in the daemon too. When one did arrive, the barrier is run again, which is
//! quick, as there is little left to write back. When names change all the time, they have to wait meanwhile, for a
//! bounded time: the kernel holds locks for a change that waits, and the barrier may need one of them.
//!
//! A switch of the head goes by the same rule: the head that is left can be got back, and is to be whole then.

use std::time::{Duration, Instant};

use snapstore::backend::Gate;
use snapstore::sync::atomic::{AtomicU64, Ordering};
use snapstore::sync::{Condvar, Mutex};

/// Counts changes of names and sizes, and holds them back.
pub(crate) struct Order {
    state: Mutex<State>,
    /// `state.held_until` has become `None`.
    let_go: Condvar,
    /// So many changes can be held back at once; the others go through, and are counted.
    most_held: usize,
    /// How many were held back so far.
    waits: AtomicU64,
}

#[derive(Default)]
struct State {
    changes: u64,
    held_until: Option<Instant>,
    held: usize,
}

impl Order {
    /// With a number of threads that answer requests: some of them always stay free.
    pub(crate) fn new(workers: usize) -> Order {
        Order {
            state: Mutex::default(),
            let_go: Condvar::new(),
            // The barrier's writes, and its threads' own look-ups, need an answer meanwhile.
            most_held: workers.saturating_sub(2 + workers / 4).max(1),
            waits: AtomicU64::new(0),
        }
    }

    /// To be called by every request that changes a name or a size, before it enters the tree: if it waited inside, a
    /// switch, which wants the tree for itself, would wait for it.
    pub(crate) fn wait(&self) {
        let mut state = self.state.lock();
        if state.held_until.is_some() && state.held < self.most_held {
            self.waits.fetch_add(1, Ordering::Relaxed);
            state.held += 1;
            while let Some(until) = state.held_until {
                if self.let_go.wait_until(&mut state, until).timed_out() {
                    break;
                }
            }
            state.held -= 1;
        }
    }

    /// To be called by every such request right before it makes its change.
    pub(crate) fn change(&self) {
        self.state.lock().changes += 1;
    }

    /// A cut is allowed as long as nothing changes from here on.
    pub(crate) fn unchanged(&self) -> Unchanged<'_> {
        Unchanged { order: self, since: self.state.lock().changes }
    }

    /// Holds changes back until the result is dropped, but none longer than `time` from now.
    pub(crate) fn hold(&self, time: Duration) -> Held<'_> {
        self.state.lock().held_until = Some(Instant::now() + time);
        Held(self)
    }
}

/// Lets a cut pass if no name and no size has changed since it was made.
pub(crate) struct Unchanged<'o> {
    order: &'o Order,
    since: u64,
}

impl Gate for Unchanged<'_> {
    fn pass(&self, cut: &mut dyn FnMut()) -> bool {
        let state = self.order.state.lock();
        let same = state.changes == self.since;
        if same {
            cut();
        }
        same
    }
}

/// Changes are held back as long as this lives.
pub(crate) struct Held<'o>(&'o Order);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.state.lock().held_until = None;
        self.0.let_go.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn passes(gate: &Unchanged<'_>) -> bool {
        let mut cut = false;
        let passed = gate.pass(&mut || cut = true);
        assert_eq!(passed, cut);
        passed
    }

    #[test]
    fn a_change_closes_the_gate() {
        let order = Order::new(4);
        let gate = order.unchanged();
        assert!(passes(&gate));
        order.change();
        assert!(!passes(&gate));
        assert!(passes(&order.unchanged()));
    }

    #[test]
    fn held_changes_come_after_the_cut() {
        let order = Order::new(4);
        thread::scope(|scope| {
            let held = order.hold(Duration::from_secs(60));
            let gate = order.unchanged();
            let change = scope.spawn(|| {
                order.wait();
                order.change();
            });
            while order.waits.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            assert!(passes(&gate));
            assert!(!change.is_finished());
            drop(held);
            change.join().unwrap();
            assert!(!passes(&gate));
        });
    }

    #[test]
    fn nothing_is_held_for_longer_than_said() {
        let order = Order::new(4);
        let _held = order.hold(Duration::from_millis(1));
        let gate = order.unchanged();
        order.wait();
        order.change();
        assert!(!passes(&gate));
    }

    #[test]
    fn workers_stay_free() {
        let order = Order::new(5);
        thread::scope(|scope| {
            let held = order.hold(Duration::from_secs(60));
            let waiting = [scope.spawn(|| order.wait()), scope.spawn(|| order.wait())];
            while order.waits.load(Ordering::Relaxed) < 2 {
                thread::yield_now();
            }
            order.wait();
            assert!(waiting.iter().all(|thread| !thread.is_finished()));
            drop(held);
        });
    }
}
