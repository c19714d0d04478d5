//! Threads that answer requests: how many of them wait for one.
//!
//! The kernel gives requests to the threads that wait for them in turns. There must be many threads, since some wait
//! for the disk, and for a cut; but where one program makes one request after the other, all of them take turns at it,
//! each on the processor where it ran last, each with what it needs long gone from that processor's caches. So only a
//! few go back to wait for the next request, and the others rest here; whoever takes a request, and sees that nobody is
//! left who waits for one, calls another. Creating files is a fifth faster for it, reading single pages a sixth
//! (docs/PERFORMANCE.md).
//!
//! Nobody who rests is needed. A thread goes to rest only while enough others wait, says so first, and then looks
//! once more; who takes a request counts itself out first, and then looks who rests. In one order of all of this, one
//! of the two sees the other. (That is why all of it is `SeqCst`.)
//!
//! When the mount is gone, those who wait are told by the kernel, and end. The first to end calls all who rest. There
//! is one: who rests has left others behind that had answered requests, and all of those carry a [`Member`].

use std::cell::OnceCell;
use std::sync::Arc;

use snapstore::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use snapstore::sync::{Condvar, Mutex};

/// While so many wait for a request, nobody else goes to wait for one. Measured on two processors: with three and four
/// it is fastest, with six it is as with sixteen.
const AWAKE: usize = 4;

/// The threads of one mount that answer requests.
pub(crate) struct Workers {
    /// Who has answered a request rests while so many wait for one; at least one.
    awake: usize,
    /// How many wait for a request, of those that have answered one.
    idle: AtomicUsize,
    /// How many rest, or are about to.
    resting: AtomicUsize,
    /// A leaf.
    calls: Mutex<Calls>,
    called: Condvar,
}

#[derive(Default)]
struct Calls {
    /// So many of those who rest are to go on.
    count: usize,
    /// Nobody rests any more.
    ended: bool,
}

impl Default for Workers {
    fn default() -> Workers {
        Workers::new(AWAKE)
    }
}

impl Workers {
    /// Where one rests while so many others wait; at least one.
    pub(crate) fn new(awake: usize) -> Workers {
        let (idle, resting) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Workers { awake, idle, resting, calls: Mutex::default(), called: Condvar::default() }
    }

    /// A thread takes a request; `first`, if it is its first one.
    pub(crate) fn begin(&self, first: bool) {
        if !first && self.idle.fetch_sub(1, SeqCst) == 1 && self.resting.load(SeqCst) > 0 {
            self.call();
        }
    }

    /// The request has been answered. Returns when this thread should wait for another.
    pub(crate) fn end(&self) {
        if self.idle.load(SeqCst) >= self.awake {
            self.rest();
        }
        self.wait_for_another();
    }

    /// The same for who cannot rest now.
    fn wait_for_another(&self) {
        self.idle.fetch_add(1, SeqCst);
    }

    fn rest(&self) {
        let mut calls = self.calls.lock();
        self.resting.fetch_add(1, SeqCst);
        if self.idle.load(SeqCst) >= self.awake {
            while calls.count == 0 && !calls.ended {
                self.called.wait(&mut calls);
            }
            calls.count = calls.count.saturating_sub(1);
        }
        self.resting.fetch_sub(1, SeqCst);
    }

    fn call(&self) {
        let mut calls = self.calls.lock();
        if calls.count < self.resting.load(SeqCst) {
            calls.count += 1;
            self.called.notify_one();
        }
    }

    /// A thread has ended: the mount is gone, or soon may be. Nobody rests from now on.
    pub(crate) fn finish(&self) {
        self.calls.lock().ended = true;
        self.called.notify_all();
    }
}

/// What each thread carries that has answered a request: threads end when the mount does (or by an error of the
/// connection, and then it is no loss that nobody rests any more).
struct Member(Arc<Workers>);

impl Drop for Member {
    fn drop(&mut self) {
        self.0.finish();
    }
}

thread_local! {
    static MEMBER: OnceCell<Member> = const { OnceCell::new() };
}

/// A request that this thread answers, until this is dropped; the thread may rest then. To be taken before anything is
/// waited for, and kept until the reply is sent.
pub(crate) struct Busy<'a> {
    workers: &'a Workers,
    may_rest: bool,
}

impl<'a> Busy<'a> {
    /// This thread has got a request.
    pub(crate) fn new(workers: &'a Arc<Workers>) -> Busy<'a> {
        let first = MEMBER.with(|member| {
            let first = member.get().is_none();
            member.get_or_init(|| Member(workers.clone()));
            first
        });
        workers.begin(first);
        Busy { workers, may_rest: true }
    }

    /// The same, where this thread has more to do before it waits for the next one.
    pub(crate) fn brief(workers: &'a Arc<Workers>) -> Busy<'a> {
        let mut busy = Busy::new(workers);
        busy.may_rest = false;
        busy
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        // Who panics has not sent its reply yet.
        match self.may_rest && !std::thread::panicking() {
            true => self.workers.end(),
            false => self.workers.wait_for_another(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn who_panics_does_not_rest() {
        // Everybody else would.
        let workers = Arc::new(Workers::new(0));
        let answering = thread::spawn(move || {
            let _busy = Busy::new(&workers);
            panic!("as a handler");
        });
        assert!(answering.join().is_err());
    }

    #[test]
    fn the_end_of_a_thread_that_has_answered_calls_all_who_rest() {
        let workers = Arc::new(Workers::new(1));
        let (go, wait) = mpsc::channel::<()>();
        let first = workers.clone();
        let first = thread::spawn(move || {
            drop(Busy::new(&first));
            // In the library's place: waits for a request, until the mount is gone.
            let _ = wait.recv();
        });
        while workers.idle.load(SeqCst) < 1 {
            thread::yield_now();
        }
        let others: Vec<_> = (0..2)
            .map(|_| {
                let workers = workers.clone();
                thread::spawn(move || drop(Busy::new(&workers)))
            })
            .collect();
        while workers.resting.load(SeqCst) < 2 {
            thread::yield_now();
        }
        assert!(others.iter().all(|thread| !thread.is_finished()));
        drop(go);
        first.join().expect("the first");
        others.into_iter().for_each(|thread| thread.join().expect("one that rested"));
    }
}
