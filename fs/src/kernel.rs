//! What can be told to the kernel.
//!
//! Each of these, but two, may wait for a lock that the kernel holds while one of its requests is being answered. They must
//! come from threads that answer no requests, with no lock held that an answer needs.

use std::ffi::OsStr;
use std::io;

use crate::node::NodeId;

/// The kernel's side of the mount, as seen from here.
pub trait Kernel: Send + Sync {
    /// Drop the name from the directory's cache, with everything below it.
    fn forget_name(&self, dir: NodeId, name: &OsStr) -> io::Result<()>;
    /// Take every cached name for old: each is asked for again, and what lay below it is dropped, when somebody next
    /// walks over it. This one waits for nothing. Linux can do it since 6.16; it is an error before.
    fn forget_all_names(&self) -> io::Result<()>;
    /// Drop cached attributes. This one takes no lock that a request holds: it may come from anywhere.
    fn forget_attributes(&self, id: NodeId) -> io::Result<()>;
    /// Write back and drop cached content and attributes.
    fn forget_content(&self, id: NodeId) -> io::Result<()>;
}
