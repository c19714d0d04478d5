//! What can be told to the kernel.
//!
//! Each of these may wait for a lock that the kernel holds while one of its requests is being answered. They must
//! come from threads that answer no requests, with no lock held that an answer needs.

use std::ffi::OsStr;
use std::io;

use crate::node::NodeId;

/// The kernel's side of the mount, as seen from here.
pub trait Kernel: Send + Sync {
    /// Drop the name from the directory's cache, with everything below it.
    fn forget_name(&self, dir: NodeId, name: &OsStr) -> io::Result<()>;
    /// Write back and drop cached content and attributes.
    fn forget_content(&self, id: NodeId) -> io::Result<()>;
}
