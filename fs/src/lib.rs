//! The file system that a tmfs mount shows.
//!
//! A mount is one FUSE connection with three kinds of node in it: the **live** head, which can be changed; **views**,
//! one read-only tree per snapshot, below `@height` and `@time`; and the few **virtual** directories that lead to
//! them. What a node is stands in its number ([`node`]). The kernel may cache nearly everything for hours, because
//! this process is the only writer; the price is that it must be told when that stops being true, which is the case
//! exactly when a rollback switches the head ([`Mounted`] does it).
//!
//! The way of a request: `adapter` (the only module that knows the FUSE library) decodes it, [`tree`] answers it out
//! of a [`snapstore::backend::Backend`], [`errno`] turns a failure into the number that the caller sees.
//!
//! The way of a command: [`Mounted`] answers [`snapstore::control::Verbs`]. Before a cut it has the kernel write back
//! what programs have written (`flush`), after a switch it has the kernel forget (`switch`).
//!
//! Nothing here knows a concrete backend.

mod adapter;
mod bdi;
pub mod errno;
mod flush;
mod forget;
mod handles;
mod inflight;
#[cfg(all(test, shuttle))]
mod interleavings;
mod kernel;
mod lookups;
mod mount;
mod mounted;
pub mod node;
mod order;
mod passthrough;
mod pauses;
mod retain;
mod status;
mod switch;
mod sys;
pub mod tree;
mod trickle;
mod unmount;
mod verbs;
mod views;
mod ways;
mod workers;

pub use mount::{Cache, MountError, MountOptions, SLOW_REQUEST, clear_dead_mount, mount};
pub use mounted::Mounted;
pub use sys::{give_back_memory, share_memory};
