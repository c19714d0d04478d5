//! Making, linking, renaming and removing names.

use std::ffi::OsStr;

use snapstore::backend::{NewInode, RenameMode};
use snapstore::{Attr, FileKind};

use super::{Caller, Entered, Entry, Node};
use crate::errno::{Errno, Result};
use crate::node::NodeId;

/// What is to be made, as the kernel asks for it.
#[derive(Clone, Copy, Debug)]
pub struct Make<'a> {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, before the umask.
    pub mode: u32,
    /// The caller's umask.
    pub umask: u32,
    /// Device number, for device nodes.
    pub rdev: u32,
    /// Target, for symlinks.
    pub target: &'a [u8],
}

impl Entered<'_> {
    /// Makes a new inode with a name.
    pub fn make(&self, caller: Caller, parent: NodeId, name: &OsStr, what: &Make<'_>) -> Result<Entry> {
        let dir = self.parent(parent, name, libc::EEXIST)?;
        let Make { kind, mode, umask, rdev, target } = *what;
        let new =
            NewInode { kind, mode: mode & 0o7777, umask, uid: caller.uid, gid: caller.gid, rdev, target };
        Ok(self.tell_live(self.head().create(dir, name, &new)?))
    }

    /// Gives an inode another name. A file of a view cannot get a live name: EXDEV, so that programs copy instead.
    pub fn link(&self, id: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry> {
        let dir = self.parent(parent, name, libc::EEXIST)?;
        let ino = match self.node(id)? {
            Node::Live(ino) => ino,
            Node::View(..) | Node::Virtual(_) => return Err(Errno(libc::EXDEV)),
        };
        let attr = self.head().link(ino, dir, name)?;
        self.tree.lookups.named(id);
        Ok(self.tell_live(attr))
    }

    /// Removes a name that is no directory's.
    pub fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        let dir = self.parent(parent, name, libc::EPERM)?;
        let left = self.head().unlink(dir, name)?;
        self.unnamed(&left);
        Ok(())
    }

    /// Removes an empty directory.
    pub fn remove_dir(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        let dir = self.parent(parent, name, libc::EPERM)?;
        let left = self.head().remove_dir(dir, name)?;
        self.unnamed(&left);
        Ok(())
    }

    /// Renames.
    pub fn rename(&self, from: (NodeId, &OsStr), to: (NodeId, &OsStr), mode: RenameMode) -> Result<()> {
        let source = (self.parent(from.0, from.1, libc::EPERM)?, from.1);
        let target = (self.parent(to.0, to.1, libc::EEXIST)?, to.1);
        if let Some(replaced) = self.head().rename(source, target, mode)?
            && mode != RenameMode::Exchange
        {
            self.unnamed(&replaced);
        }
        Ok(())
    }

    /// Notes that an inode lost a name; when it was the last one and nobody holds the inode, it goes.
    fn unnamed(&self, left: &Attr) {
        let last = left.nlink == 0 || left.kind == FileKind::Directory;
        if last
            && self.tree.lookups.unnamed(self.live_node(left.ino))
            && let Err(error) = self.head().forget(left.ino)
        {
            tracing::debug!(ino = %left.ino, %error, "forget");
        }
    }
}
