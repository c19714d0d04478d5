//! What is agreed with the kernel at the start of a connection.
//!
//! The kernel offers what it can do. What is not asked for stays as FUSE was in 2006: one look-up at a time in a
//! directory, no caching of symlinks, set-id bits dropped by an extra request before each write. Locks are *not* asked
//! for: the kernel then keeps them itself, and every kind works.

use fuser::{InitFlags, KernelConfig};

/// The largest read or write in one request. The kernel's own limit is `fs.fuse.max_pages_limit`.
const MAX_WRITE: u32 = 1 << 20;
const MAX_READAHEAD: u32 = 16 << 20;
/// Requests of read-ahead and write-back that may be under way at once.
const MAX_BACKGROUND: u16 = 128;
const CONGESTION: u16 = 96;

/// What the mount's options ask of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The kernel keeps written pages and writes them back later.
    pub writeback: bool,
    /// The kernel reads and writes files below by itself, which may be stacked so deep. Before the write-back cache,
    /// which cannot be had as well.
    pub passthrough: Option<u32>,
}

/// What came of it.
pub struct Agreed {
    /// The kernel caches writes.
    pub writeback: bool,
    /// The kernel takes files below.
    pub passthrough: bool,
    /// What is missing and matters, in words.
    pub limits: Vec<String>,
}

/// Asks for all that is good to have.
pub fn negotiate(config: &mut KernelConfig, wanted: Wanted) -> Agreed {
    let mut limits = Vec::new();
    // One at a time: asking for a set that is not offered in full adds nothing of it.
    for flag in [
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_READDIRPLUS_AUTO,
        InitFlags::FUSE_ATOMIC_O_TRUNC,
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        InitFlags::FUSE_CACHE_SYMLINKS,
        InitFlags::FUSE_ASYNC_READ,
        InitFlags::FUSE_ASYNC_DIO,
        InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        InitFlags::FUSE_EXPORT_SUPPORT,
        InitFlags::FUSE_BIG_WRITES,
        InitFlags::FUSE_MAX_PAGES,
        InitFlags::FUSE_DONT_MASK,
    ] {
        if config.add_capabilities(flag).is_err() {
            tracing::debug!(?flag, "the kernel does not offer this");
        }
    }
    if config.add_capabilities(InitFlags::FUSE_POSIX_ACL).is_err() {
        limits.push("this kernel's FUSE has no POSIX ACLs".to_owned());
    }
    let passthrough = wanted.passthrough.is_some_and(|depth| {
        config.set_max_stack_depth(depth).is_ok()
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
    });
    if wanted.passthrough.is_some() && !passthrough {
        limits.push(
            "no passthrough, all content goes through tmfs: this kernel's FUSE has none (Linux 6.9 has)"
                .to_owned(),
        );
    }
    let wants_writeback = wanted.writeback && !passthrough;
    let writeback = wants_writeback && config.add_capabilities(InitFlags::FUSE_WRITEBACK_CACHE).is_ok();
    if wants_writeback && !writeback {
        limits.push("this kernel's FUSE has no write-back cache: each write goes through at once".to_owned());
    }
    // Each of these answers with the largest value it takes.
    if let Err(most) = config.set_max_write(MAX_WRITE) {
        let _ = config.set_max_write(most);
    }
    if let Err(most) = config.set_max_readahead(MAX_READAHEAD) {
        let _ = config.set_max_readahead(most);
    }
    let _ = config.set_max_background(MAX_BACKGROUND);
    let _ = config.set_congestion_threshold(CONGESTION);
    Agreed { writeback, passthrough, limits }
}
