//! Locks, atomics and pauses of what threads share: the gate of a cut, the layers, the handle table.
//!
//! They are `parking_lot`'s and the standard library's. Built with `--cfg shuttle` they are shuttle's, which runs the
//! threads of a test one at a time and chooses at each of these calls who goes on: the modules `interleavings` try
//! many such orders, and a failure prints the one that replays it. What is not to be a point of choice, since a lock
//! of somebody else's is held there (the disk below the database), does not use this module.

#[cfg(not(shuttle))]
mod plain {
    pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
    pub use std::sync::atomic;
    pub use std::thread::{sleep, yield_now};
}

#[cfg(not(shuttle))]
pub use plain::*;

#[cfg(shuttle)]
mod shuttled;

#[cfg(shuttle)]
pub use shuttled::*;
