//! What `tmfs status` shows of a mount.

use snapstore::control::{Failure, Status, verbs};
use snapstore::locate::Located;

use crate::mounted::Mounted;

impl Mounted {
    pub(crate) fn status(&self) -> Result<Status, Failure> {
        let located = Located { data_dir: self.options.data_dir.clone(), store: self.options.store.clone() };
        let (open_files, open_for_writing) = self.tree.handles.counts();
        let base = verbs::status_base(&*self.backend, &located)?;
        let mut limits = base.limits.clone();
        limits.extend(self.limits());
        Ok(Status {
            pid: Some(std::process::id()),
            mounted_since: Some(self.since),
            cache: Some(self.cache().to_owned()),
            open_files,
            open_for_writing,
            requests: self.requests.by_name(),
            panics: self.requests.panics(),
            overdue_requests: self.in_flight.overdue(),
            slow_requests: self.in_flight.slow(),
            memory_bytes: resident_bytes(),
            limits,
            pauses: self.pauses.now(),
            retention: self.retaining.words(),
            preserve: self.preserve.get().cloned().unwrap_or_default(),
            last_error: base
                .last_error
                .clone()
                .or_else(|| self.retaining.failed())
                .or_else(|| self.hook_problem()),
            ..base
        })
    }
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
