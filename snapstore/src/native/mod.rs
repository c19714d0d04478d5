//! Backends whose snapshots a file system (or the administrator) makes: btrfs, zfs, external.
//!
//! The live files lie in a directory of the file system below, a **head**, as plain files; a program's reads and writes
//! go there by FUSE passthrough where the kernel has it. An [`engine::Engine`] freezes a head, shows what was frozen
//! and makes new heads from it. Everything else is the same for all of them and stands here once: which height is
//! which epoch, lineages, holds, rollback and its undoing, and what a crash at any step leaves.

pub mod btrfs;
pub mod engine;
