//! The btrfs backend: heads and snapshots are subvolumes.
//!
//! | type or module | does |
//! |---|---|
//! | [`BtrfsEngine`] | freezes, branches, deletes: the trait [`Engine`](crate::native::engine::Engine) |
//! | `ancestor` | the snapshots that BTM has made of a subvolume |
//! | `subvolume` | finds subvolumes, and those within others |
//! | [`BtrfsTakeover`] | takes directories over and gives them back (`place`, `clone`, `giveback`) |
//! | `space` | sizes, where the file system counts them |
//! | `sys` | the ioctls |
//!
//! What is hard about Btrfs:
//!
//! * A snapshot ends at the borders of its subvolume: one that lies within is an empty directory in it. So a data dir
//!   that holds subvolumes is refused by their names, at adopting and again at each snapshot.
//! * No file can be renamed from one subvolume into another, but a subvolume can be renamed everywhere, and files can
//!   share their content across (`FICLONE`). How a directory becomes a head therefore depends on what it is.
//! * `st_dev` differs between subvolumes of one file system, and the mounts' own device is a third number.

mod ancestor;
mod clone;
mod engine;
mod giveback;
mod place;
mod space;
mod subvolume;
pub(super) mod sys;
mod takeover;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_takeover;
#[cfg(test)]
pub(crate) mod volume;

pub(crate) use ancestor::BtmSubvolumes;
pub use engine::BtrfsEngine;
#[cfg(test)]
pub(super) use engine::HEADS;
pub use place::fits;
pub use takeover::BtrfsTakeover;
