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
//!
//! Step 2 takes the kernel about 4 µs for each name, with the lock of the root held, and 60 ms for each GiB that is in
//! its cache: seconds after a `find` over a million files, or below a database of many gigabytes. So where the kernel can
//! do it (Linux 6.16) all names are made *old* at once instead, and step 3 is done for what is open; and if the kernel
//! knows few nodes, the look-up for all of them: one may be somebody's working directory. The verb returns then; the names
//! are dropped by threads of ours that walk over them, for which nobody waits, and what is still held follows.

use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;
use snapstore::mountinfo::tree_without_mounts;

use crate::flush::for_each;
use crate::kernel::Kernel;
use crate::mounted::Mounted;
use crate::node::NodeId;

/// How long the kernel gets to give back, by itself, what it no longer uses. The rest is asked for one by one.
const PATIENCE: Duration = Duration::from_secs(2);

/// The same where nobody waits for it.
const PATIENCE_ASIDE: Duration = Duration::from_secs(60);

/// So many looks without a change say that it goes on holding the rest, where nobody waits for it.
const LOOKS_ASIDE: u32 = 5;

/// So few held nodes that it is quicker to look them up than to wait.
const FEW: usize = 64;

/// So few known nodes that all of them are refused before the verb returns, whatever they are. It takes about 10 ms.
const SOON: usize = 500;

/// So many are looked at in one go where nobody waits for it.
const MANY: usize = 2_000;

impl Mounted {
    /// Has the kernel forget all heads that were left, after a switch away from the last of them. `names`: those in
    /// the root, before the switch and after.
    pub(crate) fn forget_older_heads(&self, names: Vec<OsString>) {
        let Some(kernel) = self.kernel() else { return };
        if self.make_names_old(&*kernel) {
            let live = self.tree.live_tag();
            let mut open = self.tree.handles.of_other_heads(live);
            open.retain(|id| self.tree.lookups.is_known(*id));
            self.cut_off(&*kernel, &open);
            if self.tree.lookups.count() <= SOON {
                self.tell_gone(&self.tree.lookups.of_other_heads(live));
            }
            return self.forget_aside(names);
        }
        self.drop_names(&*kernel, &names);
        self.await_settled(PATIENCE, 1);
        self.cut_off(&*kernel, &self.tree.lookups.of_other_heads(self.tree.live_tag()));
    }

    /// Whether the kernel could do it.
    fn make_names_old(&self, kernel: &dyn Kernel) -> bool {
        match kernel.forget_all_names() {
            Ok(()) => {
                self.drop_root(kernel);
                true
            }
            Err(error) => {
                tracing::debug!(%error, "the kernel drops names one by one");
                false
            }
        }
    }

    /// Does what is left to do when all names are old, on a thread of its own.
    fn forget_aside(&self, names: Vec<OsString>) {
        let Some(mounted) = self.me.upgrade() else { return };
        let work = move || {
            // Whoever walks over an old name drops it, with what is below: without the lock of the root, which telling
            // the kernel to drop it would hold meanwhile.
            mounted.through_mount(&names, |name| {
                if !mounted.leaving.load(Ordering::Acquire) {
                    mounted.walk_over(name);
                }
            });
            mounted.await_settled(PATIENCE_ASIDE, LOOKS_ASIDE);
            mounted.drop_held_aside();
        };
        let mut forgetting = self.forgetting.lock();
        forgetting.retain(|thread| !thread.is_finished());
        match thread::Builder::new().name("tmfs-forget".to_owned()).spawn(work) {
            Ok(thread) => forgetting.push(thread),
            // They are dropped when programs walk over them, or when memory is wanted.
            Err(error) => tracing::warn!(%error, "no thread to have the kernel drop names of the old head"),
        }
    }

    /// Looks up a name in the root. It may take a while, so it goes by a copy of the mount, where there can be one: the
    /// mount itself is not in use meanwhile.
    fn walk_over(&self, name: &OsStr) {
        let root = &self.options.mountpoint;
        let _ = match tree_without_mounts(root) {
            Ok(copy) => fstatat(&copy, name, AtFlags::AT_SYMLINK_NOFOLLOW).map(drop).map_err(io::Error::from),
            Err(_) => root.join(name).symlink_metadata().map(drop),
        };
    }

    /// Ends the threads that use the mount to have the kernel forget: when it is unmounted there is nothing to forget. If
    /// that fails, names of the old head stay old, and go when somebody walks over them.
    pub(crate) fn end_forgetting(&self) {
        let threads = std::mem::take(&mut *self.forgetting.lock());
        self.leaving.store(true, Ordering::Release);
        for thread in threads {
            // A panic was reported by its thread.
            let _ = thread.join();
        }
        self.leaving.store(false, Ordering::Release);
    }

    fn drop_names(&self, kernel: &dyn Kernel, names: &[OsString]) {
        for name in names {
            if let Err(error) = kernel.forget_name(NodeId::ROOT, name) {
                tracing::warn!(?name, %error, "the kernel keeps a name of the old head");
            }
        }
        self.drop_root(kernel);
    }

    /// Has the kernel drop the inodes of older heads that it still holds, some at a time under the verb lock. Which head is
    /// live must not change between deciding what is of another one and looking it up: a directory of the live head that
    /// was looked up by number has two names for a moment, and whoever comes to it by its path just then can be told
    /// ESTALE by the kernel.
    fn drop_held_aside(&self) {
        for some in self.tree.lookups.of_other_heads(self.tree.live_tag()).chunks(MANY) {
            let _one = self.verb.lock();
            let live = self.tree.live_tag();
            let held = some.iter().copied().filter(|id| id.tag() != live && self.tree.lookups.is_known(*id));
            match self.kernel().filter(|_| !self.leaving.load(Ordering::Acquire)) {
                Some(kernel) => self.cut_off(&*kernel, &held.collect::<Vec<_>>()),
                None => return,
            }
        }
    }

    /// Makes all that is open of these nodes fail.
    fn cut_off(&self, kernel: &dyn Kernel, held: &[NodeId]) {
        // First the pages, mapped ones too; a fault reads through the old handle from now on, which fails.
        for_each(held, |id| {
            if let Err(error) = kernel.forget_content(*id) {
                tracing::debug!(?id, %error, "content of the old head");
            }
        });
        self.tell_gone(held);
    }

    /// Tells the kernel a new generation of each of these nodes, by a look-up: the one that it has it refuses then.
    fn tell_gone(&self, held: &[NodeId]) {
        self.through_mount(held, |id| {
            let _together = self.by_number.read();
            let _ = self.path_of(*id).symlink_metadata();
        });
        for_each(held, |id| self.drop_path_of(*id));
    }

    /// Waits until the kernel has given back what it has no use for of older heads, or does not go on giving back.
    /// `looks`: so many times in a row, without a change.
    fn await_settled(&self, patience: Duration, looks: u32) {
        let left = || self.tree.lookups.count_of_other_heads(self.tree.live_tag());
        let until = Instant::now() + patience;
        let (mut before, mut unchanged) = (left(), 0);
        while before > FEW && unchanged < looks && Instant::now() < until {
            if self.leaving.load(Ordering::Acquire) {
                return;
            }
            // Looking through a million of them takes a while itself.
            thread::sleep(Duration::from_millis(if before > MANY { 100 } else { 5 }));
            let now = left();
            unchanged = if now == before { unchanged + 1 } else { 0 };
            before = now;
        }
    }
}
