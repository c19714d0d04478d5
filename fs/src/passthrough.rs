//! Whether the kernel may read and write files of the backend by itself (FUSE passthrough).
//!
//! It is wanted wherever the backend offers it: a program then reads and writes at the speed of the file system below,
//! and this process sees only names, attributes and syncs. Where it cannot be had, content goes through this process,
//! cached as the mount's options say; a status tells why.
//!
//! Passthrough and the write-back cache exclude each other on one connection, so this is decided at its beginning.

use std::fs;
use std::path::Path;

use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use snapstore::backend::Backend;

use crate::mount::MountOptions;

/// The bit of `CAP_SYS_ADMIN` in the kernel's sets.
const SYS_ADMIN: u32 = 21;

/// How many file systems may be stacked on each other, this one being the topmost: what to ask the kernel for. `None`:
/// no passthrough; with what to tell about it, if anything.
pub(crate) fn wanted(backend: &dyn Backend, options: &MountOptions) -> (Option<u32>, Option<String>) {
    if !backend.passthrough() || !options.passthrough {
        return (None, None);
    }
    if !may_register() {
        let limit = "no passthrough, all content goes through tmfs: that needs CAP_SYS_ADMIN of the host";
        return (None, Some(limit.to_owned()));
    }
    let depth = if is_stacked(&options.store) || is_stacked(&options.mountpoint) { 2 } else { 1 };
    (Some(depth), None)
}

/// Whether the kernel lets this process register files: it must have the capability, and not only within a user
/// namespace.
fn may_register() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let sets = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capable = sets
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set & (1 << SYS_ADMIN) != 0);
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut fields = map.split_whitespace();
    let initial = (fields.next(), fields.next(), fields.next()) == (Some("0"), Some("0"), Some("4294967295"));
    capable && initial
}

/// Whether what holds a path is itself stacked on another file system.
fn is_stacked(path: &Path) -> bool {
    statfs(path).is_ok_and(|held| held.filesystem_type() == OVERLAYFS_SUPER_MAGIC)
}
