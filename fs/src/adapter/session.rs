//! The connection: shaking hands, serving, and telling the kernel things unasked.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fuser::INodeNo;

use super::{Adapter, Wanted};
use crate::kernel::Kernel;
use crate::mounted::Mounted;
use crate::node::NodeId;

/// A connection that is ready to be served.
pub struct Session {
    session: fuser::Session<Adapter>,
}

impl Session {
    /// Shakes hands with the kernel over the descriptor of a mount that was just made.
    pub fn new(
        mounted: Arc<Mounted>,
        device: OwnedFd,
        wanted: Wanted,
        workers: usize,
    ) -> io::Result<Session> {
        let mut config = fuser::Config::default();
        config.n_threads = Some(workers);
        // A queue of its own for each worker.
        config.clone_fd = std::fs::File::open("/dev/fuse").is_ok();
        // Who may come in at all is the kernel's decision, made by the mount's options. The library's own check would
        // refuse the kernel's write-back threads, which come as root.
        let acl = fuser::SessionACL::All;
        let session = fuser::Session::from_fd(Adapter { mounted, wanted }, device, acl, config)?;
        Ok(Session { session })
    }

    /// What can be told to the kernel over this connection.
    pub fn kernel(&self) -> Box<dyn Kernel> {
        Box::new(Notifier(self.session.notifier()))
    }

    /// Serves until the file system is unmounted.
    pub fn run(self) -> io::Result<()> {
        self.session.run()
    }
}

struct Notifier(fuser::Notifier);

impl Kernel for Notifier {
    fn forget_name(&self, dir: NodeId, name: &OsStr) -> io::Result<()> {
        self.0.inval_entry(INodeNo(dir.0), name)
    }

    fn forget_attributes(&self, id: NodeId) -> io::Result<()> {
        // So says an offset below 0.
        self.0.inval_inode(INodeNo(id.0), -1, 0)
    }

    fn forget_content(&self, id: NodeId) -> io::Result<()> {
        self.0.inval_inode(INodeNo(id.0), 0, 0)
    }
}
