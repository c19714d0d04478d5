//! Switching the live head, by which a rollback and its undoing are done. What the kernel has cached of the head that
//! was left is forgotten after it: see [`crate::forget`].

use std::thread;
use std::time::{Duration, Instant};

use snapstore::backend::SwitchReport;
use snapstore::control::Failure;
use snapstore::procs;

use crate::mounted::{Mounted, busy};

/// How long the kernel may take to tell that a file was closed.
const RELEASE: Duration = Duration::from_millis(300);

/// The most files or processes that an error names.
pub(crate) const NAMED: usize = 5;

impl Mounted {
    /// Switches the live head by `switch`, with the kernel's caches: flushed before, forgotten after. The caller
    /// holds the verb lock.
    pub(crate) fn switch_head(
        &self,
        force: bool,
        switch: impl Fn() -> snapstore::Result<SwitchReport>,
    ) -> Result<SwitchReport, Failure> {
        if !force {
            self.refuse_writers()?;
        }
        let _alone = self.trickle.rest();
        // So that the head that is left is whole, and can be got back whole.
        let (names, report) = self.in_order("rollback", None, |gate, _| self.tree.switch(gate, &switch))?;
        self.forget_older_heads(names);
        Ok(report)
    }

    /// Refuses while files are open for writing: what is written into a head that is left would be lost unnoticed.
    fn refuse_writers(&self) -> Result<(), Failure> {
        let live = self.tree.live_tag();
        let mut writers = self.tree.handles.writers(live);
        // A file that was closed just now is still open here: the kernel tells of it later.
        let until = Instant::now() + RELEASE;
        while !writers.is_empty() && Instant::now() < until {
            thread::sleep(Duration::from_millis(2));
            writers = self.tree.handles.writers(live);
        }
        // A mapping of a file below outlives the handle it was made from, without our being told.
        let mut open = Vec::new();
        if self.tree.passes_through() || !writers.is_empty() {
            open = procs::open_files(&self.options.mountpoint, true);
        }
        if writers.is_empty() && open.is_empty() {
            return Ok(());
        }
        let mut files: Vec<String> = open
            .iter()
            .map(|file| format!("{} (process {} {})", file.path.display(), file.pid, file.process))
            .collect();
        if files.is_empty() {
            files = writers.iter().map(|writer| self.describe(writer)).collect();
        }
        let more = files.len().saturating_sub(NAMED);
        files.truncate(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Err(busy(format!(
            "files are open for writing: {}{more}; stop what writes them, or use --force: they fail then",
            files.join(", ")
        )))
    }
}
