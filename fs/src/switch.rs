//! Making the kernel forget the head that was left.
//!
//! After a switch no program may see a byte, a size or a name of the old head, though the kernel was told it could
//! keep them for hours. Invalidating attributes does not do it: with writeback cache the kernel trusts its own sizes
//! and pages. So every inode of the new head has **another number** (the head's new tag): what the kernel has cached
//! belongs to numbers that nothing leads to any more. In three steps:
//!
//! 1. *Switch* with nobody in the tree. From then on the old numbers are answered ESTALE, on which the kernel walks a
//!    path again, and old handles EIO.
//! 2. *Names*: drop every name in the root, of the old head and of the new. A directory's name takes what is cached
//!    below it along, so each later look-up comes to us. The root keeps its number; its attributes are dropped.
//! 3. *What is still held*: open files and mappings, working directories. The kernel gives most inodes back by itself
//!    in step 2. Of those it keeps, the cached pages are dropped, so that mappings fault; then each is looked up by
//!    number (`@ino`), which is answered with a new FUSE generation: on that the kernel refuses every use of the old
//!    inode (EIO), without asking us.

use std::ffi::OsString;
use std::thread;
use std::time::{Duration, Instant};

use snapstore::backend::SwitchReport;
use snapstore::control::Failure;
use snapstore::procs;

use crate::flush::for_each;
use crate::kernel::Kernel;
use crate::mounted::{Mounted, busy};
use crate::node::NodeId;

/// How long the kernel gets to give back, by itself, what it no longer uses. The rest is asked for one by one.
const PATIENCE: Duration = Duration::from_secs(2);

/// So few held nodes that it is quicker to look them up than to wait.
const FEW: usize = 64;

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
        // So that the head that is left is whole, and can be got back whole.
        let (names, report) = self.in_order("rollback", None, |gate, _| self.tree.switch(gate, &switch))?;
        if let Some(kernel) = self.kernel() {
            self.drop_names(&*kernel, &names);
            self.drop_older(&*kernel);
        }
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

    fn drop_names(&self, kernel: &dyn Kernel, names: &[OsString]) {
        for name in names {
            if let Err(error) = kernel.forget_name(NodeId::ROOT, name) {
                tracing::warn!(?name, %error, "the kernel keeps a name of the old head");
            }
        }
        self.drop_root(kernel);
    }

    /// Has the kernel drop the inodes of older heads that it still holds.
    fn drop_older(&self, kernel: &dyn Kernel) {
        let held = self.held_when_settled();
        // First the pages, mapped ones too; a fault reads through the old handle from now on, which fails.
        for_each(&held, |id| {
            if let Err(error) = kernel.forget_content(*id) {
                tracing::debug!(?id, %error, "content of the old head");
            }
        });
        // Then the look-up that tells the new generation.
        self.through_mount(&held, |id| {
            let _ = self.path_of(*id).symlink_metadata();
        });
        for_each(&held, |id| self.drop_path_of(*id));
    }

    /// The nodes of older heads that the kernel goes on holding after it gave back what it had no use for.
    fn held_when_settled(&self) -> Vec<NodeId> {
        let live = self.tree.live_tag();
        let until = Instant::now() + PATIENCE;
        let mut held = self.tree.lookups.of_other_heads(live);
        while held.len() > FEW && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
            let left = self.tree.lookups.of_other_heads(live);
            if left.len() == held.len() {
                break;
            }
            held = left;
        }
        held
    }
}
