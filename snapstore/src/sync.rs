//! Locks, condition variables, atomics and the little of threads that take part in what the interleavings test.
//!
//! In every ordinary build these are parking_lot's and the standard library's, under other names. With `--cfg shuttle`
//! they are those of shuttle, which runs all threads of a test on one and decides at each use who goes on; see
//! `scripts/interleavings`. Nothing here works outside of such a test then.
//!
//! What the disk and its twin use below (`crate::disk`) stays with the ordinary locks in both: the database calls
//! them with locks of its own held, and nobody may be exchanged then.
//!
//! The model has no time: a wait with a time limit never reaches it, so that a wake-up that is lost is found as a
//! deadlock. And it knows one order of memory, the strictest.

#[cfg(not(shuttle))]
pub use parking_lot::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, WaitTimeoutResult,
};
#[cfg(not(shuttle))]
pub use std::sync::atomic;
#[cfg(not(shuttle))]
pub use std::thread_local;

#[cfg(shuttle)]
pub use self::model::{Condvar, Mutex, MutexGuard, RwLock, WaitTimeoutResult};
#[cfg(shuttle)]
pub use shuttle::sync::{RwLockReadGuard, RwLockWriteGuard, atomic};
#[cfg(shuttle)]
pub use shuttle::thread_local;

/// What threads do beside their work.
pub mod thread {
    #[cfg(not(shuttle))]
    pub use std::thread::{sleep, yield_now};

    #[cfg(shuttle)]
    pub use shuttle::thread::yield_now;

    /// Lets the others go on.
    #[cfg(shuttle)]
    pub fn sleep(_time: std::time::Duration) {
        yield_now();
    }
}

#[cfg(shuttle)]
pub mod explore;
#[cfg(shuttle)]
mod model;
