//! Backends whose snapshots a file system (or the administrator) makes: btrfs, zfs, external.
//!
//! The live files lie in a directory of the file system below, a **head**, as plain files; a program's reads and writes
//! go there by FUSE passthrough where the kernel has it. An [`engine::Engine`] freezes a head, shows what was frozen
//! and makes new heads from it. Everything else is the same for all of them and stands here once: which height is
//! which epoch, lineages, holds, rollback and its undoing, and what a crash at any step leaves.
//!
//! | file | what is in it |
//! |---|---|
//! | `engine` | what an engine must do |
//! | `takeover` | what it must do when a directory is adopted or ejected |
//! | `engines` | which engines there are |
//! | `external` | the engine whose work is done by commands of the administrator |
//! | `frame` | adopting and ejecting: what is the same for all engines |
//! | `btrfs` | the engine of Btrfs: subvolumes |
//! | `import` | coming from the ancestor: its snapshots become heights |
//! | `site` | where a store is: what engines are opened with |
//! | `command` | running programs, without a shell |
//! | `catalog` | which epoch is which height, and what is under way |
//! | `core` | an open store; its locks |
//! | `backend` | it as a [`Backend`](crate::backend::Backend) |
//! | `snapshots`, `switch` | taking, holding, deleting; rollback and undo |
//! | `preserve` | carrying files over a rollback |
//! | `views` | views, reachable while they are used |
//! | `worker` | what is done behind |
//! | `recover` | opening |
//! | `tree` | the live head and views, over plain directories |
//! | `zfs` | ZFS, of the kernel or by zfs-fuse |

pub(crate) mod backend;
pub mod btrfs;
pub(crate) mod catalog;
pub mod command;
pub(crate) mod core;
pub mod engine;
pub(crate) mod engines;
pub mod external;
pub(crate) mod frame;
pub mod import;
pub(crate) mod preserve;
pub(crate) mod recover;
pub mod site;
mod snapshots;
mod switch;
pub mod takeover;
#[cfg(test)]
mod tests;
pub(crate) mod tree;
#[cfg(test)]
mod twin;
mod views;
mod worker;
mod zfs;
