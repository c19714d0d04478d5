//! Snapshot stores for the data directories of running programs.
//!
//! The words (height, epoch, head, snapshot, view, layer, lineage) are explained in docs/ARCHITECTURE.md.
//! This crate knows nothing of FUSE and nothing of command lines.

// Some tests are shared with those of the public interface, which know this crate by its name.
#[cfg(test)]
extern crate self as snapstore;

pub mod backend;
pub mod chunk;
pub mod control;
pub mod diff;
mod disk;
mod error;
mod hashing;
mod heights;
pub mod locate;
pub mod merkle;
pub mod mountinfo;
pub mod native;
pub mod preserve;
pub mod procs;
pub mod progress;
pub mod retention;
pub mod store;
#[doc(hidden)]
pub mod sync;
mod sys;
mod types;
pub mod verify;

pub use error::{Error, Result};
pub use types::*;
