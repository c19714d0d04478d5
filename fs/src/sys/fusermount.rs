//! Mounting without root: `fusermount3`, a set-user-id helper, mounts and passes the connection's descriptor back.
//!
//! The descriptor comes over a socket that the helper finds by the number in `_FUSE_COMMFD`. Here that is the helper's
//! standard input, so that nothing has to be done about it between fork and exec.

use std::fs::{File, Permissions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use snapstore::native::command::unblock_signals;

/// The helper, as a command. The daemon blocks the signals that end it; the helper must not inherit that, or nobody could
/// end one that hangs.
pub(crate) fn command() -> Command {
    let mut command = Command::new("fusermount3");
    unblock_signals(&mut command);
    command
}

/// Mounts at `point` with FUSE's options. Gives back the connection's descriptor.
pub(crate) fn mount(point: &Path, options: &str) -> io::Result<OwnedFd> {
    let _writable = Writable::make(point)?;
    let (ours, theirs) = UnixStream::pair()?;
    let child = command()
        .arg("-o")
        .arg(options)
        .arg("--")
        .arg(point)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let received = receive(&ours);
    let output = child.wait_with_output()?;
    match received {
        Some(device) if output.status.success() => Ok(device),
        _ => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// A mount point that its owner may write to for the time being: the helper insists on it, and a data dir that is not
/// mounted has no write permission.
struct Writable {
    dir: File,
    mode: Option<Permissions>,
}

impl Writable {
    fn make(point: &Path) -> io::Result<Writable> {
        let dir = File::open(point)?;
        let mode = dir.metadata()?.permissions();
        if mode.mode() & 0o200 != 0 {
            return Ok(Writable { dir, mode: None });
        }
        dir.set_permissions(Permissions::from_mode(mode.mode() | 0o200))?;
        Ok(Writable { dir, mode: Some(mode) })
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        // By descriptor: the path leads into the mount by now.
        if let Some(mode) = self.mode.take()
            && let Err(error) = self.dir.set_permissions(mode)
        {
            tracing::warn!(%error, "the directory below the mount stays writable");
        }
    }
}

fn receive(socket: &UnixStream) -> Option<OwnedFd> {
    let mut byte = [0u8];
    let mut slices = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags).ok()?;
    let descriptors = message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    })?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    descriptors.first().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) })
}
