//! What `tmfs status` shows of a mount.

use snapstore::Error;
use snapstore::control::{Failure, Status};

use crate::mount::Cache;
use crate::mounted::Mounted;

impl Mounted {
    pub(crate) fn status(&self) -> Result<Status, Failure> {
        let snapshots = match self.backend.snapshots(false) {
            Err(Error::NoSnapshots) => Vec::new(),
            other => other?,
        };
        let newest = snapshots.last();
        let (open_files, open_for_writing) = self.tree.handles.counts();
        let cache = match self.options.cache {
            Cache::Writeback => "writeback",
            Cache::Through => "through",
        };
        Ok(Status {
            pid: Some(std::process::id()),
            data_dir: self.options.data_dir.clone(),
            store: self.options.store.clone(),
            backend: self.backend.kind(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mounted_since: Some(self.since),
            head: "main".to_owned(),
            heights: snapshots.len() as u64,
            oldest_height: snapshots.first().map(|s| s.height),
            newest_height: newest.map(|s| s.height),
            newest_time: newest.map(|s| s.time),
            held: snapshots.iter().filter(|s| s.held).count() as u64,
            usage: self.backend.usage()?,
            cache: Some(cache.to_owned()),
            follower: None,
            open_files,
            open_for_writing,
            requests: self.requests.by_name(),
            panics: self.requests.panics(),
            memory_bytes: resident_bytes(),
            limits: self.limits(),
            last_error: self.backend.last_error(),
        })
    }
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
