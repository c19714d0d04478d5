//! The kernel's write throttle and read-ahead of a mount, which start small for FUSE.
//!
//! A FUSE file system is distrusted: it gets 1 % of the dirty pages there may be, strictly, and 128 KiB of read-ahead.
//! Root can lift that where the mount's own files in sysfs are.

use std::fs;
use std::path::Path;

/// Read-ahead in KiB. More would serve sequential readers; but a fault of a mapped database that did not ask for
/// random access reads this much around it.
const READ_AHEAD_KB: &str = "512";

/// Lifts the throttle of the device `major:minor`. Gives back what could not be done, in words.
pub(crate) fn lift(device: &str) -> Vec<String> {
    let dir = Path::new("/sys/class/bdi").join(device);
    // `strict_limit` came with Linux 6.2: where it is missing there is nothing to lift.
    let settings = [("strict_limit", "0"), ("max_ratio", "100"), ("read_ahead_kb", READ_AHEAD_KB)];
    let failed: Vec<&str> = settings
        .iter()
        .filter(|(name, value)| {
            let file = dir.join(name);
            file.exists() && fs::write(file, value).is_err()
        })
        .map(|(name, _)| *name)
        .collect();
    if !dir.exists() {
        return vec![format!("the kernel's write throttle stays as it is: no {}", dir.display())];
    }
    match failed.is_empty() {
        true => Vec::new(),
        false => vec![format!("the kernel's write throttle stays as it is ({})", failed.join(", "))],
    }
}
