//! The connection: shaking hands, serving, and telling the kernel things unasked.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fuser::INodeNo;

use super::{Adapter, Wanted};
use crate::kernel::Kernel;
use crate::mounted::Mounted;
use crate::node::NodeId;

/// `FUSE_NOTIFY_INC_EPOCH` of the kernel's `fuse.h`, since its version 7.44. The library does not have it.
const NOTIFY_INC_EPOCH: i32 = 8;

/// A connection that is ready to be served.
pub struct Session {
    session: fuser::Session<Adapter>,
    /// The connection once more, for what the library cannot say.
    device: Arc<File>,
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
        config.clone_fd = File::open("/dev/fuse").is_ok();
        // Who may come in at all is the kernel's decision, made by the mount's options. The library's own check would
        // refuse the kernel's write-back threads, which come as root.
        let acl = fuser::SessionACL::All;
        let adapter = Adapter { mounted, wanted, workers: Some(Arc::default()) };
        let device_again = Arc::new(File::from(device.try_clone()?));
        let session = fuser::Session::from_fd(adapter, device, acl, config)?;
        Ok(Session { session, device: device_again })
    }

    /// What can be told to the kernel over this connection.
    pub fn kernel(&self) -> Box<dyn Kernel> {
        Box::new(Notifier { library: self.session.notifier(), device: self.device.clone() })
    }

    /// Serves until the file system is unmounted.
    pub fn run(self) -> io::Result<()> {
        drop(self.device);
        self.session.run()
    }
}

struct Notifier {
    library: fuser::Notifier,
    device: Arc<File>,
}

impl Kernel for Notifier {
    fn forget_name(&self, dir: NodeId, name: &OsStr) -> io::Result<()> {
        self.library.inval_entry(INodeNo(dir.0), name)
    }

    fn forget_all_names(&self) -> io::Result<()> {
        // A `fuse_out_header` (length, code, no request) and nothing after it.
        let mut header = [0; 16];
        header[..4].copy_from_slice(&(16u32).to_ne_bytes());
        header[4..8].copy_from_slice(&NOTIFY_INC_EPOCH.to_ne_bytes());
        (&*self.device).write_all(&header)
    }

    fn forget_attributes(&self, id: NodeId) -> io::Result<()> {
        // So says an offset below 0.
        self.library.inval_inode(INodeNo(id.0), -1, 0)
    }

    fn forget_content(&self, id: NodeId) -> io::Result<()> {
        self.library.inval_inode(INodeNo(id.0), 0, 0)
    }
}
