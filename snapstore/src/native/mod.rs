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
//! | `site` | where a store is: what engines are opened with |
//! | `command` | running programs, without a shell |
//! | `zfs` | ZFS, of the kernel or by zfs-fuse |

pub mod command;
pub mod engine;
pub(crate) mod engines;
pub mod external;
pub mod site;
pub mod takeover;
mod zfs;
